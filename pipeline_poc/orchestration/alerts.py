"""The sensor that tells people of problems: what Dagster knows of runs and checks, and what `/health` looks at."""

import asyncio
import logging
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING

from dagster import (
    AssetCheckKey,
    AssetCheckSeverity,
    AssetKey,
    DagsterEventType,
    DagsterInstance,
    DagsterRunStatus,
    DefaultSensorStatus,
    RunsFilter,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)

from pipeline_poc import alerting
from pipeline_poc.alerting import Problem
from pipeline_poc.clock import utc_now
from pipeline_poc.errors import TransientError, mask_secrets
from pipeline_poc.orchestration.resources import services_of_process
from pipeline_poc.posts import POSTS
from pipeline_poc.records import Entity
from pipeline_poc.services import Services
from pipeline_poc.settings import Settings

if TYPE_CHECKING:
    from pipeline_poc.health import Health, Inspector

logger = logging.getLogger(__name__)

_INTERVAL_S = 30
_TEXT_MAX = 400
"""Characters of what is said of one problem; a message for a telephone is short."""
_ENDED = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE]
"""A run that somebody cancelled is neither good nor bad news."""
_FAILURES = {DagsterEventType.STEP_FAILURE, DagsterEventType.RUN_FAILURE}


class AlertNotTakenError(TransientError):
    """No channel took a message; the next tick sends it again."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """What is said of a check of `/health`, as the rules for Prometheus have it.

    Attributes:
        hold_s: Nobody is told before it has been so for so long.
        alert: The alert of Prometheus that is about the same, whose heading in the runbook says what to do.
        grows: Whether its value counts what waits for a person.
    """

    title: str
    hold_s: float = 300.0
    alert: str | None = None
    grows: bool = False


KINDS = {
    "mongodb:responseTime": _Kind("MongoDB is away", 120, "PipelineStoreDown"),
    "relationalStore:responseTime": _Kind("the relational store is away", 120, "PipelineStoreDown"),
    "redis:responseTime": _Kind("Redis is away", 120, "PipelineStoreDown"),
    "workers:live": _Kind("no worker begins anything", 180, "PipelineNoWorker"),
    "migration:mode": _Kind("the migration is paused or drained", 3600, "PipelineNotRunning"),
    "migration:lag": _Kind("posts wait for too long", 300, "PipelineLagHigh"),
    # Above the ten minutes of the schedule: a single failure is an alert of the run.
    "source:lastSuccess": _Kind("no ingestion goes well", 900, "PipelineIngestionOverdue"),
    "deadLetters:batches": _Kind("batches wait for a person", 600, "PipelineDeadLetters", grows=True),
    "quarantine:records": _Kind("records wait in quarantine", 60, "PipelineQuarantineGrowing", grows=True),
    "disk:free": _Kind("the disk is nearly full"),
}
"""By the name of the check; others are told under their names."""


_COMMON = {"mongodb:responseTime", "relationalStore:responseTime", "redis:responseTime", "migration:mode", "disk:free"}
"""Checks that say the same for every entity."""


@dataclass(slots=True)
class Findings:
    """What is wrong now, and the keys of what nobody can tell now."""

    problems: list[Problem] = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)


@sensor(
    description="Tell people of problems, and of their end, through ALERT_URLS; does nothing where that is not set.",
    minimum_interval_seconds=_INTERVAL_S,
    default_status=DefaultSensorStatus.RUNNING,
)
def send_alerts(context: SensorEvaluationContext) -> SensorResult | SkipReason:
    """Tell people of problems, and of their end.

    What they were told is in the cursor, which Dagster keeps once a tick has succeeded. A tick whose message nobody
    took fails for that reason: the next one says the same.
    """
    services = services_of_process()
    urls = services.settings.alert_urls
    if not urls:
        return SkipReason("ALERT_URLS is not set: nobody is told of anything")
    found = Findings()
    if context.repository_def is not None:
        graph = context.repository_def.asset_graph
        watched = [node.key for node in graph.asset_nodes if node.freshness_policy is not None]
        look_at_runs(context.instance, context.repository_def.job_names, found)
        look_at_checks(context.instance, sorted(graph.asset_check_keys), found)
        look_at_freshness(context.instance, watched, found)
    for pipeline in services.pipelines():
        look_at_health(asyncio.run(_inspector(pipeline).report()), found, pipeline.entity)
    news, after = alerting.evaluate(alerting.load(context.cursor), found.problems, found.unknown, utc_now())
    said = ""
    if news:
        message = alerting.message(news, _signature(services.settings))
        missed = _tell([url.get_secret_value() for url in urls], message)
        said = f"told people of {len(news)}{f', but not by {missed}' if missed else ''}; "
    lasting = sum(alert.told_at is not None for alert in after.values())
    return SensorResult(skip_reason=f"{said}problems that last: {lasting}", cursor=alerting.dump(after))


def _tell(urls: Sequence[str], message: alerting.Message) -> str:
    """Send a message; returns which channels did not take it, and why."""
    from pipeline_poc import notifier  # noqa: PLC0415 - most ticks have nothing to tell

    answers = notifier.send(urls, message)
    failed = [f"{answer.channel}: {answer.problem}" for answer in answers if answer.problem]
    missed = "; ".join(failed)
    if len(failed) == len(answers):
        raise AlertNotTakenError(f"no channel of ALERT_URLS took the alert; {missed}")
    if missed:
        # In the text: Dagster's code server, which sets its log up by itself, shows nothing else.
        logger.warning("an alert was not taken by %s", missed)
    return missed


def look_at_runs(instance: DagsterInstance, jobs: Iterable[str], found: Findings) -> None:
    """Find the jobs whose latest run has failed."""
    for job in jobs:
        key = f"run:{job}"
        # By the order of their start: an older one that ends later says less of how things are.
        records = instance.get_run_records(RunsFilter(job_name=job, statuses=_ENDED), limit=1)
        if not records:
            found.unknown.add(key)
        elif records[0].dagster_run.status == DagsterRunStatus.FAILURE:
            run_id = records[0].dagster_run.run_id
            text = f"run {run_id}: {_why(instance, run_id)}"
            found.problems.append(Problem(key, f"a run of {job} failed", _short(text)))


def look_at_checks(instance: DagsterInstance, keys: Sequence[AssetCheckKey], found: Findings) -> None:
    """Find the asset checks whose latest evaluation is an error; warnings are what `/health` warns of."""
    latest = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    for check in keys:
        key = f"check:{check.asset_key.to_user_string()}:{check.name}"
        record = latest.get(check)
        event = record.event.dagster_event if record and record.event else None
        if event is None or event.event_type != DagsterEventType.ASSET_CHECK_EVALUATION:
            found.unknown.add(key)  # Never evaluated, or about to be.
            continue
        result = event.asset_check_evaluation_data
        if not result.passed and result.severity == AssetCheckSeverity.ERROR:
            title = f"the check {check.name} of {check.asset_key.to_user_string()} fails"
            found.problems.append(Problem(key, title, _short(result.description or "it gives no reason")))


def look_at_freshness(instance: DagsterInstance, keys: Sequence[AssetKey], found: Findings) -> None:
    """Find the assets that Dagster finds too old by their freshness policy."""
    if not keys:
        return
    records = instance.get_freshness_state_records(keys)
    for asset_key in keys:
        record, name = records.get(asset_key), asset_key.to_user_string()
        if record and record.freshness_state.value == "FAIL":
            text = f"Dagster finds it too old since {record.updated_at:%Y-%m-%d %H:%M:%S} UTC"
            found.problems.append(Problem(f"freshness:{name}", f"{name} is not fresh", text))


def look_at_health(report: "Health", found: Findings, entity: Entity = POSTS) -> None:
    """Find the checks of `/health` that don't pass; what is common to all entities counts for posts alone."""
    is_first = entity is POSTS
    prefix, of = ("", "") if is_first else (f"{entity.name}/", f" ({entity.name})")
    for check in report.checks:
        if not is_first and check.name in _COMMON:
            continue
        if not check.is_known:
            found.unknown.add(f"{prefix}{check.name}")
        elif check.status != "pass":
            kind = KINDS.get(check.name) or _Kind(f"the check {check.name} of /health does not pass")
            runbook = f"docs/operations.md#{kind.alert.lower()}" if kind.alert else None
            count = check.value if kind.grows else 0
            text = _short(check.output or f"it is {check.value}")
            found.problems.append(
                Problem(f"{prefix}{check.name}", f"{kind.title}{of}", text, runbook, hold_s=kind.hold_s, count=count)
            )


@lru_cache
def _inspector(services: Services) -> "Inspector":
    """Return the one of this process and pipeline: it never asks a store that hangs a second time beside the first."""
    from pipeline_poc.health import Inspector  # noqa: PLC0415 - what has no ALERT_URLS needs no HTTP client

    return Inspector(services)


def _why(instance: DagsterInstance, run_id: str) -> str:
    """Return why a run failed: the pipeline's own sentence where it is one, which Dagster wraps."""
    return next(_reasons(instance, run_id), "Dagster gives no reason")


def _reasons(instance: DagsterInstance, run_id: str) -> Iterator[str]:
    for record in instance.get_records_for_run(run_id, of_type=_FAILURES, limit=5).records:
        event = record.event_log_entry.dagster_event
        error = getattr(event.event_specific_data, "error", None) if event else None
        if error:
            yield (error.cause or error).message
        elif event and event.message:
            yield event.message


def _short(text: str) -> str:
    text = " ".join(mask_secrets(text).split())
    return text if len(text) <= _TEXT_MAX else f"{text[:_TEXT_MAX]}…"


def _signature(settings: Settings) -> str:
    return f"pipeline-poc {version('pipeline-poc')}, {settings.environment}, on {socket.gethostname()}"
