"""The migration queue: RQ on Redis. Disposable: everything in it can be rebuilt from the ledger.

A job carries the id of its batch, as JSON, and has that id itself. A job names its function,
but the name is only compared: nothing is ever imported because Redis says so (`worker`).
"""

import base64
import json
import logging
import math
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, cast

from redis import Redis, exceptions
from redis.backoff import ExponentialWithJitterBackoff
from redis.lock import Lock
from redis.retry import Retry
from rq import Queue
from rq.exceptions import InvalidJobOperation
from rq.executions import WORKER_EXECUTIONS_KEY_TEMPLATE
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job
from rq.registry import BaseRegistry
from rq.scheduler import RQScheduler
from rq.serializers import JSONSerializer
from rq.utils import utcparse
from rq.worker_registration import WORKERS_BY_QUEUE_KEY

from pipeline_poc import failpoints
from pipeline_poc.errors import ServiceUnavailable, invalid_url, mask_secrets
from pipeline_poc.selection import SelectionError

logger = logging.getLogger(__name__)

JOB_FUNCTION = "pipeline_poc.worker.migrate_batch"
"""The only function that a worker executes."""

_RESULT_TTL_S = 86_400
"""Jobs that went well can be looked at for a day."""
_FAILURE_TTL_S = 30 * 86_400
"""Dead letters can be looked at for a month; their batches wait in the ledger without end."""
_ERROR_SHOWN = 500
"""Characters of an error that a person is shown."""
_TICK_LOCK_S = 8.0
"""A tick that died gives way to the next one after so many seconds."""
_PROMOTION_LOCK_S = 8
"""Whoever died while promoting retries gives way after so many seconds."""
_TICK_RENEWAL_S = 2.0
"""A tick that lives renews its lock so often."""
WAITS_FOR = "waits_for"
"""Field of a worker's hash that RQ does not have: why the worker begins nothing."""


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


JobState = Literal["queued", "started", "scheduled", "finished", "failed", "deferred"]
JOB_STATES: tuple[JobState, ...] = ("queued", "started", "scheduled", "finished", "failed", "deferred")


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """Number of jobs by state, and of live workers."""

    queued: int
    started: int
    scheduled: int
    finished: int
    failed: int
    deferred: int
    workers: int


@dataclass(frozen=True, slots=True)
class JobInfo:
    """A job as people look at it.

    Attributes:
        id: Of the job, and of its batch.
        attempt: The latest one that began; counts from 1; 0 before the first.
        next_retry_at: When the next attempt is due; None unless it is scheduled.
        error_type: Class of the last attempt's error; None where it went well or there was none.
        worker: Who executes it, or did so last.
    """

    id: str
    state: JobState
    attempt: int = 0
    enqueued_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    next_retry_at: datetime | None = None
    error_type: str | None = None
    error_message: str | None = None
    worker: str | None = None


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A live worker, and what it is doing.

    Attributes:
        state: ``idle``, ``busy``, ``suspended`` or ``started``.
        batch: What it executes; None while it is idle.
        heartbeat_at: Its last sign of life.
        waits_for: What went wrong, where it begins no job until a store is well again.
    """

    name: str
    state: str
    batch: str | None
    birth_at: datetime | None
    heartbeat_at: datetime | None
    succeeded: int
    failed: int
    waits_for: str | None = None


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
            for batch_id, job in zip(batch_ids, self._read(batch_ids), strict=True):
                taken.remove(batch_id)
                if job is not None:
                    with suppress(InvalidJobOperation):
                        job.delete()
                self._redis.delete(Job.key_for(batch_id))  # What RQ can't read is in the way, too.
        failpoints.reach("tick.cleared")
        self.enqueue(batch_ids)

    def put_back(self, job_id: str) -> None:
        """Return a job that was taken, and not begun, to the front of the queue."""
        with self.translated(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.lrem(IntermediateQueue.get_intermediate_queue_key(self.rq.key), 1, job_id)
            pipeline.lpush(self.rq.key, job_id)
            pipeline.execute()

    def discard(self, job_id: str) -> None:
        """Delete a job that was taken and that RQ can't read; if it had a batch, the next tick enqueues that anew."""
        with self.translated(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.lrem(IntermediateQueue.get_intermediate_queue_key(self.rq.key), 0, job_id)
            pipeline.delete(Job.key_for(job_id))
            pipeline.execute()

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
        running = frozenset(entry.partition(":")[0] for entry in _ids(started))
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
                [self.rq],
                connection=self._redis,
                interval=_PROMOTION_LOCK_S - 60,  # RQ adds a minute to it, in which nobody else could promote.
                serializer=JSONSerializer,
                logging_level=logging.WARNING,
            )
            scheduler._connection = self._redis  # It would open another one each time.
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
        """Hold the right to enqueue; yields False if another tick has it.

        A lock that gets lost, as to a process that stood still for a while, does no harm: ticks
        may run at once.
        """
        lock = self._redis.lock(
            f"{self.rq.key}:tick",
            timeout=_TICK_LOCK_S,
            blocking=False,
            thread_local=False,  # It is renewed by another thread.
        )
        with self.translated():
            mine = bool(lock.acquire())
        if not mine:
            yield False
            return
        done = threading.Event()
        renewal = threading.Thread(target=_renew, args=(lock, done), name="tick-lock", daemon=True)
        renewal.start()
        try:
            yield True
        finally:
            done.set()
            try:
                lock.release()
            except exceptions.RedisError:
                logger.debug("the tick's lock was lost; the next tick is not hindered")

    def counts(self) -> QueueCounts:
        """Count the jobs by state; costs the same however many there are."""
        queue = self.rq
        with self.translated(), self._redis.pipeline() as pipeline:
            pipeline.llen(queue.key)
            for state in JOB_STATES[1:]:
                pipeline.zcard(self._registry_key(state))
            pipeline.scard(self._workers_key)
            counts = cast(list[int], pipeline.execute())
        return QueueCounts(*counts)

    def page(self, state: JobState, *, limit: int, cursor: str | None = None) -> tuple[list[JobInfo], str | None]:
        """List jobs in a state, newest first; costs the same however many there are.

        Args:
            state: Where to look.
            limit: Most jobs to return.
            cursor: What the page before returned; None for the newest.

        Returns:
            The jobs, and the cursor of the next page; None where there is none.

        Raises:
            SelectionError: The cursor is none of ours.
        """
        after = _decode_cursor(cursor) if cursor else None
        with self.translated():
            found = self._queued_ids(limit + 1, after) if state == "queued" else self._listed(state, limit + 1, after)
            shown = found[:limit]
            jobs = self._infos([entry for entry, _ in shown], state, dict(shown))
        return jobs, _encode_cursor(*shown[-1]) if len(found) > limit else None

    def _queued_ids(self, count: int, after: tuple[str, float] | None) -> list[tuple[str, float]]:
        key = self.rq.key
        # The newest are at the end. Where the job of the cursor is gone, so are those before it: first in, first out.
        end = cast(int | None, self._redis.llen(key) if after is None else self._redis.lpos(key, after[0], rank=-1))
        if not end:
            return []
        entries = cast(list[bytes], self._redis.lrange(key, max(0, end - count), end - 1))
        return [(_shown(entry), 0.0) for entry in reversed(entries)]

    def _listed(self, state: JobState, count: int, after: tuple[str, float] | None) -> list[tuple[str, float]]:
        key = self._registry_key(state)
        first = 0
        if after is not None:
            rank = cast(int | None, self._redis.zrevrank(key, after[0]))
            first = rank + 1 if rank is not None else self._redis.zcount(key, f"({after[1]!r}", "+inf")
        entries = self._redis.zrevrange(key, first, first + count - 1, withscores=True)
        return [(_shown(entry), score) for entry, score in cast(list[tuple[bytes, float]], entries)]

    def _infos(self, entries: Sequence[str], state: JobState, scores: Mapping[str, float]) -> list[JobInfo]:
        ids = [entry.partition(":")[0] for entry in entries]
        jobs = self._read(ids)
        return [
            _job_info(job, state, scores[entry]) if job is not None else JobInfo(job_id, state)
            for entry, job_id, job in zip(entries, ids, jobs, strict=True)
        ]

    def _read(self, job_ids: Sequence[str]) -> list[Job | None]:
        """Read jobs for people; None for what is gone, or is no job that RQ can read."""
        with self._redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hgetall(Job.key_for(job_id))
            kept = cast(list[dict[bytes, bytes]], pipeline.execute())
        return [self._restored(job_id, values) for job_id, values in zip(job_ids, kept, strict=True)]

    def _restored(self, job_id: str, values: dict[bytes, bytes]) -> Job | None:
        try:
            job = Job(job_id, connection=self._redis, serializer=JSONSerializer)
            job.restore(values)
        except Exception:  # noqa: BLE001 - whoever can write to Redis chooses what RQ stumbles over
            return None
        return job

    def job(self, batch_id: str) -> JobInfo | None:
        """Look the job of a batch up; None where the queue doesn't know it."""
        with self.translated():
            (job,) = self._read([batch_id])
            state = job.get_status(refresh=False).value if job is not None else None
            if job is None or state not in JOB_STATES:
                return None
            due = self._redis.zscore(self._registry_key("scheduled"), batch_id)
        return _job_info(job, state, due or 0.0)

    def workers(self) -> list[WorkerInfo]:
        """List the live workers and what they do, by name."""
        with self.translated():
            keys = sorted(
                key.decode(errors="replace") for key in cast(set[bytes], self._redis.smembers(self._workers_key))
            )
            names = [key.rpartition(":")[2] for key in keys]
            with self._redis.pipeline(transaction=False) as pipeline:
                for key, name in zip(keys, names, strict=True):
                    pipeline.hgetall(key)
                    pipeline.smembers(WORKER_EXECUTIONS_KEY_TEMPLATE.format(name))
                kept: list[Any] = pipeline.execute()
        # The hash of a worker that died without a word expires; its name stays listed until another one tidies up.
        return [
            _worker_info(name, values, executions)
            for name, values, executions in zip(names, kept[::2], kept[1::2], strict=True)
            if b"birth" in values and b"death" not in values
        ]

    @property
    def _workers_key(self) -> str:
        return WORKERS_BY_QUEUE_KEY % self.rq.name

    def _registry_key(self, state: JobState) -> str:
        registries: dict[str, BaseRegistry] = {
            "started": self.rq.started_job_registry,
            "scheduled": self.rq.scheduled_job_registry,
            "finished": self.rq.finished_job_registry,
            "failed": self.rq.failed_job_registry,
            "deferred": self.rq.deferred_job_registry,
        }
        return registries[state].key

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


def _renew(lock: Lock, done: threading.Event) -> None:
    while not done.wait(_TICK_RENEWAL_S):
        try:
            lock.reacquire()
        except exceptions.LockError:  # Lost, or released just now.
            return
        except exceptions.RedisError as error:
            logger.debug("the tick's lock is not renewed: %s", error)


def _job_info(job: Job, state: JobState, score: float) -> JobInfo:
    meta: Any = job.meta  # Whoever can write to Redis chooses it.
    error = meta.get("error") if isinstance(meta, dict) else None
    error = error if isinstance(error, dict) and state != "finished" else {}
    has_begun = job.started_at is not None
    return JobInfo(
        id=job.id,
        state=state,
        attempt=(job.number_of_retries or 0) + (1 if state in ("started", "finished", "failed") and has_begun else 0),
        enqueued_at=job.enqueued_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
        next_retry_at=datetime.fromtimestamp(score, UTC) if state == "scheduled" else None,
        error_type=_text(error.get("type")),
        error_message=_text(error.get("message")),
        worker=job.worker_name,
    )


def _shown(entry: bytes) -> str:
    return entry.decode("utf-8", "replace")


def _text(value: object) -> str | None:
    # JSON may spell out halves of characters, which no answer can carry.
    return None if value is None else str(value)[:_ERROR_SHOWN].encode(errors="backslashreplace").decode()


def _worker_info(name: str, values: Mapping[bytes, bytes], executions: Collection[bytes]) -> WorkerInfo:
    texts = {field.decode(): value.decode("utf-8", "replace") for field, value in values.items()}
    return WorkerInfo(
        name=name,
        state=texts.get("state", "started"),
        batch=next((entry.partition(":")[0] for entry in _ids(executions)), None),
        birth_at=utcparse(texts["birth"]),
        heartbeat_at=utcparse(texts["last_heartbeat"]) if "last_heartbeat" in texts else None,
        succeeded=int(texts.get("successful_job_count", 0)),
        failed=int(texts.get("failed_job_count", 0)),
        waits_for=texts.get(WAITS_FOR),
    )


def _encode_cursor(entry: str, score: float) -> str:
    return base64.urlsafe_b64encode(json.dumps([entry, score]).encode()).decode().rstrip("=")


def _decode_cursor(cursor: str) -> tuple[str, float]:
    try:
        entry, score = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        place = str(entry.encode(), "utf-8"), float(score)
    except (AttributeError, TypeError, ValueError, OverflowError, RecursionError):
        raise SelectionError("the cursor is not one that a page returned") from None
    if not math.isfinite(place[1]):
        raise SelectionError("the cursor is not one that a page returned")
    return place


def _ids(entries: Collection[bytes]) -> frozenset[str]:
    return frozenset(entry.decode(errors="replace") for entry in entries)
