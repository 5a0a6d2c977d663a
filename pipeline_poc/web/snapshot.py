"""The live state of the pipeline, read at once from MongoDB and Redis; cheap, whatever is stored.

A store that is away leaves its part empty: None, and never 0.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pipeline_poc.clock import utc_now
from pipeline_poc.control import Control
from pipeline_poc.counters import number
from pipeline_poc.dead_letters import DeadLetterGroup
from pipeline_poc.errors import PipelineError, ServiceUnavailable
from pipeline_poc.ledger import Batch
from pipeline_poc.migration_queue import JobInfo, JobState, QueueCounts, WorkerInfo
from pipeline_poc.quarantine import QuarantineGroup
from pipeline_poc.reconciliation import LastReconciliation
from pipeline_poc.services import Services

RECENT_JOBS = 20
_HOUR_MINUTES = 60
_OLDEST_OPEN = 100
"""Batches of the backlog that are looked at for their attempts: those that have waited longest."""


@dataclass(frozen=True, slots=True)
class LedgerPart:
    """What MongoDB says.

    Attributes:
        last_ingestion: As the raw store keeps it.
        totals: Counters.
        rows_per_minute: Posts migrated in each of the last 60 minutes in which any was.
        waiting: Batches of the backlog, and the posts that they were created for.
        lag_s: Age of the oldest post that is not migrated, in seconds.
        most_attempts: Most executions that a batch of the backlog has seen.
        reconciliation: How the latest one went.
    """

    control: Control
    last_ingestion: dict[str, Any]
    totals: dict[str, Any]
    rows_per_minute: dict[datetime, float]
    waiting: tuple[int, int]
    lag_s: float
    most_attempts: int
    quarantine: list[QuarantineGroup]
    dead_letters: list[DeadLetterGroup]
    reconciliation: LastReconciliation

    def throughput(self, now: datetime, minutes: int) -> float:
        """Return the posts migrated a second, on average over the last minutes."""
        minute = now.replace(second=0, microsecond=0)
        # The present minute counts whole, the one before the window's begin in part.
        part = 1 - (now - minute).total_seconds() / 60
        whole = sum(self.rows_per_minute.get(minute - timedelta(minutes=back), 0) for back in range(minutes))
        first = self.rows_per_minute.get(minute - timedelta(minutes=minutes), 0) * part
        return round((whole + first) / (minutes * 60), 3)


@dataclass(frozen=True, slots=True)
class QueuePart:
    """What Redis says."""

    counts: QueueCounts
    workers: list[WorkerInfo]
    recent: list[JobInfo]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything at one moment.

    Attributes:
        batches: Those of the recent jobs and of what workers do, by id.
        error: Why MongoDB's part is missing.
        queue_error: Why Redis's part is missing.
    """

    ledger: LedgerPart | None
    queue: QueuePart | None
    batches: dict[str, Batch]
    error: PipelineError | None
    queue_error: PipelineError | None
    at: datetime = field(default_factory=utc_now)

    def require_ledger(self) -> LedgerPart:
        """Return MongoDB's part.

        Raises:
            PipelineError: Why it is missing.
        """
        if self.ledger is None:
            raise self.error or ServiceUnavailable("MongoDB", "MONGO_URL", "", "it does not answer")
        return self.ledger


def wanted(queue: QueuePart) -> list[str]:
    """Return the ids of the batches that recent jobs and workers are about."""
    return [job.id for job in queue.recent] + [worker.batch for worker in queue.workers if worker.batch]


def ask_ledger(services: Services) -> LedgerPart:
    """Read MongoDB's part; takes some milliseconds."""
    ledger, now = services.ledger, utc_now()
    oldest = ledger.oldest_waiting()
    return LedgerPart(
        control=services.control(),
        last_ingestion=services.raw_store.last_ingestion(),
        totals=ledger.counters.totals(),
        rows_per_minute={
            at: number(counted, "migration.rows") for at, counted in ledger.counters.minutes(now, _HOUR_MINUTES + 1)
        },
        waiting=ledger.waiting(),
        lag_s=max(0.0, (now - oldest).total_seconds()) if oldest else 0.0,
        most_attempts=max((batch.attempts for batch in ledger.batches("open", limit=_OLDEST_OPEN)), default=0),
        quarantine=services.quarantine.groups(),
        dead_letters=services.dead_letters.groups(),
        reconciliation=services.last_reconciliation(),
    )


def ask_queue(services: Services) -> QueuePart:
    """Read Redis's part; takes some milliseconds."""
    queue = services.queue
    states: tuple[JobState, ...] = ("started", "failed", "finished", "scheduled", "queued")
    jobs = [job for state in states for job in queue.page(state, limit=RECENT_JOBS)[0]]
    jobs.sort(key=lambda job: _moved_at(job) or datetime.min.replace(tzinfo=utc_now().tzinfo), reverse=True)
    return QueuePart(queue.counts(), queue.workers(), jobs[:RECENT_JOBS])


def _moved_at(job: JobInfo) -> datetime | None:
    return job.started_at or job.ended_at or job.enqueued_at
