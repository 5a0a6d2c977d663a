"""SIGTERM to a worker: it ends soon, whatever hangs, with status 0, and what it was doing is taken up by another."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil
import pytest
import sqlalchemy as sa

from pipeline_poc.chaos.servers import Redis, Server
from pipeline_poc.errors import ServiceUnavailable
from pipeline_poc.services import Services
from pipeline_poc.settings import Settings
from pipeline_poc.stand_in import StandIn
from pipeline_poc.worker import run_worker
from pipeline_poc_tests.acceptance.programs import Program, allowed_s, until
from pipeline_poc_tests.conftest import Figures
from pipeline_poc_tests.integration.workers import HeldRow, Start, seconds

pytestmark = pytest.mark.usefixtures("kept_signals")

IN_TIME_S = 10.0
"""A worker is gone so long after it was asked, at the latest, with any grace that it has here or by default."""
AT_ONCE_S = 5.0
"""A worker with nothing to finish is gone after so long; it takes less than 2 s on a machine that is not busy."""
POSTS, FIRST_CHUNK, HELD = 1200, 1000, 1100

Leave = Callable[..., float]


@pytest.fixture
def relational_url(sql_url: str) -> str:
    """A server, since SQLite has no rows to lock."""
    return sql_url


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """All posts in one batch."""
    return settings.model_copy(update={"batch_size": POSTS})


@pytest.fixture
def leave(measured: Figures) -> Leave:
    """Sends a signal, waits for the end, and returns the seconds that took; the status has to be 0."""

    def end(program: Program, number: signal.Signals = signal.SIGTERM) -> float:
        program.signal(number)
        took_s = seconds(program.wait)
        measured(f"gone after {took_s:.1f} s")
        assert program.wait() == 0, program.said
        assert "Traceback" not in program.said, program.said
        return took_s

    return end


@pytest.fixture
def held(services: Services, stand_in: StandIn, sql: sa.Engine) -> Iterator[HeldRow]:
    """All posts in one batch with its job on the queue, and a row on the second half of its way."""
    stand_in.behaviour = {"n": str(POSTS)}
    services.ingest()
    services.tick()
    row = HeldRow(sql, HELD)
    yield row
    row.release()


@pytest.fixture
def hang(services: Services, start: Start, held: HeldRow) -> Start:
    """Starts a worker and waits until it hangs in the middle of the batch."""

    def hang(*arguments: str, **settings: object) -> Program:
        program = start(*arguments, **settings)
        until(lambda: services.relational_store.count() >= FIRST_CHUNK, "the first rows are committed")
        return program

    return hang


def done(services: Services) -> bool:
    """Execute what is on the queue; return whether that closed the batch."""
    with suppress(ServiceUnavailable):
        run_worker(services, burst=True)
        return bool(services.ledger.batches("closed"))
    return False


def finish(services: Services, held: HeldRow, measured: Figures) -> None:
    """Let another worker finish the batch, without a tick; everything is there, once."""
    held.release()
    # A store that was frozen may take a while to be found again.
    took_s = seconds(lambda: until(lambda: done(services), "the batch is closed"))
    measured(f"taken up and closed by another in {took_s:.1f} s")
    [batch] = services.ledger.batches("closed")
    assert batch.attempts >= 2
    assert batch.migrated == POSTS
    assert services.reconcile().ok
    assert services.relational_store.count() == POSTS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_batch_that_hangs(  # noqa: PLR0917 - fixtures
    hang: Start, held: HeldRow, services: Services, leave: Leave, measured: Figures, number: signal.Signals
) -> None:
    """A batch that hangs when its worker is asked to stop is given back after the grace; another worker finishes it."""
    assert 2 < leave(hang(shutdown_grace_s=3), number) < allowed_s(IN_TIME_S)
    [batch] = services.ledger.batches("open")
    assert (batch.started_at, batch.heartbeat_at, batch.error) == (None, None, "its worker was asked to stop")
    snapshot = services.queue.snapshot()
    assert snapshot.queued == snapshot.outstanding == {batch.id}
    assert not snapshot.started | snapshot.taken
    assert services.queue.workers() == []
    assert services.tick().freed == 0
    finish(services, held, measured)


@pytest.mark.parametrize("which", ["mariadb", "mongo", "redis_server"])
def test_a_store_that_freezes(  # noqa: PLR0917 - fixtures
    hang: Start,
    held: HeldRow,
    services: Services,
    leave: Leave,
    measured: Figures,
    request: pytest.FixtureRequest,
    which: str,
) -> None:
    """A store that freezes in the middle of a batch keeps no worker from ending, and nothing is lost."""
    server: Server = request.getfixturevalue(which)
    worker = hang(shutdown_grace_s=2)
    server.pause()
    try:
        assert leave(worker) < allowed_s(IN_TIME_S)
    finally:
        server.resume()
    if which == "redis_server":  # Nobody could put the job back: a tick does.
        assert services.ledger.batches("open")[0].started_at is None
        services.queue.replace([batch.id for batch in services.ledger.batches("open")])
    finish(services, held, measured)


def test_a_second_signal(hang: Start, held: HeldRow, services: Services, leave: Leave, measured: Figures) -> None:
    """Whoever asks twice gets the batch given back at once, however long the grace is."""
    worker = hang(shutdown_grace_s=1000)
    worker.signal(signal.SIGTERM)
    time.sleep(1.5)
    assert worker.is_running
    assert leave(worker) < allowed_s(AT_ONCE_S)
    finish(services, held, measured)


def test_a_batch_that_ends_in_time(hang: Start, held: HeldRow, services: Services) -> None:
    """A batch that ends within the grace is closed by the worker that was asked to stop."""
    worker = hang(shutdown_grace_s=1000)
    worker.signal(signal.SIGTERM)
    held.release()
    assert worker.wait() == 0
    [batch] = services.ledger.batches("closed")
    assert batch.attempts == 1
    counts = services.queue.counts()
    assert (counts.finished, counts.started, counts.queued) == (1, 0, 0)


def test_several_workers(hang: Start, held: HeldRow, services: Services, leave: Leave, measured: Figures) -> None:
    """The parent of several workers passes the signal on, and ends with the last of them."""
    parent = hang("--count", "2", shutdown_grace_s=2)
    until(lambda: parent.said.count("worker started") == 2, "both are up")
    assert leave(parent) < allowed_s(IN_TIME_S)
    assert parent.said.count("worker stopped") == 1, "the idle one"
    finish(services, held, measured)


def test_a_frozen_worker_is_killed(start: Start) -> None:
    """The parent of several workers waits for none that is frozen."""
    parent = start("--count", "2", shutdown_grace_s=1)
    until(lambda: parent.said.count("worker started") == 2, "both are up")
    children = psutil.Process(parent.pid).children()
    children[0].suspend()
    parent.signal(signal.SIGTERM)
    assert seconds(parent.wait) < allowed_s(IN_TIME_S)
    assert not any(child.is_running() for child in children)


def test_an_idle_worker(start: Start, leave: Leave, services: Services) -> None:
    """A worker that waits for a job ends at once, and is struck off the list."""
    worker = start(shutdown_grace_s=1000)
    worker.wait_for("worker started")
    until(lambda: [info.state for info in services.queue.workers()] == ["idle"], "it waits")
    assert leave(worker) < allowed_s(AT_ONCE_S)
    assert services.queue.workers() == []


@pytest.mark.parametrize("which", ["mariadb", "mongo", "redis_server"])
def test_a_worker_that_waits_for_a_store(
    start: Start, leave: Leave, services: Services, request: pytest.FixtureRequest, which: str
) -> None:
    """A worker that begins nothing since a store is away ends at once."""
    server: Server = request.getfixturevalue(which)
    services.ingest()
    worker = start(store_timeout_s=1, shutdown_grace_s=1000)
    worker.wait_for("worker started")
    services.tick()
    server.stop()
    try:
        time.sleep(2)
        assert leave(worker) < allowed_s(AT_ONCE_S)
    finally:
        server.start()


def test_an_idle_worker_of_a_frozen_redis(start: Start, leave: Leave, redis_server: Redis) -> None:
    """A worker that waits for a job of a Redis that does not answer ends at once, too."""
    worker = start(shutdown_grace_s=1000)
    worker.wait_for("worker started")
    redis_server.pause()
    try:
        assert leave(worker) < allowed_s(AT_ONCE_S)
    finally:
        redis_server.resume()
