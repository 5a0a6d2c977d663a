"""The migration queue: RQ on Redis. Disposable: everything in it can be rebuilt from the ledger.

A job carries the id of its batch, as JSON, and has that id itself. A job names its function,
but the name is only compared: nothing is ever imported because Redis says so (`worker`).
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from redis import Redis, exceptions
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry
from rq import Queue
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job
from rq.scheduler import RQScheduler
from rq.serializers import JSONSerializer
from rq.worker import SimpleWorker

from pipeline_poc.errors import ServiceUnavailable, invalid_url, mask_secrets

logger = logging.getLogger(__name__)

JOB_FUNCTION = "pipeline_poc.worker.migrate_batch"
"""The only function that a worker executes."""

_RESULT_TTL_S = 86_400
"""Jobs that went well can be looked at for a day."""
_FAILURE_TTL_S = 30 * 86_400
"""Dead letters can be looked at for a month; their batches wait in the ledger without end."""
_TICK_LOCK_S = 60
"""A tick that died gives way to the next one after so many seconds."""


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """Ids of the jobs by where they are; every unfinished job is in exactly one place.

    Attributes:
        queued: Waiting for a worker.
        taken: Taken from the queue by a worker that has not begun to execute it.
        started: Begun, as far as Redis knows.
        scheduled: Waiting for the time of their next attempt.
        failed: Dead letters.
    """

    queued: frozenset[str]
    taken: frozenset[str]
    started: frozenset[str]
    scheduled: frozenset[str]
    failed: frozenset[str]

    @property
    def outstanding(self) -> frozenset[str]:
        """Jobs that will still be executed without anybody's help."""
        return self.queued | self.taken | self.started | self.scheduled


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """Number of jobs by state, and of live workers."""

    queued: int
    started: int
    scheduled: int
    finished: int
    failed: int
    workers: int


class MigrationQueue:
    """One RQ queue.

    Args:
        url: The Redis server; may hold a password.
        name: Of the queue.
        timeout_s: Longest wait for a connection or an answer, in seconds.
        job_timeout_s: Longest run of a job, in seconds.

    Raises (every method):
        ServiceUnavailable: Redis can't be reached, refuses the login or is out of memory.
    """

    def __init__(self, url: str, name: str, *, timeout_s: float, job_timeout_s: int) -> None:
        self._url = url
        self._job_timeout_s = job_timeout_s
        try:
            self._redis = Redis.from_url(
                url,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                health_check_interval=30,
                # One broken connection, such as after a restart of the server, is no outage.
                retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), 2),
                client_name="pipeline_poc",
            )
        except ValueError as error:
            raise invalid_url("REDIS_URL", url, error) from None
        self.rq = Queue(name, connection=self._redis, serializer=JSONSerializer)
        """The queue itself, for the worker."""

    @property
    def shown_url(self) -> str:
        """The URL without secrets, fit for logs and screens."""
        return mask_secrets(self._url)

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def ping(self) -> None:
        """Check that Redis answers and accepts the login."""
        with self.translated():
            self._redis.ping()

    def enqueue(self, batch_ids: Sequence[str]) -> None:
        """Put a job for each of these batches at the end of the queue."""
        if not batch_ids:
            return
        with self.translated():
            self.rq.enqueue_many(
                [
                    Queue.prepare_data(
                        JOB_FUNCTION,
                        args=(batch_id,),
                        job_id=batch_id,
                        timeout=self._job_timeout_s,
                        result_ttl=_RESULT_TTL_S,
                        failure_ttl=_FAILURE_TTL_S,
                        description=f"migrate batch {batch_id}",
                    )
                    for batch_id in batch_ids
                ]
            )

    def replace(self, batch_ids: Sequence[str]) -> None:
        """Put a fresh job for each of these batches at the end, in place of whatever job it had."""
        with self.translated():
            taken = IntermediateQueue(self.rq.key, self._redis)
            jobs = Job.fetch_many(batch_ids, connection=self._redis, serializer=JSONSerializer)
            for batch_id, job in zip(batch_ids, jobs, strict=True):
                taken.remove(batch_id)
                if job is not None:
                    job.delete()
        self.enqueue(batch_ids)

    def snapshot(self) -> QueueSnapshot:
        """Return where all unfinished jobs and dead letters are, in one instant."""
        registries = (self.rq.started_job_registry, self.rq.scheduled_job_registry, self.rq.failed_job_registry)
        with self.translated(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.lrange(self.rq.key, 0, -1)
            pipeline.lrange(IntermediateQueue.get_intermediate_queue_key(self.rq.key), 0, -1)
            for registry in registries:
                pipeline.zrange(registry.key, 0, -1)
            queued, taken, started, scheduled, failed = cast(list[list[bytes]], pipeline.execute())
        # The entries of the started registry are "job id:execution id".
        running = frozenset(entry.decode().partition(":")[0] for entry in started)
        return QueueSnapshot(
            queued=_ids(queued),
            taken=_ids(taken) - running,
            started=running,
            scheduled=_ids(scheduled),
            failed=_ids(failed),
        )

    def promote_due(self) -> None:
        """Put the scheduled jobs whose time has come on the queue.

        Does what RQ's scheduler process does, without the process: many may call it at once.
        """
        with self.translated():
            # RQ's scheduler has no type hints.
            scheduler: Any = RQScheduler(
                [self.rq], connection=self._redis, serializer=JSONSerializer, logging_level=logging.WARNING
            )
            if scheduler.acquire_locks():
                try:
                    scheduler.enqueue_scheduled_jobs()
                finally:
                    scheduler.release_locks()

    def suspected_since(self, batch_ids: Sequence[str], now: datetime) -> dict[str, datetime]:
        """Remember that these jobs look lost, and forget all others; return since when each does."""
        key = f"{self.rq.key}:suspects"
        with self.translated():
            before = cast(dict[bytes, bytes], self._redis.hgetall(key))
            since = {i: datetime.fromisoformat(before[i.encode()].decode()) for i in batch_ids if i.encode() in before}
            since |= {batch_id: now for batch_id in batch_ids if batch_id not in since}
            if before or since:
                with self._redis.pipeline(transaction=True) as pipeline:
                    pipeline.delete(key)
                    if since:
                        pipeline.hset(key, mapping={batch_id: at.isoformat() for batch_id, at in since.items()})
                    pipeline.execute()
        return since

    @contextmanager
    def tick_lock(self) -> Iterator[bool]:
        """Hold the right to enqueue; yields False if another tick has it."""
        lock = self._redis.lock(f"{self.rq.key}:tick", timeout=_TICK_LOCK_S, blocking=False)
        with self.translated():
            mine = bool(lock.acquire())
        try:
            yield mine
        finally:
            if mine:
                try:
                    lock.release()
                except exceptions.RedisError:
                    logger.debug("the tick's lock was lost; the next tick is not hindered")

    def counts(self) -> QueueCounts:
        """Count the jobs by state; costs the same however many there are."""
        queue = self.rq
        with self.translated(), self._redis.pipeline() as pipeline:
            pipeline.llen(queue.key)
            for registry in (
                queue.started_job_registry,
                queue.scheduled_job_registry,
                queue.finished_job_registry,
                queue.failed_job_registry,
            ):
                pipeline.zcard(registry.key)
            queued, started, scheduled, finished, failed = cast(list[int], pipeline.execute())
            workers = len(SimpleWorker.all(queue=queue, serializer=JSONSerializer))
        return QueueCounts(
            queued=queued, started=started, scheduled=scheduled, finished=finished, failed=failed, workers=workers
        )

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Raise the driver's errors as errors of the pipeline.

        Raises:
            ServiceUnavailable: Any of them; none is about data.
        """
        try:
            yield
        except exceptions.RedisError as error:
            raise ServiceUnavailable("Redis", "REDIS_URL", self._url, error) from error


def _ids(entries: Sequence[bytes]) -> frozenset[str]:
    return frozenset(entry.decode() for entry in entries)
