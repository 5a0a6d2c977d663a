"""Many posts through the queue: reconciled, and no worker grows with their number.

The suite takes 2,000. For the long form: POSTS=50000 pytest pipeline_poc_tests/acceptance/test_volume.py
"""

import os
import time

import pytest
import redis

from pipeline_poc.stand_in import StandIn
from pipeline_poc_tests.acceptance.conftest import Stores
from pipeline_poc_tests.acceptance.programs import Programs, until
from pipeline_poc_tests.conftest import Figures

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(1800)]

POSTS = int(os.environ.get("POSTS", "2000"))
BATCHES = 20
WORKERS = 2
GROWTH_MAX_MB = 15.0
"""What allocator and caches may take between a tenth of the work and its end."""


@pytest.mark.slow
def test_workers_stay_flat(on_servers: Programs, stores: Stores, stand_in: StandIn, measured: Figures) -> None:
    """Two workers migrate everything that is queued, in memory that does not depend on how much that is."""
    stand_in.behaviour = {"n": str(POSTS)}
    on_servers.settings |= {"source_url": stand_in.url, "batch_size": max(1, POSTS // BATCHES)}
    ingesting_at = time.monotonic()
    assert on_servers.ask("ingest")["new"] == POSTS
    migrating_at = time.monotonic()
    on_servers.start("worker", "--count", str(WORKERS))
    on_servers.start_ticks()
    rss_mb: dict[int, float] = {}

    def all_migrated() -> bool:
        done = 100 * stores.rows() // POSTS
        workers = [process for process in on_servers.processes("worker") if "--count" not in process.cmdline()]
        if done and len(workers) == WORKERS:
            rss_mb[done] = max(process.memory_info().rss for process in workers) / 2**20
        return not stores.batches(state={"$ne": "closed"})

    until(all_migrated, "all is migrated", timeout_s=900)
    reconciling_at = time.monotonic()
    outcome = on_servers.ask("reconcile")
    ended_at = time.monotonic()
    assert (outcome["stored"], outcome["migrated"], outcome["rows"]) == (POSTS, POSTS, POSTS)
    early, half, late = (min(rss_mb, key=lambda done: abs(done - percent)) for percent in (10, 50, 100))
    measured(
        f"{POSTS} posts ingested in {migrating_at - ingesting_at:.1f} s, migrated in "
        f"{reconciling_at - migrating_at:.1f} s, reconciled in {ended_at - reconciling_at:.1f} s; largest worker: "
        + ", ".join(f"{rss_mb[done]:.0f} MB at {done} %" for done in (early, half, late))
    )
    assert rss_mb[late] - rss_mb[early] < GROWTH_MAX_MB


@pytest.mark.slow
def test_queue_is_rebuilt(on_servers: Programs, stores: Stores, stand_in: StandIn, measured: Figures) -> None:
    """Ticks put the whole backlog back on a queue that was wiped, whatever its size."""
    stand_in.behaviour = {"n": str(POSTS)}
    on_servers.settings |= {"source_url": stand_in.url, "batch_size": POSTS // BATCHES}
    assert on_servers.ask("ingest")["new"] == POSTS
    on_servers.ask("enqueue")
    queued = stores.jobs()
    assert queued == BATCHES
    with redis.Redis.from_url(str(on_servers.settings["redis_url"])) as client:
        client.flushall()
    wiped_at = time.monotonic()
    ticks = 0
    while stores.jobs() < queued:
        on_servers.ask("enqueue")
        ticks += 1
    measured(f"queue of {POSTS} posts rebuilt in {time.monotonic() - wiped_at:.1f} s by {ticks} ticks")
