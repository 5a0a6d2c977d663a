"""Crashes and outages in the middle of the work: all of it heals without a person, and nothing is lost."""

import json
import signal
import time
from collections.abc import Callable

import psutil
import pytest
import redis
from sqlalchemy.engine import make_url

from pipeline_poc.chaos.servers import MariaDB, Redis
from pipeline_poc.embedded import free_port
from pipeline_poc.stand_in import StandIn
from pipeline_poc_tests.acceptance.conftest import Stores
from pipeline_poc_tests.acceptance.programs import Programs, until
from pipeline_poc_tests.acceptance.schedules import stop_ingesting
from pipeline_poc_tests.conftest import Figures

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

OUTAGE_S = 12.0
"""Far longer than all attempts of a job with these settings, which take 5 s."""


@pytest.fixture
def healed(on_servers: Programs, stores: Stores, measured: Figures) -> Callable[[float], None]:
    """Waits until all is migrated, says how long that took since a moment, and reconciles."""

    def wait(since: float) -> None:
        until(lambda: not stores.batches(state={"$ne": "closed"}), "every batch is closed", timeout_s=120)
        measured(f"healed in {time.monotonic() - since:.1f} s")
        outcome = on_servers.ask("reconcile")
        assert outcome["backlog"] == outcome["quarantined"] == 0, outcome
        assert outcome["stored"] == outcome["migrated"] == outcome["rows"], outcome

    return wait


def ingest(programs: Programs, stand_in: StandIn, posts: int, batch_size: int) -> None:
    """Bring so many new posts into the raw store, in batches."""
    stand_in.behaviour = {"n": str(posts)}
    programs.settings |= {"source_url": stand_in.url, "batch_size": batch_size}
    assert programs.ask("ingest")["new"] > 0


def test_worker_killed_in_the_middle_of_a_batch(
    on_servers: Programs, stores: Stores, stand_in: StandIn, healed: Callable[[float], None]
) -> None:
    """A batch of which a third is committed when its worker is killed is finished by another worker."""
    ingest(on_servers, stand_in, posts=3000, batch_size=3000)
    on_servers.ask("reconcile")  # Makes the table.
    with stores.row_held(1500):
        # The worker commits a thousand rows, then waits.
        on_servers.start_ticks()
        victim = on_servers.start("worker")
        until(lambda: stores.rows() >= 1000, "the first rows are committed")
        victim.kill()
    killed_at = time.monotonic()
    assert stores.rows() == 1000
    on_servers.start("worker")
    healed(killed_at)
    assert [batch["attempts"] for batch in stores.batches()] == [2]


@pytest.mark.slow
def test_daemon_killed_in_a_tick(
    on_servers: Programs,
    stores: Stores,
    stand_in: StandIn,
    redis_server: Redis,
    healed: Callable[[float], None],
) -> None:
    """`up` replaces a Dagster daemon that is killed in a tick, and the backlog is enqueued all the same."""
    on_servers.settings["source_url"] = stand_in.url
    stop_ingesting(on_servers.data_dir)
    program = on_servers.start("up", web_port=free_port())
    program.wait_for("The UI is at")

    def daemons() -> list[psutil.Process]:
        return on_servers.processes("dagster._daemon")

    log = on_servers.data_dir / "logs" / "daemon.log"
    until(lambda: log.read_text().count("Checking for new runs for sensor"), "the daemon ticks")
    # A tick that asks the frozen Redis for its lock hangs there.
    redis_server.pause()
    try:
        ticks = log.read_text().count("Checking for new runs for sensor")
        ingest(on_servers, stand_in, posts=300, batch_size=50)
        until(lambda: log.read_text().count("Checking for new runs for sensor") > ticks, "a tick begins")
        (victim,) = daemons()
        victim.kill()
    finally:
        redis_server.resume()
    killed_at = time.monotonic()
    healed(killed_at)
    assert victim.pid not in [process.pid for process in until(daemons, "a new daemon")]
    ingesting_at = time.monotonic()
    ingest(on_servers, stand_in, posts=400, batch_size=50)
    healed(ingesting_at)
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    assert "Traceback" not in program.said


def test_queue_wiped(on_servers: Programs, stores: Stores, stand_in: StandIn, healed: Callable[[float], None]) -> None:
    """FLUSHALL with jobs queued, and one executing, costs time only."""
    ingest(on_servers, stand_in, posts=1000, batch_size=100)
    on_servers.ask("reconcile")
    with stores.row_held(50):
        on_servers.start_ticks()
        worker = on_servers.start("worker")
        until(lambda: stores.batches(startedAt={"$exists": True}) and stores.jobs() == 9, "one executes, nine wait")
        with redis.Redis.from_url(str(on_servers.settings["redis_url"])) as client:
            client.flushall()
        wiped_at = time.monotonic()
    healed(wiped_at)
    assert worker.is_running
    assert "Traceback" not in worker.said


def attempts_wasted(stores: Stores) -> int:
    """Count the executions beyond the one that each batch needs."""
    return sum(batch["attempts"] - 1 for batch in stores.batches())


@pytest.mark.slow
def test_relational_store_away(  # noqa: PLR0917 - fixtures
    on_servers: Programs,
    stores: Stores,
    stand_in: StandIn,
    mariadb: MariaDB,
    healed: Callable[[float], None],
    measured: Figures,
) -> None:
    """An outage of MariaDB beyond all attempts costs a handful of attempts, and ends with every post migrated."""
    ingest(on_servers, stand_in, posts=1000, batch_size=100)
    on_servers.start_ticks()
    workers = [on_servers.start("worker"), on_servers.start("worker")]
    # A worker that finds its store away at its very start says so and ends.
    until(lambda: all("worker started" in worker.said for worker in workers), "both workers are up")
    until(lambda: stores.batches(state="closed"), "the migration is under way")
    mariadb.stop()
    stopped_at = time.monotonic()
    ingest(on_servers, stand_in, posts=3000, batch_size=100)
    until(lambda: all(worker.said.count("breaker opened") for worker in workers), "both workers see it")
    until(lambda: health(on_servers)["workers:live"]["status"] == "warn", "health shows it")
    assert "The relational store" in str(health(on_servers)["workers:live"]["output"])
    time.sleep(max(0.0, stopped_at + OUTAGE_S - time.monotonic()))
    assert len(stores.batches(state="open")) >= 20
    assert not stores.batches(state="dead"), "an outage is no fault of a batch"
    closed = len(stores.batches(state="closed"))
    mariadb.start()
    started_at = time.monotonic()
    until(lambda: len(stores.batches(state="closed")) > closed, "work flows again")
    measured(f"flowed again in {time.monotonic() - started_at:.1f} s")
    healed(started_at)
    wasted = attempts_wasted(stores)
    measured(f"{wasted} attempts used up in an outage of {started_at - stopped_at:.0f} s, 2 workers, 30 batches")
    assert 1 <= wasted <= 6
    assert all(worker.is_running for worker in workers)
    assert [worker.said.count("breaker opened") for worker in workers] == [1, 1]
    assert [worker.said.count("breaker closed") for worker in workers] == [1, 1]


def health(programs: Programs) -> dict[str, dict[str, object]]:
    """Return the first check of each name."""
    return {name: found[0] for name, found in json.loads(programs.run("status", "--json").out)["checks"].items()}


@pytest.mark.slow
def test_relational_store_read_only(  # noqa: PLR0917 - fixtures
    on_servers: Programs,
    stores: Stores,
    stand_in: StandIn,
    mariadb: MariaDB,
    healed: Callable[[float], None],
    measured: Figures,
) -> None:
    """A MariaDB that answers pings and refuses every write is tried now and then, not all the time."""
    url = make_url(str(on_servers.settings["sql_url"]))
    mariadb.execute("CREATE USER IF NOT EXISTS lesser@'%' IDENTIFIED BY 'secret'")
    mariadb.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, INDEX ON `{url.database}`.* TO lesser@'%'")
    on_servers.settings["sql_url"] = url.set(username="lesser").render_as_string(hide_password=False)
    ingest(on_servers, stand_in, posts=1000, batch_size=100)
    on_servers.ask("reconcile")
    mariadb.execute("SET GLOBAL read_only = 1")
    try:
        on_servers.start_ticks()
        workers = [on_servers.start("worker"), on_servers.start("worker")]
        until(lambda: all("breaker opened" in worker.said for worker in workers), "both workers see it")
        time.sleep(OUTAGE_S)
        tried = sum(batch["attempts"] for batch in stores.batches())
        assert not stores.batches(state={"$ne": "open"})
    finally:
        mariadb.execute("SET GLOBAL read_only = 0")
    writable_at = time.monotonic()
    healed(writable_at)
    measured(f"{tried} attempts in {OUTAGE_S:.0f} s of a read-only store, 2 workers")
    # Pauses between 1 and 2 s, and those before: far more would be a loop.
    assert 4 <= tried <= 60
    assert all(worker.is_running for worker in workers)
