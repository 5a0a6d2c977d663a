"""Ours as a run of Dagster: the asset `migrated_posts`, materialized in this process."""

from bench.limit import collection, mongo
from bench.task import Task
from pipeline_poc.definitions import defs
from pipeline_poc.orchestration.instance import instance_of
from pipeline_poc.orchestration.resources import close_services


def run(task: Task) -> None:
    """Migrate the backlog; the run opens its stores while the clock runs."""
    job = defs().resolve_job_def("migrate_posts")
    quiet = {"loggers": {"console": {"config": {"log_level": "ERROR"}}}}
    assert task.settings.dagster_home
    with instance_of(task.settings.dagster_home) as instance:
        with task.meter.lap("asset run", task.posts):
            job.execute_in_process(instance=instance, run_config=quiet)
        close_services()
    task.check_rows()


def run_again(task: Task) -> None:
    """Put everything back into the backlog first."""
    with mongo(task) as client, task.connect() as connection, connection.cursor() as cursor:
        collection(task, client).update_many({}, {"$set": {"migrated": False, "migratedAt": None}})
        batches = client[task.settings.mongo_database]["batches"]
        batches.update_many({"state": "closed"}, {"$set": {"state": "open"}, "$unset": {"closedAt": ""}})
        cursor.execute("TRUNCATE migrated_posts")
    run(task)
