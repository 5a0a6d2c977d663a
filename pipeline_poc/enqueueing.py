"""Enqueue: backlog → migration queue. A tick brings the queue in line with the ledger.

A tick is bounded by its window, not by the backlog, and idempotent: it may be replayed, run
twice at once, or die at any point.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from pipeline_poc import failpoints
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
    """

    window: int
    batch_size: int
    heartbeat_timeout_s: float
    filling_timeout_s: float


@dataclass(slots=True)
class TickResult:
    """What a tick did; counts batches, but for ``posts`` and ``adopted``, which count posts.

    Attributes:
        enqueued: Batches that the queue did not know: new ones, and lost ones.
        posts: Posts in them.
        freed: Taken from workers that gave no sign of life.
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

    def sentence(self) -> str:
        """Return what happened in a line for a person."""
        if self.busy:
            return "another tick is at work"
        done = [
            (self.enqueued, f"enqueued {_number(self.enqueued, 'batch')} ({_number(self.posts, 'post')})"),
            (self.freed, f"freed {_number(self.freed, 'batch')} of silent workers"),
            (self.requeued, f"requeued {_number(self.requeued, 'batch')} after an outage"),
            (self.adopted, f"adopted {_number(self.adopted, 'post')}"),
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
        if now - batch.created_at > timedelta(seconds=policy.filling_timeout_s):
            adopted += take_over(batch.id, batch.created_at, raw_store, ledger)
    for batch in ledger.batches("abandoned"):
        adopted += take_over(batch.id, batch.created_at, raw_store, ledger)
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
    is_fed = result.mode == "running"
    failed = [i for i in batches if is_fed and i in jobs.failed and i not in jobs.outstanding]
    if failed and not relational_store_is_up():
        result.waiting_for_store = len(failed)
        failed = []
    room = policy.window - len(jobs.outstanding) if is_fed else 0
    unknown = [
        batch
        for batch in batches.values()
        if batch.id not in jobs.outstanding and batch.id not in jobs.failed and not _is_alive(batch, now, policy)
    ]
    fresh = unknown[: max(room, 0)]

    for batch_id in lost:
        ledger.note_failure(batch_id, "its worker gave no sign of life")
    queue.replace([*lost, *failed])
    # A finished job of a batch that is open again would be in the way of a new one of its name.
    queue.replace([batch.id for batch in fresh])
    failpoints.reach("tick.enqueued")
    result.freed = len(lost)
    result.requeued = len(failed)
    result.enqueued = len(fresh)
    result.posts = sum(batch.size for batch in fresh)
    result.outstanding = len(jobs.outstanding | {batch.id for batch in fresh} | set(failed))


def _silent(
    batches: dict[str, Batch], jobs: QueueSnapshot, queue: MigrationQueue, now: datetime, policy: TickPolicy
) -> list[str]:
    """Return the batches whose worker died: silent in the ledger, or stuck on the way to it."""
    held = [batch for batch in batches.values() if batch.id in jobs.started | jobs.taken]
    # A worker that died before it reached the ledger left no heartbeat: only the time passing tells.
    doubtful = [batch.id for batch in held if not _is_alive(batch, now, policy)]
    since = queue.suspected_since(doubtful, now)
    silent = [batch.id for batch in held if batch.silent_s(now) > policy.heartbeat_timeout_s]
    stuck = [i for i, at in since.items() if (now - at).total_seconds() > policy.heartbeat_timeout_s]
    return sorted({*silent, *stuck})


def _is_alive(batch: Batch, now: datetime, policy: TickPolicy) -> bool:
    """Return whether somebody, on the queue or past it, is executing the batch right now."""
    return batch.started_at is not None and batch.silent_s(now) <= policy.heartbeat_timeout_s


def store_is_up(ping: Callable[[], None]) -> bool:
    """Return whether a ping succeeds."""
    try:
        ping()
    except PipelineError:
        return False
    return True
