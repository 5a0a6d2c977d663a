"""The definitions: what the UI shows, and what runs by itself."""

from dagster import AssetKey, DefaultScheduleStatus, DefaultSensorStatus, Definitions

from pipeline_poc import raw_store, table
from pipeline_poc.definitions import defs


def test_loadable() -> None:
    """Dagster can load the definitions, without any setting or service."""
    Definitions.validate_loadable(defs)


def test_names() -> None:
    """Assets, jobs, schedules and sensors have the names that the documentation and old bookmarks use."""
    repository = defs.get_repository_def()
    assert set(repository.assets_defs_by_key) == {AssetKey("raw_posts"), AssetKey("migrated_posts")}
    assert {job.name for job in repository.get_all_jobs()} == {
        "ingest_posts",
        "migrate_posts",
        "check_posts",
        "prune_history",
        "__ASSET_JOB",
    }
    assert {schedule.name for schedule in repository.schedule_defs} == {
        "ingest_every_ten_minutes",
        "check_every_ten_minutes",
        "prune_every_night",
    }
    assert {sensor.name for sensor in repository.sensor_defs} == {"enqueue_backlog", "send_alerts"}


def test_what_runs_by_itself() -> None:
    """Schedules ingest and check every ten minutes and prune at night; one sensor ticks each turn, one rarely."""
    for name, job, cron in (
        ("ingest_every_ten_minutes", "ingest_posts", "*/10 * * * *"),
        ("check_every_ten_minutes", "check_posts", "5,15,25,35,45,55 * * * *"),
        ("prune_every_night", "prune_history", "17 3 * * *"),
    ):
        schedule = defs.resolve_schedule_def(name)
        assert (schedule.cron_schedule, schedule.execution_timezone) == (cron, "UTC")
        assert schedule.job_name == job
        assert schedule.default_status == DefaultScheduleStatus.RUNNING
    for name, interval_s in {"enqueue_backlog": 3, "send_alerts": 30}.items():
        sensor = defs.resolve_sensor_def(name)
        assert sensor.minimum_interval_seconds == interval_s
        assert sensor.default_status == DefaultSensorStatus.RUNNING


def test_assets() -> None:
    """Assets have owner, group, kinds, description and columns, and one comes from the other."""
    graph = defs.resolve_asset_graph()
    columns = {"raw_posts": set(raw_store.FIELDS), "migrated_posts": set(table.COLUMNS)}
    for name, expected in columns.items():
        node = graph.get(AssetKey(name))
        assert (node.group_name, node.owners) == ("posts", ["team:data-engineering"])
        assert node.description
        assert len(node.kinds) == 2
        schema = node.metadata["dagster/column_schema"]
        assert {column.name for column in schema.columns} == expected
        assert all(column.description for column in schema.columns)
    assert graph.get(AssetKey("migrated_posts")).parent_keys == {AssetKey("raw_posts")}


def test_checks() -> None:
    """Checks watch over the assets, and run with each materialization as well as on their own."""
    graph = defs.resolve_asset_graph()
    watched = {
        "raw_posts": {"last_ingestion"},
        "migrated_posts": {"lag", "dead_letters", "nothing_is_stuck"},
    }
    everything = {f"{asset}_{check}" for asset, checks in watched.items() for check in checks}
    assert {f"{key.asset_key.to_user_string()}_{key.name}" for key in graph.asset_check_keys} == everything
    assert all(graph.get(key).description for key in graph.asset_check_keys)
    jobs = {"ingest_posts": "raw_posts", "migrate_posts": "migrated_posts"}
    for job, asset in jobs.items():
        assert set(defs.resolve_job_def(job).graph.node_dict) == {asset} | {
            f"{asset}_{name}" for name in watched[asset]
        }
    assert set(defs.resolve_job_def("check_posts").graph.node_dict) == everything


def test_everything_is_described() -> None:
    """Jobs, schedules and sensors say what they do."""
    repository = defs.get_repository_def()
    descriptions = [job.description for job in repository.get_all_jobs() if not job.name.startswith("__")]
    descriptions += [schedule.description for schedule in repository.schedule_defs]
    descriptions += [sensor.description for sensor in repository.sensor_defs]
    assert len(descriptions) == 9
    assert all(descriptions)
