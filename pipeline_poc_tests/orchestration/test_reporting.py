"""Reports to Dagster: few, complete, and never in the way of the work."""

import time
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetKey, AssetMaterialization, DagsterInstance

from pipeline_poc.migration import MigrationResult
from pipeline_poc.orchestration.reporting import Reporter
from pipeline_poc.services import Services
from pipeline_poc.worker import run_worker
from pipeline_poc_tests.acceptance.programs import until


def reports() -> list[dict[str, Any]]:
    """Return the metadata of all reports, oldest first."""
    with DagsterInstance.get() as instance:
        records = instance.fetch_materializations(AssetKey("migrated_posts"), limit=100, ascending=True).records
    found = []
    for record in records:
        assert isinstance(record.asset_materialization, AssetMaterialization)
        assert not record.run_id
        found.append({name: value.value for name, value in record.asset_materialization.metadata.items()})
    return found


def result(migrated: int) -> MigrationResult:
    """Return what migrating a batch gave."""
    return MigrationResult(batches=1, migrated=migrated, attempts=1, lag_s=float(migrated), duration_s=1.0)


def test_results_are_added_up(dagster_home: Path) -> None:
    """Many batches become one report without a run, with the sum of their numbers."""
    with Reporter(dagster_home) as reporter:
        for migrated in (1, 2, 3):
            reporter.add(result(migrated))
        reporter.add(MigrationResult())
    [report] = reports()
    assert (report["migrated"], report["batches"], report["lag_s"], report["duration_s"]) == (6, 3, 3.0, 3.0)
    assert {"attempts", "quarantined", "records_per_s", "dagster/column_lineage"} <= set(report)


def test_reports_come_now_and_then(dagster_home: Path) -> None:
    """What was migrated is reported while the worker goes on, not only at its end; nothing is reported twice."""
    assert reports() == []  # Which sets up the storage: Dagster can't do that twice at once.
    with Reporter(dagster_home, interval_s=0.05) as reporter:
        reporter.add(result(1))
        until(reports, "the first report")
        assert [report["migrated"] for report in reports()] == [1]
        reporter.add(result(2))
    assert [report["migrated"] for report in reports()] == [1, 2]


def test_no_work_no_report(dagster_home: Path) -> None:
    """Jobs that had nothing to do leave no trace in Dagster's event log."""
    with Reporter(dagster_home, interval_s=0.01) as reporter:
        reporter.add(MigrationResult())
        time.sleep(0.05)
    assert reports() == []


def test_nobody_to_tell() -> None:
    """Without DAGSTER_HOME there are no reports and no errors."""
    with Reporter(None, interval_s=0.01) as reporter:
        reporter.add(result(1))


def test_a_failing_storage_fails_nothing(dagster_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report that Dagster's storage refuses is made with the next one; no number is lost."""

    def refuse(*_: Any) -> None:
        raise OSError("disk full")

    with Reporter(dagster_home, interval_s=3600) as reporter:
        reporter.add(result(1))
        with monkeypatch.context() as patched:
            patched.setattr(DagsterInstance, "report_runless_asset_event", refuse)
            reporter.report()
        assert reports() == []
        reporter.add(result(2))
    assert [report["migrated"] for report in reports()] == [3]


def test_an_instance_that_cannot_be_opened_fails_nothing(dagster_home: Path) -> None:
    """A worker starts and works though the database that Dagster keeps its events in is away."""
    (dagster_home / "dagster.yaml").write_text(
        "storage:\n  mysql:\n    mysql_url: mysql+pymysql://nobody:nothing@127.0.0.1:1/none\n", encoding="utf-8"
    )
    with Reporter(dagster_home, interval_s=3600) as reporter:
        reporter.add(result(1))


def test_a_worker_reports(pipeline: Services, dagster_home: Path) -> None:
    """What a worker migrated is a materialization of the asset, with rows, batches and time."""
    pipeline.ingest()
    pipeline.tick()
    with Services(pipeline.settings.model_copy(update={"dagster_home": dagster_home})) as services:
        assert run_worker(services, burst=True) == 10
    found = reports()
    assert sum(report["migrated"] for report in found) == 100
    assert sum(report["batches"] for report in found) == 10
    assert len(found) <= 3
