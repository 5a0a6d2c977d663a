"""Jobs, the schedules of ingestion, checks and pruning, and the sensor that enqueues the backlog."""

from datetime import timedelta

from dagster import (
    AssetSelection,
    DagsterRunStatus,
    DefaultScheduleStatus,
    DefaultSensorStatus,
    OpExecutionContext,
    ResourceParam,
    RunRequest,
    RunsFilter,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SkipReason,
    define_asset_job,
    job,
    op,
    schedule,
    sensor,
)

from pipeline_poc.clock import utc_now
from pipeline_poc.orchestration.assets import migrated_posts, raw_posts
from pipeline_poc.orchestration.pruning import prune
from pipeline_poc.orchestration.resources import services_of_process
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


def _one_at_a_time(job: str) -> dict[str, str]:
    """Tag the runs of a job, so that the queue of production starts the next one when the last has ended."""
    return {"pipeline_poc/one_at_a_time": job}


ingest_posts = define_asset_job(
    "ingest_posts",
    selection=[raw_posts],
    tags=_one_at_a_time("ingest_posts"),
    description="Ingest the source into the raw store.",
)
migrate_posts = define_asset_job(
    "migrate_posts",
    selection=[migrated_posts],
    tags=_one_at_a_time("migrate_posts"),
    description="Migrate the whole backlog in one run, past the queue and its workers.",
)
check_posts = define_asset_job(
    "check_posts",
    selection=AssetSelection.all_asset_checks(),
    tags=_one_at_a_time("check_posts"),
    description="Check that the pipeline moves; materializes nothing.",
)


@op(description="Delete what ended before RUN_RETENTION_S.")
def prune_old(context: OpExecutionContext, services: ResourceParam[Services]) -> None:
    """Delete what ended before RUN_RETENTION_S, and say how much that was."""
    pruned = prune(context.instance, utc_now() - timedelta(seconds=services.settings.run_retention_s))
    context.log.info(pruned.sentence())


@job(
    tags=_one_at_a_time("prune_history"),
    description="Delete Dagster's old runs, reports and results of checks; the newest of each stays.",
)
def prune_history() -> None:
    """Delete Dagster's old runs, reports and results of checks; the newest of each stays."""
    prune_old()


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


ingest_every_ten_minutes = _scheduled(
    "ingest_every_ten_minutes",
    ingest_posts.name,
    "*/10 * * * *",
    "Ingest every ten minutes, but never beside another run of the job that is still under way.",
)
check_every_ten_minutes = _scheduled(
    "check_every_ten_minutes",
    check_posts.name,
    # Between two ingestions, which check what they have written themselves.
    "5,15,25,35,45,55 * * * *",
    # What workers do, and what nobody does, shows in no run.
    "Evaluate all asset checks every ten minutes, though nothing is materialized.",
)
prune_every_night = _scheduled(
    "prune_every_night", prune_history.name, "17 3 * * *", "Prune Dagster's history every night."
)


@sensor(
    description="Put the backlog on the migration queue, a window at a time, and mend what outages left.",
    minimum_interval_seconds=_SENSOR_INTERVAL_S,
    default_status=DefaultSensorStatus.RUNNING,
)
def enqueue_backlog() -> SkipReason:
    """Put the backlog on the migration queue, a window at a time, and mend what outages left.

    A tick launches no run, so that Dagster calls it skipped; its reason says what it did. A
    tick that can't reach MongoDB or Redis fails.
    """
    return SkipReason(services_of_process().tick().sentence())
