"""The worker processes: one that executes migration jobs, or several of them under one parent."""

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

from pipeline_poc import tracing
from pipeline_poc.errors import PipelineError
from pipeline_poc.migration_worker import MigrationWorker
from pipeline_poc.orchestration.reporting import Reporter
from pipeline_poc.posts import POSTS
from pipeline_poc.pulse import pulse
from pipeline_poc.services import Services
from pipeline_poc.shutdown import Grace

logger = logging.getLogger(__name__)

_START_S = 30.0
"""A worker of several that fails so soon failed to start; later ones are started again."""
_CAN_NOT_START = (2, 3)
"""Exit codes of the command line for wrong settings and services that are away."""
_RESTART_PAUSE_S = 2.0
_HOUSEKEEPING_S = 1.0
"""Pause between two looks for retries that are due, and at the migration's mode."""
_LOOK_S = 0.1
_KILL_S = 1.5
"""A worker that is still there so long after its grace is frozen."""


def run_worker(services: Services, *, burst: bool, close: bool = False) -> int:
    """Execute jobs until SIGTERM or SIGINT.

    The running job gets SHUTDOWN_GRACE_S to finish; then its batch is given back and this process
    ends with status 0.

    Args:
        services: The stores.
        burst: Return when the queue is empty, or when a store that is away keeps jobs from being done.
        close: Close the stores, too, which takes long where one is frozen, but not after a signal.

    Returns:
        Number of jobs that went well.

    Raises:
        PipelineError: A store is away at the start, or a setting is wrong.
    """
    services.open_all()
    done = threading.Event()
    reporter = Reporter(services.settings.dagster_home, services.entity)
    with services.queue.translated():
        worker = MigrationWorker(services, reporter)
    worker.is_paused = services.control().mode == "paused"
    # RQ sets them after its first words with Redis, which may be frozen; until then a signal would kill, or be lost.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, worker.request_stop)
    housekeeper = threading.Thread(target=_keep_house, args=(services, worker, done), name="housekeeping", daemon=True)

    def leave() -> None:
        worker.give_back()
        tracing.flush()

    with Grace(services.settings.shutdown_grace_s, lambda: worker.idle_since, leave):
        with reporter, pulse(worker.shows_life):
            housekeeper.start()
            logger.info("worker started", extra={"worker": worker.name, "queue": services.queue.rq.name})
            try:
                with services.queue.translated():
                    worker.work(burst=burst, logging_level="WARNING")
            finally:
                done.set()
                if not worker.is_stopping():  # It may hang at a store that is away.
                    housekeeper.join()
                logger.info(
                    "worker stopped",
                    extra={"worker": worker.name, "jobs": worker.succeeded, "failures": worker.failed},
                )
                worker.idle_since = None  # The last report gets its time.
        worker.idle_since = time.monotonic()
        if close:
            services.close()
    return worker.succeeded


def worker_command(entity: str, *, burst: bool = False) -> list[str]:
    """Return the command of a worker of one entity."""
    # Without its name it would start workers of all entities in its turn.
    return [sys.executable, "-m", "pipeline_poc", "--entity", entity, "worker", *(["--burst"] if burst else [])]


def run_workers(count: int, entities: Sequence[str] = (POSTS.name,), *, burst: bool, grace_s: float) -> int:
    """Run several workers, each a process of its own, until SIGTERM or SIGINT.

    Workers that die are started again, but for those in burst mode, and those that find at their
    very start that a setting is wrong or a store is away: the rest is stopped, too. Each signal is
    passed on; a worker that does not end within its grace is killed, which loses nothing.

    Args:
        count: Number of workers of each entity.
        entities: Whose queues they serve.
        burst: End with the last of them.
        grace_s: What a worker may take to end after a signal, in seconds.

    Returns:
        The exit status: that of the first worker which did not end well, else 0.
    """
    commands = [worker_command(entity, burst=burst) for entity in entities for _ in range(count)]
    processes = [subprocess.Popen(command) for command in commands]  # noqa: S603 - our own command
    begun_at = time.monotonic()
    signals = 0

    def count_signal(*_: object) -> None:
        nonlocal signals
        signals += 1

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, count_signal)
    restart_at: dict[int, float] = {}
    while not signals:
        time.sleep(_LOOK_S)
        now = time.monotonic()
        ended = [index for index, process in enumerate(processes) if process.poll() is not None]
        is_hopeless = now - begun_at < _START_S and any(
            processes[index].returncode in _CAN_NOT_START for index in ended
        )
        if (burst and len(ended) == len(processes)) or is_hopeless:
            break
        for index in [] if burst else ended:
            if index not in restart_at:
                logger.warning("worker ended", extra={"status": processes[index].returncode})
                restart_at[index] = now + _RESTART_PAUSE_S
            elif now > restart_at[index]:
                del restart_at[index]
                processes[index] = subprocess.Popen(commands[index])  # noqa: S603 - our own command
    return _end(processes, lambda: signals, grace_s)


def _end(processes: Sequence[subprocess.Popen[bytes]], signals: Callable[[], int], grace_s: float) -> int:
    """Ask workers to stop, once more with each further signal; returns the exit status of all."""
    passed_on = -1
    deadline = time.monotonic() + grace_s + _KILL_S
    while any(process.poll() is None for process in processes):
        if signals() > passed_on:
            passed_on = signals()
            for process in processes:
                process.terminate()
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(_LOOK_S)
    # A worker that was killed has a negative status, which is none that a program can exit with.
    return next((max(process.returncode, 1) for process in processes if process.returncode), 0)


def _keep_house(services: Services, worker: MigrationWorker, done: threading.Event) -> None:
    """Obey the migration's mode, promote retries that are due, and stay registered; once a second."""
    while not done.wait(_HOUSEKEEPING_S):
        try:
            worker.is_paused = services.control().mode == "paused"
            with services.queue.translated():
                worker.register_again()
            if not worker.is_paused:
                services.queue.promote_due()
        except PipelineError as error:
            logger.debug("housekeeping failed: %s", error)
        except Exception:
            if done.is_set():  # The connections were closed under its hands: nobody waits for it at the end.
                return
            raise
