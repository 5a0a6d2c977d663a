"""The RQ worker: executes migration jobs, one at a time, in its own process.

It executes one function and imports nothing that a job names, so that whoever can write to
Redis can ask for a batch to be migrated, and for nothing else.
"""

import logging
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from rq import Queue
from rq.exceptions import DeserializationError, StopRequested
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.timeouts import JobTimeoutException
from rq.worker import SimpleWorker, WorkerStatus
from rq.worker_registration import WORKERS_BY_QUEUE_KEY

from pipeline_poc import failpoints, retry
from pipeline_poc.clock import utc_now
from pipeline_poc.errors import PipelineError, TerminalError, mask_secrets
from pipeline_poc.migration import MigrationResult
from pipeline_poc.migration_queue import JOB_FUNCTION
from pipeline_poc.orchestration.reporting import Reporter
from pipeline_poc.services import Services

logger = logging.getLogger(__name__)

_BATCH_ID = re.compile(r"[0-9]{8}T[0-9]{9}-[0-9a-f]{8}")
_WORKER_TTL_S = 30
"""A worker that shows no life for a minute more than this disappears from the statistics."""
_START_S = 30.0
"""A worker of several that fails so soon failed to start; later ones are started again."""
_CAN_NOT_START = (2, 3)
"""Exit codes of the command line for wrong settings and services that are away."""
_RESTART_PAUSE_S = 2.0
_HOUSEKEEPING_S = 1.0
"""Pause between two looks for retries that are due, and at the migration's mode."""
_ERROR_SHOWN = 500
"""Characters of an error that stay with a job."""


class RefusedJobError(TerminalError):
    """A job that names another function, or carries something else than the id of a batch."""


class MigrationJob(Job):
    """A job as the worker sees it: its function is looked up, never imported."""

    handler: Callable[[str], dict[str, Any]]
    """Set by the worker before it starts."""

    @property
    def func(self) -> Callable[..., Any]:
        """The one function there is.

        Raises:
            RefusedJobError: The job asks for something else.
        """
        args = self.args
        if self.func_name != JOB_FUNCTION or self.instance or self.kwargs:
            raise RefusedJobError(f"job {self.id} asks for {self.func_name!r}, which is not allowed")
        if len(args) != 1 or not isinstance(args[0], str) or not _BATCH_ID.fullmatch(args[0]):
            raise RefusedJobError(f"job {self.id} carries no batch id")
        return type(self).handler

    @property
    def success_callback(self) -> None:
        """None: RQ would import whatever function the job names."""

    @property
    def failure_callback(self) -> None:
        """None, as above."""

    @property
    def stopped_callback(self) -> None:
        """None, as above."""

    def send_webhooks(self, *_args: Any, **_kwargs: Any) -> None:
        """Do nothing: RQ would call whatever URL the job names."""


class MigrationWorker(SimpleWorker):
    """A worker on the migration queue.

    Args:
        services: The stores; kept open between jobs.
        reporter: Is told of every migrated batch.

    Attributes:
        succeeded: Number of jobs that went well; RQ counts in Redis only.
        failed: Number of attempts that did not.
        is_paused: Whether to begin no job; set by who looks after the worker.
    """

    def __init__(self, services: Services, reporter: Reporter) -> None:
        queue = services.queue.rq
        super().__init__(
            [Queue(queue.name, connection=queue.connection, serializer=JSONSerializer, job_class=MigrationJob)],
            name=f"{services.worker_name}-{utc_now():%H%M%S}",
            connection=queue.connection,
            serializer=JSONSerializer,
            job_class=MigrationJob,
            worker_ttl=_WORKER_TTL_S,
            log_job_description=False,
        )
        self.log_result_lifespan = False
        self._services = services
        self._reporter = reporter
        self.succeeded = 0
        self.failed = 0
        self.is_paused = False
        MigrationJob.handler = staticmethod(self._migrate)

    def _migrate(self, batch_id: str) -> dict[str, Any]:
        failpoints.reach("worker.dequeued")
        result: MigrationResult = self._services.migrate([batch_id])
        self._reporter.add(result)
        self.succeeded += 1
        return result.summary()

    def check_for_suspension(self, burst: bool) -> None:
        """Wait while the migration is paused; what is executed already is not interrupted.

        RQ's own suspension stops every queue of a Redis, and is forgotten when that is flushed.
        """
        before = None
        while self.is_paused and not self._stop_requested:
            if burst:
                raise StopRequested
            if before is None:
                before = self.get_state()
                self.set_state(WorkerStatus.SUSPENDED)
            self.heartbeat()
            time.sleep(_HOUSEKEEPING_S)
        if before is not None:
            self.set_state(before)

    def register_again(self) -> None:
        """Register with Redis once more where that has forgotten this worker: it was flushed."""
        if self.birth_date is None:  # It is about to register for the first time.
            return
        if not self.connection.sismember(WORKERS_BY_QUEUE_KEY % self.queues[0].name, self.key):
            self.connection.delete(self.key)
            self.register_birth()  # type: ignore[no-untyped-call]
            self.set_state(self.get_state())

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """Decide what becomes of a failed job: another attempt after a while, or a dead letter.

        RQ asks `job.retries_left` next; it knows no decision that depends on the error.
        """
        self.failed += 1
        error = _cause(cast(BaseException, exc_info[1]))
        attempt = (job.number_of_retries or 0) + 1
        decision = retry.decide(error, attempt, self._services.settings.job_policy)
        if decision.delay_s is None:
            job.retries_left = None
        else:
            job.number_of_retries = attempt
            job.retries_left = 1
            job.retry_intervals = [max(1, round(decision.delay_s))]
        text = f"{type(error).__name__}: {error}"
        logger.error(
            "job failed",
            extra={
                "batch": job.id,
                "attempt": attempt,
                "error": text,
                "next_attempt_in_s": job.retry_intervals[0] if job.retries_left and job.retry_intervals else None,
                "systemic": decision.systemic,
            },
            exc_info=None if isinstance(error, PipelineError) else error,
        )
        with suppress(PipelineError), self._services.queue.translated():
            job.meta["error"] = {"type": type(error).__name__, "message": mask_secrets(str(error))[:_ERROR_SHOWN]}
            job.save_meta()  # type: ignore[no-untyped-call]
        if not isinstance(error, RefusedJobError):  # Which says nothing about the batch of that name.
            self._note(job.id, text, type(error).__name__, is_dead=decision.delay_s is None and not decision.systemic)

    def _note(self, batch_id: str, error: str, reason: str, *, is_dead: bool) -> None:
        """Write the failure to the ledger; where that is away, the sensor finds the job failed."""
        try:
            if is_dead:
                self._services.ledger.bury(batch_id, utc_now(), error)
            else:
                self._services.ledger.note_failure(batch_id, error)
            count = "migration.dead_letters" if is_dead else f"retries.{reason}"
            self._services.ledger.counters.add(utc_now(), {count: 1})
        except PipelineError as ledger_error:
            logger.warning("failure not noted", extra={"batch": batch_id, "error": str(ledger_error)})


def _cause(error: BaseException) -> BaseException:
    if isinstance(error, JobTimeoutException):
        # Not the fault of a store: a batch that always takes too long needs a person.
        return PipelineError(f"the job ran into its time limit: {error}")
    if isinstance(error, DeserializationError):
        return RefusedJobError("the job's payload is not JSON")
    return error


def run_worker(services: Services, *, burst: bool) -> int:
    """Execute jobs until SIGTERM or SIGINT; finishes the running one first.

    Args:
        services: The stores.
        burst: Return when the queue is empty.

    Returns:
        Number of jobs that went well.

    Raises:
        PipelineError: A store is away at the start, or a setting is wrong.
    """
    services.open_all()
    done = threading.Event()
    with Reporter(services.settings.dagster_home) as reporter:
        worker = MigrationWorker(services, reporter)
        worker.is_paused = services.control().mode == "paused"
        housekeeper = threading.Thread(
            target=_keep_house, args=(services, worker, done), name="housekeeping", daemon=True
        )
        housekeeper.start()
        logger.info("worker started", extra={"worker": worker.name, "queue": services.queue.rq.name})
        try:
            worker.work(burst=burst, logging_level="WARNING")
        finally:
            done.set()
            housekeeper.join()
            logger.info(
                "worker stopped",
                extra={"worker": worker.name, "jobs": worker.succeeded, "failures": worker.failed},
            )
        return worker.succeeded


def run_workers(count: int, *, burst: bool) -> int:
    """Run several workers, each a process of its own, until SIGTERM or SIGINT.

    Workers that die are started again, but for those in burst mode, and those that find at their
    very start that a setting is wrong or a store is away: the rest is stopped, too.

    Returns:
        The exit status: that of the first worker which did not end well, else 0.
    """
    command = [sys.executable, "-m", "pipeline_poc", "worker", *(["--burst"] if burst else [])]
    processes = [subprocess.Popen(command) for _ in range(count)]  # noqa: S603 - our own command
    begun_at = time.monotonic()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    while not stop.wait(_HOUSEKEEPING_S):
        ended = [index for index, process in enumerate(processes) if process.poll() is not None]
        is_hopeless = time.monotonic() - begun_at < _START_S and any(
            processes[index].returncode in _CAN_NOT_START for index in ended
        )
        if (burst and len(ended) == count) or is_hopeless:
            break
        for index in [] if burst else ended:
            logger.warning("worker ended", extra={"status": processes[index].returncode})
            stop.wait(_RESTART_PAUSE_S)
            processes[index] = subprocess.Popen(command)  # noqa: S603 - our own command
    for process in processes:
        if process.poll() is None:
            process.terminate()
    # A worker that was killed has a negative status, which is none that a program can exit with.
    return next((max(status, 1) for process in processes if (status := process.wait())), 0)


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
