"""The lock of a tick: held for as long as the tick lives, and not much longer."""

import signal
import time

import pytest
import redis

from pipeline_poc import migration_queue
from pipeline_poc.services import Services
from pipeline_poc_tests.acceptance.programs import until
from pipeline_poc_tests.conftest import Figures
from pipeline_poc_tests.integration.workers import Start, seconds


def test_a_killed_tick_gives_way_within_10_s(services: Services, start: Start, measured: Figures) -> None:
    """A tick that is killed while it holds its lock delays the next one by less than 10 s."""
    services.ingest()
    killed = start(command="enqueue", fail_points="tick.begun=kill")
    assert killed.wait() == -signal.SIGKILL
    assert services.tick().busy
    took_s = seconds(lambda: until(lambda: services.tick().enqueued == 10, "the next tick works"))
    measured(f"a tick works {took_s:.1f} s after one that was killed")
    assert took_s < 10


def test_a_slow_tick_keeps_its_lock(
    services: Services, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tick that takes longer than its lock lasts renews it, and lets go of it at its end."""
    monkeypatch.setattr(migration_queue, "_TICK_LOCK_S", 1.0)
    monkeypatch.setattr(migration_queue, "_TICK_RENEWAL_S", 0.1)
    with services.queue.tick_lock() as mine:
        assert mine
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            assert services.tick().busy
            time.sleep(0.05)
    assert not redis_client.exists(f"{services.queue.rq.key}:tick")
    assert not services.tick().busy


def test_a_lost_lock_does_no_harm(
    services: Services, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tick whose lock was taken meanwhile, as after it stood still, ends well and leaves the lock to the other."""
    monkeypatch.setattr(migration_queue, "_TICK_RENEWAL_S", 0.1)
    with services.queue.tick_lock() as first:
        redis_client.delete(f"{services.queue.rq.key}:tick")
        with services.queue.tick_lock() as second:
            assert (first, second) == (True, True)
            time.sleep(0.5)
            assert services.tick().busy
        assert not services.tick().busy
