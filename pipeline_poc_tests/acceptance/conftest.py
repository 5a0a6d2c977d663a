"""Fixtures of the acceptance tests: programs, and what they need beyond the package itself.

Node, Chromium, promtool and kubectl are not needed to use the pipeline. Where one is missing, the tests that need it
fail in CI, but for kubectl; elsewhere they are left out, and the end of the run says so.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymongo
import pymysql
import pytest
import redis
from playwright.sync_api import Browser, expect, sync_playwright
from sqlalchemy.engine import make_url

from pipeline_poc.chaos.servers import MariaDB, Mongo, Redis
from pipeline_poc.embedded import free_port
from pipeline_poc_tests.acceptance.jsonplaceholder import JsonPlaceholder
from pipeline_poc_tests.acceptance.programs import TIMEOUT_S, Programs
from pipeline_poc_tests.conftest import NOT_TESTED, note


@dataclass(frozen=True, slots=True)
class Tool:
    """A program that some tests need.

    Attributes:
        fixture: Whoever asks for it needs the tool.
        commands: Its executables, all of them needed.
        proves: What is not tested without it.
        remedy: The line to type.
        is_optional: Whether CI may do without, too; the end of the run says so all the same.
    """

    fixture: str
    commands: tuple[str, ...]
    proves: str
    remedy: str
    is_optional: bool = False

    @property
    def is_missing(self) -> bool:
        """Whether it is not installed."""
        return not all(map(shutil.which, self.commands))

    @property
    def complaint(self) -> str:
        """What is missing, what that means, and what to do."""
        return f"{' and '.join(self.commands)} not found, needed to test {self.proves}: {self.remedy}"


NODE = Tool(
    "jsonplaceholder_server",
    ("node", "npm"),
    "the real API's own server",
    "sudo apt-get install nodejs npm",
)
CHROMIUM = Tool("chromium", ("chromium",), "the UI in a browser", "sudo apt-get install chromium")
PROMTOOL = Tool("promtool", ("promtool",), "the alert rules", "sudo apt-get install prometheus")
KUBECTL = Tool(
    "kubectl",
    ("kubectl",),
    "how the kustomizations are rendered",
    "https://kubernetes.io/docs/tasks/tools/ (Debian 12 has one that is too old)",
    is_optional=True,
)
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def chromium_in(programs: Programs) -> Iterator[Browser]:
    """Start Chromium in the environment of programs; what is expected of its pages has the usual time to come."""
    expect.set_options(timeout=TIMEOUT_S * 1000)
    with sync_playwright() as playwright:
        environment: dict[str, str | float | bool] = {**programs.environment()}
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=list(CHROMIUM_FLAGS), env=environment
        )
        yield browser
        browser.close()


class Stores:
    """What the tests look up in the stores themselves, past the pipeline."""

    def __init__(self, programs: Programs) -> None:
        self.settings = programs.settings

    @contextmanager
    def sql(self) -> Iterator[Any]:
        """Give a cursor of a connection to MariaDB; nothing is committed."""
        url = make_url(str(self.settings["sql_url"]))
        with (
            closing(
                pymysql.connect(
                    host=url.host or "",
                    port=url.port or 0,
                    user=url.username,
                    password=url.password or "",
                    database=url.database,
                )
            ) as connection,
            connection.cursor() as cursor,
        ):
            yield cursor

    def table(self) -> list[dict[str, Any]]:
        """Return the rows by id."""
        with self.sql() as cursor:
            cursor.execute("SELECT * FROM migrated_posts ORDER BY externalId")
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def documents(self) -> list[dict[str, Any]]:
        """Return the posts in MongoDB by id."""
        with pymongo.MongoClient[dict[str, Any]](str(self.settings["mongo_url"])) as client:
            return list(client[str(self.settings["mongo_database"])].posts.find().sort("externalId"))

    def rows(self) -> int:
        """Count the rows."""
        with self.sql() as cursor:
            try:
                cursor.execute("SELECT COUNT(*) FROM migrated_posts")
            except pymysql.ProgrammingError:  # No worker has made the table yet.
                return 0
            return int(cursor.fetchone()[0])

    def batches(self, **query: object) -> list[dict[str, Any]]:
        """Return the ledger's batches."""
        with pymongo.MongoClient[dict[str, Any]](str(self.settings["mongo_url"])) as client:
            return list(client[str(self.settings["mongo_database"])].batches.find(query).sort("_id"))

    @contextmanager
    def row_held(self, external_id: int) -> Iterator[None]:
        """Keep a row from being written: a transaction that inserts it stays open."""
        with self.sql() as cursor:
            cursor.execute(
                "INSERT INTO migrated_posts (externalId, userId, title, body, ingestedAt, migratedAt)"
                " VALUES (%s, 1, 't', 'b', NOW(), NOW())",
                (external_id,),
            )
            yield

    def jobs(self) -> int:
        """Count the jobs that wait in the queue."""
        with redis.Redis.from_url(str(self.settings["redis_url"])) as client:
            return int(client.llen("rq:queue:migration"))


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Leave out what needs a missing tool, but for CI."""
    yield  # Here -k and -m choose.
    for tool in (NODE, CHROMIUM, PROMTOOL, KUBECTL):
        needing = [item for item in items if tool.fixture in getattr(item, "fixturenames", ())]
        if needing and tool.is_missing and (tool.is_optional or not os.environ.get("CI")):
            items[:] = [item for item in items if item not in needing]
            note(config, f"{NOT_TESTED}: programs are missing", f"{len(needing)} tests left out: {tool.complaint}")
            config.hook.pytest_deselected(items=needing)


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    """Programs on the embedded services."""
    started = Programs(tmp_path)
    yield started
    started.kill_all()


@pytest.fixture
def on_servers(programs: Programs, mongo_url: str, mongo_database: str, redis_url: str, sql_url: str) -> Programs:
    """Programs on MongoDB, Redis and MariaDB servers of the run, all of them empty; quick to see an outage.

    DEFAULTS=1 leaves the default settings, to measure how long recovery takes with them.
    """
    programs.settings |= {
        "mongo_url": mongo_url,
        "mongo_database": mongo_database,
        "redis_url": redis_url,
        "sql_url": sql_url,
    }
    if not os.environ.get("DEFAULTS"):
        programs.settings |= {
            "heartbeat_interval_s": 1,
            "heartbeat_timeout_s": 5,
            "retry_base_s": 0.2,
            "retry_cap_s": 2,
        }
    return programs


@pytest.fixture(scope="module")
def shared(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    mongo: Mongo,
    redis_server: Redis,
    mariadb: MariaDB,
) -> Programs:
    """Programs on the servers of the run, all of them empty, for all tests of a file."""
    for server in (mongo, redis_server, mariadb):
        server.start()
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushdb()
    name = request.module.__name__.rpartition(".")[2]
    return Programs(
        tmp_path_factory.mktemp(name),
        mongo_url=mongo.url,
        mongo_database=name,
        redis_url=redis_server.url,
        sql_url=mariadb.url(name),
        web_port=free_port(),
    )


@pytest.fixture
def stores(on_servers: Programs) -> Stores:
    """The stores of `on_servers`."""
    return Stores(on_servers)


def _required(tool: Tool) -> str:
    """Return the path of a tool; where it is missing, the test fails."""
    if tool.is_missing:
        pytest.fail(tool.complaint)
    return str(shutil.which(tool.commands[0]))


@pytest.fixture
def chromium() -> str:
    """Path of the browser."""
    return _required(CHROMIUM)


@pytest.fixture
def promtool() -> str:
    """Path of Prometheus's checker of rules."""
    return _required(PROMTOOL)


@pytest.fixture
def kubectl() -> str:
    """Path of the program that renders kustomizations."""
    return _required(KUBECTL)


@pytest.fixture
def jsonplaceholder_server(tmp_path: Path) -> Iterator[JsonPlaceholder]:
    """The server that the public API runs, from npm; installed once for this user."""
    _required(NODE)
    with JsonPlaceholder(tmp_path) as server:
        yield server
