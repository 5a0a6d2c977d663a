"""Dagster's instance on one machine: prepared, cleared of dead runs, and used from our own processes."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dagster import DagsterInstance, DagsterRunStatus, Definitions, RunsFilter

from pipeline_poc.records import Entity

__all__ = ["DagsterInstance", "fail_unfinished_runs", "ingest_in_process", "instance_of", "prepare_home"]

_UNFINISHED = [
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]


def prepare_home(home: Path) -> None:
    """Make a folder for Dagster with the configuration that comes with the package."""
    home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(__file__).parents[1] / "dagster.yaml", home / "dagster.yaml")


@contextmanager
def instance_of(home: Path) -> Iterator[DagsterInstance]:
    """Open the instance whose configuration and data are in a folder."""
    with DagsterInstance.from_config(str(home)) as instance:
        yield instance


def fail_unfinished_runs(instance: DagsterInstance) -> None:
    """Fail the runs that are under way; to be called where nothing can be executing them any more."""
    for run in instance.get_runs(RunsFilter(statuses=_UNFINISHED)):
        instance.report_run_failed(run, "Its process ended together with `pipeline-poc up`.")


def ingest_in_process(defs: Definitions, entity: Entity, instance: DagsterInstance) -> dict[str, Any]:
    """Execute the job that ingests an entity in this process, as a run like any other.

    Returns:
        The metadata of the materialization, such as of ``raw_posts``.

    Raises:
        Exception: Whatever made the run fail; the pipeline's own error is among its causes.
    """
    run = defs.resolve_job_def(entity.job("ingest")).execute_in_process(
        instance=instance,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        tags={"pipeline_poc/started_by": "up"},
    )
    (materialization,) = run.asset_materializations_for_node(f"raw_{entity.name}")
    return {name: entry.value for name, entry in materialization.metadata.items()}
