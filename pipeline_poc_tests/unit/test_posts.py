"""Posts: what is valid is kept as it is, what is not is rejected with a reason, and nothing raises."""

import hashlib
import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_poc.posts import POSTS, Post
from pipeline_poc.records import INT_MAX, REASONS, TEXT_MAX_BYTES, RejectedRecord, content_hash, next_version, reject
from pipeline_poc.testing import NASTY_RECORDS, UNUSUAL_POSTS
from pipeline_poc_tests.posts import NASTY_CODES, record

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=6,
)
IDS = st.integers(1, INT_MAX)
ALMOST_POSTS = st.fixed_dictionaries(
    {},
    optional={
        "id": IDS | JSON,
        "userId": IDS | JSON,
        "title": st.text() | JSON,
        "body": st.text() | JSON,
        "more": JSON,
    },
)
FIELDS = ("id", "userId", "title", "body")


def values(post: Post) -> tuple[Any, ...]:
    """Return the four values of a post."""
    return (post.external_id, post.user_id, post.title, post.body)


@given(anything=JSON | ALMOST_POSTS)
def test_anything_is_a_post_or_rejected(anything: Any) -> None:
    """Every JSON value is a post with exactly its four values, or rejected with a known code; nothing raises."""
    outcome = POSTS.parse(anything)
    assert isinstance(outcome, Post | RejectedRecord)
    if isinstance(outcome, Post):
        assert values(outcome) == tuple(anything[name] for name in FIELDS)
        assert [type(value) for value in values(outcome)] == [int, int, str, str]
        assert all(1 <= number <= INT_MAX for number in values(outcome)[:2])
        assert all(len(text.encode()) <= TEXT_MAX_BYTES for text in values(outcome)[2:])
    else:
        assert outcome.code in REASONS
        assert outcome.message
        assert outcome.message.isascii()
        assert outcome.payload.isascii()
        assert json.dumps(json.loads(outcome.payload)) == json.dumps(anything)


@given(external_id=IDS, user_id=IDS, title=st.text(), body=st.text())
def test_every_good_post_is_accepted(external_id: int, user_id: int, title: str, body: str) -> None:
    """Whatever the texts, a record with good ids and encodable texts is a post."""
    outcome = POSTS.parse({"id": external_id, "userId": user_id, "title": title, "body": body})
    assert isinstance(outcome, Post)
    assert values(outcome) == (external_id, user_id, title, body)


@pytest.mark.parametrize(("name", "text"), NASTY_RECORDS, ids=[name for name, _ in NASTY_RECORDS])
def test_nasty_records(name: str, text: str) -> None:
    """Each bad record has the code that says what is wrong with it."""
    outcome = POSTS.parse(json.loads(text))
    assert isinstance(outcome, RejectedRecord)
    assert outcome.code == NASTY_CODES[name]


@pytest.mark.parametrize(("name", "post"), UNUSUAL_POSTS, ids=[name for name, _ in UNUSUAL_POSTS])
def test_unusual_posts(name: str, post: dict[str, Any]) -> None:
    """Each unusual post is a post, unchanged."""
    outcome = POSTS.parse(post)
    assert isinstance(outcome, Post)
    assert values(outcome) == tuple(post[field] for field in FIELDS)


@pytest.mark.parametrize("text", ["x", "é", "€", "🦀"])
def test_the_largest_text(text: str) -> None:
    """The limit of a text counts bytes, not characters: 65,535 fit, 65,536 do not."""
    most = text * (TEXT_MAX_BYTES // len(text.encode()))
    most += "x" * (TEXT_MAX_BYTES - len(most.encode()))
    assert isinstance(POSTS.parse(record(1, body=most)), Post)
    rejected = POSTS.parse(record(1, body=most + "x"))
    assert isinstance(rejected, RejectedRecord)
    assert (rejected.code, rejected.external_id) == ("too_long", 1)
    assert "body: 65536 bytes" in rejected.message


@pytest.mark.parametrize("field", ["title", "body"])
@pytest.mark.parametrize("length", [0, 70_000])
def test_lone_surrogates(field: str, length: int) -> None:
    """A text that UTF-8 can't encode is rejected, however long, and its payload is kept."""
    rejected = POSTS.parse(record(1) | {field: "x" * length + "\ud800"})
    assert isinstance(rejected, RejectedRecord)
    assert rejected.code == "invalid_unicode"
    assert json.loads(rejected.payload)[field][-1] == "\ud800"


def test_several_problems() -> None:
    """A record with several problems has the code of the first, and a message that names all fields."""
    rejected = POSTS.parse({"id": 0, "userId": None, "body": 3})
    assert isinstance(rejected, RejectedRecord)
    assert rejected.code == "out_of_range"
    assert [part.split(":")[0] for part in rejected.message.split("; ")] == ["id", "userId", "title", "body"]


@pytest.mark.parametrize(
    ("external_id", "kept"),
    [(5, 5), (-5, -5), (2**63 - 1, 2**63 - 1), (2**63, None), (True, None), ("5", None), (5.0, None), (None, None)],
)
def test_the_id_of_a_rejected_record(external_id: Any, kept: int | None) -> None:
    """A rejected record keeps its id where it is an integer that MongoDB can hold."""
    assert reject({"id": external_id}, "missing_field", "m").external_id == kept


def test_what_can_not_be_json() -> None:
    """Values of foreign documents, and records nested beyond reason, are rejected without raising."""
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    for value in (nested, datetime.now(UTC), b"bytes", {1, 2}):
        rejected = POSTS.parse(record(1) | {"title": value})
        assert isinstance(rejected, RejectedRecord)
        assert rejected.code == "wrong_type"
        assert isinstance(json.loads(rejected.payload), dict | str)


def test_fingerprints() -> None:
    """The same payload with the same reason has the same fingerprint; another payload or reason, another."""
    first = reject({"id": 1}, "missing_field", "one")
    assert first.fingerprint == reject({"id": 1}, "missing_field", "other words").fingerprint
    others = {reject({"id": 2}, "missing_field", "one").fingerprint, reject({"id": 1}, "null_field", "one").fingerprint}
    assert len(others | {first.fingerprint}) == 3


TEXTS = st.text(alphabet='a",\\ []1é', max_size=4)
CONTENTS = st.tuples(st.integers(1, 3), st.integers(1, 3), TEXTS, TEXTS)


@given(one=CONTENTS, other=CONTENTS)
def test_hashes(one: tuple[int, int, str, str], other: tuple[int, int, str, str]) -> None:
    """Hashes are equal exactly if all four values are, wherever quotes and commas stand."""
    assert (content_hash(*one) == content_hash(*other)) == (one == other)
    assert len(content_hash(*one)) == 32


def test_the_hash_is_for_ever() -> None:
    """The digest of a content never changes: hashes are stored."""
    assert content_hash(1, 2, "título", 'b"\n') == "1553299a47015e369bf2db7fbc27c752"


ANYTHING = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.text(), max_size=2))


@given(content=st.tuples(st.integers(), st.integers(), st.text(), st.text()) | st.tuples(*[ANYTHING] * 4))
def test_the_hash_is_that_of_json(content: tuple[Any, Any, Any, Any]) -> None:
    """The digest is that of the values as a JSON list, whatever the text, and whatever stands in foreign documents."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    assert content_hash(*content) == hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@given(
    previous=st.none() | st.integers(0, 2**50),
    at=st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1)).map(lambda at: at.replace(tzinfo=UTC)),  # noqa: DTZ001
)
def test_versions_grow(previous: int | None, at: datetime) -> None:
    """A version is above the one before it, and never behind the clock, even where that jumps back."""
    version = next_version(previous, at)
    assert version > (previous or 0)
    assert version >= math.floor(at.timestamp() * 1000)
    assert next_version(version, at - timedelta(days=1)) == version + 1


@given(anything=JSON | ALMOST_POSTS)
def test_unknown_fields(anything: Any) -> None:
    """Exactly the fields that a post doesn't have are unknown; what is no object has none."""
    names = set(anything) - set(FIELDS) if isinstance(anything, dict) else set()
    assert POSTS.unknown_fields(anything) == names
