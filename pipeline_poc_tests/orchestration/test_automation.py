"""What runs by itself: the schedule and the sensor."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import (
    DagsterInstance,
    DagsterRunStatus,
    RunRequest,
    ScheduleDefinition,
    SkipReason,
    build_schedule_context,
    build_sensor_context,
)

from pipeline_poc.chaos.servers import Redis
from pipeline_poc.errors import ServiceUnavailable
from pipeline_poc.services import Services
from pipeline_poc_tests.definitions import defs


@pytest.fixture
def home(tmp_path: Path) -> Iterator[DagsterInstance]:
    """An instance that a schedule can be evaluated with."""
    with DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


SCHEDULES = [*defs.get_repository_def().schedule_defs]
enqueue_posts = defs.resolve_sensor_def("enqueue_posts")


@pytest.mark.parametrize("scheduled", SCHEDULES, ids=lambda each: each.name)
def test_the_schedules(home: DagsterInstance, scheduled: ScheduleDefinition) -> None:
    """A schedule requests a run, unless one of the same job is under way; then it says which."""
    job, other = defs.resolve_job_def(scheduled.job_name), defs.resolve_job_def("migrate_posts")
    home.create_run_for_job(other, status=DagsterRunStatus.STARTED)
    for status in (DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED):
        home.create_run_for_job(job, status=status)
        with build_schedule_context(instance=home) as context:
            assert isinstance(scheduled(context), RunRequest)
    for name in ("NOT_STARTED", "STARTING", "STARTED", "CANCELING"):
        run = home.create_run_for_job(job, status=DagsterRunStatus(name))
        with build_schedule_context(instance=home) as context:
            outcome = scheduled(context)
        assert isinstance(outcome, SkipReason)
        assert run.run_id in (outcome.skip_message or "")
        home.delete_run(run.run_id)


def test_the_sensor(pipeline: Services, instance: DagsterInstance) -> None:
    """A tick enqueues the backlog, and its reason says what it did; a tick without work says that."""
    pipeline.ingest()
    with build_sensor_context(instance=instance) as context:
        outcome = enqueue_posts(context)
        assert isinstance(outcome, SkipReason)
        assert outcome.skip_message == "enqueued 10 batches (100 posts); 10 jobs outstanding"
    with build_sensor_context(instance=instance) as context:
        again = enqueue_posts(context)
        assert isinstance(again, SkipReason)
        assert again.skip_message == "nothing to enqueue; 10 jobs outstanding"
    assert len(pipeline.queue.snapshot().queued) == 10


def test_an_outage_fails_the_tick(pipeline: Services, instance: DagsterInstance, redis_server: Redis) -> None:
    """A tick that can't reach the queue fails, so that the UI shows an outage and not idleness."""
    redis_server.kill()
    with (
        build_sensor_context(instance=instance) as context,
        pytest.raises(ServiceUnavailable, match="REDIS_URL"),
    ):
        enqueue_posts(context)
    redis_server.start()
