"""The stand-in: the shape of the real API, and every way in which a query makes it misbehave."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import requests

from pipeline_poc.errors import ServiceStartError
from pipeline_poc.posts import POSTS, Post
from pipeline_poc.records import RejectedRecord
from pipeline_poc.stand_in import Query, StandIn, make_post
from pipeline_poc.testing import NASTY_RECORDS, UNUSUAL_POSTS


@pytest.fixture
def session() -> Iterator[requests.Session]:
    """A client that keeps its connection."""
    with requests.Session() as session:
        yield session


def get(session: requests.Session, stand_in: StandIn, query: str = "") -> requests.Response:
    """Ask a stand-in for something."""
    return session.get(f"{stand_in.url}{query}", timeout=10)


def test_shape_of_the_list(stand_in: StandIn, session: requests.Session) -> None:
    """The list is that of the real API: 100 posts, ten a user, ids from 1, bodies of four lines."""
    answer = get(session, stand_in)
    posts = answer.json()
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert [post["id"] for post in posts] == list(range(1, 101))
    assert [post["userId"] for post in posts] == [1 + index // 10 for index in range(100)]
    assert {tuple(post) for post in posts} == {("userId", "id", "title", "body")}
    assert {post["body"].count("\n") for post in posts} == {3}
    assert all(isinstance(POSTS.parse(post), Post) for post in posts)


def test_shape_of_one(stand_in: StandIn, session: requests.Session) -> None:
    """A post alone is the same as in the list; one that isn't there is a 404 with an empty object."""
    assert get(session, stand_in, "/7").json() == get(session, stand_in).json()[6]
    missing = get(session, stand_in, "/101")
    assert (missing.status_code, missing.json()) == (404, {})


def test_same_text_everywhere(stand_in: StandIn) -> None:
    """Another process serves the same text."""
    code = "from pipeline_poc.stand_in import make_post; print(make_post(7))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(make_post(7))


def test_not_modified(stand_in: StandIn, session: requests.Session) -> None:
    """The ETag of an answer brings a 304 without body until a text changes."""
    etag = get(session, stand_in).headers["ETag"]
    again = session.get(stand_in.url, headers={"If-None-Match": etag}, timeout=10)
    assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", etag)
    changed = session.get(f"{stand_in.url}?changed=3", headers={"If-None-Match": etag}, timeout=10)
    assert changed.status_code == 200


def test_changed_and_revision(stand_in: StandIn, session: requests.Session) -> None:
    """`changed` gives the named posts the text of the next revision, `revision` gives it to all."""
    usual = get(session, stand_in).json()
    some = get(session, stand_in, "?changed=3,7").json()
    every = get(session, stand_in, "?revision=2").json()
    assert [post["id"] for post, before in zip(some, usual, strict=True) if post != before] == [3, 7]
    assert some[2] == every[2]
    assert all(post["title"] != before["title"] for post, before in zip(every, usual, strict=True))


@pytest.mark.parametrize(("n", "pages"), [(95, 4), (90, 3), (0, 1)])
def test_pages(stand_in: StandIn, session: requests.Session, n: int, pages: int) -> None:
    """Links lead through all pages, each record on one of them, and the total is told."""
    url: str | None = f"{stand_in.url}?n={n}&_page=1&_limit=30"
    posts, answers = [], 0
    while url:
        answer = session.get(url, timeout=10)
        assert answer.headers["X-Total-Count"] == str(n)
        posts += answer.json()
        answers += 1
        url = answer.links.get("next", {}).get("url")
    assert ([post["id"] for post in posts], answers) == (list(range(1, n + 1)), pages)


def test_many_posts(stand_in: StandIn, session: requests.Session) -> None:
    """As many posts as are asked for, in one answer."""
    assert get(session, stand_in, "?n=50000").content.count(b'"id"') == 50_000


@pytest.mark.parametrize("name, raw", NASTY_RECORDS)
def test_nasty_records_are_no_posts(name: str, raw: str) -> None:
    """Each record of the nasty corpus is rejected."""
    assert isinstance(POSTS.parse(json.loads(raw)), RejectedRecord), name


@pytest.mark.parametrize("name, record", UNUSUAL_POSTS)
def test_unusual_posts_are_posts(name: str, record: dict[str, object]) -> None:
    """Each record of the unusual corpus is a post."""
    assert isinstance(POSTS.parse(record), Post), name


def test_malformed(stand_in: StandIn, session: requests.Session) -> None:
    """Bad records come on top of the posts, spread among them, the whole corpus before any comes again."""
    kinds = len(NASTY_RECORDS) + 2
    # Its own `json` takes simplejson where that is installed, which refuses NaN.
    records = json.loads(get(session, stand_in, f"?n=60&malformed={kinds}").content)
    bad = [record for record in records if not isinstance(POSTS.parse(record), Post)]
    assert len(records) == 60 + kinds
    assert [json.dumps(record) for record in bad] == [json.dumps(json.loads(raw)) for _, raw in NASTY_RECORDS]
    first, repeated, contradicting = [
        r for r in records if isinstance(r, dict) and r.get("id") == 1 and r["id"] is not True
    ]
    assert first == repeated != contradicting
    assert isinstance(POSTS.parse(records[0]), Post)
    assert isinstance(POSTS.parse(records[-1]), Post)


def test_failures(stand_in: StandIn, session: requests.Session) -> None:
    """A status can be asked for, for each request or the first few, with a time to wait."""
    answer = get(session, stand_in, "?status=429&retry_after=1")
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
    assert [get(session, stand_in, "?fail_first=2").status_code for _ in range(4)] == [503, 503, 200, 200]
    assert [get(session, stand_in, "?fail_first=1&status=500").status_code for _ in range(2)] == [500, 200]
    assert stand_in.hits == 7


def test_random_failures(stand_in: StandIn, session: requests.Session) -> None:
    """`errors` fails a share of the requests, the same ones each time."""

    def statuses(server: StandIn) -> list[int]:
        return [get(session, server, "/1?errors=0.2").status_code for _ in range(100)]

    first = statuses(stand_in)
    with StandIn() as another:
        assert statuses(another) == first
    assert set(first) == {200, 503}
    assert 10 <= first.count(503) <= 30


def test_delay(stand_in: StandIn, session: requests.Session) -> None:
    """`delay_ms` holds the answer back."""
    start = time.monotonic()
    assert get(session, stand_in, "?delay_ms=200").ok
    assert time.monotonic() - start >= 0.2


def test_wrong_answers(stand_in: StandIn, session: requests.Session) -> None:
    """HTML, an object, a body cut short and a connection cut short can be asked for."""
    html = get(session, stand_in, "?html=1")
    assert (html.headers["Content-Type"], html.text[:9]) == ("text/html", "<!doctype")
    assert len(get(session, stand_in, "?object=1").json()["posts"]) == 100
    cut = get(session, stand_in, "?truncate=1")
    assert int(cut.headers["Content-Length"]) == len(cut.content)
    with pytest.raises(json.JSONDecodeError):
        json.loads(cut.content)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        get(session, stand_in, "?drop=1")
    assert get(session, stand_in).ok


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("n=-1", "n: Input should be greater than or equal to 0"),
        ("n=many", "n: Input should be a valid integer"),
        ("n=", "n: Input should be a valid integer"),
        ("changed=3,x", "changed: Input should be a valid integer"),
        ("errors=2", "errors: Input should be less than or equal to 1"),
        ("_page=0", "_page: Input should be greater than or equal to 1"),
        ("colour=red", "colour: Extra inputs are not permitted"),
    ],
)
def test_nonsense(stand_in: StandIn, session: requests.Session, query: str, problem: str) -> None:
    """A query that makes no sense is a 400 that names the parameter."""
    answer = get(session, stand_in, f"?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(problem)


def test_every_parameter_is_explained() -> None:
    """Each parameter has a description."""
    assert [name for name, field in Query.model_fields.items() if not field.description] == []


def test_posts_are_replaced_live(stand_in: StandIn, session: requests.Session) -> None:
    """A test replaces and adds records while the stand-in runs."""
    stand_in.posts = {2: {"anything": 1}, 500: UNUSUAL_POSTS[0][1]}
    records = get(session, stand_in).json()
    assert (len(records), records[1], records[100]) == (101, {"anything": 1}, UNUSUAL_POSTS[0][1])
    assert get(session, stand_in, "/500").json() == UNUSUAL_POSTS[0][1]


def test_behaviour_changes_live(stand_in: StandIn, session: requests.Session) -> None:
    """A test changes what every request gets; the request's own parameters win."""
    stand_in.behaviour = {"n": "3", "status": "502"}
    assert get(session, stand_in).status_code == 502
    stand_in.behaviour = {"n": "3"}
    assert len(get(session, stand_in).json()) == 3
    assert len(get(session, stand_in, "?n=5").json()) == 5


def test_stops_and_starts_again(stand_in: StandIn, session: requests.Session) -> None:
    """Once stopped nobody is answered, on old connections neither; the next start is on the same port."""
    url = stand_in.url
    assert get(session, stand_in).ok
    stand_in.stop()
    with pytest.raises(requests.ConnectionError):
        get(session, stand_in)
    stand_in.start()
    assert stand_in.url == url
    assert get(session, stand_in).ok


def test_taken_port(stand_in: StandIn) -> None:
    """A port that is taken is an error that names the address."""
    port = int(stand_in.url.split(":")[2].split("/")[0])
    with pytest.raises(ServiceStartError, match=re.escape(stand_in.url)):
        StandIn(port).start()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_as_a_process(session: requests.Session, number: signal.Signals) -> None:
    """As a process it prints its address and ends cleanly when told to."""
    command = [sys.executable, "-m", "pipeline_poc.stand_in", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert session.get(line.split()[-1], timeout=10).ok
        process.send_signal(number)
        output = process.communicate(timeout=10)
    assert (process.returncode, output) == (0, ("", ""))
