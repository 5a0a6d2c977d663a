"""Jobs, the schedules of ingestion and checks, and the sensor that enqueues the backlog."""

from dagster import (
    AssetSelection,
    DagsterRunStatus,
    DefaultScheduleStatus,
    DefaultSensorStatus,
    ResourceParam,
    RunRequest,
    RunsFilter,
    ScheduleEvaluationContext,
    SkipReason,
    define_asset_job,
    schedule,
    sensor,
)

from pipeline_poc.orchestration.assets import migrated_posts, raw_posts
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

ingest_posts = define_asset_job(
    "ingest_posts", selection=[raw_posts], description="Ingest the source into the raw store."
)
migrate_posts = define_asset_job(
    "migrate_posts",
    selection=[migrated_posts],
    description="Migrate the whole backlog in one run, past the queue and its workers.",
)
check_posts = define_asset_job(
    "check_posts",
    selection=AssetSelection.all_asset_checks(),
    description="Check that the pipeline moves; materializes nothing.",
)


@schedule(
    job=ingest_posts,
    cron_schedule="*/10 * * * *",
    execution_timezone="UTC",
    description="Ingest every ten minutes, but never beside another run of the job that is still under way.",
    default_status=DefaultScheduleStatus.RUNNING,
)
def ingest_every_ten_minutes(context: ScheduleEvaluationContext) -> RunRequest | SkipReason:
    """Ingest every ten minutes, but never beside an ingestion that is still under way."""
    return _unless_under_way(context, ingest_posts.name)


@schedule(
    job=check_posts,
    # Between two ingestions, which check what they have written themselves.
    cron_schedule="5,15,25,35,45,55 * * * *",
    execution_timezone="UTC",
    description="Evaluate all asset checks every ten minutes, though nothing is materialized.",
    default_status=DefaultScheduleStatus.RUNNING,
)
def check_every_ten_minutes(context: ScheduleEvaluationContext) -> RunRequest | SkipReason:
    """Evaluate all checks every ten minutes: what workers do, and what nobody does, shows in no run."""
    return _unless_under_way(context, check_posts.name)


def _unless_under_way(context: ScheduleEvaluationContext, job: str) -> RunRequest | SkipReason:
    runs = context.instance.get_runs(RunsFilter(job_name=job, statuses=_UNDER_WAY), limit=1)
    return SkipReason(f"run {runs[0].run_id} is still under way") if runs else RunRequest()


@sensor(
    description="Put the backlog on the migration queue, a window at a time, and mend what outages left.",
    minimum_interval_seconds=_SENSOR_INTERVAL_S,
    default_status=DefaultSensorStatus.RUNNING,
)
def enqueue_backlog(services: ResourceParam[Services]) -> SkipReason:
    """Put the backlog on the migration queue, a window at a time, and mend what outages left.

    A tick launches no run, so that Dagster calls it skipped; its reason says what it did. A
    tick that can't reach MongoDB or Redis fails.
    """
    return SkipReason(services.tick().sentence())
