"""A campaign of fault runs: many, on several sets of servers at once."""

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing.managers import SyncManager
from pathlib import Path
from queue import Queue
from threading import Event

from pipeline_poc.chaos.arena import Arena
from pipeline_poc.chaos.runs import Plan, Run, RunResult, prepare

_RUNS_PER_ARENA = 100
"""Servers are started anew after so many runs: what they keep of deleted posts makes them slow."""


def play(
    plans: Sequence[Plan], folder: Path, *, jobs: int, exitfirst: bool, on_result: Callable[[RunResult, Path], None]
) -> list[RunResult]:
    """Play plans; the logs of runs without a violation are deleted.

    Args:
        plans: In no order that counts.
        folder: Keeps the logs of runs with violations.
        jobs: Sets of servers that work at once.
        exitfirst: Whether to play no more once a promise was broken.
        on_result: Called with each result, and its log, as soon as it is there.

    Returns:
        The results of what was played, in the order of the plans.

    Raises:
        RuntimeError: A server, or the pipeline without any fault, does not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, RunResult] = {}
    with ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        manager: SyncManager = stack.enter_context(context.Manager())
        done: Queue[RunResult | None] = manager.Queue()
        stop = manager.Event()
        pool = stack.enter_context(ProcessPoolExecutor(jobs, mp_context=context))
        futures = [pool.submit(_play_some, plans[job::jobs], folder, done, stop) for job in range(jobs)]
        for future in futures:
            future.add_done_callback(lambda _: done.put(None))
        ended = 0
        while ended < jobs:
            result = done.get()
            if result is None:
                ended += 1
                continue
            results[result.plan.seed] = result
            on_result(result, _log(folder, result.plan))
            if exitfirst and result.violations:
                stop.set()
        for future in futures:
            future.result()
    return [results[plan.seed] for plan in plans if plan.seed in results]


def _play_some(plans: Sequence[Plan], folder: Path, done: "Queue[RunResult | None]", stop: Event) -> None:
    for some in _chunks(plans):
        with tempfile.TemporaryDirectory(prefix="pipeline-poc-chaos-") as home, Arena(Path(home)) as arena:
            prepare(arena)
            for plan in some:
                if stop.is_set():
                    return
                log = _log(folder, plan)
                result = Run(arena, plan, log).play()
                if not result.violations:
                    log.unlink()
                done.put(result)


def _chunks(plans: Sequence[Plan]) -> Iterator[Sequence[Plan]]:
    for start in range(0, len(plans), _RUNS_PER_ARENA):
        yield plans[start : start + _RUNS_PER_ARENA]


def _log(folder: Path, plan: Plan) -> Path:
    return folder / f"run-{plan.seed.replace('/', '-')}.log"
