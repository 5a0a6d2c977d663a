"""What must not grow with what is stored: memory, a tick, the statistics, Dagster's event log."""

import os
import statistics as stats
import subprocess
import sys
import time
from pathlib import Path

import httpx

from bench.source import await_answer, serving
from bench.task import Task
from pipeline_poc.embedded import free_port
from pipeline_poc.services import Services

_TICKS = 30
_WINDOW = 2
"""Jobs that a tick may have outstanding: as many as even the smaller store has batches, else it had less to do."""
_REQUESTS = 500


def ingest(task: Task) -> None:
    """Ingest everything."""
    with (
        serving(task.posts) as url,
        Services(task.settings.model_copy(update={"source_url": url})) as services,
        task.meter.lap("ingestion", task.posts),
    ):
        services.ingest()


def tick(task: Task) -> None:
    """Tick while everything waits: with an empty queue, and with nothing left to enqueue."""
    with Services(task.settings.model_copy(update={"queue_window": _WINDOW})) as services:
        services.open_all()
        with task.meter.lap("ticks") as lap:
            idle = []
            enqueueing = []
            for _ in range(_TICKS):
                services.queue.rq.connection.flushdb()
                enqueueing.append(_tick_ms(services))
                idle.append(_tick_ms(services))
        lap.figures["tick that enqueues, ms"] = stats.median(enqueueing)
        lap.figures["tick with nothing to do, ms"] = stats.median(idle)
        services.queue.rq.connection.flushdb()


def _tick_ms(services: Services) -> float:
    begun = time.perf_counter()
    services.tick()
    return (time.perf_counter() - begun) * 1000


def reconcile(task: Task) -> None:
    """Compare both stores."""
    with Services(task.settings) as services:
        services.open_all()
        with task.meter.lap("reconcile", task.posts):
            result = services.reconcile()
    if not result.ok or result.migrated != task.posts:
        raise RuntimeError(f"the stores differ: {result.summary()}")


def statistics(task: Task) -> None:
    """Ask the web server for the migration's statistics, one request after the other."""
    workspace, port = Path("workspace.yaml"), free_port()
    workspace.write_text("load_from: []\n")
    environment = os.environ | {"WEB_PORT": str(port), "RATE_LIMIT_READ": "100000000/second"}
    command = [sys.executable, "-m", "pipeline_poc", "webserver", "--workspace", str(workspace)]
    url = f"http://127.0.0.1:{port}/data-migration/stats"
    with subprocess.Popen(command, env=environment) as server:
        try:
            await_answer(url)
            with httpx.Client(timeout=30) as client, task.meter.lap("statistics") as lap:
                waits_ms = [_ask_ms(client, url) for _ in range(_REQUESTS)]
            lap.figures["statistics, median, ms"] = stats.median(waits_ms)
            lap.figures["statistics, p99, ms"] = stats.quantiles(waits_ms, n=100)[-1]
        finally:
            server.terminate()


def _ask_ms(client: httpx.Client, url: str) -> float:
    begun = time.perf_counter()
    client.get(url).raise_for_status()
    return (time.perf_counter() - begun) * 1000
