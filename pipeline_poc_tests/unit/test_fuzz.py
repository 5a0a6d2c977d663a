"""Bad input: whatever comes from outside is read as it is, or refused in words of ours; nothing crashes or changes."""

import base64
import json
import string
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, unquote

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import SecretStr

from pipeline_poc import source as source_module
from pipeline_poc.errors import PipelineError, SettingsError, SourceAnswerError, mask_secrets
from pipeline_poc.migration_queue import _decode_cursor, _encode_cursor
from pipeline_poc.posts import POSTS, Post
from pipeline_poc.records import PAYLOAD_MAX, REASONS, RejectedRecord
from pipeline_poc.retry import RetryPolicy
from pipeline_poc.selection import PAGE_MAX, Selection, SelectionError, check_limit, decode_cursor, encode_cursor
from pipeline_poc.settings import Settings, load_settings
from pipeline_poc.source import Source
from pipeline_poc.testing import NASTY_BODIES, NASTY_RECORDS, UNREADABLE_RECORDS, UNUSUAL_POSTS

SECRET = "S3CRETMARK"
TEXTS = st.text(st.characters(codec=None), max_size=20)
"""Any text, lone surrogates included."""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(TEXTS, children, max_size=4),
    max_leaves=10,
)
NASTY = st.sampled_from([json.loads(text) for _, text in NASTY_RECORDS] + [post for _, post in UNUSUAL_POSTS])
RECORDS = (
    JSON
    | NASTY
    | st.builds(
        lambda post, more: {**post, **more},
        NASTY.filter(lambda r: type(r) is dict),
        JSON.filter(lambda r: type(r) is dict),
    )
)
FIELDS = ("id", "userId", "title", "body")


def error_of(call: Callable[[], Any]) -> PipelineError | None:
    """Return the error of the pipeline that a call ends with; raises all others."""
    try:
        call()
    except PipelineError as error:
        return error
    return None


def elements(body: bytes) -> list[Any]:
    """Read a whole answer as the source does."""
    return list(source_module._elements(source_module._Page("http://host", 200, 0, len(body)), BytesIO(body)))


def outcome_of(record: Any) -> Post | RejectedRecord:
    """Parse a record; fails unless it came out as it went in."""
    outcome = POSTS.parse(record)
    assert isinstance(outcome, Post | RejectedRecord)
    if isinstance(outcome, Post):
        found = (outcome.external_id, outcome.user_id, outcome.title, outcome.body)
        assert found == tuple(record[name] for name in FIELDS)
        assert [type(value) for value in found] == [int, int, str, str]
    else:
        assert outcome.code in REASONS
        assert json.dumps(json.loads(outcome.payload)) == json.dumps(record)
        assert len(outcome.fingerprint) == 32
    return outcome


@hypothesis_settings(deadline=None, max_examples=80)
@given(records=st.lists(RECORDS, max_size=8))
def test_records_come_out_as_they_went_in(records: list[Any]) -> None:
    """Every record of an answer is one record of ours, in its order, each a post with its values or kept whole."""
    body = json.dumps(records).encode()
    found = elements(body)
    assert json.dumps(found) == json.dumps(records)
    outcomes = [outcome_of(record) for record in found]
    assert len(outcomes) == len(records)


@hypothesis_settings(deadline=None, max_examples=300)
@given(
    body=st.binary(max_size=60)
    | st.lists(
        st.sampled_from(
            [
                b"[",
                b"]",
                b"{",
                b"}",
                b",",
                b'"',
                b"\\",
                b"1",
                b":",
                b"\xef\xbb\xbf",
                b"\xff",
                b"\xf0\x9f",
                b"e",
                b"-",
                b"null",
                b" ",
                b"\0",
            ]
        ),
        max_size=20,
    ).map(b"".join)
)
def test_any_bytes_are_records_or_refused(body: bytes) -> None:
    """Any bytes are a list of records, the same as the standard library finds, or an error that says what is wrong."""
    error = error_of(lambda: elements(body))
    if error is None:
        assert json.dumps(elements(body)) == json.dumps(json.loads(body.decode("utf-8-sig")))
    else:
        assert isinstance(error, SourceAnswerError)
        assert "\n" not in str(error)


@pytest.mark.parametrize(("name", "body", "count"), NASTY_BODIES, ids=[name for name, *_ in NASTY_BODIES])
def test_nasty_bodies(name: str, body: bytes, count: int | None) -> None:
    """Each nasty answer has the number of records that it should, or is refused as a whole."""
    if count is None:
        with pytest.raises(SourceAnswerError):
            elements(body)
    else:
        assert len(elements(body)) == count


@pytest.mark.parametrize(("name", "text"), UNREADABLE_RECORDS, ids=[name for name, _ in UNREADABLE_RECORDS])
@pytest.mark.parametrize("size", [1, 1 << 17], ids=["small", "large"])
def test_unreadable_records_hinder_no_others(name: str, text: str, size: int) -> None:
    """A record that Python's decoder refuses is rejected, and the records beside it are read."""
    good = json.dumps({"id": 1, "userId": 1, "title": "t", "body": "x" * min(size, 60_000)})
    padding = " " * size
    one, bad, two = elements(f"[{good},{padding}{text}{padding},{good}]".encode())
    assert isinstance(POSTS.parse(one), Post)
    assert one == two
    rejected = POSTS.parse(bad)
    assert isinstance(rejected, RejectedRecord)
    if isinstance(bad, str):
        assert bad == text
        assert json.loads(rejected.payload) == text


def nested(depth: int) -> bytes:
    """Return a list that holds lists."""
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize("depth", [500, 900, 2000])
def test_a_deep_record_is_one_record_wherever_it_is_read(depth: int) -> None:
    """How deep the caller stands changes nothing: what was counted as a record never ends the answer later."""
    body = b"[1," + nested(depth) + b",2]"

    def from_below(steps: int) -> list[Any]:
        return from_below(steps - 1) if steps else elements(body)

    for steps in (0, 300, 600):
        first, _, last = from_below(steps)
        assert (first, last) == (1, 2)


def test_a_huge_payload_is_cut() -> None:
    """A record too large for a document is kept with its beginning, its size and a digest; others are told apart."""
    record: dict[str, Any] = {"id": 1, "userId": 1, "title": "t", "body": "é" * 3_000_000}
    one, two = POSTS.parse(record | {"more": 1}), POSTS.parse(record | {"more": 2})
    assert isinstance(one, RejectedRecord)
    assert isinstance(two, RejectedRecord)
    assert (one.code, one.external_id) == ("too_long", 1)
    assert len(one.payload) < PAYLOAD_MAX
    assert json.loads(one.payload).startswith('{"id": 1, "userId": 1, "title": "t", "body": "\\u00e9')
    assert one.fingerprint != two.fingerprint


class _Handler(BaseHTTPRequestHandler):
    body: ClassVar[bytes] = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def source() -> Iterator[Source]:
    """A source that serves `_Handler.body`."""
    server = HTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    policy = RetryPolicy(max_attempts=1, base_s=0.001, cap_s=0.001)
    source = Source(f"http://127.0.0.1:{server.server_port}/", timeout_s=10, policy=policy)
    yield source
    source.close()
    server.shutdown()
    server.server_close()


@hypothesis_settings(deadline=None, max_examples=60)
@given(body=st.binary(max_size=40) | st.lists(RECORDS, max_size=3).map(lambda records: json.dumps(records).encode()))
def test_answers_over_http(source: Source, body: bytes) -> None:
    """Whatever bytes the API sends, an ingestion gets records or an error of the pipeline, twice the same."""
    _Handler.body = body
    try:
        expected: str | None = json.dumps(elements(body))
    except SourceAnswerError:
        expected = None
    try:
        with source.fetch() as answer:
            assert answer.count == len(list(answer.records()))
            assert json.dumps(list(answer.records())) == expected
    except PipelineError:
        assert expected is None


VALUES = (
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
    | st.integers().map(str)
    | st.floats().map(str)
    | st.sampled_from(["'", '"', "\\", "${HOME}", "#", "=", "export X=1", "1e999", "0x10", "１２", "*", "[]", "{}"])
)
SECRETS = sorted(name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation))
BROKEN_URLS = st.builds(
    "{}{}{}:{}{}@{}{}".format,
    st.sampled_from(
        ["http", "https", "mongodb", "mongodb+srv", "redis", "rediss", "unix", "mysql", "sqlite", "ftp", ""]
    ),
    st.sampled_from(["://", ":", "//", ":///", ""]),
    st.text("ab%@:/[]", max_size=4),
    st.just(SECRET),
    st.text(string.printable.replace("\n", "").replace("\r", ""), max_size=6),
    st.sampled_from(["host", "host:x", "[::1", "[::1]", "h℀st", "", "a,b", "host:99999999"]),
    st.sampled_from(["", "/", "/db", "?", "/?ssl_ca=x", "#"]),
)


@pytest.fixture(scope="module")
def env_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `.env` is written."""
    return tmp_path_factory.mktemp("env") / ".env"


@hypothesis_settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(Settings.model_fields)), value=VALUES, quoted=st.booleans())
def test_any_setting_is_valid_or_named(env_file: Path, name: str, value: str, quoted: bool) -> None:
    """Any text for any setting is taken, or refused with the name of that setting, or of one it contradicts."""
    line = json.dumps(value, ensure_ascii=False) if quoted else value
    env_file.write_text(f"{name.upper()}={line}\n", encoding="utf-8")
    error = error_of(lambda: load_settings(env_file=env_file))
    if error is not None:
        assert isinstance(error, SettingsError)
        assert name.upper() in str(error)
        assert error.__cause__ is None


@hypothesis_settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(SECRETS), value=BROKEN_URLS | VALUES.map(lambda text: f"{text}{SECRET}{text}"))
def test_no_secret_is_told(env_file: Path, name: str, value: str) -> None:
    """Whatever is wrong with a secret setting, neither the error nor the settings show any of it."""
    env_file.write_text(f"{name.upper()}={json.dumps(value, ensure_ascii=False)}\n", encoding="utf-8")
    error = error_of(lambda: load_settings(env_file=env_file))
    if error is not None:
        assert isinstance(error, SettingsError)
        assert SECRET not in str(error)
        assert name.upper() in str(error)
    else:
        settings = load_settings(env_file=env_file)
        value_or_values = getattr(settings, name)
        for secret in value_or_values if isinstance(value_or_values, tuple) else (value_or_values,):
            assert isinstance(secret, SecretStr | None)
        for text in (repr(settings), str(settings.model_dump()), settings.model_dump_json()):
            assert SECRET not in text


@hypothesis_settings(deadline=None, max_examples=60)
@given(text=st.binary(max_size=60))
def test_any_env_file_is_read_or_refused(text: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A `.env` of any bytes is read, or refused as an error about settings."""
    env_file = tmp_path_factory.getbasetemp() / "any.env"
    env_file.write_bytes(text)
    error = error_of(lambda: load_settings(env_file=env_file))
    assert error is None or isinstance(error, SettingsError)


CURSORS = (
    TEXTS
    | st.text(string.ascii_letters + string.digits + "-_=", max_size=30)
    | JSON.map(lambda value: base64.urlsafe_b64encode(json.dumps(value).encode()).decode())
    | st.binary(max_size=20).map(lambda data: base64.urlsafe_b64encode(data).decode())
)
TIMES = st.datetimes(timezones=st.just(UTC))
PLACES = st.lists(st.text(max_size=8), max_size=3)


@hypothesis_settings(max_examples=300)
@given(cursor=CURSORS, length=st.integers(0, 3))
@example(cursor=base64.urlsafe_b64encode(b"[" * 5000).decode(), length=1)
@example(cursor=base64.urlsafe_b64encode(b"[" + b"9" * 5000 + b"]").decode(), length=1)
@example(cursor="é", length=1)
def test_any_cursor_is_a_place_or_refused(cursor: str, length: int) -> None:
    """A cursor that nobody wrote is a place of the right form, or refused in our words; nothing else is raised."""
    try:
        at, place = decode_cursor(cursor, length=length)
    except SelectionError:
        pass
    else:
        assert len(place) == length
        assert at is None or at.tzinfo is not None
    try:
        entry, score = _decode_cursor(cursor)
    except SelectionError:
        pass
    else:
        assert (type(entry), type(score)) == (str, float)


@given(at=st.none() | TIMES, place=PLACES, entry=st.text(), score=st.floats(allow_nan=False, allow_infinity=False))
def test_cursors_lead_back(at: datetime | None, place: list[str], entry: str, score: float) -> None:
    """A cursor leads to the place that it was written for."""
    assert decode_cursor(encode_cursor(at, *place), length=len(place)) == (at, place)
    assert _decode_cursor(_encode_cursor(entry, score)) == (entry, score)


@given(ids=st.none() | st.lists(TEXTS, max_size=3), reason=st.none() | TEXTS, every=st.booleans(), limit=st.integers())
def test_any_selection_is_clear_or_refused(ids: list[str] | None, reason: str | None, every: bool, limit: int) -> None:
    """A selection says exactly one thing, in texts that stores can look for, or is refused."""
    try:
        selection = Selection(None if ids is None else tuple(ids), reason, every)
    except SelectionError:
        is_sound = [ids is not None, reason is not None, every].count(True) == 1
        assert not is_sound or any("\ud800" <= char <= "\udfff" for char in "".join([*(ids or ()), reason or ""]))
    else:
        for text in (*(selection.ids or ()), selection.reason or ""):
            assert text.encode().decode() == text
    if 1 <= limit <= PAGE_MAX:
        check_limit(limit)
    else:
        with pytest.raises(SelectionError):
            check_limit(limit)


PASSWORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).map(lambda text: f"{text}{SECRET}")


@hypothesis_settings(max_examples=200)
@given(
    user=st.text(st.characters(codec="utf-8"), max_size=8),
    password=PASSWORDS,
    scheme=st.sampled_from(["mysql+pymysql", "mongodb", "mongodb+srv", "redis", "rediss", "https"]),
    around=st.sampled_from(["{}", "can't reach '{}' now", "<{}>", "({}, {})", "{}\n{}"]),
)
def test_no_password_survives(user: str, password: str, scheme: str, around: str) -> None:
    """Any user and password, written as URLs need it, are masked wherever the URL stands; the rest of it is shown."""
    userinfo = f"{quote(user, safe='')}:{quote(password, safe='')}@"
    url = f"{scheme}://{userinfo}host:1234/db?timeout=5"
    masked = mask_secrets(around.replace("{}", url))
    assert SECRET not in masked
    assert password not in unquote(masked)
    assert "host:1234/db?timeout=5" in masked
    plain = around.replace("{}", f"{scheme}://host:1234/db?timeout=5")
    assert mask_secrets(plain) == plain


@hypothesis_settings(max_examples=150)
@given(
    secret=st.text(string.ascii_letters + string.digits + ":,%.-_~", min_size=1, max_size=12),
    name=st.sampled_from(
        [
            "tlsCertificateKeyFilePassword",
            "authMechanismProperties",
            "ssl_key_password",
            "ssl_password",
            "passwd",
            "token",
        ]
    ),
    first=st.booleans(),
)
def test_secrets_of_drivers_are_masked(secret: str, name: str, first: bool) -> None:
    """No parameter in which a driver takes a secret is shown; those beside it are."""
    query = f"{name}={secret}&tls=true" if first else f"tls=true&{name}={secret}"
    assert mask_secrets(f"x://host/?{query}") == f"x://host/?{query}".replace(f"{name}={secret}", f"{name}=***")


UNITS = [
    "://:",
    "http://a",
    "?key",
    "?" + "password" * 4,
    "://a:b@ ",
    "x://y:z",
    "http://a@b@",
    "&password=",
    " ",
    "é",
    "?key" * 370 + " ",
]


@pytest.mark.parametrize("unit", UNITS)
def test_masking_takes_no_time(unit: str) -> None:
    """Nobody who chooses the text of an error, such as the source, can make masking it take long."""
    begun_at = time.process_time()
    masked = mask_secrets(f"the source answered {(unit * 20_000)[:200_000]} at http://me:{SECRET}@host")
    assert time.process_time() - begun_at < 5
    assert masked.startswith("the source")
    assert SECRET not in masked


@pytest.mark.parametrize("cut", range(19_960, 20_010, 3))
def test_a_long_text_is_not_cut_within_a_url(cut: int) -> None:
    """Wherever a long text ends to be looked at, no half of a URL is left that shows its password."""
    assert SECRET not in mask_secrets("x " * (cut // 2) + f"mysql://me:{SECRET}@host/db" + " y" * 1000)
