"""The definitions: what the UI shows, and what runs by itself."""

import json
import shutil
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from bson import json_util
from dagster import AssetCheckKey, AssetKey, Definitions
from dagster._core.definitions.freshness import TimeWindowFreshnessPolicy

from pipeline_poc import definitions, raw_store, table
from pipeline_poc.entities import ENTITIES
from pipeline_poc.posts import POSTS
from pipeline_poc_tests.definitions import defs
from pipeline_poc_tests.orchestration import snapshot

ROOT = Path(__file__).parents[2]
FIELDS = raw_store.document_fields(POSTS)
COLUMNS = table.migrated_posts.columns.keys()


def test_loadable() -> None:
    """Dagster can load the definitions, without any setting or service."""
    Definitions.validate_loadable(defs)


def test_snapshot() -> None:
    """Names, keys, schedules, intervals, pools and all else that users rely on changes on purpose only."""
    made_by = "after a change on purpose: python -m pipeline_poc_tests.orchestration.snapshot"
    assert snapshot.describe(defs) == snapshot.PATH.read_text(encoding="utf-8"), made_by


def test_dg(tmp_path: Path, dagster_home: Path) -> None:
    """`dg` finds everything from the project's root, by pyproject.toml alone."""
    # A copy of the root, without the .env of whoever runs the tests, which Dagster's commands would obey.
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "pipeline_poc").symlink_to(ROOT / "pipeline_poc")
    command = [sys.executable, "-m", "dagster_dg_cli.cli", "list", "defs", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    repository = defs.get_repository_def()
    expected = {
        "assets": {key.to_user_string() for key in repository.asset_graph.get_all_asset_keys()},
        "jobs": {job.name for job in repository.get_all_jobs() if not job.name.startswith("__")},
        "schedules": {schedule.name for schedule in repository.schedule_defs},
        "sensors": {sensor.name for sensor in repository.sensor_defs},
    }
    names = {kind: {each.get("name") or each["asset_key"] for each in found[kind]} for kind in expected}
    assert names == expected


def test_entities(monkeypatch: pytest.MonkeyPatch) -> None:
    """ENTITIES says what Dagster finds: each entity has all that posts have, in a group of its own."""
    monkeypatch.setenv("ENTITIES", ",".join(ENTITIES))
    found = definitions.defs()
    Definitions.validate_loadable(found)
    lines = snapshot.describe(found).splitlines()
    ours = [line for line in snapshot.describe(defs).splitlines() if "posts" in line]
    for name in ENTITIES:
        assert {line.replace("posts", name) for line in ours} <= set(lines)


def test_assets() -> None:
    """Assets have owner, group, kinds, description and columns, and one comes from the other."""
    graph = defs.resolve_asset_graph()
    columns = {
        "jsonplaceholder_posts": set(POSTS.stored_as),
        "raw_posts": set(FIELDS),
        "migrated_posts": set(COLUMNS),
    }
    for name, expected in columns.items():
        node = graph.get(AssetKey(name))
        assert (node.group_name, node.owners) == ("posts", ["team:data-engineering"])
        assert node.description
        assert len(node.kinds) == 2
        assert node.tags["layer"]
        schema = node.metadata["dagster/column_schema"]
        assert {column.name for column in schema.columns} == expected
        assert all(column.description and column.type for column in schema.columns)
    assert graph.get(AssetKey("raw_posts")).parent_keys == {AssetKey("jsonplaceholder_posts")}
    assert graph.get(AssetKey("migrated_posts")).parent_keys == {AssetKey("raw_posts")}
    assert not graph.get(AssetKey("jsonplaceholder_posts")).is_executable


def test_lineage_of_columns() -> None:
    """Each column that is said to come from another one exists, as does that one; content comes all the way."""
    graph = defs.resolve_asset_graph()
    names = {
        key: {column.name for column in graph.get(key).metadata["dagster/column_schema"].columns}
        for key in graph.get_all_asset_keys()
    }
    for asset in (AssetKey("raw_posts"), AssetKey("migrated_posts")):
        lineage = graph.get(asset).metadata["dagster/column_lineage"].deps_by_column
        assert {"externalId", "userId", "title", "body", "contentHash"} <= set(lineage) <= names[asset]
        for deps in lineage.values():
            assert {dep.asset_key for dep in deps} == graph.get(asset).parent_keys
            assert all(dep.column_name in names[dep.asset_key] for dep in deps)


def test_freshness() -> None:
    """What is materialized has limits for its age: some of the schedule's turns may be missed, not many."""
    graph = defs.resolve_asset_graph()
    for name in ("raw_posts", "migrated_posts"):
        policy = graph.get(AssetKey(name)).freshness_policy
        assert isinstance(policy, TimeWindowFreshnessPolicy)
        assert policy.warn_window is not None
        limits = (policy.warn_window.to_timedelta(), policy.fail_window.to_timedelta())
        assert limits == (timedelta(minutes=30), timedelta(hours=1))
    assert graph.get(AssetKey("jsonplaceholder_posts")).freshness_policy is None


def test_the_code_behind_an_asset() -> None:
    """Each asset leads to the lines of the functions that do its work."""
    graph = defs.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        references = graph.get(key).metadata["dagster/code_references"].code_references
        assert references
        for reference in references:
            lines = Path(reference.file_path).read_text(encoding="utf-8").splitlines()
            assert lines[reference.line_number - 1].strip().startswith(f"def {reference.label.split('.')[-1]}(")


def test_examples() -> None:
    """The example of a document has all fields of one that is migrated, each of its type, and is a post."""
    text = defs.resolve_asset_graph().get(AssetKey("raw_posts")).description or ""
    document = json_util.loads(text.split("```json")[1].split("```")[0])
    assert list(document) == [name for name in FIELDS if name != "quarantine"]
    types = {"int": int, "long": int, "string": str, "bool": bool, "date": datetime}
    assert all(isinstance(document[name], types[FIELDS[name][0]]) for name in document)
    assert raw_store.post_state(document, POSTS).hash_is_right
    rows = defs.resolve_asset_graph().get(AssetKey("migrated_posts")).description or ""
    assert "CREATE TABLE migrated_posts (" in rows
    assert all(name in rows for name in COLUMNS)


def test_checks() -> None:
    """Checks watch over the assets, and run with each materialization as well as on their own."""
    graph = defs.resolve_asset_graph()
    watched = {
        "raw_posts": {"last_ingestion", "quarantine_rate", "source_schema", "unique_ids", "documents_fit"},
        "migrated_posts": {
            "lag",
            "dead_letters",
            "nothing_is_stuck",
            "conservation",
            "content_matches",
            "no_stale_rows",
        },
    }
    everything = {AssetCheckKey(AssetKey(asset), check) for asset, checks in watched.items() for check in checks}
    assert set(graph.asset_check_keys) == everything
    assert all(graph.get(key).description for key in everything)
    assert [key.name for key in everything if graph.get(key).blocking] == ["unique_ids"]
    for job, steps in {
        "ingest_posts": {"raw_posts", "raw_posts_checks"},
        "migrate_posts": {"migrated_posts", "migrated_posts_checks"},
        "check_posts": {"raw_posts_checks", "migrated_posts_checks"},
    }.items():
        assert set(defs.resolve_job_def(job).graph.node_dict) == steps


def test_everything_is_described() -> None:
    """Jobs, schedules and sensors say what they do."""
    repository = defs.get_repository_def()
    descriptions = [job.description for job in repository.get_all_jobs() if not job.name.startswith("__")]
    descriptions += [schedule.description for schedule in repository.schedule_defs]
    descriptions += [sensor.description for sensor in repository.sensor_defs]
    assert len(descriptions) == 11
    assert all(descriptions)
