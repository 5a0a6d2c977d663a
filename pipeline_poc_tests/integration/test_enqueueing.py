"""Ticks: the queue is brought in line with the ledger, whatever was lost, stuck or done twice."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import bson
import pytest
import redis
import sqlalchemy as sa
from pymongo.database import Database
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from pipeline_poc import clock, enqueueing
from pipeline_poc.chaos.servers import Mongo, Redis
from pipeline_poc.clock import utc_now
from pipeline_poc.control import Mode
from pipeline_poc.enqueueing import TickPolicy, TickResult
from pipeline_poc.errors import ServiceUnavailable
from pipeline_poc.selection import Selection
from pipeline_poc.services import Services
from pipeline_poc.settings import Settings
from pipeline_poc_tests.posts import hashed

Documents = Database[dict[str, Any]]
POLICY = TickPolicy(window=5, batch_size=10, heartbeat_timeout_s=30, filling_timeout_s=120)


def tick(services: Services, policy: TickPolicy = POLICY, *, is_up: bool = True, mode: Mode = "running") -> TickResult:
    """Tick once."""
    return enqueueing.tick(services.raw_store, services.ledger, services.queue, lambda: is_up, policy, mode=mode)


def fill(services: Services, *sizes: int) -> list[str]:
    """Store batches of so many posts; returns their ids."""
    batch_ids = []
    for size in sizes:
        first = services.raw_store.counts().stored + 1
        batch_id = services.ledger.create(size, utc_now())
        services.raw_store.store([hashed(i) for i in range(first, first + size)], {}, batch_id, utc_now())
        services.ledger.seal(batch_id, size)
        batch_ids.append(batch_id)
    return batch_ids


def migrate_all(services: Services) -> None:
    """Execute what is on the queue, tick after tick, as workers would."""
    while True:
        result = tick(services)
        queued = services.queue.rq.get_job_ids()
        if not queued:
            assert result.enqueued == 0
            return
        for job_id in queued:
            services.migrate([job_id])
            Job.fetch(job_id, connection=services.queue.rq.connection, serializer=JSONSerializer).delete()


def age(database: Documents, batch_id: str, seconds: float, *fields: str) -> None:
    """Let times in the ledger have been so much earlier."""
    batch = database["batches"].find_one({"_id": batch_id})
    assert batch is not None
    earlier = {field: batch[field] - timedelta(seconds=seconds) for field in fields}
    database["batches"].update_one({"_id": batch_id}, {"$set": earlier})


def test_a_window_at_a_time(services: Services) -> None:
    """A tick enqueues the oldest batches up to its window, and more only as jobs end."""
    batches = fill(services, *[2] * 8)
    result = tick(services)
    assert (result.enqueued, result.posts, result.outstanding) == (5, 10, 5)
    assert services.queue.rq.get_job_ids() == batches[:5]
    result = tick(services)
    assert (result.enqueued, result.outstanding) == (0, 5)
    services.queue.rq.connection.lpop(services.queue.rq.key)
    services.migrate(batches[:1])
    assert tick(services).enqueued == 1
    assert services.queue.rq.get_job_ids() == batches[1:6]
    migrate_all(services)
    assert services.raw_store.counts().migrated == 16


def test_a_tick_again_changes_nothing(services: Services, redis_client: redis.Redis) -> None:
    """A tick that is replayed leaves queue and ledger as they are."""
    fill(services, 2, 2)
    tick(services)
    before = (services.queue.snapshot(), services.ledger.batches("open"), sorted(redis_client.keys()))
    for _ in range(3):
        result = tick(services)
        assert result == TickResult(outstanding=2)
    assert (services.queue.snapshot(), services.ledger.batches("open"), sorted(redis_client.keys())) == before


def test_two_ticks_at_once(services: Services) -> None:
    """Of ticks at the same time at least one works, and every batch is enqueued once."""
    batches = fill(services, *[1] * 5)
    results: list[TickResult] = []
    threads = [threading.Thread(target=lambda: results.append(tick(services))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(result.enqueued for result in results) == 5
    assert sorted(services.queue.rq.get_job_ids()) == sorted(batches)
    assert all(result == TickResult(busy=True) for result in results if result.busy)


def test_a_tick_that_died_does_not_block_the_next(services: Services, redis_client: redis.Redis) -> None:
    """The lock of a tick whose process was killed expires by itself."""
    lock = services.queue.tick_lock()
    assert lock.__enter__()
    assert tick(services).busy
    ttl = redis_client.ttl(f"{services.queue.rq.key}:tick")
    assert 0 < ttl <= 10
    redis_client.delete(f"{services.queue.rq.key}:tick")
    assert not tick(services).busy


def test_flushall(services: Services, redis_client: redis.Redis) -> None:
    """After Redis was wiped, the next tick rebuilds the queue from the ledger, and nothing is lost."""
    batches = fill(services, 3, 3, 3)
    tick(services)
    redis_client.flushall()
    assert tick(services).enqueued == 3
    assert services.queue.rq.get_job_ids() == batches
    migrate_all(services)
    assert services.reconcile().ok
    assert services.raw_store.counts().migrated == 9


def test_a_batch_in_progress_elsewhere_is_not_enqueued(services: Services, database: Documents) -> None:
    """A batch that a run or a worker past the queue is executing is left to it while it shows signs of life."""
    [batch_id] = fill(services, 2)
    services.ledger.start(batch_id, "asset run", utc_now())
    assert tick(services).enqueued == 0
    age(database, batch_id, 31, "startedAt", "heartbeatAt")
    assert tick(services).enqueued == 1


@pytest.mark.parametrize("killed", ["taken", "started"])
def test_a_job_of_a_dead_worker_is_freed(
    services: Services, database: Documents, redis_client: redis.Redis, killed: str
) -> None:
    """A job whose worker died, before or after it began, is put on the queue again after the heartbeat's timeout."""
    [batch_id] = fill(services, 2)
    tick(services)
    queue = services.queue.rq
    assert redis_client.lmove(queue.key, queue.intermediate_queue_key, "LEFT", "RIGHT")
    if killed == "started":
        redis_client.lrem(queue.intermediate_queue_key, 1, batch_id)
        redis_client.zadd(queue.started_job_registry.key, {f"{batch_id}:execution": 2e9})
        services.ledger.start(batch_id, "worker", utc_now())
    assert getattr(services.queue.snapshot(), killed) == {batch_id}
    assert tick(services) == TickResult(outstanding=1)
    if killed == "started":
        age(database, batch_id, 31, "startedAt", "heartbeatAt")
    else:
        services.queue.suspected_since([], utc_now())
        services.queue.suspected_since([batch_id], utc_now() - timedelta(seconds=31))
    result = tick(services)
    assert (result.freed, result.enqueued, result.outstanding) == (1, 0, 1)
    snapshot = services.queue.snapshot()
    assert snapshot.queued == {batch_id}
    assert snapshot.taken | snapshot.failed == frozenset()
    batch = services.ledger.get(batch_id)
    assert batch is not None
    assert (batch.started_at, batch.error) == (None, "its worker gave no sign of life")
    assert tick(services).freed == 0
    migrate_all(services)
    assert services.raw_store.counts().migrated == 2


def test_a_taken_job_whose_hash_is_gone(services: Services, redis_client: redis.Redis) -> None:
    """A taken job of which Redis has evicted the rest is replaced once, and leaves nothing outstanding behind."""
    [batch_id] = fill(services, 2)
    tick(services)
    queue = services.queue.rq
    redis_client.lmove(queue.key, queue.intermediate_queue_key, "LEFT", "RIGHT")
    redis_client.delete(f"rq:job:{batch_id}")
    instant = TickPolicy(window=5, batch_size=10, heartbeat_timeout_s=-1, filling_timeout_s=120)
    assert tick(services, instant).freed == 1
    assert services.queue.snapshot().taken == frozenset()
    assert services.queue.snapshot().queued == {batch_id}


def test_a_killed_worker(services: Services, environment: dict[str, str], database: Documents) -> None:
    """A worker process that is killed in the middle of a job loses nothing: another one migrates the batch."""
    [batch_id] = fill(services, 5)
    services.tick()
    code = (
        "import time, sys\nfrom pipeline_poc.relational_store import RelationalStore\n"
        "RelationalStore.write = lambda *_: (print('writing', flush=True), time.sleep(60))\n"
        "sys.argv = ['pipeline-poc', 'worker']\nfrom pipeline_poc.cli import main\nmain()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "writing\n"
        worker.send_signal(signal.SIGKILL)
    assert services.queue.snapshot().started == {batch_id}
    assert tick(services).freed == 0
    age(database, batch_id, 31, "startedAt", "heartbeatAt")
    assert tick(services).freed == 1
    migrate_all(services)
    assert services.raw_store.counts().migrated == 5
    assert services.reconcile().ok


def fail_job(services: Services, batch_id: str) -> None:
    """Let the attempts of a job run out, as RQ notes it."""
    queue = services.queue.rq
    queue.connection.lrem(queue.key, 1, batch_id)
    job = Job.fetch(batch_id, connection=queue.connection, serializer=JSONSerializer)
    job.set_status(JobStatus.FAILED)
    queue.failed_job_registry.add(job, ttl=1000, exc_string="")


def test_dead_letters_of_an_outage_come_back(services: Services) -> None:
    """Jobs whose attempts ran out in an outage wait for the store, and come back by themselves when it answers."""
    batches = fill(services, 2, 2)
    tick(services)
    for batch_id in batches:
        fail_job(services, batch_id)
    for _ in range(2):
        result = tick(services, is_up=False)
        assert (result.requeued, result.waiting_for_store, result.outstanding) == (0, 2, 0)
    assert "left 2 batches to wait for the relational store" in result.sentence()
    result = tick(services)
    assert (result.requeued, result.waiting_for_store, result.outstanding) == (2, 0, 2)
    assert services.queue.snapshot().failed == frozenset()
    migrate_all(services)
    assert services.raw_store.counts().migrated == 4


def test_dead_letters_of_an_outage_of_mongodb_come_back(services: Services, mongo: Mongo) -> None:
    """Jobs whose attempts ran out while MongoDB was away come back with the first tick that can read it."""
    batches = fill(services, 2, 2)
    tick(services)
    for batch_id in batches:
        fail_job(services, batch_id)
    mongo.kill()
    with pytest.raises(ServiceUnavailable, match="MONGO_URL"):
        tick(services)
    mongo.start()
    assert tick(services).requeued == 2
    migrate_all(services)
    assert services.raw_store.counts().migrated == 4
    assert services.reconcile().ok


def test_dead_letters_that_wait_for_a_person_stay(services: Services) -> None:
    """A batch that was buried is not enqueued, and leaves its place in the window to others."""
    batches = fill(services, *[1] * 6)
    tick(services)
    fail_job(services, batches[0])
    services.ledger.bury(batches[0], utc_now(), "bad")
    result = tick(services)
    assert (result.enqueued, result.requeued) == (1, 0)
    assert services.queue.snapshot().queued == set(batches[1:])


@pytest.mark.parametrize("state", ["finished", "deferred", "canceled"])
def test_a_job_that_nobody_will_execute_is_not_in_the_way(services: Services, state: str) -> None:
    """A batch that is open though its job finished, was put off or canceled past the pipeline is enqueued anew."""
    [batch_id] = fill(services, 1)
    tick(services)
    queue = services.queue.rq
    queue.connection.lpop(queue.key)
    job = Job.fetch(batch_id, connection=queue.connection, serializer=JSONSerializer)
    job.set_status(JobStatus(state))
    registry = getattr(queue, f"{state}_job_registry")
    registry.add(job, ttl=1000)
    assert tick(services).enqueued == 1
    assert queue.get_job_ids() == [batch_id]
    assert registry.get_job_ids() == []
    migrate_all(services)
    assert services.raw_store.counts().migrated == 1


@pytest.mark.parametrize("how", ["materialization", "command line"])
def test_a_run_that_died_past_the_queue(services: Services, database: Documents, how: str) -> None:
    """A batch whose run died, before or after it wrote rows, goes to the workers after the heartbeat's timeout."""
    [batch_id] = fill(services, 3)
    batch = services.ledger.start(batch_id, how, utc_now())
    assert batch is not None
    services.relational_store.write(services.raw_store.posts_to_migrate(batch_id)[:2], utc_now())
    assert tick(services) == TickResult()
    age(database, batch_id, 31, "startedAt", "heartbeatAt")
    assert (tick(services).enqueued, services.queue.rq.get_job_ids()) == (1, [batch_id])
    batch = services.ledger.get(batch_id)
    assert batch is not None
    assert (batch.started_at, batch.error) == (None, "its run gave no sign of life")
    migrate_all(services)
    assert services.reconcile().ok
    assert services.raw_store.counts().migrated == 3


@pytest.fixture
def set_clock() -> Iterator[Callable[[float], None]]:
    """Sets the clock of this process so many hours before or behind the right time."""
    yield lambda hours: clock.shift(timedelta(hours=hours))
    clock.shift(timedelta(0))


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_jumps_leaves_no_batch_stuck(
    services: Services, redis_client: redis.Redis, set_clock: Callable[[float], None], hours: float
) -> None:
    """A batch of a dead worker, a run or an ingestion is freed within the time-outs, whichever way the clock jumped."""
    on_queue, past_it = fill(services, 2, 2)
    filling = services.ledger.create(2, utc_now())
    services.raw_store.store([hashed(i) for i in (11, 12)], {}, filling, utc_now())
    services.ledger.start(past_it, "run", utc_now())
    tick(services)
    queue = services.queue.rq
    redis_client.lrem(queue.key, 1, on_queue)
    redis_client.zadd(queue.started_job_registry.key, {f"{on_queue}:execution": 2e9})
    services.ledger.start(on_queue, "worker", utc_now())
    assert tick(services) == TickResult(outstanding=1)

    set_clock(hours)
    freed = [tick(services)]
    set_clock(hours + 31 / 3600)
    freed.append(tick(services))
    assert sum(result.freed for result in freed) == 1
    assert {on_queue, past_it} <= services.queue.snapshot().queued
    assert sum(result.adopted for result in freed) == 2
    migrate_all(services)
    assert services.raw_store.counts().migrated == 6
    assert services.reconcile().ok


def test_a_live_worker_keeps_its_batch_when_the_clock_is_set_back(
    services: Services, redis_client: redis.Redis, set_clock: Callable[[float], None]
) -> None:
    """A heartbeat from before the clock was set back frees nothing at once: the next one says that all is well."""
    [batch_id] = fill(services, 2)
    tick(services)
    queue = services.queue.rq
    redis_client.lrem(queue.key, 1, batch_id)
    redis_client.zadd(queue.started_job_registry.key, {f"{batch_id}:execution": 2e9})
    services.ledger.start(batch_id, "worker", utc_now())
    set_clock(-1)
    assert tick(services).freed == 0
    services.ledger.heartbeat(batch_id, "worker", utc_now())
    set_clock(-1 + 20 / 3600)
    services.ledger.heartbeat(batch_id, "worker", utc_now())
    set_clock(-1 + 40 / 3600)
    assert tick(services) == TickResult(outstanding=1)


def test_suspects_of_another_time(services: Services, redis_client: redis.Redis) -> None:
    """A job that was suspected before the clock was set back is freed all the same."""
    [batch_id] = fill(services, 2)
    tick(services)
    queue = services.queue.rq
    redis_client.lmove(queue.key, queue.intermediate_queue_key, "LEFT", "RIGHT")
    services.queue.suspected_since([batch_id], utc_now() + timedelta(hours=1))
    assert tick(services).freed == 1
    assert services.queue.snapshot().queued == {batch_id}


def test_a_retry_that_a_wrong_clock_put_off(services: Services) -> None:
    """A retry that is due later than any can be is put on the queue now; others wait for their time."""
    soon, late = fill(services, 2, 2)
    tick(services)
    queue = services.queue.rq
    for batch_id, seconds in ((soon, 60), (late, 3600)):
        queue.connection.lrem(queue.key, 1, batch_id)
        job = Job.fetch(batch_id, connection=queue.connection, serializer=JSONSerializer)
        job.set_status(JobStatus.SCHEDULED)
        queue.scheduled_job_registry.schedule(job, utc_now() + timedelta(seconds=seconds))
    result = tick(services)
    assert (result.freed, result.outstanding) == (1, 2)
    snapshot = services.queue.snapshot()
    assert snapshot.queued == {late}
    assert snapshot.scheduled == {soon}


@pytest.mark.parametrize("registry", ["started", "taken"])
def test_jobs_of_closed_batches_take_no_place(services: Services, redis_client: redis.Redis, registry: str) -> None:
    """Jobs whose workers died once their batches were closed leave the whole window to the others."""
    done = fill(services, *[1] * POLICY.window)
    services.migrate()
    queue = services.queue.rq
    for batch_id in done:
        if registry == "started":
            redis_client.zadd(queue.started_job_registry.key, {f"{batch_id}:execution": 2e9})
        else:
            redis_client.rpush(queue.intermediate_queue_key, batch_id)
    batches = fill(services, *[1] * 6)
    assert tick(services).enqueued == POLICY.window
    assert services.queue.rq.get_job_ids() == batches[: POLICY.window]
    assert tick(services).enqueued == 0


def test_a_reopened_batch_does_not_widen_the_window(services: Services) -> None:
    """Jobs of newer batches count: an old batch that comes back waits until one of them ends."""
    old, *newer = fill(services, *[1] * 6)
    services.ledger.bury(old, utc_now(), "bad")
    assert tick(services).enqueued == POLICY.window
    services.ledger.reopen(old)
    assert tick(services).enqueued == 0
    services.migrate(newer[:1])
    services.queue.rq.connection.lpop(services.queue.rq.key)
    assert tick(services).enqueued == 1
    assert services.queue.snapshot().queued == {old, *newer[1:]}


LEGACY: list[dict[str, Any]] = [
    {"externalId": 1, "userId": 1, "title": "t", "body": "b", "migrated": False, "migratedAt": None},
    {"externalId": 2, "userId": 1, "title": "no flag", "body": "b"},
    {"externalId": bson.Int64(3), "userId": bson.Int64(1), "title": "long", "body": "b", "version": "text"},
    {"externalId": 4, "userId": 1, "title": "t", "body": "b", "ingestedAt": "yesterday", "changedAt": 7},
    {"externalId": 5, "userId": 1, "title": "t", "body": "b", "id": 77},
    {"externalId": 6, "userId": 1, "title": "t", "body": "b", "version": bson.Int64(2**62)},
    {"externalId": 7, "userId": 1, "title": "t", "body": "b", "quarantine": None},
]
INVALID: list[tuple[dict[str, Any], str]] = [
    ({"externalId": 101, "userId": 1, "title": None, "body": "b"}, "null_field"),
    ({"externalId": 102, "userId": 1, "body": "b"}, "missing_field"),
    ({"externalId": 103, "userId": "1", "title": "t", "body": "b"}, "wrong_type"),
    ({"externalId": 104, "userId": 1, "title": "t", "body": "x" * 70_000}, "too_long"),
    ({"externalId": -105, "userId": 1, "title": "t", "body": "b"}, "out_of_range"),
    ({"externalId": 106, "userId": bson.ObjectId(), "title": utc_now(), "body": b"b"}, "wrong_type"),
]


def test_adoption_of_foreign_documents(services: Services, database: Documents) -> None:
    """Documents that others wrote are migrated if they are posts, else quarantined with a code; none is lost."""
    database["posts"].insert_many(LEGACY + [document for document, _ in INVALID])
    assert tick(services).adopted == len(LEGACY) + len(INVALID)
    migrate_all(services)
    found = {post["externalId"]: post for post in database["posts"].find()}
    assert {post["externalId"] for post in found.values() if post.get("migrated")} == {1, 2, 3, 4, 5, 6, 7}
    assert {i: found[i]["quarantine"]["code"] for i in found if i < 0 or i > 100} == {
        document["externalId"]: code for document, code in INVALID
    }
    result = services.reconcile()
    assert (result.ok, result.rows) == (True, 7)
    assert result.stored == result.migrated + result.backlog + result.quarantined == len(LEGACY) + len(INVALID)
    assert tick(services).adopted == 0


@pytest.mark.parametrize("identity", [{}, {"externalId": None}, {"externalId": "a7"}, {"externalId": 7.5}], ids=str)
def test_a_foreign_document_without_a_usable_id(
    services: Services, database: Documents, identity: dict[str, Any]
) -> None:
    """A document that has no id of a post is quarantined, stops no other, and reconciliation goes on past it."""
    fill(services, 3)
    database["posts"].insert_one(identity | {"id": 9, "userId": 1, "title": "t", "body": "b"})
    tick(services)
    migrate_all(services)
    counts = services.raw_store.counts()
    assert (counts.migrated, counts.backlog, counts.quarantined) == (3, 0, 1)
    result = services.reconcile()
    assert (result.ok, result.migrated, result.rows) == (True, 3, 3)


def test_adoption_is_bounded(services: Services, database: Documents) -> None:
    """A tick adopts a few batches of foreign documents at most, and goes on with the next tick."""
    database["posts"].insert_many(
        [{"externalId": i, "userId": 1, "title": "t", "body": "b", "migrated": False} for i in range(1, 102)]
    )
    adopted = [tick(services).adopted for _ in range(4)]
    assert adopted == [40, 40, 21, 0]
    migrate_all(services)
    assert services.raw_store.counts().migrated == 101
    assert services.reconcile().ok


def test_a_migrated_document_of_the_replaced_service_is_left_alone(services: Services, database: Documents) -> None:
    """What the replaced service has migrated is not migrated again."""
    document = {"externalId": 1, "userId": 1, "title": "t", "body": "b", "migrated": True, "migratedAt": utc_now()}
    database["posts"].insert_one(document)
    assert tick(services) == TickResult()
    assert database["posts"].find_one({"externalId": 1}, {"_id": False}) == {
        name: value for name, value in document.items() if name != "_id"
    }


def test_an_outage_fails_the_tick(services: Services, mongo: Mongo, redis_server: Redis, settings: Settings) -> None:
    """A tick that can't reach MongoDB or Redis raises, so that nobody takes the outage for idleness."""
    fill(services, 1)
    redis_server.kill()
    with pytest.raises(ServiceUnavailable, match="REDIS_URL"):
        tick(services)
    redis_server.start()
    mongo.kill()
    with pytest.raises(ServiceUnavailable, match="MONGO_URL"):
        tick(services)
    mongo.start()
    assert tick(services).enqueued == 1


def test_the_store_is_asked_only_when_it_matters(services: Services) -> None:
    """A tick without dead letters doesn't touch the relational store."""
    fill(services, 1)
    asked: list[bool] = []

    def is_up() -> bool:
        asked.append(True)
        return True

    enqueueing.tick(services.raw_store, services.ledger, services.queue, is_up, POLICY, mode="running")
    assert asked == []


def test_sentences() -> None:
    """A tick says what it did, with true counts, in one line."""
    assert TickResult().sentence() == "nothing to enqueue; 0 jobs outstanding"
    assert TickResult(busy=True).sentence() == "another tick is at work"
    result = TickResult(enqueued=3, posts=450, freed=1, requeued=2, adopted=7, outstanding=6)
    assert result.sentence() == (
        "enqueued 3 batches (450 posts), freed 1 batch of silent workers, "
        "requeued 2 batches after an outage, adopted 7 posts; 6 jobs outstanding"
    )


def test_whether_the_store_is_up(services: Services, sql: sa.Engine) -> None:
    """A store that answers is up; one that raises an error of ours is not."""

    def away() -> None:
        raise ServiceUnavailable("The relational store", "SQL_URL", "mysql://x", "gone")

    assert enqueueing.store_is_up(services.relational_store.ping)
    assert not enqueueing.store_is_up(away)


def test_dead_letters_return_when_a_person_says_so(services: Services) -> None:
    """A dead letter is shown with its cause, is no part of a tick's work, and is migrated once it is requeued."""
    services.ingest()
    dead = services.ledger.batches("open")[0]
    assert services.ledger.bury(dead.id, utc_now(), "ValueError: what nobody foresaw")
    (letter,) = services.dead_letters.items().items
    assert (letter.id, letter.posts, letter.message) == (dead.id, dead.size, "ValueError: what nobody foresaw")
    services.tick()
    assert dead.id not in services.queue.snapshot().queued
    assert services.requeue_dead_letters(Selection(all=True)).requeued == 1
    assert services.requeue_dead_letters(Selection(all=True)).requeued == 0
    services.tick()
    assert dead.id in services.queue.snapshot().queued
    services.migrate()
    assert services.reconcile().backlog == 0


@pytest.mark.parametrize(
    "damage", [{"data": b"\x00no zlib"}, {"data": b"x", "created_at": b"yesterday"}, {"status": b"lost"}]
)
def test_damaged_jobs_do_not_stop_ticks(
    services: Services, redis_client: redis.Redis, damage: dict[str, bytes]
) -> None:
    """A job that RQ can't read any more, and entries that are no text, are replaced or passed over by the next tick."""
    (batch_id,) = fill(services, 3)
    tick(services)
    redis_client.delete(services.queue.rq.key, f"rq:job:{batch_id}")
    redis_client.hset(f"rq:job:{batch_id}", mapping=damage)  # type: ignore[arg-type]
    redis_client.zadd(services.queue.rq.failed_job_registry.key, {b"\xff\xfe": 2e9})
    result = tick(services)
    assert (result.enqueued, result.posts) == (1, 3)
    assert services.queue.snapshot().queued == {batch_id}
    assert services.migrate([batch_id]).migrated == 3
