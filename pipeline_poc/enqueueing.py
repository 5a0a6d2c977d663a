"""Enqueue: backlog → migration queue. A tick brings the queue in line with the ledger.

A tick is bounded by its window, not by the backlog, and idempotent: it may be replayed, run
twice at once, or die at any point.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from pipeline_poc import failpoints, tracing
from pipeline_poc.clock import utc_now
from pipeline_poc.control import Mode
from pipeline_poc.errors import PipelineError
from pipeline_poc.ingestion import take_over
from pipeline_poc.ledger import Batch, Ledger
from pipeline_poc.migration_queue import MigrationQueue, QueueSnapshot
from pipeline_poc.raw_store import RawStore

logger = logging.getLogger(__name__)

_WATCH_ABANDONED = timedelta(hours=1)
"""How long an abandoned batch is watched for stragglers: far longer than an ingestion can sleep."""
_ADOPTIONS = 4
"""Batches that one tick adopts at most."""


@dataclass(frozen=True, slots=True)
class TickPolicy:
    """The numbers of a tick.

    Attributes:
        window: Most jobs outstanding at once.
        batch_size: Most posts in an adopted batch.
        heartbeat_timeout_s: A batch that is silent for so long has lost its worker.
        filling_timeout_s: A batch that is not sealed for so long has lost its ingestion.
        retry_cap_s: Longest that a retry waits for its time.
    """

    window: int
    batch_size: int
    heartbeat_timeout_s: float
    filling_timeout_s: float
    retry_cap_s: float = 60.0


@dataclass(slots=True)
class TickResult:
    """What a tick did; counts batches, but for ``posts`` and ``adopted``, which count posts.

    Attributes:
        enqueued: Batches that the queue did not know: new ones, and lost ones.
        posts: Posts in them.
        freed: Taken from workers that gave no sign of life, or from a retry that a wrong clock put far ahead.
        requeued: Dead letters of an outage that is over.
        adopted: Posts that were in no batch, or in one that its ingestion left unfinished.
        outstanding: Jobs on the queue afterwards.
        waiting_for_store: Dead letters that wait for the relational store to come back.
        busy: Another tick is at work; this one did nothing.
        mode: The migration's mode; nothing new is enqueued unless it is running.
    """

    enqueued: int = 0
    posts: int = 0
    freed: int = 0
    requeued: int = 0
    adopted: int = 0
    outstanding: int = 0
    waiting_for_store: int = 0
    busy: bool = False
    mode: Mode = "running"

    def sentence(self, noun: str = "post") -> str:
        """Return what happened in a line for a person; a record is called by the noun."""
        if self.busy:
            return "another tick is at work"
        done = [
            (self.enqueued, f"enqueued {_number(self.enqueued, 'batch')} ({_number(self.posts, noun)})"),
            (self.freed, f"freed {_number(self.freed, 'batch')} of silent workers"),
            (self.requeued, f"requeued {_number(self.requeued, 'batch')} after an outage"),
            (self.adopted, f"adopted {_number(self.adopted, noun)}"),
            (
                self.waiting_for_store,
                f"left {_number(self.waiting_for_store, 'batch')} to wait for the relational store",
            ),
        ]
        said = ", ".join(text for count, text in done if count)
        idle = "nothing to enqueue" if self.mode == "running" else f"the migration is {self.mode}"
        return f"{said or idle}; {_number(self.outstanding, 'job')} outstanding"


def _number(count: int, noun: str) -> str:
    plural = "es" if noun.endswith("ch") else "s"
    return f"{count} {noun}{'' if count == 1 else plural}"


def tick(
    raw_store: RawStore,
    ledger: Ledger,
    queue: MigrationQueue,
    relational_store_is_up: Callable[[], bool],
    policy: TickPolicy,
    *,
    mode: Mode,
) -> TickResult:
    """Enqueue what of the backlog has no job, and mend what crashes and outages left.

    Args:
        raw_store: Holds the posts.
        ledger: Holds the batches: the truth.
        queue: Is brought in line.
        relational_store_is_up: Asked only where dead letters depend on it.
        policy: The numbers.
        mode: Of the migration.

    Raises:
        ServiceUnavailable: MongoDB or Redis is away; the next tick makes up for it.
    """
    result = TickResult(mode=mode)
    with queue.tick_lock() as mine:
        if not mine:
            result.busy = True
            return result
        failpoints.reach("tick.begun")
        if mode == "paused":
            result.outstanding = len(queue.snapshot().outstanding)
        else:
            queue.promote_due()
            result.adopted = adopt(raw_store, ledger, policy)
            _line_up(ledger, queue, relational_store_is_up, policy, result)
    logger.info("tick finished", extra=asdict(result))
    return result


def adopt(raw_store: RawStore, ledger: Ledger, policy: TickPolicy) -> int:
    """Give unmigrated posts that nobody takes care of a batch; returns their number.

    They are in no batch, or in one whose ingestion died. Bounded; what is left comes with the next call.
    """
    adopted = 0
    now = utc_now()
    for batch in ledger.batches("filling"):
        if not _is_within(policy.filling_timeout_s, batch.created_at, now):
            adopted += take_over(batch.id, batch.created_at, raw_store, ledger, traceparent=batch.traceparent)
    for batch in ledger.batches("abandoned"):
        adopted += take_over(batch.id, batch.created_at, raw_store, ledger, traceparent=batch.traceparent)
        if batch.abandoned_at is None or now - batch.abandoned_at > _WATCH_ABANDONED:
            ledger.close(batch.id, now, {"migrated": 0, "quarantined": 0})
    for _ in range(_ADOPTIONS):
        if not raw_store.has_unmigrated(None):
            break
        batch_id = ledger.create(0, now)
        stamped = raw_store.adopt(batch_id, now, limit=policy.batch_size)
        ledger.seal(batch_id, stamped)
        adopted += stamped
        if stamped < policy.batch_size:
            break
    return adopted


def _line_up(
    ledger: Ledger,
    queue: MigrationQueue,
    relational_store_is_up: Callable[[], bool],
    policy: TickPolicy,
    result: TickResult,
) -> None:
    now = utc_now()
    # The ledger first: a batch that closes in between is enqueued in vain, not overlooked.
    batches = {batch.id: batch for batch in ledger.batches("open", limit=policy.window)}
    jobs = queue.snapshot()

    lost = _silent(batches, jobs, queue, now, policy)
    put_off = _put_off(batches, jobs, queue, now, policy)
    is_fed = result.mode == "running"
    failed = [i for i in batches if is_fed and i in jobs.failed and i not in jobs.outstanding]
    if failed and not relational_store_is_up():
        result.waiting_for_store = len(failed)
        failed = []
    room = policy.window - _outstanding(batches, jobs, ledger) if is_fed else 0
    unknown = [
        batch
        for batch in batches.values()
        if batch.id not in jobs.outstanding
        and batch.id not in jobs.failed
        and not batch.is_alive(now, policy.heartbeat_timeout_s)
    ]
    fresh = unknown[: max(room, 0)]

    for batch_id in lost:
        ledger.note_failure(batch_id, "its worker gave no sign of life")
    for batch in fresh:
        if batch.started_at is not None:  # By a run past the queue, or by a worker whose job is lost.
            ledger.note_failure(batch.id, "its run gave no sign of life")
    again, first = [*lost, *put_off, *failed], [batch.id for batch in fresh]
    with tracing.enqueueing({i: batches[i].traceparent for i in again + first}, queue.rq.name):
        queue.replace(again)
        # A finished job of a batch that is open again would be in the way of a new one of its name.
        queue.replace(first)
    failpoints.reach("tick.enqueued")
    result.freed = len(lost) + len(put_off)
    result.requeued = len(failed)
    result.enqueued = len(fresh)
    result.posts = sum(batch.size for batch in fresh)
    result.outstanding = len(jobs.outstanding | {batch.id for batch in fresh} | set(failed))


def _silent(
    batches: dict[str, Batch], jobs: QueueSnapshot, queue: MigrationQueue, now: datetime, policy: TickPolicy
) -> list[str]:
    """Return the batches whose worker died: silent in the ledger, or stuck on the way to it."""
    # What waits for a worker is no worker's, whatever a dead one left behind in RQ's registries.
    held_ids = (jobs.started | jobs.taken) - jobs.queued - jobs.scheduled
    held = [batch for batch in batches.values() if batch.id in held_ids]
    doubtful = [batch for batch in held if not batch.is_alive(now, policy.heartbeat_timeout_s)]
    # A worker that died before it reached the ledger left no heartbeat, and one from the future says
    # nothing: only the time passing tells.
    since = queue.suspected_since([batch.id for batch in doubtful], now)
    silent = [batch.id for batch in doubtful if batch.last_sign_at and batch.last_sign_at < now]
    stuck = [i for i, at in since.items() if not _is_within(policy.heartbeat_timeout_s, at, now)]
    return sorted({*silent, *stuck})


def _put_off(
    batches: dict[str, Batch], jobs: QueueSnapshot, queue: MigrationQueue, now: datetime, policy: TickPolicy
) -> list[str]:
    """Return the batches whose retry is due later than any retry can be: the clock was set back since."""
    if not jobs.scheduled & batches.keys():
        return []
    latest = now + timedelta(seconds=2 * policy.retry_cap_s)
    infos, _ = queue.page("scheduled", limit=policy.window)
    return [info.id for info in infos if info.id in batches and info.next_retry_at and info.next_retry_at > latest]


def _outstanding(batches: dict[str, Batch], jobs: QueueSnapshot, ledger: Ledger) -> int:
    """Count the jobs that have work to do.

    Those of closed batches have none: a worker that died between closing its batch and letting go
    of the job leaves one behind, which must not take the place of others until RQ finds it.
    """
    others = ledger.by_ids(sorted(jobs.outstanding - batches.keys()))
    return len(jobs.outstanding & batches.keys()) + sum(batch.state == "open" for batch in others.values())


def _is_within(limit_s: float, at: datetime, now: datetime) -> bool:
    """Return whether a time is near now; one that lies far ahead was noted before the clock was set back."""
    return abs((now - at).total_seconds()) <= limit_s


def store_is_up(ping: Callable[[], None]) -> bool:
    """Return whether a ping succeeds."""
    try:
        ping()
    except PipelineError:
        return False
    return True
