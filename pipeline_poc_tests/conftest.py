"""Fixtures of all tests: real servers, started when first needed, once for the whole run.

A server that can't be started fails the run; it never skips tests. Tests may kill, stop or pause
the servers of the run: whoever uses one next gets it up again.
"""

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from pipeline_poc.chaos.servers import MariaDB, Mongo, Redis
from pipeline_poc.settings import Settings, file_variable
from pipeline_poc.stand_in import StandIn

NOT_TESTED = "NOT TESTED"
Figures = Callable[[str], None]
"""Takes a line with figures, shown at the end of the run."""
_notes = pytest.StashKey[dict[str, list[str]]]()


def note(config: pytest.Config, section: str, text: str) -> None:
    """Say something at the end of the run, once, in a section of that name; in red where it was not tested."""
    said = config.stash.setdefault(_notes, {}).setdefault(section, [])
    if text not in said:
        said.append(text)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a process of a divided run has to say."""
    for section, texts in getattr(node, "workeroutput", {}).get("notes", {}).items():
        for text in texts:
            note(node.config, section, text)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand over what this process has to say, where it is one of several."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["notes"] = session.config.stash.get(_notes, {})


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the one way of running without MariaDB."""
    parser.addoption("--without-mysql", action="store_true", help="leave out, and list, the tests that need MariaDB")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker of the tests that need MariaDB; take SIGINT for what it usually is."""
    # A shell ignores it for what it starts in the background, and every program of a test would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "mysql: needs MariaDB; set by itself where the fixtures tell")


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Mark what needs MariaDB; leave it out if asked to, else insist on MariaDB."""
    for item in items:
        if "mariadb" in getattr(item, "fixturenames", ()):
            item.add_marker("mysql")
    yield  # Here -k and -m choose.
    needing = [item for item in items if item.get_closest_marker("mysql")]
    if config.getoption("--without-mysql"):
        items[:] = [item for item in items if item not in needing]
        for item in needing:
            note(config, f"{NOT_TESTED}: --without-mysql", item.nodeid)
        config.hook.pytest_deselected(items=needing)
    elif needing and MariaDB.binary() is None:
        pytest.exit(
            f"{len(needing)} of these tests need MariaDB; install it:\n"
            "    sudo apt-get install mariadb-server\n"
            "or leave those tests out with --without-mysql",
            returncode=pytest.ExitCode.USAGE_ERROR,
        )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was left out, so that nobody takes the run for a whole one, and what was measured."""
    for section, texts in config.stash.get(_notes, {}).items():
        warn = section.startswith(NOT_TESTED)
        terminalreporter.section(section, red=warn, bold=warn)
        for text in texts:
            terminalreporter.line(text, red=warn)


@pytest.fixture
def kept_signals() -> Iterator[None]:
    """A worker takes over the signals of its process: they are given back."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Figures:
    """Takes a line with figures, shown at the end of the run."""
    return lambda text: note(request.config, "measured", f"{request.node.name}: {text}")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the settings of the person who runs it, nor a .env of theirs."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(file_variable(name), raising=False)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """The MariaDB of the run."""
    with MariaDB() as server:
        yield server


@pytest.fixture(scope="session")
def mongo() -> Iterator[Mongo]:
    """The MongoDB server of the run."""
    with Mongo() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """The Redis server of the run."""
    with Redis() as server:
        yield server


@pytest.fixture
def mongo_url(mongo: Mongo) -> str:
    """URL of a MongoDB that is up; see `mongo_database`."""
    mongo.start()
    return mongo.url


@pytest.fixture
def mongo_database() -> str:
    """Name of a database that no other test uses."""
    return f"test_{uuid.uuid4().hex[:12]}"


@pytest.fixture
def redis_url(redis_server: Redis) -> str:
    """URL of an empty Redis database."""
    redis_server.start()
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushdb()
    return redis_server.url


@pytest.fixture
def sql_url(mariadb: MariaDB) -> Iterator[str]:
    """URL of an empty MariaDB database that no other test uses."""
    database = f"test_{uuid.uuid4().hex[:12]}"
    mariadb.start()
    yield mariadb.url(database)
    mariadb.start()
    mariadb.execute(f"DROP DATABASE {database}")


@pytest.fixture(params=["sqlite", pytest.param("mariadb", marks=pytest.mark.mysql)])
def any_sql_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty relational database; the test runs once for each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'relational.db'}"
    url: str = request.getfixturevalue("sql_url")
    return url


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    """A source that behaves as the test tells it to."""
    with StandIn() as server:
        yield server
