"""The source: asked politely, believed only as a whole, read in pieces."""

import json
import socket
import tempfile
import threading
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipeline_poc import source as source_module
from pipeline_poc.clock import utc_now
from pipeline_poc.errors import ServiceUnavailable, SourceAnswerError
from pipeline_poc.retry import RetryPolicy
from pipeline_poc.source import Source
from pipeline_poc.stand_in import StandIn, make_post

POLICY = RetryPolicy(max_attempts=3, base_s=0.001, cap_s=0.001)


@contextmanager
def opened(url: str, timeout_s: float = 5) -> Iterator[Source]:
    """A source that is closed in the end."""
    source = Source(url, timeout_s=timeout_s, policy=POLICY)
    try:
        yield source
    finally:
        source.close()


@pytest.fixture
def source(stand_in: StandIn) -> Iterator[Source]:
    """The stand-in as a source."""
    with opened(stand_in.url) as source:
        yield source


def ids(source: Source) -> list[int]:
    """Return the ids of all records."""
    with source.fetch() as answer:
        return [record["id"] for record in answer.records()]


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Serves bodies under paths; returns the URL of the first."""
    servers: list[HTTPServer] = []

    def start(*pages: tuple[bytes, dict[str, str]], status: int = 200) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                seen.append(dict(self.headers))
                body, headers = pages[int(self.path.strip("/") or 0)]
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/0"

    seen: list[dict[str, str]] = []
    start.seen = seen  # type: ignore[attr-defined]
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_all_records_in_order(source: Source) -> None:
    """The records come as the API serves them, as often as they are asked for, and are counted."""
    with source.fetch() as answer:
        for _ in range(2):
            assert list(answer.records()) == [make_post(i) for i in range(1, 101)]
        assert answer.count == 100


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_failures_are_retried(source: Source, stand_in: StandIn, status: int) -> None:
    """An answer that says "later" is asked for again, up to the policy's attempts."""
    stand_in.behaviour = {"fail_first": "2", "status": str(status)}
    assert len(ids(source)) == 100
    assert stand_in.hits == 3
    stand_in.behaviour = {"status": str(status)}
    with pytest.raises(ServiceUnavailable, match=rf"\(SOURCE_URL\) is not available: it answered {status}"):
        source.fetch()
    assert stand_in.hits == 6


def test_retry_after_is_obeyed(stand_in: StandIn) -> None:
    """The wait that the API asks for is waited, at least."""
    stand_in.behaviour = {"fail_first": "1", "status": "429", "retry_after": "1"}
    started = utc_now()
    with opened(stand_in.url) as source:
        assert len(ids(source)) == 100
    assert utc_now() - started >= timedelta(seconds=1)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_refusals_are_terminal(source: Source, stand_in: StandIn, status: int) -> None:
    """A refusal is not asked for again; the error says URL, status and how the body begins."""
    stand_in.behaviour = {"status": str(status)}
    with pytest.raises(SourceAnswerError, match=rf"answered {status}: .* the body begins b'\{{\"error\"") as caught:
        source.fetch()
    assert caught.value.status == status
    assert stand_in.hits == 1


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "an empty body"),
        (b"  \n", "an empty body"),
        (b"{}", "an object, not a JSON list"),
        (b"<!doctype html>", "HTML or XML, not a JSON list"),
        (b"null", "text that begins with 'n'"),
        (b"[1, 2", r"the body ends at character 5, expected ',' or '\]'"),
        (b"[1 2]", "'2' at character 3"),
        (b"[1,]", "Expecting value at character 3"),
        (b"[,1]", "Expecting value at character 1"),
        (b'[{"id": 1', "at character 9"),
        (b'["abc', "Unterminated string"),
        (b"[1] 2", "more text behind its end, at character 4"),
        (b"[1][2]", "more text behind its end"),
        (b"[" * 100_000, "nested too deeply"),
        (b'["\xff"]', "no valid UTF-8"),
        (b'["\xc3', "no valid UTF-8"),
        (b"\xff\xfe[\x001\x00]\x00", "no valid UTF-8"),
    ],
)
def test_what_is_no_list_is_refused(serve: Callable[..., str], body: bytes, problem: str) -> None:
    """A body that is no JSON list is refused before the first record, with what is wrong and how it begins."""
    with opened(serve((body, {}))) as source, pytest.raises(SourceAnswerError, match=problem) as caught:
        source.fetch()
    assert (f"the body begins {body[:80]!r}" in str(caught.value)) == bool(body)


@pytest.mark.parametrize("behaviour", ["html", "object", "truncate"])
def test_wrong_answers_of_the_stand_in(source: Source, stand_in: StandIn, behaviour: str) -> None:
    """HTML, an object and a cut list are terminal: nothing says that another attempt would help."""
    stand_in.behaviour = {behaviour: "1"}
    with pytest.raises(SourceAnswerError):
        source.fetch()
    assert stand_in.hits == 1


def test_a_cut_connection_is_transient(source: Source, stand_in: StandIn) -> None:
    """A connection that breaks within the body is an outage, tried again; a later whole answer counts alone."""
    stand_in.behaviour = {"drop": "1"}
    with pytest.raises(ServiceUnavailable):
        source.fetch()
    assert stand_in.hits == 3
    stand_in.behaviour = {}
    assert len(ids(source)) == 100


def test_an_attempt_that_broke_leaves_no_bytes(
    source: Source, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a broken attempt had received is not mixed with the answer of the next attempt."""
    stand_in.behaviour = {"drop": "1"}
    monkeypatch.setattr("pipeline_poc.retry.time.sleep", lambda _: None)
    original = source._get_once

    def mend(*arguments: Any) -> Any:
        try:
            return original(*arguments)
        finally:
            stand_in.behaviour = {}

    monkeypatch.setattr(source, "_get_once", mend)
    assert ids(source) == list(range(1, 101))
    assert stand_in.hits == 2


def test_nobody_listens(stand_in: StandIn) -> None:
    """A source that can't be reached is named with setting and cause, in one line, without the library's reprs."""
    stand_in.stop()
    with opened(stand_in.url) as source:
        for use in (source.ping, source.fetch):
            with pytest.raises(ServiceUnavailable, match=r"\(SOURCE_URL\).*refused") as caught:
                use()
            assert "0x" not in str(caught.value)
            assert "\n" not in str(caught.value)


def test_a_silent_source_times_out() -> None:
    """A source that accepts connections and says nothing is given up after the timeout."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        opened(f"http://127.0.0.1:{server.getsockname()[1]}/", timeout_s=0.1) as source,
        pytest.raises(ServiceUnavailable, match="no answer in time"),
    ):
        source.ping()


def test_ping(source: Source, stand_in: StandIn) -> None:
    """A ping asks once: fine where the API answers, an error of the right kind where it doesn't."""
    source.ping()
    stand_in.behaviour = {"status": "503"}
    with pytest.raises(ServiceUnavailable):
        source.ping()
    stand_in.behaviour = {"status": "404"}
    with pytest.raises(SourceAnswerError):
        source.ping()
    assert stand_in.hits == 3


def test_byte_order_mark(serve: Callable[..., str]) -> None:
    """A byte order mark before the list is no error."""
    with opened(serve((b'\xef\xbb\xbf [1, "a"]', {}))) as source, source.fetch() as answer:
        assert list(answer.records()) == [1, "a"]


def test_an_endless_integer_stops_only_its_record(serve: Callable[..., str]) -> None:
    """An integer of more digits than Python reads doesn't hinder the records beside it."""
    body = b'[{"id": 1}, {"id": ' + b"9" * 5000 + b'}, {"id": 3}]'
    with opened(serve((body, {}))) as source, source.fetch() as answer:
        assert [record["id"] for record in answer.records()] == [1, float("inf"), 3]


def test_digest(stand_in: StandIn) -> None:
    """The digest of an answer of many pages, whose ETags say nothing, tells whether any of them changed."""
    with opened(f"{stand_in.url}?_page=1&_limit=30") as source:
        with source.fetch() as answer:
            digest = answer.digest
            assert (answer.etag, answer.not_modified, answer.count) == (None, False, 100)
        with source.fetch(None, digest) as answer:
            assert (answer.not_modified, answer.digest, answer.count, list(answer.records())) == (True, digest, 0, [])
        stand_in.behaviour = {"changed": "95"}
        with source.fetch(None, digest) as answer:
            assert (answer.not_modified, answer.count) == (False, 100)
            assert answer.digest != digest


def test_etag(source: Source, stand_in: StandIn) -> None:
    """The ETag of an answer brings "not modified" until something changes."""
    with source.fetch() as answer:
        etag = answer.etag
    assert etag
    with source.fetch(etag) as answer:
        assert (answer.not_modified, answer.etag, answer.count, list(answer.records())) == (True, etag, 0, [])
    stand_in.behaviour = {"changed": "1"}
    with source.fetch(etag) as answer:
        assert (answer.not_modified, answer.count) == (False, 100)
        assert answer.etag != etag


def test_pages(stand_in: StandIn) -> None:
    """Links lead through all pages; their ETags, which speak for one page only, are not used."""
    with opened(f"{stand_in.url}?n=95&_page=1&_limit=30") as source, source.fetch() as answer:
        assert [record["id"] for record in answer.records()] == list(range(1, 96))
        assert answer.etag is None
    assert stand_in.hits == 4


def test_a_page_that_fails_is_retried_alone(stand_in: StandIn) -> None:
    """A failure in the middle of the pages repeats that page, not the others, and mixes nothing."""
    stand_in.behaviour = {"errors": "0.3"}
    with opened(f"{stand_in.url}?n=100&_page=1&_limit=10") as source:
        source._policy = RetryPolicy(max_attempts=20, base_s=0.001, cap_s=0.001)
        assert ids(source) == list(range(1, 101))
    assert 10 < stand_in.hits < 40


def test_relative_links(serve: Callable[..., str]) -> None:
    """A link may be relative to the page that it is on."""
    with opened(serve((b"[1]", {"Link": '</1>; rel="next"'}), (b"[2]", {}))) as source, source.fetch() as answer:
        assert list(answer.records()) == [1, 2]


@pytest.mark.parametrize("link", ["http://127.0.0.2:{port}/1", "https://127.0.0.1:{port}/1", "http://127.0.0.1:1/1"])
def test_pages_on_another_host_are_refused(serve: Callable[..., str], link: str) -> None:
    """An answer can't send the pipeline to another host, port or scheme."""
    url = serve((b"[1]", {}), (b"[2]", {}))
    link = link.format(port=url.split(":")[2].split("/")[0])
    first = serve((b"[1]", {"Link": f'<{link}>; rel="next"'}))
    with opened(first) as source, pytest.raises(SourceAnswerError, match="its next page is on another host"):
        source.fetch()


@pytest.mark.parametrize("target", ["/0", "/1"])
def test_pages_in_a_circle_are_refused(serve: Callable[..., str], target: str) -> None:
    """Pages that lead back to one that came before are refused, instead of fetched for ever."""
    pages = [(b"[1]", {"Link": '</1>; rel="next"'}), (b"[2]", {"Link": f'<{target}>; rel="next"'})]
    with opened(serve(*pages)) as source, pytest.raises(SourceAnswerError, match="one that came before"):
        source.fetch()


def test_a_login_in_the_url_counts_for_all_pages(serve: Callable[..., str]) -> None:
    """User and password of the URL are sent with every page, though links don't repeat them, and never shown."""
    headers = {"Link": '</1>; rel="next"'}
    plain = serve((b"[1]", headers), (b"[2]", {}))
    headers["Link"] = f'<{plain.replace("/0", "/1")}>; rel="next"'
    url = plain.replace("http://", "http://user:pa55@")
    with opened(url) as source, source.fetch() as answer:
        assert list(answer.records()) == [1, 2]
        assert "pa55" not in source.shown_url
    seen = serve.seen  # type: ignore[attr-defined]
    assert [headers["Authorization"] for headers in seen] == ["Basic dXNlcjpwYTU1"] * 2


def test_a_redirect_is_followed(serve: Callable[..., str]) -> None:
    """A source that has moved is found."""
    new = serve((b"[1]", {}))
    with opened(serve((b"", {"Location": new}), status=302)) as source, source.fetch() as answer:
        assert list(answer.records()) == [1]


@pytest.mark.parametrize("paged", [False, True], ids=["one answer", "pages"])
def test_huge_answers_take_little_memory(stand_in: StandIn, paged: bool) -> None:
    """50,000 posts are checked and read in a few megabytes, in one answer as on pages."""
    count, limit = (50_000, 0) if not paged else (16_000, 1000)
    stand_in.behaviour = {"n": str(count)}
    with opened(stand_in.url + (f"?_page=1&_limit={limit}" if paged else "")) as source:
        source.ping()  # The stand-in makes the posts, in this process, before memory is watched.
        body_before = stand_in.hits
        peak = 0
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            files = (source_module.__file__, tempfile.__file__, "*/json/*")
            traces = [tracemalloc.Filter(inclusive=True, filename_pattern=name) for name in files]
            while not done.wait(0.1):
                snapshot = tracemalloc.take_snapshot().filter_traces(traces)
                peak = max(peak, sum(trace.size for trace in snapshot.traces))

        tracemalloc.start()
        watcher = threading.Thread(target=watch)
        try:
            watcher.start()
            with source.fetch() as answer:
                assert sum(1 for _ in answer.records()) == answer.count == count
        finally:
            done.set()
            watcher.join()
            tracemalloc.stop()
        assert stand_in.hits > body_before
        assert 0 < peak < 2_500_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


class Dripping(BytesIO):
    """A body that is read in pieces of any size."""

    sizes: list[int]

    def read(self, size: int | None = -1, /) -> bytes:
        """Read less than asked for, but something, unless all is read."""
        self.sizes = [*self.sizes[1:], self.sizes[0]]
        return super().read(min(self.sizes[0], size if size and size > 0 else self.sizes[0]))


@hypothesis_settings(deadline=None, max_examples=300)
@given(
    values=st.lists(JSON, max_size=6),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 1]),
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5),
)
def test_pieces_of_any_size(values: list[Any], ascii_only: bool, indent: int | None, sizes: list[int]) -> None:
    """Wherever the body is cut into pieces, the records are those that the standard library reads."""
    text = json.dumps(values, ensure_ascii=ascii_only, indent=indent)
    try:
        body = Dripping(text.encode())
    except UnicodeEncodeError:  # A lone surrogate, which only escapes can say.
        body = Dripping(json.dumps(values).encode())
    body.sizes = sizes
    size = len(body.getvalue())
    page = source_module._Page("http://x", 200, 0, size)
    found = list(source_module._elements(page, body))
    assert json.dumps(found) == json.dumps(json.loads(body.getvalue()))


@hypothesis_settings(deadline=None, max_examples=300)
@given(
    text=st.text(alphabet='[]{},:"\\ue0123456789.eE+-truefalsn \n', max_size=20),
    sizes=st.lists(st.integers(1, 4), min_size=1),
)
def test_any_text_is_read_as_the_standard_library_does(text: str, sizes: list[int]) -> None:
    """A body is accepted exactly if the standard library takes it for a list; else the error is one of ours."""
    try:
        expected = json.loads(text)
    except ValueError:
        expected = None
    body = Dripping(text.encode())
    body.sizes = sizes
    page = source_module._Page("http://x", 200, 0, len(text))
    if isinstance(expected, list):
        assert json.dumps(list(source_module._elements(page, body))) == json.dumps(expected)
    else:
        with pytest.raises(SourceAnswerError):
            list(source_module._elements(page, body))


@given(header=st.text() | st.integers().map(str) | st.floats().map(str))
def test_any_retry_after(header: str) -> None:
    """Whatever stands in Retry-After, the wait is none or bounded."""
    seconds = source_module._retry_after_s(header)
    assert seconds is None or 0 <= seconds <= 300


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("7", 7),
        (" 7 ", 7),
        ("99999", 300),
        ("²", None),
        ("-1", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Mon, 01 Jan 2024 00:00:00 +99999999999999", None),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    """Seconds and dates are understood, what is past or absurd does no harm."""
    assert source_module._retry_after_s(header) == seconds


def test_retry_after_as_a_date() -> None:
    """A date means the time until then."""
    at = datetime.now(UTC) + timedelta(seconds=30)
    assert source_module._retry_after_s(format_datetime(at, usegmt=True)) == pytest.approx(30, abs=2)


def test_errors_carry_no_secret_in_their_causes() -> None:
    """Dagster keeps the causes of an error: none of them quotes a key that the URL holds."""
    source = Source(
        "http://127.0.0.1:1/posts?api_key=S3CR3T", timeout_s=1, policy=RetryPolicy(max_attempts=1, base_s=1, cap_s=1)
    )
    for ask in (source.fetch, source.ping):
        with pytest.raises(ServiceUnavailable) as raised:
            ask()
        assert "S3CR3T" not in "".join(traceback.format_exception(raised.value, chain=True))
