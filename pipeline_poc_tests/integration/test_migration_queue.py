"""The migration queue: JSON only, seen in one instant, disposable."""

import json
import pickle
import zlib
from datetime import UTC, datetime, timedelta

import pytest
import redis
from rq.scheduler import RQScheduler

from pipeline_poc.chaos.servers import Redis
from pipeline_poc.errors import ServiceUnavailable
from pipeline_poc.migration_queue import JOB_FUNCTION, MigrationQueue, QueueCounts

AT = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)


def payload(raw: bytes) -> bytes:
    """Return the payload of a job, which RQ may compress."""
    try:
        return zlib.decompress(raw)
    except zlib.error:
        return raw


def test_json_only(queue: MigrationQueue, redis_client: redis.Redis) -> None:
    """The bytes in Redis are JSON that names the batch, and no pickle."""
    queue.enqueue(["b1"])
    data = payload(redis_client.hget("rq:job:b1", "data"))  # type: ignore[arg-type]
    assert json.loads(data) == [JOB_FUNCTION, None, ["b1"], {}]
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(data)


def test_first_in_first_out(queue: MigrationQueue) -> None:
    """Jobs wait in the order in which they were enqueued; no batches, no jobs."""
    queue.enqueue(["b2", "b1"])
    queue.enqueue([])
    queue.enqueue(["b0"])
    assert queue.rq.get_job_ids() == ["b2", "b1", "b0"]


def test_replace(queue: MigrationQueue) -> None:
    """A job that is replaced is on the queue once, at its end, with fresh attempts."""
    queue.enqueue(["b1", "b2"])
    job = queue.rq.fetch_job("b1")
    assert job is not None
    job.number_of_retries = 5
    job.save()
    queue.replace(["b1"])
    assert queue.rq.get_job_ids() == ["b2", "b1"]
    fresh = queue.rq.fetch_job("b1")
    assert fresh is not None
    assert not fresh.number_of_retries
    queue.replace([])
    queue.replace(["b3"])
    assert queue.rq.get_job_ids() == ["b2", "b1", "b3"]


def test_snapshot(queue: MigrationQueue, redis_client: redis.Redis) -> None:
    """A snapshot says where each job is; a job that is being executed is not taken as well."""
    queue.enqueue(["queued", "taken", "started", "scheduled", "failed"])
    rq = queue.rq
    for job_id in ("taken", "started", "scheduled", "failed"):
        redis_client.lrem(rq.key, 1, job_id)
    redis_client.rpush(rq.intermediate_queue_key, "taken", "started")
    redis_client.zadd(rq.started_job_registry.key, {"started:execution": 2e9})
    redis_client.zadd(rq.scheduled_job_registry.key, {"scheduled": 2e9})
    redis_client.zadd(rq.failed_job_registry.key, {"failed": 2e9})
    snapshot = queue.snapshot()
    for place in ("queued", "taken", "started", "scheduled", "failed"):
        assert getattr(snapshot, place) == {place}
    assert snapshot.outstanding == {"queued", "taken", "started", "scheduled"}
    assert queue.counts() == QueueCounts(queued=1, started=1, scheduled=1, finished=0, failed=1, deferred=0, workers=0)


def test_a_killed_promotion_gives_way_within_10_s(
    queue: MigrationQueue, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock that a process holds while it promotes retries ends by itself, long before a backoff's cap."""
    ttls_ms: list[int] = []
    key = RQScheduler.get_locking_key(queue.rq.name)
    monkeypatch.setattr(RQScheduler, "enqueue_scheduled_jobs", lambda _: ttls_ms.append(redis_client.pttl(key)))
    queue.promote_due()
    assert len(ttls_ms) == 1
    assert 0 < ttls_ms[0] <= 10_000
    assert not redis_client.exists(key)


def test_due_jobs_are_promoted(queue: MigrationQueue, redis_client: redis.Redis) -> None:
    """Scheduled jobs whose time has come are queued, others not; what is promoted twice is queued once."""
    queue.enqueue(["due", "later", "gone"])
    for job_id, due in (("due", 0), ("later", 2e9), ("gone", 0)):
        redis_client.lrem(queue.rq.key, 1, job_id)
        redis_client.zadd(queue.rq.scheduled_job_registry.key, {job_id: due})
    redis_client.delete("rq:job:gone")
    for _ in range(2):
        queue.promote_due()
        assert queue.rq.get_job_ids() == ["due"]
        assert queue.snapshot().scheduled == {"later"}


def test_suspects(queue: MigrationQueue, redis_client: redis.Redis) -> None:
    """Since when a job looks lost is remembered while it does, and forgotten once it doesn't."""
    assert queue.suspected_since(["a", "b"], AT) == {"a": AT, "b": AT}
    later = AT + timedelta(seconds=30)
    assert queue.suspected_since(["b", "c"], later) == {"b": AT, "c": later}
    assert queue.suspected_since(["a"], later) == {"a": later}
    assert queue.suspected_since([], later) == {}
    assert redis_client.keys("*suspects*") == []


def test_the_tick_lock(queue: MigrationQueue, redis_client: redis.Redis) -> None:
    """One tick has the lock at a time; a lock that was lost meanwhile hinders nobody, nor is another's released."""
    with queue.tick_lock() as first:
        with queue.tick_lock() as second:
            assert (first, second) == (True, False)
        redis_client.flushall()
        with queue.tick_lock() as third:
            assert third
    with queue.tick_lock() as fourth:
        assert fourth
    with pytest.raises(ZeroDivisionError), queue.tick_lock():
        raise ZeroDivisionError
    with queue.tick_lock() as fifth:
        assert fifth


def test_flushall(queue: MigrationQueue, redis_client: redis.Redis) -> None:
    """A wiped Redis is an empty queue, not an error."""
    queue.enqueue(["b1"])
    redis_client.flushall()
    assert queue.snapshot().outstanding == frozenset()
    assert queue.counts().queued == 0
    queue.promote_due()
    queue.replace(["b1"])
    assert queue.rq.get_job_ids() == ["b1"]


def test_queues_do_not_mix(queue: MigrationQueue, redis_url: str) -> None:
    """Two queues on one Redis know nothing of each other."""
    other = MigrationQueue(redis_url, "other", timeout_s=2, job_timeout_s=10)
    queue.enqueue(["b1"])
    assert other.snapshot().outstanding == frozenset()
    with queue.tick_lock(), other.tick_lock() as mine:
        assert mine
    other.close()


def test_an_outage(queue: MigrationQueue, redis_server: Redis) -> None:
    """Every use says ServiceUnavailable with REDIS_URL while Redis is away, and works once it is back."""
    redis_server.kill()
    for use in (
        queue.ping,
        lambda: queue.enqueue(["b1"]),
        lambda: queue.replace(["b1"]),
        queue.snapshot,
        queue.counts,
        queue.promote_due,
        lambda: queue.suspected_since(["b1"], AT),
        lambda: queue.tick_lock().__enter__(),
    ):
        with pytest.raises(ServiceUnavailable, match=r"Redis at redis://.* \(REDIS_URL\) is not available"):
            use()
    redis_server.start()
    queue.ping()


def test_a_restart_is_no_outage(queue: MigrationQueue, redis_server: Redis) -> None:
    """A connection that broke because Redis was restarted is made anew without an error."""
    queue.ping()
    redis_server.kill()
    redis_server.start()
    queue.ping()
