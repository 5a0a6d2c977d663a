"""What Dagster knows of a schedule before `up` starts: whether it runs at a known moment, or not at all."""

from datetime import datetime, timedelta
from pathlib import Path

from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteInstigatorOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    ScheduleInstigatorData,
)

from pipeline_poc.clock import utc_now
from pipeline_poc.orchestration.instance import instance_of, prepare_home
from pipeline_poc_tests.definitions import defs

INGESTING = "ingest_posts_every_ten_minutes"


def let_miss(data_dir: Path, schedule: str) -> None:
    """Let a schedule have missed a time while there was no daemon: the next one makes up for it at once."""
    _leave(data_dir, schedule, InstigatorStatus.DECLARED_IN_CODE, utc_now() - timedelta(minutes=10))


def stop_ingesting(data_dir: Path) -> None:
    """Let somebody have stopped the schedule of ingestions, for tests that count what they ingest themselves."""
    _leave(data_dir, INGESTING, InstigatorStatus.STOPPED, None)


def _leave(data_dir: Path, schedule: str, status: InstigatorStatus, since: datetime | None) -> None:
    home = data_dir / "dagster"
    prepare_home(home)
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("pipeline_poc"), "__repository__")
    cron = defs.resolve_schedule_def(schedule).cron_schedule
    data = ScheduleInstigatorData(cron, since.timestamp() if since else None)
    state = InstigatorState(RemoteInstigatorOrigin(repository, schedule), InstigatorType.SCHEDULE, status, data)
    with instance_of(home) as instance:
        instance.add_instigator_state(state)
