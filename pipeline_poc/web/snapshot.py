"""The live state of the pipeline, read at once from MongoDB and Redis; cheap, whatever is stored.

A store that is away leaves its part empty: None, and never 0.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pipeline_poc.clock import utc_now
from pipeline_poc.control import Control
from pipeline_poc.counters import number
from pipeline_poc.dead_letters import DeadLetterGroup
from pipeline_poc.errors import PipelineError, ServiceUnavailable
from pipeline_poc.ledger import Backlog, Batch
from pipeline_poc.migration_queue import JobInfo, JobState, QueueCounts, WorkerInfo
from pipeline_poc.quarantine import QuarantineGroup
from pipeline_poc.reconciliation import LastReconciliation
from pipeline_poc.services import Services

RECENT_JOBS = 20


@dataclass(frozen=True, slots=True)
class LedgerPart:
    """What MongoDB says.

    Attributes:
        last_ingestion: As the raw store keeps it.
        totals: Counters.
        rows_per_minute: Posts migrated in each minute of the last two hours in which any was.
        at: When it was asked.
        reconciliation: How the latest one went.
    """

    control: Control
    last_ingestion: dict[str, Any]
    totals: dict[str, Any]
    rows_per_minute: dict[datetime, float]
    backlog: Backlog
    quarantine: list[QuarantineGroup]
    dead_letters: list[DeadLetterGroup]
    reconciliation: LastReconciliation
    at: datetime

    @property
    def lag_s(self) -> float:
        """Age of the oldest post that is not migrated, in seconds."""
        return self.backlog.lag_s(self.at)

    def throughput(self, minutes: int) -> float:
        """Return the posts migrated a second, on average over the last minutes."""
        minute = self.at.replace(second=0, microsecond=0)
        # The present minute counts whole, the one before the window's begin in part.
        part = 1 - (self.at - minute).total_seconds() / 60
        whole = sum(self.rows_per_minute.get(minute - timedelta(minutes=back), 0) for back in range(minutes))
        first = self.rows_per_minute.get(minute - timedelta(minutes=minutes), 0) * part
        return round((whole + first) / (minutes * 60), 3)


@dataclass(frozen=True, slots=True)
class QueuePart:
    """What Redis says."""

    counts: QueueCounts
    workers: list[WorkerInfo]
    recent: list[JobInfo]
    at: datetime


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

    @property
    def at(self) -> datetime:
        """When the older part was read; now where there is neither."""
        return min((part.at for part in (self.ledger, self.queue) if part), default=utc_now())

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
    now = utc_now()
    totals, minutes = services.ledger.counters.read()
    return LedgerPart(
        control=services.control(),
        last_ingestion=services.raw_store.last_ingestion(),
        totals=totals,
        rows_per_minute={at: number(counted, "migration.rows") for at, counted in minutes.items()},
        backlog=services.ledger.backlog(),
        quarantine=services.quarantine.groups(),
        dead_letters=services.dead_letters.groups(),
        reconciliation=services.last_reconciliation(),
        at=now,
    )


def ask_queue(services: Services) -> QueuePart:
    """Read Redis's part; takes some milliseconds."""
    now, queue = utc_now(), services.queue
    states: tuple[JobState, ...] = ("started", "failed", "finished", "scheduled", "queued")
    jobs = [job for state in states for job in queue.page(state, limit=RECENT_JOBS)[0]]
    jobs.sort(key=lambda job: _moved_at(job) or datetime.min.replace(tzinfo=utc_now().tzinfo), reverse=True)
    return QueuePart(queue.counts(), queue.workers(), jobs[:RECENT_JOBS], now)


def _moved_at(job: JobInfo) -> datetime | None:
    return job.started_at or job.ended_at or job.enqueued_at
