"""The worker: one function, nothing imported because Redis says so, retries that fit the error."""

import os
import pickle
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from rq import Callback
from rq.job import Job
from rq.webhook import Webhook

from pipeline_poc import worker as worker_module
from pipeline_poc.errors import SchemaError, ServiceUnavailable
from pipeline_poc.ledger import Ledger
from pipeline_poc.migration_queue import JOB_FUNCTION, MigrationQueue
from pipeline_poc.migration_worker import MigrationWorker
from pipeline_poc.orchestration.reporting import Reporter
from pipeline_poc.records import StoredRecord
from pipeline_poc.relational_store import RelationalStore
from pipeline_poc.services import Services
from pipeline_poc.settings import Settings
from pipeline_poc.stand_in import StandIn
from pipeline_poc.worker import run_worker
from pipeline_poc_tests.acceptance.programs import TIMEOUT_S, until
from pipeline_poc_tests.integration.workers import Start
from pipeline_poc_tests.scripts import script

pytestmark = pytest.mark.usefixtures("kept_signals")

BATCH_ID = "20240102T030405678-0123abcd"
"""Has the shape of a batch's id, but no batch has it."""


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that comes to be once somebody imports the module `trap`, or calls anything in it."""
    sprung = tmp_path / "sprung"
    code = f"import pathlib\npathlib.Path({str(sprung)!r}).touch()\ndef run(*_, **__): pass\nclass Thing: run = run\n"
    (tmp_path / "trap.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    return sprung


@pytest.fixture
def broken_table(sql: sa.Engine) -> Callable[[], None]:
    """The relational store is out of order until this is called."""
    with sql.begin() as connection:
        connection.execute(sa.text("ALTER TABLE migrated_posts RENAME TO away"))

    def mend() -> None:
        with sql.begin() as connection:
            connection.execute(sa.text("ALTER TABLE away RENAME TO migrated_posts"))

    return mend


def make_due(queue: MigrationQueue, client: redis.Redis) -> None:
    """Let the time of all scheduled attempts come now."""
    for job_id in queue.snapshot().scheduled:
        client.zadd(queue.rq.scheduled_job_registry.key, {job_id: 0})
    queue.promote_due()


def test_a_burst_migrates_the_backlog(services: Services, job: Callable[[str], Job]) -> None:
    """A worker executes what a tick enqueued, and leaves each job finished, with its numbers."""
    ingested = services.ingest()
    assert services.tick().enqueued == 10
    assert run_worker(services, burst=True) == 10
    assert services.raw_store.counts().migrated == 100
    assert services.reconcile().ok
    assert services.queue.snapshot().outstanding == frozenset()
    finished = job(ingested.batches[0])
    assert finished.get_status().value == "finished"
    result = finished.latest_result()
    assert result is not None
    assert result.return_value is not None
    assert result.return_value["migrated"] == 10


def test_the_command_line_worker(services: Services, environment: dict[str, str]) -> None:
    """The worker as a program does the same, prints what it did as JSON, and exits with 0."""
    services.ingest()
    services.tick()
    command = [sys.executable, "-m", "pipeline_poc", "worker", "--burst", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, '{"jobs": 10}\n'), done.stderr
    assert services.raw_store.counts().migrated == 100


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        ("os.system", ("touch {sprung}",), {}),
        ("trap.run", (BATCH_ID,), {}),
        ("trap.Thing", (BATCH_ID,), {}),
        ("pipeline_poc.worker.run_workers", (1,), {}),
        (JOB_FUNCTION, (), {}),
        (JOB_FUNCTION, (BATCH_ID, BATCH_ID), {}),
        (JOB_FUNCTION, (BATCH_ID,), {"batch_id": BATCH_ID}),
        (JOB_FUNCTION, ({"$ne": None},), {}),
        (JOB_FUNCTION, (17,), {}),
        (JOB_FUNCTION, (f"{BATCH_ID}\n",), {}),
        (JOB_FUNCTION, (f"{BATCH_ID}'; DROP TABLE migrated_posts",), {}),
    ],
)
def test_other_jobs_are_refused(  # noqa: PLR0917 - parameters and fixtures
    services: Services, trap: Path, job: Callable[[str], Job], function: str, args: tuple[Any, ...], kwargs: Any
) -> None:
    """A job that asks for anything but the migration of a batch is not executed, and is kept as a dead letter."""
    args = tuple(arg.format(sprung=trap) if isinstance(arg, str) else arg for arg in args)
    services.queue.rq.enqueue_call(function, args=args, kwargs=kwargs, job_id="hostile")
    assert run_worker(services, burst=True) == 0
    assert not trap.exists()
    assert "trap" not in sys.modules
    assert services.queue.snapshot().failed == {"hostile"}
    result = job("hostile").latest_result()
    assert result is not None
    assert "RefusedJobError" in (result.exc_string or "")
    assert services.ledger.counters.read()[0]["migration"] == {"refused_jobs": 1}
    assert services.tick().enqueued == 0


@pytest.mark.parametrize("compressed", [True, False])
def test_pickles_are_refused(
    services: Services, trap: Path, redis_client: redis.Redis, job: Callable[[str], Job], compressed: bool
) -> None:
    """A payload that is a pickle is never opened."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {trap}",)

    services.queue.rq.enqueue_call(JOB_FUNCTION, args=(BATCH_ID,), job_id="hostile")
    payload = pickle.dumps(Bomb())
    redis_client.hset("rq:job:hostile", "data", zlib.compress(payload) if compressed else payload)
    assert run_worker(services, burst=True) == 0
    assert not trap.exists()
    assert services.queue.snapshot().failed == {"hostile"}


@pytest.mark.parametrize("function", [JOB_FUNCTION, "os.getcwd"], ids=["good job", "refused job"])
def test_callbacks_and_webhooks_are_not_called(
    services: Services, stand_in: StandIn, trap: Path, function: str
) -> None:
    """Functions and addresses that a job names for its end are neither imported nor called."""
    webhooks = [Webhook(stand_in.url, "finished"), Webhook(stand_in.url, "failed")]
    services.queue.rq.enqueue_call(
        function,
        args=(BATCH_ID,),
        job_id="hostile",
        on_success=Callback("trap.run"),
        on_failure=Callback("trap.run"),
        on_stopped=Callback("trap.run"),
        webhooks=webhooks,
    )
    run_worker(services, burst=True)
    assert not trap.exists()
    assert stand_in.hits == 0
    assert services.queue.snapshot().outstanding == frozenset()


def test_a_refused_job_does_not_harm_the_batch_of_its_name(services: Services) -> None:
    """A hostile job that took the name of a batch's job is replaced by a right one with the next tick."""
    [batch_id, *_] = services.ingest().batches
    services.queue.rq.enqueue_call("os.getcwd", job_id=batch_id)
    run_worker(services, burst=True)
    assert [batch.state for batch in services.ledger.batches("open")] == ["open"] * 10
    services.tick()
    run_worker(services, burst=True)
    assert services.raw_store.counts().migrated == 100


def test_an_outage_is_retried_then_waits(  # noqa: PLR0917 - fixtures
    services: Services,
    queue: MigrationQueue,
    redis_client: redis.Redis,
    broken_table: Callable[[], None],
    job: Callable[[str], Job],
    settings: Settings,
) -> None:
    """A job that meets an outage is scheduled again until its attempts run out, and comes back when all is well."""
    # So long that no attempt falls due by itself; a worker in burst mode ends with the first failure.
    services.settings = settings.model_copy(update={"retry_base_s": 1e6, "retry_cap_s": 1e6, "batch_size": 50})
    services.ingest()
    services.tick()
    batch_id = services.ledger.batches("open")[0].id
    for attempt in range(1, settings.retry_max_attempts):
        assert [run_worker(services, burst=True) for _ in range(2)] == [0, 0]
        snapshot = queue.snapshot()
        assert len(snapshot.scheduled) == 2
        assert snapshot.failed == frozenset()
        assert job(batch_id).number_of_retries == attempt
        batch = services.ledger.get(batch_id)
        assert batch is not None
        assert batch.attempts == attempt
        assert "ServiceUnavailable" in (batch.error or "")
        assert batch.heartbeat_at is None
        assert services.tick().enqueued == 0
        make_due(queue, redis_client)
    assert [run_worker(services, burst=True) for _ in range(2)] == [0, 0]
    assert len(queue.snapshot().failed) == 2
    assert len(services.ledger.batches("open")) == 2
    broken_table()
    assert services.tick().requeued == 2
    assert run_worker(services, burst=True) == 2
    assert services.reconcile().ok
    assert services.raw_store.counts().migrated == 100


def test_the_delay_is_that_of_the_policy(
    services: Services, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next attempt is scheduled for the time that the error asks for, and the worker promotes it then."""
    services.ingest()
    services.tick()
    write = RelationalStore.write

    def away(*_: Any) -> dict[int, tuple[str, str]]:
        monkeypatch.undo()
        raise ServiceUnavailable("The relational store", "SQL_URL", "mysql://x", "busy", retry_after_s=100)

    monkeypatch.setattr(RelationalStore, "write", away)
    run_worker(services, burst=True)
    [batch_id] = services.queue.snapshot().scheduled
    due = services.queue.rq.scheduled_job_registry.get_scheduled_time(batch_id)
    assert 90 < due.timestamp() - time.time() <= 101
    assert RelationalStore.write is write
    services.queue.promote_due()
    assert len(services.queue.snapshot().scheduled) == 1


def test_a_terminal_error_is_buried(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that fails terminally is not tried again: a dead letter, until a person reopens it."""
    batch_id = services.ingest().batches[0]
    services.tick()

    def refuse(*_: Any) -> dict[int, tuple[str, str]]:
        monkeypatch.undo()
        raise SchemaError("too new")

    monkeypatch.setattr(RelationalStore, "write", refuse)
    assert run_worker(services, burst=True) == 9
    [dead] = services.ledger.batches("dead")
    assert (dead.id, dead.attempts, dead.error) == (batch_id, 1, "SchemaError: too new")
    assert services.tick().requeued == 0
    assert services.reconcile().ok
    assert services.ledger.reopen(batch_id)
    services.tick()
    assert run_worker(services, burst=True) == 1
    assert services.raw_store.counts().migrated == 100


def test_an_unknown_error_is_retried_then_buried(
    services: Services, redis_client: redis.Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that nobody foresaw gets all its attempts, then waits for a person, and stops no other batch."""
    services.ingest()
    services.tick()
    bad = services.ledger.batches("open")[3].id
    write = RelationalStore.write

    def fail_on_one(store: RelationalStore, posts: list[StoredRecord], at: datetime) -> Any:
        return 1 / 0 if posts[0].external_id == 31 else write(store, posts, at)

    monkeypatch.setattr(RelationalStore, "write", fail_on_one)
    assert run_worker(services, burst=True) == 9
    for _ in range(1, settings.retry_max_attempts):
        make_due(services.queue, redis_client)
        assert run_worker(services, burst=True) == 0
    [dead] = services.ledger.batches("dead")
    assert (dead.id, dead.attempts) == (bad, settings.retry_max_attempts)
    assert dead.error == "ZeroDivisionError: division by zero"
    assert services.raw_store.counts().backlog == 10


def test_a_job_that_takes_too_long_is_retried(
    settings: Settings, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job beyond its time limit is interrupted and counts as a failure; its batch stays in the backlog."""
    services.settings = settings.model_copy(update={"retry_base_s": 1e6, "retry_cap_s": 1e6})
    services.ingest()
    services.queue._job_timeout_s = 1
    services.tick()

    def hang(*_: Any) -> dict[int, tuple[str, str]]:
        monkeypatch.undo()
        time.sleep(30)
        return {}

    monkeypatch.setattr(RelationalStore, "write", hang)
    assert run_worker(services, burst=True) == 9
    [batch] = services.ledger.batches("open")
    assert "time limit" in (batch.error or "")
    assert services.queue.snapshot().scheduled == {batch.id}


def test_a_failure_that_cannot_be_noted(
    settings: Settings, services: Services, broken_table: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that can't reach the ledger to note a failure schedules the next attempt all the same."""

    def away(*_: Any) -> None:
        raise ServiceUnavailable("MongoDB", "MONGO_URL", "mongodb://x", "gone")

    services.settings = settings.model_copy(update={"retry_base_s": 1e6, "retry_cap_s": 1e6})
    services.ingest()
    services.tick()
    monkeypatch.setattr(Ledger, "note_failure", away)
    assert run_worker(services, burst=True) == 0
    snapshot = services.queue.snapshot()
    assert (len(snapshot.scheduled), len(snapshot.queued)) == (1, 9)
    broken_table()


def test_nobody_imports_the_jobs_function() -> None:
    """The name that jobs carry is a name only: there is no such function."""
    assert not hasattr(worker_module, JOB_FUNCTION.rpartition(".")[2])


def test_a_worker_finishes_its_job_on_sigterm(
    services: Services, environment: dict[str, str], stand_in: StandIn
) -> None:
    """SIGTERM lets a worker finish what it executes and end with 0; nothing stays half done."""
    stand_in.behaviour = {"n": "600"}
    services.ingest()
    services.tick()
    command = [sys.executable, "-m", "pipeline_poc", "worker"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as worker:
        until(lambda: services.raw_store.counts().migrated, "a batch is migrated")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(TIMEOUT_S) == 0
    assert services.queue.snapshot().started == frozenset()
    assert {batch.attempts for batch in services.ledger.batches("open")} <= {0}
    assert services.reconcile().ok


def test_a_worker_that_hangs_is_told_from_one_that_waits(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker lives while it executes a job or looks for one, paused or not; not when it does neither for a minute."""
    worker = MigrationWorker(services, Reporter(None))
    assert worker.shows_life()
    worker.looked_at -= 120
    assert not worker.shows_life()
    worker.is_paused = True
    monkeypatch.setattr(worker, "_rest", lambda _: worker.request_stop(signal.SIGTERM, None))
    worker.check_for_suspension(burst=False)
    assert worker.shows_life()
    worker.looked_at -= 120
    worker.idle_since = None
    assert worker.shows_life()


def test_the_health_check_sees_whether_a_worker_lives(start: Start, tmp_path: Path) -> None:
    """A worker leaves its sign of life where the health check looks, until it is frozen or gone."""
    folder = tmp_path / "tmp"
    folder.mkdir()

    def is_healthy() -> bool:
        return bool(script("healthcheck").check(["pipeline-poc", "worker", ""], 3000, str(folder)))

    worker = start(tmpdir=folder)
    until(is_healthy, "the worker shows life")
    worker.signal(signal.SIGSTOP)
    [file] = folder.iterdir()
    os.utime(file, (0, 0))
    assert not is_healthy()
    worker.signal(signal.SIGCONT)
    until(is_healthy, "it lives again")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert not list(folder.iterdir())
    assert not is_healthy()
