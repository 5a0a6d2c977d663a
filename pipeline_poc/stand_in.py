"""A stand-in for the public JSONPlaceholder API: demonstrations without internet, tests, benchmarks.

`GET /posts` and `GET /posts/{id}` answer as the real one does, with the same text on each start
and machine; `GET /comments` and the other entities have made-up values, too. Parameters of the query
make the answer larger, other or wrong; `Query` lists them.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Annotated, Any, Self
from urllib.parse import parse_qsl, urlencode, urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pipeline_poc.entities import ENTITIES
from pipeline_poc.errors import ServiceStartError
from pipeline_poc.posts import POSTS
from pipeline_poc.records import Entity, Kind
from pipeline_poc.testing import NASTY_RECORDS

logger = logging.getLogger(__name__)

_SENTENCES = 2_000
"""Size of the pool from which titles and bodies are put together; making it takes some 50 ms."""
_BODY_LINES = 4
_SEED = 2_024
_DEFAULT_LIMIT = 10
"""Posts on a page where the query says `_page` alone, as with the real one."""


def _split(value: str) -> list[str]:
    return value.split(",")


class Query(BaseModel):
    """What a query can ask for; anything else is answered with 400."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n: int = Field(100, ge=0, le=1_000_000, description="Number of posts.")
    page: int | None = Field(None, alias="_page", ge=1, description="Page, from 1; the Link header leads to the next.")
    limit: int | None = Field(None, alias="_limit", ge=1, description="Posts on a page.")
    revision: int = Field(1, ge=1, description="Version of the texts of all posts.")
    changed: Annotated[frozenset[int], BeforeValidator(_split)] = Field(
        frozenset(), description="Ids, by commas, of posts that have the text of the next revision."
    )
    malformed: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Bad records spread among the posts: `NASTY_RECORDS`, then the first post once more, then "
        "the first post with another text, then from the beginning.",
    )
    delay_ms: int = Field(0, ge=0, le=60_000, description="Wait before the answer.")
    errors: float = Field(0.0, ge=0, le=1, description="Share of requests that fail; the same ones each time.")
    fail_first: int | None = Field(None, ge=0, description="So many requests for this URL fail, later ones don't.")
    status: int | None = Field(
        None, ge=400, le=599, description="Status of failures, 503 by default; alone, each request fails."
    )
    retry_after: int | None = Field(None, ge=0, description="Retry-After header of failures, in seconds.")
    html: bool = Field(False, description="Answer with HTML.")
    object: bool = Field(False, description="Answer with an object that has the list inside.")
    truncate: bool = Field(False, description="Cut the body in the middle, as if that were all of it.")
    drop: bool = Field(False, description="Cut the connection in the middle of the body.")

    def failure(self, url: str, number: int) -> int | None:
        """Return the status with which this request fails, or None if it doesn't.

        Args:
            url: What is asked for; seeds the failures that `errors` asks for.
            number: Which request for that URL this is; counts from 1.
        """
        status = self.status or HTTPStatus.SERVICE_UNAVAILABLE
        if self.fail_first is not None and number <= self.fail_first:
            return status
        if self.status is not None and self.fail_first is None and not self.errors:
            return status
        # A seed that is text gives the same numbers on each machine; nothing here is secret.
        return status if random.Random(f"{url} {number}").random() < self.errors else None


class StandIn:
    """The stand-in as a thread of this process; starts again on the port that it had.

    Attributes:
        posts: Records by id that are served in place of, or behind, the usual posts; to be
            changed at any time. A function in place of a record is asked each time.
        behaviour: Parameters, as in a query, that count for every request that doesn't give
            them itself; to be changed at any time.
        open: No request is answered while this is clear.
        hits: Number of requests so far; counts failed ones as well.
    """

    def __init__(self, port: int = 0, host: str = "127.0.0.1") -> None:
        self.posts: dict[int, Any] = {}
        self.behaviour: dict[str, str] = {}
        self.open = threading.Event()
        self.open.set()
        self.hits = 0
        self._address = (host, port)
        self._requests: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        """Where the posts are; complete once it was started."""
        host, port = self._address
        return f"http://{host}:{port}/posts"

    def start(self) -> None:
        """Begin to answer.

        Raises:
            ServiceStartError: The port is taken, or Faker is not installed.
        """
        _sentences()
        try:
            self._server = _Server(self._address, self)
        except OSError as error:
            raise ServiceStartError(f"the stand-in can't listen at {self.url}: {error.strerror}") from error
        self._address = (self._address[0], self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="stand-in", daemon=True).start()

    def stop(self) -> None:
        """End, and cut the connections that are open; idempotent."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.cut_connections()
            self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def count(self, url: str) -> int:
        """Count a request; returns which one for that URL it is, from 1."""
        with self._lock:
            self.hits += 1
            self._requests[url] += 1
            return self._requests[url]

    def records(self, query: Query) -> list[str]:
        """Return the JSON text of every record that a query asks for."""
        overriding = dict(self.posts)
        records = list(_texts(POSTS.name, query.n, query.revision, query.changed))
        for post_id in sorted(overriding):
            text = json.dumps(_record(overriding[post_id]))
            if 1 <= post_id <= query.n:
                records[post_id - 1] = text
            else:
                records.append(text)
        first = make_post(1, query.revision + (1 in query.changed))
        repeated = [json.dumps(first), json.dumps(first | {"title": "contradicts the first"})]
        nasty = [text for _, text in NASTY_RECORDS] + repeated
        size = len(records)
        # From the end, so that what was inserted doesn't move the places that come.
        for number in reversed(range(query.malformed)):
            records.insert((number + 1) * size // (query.malformed + 1), nasty[number % len(nasty)])
        return records


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def __init__(self, address: tuple[str, int], stand_in: StandIn) -> None:
        self.stand_in = stand_in
        self.connections: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def cut_connections(self) -> None:
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        stand_in = self.server.stand_in
        number = stand_in.count(self.path)
        parts = urlsplit(self.path)
        given = dict(parse_qsl(parts.query, keep_blank_values=True))
        try:
            query = Query.model_validate(stand_in.behaviour | given)
        except ValidationError as error:
            problems = [f"{problem['loc'][0]}: {problem['msg']}" for problem in error.errors(include_url=False)]
            return self._send_json(HTTPStatus.BAD_REQUEST, {"error": "; ".join(problems)})
        time.sleep(query.delay_ms / 1000)
        stand_in.open.wait()
        if status := query.failure(self.path, number):
            headers = {} if query.retry_after is None else {"Retry-After": str(query.retry_after)}
            return self._send_json(status, {"error": "as the query asked for"}, headers)
        match parts.path.rstrip("/").split("/"):
            case ["", "posts"]:
                return self._send_records("posts", self.server.stand_in.records(query), query, given)
            case ["", name] if name in ENTITIES:
                return self._send_records(name, _texts(name, query.n, query.revision, query.changed), query, given)
            case ["", "posts", post_id] if post_id.isdecimal():
                return self._send_post(query, int(post_id))
        return self._send_json(HTTPStatus.NOT_FOUND, {})

    def _send_post(self, query: Query, post_id: int) -> None:
        if post_id in (overriding := self.server.stand_in.posts):
            return self._send_json(HTTPStatus.OK, _record(overriding[post_id]))
        if 1 <= post_id <= query.n:
            return self._send_json(HTTPStatus.OK, make_post(post_id, query.revision + (post_id in query.changed)))
        return self._send_json(HTTPStatus.NOT_FOUND, {})

    def _send_records(self, name: str, records: Sequence[str], query: Query, given: dict[str, str]) -> None:
        if query.html:
            return self._send(HTTPStatus.OK, b"<!doctype html><title>Sign in</title>", {"Content-Type": "text/html"})
        headers: dict[str, str] = {}
        if query.page or query.limit:
            headers["X-Total-Count"] = str(len(records))
            limit = query.limit or _DEFAULT_LIMIT
            start = ((query.page or 1) - 1) * limit
            if query.page and start + limit < len(records):
                following = urlencode(given | {"_page": str(query.page + 1)})
                headers["Link"] = f'<http://{self.headers["Host"]}/{name}?{following}>; rel="next"'
            records = records[start : start + limit]
        body = b"[" + ",\n".join(records).encode() + b"]"
        if query.object:
            body = b'{"%s": %s}' % (name.encode(), body)
        if query.truncate:
            body = body[: len(body) // 2]
        etag = f'W/"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
        if etag in self.headers.get("If-None-Match", ""):
            return self._send(HTTPStatus.NOT_MODIFIED, b"", {"ETag": etag})
        return self._send(HTTPStatus.OK, body, headers | {"ETag": etag}, whole=not query.drop)

    def _send_json(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), headers or {})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], *, whole: bool = True) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json; charset=utf-8"} | dict(headers)).items():
            self.send_header(name, value)
        if status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if whole else body[: len(body) // 2])
        self.close_connection = self.close_connection or not whole

    def log_message(self, template: str, *values: Any) -> None:
        logger.debug(template, *values)


def _record(kept: Any) -> Any:
    return kept() if callable(kept) else kept


def make_post(post_id: int, revision: int = 1) -> dict[str, Any]:
    """Return a post; the same id and revision give the same post, on each machine."""
    title, *lines = random.Random(f"{post_id} {revision}").choices(_sentences(), k=1 + _BODY_LINES)
    return {"userId": (post_id - 1) // 10 + 1, "id": post_id, "title": title, "body": "\n".join(lines)}


def make_record(entity: Entity, record_id: int, revision: int = 1) -> dict[str, Any]:
    """Return a record of an entity; the same id and revision give the same record, on each machine."""
    if entity is POSTS:
        return make_post(record_id, revision)
    made = random.Random(f"{entity.name} {record_id} {revision}")
    values: Mapping[Kind, Callable[[], Any]] = {
        "integer": lambda: (record_id - 1) // 10 + 1,
        "text": lambda: made.choice(_sentences()),
        "flag": lambda: made.random() < 0.5,  # noqa: PLR2004 - either
    }
    return {"id": record_id} | {value.name: values[value.kind]() for value in entity.values}


@lru_cache(maxsize=8)
def _texts(name: str, n: int, revision: int, changed: frozenset[int]) -> tuple[str, ...]:
    entity = ENTITIES[name]
    return tuple(json.dumps(make_record(entity, number, revision + (number in changed))) for number in range(1, n + 1))


@cache
def _sentences() -> tuple[str, ...]:
    try:
        from faker import Faker  # noqa: PLC0415 - optional, and slow to import
    except ImportError:
        raise ServiceStartError("the stand-in needs Faker: pip install 'pipeline-poc[embedded]'") from None
    faker = Faker("la")
    faker.seed_instance(_SEED)
    return tuple(faker.sentence(nb_words=6).rstrip(".").lower() for _ in range(_SENTENCES))


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m pipeline_poc.stand_in", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0: a free one (default %(default)s)")
    arguments = parser.parse_args()
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    with StandIn(arguments.port, arguments.host) as stand_in:
        print(f"The stand-in answers at {stand_in.url}", flush=True)
        signal.sigwait(ends)


if __name__ == "__main__":
    main()
