"""The jobs, schedules and the sensor of an entity, and the pruning of Dagster's history."""

from dataclasses import asdict
from datetime import timedelta
from typing import NamedTuple

from dagster import (
    AssetSelection,
    Config,
    DagsterRunStatus,
    DefaultScheduleStatus,
    DefaultSensorStatus,
    OpExecutionContext,
    ResourceParam,
    RunRequest,
    RunsFilter,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SensorDefinition,
    SkipReason,
    define_asset_job,
    job,
    op,
    schedule,
    sensor,
)
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from pydantic import Field

from pipeline_poc.clock import utc_now
from pipeline_poc.orchestration.assets import Assets
from pipeline_poc.orchestration.pace import CHECK_CRON, INGESTION_CRON, PRUNING_CRON
from pipeline_poc.orchestration.pruning import prune
from pipeline_poc.orchestration.resources import services_of_process
from pipeline_poc.orchestration.runs import one_at_a_time
from pipeline_poc.records import Entity
from pipeline_poc.services import Services

_UNDER_WAY = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]
_SENSOR_INTERVAL_S = 3
"""Below the five seconds of the daemon's own pace, so that every round of it ticks."""


class Automation(NamedTuple):
    """What moves an entity."""

    jobs: list[UnresolvedAssetJobDefinition]
    schedules: list[ScheduleDefinition]
    sensor: SensorDefinition


def automation_of(entity: Entity, assets: Assets) -> Automation:
    """Return the jobs and schedules of an entity, and the sensor that enqueues its backlog."""
    checks = AssetSelection.checks_for_assets(assets.raw, assets.rows)
    jobs = [
        _job(entity.job("ingest"), AssetSelection.assets(assets.raw), "Ingest the source into the raw store."),
        _job(
            entity.job("migrate"),
            AssetSelection.assets(assets.rows),
            "Migrate the whole backlog in one run, past the queue and its workers.",
        ),
        _job(entity.job("check"), checks, "Check that the pipeline moves; materializes nothing."),
    ]
    schedules = [
        _scheduled(
            entity.schedule("ingest"),
            entity.job("ingest"),
            INGESTION_CRON,
            "Ingest every ten minutes, but never beside another run of the job that is still under way.",
        ),
        _scheduled(
            entity.schedule("check"),
            entity.job("check"),
            CHECK_CRON,
            # What workers do, and what nobody does, shows in no run.
            "Evaluate all asset checks every ten minutes, though nothing is materialized.",
        ),
    ]
    return Automation(jobs, schedules, _enqueueing(entity))


def _job(name: str, selection: AssetSelection, description: str) -> UnresolvedAssetJobDefinition:
    return define_asset_job(name, selection=selection, tags=one_at_a_time(name), description=description)


def _scheduled(name: str, job_name: str, cron: str, description: str) -> ScheduleDefinition:
    """Return a schedule that starts a job unless a run of the same is under way."""

    @schedule(
        name=name,
        job_name=job_name,
        cron_schedule=cron,
        execution_timezone="UTC",
        description=description,
        default_status=DefaultScheduleStatus.RUNNING,
    )
    def unless_under_way(context: ScheduleEvaluationContext) -> RunRequest | SkipReason:
        runs = context.instance.get_runs(RunsFilter(job_name=job_name, statuses=_UNDER_WAY), limit=1)
        return SkipReason(f"run {runs[0].run_id} is still under way") if runs else RunRequest()

    return unless_under_way


def _enqueueing(entity: Entity) -> SensorDefinition:
    @sensor(
        name=entity.job("enqueue"),
        description="Put the backlog on the migration queue, a window at a time, and mend what outages left.",
        minimum_interval_seconds=_SENSOR_INTERVAL_S,
        default_status=DefaultSensorStatus.RUNNING,
    )
    def enqueue() -> SkipReason:
        """Put the backlog on the migration queue, a window at a time, and mend what outages left.

        A tick launches no run, so that Dagster calls it skipped; its reason says what it did. A
        tick that can't reach MongoDB or Redis fails.
        """
        return SkipReason(services_of_process().of(entity.name).tick().sentence(entity.noun))

    return enqueue


class PruneConfig(Config):
    """How much of the history stays."""

    retention_s: int | None = Field(None, ge=1, description="Age to keep, in seconds, instead of RUN_RETENTION_S.")


@op(description="Delete what ended before RUN_RETENTION_S.")
def prune_old(context: OpExecutionContext, config: PruneConfig, services: ResourceParam[Services]) -> None:
    """Delete what ended before RUN_RETENTION_S, and say how much that was."""
    retention_s = config.retention_s or services.settings.run_retention_s
    pruned = prune(context.instance, utc_now() - timedelta(seconds=retention_s))
    context.log.info(pruned.sentence())
    context.add_output_metadata(asdict(pruned) | {"retention_s": retention_s})


@job(
    tags=one_at_a_time("prune_history"),
    description="Delete Dagster's old runs, reports and results of checks; the newest of each stays.",
)
def prune_history() -> None:
    """Delete Dagster's old runs, reports and results of checks; the newest of each stays."""
    prune_old()


prune_every_night = _scheduled(
    "prune_every_night", prune_history.name, PRUNING_CRON, "Prune Dagster's history every night."
)
