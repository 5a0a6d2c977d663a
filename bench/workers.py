"""Ours through the queue: the sensor's tick enqueues, real worker processes migrate."""

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from dagster import AssetKey, AssetRecordsFilter

from bench.meter import cpu_s, peak_mb
from bench.posts import store_backlog
from bench.task import Task
from pipeline_poc.chaos.proxy import Fault, Proxy
from pipeline_poc.clock import utc_now
from pipeline_poc.orchestration.instance import DagsterInstance, instance_of
from pipeline_poc.posts import POSTS
from pipeline_poc.services import Services

_TICK_S = 5.0
"""Dagster's daemon looks after its sensors this often."""
_LOOK_S = 0.1
_PATIENCE_S = 3600.0
_START_S = 60.0
_REPORT_S = 30.0


def queue(task: Task) -> None:
    """Migrate the backlog; the clock runs from the first tick until the last batch is closed.

    The options are `workers`, their number, and `latency_ms`, by which the stores answer later to them.
    """
    count: int = task.options["workers"]
    with ExitStack() as stack:
        services = stack.enter_context(Services(task.settings))
        services.open_all()
        assert task.settings.dagster_home
        instance = stack.enter_context(instance_of(task.settings.dagster_home))
        urls = stack.enter_context(slowed(task, task.options.get("latency_ms", 0.0)))
        workers = stack.enter_context(running(count, urls))
        _await_workers(services, count)
        _warm_up(services, instance, first=task.posts + 1, count=count)
        store_backlog(services, 1, task.posts)
        before = cpu_s(workers)
        with task.meter.lap("through the queue", task.posts) as lap:
            begun_at = utc_now()
            ticking_s = migrate_all(services)
        await_reports(instance, begun_at, task.posts)
        lap.cpu_s = {name: used - before[name] for name, used in cpu_s(workers).items()} | {"sensor": ticking_s}
        lap.peak_mb = {name: peak_mb(process) for name, process in workers.items()}
        lap.wall_s = (last_closed_at(services) - begun_at).total_seconds()
        rows = services.relational_store.count()
    if rows != task.posts + count:
        raise RuntimeError(f"{rows} rows for {task.posts + count} posts")


def migrate_all(services: Services) -> float:
    """Tick as Dagster's daemon does until nothing waits; returns the CPU seconds of the ticks."""
    deadline = time.monotonic() + _PATIENCE_S
    ticking_s, next_tick = 0.0, 0.0
    while time.monotonic() < deadline:
        if time.monotonic() >= next_tick:
            next_tick = time.monotonic() + _TICK_S
            begun = time.process_time()
            services.tick()
            ticking_s += time.process_time() - begun
        if not services.ledger.batches("open", limit=1):
            return ticking_s
        time.sleep(_LOOK_S)
    raise TimeoutError("the workers do not come to an end")


def last_closed_at(services: Services) -> datetime:
    """Return when the last batch was closed."""
    return max(batch.closed_at for batch in services.ledger.batches("closed") if batch.closed_at)


def await_reports(instance: DagsterInstance, since: datetime, posts: int) -> None:
    """Wait until Dagster was told of so many migrated posts: telling is a part of the work."""
    deadline = time.monotonic() + _REPORT_S
    while time.monotonic() < deadline:
        found = instance.fetch_materializations(
            AssetRecordsFilter(AssetKey(POSTS.table), after_timestamp=since.timestamp()), limit=1000
        )
        events = [record.asset_materialization for record in found.records]
        if sum(int(str(event.metadata["migrated"].value)) for event in events if event) >= posts:
            return
        time.sleep(_LOOK_S)
    raise TimeoutError("the workers do not report to Dagster what they have migrated")


def _await_workers(services: Services, count: int) -> None:
    deadline = time.monotonic() + _START_S
    while services.queue.counts().workers < count:
        if time.monotonic() > deadline:
            raise TimeoutError("the workers do not start")
        time.sleep(_LOOK_S)


def _warm_up(services: Services, instance: DagsterInstance, *, first: int, count: int) -> None:
    """Let workers migrate a post each, and report it, so that every connection is open when the clock starts."""
    begun_at = utc_now()
    for number in range(first, first + count):
        store_backlog(services, number, number)
    migrate_all(services)
    await_reports(instance, begun_at, count)


@contextmanager
def running(count: int, environment: Mapping[str, str]) -> Iterator[dict[str, psutil.Process]]:
    """Run workers, and end them afterwards; yields them by name."""
    with ExitStack() as stack:
        found = {}
        for number in range(1, count + 1):
            process = stack.enter_context(
                subprocess.Popen([sys.executable, "-m", "pipeline_poc", "worker"], env=os.environ | environment)
            )
            stack.callback(process.terminate)
            found[f"worker {number}"] = psutil.Process(process.pid)
        yield found


@contextmanager
def slowed(task: Task, latency_ms: float) -> Iterator[dict[str, str]]:
    """Put a proxy before each store that answers so much later; yields the environment that leads there."""
    with ExitStack() as stack:
        environment = {}
        for name in ("mongo_url", "redis_url", "sql_url") if latency_ms else ():
            url = getattr(task.settings, name).get_secret_value()
            parts = urlsplit(url)
            proxy = stack.enter_context(Proxy(parts.port or 0, parts.hostname or ""))
            # Half of it on the way there, half on the way back.
            proxy.set(Fault("latency", seconds=latency_ms / 2000))
            environment[name.upper()] = url.replace(f"{parts.hostname}:{parts.port}", f"127.0.0.1:{proxy.port}")
        yield environment


def one_worker(task: Task) -> None:
    """Migrate what is there with one worker, to see how much memory it needs."""
    home = task.settings.dagster_home
    assert home
    with Services(task.settings) as services, running(1, {}) as workers:
        services.open_all()
        _await_workers(services, 1)
        size, before = _mb(home), cpu_s(workers)
        with task.meter.lap("worker", task.posts) as lap:
            begun_at = utc_now()
            ticking_s = migrate_all(services)
        lap.wall_s = (last_closed_at(services) - begun_at).total_seconds()
        lap.cpu_s = {name: used - before[name] for name, used in cpu_s(workers).items()} | {"sensor": ticking_s}
        lap.peak_mb = {name: peak_mb(process) for name, process in workers.items()}
    lap.figures["growth of the event log, MB"] = _mb(home) - size
    task.check_rows()


def _mb(folder: Path) -> float:
    for database in folder.rglob("*.db"):
        with closing(sqlite3.connect(database)) as connection:
            # What waits in the log of writes would come and go by its own rules.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20
