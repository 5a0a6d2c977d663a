"""Runs the contenders round by round, so that whatever drifts on a machine hits all of them alike."""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import psutil

from bench import contenders
from bench.contenders import Contender, Size
from bench.posts import store_backlog
from bench.stores import Stores, library_versions, making_tables, plain_environment
from pipeline_poc.services import Services
from pipeline_poc.settings import load_settings

Result = dict[str, Any]
"""A lap as JSON, with `contender`, `group` and `round`; or, in place of the lap, the `error` of a contender."""

_TIMEOUT_S = 4 * 3600
_AT_ONCE = 3
_WORDS = 2000
"""Characters of a log that an error quotes."""


def run(
    groups: Sequence[str], sizes: Mapping[Size, int], repeats: int, stores: Stores, *, is_small: bool
) -> Iterator[dict[str, Any]]:
    """Run the contenders of some groups; after each round yield all that was measured, and under which conditions."""
    results: list[Result] = []
    header = _header(sizes, stores)
    begun = time.monotonic()
    for number in range(1, repeats + 1):
        taking_part = [one for one in contenders.of(groups, is_small=is_small) if number == 1 or one.is_repeated]

        def take_turn(contender: Contender, number: int = number) -> list[Result]:
            at_s = time.monotonic() - begun
            print(f"{at_s:6.0f} s  round {number} of {repeats}: {contender.name}", file=sys.stderr, flush=True)
            who = {"contender": contender.name, "group": contender.group, "round": number}
            outcomes = _outcomes(contender, sizes[contender.size], stores, is_small=is_small)
            return [who | outcome for outcome in outcomes]

        # One at a time, of course; where speed does not matter several, those first that take longest.
        with ThreadPoolExecutor(_AT_ONCE if is_small else 1) as pool:
            turns = list(pool.map(take_turn, reversed(taking_part) if is_small else taking_part))
        results += chain.from_iterable(reversed(turns) if is_small else turns)
        yield {"header": header | {"rounds": number}, "results": results}


def _header(sizes: Mapping[Size, int], stores: Stores) -> dict[str, Any]:
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "mongodb": stores.mongo_name,
        "servers": stores.versions,
        "libraries": library_versions(),
        "sizes": dict(sizes),
    }


def _outcomes(contender: Contender, posts: int, stores: Stores, *, is_small: bool) -> Iterable[Result]:
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        try:
            with stores.fresh(folder) as own_stores:
                environment = own_stores | dict(contender.settings)
                _prepare(environment, posts if contender.has_backlog else 0)
                job = {"posts": posts, "is_small": is_small, "options": dict(contender.options), "servers": stores.pids}
                for step in contender.steps:
                    yield from _run_step(job | {"step": step}, environment, folder)
        except Exception as error:  # noqa: BLE001 - who can't run is shown as such, and others go on
            yield {"error": f"{type(error).__name__}: {error}"}


def _prepare(environment: Mapping[str, str], posts: int) -> None:
    settings = load_settings(env_file=None, **{name.lower(): value for name, value in environment.items()})
    with making_tables, Services(settings) as services:
        services.open_all()
        store_backlog(services, 1, posts)


def _run_step(job: dict[str, Any], environment: dict[str, str], folder: Path) -> list[Result]:
    job_file, log_file = folder / "job.json", folder / "log"
    job_file.write_text(json.dumps(job))
    with log_file.open("wb") as log:
        done = subprocess.run(
            [sys.executable, "-m", "bench.task", str(job_file)],
            env=plain_environment() | environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=False,
            timeout=_TIMEOUT_S,
        )
    if done.returncode:
        words = log_file.read_text(errors="replace")[-_WORDS:]
        raise RuntimeError(f"{job['step']} ended with {done.returncode}: {words}")
    laps: list[Result] = json.loads(job_file.with_suffix(".laps").read_text())
    return laps
