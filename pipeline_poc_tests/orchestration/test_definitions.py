"""The definitions: what the UI shows, and what runs by itself."""

from dagster import AssetKey, DefaultScheduleStatus, DefaultSensorStatus, Definitions

from pipeline_poc import raw_store, relational_store
from pipeline_poc.definitions import defs


def test_loadable() -> None:
    """Dagster can load the definitions, without any setting or service."""
    Definitions.validate_loadable(defs)


def test_names() -> None:
    """Assets, jobs, schedules and sensors have the names that the documentation and old bookmarks use."""
    repository = defs.get_repository_def()
    assert set(repository.assets_defs_by_key) == {AssetKey("raw_posts"), AssetKey("migrated_posts")}
    assert {job.name for job in repository.get_all_jobs()} == {"ingest_posts", "migrate_posts", "__ASSET_JOB"}
    assert [schedule.name for schedule in repository.schedule_defs] == ["ingest_every_ten_minutes"]
    assert [sensor.name for sensor in repository.sensor_defs] == ["enqueue_backlog"]


def test_what_runs_by_itself() -> None:
    """The schedule ingests every ten minutes, the sensor ticks with each round of the daemon, unasked."""
    schedule = defs.resolve_schedule_def("ingest_every_ten_minutes")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("*/10 * * * *", "UTC")
    assert schedule.job_name == "ingest_posts"
    assert schedule.default_status == DefaultScheduleStatus.RUNNING
    sensor = defs.resolve_sensor_def("enqueue_backlog")
    assert sensor.minimum_interval_seconds == 3
    assert sensor.default_status == DefaultSensorStatus.RUNNING


def test_assets() -> None:
    """Assets have owner, group, kinds, description and columns, and one comes from the other."""
    graph = defs.resolve_asset_graph()
    columns = {"raw_posts": set(raw_store.FIELDS), "migrated_posts": set(relational_store.COLUMNS)}
    for name, expected in columns.items():
        node = graph.get(AssetKey(name))
        assert (node.group_name, node.owners) == ("posts", ["team:data-engineering"])
        assert node.description
        assert len(node.kinds) == 2
        schema = node.metadata["dagster/column_schema"]
        assert {column.name for column in schema.columns} == expected
        assert all(column.description for column in schema.columns)
    assert graph.get(AssetKey("migrated_posts")).parent_keys == {AssetKey("raw_posts")}


def test_everything_is_described() -> None:
    """Jobs, schedule and sensor say what they do."""
    repository = defs.get_repository_def()
    descriptions = [job.description for job in repository.get_all_jobs() if not job.name.startswith("__")]
    descriptions += [schedule.description for schedule in repository.schedule_defs]
    descriptions += [sensor.description for sensor in repository.sensor_defs]
    assert len(descriptions) == 4
    assert all(descriptions)
