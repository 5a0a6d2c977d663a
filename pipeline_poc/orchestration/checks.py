"""Asset checks: does the pipeline move? They look at the stores, whoever has filled them and whenever."""

from typing import Any

from dagster import AssetCheckResult, AssetCheckSeverity, MetadataValue, ResourceParam, asset_check

from pipeline_poc.clock import utc_now
from pipeline_poc.ledger import Batch
from pipeline_poc.orchestration.assets import migrated_posts, raw_posts
from pipeline_poc.services import Services

_SEVERE = 4
"""A lag of so many times the limit is an error, not a warning."""
_SHOWN = 20


@asset_check(
    asset=raw_posts,
    description="An ingestion went well within SOURCE_WARN_S, none has failed since, and it found posts at the source.",
)
def last_ingestion(services: ResourceParam[Services]) -> AssetCheckResult:
    """Check how the last ingestion went, and when."""
    limit_s = services.settings.source_warn_s
    last = services.raw_store.last_ingestion()
    errors, succeeded_at = last.get("errorsSince", 0), last.get("lastSuccessAt")
    served_nothing = bool(last.get("lastRun", {}).get("served_nothing"))
    numbers: dict[str, Any] = {"errors_since": errors, "served_nothing": served_nothing, "limit_s": limit_s}
    wrong = []
    if succeeded_at is None:
        wrong.append("no ingestion has gone well yet")
    else:
        numbers["age_s"] = age_s = (utc_now() - succeeded_at).total_seconds()
        if age_s > limit_s:
            wrong.append(f"the last ingestion that went well is older than {limit_s:g} s")
    if errors:
        numbers["last_error"] = last.get("lastError")
        wrong.append(f"{errors} failed since")
    if served_nothing:
        wrong.append("the source served nothing, though posts of it are stored")
    return _result(wrong, numbers)


@asset_check(asset=migrated_posts, description="No post waits longer than LAG_WARN_S; far longer is an error.")
def lag(services: ResourceParam[Services]) -> AssetCheckResult:
    """Check the age of the oldest post that is not migrated."""
    limit_s = services.settings.lag_warn_s
    backlog, mode = services.ledger.backlog(), services.control().mode
    lag_s = backlog.lag_s(utc_now())
    wrong = []
    if lag_s > limit_s:
        wrong.append(f"a post waits longer than {limit_s:g} s")
        if mode != "running":
            wrong.append(f"the migration is {mode}")
    numbers = {
        "lag_s": lag_s,
        "limit_s": limit_s,
        "backlog": backlog.posts,
        "batches": backlog.batches,
        "most_attempts": backlog.most_attempts,
        "oldest_batch": backlog.oldest_id or "none",
        "mode": mode,
    }
    severity = AssetCheckSeverity.ERROR if lag_s > _SEVERE * limit_s else AssetCheckSeverity.WARN
    return _result(wrong, numbers, severity)


@asset_check(asset=migrated_posts, description="No batch waits for a person.")
def dead_letters(services: ResourceParam[Services]) -> AssetCheckResult:
    """Check that there are no dead letters."""
    groups = services.dead_letters.groups()
    batches = sum(group.batches for group in groups)
    wrong = [f"{batches} batches wait for a person: `pipeline-poc dead-letters list`"] if batches else []
    reasons = {group.reason: group.batches for group in groups[:_SHOWN]}
    numbers = {
        "dead_letters": batches,
        "posts": sum(group.posts for group in groups),
        "reasons": MetadataValue.json(reasons),
    }
    return _result(wrong, numbers)


@asset_check(
    asset=migrated_posts,
    description="Every batch in progress gives signs of life, and every post that waits is in a batch of the ledger.",
)
def nothing_is_stuck(services: ResourceParam[Services]) -> AssetCheckResult:
    """Check that no batch has lost its worker, run or ingestion without a tick noticing, and no post its batch."""
    silent, filling = _silent(services), _never_sealed(services)
    forgotten = _forgotten(services)
    wrong = []
    if silent:
        wrong.append(f"{len(silent)} batches give no sign of life: the sensor's next tick frees them")
    if filling:
        wrong.append(f"{len(filling)} batches were never completed: the sensor's next tick takes them over")
    if forgotten:
        wrong.append(f"{forgotten} posts wait in no batch of the ledger: `pipeline-poc repair` puts them back")
    numbers = {
        "silent": len(silent),
        "never_completed": len(filling),
        "forgotten_posts": forgotten,
        "batches": MetadataValue.json([batch.id for batch in (silent + filling)[:_SHOWN]]),
    }
    return _result(wrong, numbers, AssetCheckSeverity.ERROR if forgotten else AssetCheckSeverity.WARN)


CHECKS = [last_ingestion, lag, dead_letters, nothing_is_stuck]


def _silent(services: Services) -> list[Batch]:
    begun, timeout_s = services.ledger.begun(), services.settings.heartbeat_timeout_s
    silent = [batch for batch in begun if not batch.is_alive(utc_now(), timeout_s)]
    if not silent:
        return []
    # What waits for its next attempt needs no sign of life; only Redis knows.
    jobs = services.queue.snapshot()
    return [batch for batch in silent if batch.id not in jobs.queued | jobs.scheduled]


def _never_sealed(services: Services) -> list[Batch]:
    now, limit_s = utc_now(), services.settings.filling_timeout_s
    filling = services.ledger.batches("filling")
    return [batch for batch in filling if abs((now - batch.created_at).total_seconds()) > limit_s]


def _forgotten(services: Services) -> int:
    """Count the posts that wait, though nobody knows of any work; the count takes time, and is made only then."""
    if services.ledger.waiting_ids():
        return 0
    waiting = services.raw_store.counts().backlog
    return 0 if services.ledger.waiting_ids() else waiting


def _result(
    wrong: list[str], numbers: dict[str, Any], severity: AssetCheckSeverity = AssetCheckSeverity.WARN
) -> AssetCheckResult:
    return AssetCheckResult(
        passed=not wrong, severity=severity, description="; ".join(wrong) or "all is well", metadata=numbers
    )
