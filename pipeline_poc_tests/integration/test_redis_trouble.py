"""Redis in trouble: a worker waits, goes on by itself, and does no batch twice to harm."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import redis
from rq.command import send_shutdown_command

from pipeline_poc.chaos.servers import Redis
from pipeline_poc.services import Services
from pipeline_poc.worker import run_worker
from pipeline_poc_tests.acceptance.programs import Program, until
from pipeline_poc_tests.integration.workers import Start

pytestmark = pytest.mark.usefixtures("kept_signals")

AWAY_S = 4.0
"""An outage: longer than all that the driver tries by itself."""


@pytest.fixture(scope="module")
def _durable_redis() -> Iterator[Redis]:
    with Redis(appendonly=True) as server:
        yield server


@pytest.fixture
def durable_redis(_durable_redis: Redis) -> Redis:
    """A Redis that comes back with its data."""
    _durable_redis.start()
    with redis.Redis.from_url(_durable_redis.url) as client:
        client.flushdb()
    return _durable_redis


@pytest.fixture
def worker(start: Start) -> Program:
    """A worker that is up; pauses in the order of what the tests wait for."""
    program = start(retry_base_s=0.2, retry_cap_s=1)
    program.wait_for("worker started")
    return program


def all_closed(services: Services) -> Callable[[], bool]:
    """Return the condition that nothing waits, for which it ticks."""

    def look() -> bool:
        services.tick()
        return not services.ledger.batches("open")

    return look


def went_on(worker: Program, services: Services) -> None:
    """Check that the worker lives, did everything, and nothing is wrong."""
    until(all_closed(services), "all is migrated")
    assert worker.is_running, worker.said
    assert "Traceback" not in worker.said, worker.said
    assert services.reconcile().ok
    assert not services.ledger.batches("dead")
    until(lambda: len(services.queue.workers()) == 1, "the worker is listed")


def test_restarted_without_its_data(
    worker: Program, services: Services, redis_server: Redis, redis_client: redis.Redis
) -> None:
    """A Redis that is away for a while, and comes back empty, is waited for; so it goes with one that is wiped."""
    redis_server.stop()
    worker.wait_for("redis in trouble")
    time.sleep(AWAY_S)
    redis_server.start()
    services.ingest()
    went_on(worker, services)
    worker.wait_for("redis is back")


class TestDurable:
    """With a Redis that keeps its data."""

    @pytest.fixture
    def redis_url(self, durable_redis: Redis) -> str:
        """Where it is."""
        return durable_redis.url

    def test_restarted_in_the_middle_of_a_batch(self, start: Start, services: Services, durable_redis: Redis) -> None:
        """A job whose batch is closed while Redis is away is acknowledged when that is back, not done again."""
        services.ingest()
        worker = start(fail_points="migration.closed=stop")
        worker.wait_for("worker started")
        services.tick()
        worker.wait_for("fail point reached")
        durable_redis.stop()
        psutil.Process(worker.pid).resume()
        worker.wait_for("redis in trouble")
        time.sleep(AWAY_S)
        durable_redis.start()
        went_on(worker, services)
        until(lambda: services.queue.counts().started == 0, "no job counts as running")
        assert services.queue.counts().failed == 0
        assert {batch.attempts for batch in services.ledger.batches("closed")} == {1}


def test_a_burst_does_not_wait(start: Start, services: Services, redis_server: Redis) -> None:
    """A worker that is to stop when the queue is empty stops when it can't be asked, too; its batch is closed."""
    services.ingest()
    services.tick()
    worker = start("--burst", fail_points="migration.closed=stop")
    worker.wait_for("fail point reached")
    redis_server.stop()
    psutil.Process(worker.pid).resume()
    assert worker.wait() == 0
    assert "Traceback" not in worker.said, worker.said
    assert len(services.ledger.batches("closed")) == 1


def fill_up(client: redis.Redis) -> None:
    """Let Redis have more than it may."""
    client.config_set("maxmemory-policy", "noeviction")
    client.mset({f"fill{i}": "x" * 100_000 for i in range(50)})
    client.config_set("maxmemory", "1mb")


def test_out_of_memory(worker: Program, services: Services, redis_client: redis.Redis) -> None:
    """A Redis that takes no writes since its memory is full is waited for; whatever it has is kept."""
    services.ingest()
    fill_up(redis_client)
    try:
        worker.wait_for("redis in trouble")
        time.sleep(AWAY_S)
        assert worker.is_running, worker.said
    finally:
        redis_client.config_set("maxmemory", 0)
    went_on(worker, services)


def test_out_of_memory_in_the_middle_of_a_batch(start: Start, services: Services, redis_client: redis.Redis) -> None:
    """A job whose batch is closed while Redis is full is acknowledged when there is room again."""
    services.ingest()
    worker = start(fail_points="migration.closed=stop")
    worker.wait_for("worker started")
    services.tick()
    worker.wait_for("fail point reached")
    fill_up(redis_client)
    try:
        psutil.Process(worker.pid).resume()
        worker.wait_for("redis in trouble")
        time.sleep(AWAY_S)
        assert len(services.ledger.batches("closed")) == 1
    finally:
        redis_client.config_set("maxmemory", 0)
    went_on(worker, services)
    assert services.queue.counts().started == 0
    assert {batch.attempts for batch in services.ledger.batches("closed")} == {1}


def test_read_only(worker: Program, services: Services, redis_client: redis.Redis) -> None:
    """A Redis that became a replica, and refuses writes, is waited for."""
    services.ingest()
    redis_client.replicaof("127.0.0.1", 1)
    try:
        worker.wait_for("redis in trouble")
        time.sleep(AWAY_S)
        assert worker.is_running, worker.said
    finally:
        redis_client.replicaof("NO", "ONE")
    went_on(worker, services)


def test_a_key_of_the_wrong_type(worker: Program, services: Services, redis_client: redis.Redis) -> None:
    """Whatever somebody put where the queue should be, the worker waits until it is gone."""
    redis_client.set(services.queue.rq.key, "no list")
    worker.wait_for("redis in trouble")
    assert worker.is_running
    redis_client.delete(services.queue.rq.key)
    services.ingest()
    went_on(worker, services)


@pytest.mark.parametrize(
    "fields",
    [
        {"data": "no payload"},
        {"created_at": "yesterday", "data": "x"},
        {"created_at": "2024-01-01T00:00:00Z", "data": "x", "timeout": "never"},
        {"created_at": "2024-01-01T00:00:00Z", "data": "x", "meta": "no JSON", "retries_left": "many"},
        {"created_at": "2024-01-01T00:00:00Z", "data": "x", "failure_ttl": "long", "origin": "elsewhere"},
    ],
)
def test_a_job_that_rq_stumbles_over(services: Services, redis_client: redis.Redis, fields: dict[Any, Any]) -> None:
    """A job that can't even be read is refused and counted, stands in nobody's way, and hurts no worker."""
    services.ingest()
    redis_client.hset("rq:job:broken", mapping=fields)
    redis_client.rpush(services.queue.rq.key, "broken")
    services.tick()
    assert run_worker(services, burst=True) == 10
    snapshot = services.queue.snapshot()
    assert snapshot.outstanding == frozenset()
    assert services.ledger.counters.read()[0]["migration"]["refused_jobs"] == 1
    assert services.reconcile().ok


def test_commands_are_not_taken(worker: Program, redis_client: redis.Redis, services: Services) -> None:
    """Nobody stops a worker by a message through Redis."""
    [info] = services.queue.workers()
    send_shutdown_command(redis_client, info.name)
    time.sleep(2)
    assert worker.is_running
