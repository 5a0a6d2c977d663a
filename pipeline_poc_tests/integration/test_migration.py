"""Migration: the flag after the row, each row once and newest, whatever dies in between."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa
from pymongo.database import Database

from pipeline_poc import migration
from pipeline_poc.clock import utc_now
from pipeline_poc.errors import PipelineError, ServiceUnavailable, TerminalError
from pipeline_poc.ledger import Ledger
from pipeline_poc.migration import MigrationResult
from pipeline_poc.raw_store import RawStore
from pipeline_poc.records import StoredRecord
from pipeline_poc.relational_store import RelationalStore
from pipeline_poc.services import Services
from pipeline_poc.stand_in import StandIn
from pipeline_poc_tests.posts import hashed

Documents = Database[dict[str, Any]]


@pytest.fixture
def relational_url(any_sql_url: str) -> str:
    """Both kinds of relational store."""
    return any_sql_url


class Crash(BaseException):
    """The end of a process, as far as one can be inside of it: no handler of the pipeline catches it."""


@contextmanager
def crash(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, after: bool) -> Iterator[None]:
    """Die once, right before or after a step."""
    original = getattr(owner, name)

    def method(*arguments: Any, **named: Any) -> Any:
        if after:
            original(*arguments, **named)
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, method)
        with pytest.raises(Crash):
            yield


def fill(services: Services, ids: range, title: str = "t") -> str:
    """Store posts in one sealed batch; returns its id."""
    batch_id = services.ledger.create(len(ids), utc_now())
    posts = [hashed(i, title) for i in ids]
    services.raw_store.store(posts, services.raw_store.versions(list(ids)), batch_id, utc_now())
    assert services.ledger.seal(batch_id, len(ids))
    return batch_id


def assert_flags_have_rows(services: Services) -> None:
    """No document says migrated without a row of the same content; both stores agree on all else."""
    result = services.reconcile()
    assert result.ok, result.faults
    assert result.stored == result.migrated + result.backlog + result.quarantined


def test_everything_is_migrated(services: Services, stand_in: StandIn, database: Documents) -> None:
    """The backlog ends empty, batches closed with their numbers, and the result says what was done."""
    services.ingest()
    result = services.migrate()
    assert (result.migrated, result.quarantined, result.batches, result.attempts) == (100, 0, 10, 1)
    assert result.lag_s >= result.duration_s / 10 > 0
    assert services.ledger.waiting_ids() == set()
    assert {(batch["migrated"], batch["quarantined"]) for batch in database["batches"].find()} == {(10, 0)}
    reconciliation = services.reconcile()
    assert (reconciliation.ok, reconciliation.rows, reconciliation.migrated) == (True, 100, 100)


def test_again_does_nothing(services: Services, sql: sa.Engine) -> None:
    """A closed or unknown batch is passed over, however often it is asked for; no row is touched."""
    batch_id = fill(services, range(1, 6))
    services.migrate()
    before = services.relational_store.sample(10)
    result = services.migrate([batch_id, batch_id, "20200101T000000000-00000000"])
    assert (result.batches, result.migrated) == (0, 0)
    assert services.relational_store.sample(10) == before


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("owner", "step"),
    [
        (Ledger, "start"),
        (RawStore, "posts_to_migrate"),
        (RelationalStore, "write"),
        (RawStore, "quarantine_posts"),
        (RawStore, "mark_migrated"),
        (Ledger, "close"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_crash_at_each_step(
    services: Services, monkeypatch: pytest.MonkeyPatch, owner: type, step: str, after: bool
) -> None:
    """A crash right before or after any step loses nothing, doubles nothing, and never puts the flag before the row."""
    fill(services, range(1, 8))
    with crash(monkeypatch, owner, step, after=after):
        services.migrate()
    assert_flags_have_rows(services)
    services.migrate()
    assert_flags_have_rows(services)
    counts = services.raw_store.counts()
    assert (counts.migrated, services.relational_store.count()) == (7, 7)
    assert services.ledger.waiting_ids() == set()


def test_crash_between_transactions(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash in the middle of a batch of several transactions repeats to the same rows."""
    monkeypatch.setattr("pipeline_poc.relational_store._ROWS", 3)
    fill(services, range(1, 9))
    write_chunk = RelationalStore._write_chunk
    calls = 0

    def die_on_second(store: RelationalStore, posts: list[StoredRecord], at: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Crash
        write_chunk(store, posts, at)

    with monkeypatch.context() as patched:
        patched.setattr(RelationalStore, "_write_chunk", die_on_second)
        with pytest.raises(Crash):
            services.migrate()
    assert services.relational_store.count() == 3
    assert services.raw_store.counts().migrated == 0
    assert_flags_have_rows(services)
    services.migrate()
    assert services.raw_store.counts().migrated == 8
    assert_flags_have_rows(services)


@pytest.mark.parametrize(
    ("owner", "step"),
    [(RelationalStore, "write"), (RawStore, "mark_migrated"), (Ledger, "close")],
    ids=["before rows", "between rows and flags", "after flags"],
)
def test_a_change_in_flight(services: Services, monkeypatch: pytest.MonkeyPatch, owner: type, step: str) -> None:
    """A post that changes while its batch is migrated is migrated again, in its newest version."""
    fill(services, range(1, 6), "old")
    original = getattr(owner, step)

    def change_first(*arguments: Any, **named: Any) -> Any:
        monkeypatch.undo()
        fill(services, range(2, 5), "new")
        return original(*arguments, **named)

    monkeypatch.setattr(owner, step, change_first)
    services.migrate([services.ledger.batches("open")[0].id])
    assert services.raw_store.counts().backlog == 3
    assert_flags_have_rows(services)
    services.migrate()
    assert_flags_have_rows(services)
    titles = {row["externalId"]: row["title"] for row in services.relational_store.sample(10)}
    assert titles == {1: "old", 2: "new", 3: "new", 4: "new", 5: "old"}


@pytest.mark.parametrize("bad", [{1}, {4}, {7}, {1, 7}, set(range(1, 8))], ids=str)
def test_bad_posts_are_quarantined(services: Services, database: Documents, bad: set[int]) -> None:
    """Posts that the relational store refuses are quarantined with reason and time; the others are migrated."""
    batch_id = fill(services, range(1, 8))
    database["posts"].update_many({"externalId": {"$in": sorted(bad)}}, {"$set": {"title": None}})
    result = services.migrate()
    assert (result.migrated, result.quarantined) == (7 - len(bad), len(bad))
    for post in database["posts"].find():
        if post["externalId"] in bad:
            assert post["migrated"] is False
            assert post["quarantine"]["code"] in ("relational_1048", "relational_sqlite_constraint_notnull")
            assert "refuses it" in post["quarantine"]["message"]
            assert post["quarantine"]["at"] <= utc_now()
        else:
            assert post["migrated"] is True
            assert "quarantine" not in post
    closed = database["batches"].find_one({"_id": batch_id})
    assert closed is not None
    assert (closed["state"], closed["migrated"], closed["quarantined"]) == ("closed", 7 - len(bad), len(bad))


def test_two_workers_on_one_batch(services: Services) -> None:
    """Two executions of the same batch at once end as one would."""
    batch_id = fill(services, range(1, 101))
    results: list[MigrationResult] = []
    errors: list[Exception] = []

    def run(name: str) -> None:
        try:
            results.append(
                migration.migrate(
                    [batch_id],
                    services.raw_store,
                    services.ledger,
                    services.relational_store,
                    worker=name,
                    heartbeat_interval_s=1,
                )
            )
        except ServiceUnavailable as error:
            errors.append(error)  # A deadlock, which the job would retry.

    threads = [threading.Thread(target=run, args=(str(number),)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    services.migrate()
    assert sum(result.migrated for result in results) == 100 or errors
    assert services.raw_store.counts().migrated == 100
    assert_flags_have_rows(services)


PAUSED_WORKER = """
import sys
from pipeline_poc.raw_store import RawStore
from pipeline_poc.services import Services
from pipeline_poc.settings import load_settings

services = Services(load_settings(env_file=None))
read = RawStore.posts_to_migrate

def read_and_pause(store, batch_id):
    posts = read(store, batch_id)
    print("read", flush=True)
    sys.stdin.readline()
    return posts

RawStore.posts_to_migrate = read_and_pause
with services:
    print(services.migrate([sys.argv[1]]).migrated, flush=True)
"""


def test_a_stopped_worker_wakes_late(services: Services, environment: dict[str, str], database: Documents) -> None:
    """A worker that was frozen with old posts in its hands changes nothing when it goes on after others."""
    batch_id = fill(services, range(1, 6), "old")
    with subprocess.Popen(
        [sys.executable, "-c", PAUSED_WORKER, batch_id],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert worker.stdout.readline() == "read\n"
        worker.send_signal(signal.SIGSTOP)
        services.migrate([batch_id])
        fill(services, range(1, 4), "new")
        services.migrate()
        rows = services.relational_store.sample(10)
        documents = list(database["posts"].find().sort("externalId"))
        worker.send_signal(signal.SIGCONT)
        worker.stdin.write("\n")
        worker.stdin.flush()
        assert worker.stdout.readline() == "0\n"
    assert worker.returncode == 0
    assert services.relational_store.sample(10) == rows
    assert list(database["posts"].find().sort("externalId")) == documents
    assert_flags_have_rows(services)


def test_a_late_refusal_does_not_quarantine(services: Services) -> None:
    """A worker that was refused, slept, and was overtaken by one that was not, takes no migrated post back."""
    batch_id = fill(services, range(1, 4))
    services.migrate()
    services.raw_store.quarantine_posts(batch_id, {2: ("relational_1406", "too long")}, utc_now())
    assert services.raw_store.counts().migrated == 3
    assert_flags_have_rows(services)


def test_an_outage_leaves_the_batch_open(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the relational store is away nothing is marked or quarantined, and the heartbeat ends at once."""
    batch_id = fill(services, range(1, 4))

    def away(*_: Any) -> dict[int, tuple[str, str]]:
        raise ServiceUnavailable("The relational store", "SQL_URL", "mysql://x", "gone")

    with monkeypatch.context() as patched:
        patched.setattr(RelationalStore, "write", away)
        with pytest.raises(ServiceUnavailable):
            services.migrate()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("heartbeat")]
    batch = services.ledger.get(batch_id)
    assert batch is not None
    assert (batch.state, batch.attempts) == ("open", 1)
    assert services.raw_store.counts().backlog == 3
    assert services.migrate().attempts == 2


def test_heartbeats_while_writing(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that takes long shows signs of life all the while, though one of them fails."""
    batch_id = fill(services, range(1, 4))
    seen: list[datetime] = []
    write = RelationalStore.write
    heartbeat = Ledger.heartbeat
    beats = 0

    def flaky(ledger: Ledger, *arguments: Any) -> None:
        nonlocal beats
        beats += 1
        if beats == 1:
            raise ServiceUnavailable("MongoDB", "MONGO_URL", "mongodb://x", "gone")
        heartbeat(ledger, *arguments)

    def slow(*arguments: Any) -> Any:
        deadline = time.monotonic() + 5
        while len(set(seen)) < 3 and time.monotonic() < deadline:
            batch = services.ledger.get(batch_id)
            assert batch is not None
            assert batch.heartbeat_at is not None
            seen.append(batch.heartbeat_at)
            time.sleep(0.02)
        return write(*arguments)

    monkeypatch.setattr(RelationalStore, "write", slow)
    monkeypatch.setattr(Ledger, "heartbeat", flaky)
    migration.migrate(
        [batch_id],
        services.raw_store,
        services.ledger,
        services.relational_store,
        worker="w",
        heartbeat_interval_s=0.05,
    )
    assert len(set(seen)) == 3
    assert seen == sorted(seen)


@pytest.mark.parametrize("damaged", [{2}, {1, 2, 3}], ids=["one", "all"])
@pytest.mark.parametrize("change", [{"$unset": {"migrated": ""}}, {"$set": {"migrated": "no"}}], ids=str)
def test_a_batch_with_posts_left_behind_stays_open(
    services: Services, database: Documents, damaged: set[int], change: dict[str, Any]
) -> None:
    """A batch is never closed over posts that were neither migrated nor quarantined: the run fails and names them."""
    batch_id = fill(services, range(1, 4))
    database["posts"].update_many({"externalId": {"$in": sorted(damaged)}}, change)
    with pytest.raises(PipelineError, match=rf"{3 - len(damaged)} were marked .* such as {min(damaged)}.* stays open"):
        services.migrate()
    batch = services.ledger.get(batch_id)
    assert batch is not None
    assert batch.state == "open"
    assert services.raw_store.counts().migrated == 3 - len(damaged)
    database["posts"].update_many({"externalId": {"$in": sorted(damaged)}}, {"$set": {"migrated": False}})
    assert services.migrate().migrated == len(damaged)
    assert services.ledger.waiting_ids() == set()
    assert_flags_have_rows(services)


def test_posts_that_join_a_batch_are_noticed(
    services: Services, database: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Posts that somebody else puts into a batch while its rows are written are no silent success."""
    batch_id = fill(services, range(1, 4))
    fill(services, range(4, 5))
    write = RelationalStore.write

    def join_and_write(*arguments: Any) -> Any:
        database["posts"].update_one({"externalId": 4}, {"$set": {"batchId": batch_id}})
        return write(*arguments)

    monkeypatch.setattr(RelationalStore, "write", join_and_write)
    with pytest.raises(TerminalError, match=r"3 posts were written, but 4 marked .* repair"):
        services.migrate([batch_id])
    monkeypatch.undo()
    services.migrate()
    assert services.reconcile().faults["missing"] == [4]
    services.repair()
    services.adopt()
    assert services.migrate().migrated == 1
    assert_flags_have_rows(services)


def test_a_consumer_that_does_not_write(services: Services) -> None:
    """A batch that was handed out but not written is not marked: it stays in the backlog."""
    fill(services, range(1, 4))
    batches = migration.pending(
        migration.open_batches(services.ledger),
        services.raw_store,
        services.ledger,
        MigrationResult(),
        worker="w",
        heartbeat_interval_s=1,
    )
    next(batches)
    with pytest.raises(PipelineError, match="was not written"):
        next(batches)
    assert services.raw_store.counts().backlog == 3


def test_batches_that_open_meanwhile(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """Migrating the whole backlog takes in what joins it meanwhile, and ends though a batch stays open."""
    fill(services, range(1, 4))
    write = migration.write
    stayed = fill(services, range(7, 9))

    def write_and_grow(*arguments: Any) -> None:
        monkeypatch.undo()
        fill(services, range(4, 6))
        write(*arguments)

    monkeypatch.setattr(migration, "write", write_and_grow)
    assert services.migrate().migrated == 7
    assert services.ledger.get(stayed) is not None


def test_a_result_says_its_numbers() -> None:
    """Numbers of several batches add up; of attempts and lag the worst counts; none divides by zero."""
    total = MigrationResult()
    assert total.summary()["records_per_s"] == 0.0
    total.add(MigrationResult(batches=1, migrated=10, quarantined=1, attempts=3, lag_s=1.0, duration_s=1.0))
    total.add(MigrationResult(batches=1, migrated=20, attempts=1, lag_s=5.0, duration_s=2.0))
    assert total.summary() == {
        "migrated": 30,
        "quarantined": 1,
        "batches": 2,
        "attempts": 3,
        "lag_s": 5.0,
        "duration_s": 3.0,
        "records_per_s": 10.0,
    }
