"""Dagster's storage as production has it: in MySQL, bounded in time, and pruned."""

import logging
import shutil
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pymysql
import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetCheckResult,
    AssetKey,
    AssetMaterialization,
    DagsterInstance,
    DagsterRunStatus,
    RunRequest,
    RunsFilter,
    asset,
    asset_check,
    build_schedule_context,
    materialize,
)
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import InstigatorType, TickData, TickStatus
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from dagster._core.storage.runs.sql_run_storage import SqlRunStorage
from dagster._core.test_utils import freeze_time
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon
from dagster._grpc.server import DagsterApiServer
from sqlalchemy import text

from pipeline_poc.chaos.servers import MariaDB
from pipeline_poc.migration import MigrationResult
from pipeline_poc.orchestration import code_server, pruning
from pipeline_poc.orchestration.instance import ingest_in_process
from pipeline_poc.orchestration.pruning import Pruned, prune
from pipeline_poc.orchestration.reporting import Reporter
from pipeline_poc.posts import POSTS
from pipeline_poc.services import Services
from pipeline_poc_tests.acceptance.programs import until
from pipeline_poc_tests.conftest import Figures
from pipeline_poc_tests.definitions import defs

ROOT = Path(__file__).parents[2]
DAY = timedelta(days=1)
START = datetime(2026, 1, 1, tzinfo=UTC)
RUNS, REPORTS = 2, 6


@pytest.fixture
def production_home(tmp_path: Path, sql_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DAGSTER_HOME with the file of production, whose storage is MariaDB."""
    home = tmp_path / "production"
    home.mkdir()
    shutil.copy(ROOT / "deploy/kubernetes/config/dagster.yaml", home)
    monkeypatch.setenv("DAGSTER_MYSQL_URL", sql_url.replace("+pymysql", "+mysqlconnector"))
    return home


@pytest.fixture(params=["sqlite", pytest.param("mariadb", marks=pytest.mark.mysql)])
def kept_instance(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DagsterInstance]:
    """An instance on disk, as one machine has it, and as production has it."""
    if request.param == "mariadb":
        home: Path = request.getfixturevalue("production_home")
    else:
        home = tmp_path / "one_machine"
        home.mkdir()
        shutil.copy(ROOT / "dagster.yaml", home)
    with DagsterInstance.from_config(str(home)) as instance:
        yield instance


def test_production(pipeline: Services, production_home: Path) -> None:
    """The file of production loads with MariaDB; runs, reports, ticks and the queue work there, within limits."""
    with DagsterInstance.from_config(str(production_home)) as instance:
        assert not instance.telemetry_enabled
        assert instance.run_monitoring_enabled
        assert instance.freshness_enabled

        assert ingest_in_process(defs, POSTS, instance)["new"] == 100
        with Reporter(production_home) as reporter:
            reporter.add(MigrationResult(batches=1, migrated=100))
        for name in ("raw_posts", "migrated_posts"):
            assert instance.get_latest_materialization_event(AssetKey(name))

        with build_schedule_context(instance=instance) as context:
            assert isinstance(defs.resolve_schedule_def("ingest_posts_every_ten_minutes")(context), RunRequest)
        tick = TickData("origin", "an_hour_ago", InstigatorType.SCHEDULE, TickStatus.SKIPPED, START.timestamp(), None)
        instance.create_tick(tick)
        assert [found.timestamp for found in instance.get_ticks("origin", "an_hour_ago")] == [START.timestamp()]
        instance.purge_ticks("origin", "an_hour_ago", START.timestamp() + 1, [TickStatus.SKIPPED])
        assert instance.get_ticks("origin", "an_hour_ago") == []

        ingest, check = defs.resolve_job_def("ingest_posts"), defs.resolve_job_def("check_posts")
        everything = defs.resolve_implicit_global_asset_job_def()
        leaves_the_queue(instance, everything)  # Dagster learns of the pools from the first run in them.
        assert leaves_the_queue(instance, ingest, ingest, everything, check, check) == ["ingest_posts", "check_posts"]

        assert isinstance(instance.run_storage, SqlRunStorage)
        with instance.run_storage.connect() as connection:
            driver: Any = connection.connection.driver_connection
            assert (driver.read_timeout, driver.write_timeout) == (60, 60)


def leaves_the_queue(instance: DagsterInstance, *jobs: Any) -> list[str]:
    """Return the jobs of those that the daemon would start at once, if runs of these were all that is queued."""
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("code"), "__repository__")
    runs = [
        instance.create_run_for_job(
            job,
            status=DagsterRunStatus.QUEUED,
            tags=job.tags,
            remote_job_origin=RemoteJobOrigin(repository, job.name),
        )
        for job in jobs
    ]
    daemon = QueuedRunCoordinatorDaemon(interval_seconds=5)
    started = daemon._get_runs_to_dequeue(instance, instance.get_concurrency_config(), fixed_iteration_time=None)
    for run in runs:
        instance.delete_run(run.run_id)
    return [run.job_name for run in started]


def test_no_call_waits_for_ever(production_home: Path, mariadb: MariaDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls fail while the server hangs or is frozen, and work again when it is back, with kept connections as well."""
    url = mariadb.url("dagster_outage").replace("+pymysql", "+mysqlconnector")
    monkeypatch.setenv("DAGSTER_MYSQL_URL", f"{url}?read_timeout=1&connection_timeout=1")
    with DagsterInstance.from_config(str(production_home)) as instance:
        for optimized in (False, True):
            if optimized:
                instance.optimize_for_webserver(1000, 3600, 20)
            assert instance.get_runs_count() == 0
            with pymysql.connect(host="127.0.0.1", port=mariadb.port, user="root", ssl_disabled=True) as administrator:
                administrator.cursor().execute("LOCK TABLES dagster_outage.runs WRITE")
                with pytest.raises(Exception, match="timed out"):
                    instance.get_runs_count()
            assert instance.get_runs_count() == 0
            mariadb.pause()
            with pytest.raises(Exception, match="timed out"):
                instance.get_runs_count()
            mariadb.resume()
            assert instance.get_runs_count() == 0
            mariadb.kill()
            mariadb.start()
            assert instance.get_runs_count() == 0


def test_a_code_server_outlives_an_outage(
    production_home: Path, mariadb: MariaDB, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run ends while the storage is away: once that is back, the server that was asked to stop does so."""
    monkeypatch.setattr(code_server, "_PAUSE_S", 0.1)
    code_server.adapt_code_server()
    with DagsterInstance.from_config(str(production_home)) as instance:
        reference = instance.get_ref()
    server: Any = object.__new__(DagsterApiServer)
    server._execution_lock = threading.Lock()
    server._executions = {"run": (SimpleNamespace(is_alive=lambda: False, exitcode=0), reference)}
    server._termination_events, server._termination_times = {"run": threading.Event()}, {}
    server._shutdown_once_executions_finish_event = threading.Event()
    server._shutdown_once_executions_finish_event.set()
    server._server_termination_event = threading.Event()
    mariadb.kill()
    with caplog.at_level(logging.WARNING):
        thread = threading.Thread(target=server._cleanup_thread)
        thread.start()
        until(lambda: "ended runs can't be looked after" in caplog.text, "it was told")
        assert thread.is_alive()
        mariadb.start()
        thread.join(30)
    assert server._server_termination_event.is_set()


@asset
def asset_of_runs() -> None:
    """Something that runs materialize."""


@asset_check(asset=asset_of_runs)
def check_of_runs() -> AssetCheckResult:
    """Something that runs check."""
    return AssetCheckResult(passed=True)


def use(instance: DagsterInstance, day: int) -> None:
    """Leave what the pipeline leaves on a day."""
    with freeze_time(START + day * DAY):
        for _ in range(RUNS):
            run = materialize([asset_of_runs, check_of_runs], instance=instance, tags={"day": str(day)})
            if isinstance(instance.compute_log_manager, LocalComputeLogManager):
                logs = instance.compute_log_manager.get_captured_local_path([run.run_id, "compute_logs", "step"], "out")
                Path(logs).parent.mkdir(parents=True, exist_ok=True)
                Path(logs).write_text("printed")
        for number in range(REPORTS):
            tags = {"dagster/data_version": f"{day}-{number}"}
            instance.report_runless_asset_event(AssetMaterialization("asset_of_workers", tags=tags))
        for _ in range(REPORTS):
            result = AssetCheckEvaluation(check_name="check", passed=True, asset_key=AssetKey("asset_of_workers"))
            instance.report_runless_asset_event(result)


def sizes(instance: DagsterInstance) -> dict[str, int]:
    """Return how much of everything there is: rows of tables, and files."""
    events, runs = instance.event_log_storage, instance.run_storage
    assert isinstance(events, SqlEventLogStorage)
    assert isinstance(runs, SqlRunStorage)
    found = {}
    with runs.connect() as connection:
        for table in ("runs", "run_tags"):
            found[table] = connection.execute(text(f"SELECT COUNT(*) FROM {table}")).scalar_one()
    with events.index_connection() as connection:
        for table in ("event_logs", "asset_event_tags", "asset_check_executions"):
            found[table] = connection.execute(text(f"SELECT COUNT(*) FROM {table}")).scalar_one()
    with events.run_connection("") as connection:
        found["events without a run"] = connection.execute(
            text("SELECT COUNT(*) FROM event_logs WHERE run_id = ''")
        ).scalar_one()
    folder = Path(instance.root_directory)
    found["files"] = len([path for path in folder.rglob("*") if path.is_file() and not path.match("*.db-*")])
    return found


def test_pruning_keeps_it_flat(
    kept_instance: DagsterInstance, measured: Figures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What days leave is gone after its time, whatever store; the newest of each kind and unfinished runs stay."""
    monkeypatch.setattr(pruning, "_CHUNK", 4)
    instance = kept_instance
    with freeze_time(START):
        unfinished = instance.create_run_for_job(defs.resolve_job_def("check_posts"), status=DagsterRunStatus.STARTED)
    flat: list[dict[str, int]] = []
    for day in (1, 2, 3):
        use(instance, day)
        full = sizes(instance)
        kept = 0 if day == 1 else 1  # Of the day before, of each kind.
        assert prune(instance, START + day * DAY - DAY / 2) == Pruned(kept, 0, 0), "nothing of the day is old"
        pruned = prune(instance, START + day * DAY + DAY / 2)
        assert pruned == Pruned(RUNS - 1, 2 * (REPORTS - 1 + kept), REPORTS - 1 + kept + RUNS - 1 + kept)
        assert prune(instance, START + day * DAY + DAY / 2) == Pruned(0, 0, 0)
        flat.append(sizes(instance))
        assert all(flat[-1][name] <= full[name] for name in full)
    assert flat[0] == flat[1] == flat[2]
    assert flat[0]["runs"] == 2
    assert flat[0]["events without a run"] == 2

    measured(f"full {full}, pruned {flat[-1]}")
    assert instance.get_run_by_id(unfinished.run_id)
    newest = (START + 3 * DAY).timestamp()
    for name in ("asset_of_runs", "asset_of_workers"):
        key = AssetKey(name)
        [record] = instance.fetch_materializations(key, limit=10).records
        event = instance.get_latest_materialization_event(key)
        assert event
        assert (record.timestamp, event.timestamp) == (newest, newest)
        assert not record.run_id or instance.get_run_by_id(record.run_id)
    checks = [
        AssetCheckKey(AssetKey("asset_of_runs"), "check_of_runs"),
        AssetCheckKey(AssetKey("asset_of_workers"), "check"),
    ]
    assert set(instance.event_log_storage.get_latest_asset_check_execution_by_key(checks)) == set(checks)
    assert len(instance.get_runs(RunsFilter(tags={"day": "3"}))) == 1


def test_the_job(pipeline: Services, instance: DagsterInstance) -> None:
    """The job prunes what is older than RUN_RETENTION_S."""
    with freeze_time(datetime.now(UTC) - timedelta(seconds=pipeline.settings.run_retention_s + 60)):
        old = materialize([asset_of_runs], instance=instance)
        materialize([asset_of_runs], instance=instance)
    assert defs.resolve_job_def("prune_history").execute_in_process(instance=instance).success
    assert not instance.get_run_by_id(old.run_id)
    assert len(instance.get_runs()) == 2
