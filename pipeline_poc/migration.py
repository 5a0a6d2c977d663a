"""Migrate: raw store → relational store, batch by batch. The one path for worker, asset and CLI.

`pending` reads a batch and yields it; its consumer calls `write`; when the consumer asks for
the next batch, `pending` marks and closes the one that was written. A crash at any point
repeats to the same effect.
"""

import logging
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pipeline_poc import failpoints, tracing
from pipeline_poc.clock import utc_now
from pipeline_poc.counters import observation
from pipeline_poc.errors import PipelineError, TerminalError
from pipeline_poc.ledger import Batch, Ledger
from pipeline_poc.raw_store import RawStore
from pipeline_poc.records import StoredRecord
from pipeline_poc.relational_store import RelationalStore
from pipeline_poc.repeating import repeating

logger = logging.getLogger(__name__)

_IDS_SHOWN = 5


@dataclass(slots=True)
class PendingBatch:
    """A batch that is being migrated.

    Attributes:
        posts: To be written, by id.
        refused: Reason code and message for each id that the relational store refuses.
        started_at: Begin of this execution.
        written: Whether `write` has committed every post that isn't refused.
    """

    batch: Batch
    posts: list[StoredRecord]
    started_at: datetime
    refused: dict[int, tuple[str, str]] = field(default_factory=dict)
    written: bool = False


@dataclass(slots=True)
class MigrationResult:
    """What a migration did.

    Attributes:
        batches: Batches that were closed.
        migrated: Posts whose rows were written and that were marked.
        quarantined: Posts that the relational store refused.
        attempts: Most executions that one of the batches took.
        lag_s: Longest time that one of the batches had waited, in seconds, at its end.
    """

    started_at: datetime = field(default_factory=utc_now)
    batches: int = 0
    migrated: int = 0
    quarantined: int = 0
    attempts: int = 0
    lag_s: float = 0.0
    duration_s: float = 0.0

    def add(self, other: "MigrationResult") -> None:
        """Take another result into this one."""
        self.batches += other.batches
        self.migrated += other.migrated
        self.quarantined += other.quarantined
        self.attempts = max(self.attempts, other.attempts)
        self.lag_s = max(self.lag_s, other.lag_s)
        self.duration_s += other.duration_s

    def summary(self) -> dict[str, Any]:
        """Return the numbers under the names that logs, screens and metadata use."""
        return {
            "migrated": self.migrated,
            "quarantined": self.quarantined,
            "batches": self.batches,
            "attempts": self.attempts,
            "lag_s": round(self.lag_s, 3),
            "duration_s": round(self.duration_s, 3),
            "records_per_s": round(self.migrated / self.duration_s, 1) if self.duration_s else 0.0,
        }


def migrate(
    batch_ids: Iterable[str],
    raw_store: RawStore,
    ledger: Ledger,
    relational_store: RelationalStore,
    *,
    worker: str,
    heartbeat_interval_s: float,
) -> MigrationResult:
    """Migrate batches one after the other; those that are not open are passed over.

    Raises:
        ServiceUnavailable: A store is away; the batch stays open.
        PipelineError: Posts of a batch are neither migrated nor quarantined; it stays open.
    """
    result = MigrationResult()
    batches = pending(batch_ids, raw_store, ledger, result, worker=worker, heartbeat_interval_s=heartbeat_interval_s)
    # Closed at once on an error, so that the batch's heartbeat ends with its execution.
    with closing(batches):
        for batch in batches:
            write(batch, relational_store)
    return result


def open_batches(ledger: Ledger) -> Iterator[str]:
    """Yield the ids of all open batches, oldest first, those that open meanwhile included."""
    done: set[str] = set()
    while True:
        fresh = [batch.id for batch in ledger.batches("open") if batch.id not in done]
        if not fresh:
            return
        done.update(fresh)
        yield from fresh


def pending(
    batch_ids: Iterable[str],
    raw_store: RawStore,
    ledger: Ledger,
    result: MigrationResult,
    *,
    worker: str,
    heartbeat_interval_s: float,
) -> Generator[PendingBatch, None, None]:
    """Yield batches to `write`, one at a time, and complete each when the next one is asked for.

    Args:
        batch_ids: Ids in the ledger.
        raw_store: Where the posts are.
        ledger: Where the batches are.
        result: Is added to with each completed batch.
        worker: Name of who migrates, for the ledger.
        heartbeat_interval_s: Seconds between two signs of life in the ledger.
    """
    for batch_id in batch_ids:
        started_at = utc_now()
        batch = ledger.start(batch_id, worker, started_at)
        if batch is None:
            logger.info("batch skipped", extra={"batch": batch_id, "reason": "it is not open"})
            continue
        with (
            tracing.processing(batch_id, batch.traceparent, worker),
            _heartbeat(ledger, batch_id, worker, heartbeat_interval_s),
        ):
            failpoints.reach("migration.started")
            unit = PendingBatch(batch, raw_store.posts_to_migrate(batch_id), started_at)
            failpoints.reach("migration.read")
            yield unit
            if not unit.written:
                raise PipelineError(f"batch {batch_id} was not written: its posts stay in the backlog")
            with tracing.marking(len(unit.posts)):
                result.add(_complete(unit, raw_store, ledger))


def write(unit: PendingBatch, relational_store: RelationalStore) -> None:
    """Write the rows of a batch; posts that are refused as such are noted and do not hinder the rest."""
    with tracing.writing(len(unit.posts), relational_store.system):
        unit.refused = relational_store.write(unit.posts, utc_now())
    unit.written = True
    failpoints.reach("migration.committed")


def _complete(unit: PendingBatch, raw_store: RawStore, ledger: Ledger) -> MigrationResult:
    """Mark what is committed, quarantine what is refused, close the batch."""
    batch, now = unit.batch, utc_now()
    # Before the marking: what is quarantined is not marked.
    raw_store.quarantine_posts(batch.id, unit.refused, now)
    marked = raw_store.mark_migrated(batch.id, now)
    failpoints.reach("migration.flagged")
    _account_for(unit, marked, raw_store)
    ended_at = utc_now()
    result = MigrationResult(
        started_at=unit.started_at,
        batches=1,
        migrated=marked,
        quarantined=len(unit.refused),
        attempts=batch.attempts,
        lag_s=(ended_at - batch.created_at).total_seconds(),
        duration_s=(ended_at - unit.started_at).total_seconds(),
    )
    if ledger.close(batch.id, ended_at, {"migrated": marked, "quarantined": len(unit.refused)}):
        refused = Counter(f"quarantined.{code}" for code, _ in unit.refused.values())
        ledger.counters.add(
            ended_at,
            {"migration.batches": 1, "migration.rows": marked, "migration.attempts": batch.attempts}
            | {"migration.quarantined": len(unit.refused)}
            | refused
            | observation("migration.wait", (unit.started_at - batch.created_at).total_seconds())
            | observation("migration.run", result.duration_s),
        )
    failpoints.reach("migration.closed")
    logger.info("batch migrated", extra={"batch": batch.id} | result.summary())
    return result


def _account_for(unit: PendingBatch, marked: int, raw_store: RawStore) -> None:
    """Refuse to close a batch that has posts of which nobody knows what became.

    Raises:
        TerminalError: More posts were marked than were written.
        PipelineError: Posts stayed behind.
    """
    batch, refused = unit.batch, len(unit.refused)
    written = len(unit.posts) - refused
    if marked > written:
        raise TerminalError(
            f"batch {batch.id}: {written} posts were written, but {marked} marked migrated: something else "
            "has changed them meanwhile; `pipeline-poc repair` finds those without a row"
        )
    # Posts that moved to a newer batch, or that another execution took care of, are missing rightly.
    if marked + refused != batch.size and (left := raw_store.left_behind(batch.id, limit=_IDS_SHOWN)):
        raise PipelineError(
            f"batch {batch.id}: of {len(unit.posts)} posts read {marked} were marked migrated and {refused} refused, "
            f"but posts such as {', '.join(map(str, left))} are neither; the batch stays open"
        )


def _heartbeat(ledger: Ledger, batch_id: str, worker: str, interval_s: float) -> AbstractContextManager[None]:
    """Show in the ledger, from a thread, that the batch is being executed."""

    def beat() -> None:
        try:
            ledger.heartbeat(batch_id, worker, utc_now())
        except PipelineError as error:
            logger.warning("heartbeat failed", extra={"batch": batch_id, "error": str(error)})

    return repeating(beat, interval_s, f"heartbeat-{batch_id}")
