"""The whole pipeline as `pipeline-poc up` starts it, on its embedded services and with its default settings."""

import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pymongo
from pymongo.errors import PyMongoError

from bench.meter import Meter
from bench.task import Task
from pipeline_poc import embedded
from pipeline_poc.embedded import free_port
from pipeline_poc.services import Services
from pipeline_poc.settings import load_settings
from pipeline_poc.stand_in import StandIn, make_post

_STORES = ("MONGO_URL", "MONGO_DATABASE", "REDIS_URL", "SQL_URL", "DAGSTER_HOME")
"""Unset, each of them is the embedded one."""
_POSTS = 100
_START_S = 120.0
_STOP_S = 60.0
_LOOK_S = 0.02
_PHASES_S = 5.0
"""The daemon's round: posts have to come at any time in it."""
_RUN = "query Run($id: ID!) { runOrError(runId: $id) { ... on Run { status creationTime endTime } } }"


def up(task: Task) -> None:
    """Start it, wait, store posts, run ingestions, and let it idle."""
    settle_s, samples, runs, idle_s = (0.0, 2, 1, 2.0) if task.is_small else (15.0, 20, 5, 60.0)
    data_dir = Path("up").absolute()
    for name in _STORES:
        os.environ.pop(name, None)
    with StandIn() as source:
        source.behaviour["n"] = str(_POSTS)
        environment = os.environ | {"DATA_DIR": str(data_dir), "SOURCE_URL": source.url, "WEB_PORT": str(free_port())}
        begun = time.monotonic()
        with _up(environment) as process, httpx.Client(base_url=f"http://127.0.0.1:{environment['WEB_PORT']}") as web:
            with task.meter.lap("start") as start:
                start.figures |= _await_start(data_dir, web, begun)
            time.sleep(settle_s)  # The daemon, too, has then made its first round.
            with task.meter.lap("single posts") as single:
                waits_s = list(_store_one_by_one(data_dir, source, samples))
            single.figures["stored to migrated, median, s"] = statistics.median(waits_s)
            single.figures["stored to migrated, p95, s"] = statistics.quantiles(waits_s, n=20, method="inclusive")[-1]
            with task.meter.lap("ingestion runs") as ingestions:
                took_s = [_ingestion_run_s(web) for _ in range(runs)]
            ingestions.figures["ingestion run, launch to success, s"] = statistics.median(took_s)
            _idle(task.meter, process, data_dir, idle_s)


@contextmanager
def _up(environment: dict[str, str]) -> Iterator[psutil.Process]:
    process = subprocess.Popen([sys.executable, "-m", "pipeline_poc", "up"], env=environment)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(_STOP_S)


def _await_start(data_dir: Path, web: httpx.Client, begun: float) -> dict[str, float]:
    """Return the seconds from launch until the first post was migrated, and until the UI answered."""
    signs: dict[str, Callable[[], bool]] = {
        "up to first post migrated, s": lambda: _has_migrated(data_dir),
        "up to UI, s": lambda: web.get("/", timeout=2).is_success,
    }
    seen: dict[str, float] = {}
    while len(seen) < len(signs):
        if time.monotonic() - begun > _START_S:
            raise TimeoutError(f"after {_START_S:g} s of `up`: {seen}")
        for name, is_there in signs.items():
            with suppress(httpx.HTTPError, PyMongoError):
                if name not in seen and is_there():
                    seen[name] = time.monotonic() - begun
        time.sleep(_LOOK_S)
    return seen


def _has_migrated(data_dir: Path) -> bool:
    url = embedded.running("mongo", data_dir)
    if url is None:
        return False
    with pymongo.MongoClient[dict[str, Any]](url, serverSelectionTimeoutMS=500) as client:
        return client["pipeline_poc"]["posts"].find_one({"externalId": 1, "migrated": True}) is not None


def _store_one_by_one(data_dir: Path, source: StandIn, samples: int) -> Iterator[float]:
    """Ingest a new post each time; yields the seconds from its arrival until it was marked."""
    settings = load_settings(env_file=None, data_dir=data_dir, source_url=source.url)
    rng = random.Random(samples)  # noqa: S311 - moments to wait for, no secrets
    with Services(settings) as services:
        for number in range(_POSTS + 1, _POSTS + 1 + samples):
            time.sleep(rng.uniform(0, _PHASES_S))
            source.posts[number] = make_post(number)
            services.ingest()
            deadline = time.monotonic() + _START_S
            while not (found := services.raw_store.document(number) or {}).get("migrated"):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"post {number} is not migrated after {_START_S:g} s")
                time.sleep(_LOOK_S)
            yield (found["migratedAt"] - found["changedAt"]).total_seconds()


def _ingestion_run_s(web: httpx.Client) -> float:
    """Launch a run of the ingestion; returns the seconds from its launch until Dagster noted its success."""
    triggered = web.post("/data-ingestion/trigger", params={"wait": True}, timeout=90).raise_for_status().json()
    run_id = triggered["run"]["runId"]
    answer = web.post("/graphql", json={"query": _RUN, "variables": {"id": run_id}}, timeout=30).raise_for_status()
    run = answer.json()["data"]["runOrError"]
    if run["status"] != "SUCCESS":
        raise RuntimeError(f"the run ended with {run['status']}")
    return float(run["endTime"]) - float(run["creationTime"])


def _idle(meter: Meter, process: psutil.Process, data_dir: Path, seconds: float) -> None:
    """Measure what everything uses while nothing is to be done."""
    with meter.lap("idle") as lap:
        before = _look(process, data_dir)
        time.sleep(seconds)
        after = _look(process, data_dir)
    for pid, (part, used_s, _) in after.items():
        name = f"{part}, % of a core"
        _, used_before_s, _ = before.get(pid, (part, 0.0, 0.0))
        lap.figures[name] = lap.figures.get(name, 0.0) + (used_s - used_before_s) / seconds * 100
    lap.figures["idle, % of a core"] = sum(lap.figures.values())
    lap.figures["memory of everything, MB"] = sum(memory_mb for _, _, memory_mb in after.values())


def _look(process: psutil.Process, data_dir: Path) -> dict[int, tuple[str, float, float]]:
    """Return part, CPU seconds and memory in MB of everything that `up` started, by process id."""
    found = {}
    for one in psutil.process_iter():
        with suppress(psutil.Error):  # Some end while they are looked at.
            # The embedded services are nobody's children, but name the folder.
            if one.pid == process.pid or any(str(data_dir) in argument for argument in one.cmdline()):
                for member in (one, *one.children(recursive=True)):
                    with suppress(psutil.Error):
                        used = member.cpu_times()
                        found[member.pid] = _part(member), used.user + used.system, member.memory_info().rss / 2**20
    return found


def _part(process: psutil.Process) -> str:
    """Name a process by what it does."""
    line = " ".join(process.cmdline())
    parts = {
        "pipeline_poc worker": "workers",
        "pipeline_poc webserver": "web server",
        "dagster._daemon": "daemon",
        "api grpc": "code server",
        "multiprocessing.forkserver": "code server",
        "secantus": "SecantusDB",
        "valkey": "Valkey",
        "pipeline_poc.embedded": "supervisors",
        "pipeline_poc up": "up",
    }
    return next((name for sign, name in parts.items() if sign in line), "others")
