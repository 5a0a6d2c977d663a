"""From what the stores say to what the endpoints answer. Pure."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic.alias_generators import to_camel

from pipeline_poc.clock import utc_now
from pipeline_poc.counters import number
from pipeline_poc.dead_letters import DeadLetterGroup
from pipeline_poc.health import Check, Health, Verdict
from pipeline_poc.ledger import Batch
from pipeline_poc.migration_queue import JobInfo, QueueCounts, WorkerInfo
from pipeline_poc.quarantine import QuarantineGroup
from pipeline_poc.reconciliation import LastReconciliation
from pipeline_poc.settings import Settings
from pipeline_poc.web import models
from pipeline_poc.web.census import Tally
from pipeline_poc.web.context import STALE_S
from pipeline_poc.web.snapshot import LedgerPart, Snapshot


def post_counts(tally: Tally) -> models.PostCounts | None:
    """Return the conservation equation; None before the first count."""
    posts = tally.posts
    if posts is None:
        return None
    return models.PostCounts(
        stored=posts.stored, migrated=posts.migrated, backlog=posts.backlog, quarantined=posts.quarantined
    )


def count_freshness(tally: Tally) -> models.CountFreshness:
    """Return how old a count may be: older than usual while the next one takes its time."""
    age_s = (utc_now() - tally.counted_at).total_seconds() if tally.counted_at else 0.0
    return models.CountFreshness(counted_at=tally.counted_at, max_age_s=round(max(tally.max_age_s, age_s), 1))


def ingestion_stats(ledger: LedgerPart, tally: Tally, next_at: datetime | None) -> models.IngestionStats:
    """Return the ingestion's statistics."""
    posts, last = post_counts(tally), ledger.last_ingestion
    return models.IngestionStats(
        posts=posts,
        freshness=count_freshness(tally),
        last_run=last_run(last),
        last_success_at=last.get("lastSuccessAt"),
        errors_since=last.get("errorsSince", 0),
        last_error=last.get("lastError") if last.get("errorsSince") else None,
        next_scheduled_at=next_at,
        total=posts.stored if posts else None,
        migrated=posts.migrated if posts else None,
        pending=posts.backlog if posts else None,
        last_ingested_at=last.get("lastSuccessAt"),
    )


def last_run(last: dict[str, Any]) -> models.IngestionNumbers | None:
    """Return the numbers of the last ingestion that went well."""
    run = last.get("lastRun")
    return models.IngestionNumbers.model_validate(run) if run else None


def migration_stats(snapshot: Snapshot, tally: Tally) -> models.MigrationStats:
    """Return the migration's statistics.

    Raises:
        PipelineError: MongoDB is away.
    """
    ledger, posts = snapshot.require_ledger(), post_counts(tally)
    counts = snapshot.queue.counts if snapshot.queue else None
    retries = ledger.totals.get("retries", {})
    return models.MigrationStats(
        mode=ledger.control.mode,
        posts=posts,
        freshness=count_freshness(tally),
        mongodb={
            "total": posts.stored if posts else None,
            "migrated": posts.migrated if posts else None,
            "pending": posts.backlog if posts else None,
        },
        mysql=models.RelationalCounts(rows=tally.rows, total=tally.rows),
        queue=queue_counts(counts, is_paused=not ledger.control.is_running) if counts else None,
        waiting=models.Waiting(batches=ledger.backlog.batches, posts=ledger.backlog.posts),
        lag_s=round(ledger.lag_s, 3),
        throughput=models.Throughput(
            per_s_1m=ledger.throughput(1),
            per_s_15m=ledger.throughput(15),
            per_s_1h=ledger.throughput(60),
        ),
        attempts=models.Attempts(
            total=int(number(ledger.totals, "migration.attempts")),
            retries={reason: int(count) for reason, count in retries.items()},
            most_in_backlog=ledger.backlog.most_attempts,
        ),
        workers=workers(snapshot),
        live=models.Freshness(as_of=snapshot.at, max_age_s=STALE_S),
    )


def queue_counts(counts: QueueCounts, *, is_paused: bool) -> models.QueueCounts:
    """Return the jobs by state, under both sets of names."""
    return models.QueueCounts(
        queued=counts.queued,
        started=counts.started,
        scheduled=counts.scheduled,
        finished=counts.finished,
        failed=counts.failed,
        deferred=counts.deferred,
        waiting=counts.queued,
        active=counts.started,
        completed=counts.finished,
        delayed=counts.scheduled,
        paused=is_paused,
    )


def workers(snapshot: Snapshot) -> list[models.WorkerView] | None:
    """Return the live workers; None while Redis is away."""
    if snapshot.queue is None:
        return None
    return [_worker(worker, snapshot) for worker in snapshot.queue.workers]


def _worker(worker: WorkerInfo, snapshot: Snapshot) -> models.WorkerView:
    batch = snapshot.batches.get(worker.batch or "")
    busy_s = (snapshot.at - batch.started_at).total_seconds() if batch and batch.started_at else None
    return models.WorkerView(
        name=worker.name,
        state=worker.state,
        batch=worker.batch,
        busy_s=max(0.0, round(busy_s, 1)) if busy_s is not None else None,
        heartbeat_at=worker.heartbeat_at,
        succeeded=worker.succeeded,
        failed=worker.failed,
    )


def job(info: JobInfo, batch: Batch | None, settings: Settings) -> models.JobView:
    """Return a job with what the ledger knows of its batch."""
    error = models.JobError(type=info.error_type, message=info.error_message or "") if info.error_type else None
    result = None
    if info.state == "finished" and batch and batch.migrated is not None:
        result = {"migrated": batch.migrated, "quarantined": batch.quarantined or 0}
    return models.JobView(
        id=info.id,
        state=info.state,
        batch=info.id,
        posts=batch.size if batch else None,
        attempt=info.attempt,
        max_attempts=settings.retry_max_attempts,
        enqueued_at=info.enqueued_at,
        started_at=info.started_at,
        ended_at=info.ended_at,
        next_retry_at=info.next_retry_at,
        error=error,
        worker=info.worker,
        name="migrate_batch",
        attempts_made=info.attempt,
        created_at=info.enqueued_at,
        processed_at=info.started_at,
        finished_at=info.ended_at,
        failed_reason=error.message if error else None,
        result=result,
    )


def quarantine_groups(groups: Sequence[QuarantineGroup]) -> list[models.QuarantineGroupView]:
    """Return the quarantine by reason."""
    return [models.QuarantineGroupView.model_validate(group, from_attributes=True) for group in groups]


def dead_letter_groups(groups: Sequence[DeadLetterGroup]) -> list[models.DeadLetterGroupView]:
    """Return the dead letters by type of error."""
    return [models.DeadLetterGroupView.model_validate(group, from_attributes=True) for group in groups]


def reconciliation(last: LastReconciliation | None) -> models.ReconciliationView:
    """Return how the latest comparison went, with the numbers of the last completed one; None: nobody knows."""
    if last is None:
        return models.ReconciliationView(state="unknown")
    return models.ReconciliationView.model_validate(
        (last.summary or {})
        | {
            "state": last.state,
            "started_at": last.started_at,
            "ended_at": last.ended_at,
            "error": last.error,
            "ids": {to_camel(fault): ids for fault, ids in (last.ids or {}).items()},
        }
    )


def overview(
    snapshot: Snapshot,
    tally: Tally,
    health: Health,
    settings: Settings,
    *,
    entity: str,
    source: models.SourceView,
    history: list[models.Sample],
) -> models.Overview:
    """Return everything that the status page shows."""
    # What was read shortly before a store went away is no news of it.
    ledger = snapshot.ledger if _status(health, "mongodb:responseTime") != "fail" else None
    queue = snapshot.queue if _status(health, "redis:responseTime") != "fail" else None
    posts = post_counts(tally) if ledger else None
    counts = queue.counts if queue else None
    control = ledger.control if ledger else None
    return models.Overview(
        entity=entity,
        entities=list(settings.entities),
        at=snapshot.at,
        status=health.status,
        mode=control.mode if control else None,
        mode_reason=control.reason if control else None,
        mode_since=control.since if control else None,
        source=source,
        raw_store=models.RawStoreView(
            status=_status(health, "mongodb:responseTime"),
            stored=posts.stored if posts else None,
            migrated=posts.migrated if posts else None,
            backlog=posts.backlog if posts else None,
            quarantined=posts.quarantined if posts else None,
            counted_at=tally.counted_at if posts else None,
        ),
        queue=models.QueueView(
            status=_status(health, "redis:responseTime"),
            **{
                state: getattr(counts, state) if counts else None
                for state in ("queued", "started", "scheduled", "finished", "failed", "deferred")
            },
        ),
        relational_store=models.RelationalView(
            status=_status(health, "relationalStore:responseTime"),
            rows=tally.rows if _status(health, "relationalStore:responseTime") != "fail" else None,
        ),
        waiting=models.WaitingView(
            batches=ledger.backlog.batches if ledger else None, posts=ledger.backlog.posts if ledger else None
        ),
        lag_s=round(ledger.lag_s, 3) if ledger else None,
        throughput=models.ThroughputView(
            per_s_1m=ledger.throughput(1) if ledger else None,
            per_s_15m=ledger.throughput(15) if ledger else None,
            per_s_1h=ledger.throughput(60) if ledger else None,
        ),
        history=history,
        workers=(workers(snapshot) if queue else None) or [],
        recent_jobs=[job(info, snapshot.batches.get(info.id), settings) for info in queue.recent] if queue else [],
        quarantine=quarantine_groups(ledger.quarantine) if ledger else [],
        dead_letters=dead_letter_groups(ledger.dead_letters) if ledger else [],
        checks=[check(each) for each in health.checks],
        reconciliation=reconciliation(ledger.reconciliation if ledger else None),
    )


def check(made: Check) -> models.CheckView:
    """Return a health check."""
    return models.CheckView(
        name=made.name,
        component=made.component,
        status=made.status,
        observed_value=made.value,
        observed_unit=made.unit,
        output=made.output,
        time=made.at,
    )


def _status(health: Health, name: str) -> Verdict:
    return health.find(name).status
