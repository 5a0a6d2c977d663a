"""The worker that RQ runs: it outlives the troubles of its stores and of Redis, and ends when it is asked to."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from redis import exceptions
from rq import Queue
from rq.exceptions import DequeueTimeout, DeserializationError, StopRequested
from rq.executions import Execution
from rq.job import Job
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.timeouts import JobTimeoutException
from rq.worker import SimpleWorker, WorkerStatus
from rq.worker_registration import WORKERS_BY_QUEUE_KEY

from pipeline_poc import failpoints, retry
from pipeline_poc.breaker import Breaker
from pipeline_poc.clock import utc_now
from pipeline_poc.enqueueing import store_is_up
from pipeline_poc.errors import PipelineError, ServiceUnavailable, TransientError, mask_secrets
from pipeline_poc.migration import MigrationResult
from pipeline_poc.migration_job import MigrationJob, RefusedJobError
from pipeline_poc.migration_queue import WAITS_FOR
from pipeline_poc.orchestration.reporting import Reporter
from pipeline_poc.services import Services

logger = logging.getLogger(__name__)

_WORKER_TTL_S = 30
"""A worker that shows no life for a minute more than this disappears from the statistics."""
_DEQUEUE_S = 0.5
"""Longest wait for a job before the worker looks whether it is to go on."""
_BEAT_S = 1.0
"""A worker that waits shows this often that it lives."""
_SLICE_S = 0.1
"""Everything that waits looks so often whether it is to go on."""
_SILENCE_S = 60.0
"""A worker without a job that has not looked for one for so long hangs; Redis and pings get their time-outs on top."""
_REDIS_PAUSE_S = 1.0
"""Pause before Redis is asked again after an error."""
_LEDGER_S = 0.4
"""Longest wait for MongoDB when a batch is given back in a hurry."""
_ERROR_SHOWN = 500
"""Characters of an error that stay with a job."""


class MigrationWorker(SimpleWorker):
    """A worker on the migration queue.

    RQ's own worker ends at the first error of Redis that is none of the connection, and at many
    that are. This one waits: what the queue does not learn, ticks find out from the ledger.

    Args:
        services: The stores; kept open between jobs.
        reporter: Is told of every migrated batch.

    Attributes:
        succeeded: Number of jobs that went well; RQ counts in Redis only.
        failed: Number of attempts that did not.
        is_paused: Whether to begin no job; set by who looks after the worker.
        idle_since: Since when, by `time.monotonic`, there is nothing to finish; None while there is.
        looked_at: When, by the same clock, it looked last for a job, or whether it may begin one.
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
        policy = services.settings.job_policy
        self._breaker = Breaker(policy.base_s, policy.cap_s)
        self._batch_id: str | None = None
        self._is_burst = False
        self._is_redis_in_trouble = False
        self._next_beat_at = 0.0
        self.succeeded = 0
        self.failed = 0
        self.is_paused = False
        self.idle_since: float | None = time.monotonic()
        self.looked_at = time.monotonic()
        MigrationJob.handler = staticmethod(self._migrate)

    @property
    def connection_timeout(self) -> int:
        """Longest wait for an answer of Redis that RQ needs, in seconds; by its own numbers it is 25."""
        return 2

    def is_stopping(self) -> bool:
        """Whether a signal asked the worker to stop."""
        return self._stop_requested

    def shows_life(self) -> bool:
        """Whether the worker executes a job, which has a time limit, or has looked for one lately."""
        silent_s = time.monotonic() - self.looked_at
        return self.idle_since is None or silent_s < _SILENCE_S + 4 * self._services.settings.store_timeout_s

    def _migrate(self, batch_id: str) -> dict[str, Any]:
        failpoints.reach("worker.dequeued")
        self._batch_id = batch_id
        try:
            result: MigrationResult = self._services.migrate([batch_id])
        finally:
            self._batch_id = None
        self._reporter.add(result)
        self.succeeded += 1
        if self._breaker.succeeded():
            logger.info("breaker closed", extra={"batch": batch_id})
        return result.summary()

    # What the worker waits for

    def request_stop(self, signum: Any, frame: Any) -> None:  # noqa: ARG002 - a handler of signals
        """Stop after the running job; `shutdown.Grace` sees to it that this does not take for ever.

        RQ's own handler talks to Redis in the middle of whatever the job is doing.
        """
        self._stop_requested = True

    def subscribe(self) -> None:
        """Take no commands: whoever can write to Redis could stop workers and jobs."""

    def unsubscribe(self) -> None:
        """Do nothing, as above."""

    def check_for_suspension(self, burst: bool) -> None:
        """Wait while the migration is paused or the breaker is open; what is executed already is not interrupted.

        RQ's own suspension stops every queue of a Redis, and is forgotten when that is flushed.
        """
        before = None
        while not self._stop_requested and not self._may_begin():
            if burst:
                raise StopRequested
            if before is None:
                before = self.get_state()
                self.set_state(WorkerStatus.SUSPENDED)
            if self._beat_now_and_then():
                self._show(self._breaker.reason)
            self._rest(_SLICE_S)
        if before is not None:
            self.set_state(before)
            self._show(None)

    def _may_begin(self) -> bool:
        return not self.is_paused and self._breaker.may_try(self._answers)

    def _answers(self, setting: str) -> bool:
        """Return whether a store answers in time; the ping has a thread, since a frozen store may take a minute."""
        services = self._services
        pings: dict[str, Callable[[], None]] = {
            "MONGO_URL": lambda: services.raw_store.ping(),
            "SQL_URL": lambda: services.relational_store.ping(),
            "REDIS_URL": lambda: services.queue.ping(),
        }
        answers: list[bool] = []
        ping = pings.get(setting, lambda: None)
        thread = threading.Thread(target=lambda: answers.append(store_is_up(ping)), name="ping", daemon=True)
        thread.start()
        deadline = time.monotonic() + services.settings.store_timeout_s + 1.0
        while thread.is_alive() and time.monotonic() < deadline and not self._stop_requested:
            thread.join(_SLICE_S)
        return answers == [True]

    def _beat_now_and_then(self) -> bool:
        self.looked_at = time.monotonic()
        is_due = self.looked_at > self._next_beat_at
        if is_due:
            self._next_beat_at = self.looked_at + _BEAT_S
            self.heartbeat()
        return is_due

    def _show(self, waits_for: str | None) -> None:
        """Let people see what the worker waits for."""
        with suppress(exceptions.RedisError):
            if waits_for is None:
                self.connection.hdel(self.key, WAITS_FOR)
            else:
                self.connection.hset(self.key, WAITS_FOR, mask_secrets(waits_for)[:_ERROR_SHOWN])

    def _rest(self, seconds: float) -> None:
        """Sleep, but not on when a signal says that the worker is to stop."""
        until = time.monotonic() + seconds
        while not self._stop_requested and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _SLICE_S))

    def dequeue_job_and_maintain_ttl(
        self,
        timeout: int | None,
        max_idle_time: int | None = None,  # noqa: ARG002 - RQ gives it
    ) -> tuple[Job, Queue] | None:
        """Wait for a job, however long Redis is in trouble.

        In burst mode it does not wait: it returns None when the queue is empty.

        RQ's own wait can't be ended without losing the job that arrives just then.

        Raises:
            StopRequested: The worker is to stop, or in burst mode, and Redis or another store in trouble.
        """
        self._is_burst = timeout is None
        self.set_state(WorkerStatus.IDLE)
        while True:
            self.check_for_suspension(self._is_burst)
            if self.is_stopping():
                raise StopRequested
            self._beat_now_and_then()
            try:
                if self.should_run_maintenance_tasks:
                    self.run_maintenance_tasks()
                found = self._dequeue(None if self._is_burst else _DEQUEUE_S)
            except DequeueTimeout:
                self._redis_answers()
                continue
            except exceptions.RedisError as error:
                self._redis_fails(error)
                if self._is_burst:
                    raise StopRequested from error
                continue
            self._redis_answers()
            if found is not None and (self.is_stopping() or self.is_paused):
                with suppress(PipelineError):
                    self._services.queue.put_back(found[0].id)
                continue
            return found

    def _dequeue(self, timeout_s: float | None) -> tuple[Job, Queue] | None:
        while True:
            try:
                return self.queue_class.dequeue_any(
                    self.queues,
                    cast(int | None, timeout_s),  # Redis takes parts of a second.
                    connection=self.connection,
                    job_class=self.job_class,
                    serializer=self.serializer,
                )
            except (DequeueTimeout, exceptions.RedisError):
                raise
            except Exception as error:
                # Whoever can write to Redis chooses what RQ stumbles over; it tells the job's name.
                job_id = getattr(error, "job_id", None)
                if job_id is None:
                    raise
                self._throw_away(str(job_id), error)

    def _redis_fails(self, error: exceptions.RedisError) -> None:
        if not self._is_redis_in_trouble:
            logger.warning("redis in trouble", extra={"error": mask_secrets(str(error))[:_ERROR_SHOWN]})
        self._is_redis_in_trouble = True
        self._rest(_REDIS_PAUSE_S)

    def _redis_answers(self) -> None:
        if self._is_redis_in_trouble:
            logger.info("redis is back")
        self._is_redis_in_trouble = False

    # What Redis is told, if it listens

    def set_state(self, state: str, pipeline: Any = None) -> None:
        """Show the state; where Redis is in trouble, nobody sees it."""
        with suppress(exceptions.RedisError):
            super().set_state(state, pipeline)

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Show that the worker lives; where Redis is in trouble, nobody sees it."""
        with suppress(exceptions.RedisError):
            super().heartbeat(timeout, pipeline)

    def register_death(self) -> None:
        """Strike the worker off the list; where Redis is in trouble, it expires there."""
        with suppress(exceptions.RedisError):
            super().register_death()  # type: ignore[no-untyped-call]

    def register_again(self) -> None:
        """Register with Redis once more where that has forgotten this worker: it was flushed."""
        if self.birth_date is None or self._stop_requested:  # It has never been there, or is about to go.
            return
        if not self.connection.sismember(WORKERS_BY_QUEUE_KEY % self.queues[0].name, self.key):
            self.connection.delete(self.key)
            self.register_birth()  # type: ignore[no-untyped-call]
            self.set_state(self.get_state())
            if self.is_stopping():  # Meanwhile; the other thread may have struck it off just before.
                self.register_death()

    def run_maintenance_tasks(self) -> None:
        """Let RQ tidy up; what goes wrong there is no reason to stop."""
        try:
            super().run_maintenance_tasks()  # type: ignore[no-untyped-call]
        except Exception as error:  # noqa: BLE001 - whoever can write to Redis chooses what RQ stumbles over
            self.last_cleaned_at = utc_now()  # type: ignore[assignment]
            logger.warning("maintenance failed", extra={"error": f"{type(error).__name__}: {error}"[:_ERROR_SHOWN]})

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Execute a job; where Redis can't be told of it, a tick finds in the ledger what is left to do."""
        self.idle_since = None
        job.origin = queue.name  # Whatever it says of itself, or RQ would tidy up elsewhere.
        try:
            super().execute_job(job, queue)
        except exceptions.RedisError as error:
            self._redis_fails(error)
        except Exception as error:  # noqa: BLE001 - as above; what goes wrong in a migration does not get here
            self._throw_away(job.id, error)
        finally:
            self.executions.clear()
            self.set_state(WorkerStatus.IDLE)
            self.idle_since = time.monotonic()

    def handle_execution_ended(self, job: Job, queue: Queue, heartbeat_ttl: int) -> None:
        """Note the end of an execution, whether or not Redis is told."""
        with suppress(exceptions.RedisError):
            super().handle_execution_ended(job, queue, heartbeat_ttl)

    def handle_job_success(
        self, job: Job, queue: Queue, started_job_registry: StartedJobRegistry, execution: Execution
    ) -> None:
        """Acknowledge a job as soon as Redis takes it.

        Its batch is closed: no tick would look at it again, and the job would count as running
        until its time limit.
        """
        while True:
            try:
                super().handle_job_success(job, queue, started_job_registry, execution)
            except exceptions.RedisError as error:
                self._redis_fails(error)
                if self._stop_requested or self._is_burst or "WRONGTYPE" in str(error):  # Which no waiting mends.
                    return
            else:
                self._redis_answers()
                return

    # What becomes of failures

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """Decide what becomes of a failed job: another attempt after a while, or a dead letter.

        RQ asks `job.retries_left` next; it knows no decision that depends on the error.
        """
        self.failed += 1
        error = self._cause(cast(BaseException, exc_info[1]))
        attempt = (job.number_of_retries or 0) + 1
        decision = retry.decide(error, attempt, self._services.settings.job_policy)
        if decision.delay_s is None:
            job.retries_left = None
        else:
            job.number_of_retries = attempt
            job.retries_left = 1
            job.retry_intervals = [max(1, round(decision.delay_s))]
        text = f"{type(error).__name__}: {error}"
        with suppress(PipelineError), self._services.queue.translated():
            job.meta["error"] = {"type": type(error).__name__, "message": mask_secrets(str(error))[:_ERROR_SHOWN]}
            job.save_meta()  # type: ignore[no-untyped-call]
        if isinstance(error, RefusedJobError):  # Which says nothing about the batch of that name.
            self._refuse(job.id, str(error))
            return
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
        if isinstance(error, TransientError) and self._breaker.failed(error):
            logger.warning("breaker opened: no job is begun until a store is well", extra={"reason": text})
        self._note(job.id, text, type(error).__name__, is_dead=decision.delay_s is None and not decision.systemic)

    def _cause(self, error: BaseException) -> BaseException:
        if isinstance(error, JobTimeoutException):
            return self._timed_out(error)
        if isinstance(error, DeserializationError):
            return RefusedJobError("the job's payload is not JSON")
        if isinstance(error, exceptions.RedisError):
            return ServiceUnavailable("Redis", "REDIS_URL", self._services.queue.shown_url, error)
        return error

    def _timed_out(self, error: JobTimeoutException) -> PipelineError:
        services = self._services
        for name, setting, store in (
            ("MongoDB", "MONGO_URL", services.raw_store),
            ("The relational store", "SQL_URL", services.relational_store),
        ):
            if not self._answers(setting):
                return ServiceUnavailable(name, setting, store.shown_url, "no answer within the job's time limit")
        # Every store answers: a batch that always takes too long needs a person.
        return PipelineError(f"the job ran into its time limit: {error}")

    def _refuse(self, job_id: str, reason: str) -> None:
        logger.error("job refused", extra={"job": job_id, "reason": mask_secrets(reason)[:_ERROR_SHOWN]})
        with suppress(PipelineError):
            self._services.ledger.counters.add(utc_now(), {"migration.refused_jobs": 1})

    def _throw_away(self, job_id: str, error: Exception) -> None:
        self._refuse(job_id, f"RQ can't handle it: {type(error).__name__}: {error}")
        with suppress(PipelineError):
            self._services.queue.discard(job_id)

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

    # The end

    def give_back(self) -> None:
        """Return the running batch to the backlog and its job to the queue, from another thread: this process ends.

        The order matters: whoever takes the job must not find the ledger changed under their hands.
        """
        services, batch_id = self._services, self._batch_id
        if batch_id is not None:
            is_mine: list[bool] = []

            def end() -> None:
                with suppress(PipelineError):
                    why = "its worker was asked to stop"
                    is_mine.append(services.ledger.give_back(batch_id, services.worker_name, why))

            ledger = threading.Thread(target=end, name="ledger", daemon=True)
            ledger.start()
            ledger.join(_LEDGER_S)
            if is_mine != [False]:  # Where MongoDB does not answer, the job shows that the batch waits.
                with suppress(PipelineError):
                    services.queue.replace([batch_id])
            logger.warning("batch given back", extra={"batch": batch_id})
        self.register_death()
