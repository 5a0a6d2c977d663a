"""The assets on real stores: the same use cases as worker and command line, with numbers for people."""

import re
import threading
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, cast

import pytest
from dagster import AssetKey, DagsterInstance, ExecuteInProcessResult, TableMetadataValue
from pymongo.database import Database

from pipeline_poc.orchestration import io_managers
from pipeline_poc.relational_store import RelationalStore, RowState
from pipeline_poc.services import Services
from pipeline_poc.stand_in import StandIn
from pipeline_poc_tests.definitions import defs
from pipeline_poc_tests.integration.conftest import database

__all__ = ["database"]


def run(job: str, instance: DagsterInstance, *, raises: bool = True) -> ExecuteInProcessResult:
    """Execute a job in this process."""
    return defs.resolve_job_def(job).execute_in_process(instance=instance, raise_on_error=raises)


def metadata(result: ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    """Return the metadata of the asset's materialization."""
    [materialization] = result.asset_materializations_for_node(asset)
    return {name: value.value for name, value in materialization.metadata.items()}


def story(result: ExecuteInProcessResult, instance: DagsterInstance) -> list[str]:
    """Return what the assets log in a run, in order."""
    entries = instance.all_logs(result.run_id)
    return [entry.user_message for entry in entries if not entry.is_dagster_event and entry.step_key]


def test_ingest_then_migrate(pipeline: Services, instance: DagsterInstance) -> None:
    """Both jobs together bring every post to the relational store, and their materializations say the numbers."""
    shown = metadata(run("ingest_posts", instance), "raw_posts")
    assert {name: shown[name] for name in ("fetched", "new", "changed", "unchanged", "quarantined")} == {
        "fetched": 100,
        "new": 100,
        "changed": 0,
        "unchanged": 0,
        "quarantined": 0,
    }
    assert (shown["dagster/row_count"], shown["backlog"], shown["batches"]) == (100, 100, 10)
    assert shown["records_per_s"] > 0
    shown = metadata(run("migrate_posts", instance), "migrated_posts")
    assert {name: shown[name] for name in ("migrated", "quarantined", "batches", "attempts")} == {
        "migrated": 100,
        "quarantined": 0,
        "batches": 10,
        "attempts": 1,
    }
    assert shown["dagster/row_count"] == 100
    assert {"lag_s", "duration_s", "records_per_s"} <= set(shown)
    reconciliation = pipeline.reconcile()
    assert (reconciliation.ok, reconciliation.migrated) == (True, 100)


def test_runs_tell_their_story(
    pipeline: Services, stand_in: StandIn, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's log says what happens, in order, with progress now and then; its tags name the source and the version."""
    monkeypatch.setattr(io_managers, "PROGRESS_S", 0.0)
    result = run("ingest_posts", instance)
    begin, answer, *progress, end = story(result, instance)
    assert begin == f"ingesting {stand_in.url}"
    assert re.fullmatch(r"the source answered within 0\.\d{3} s: 100 records", answer)
    assert (progress[0], progress[-1]) == ("stored 10 of 100 records", "stored 100 of 100 records")
    assert end == "100 new, 0 changed, 0 unchanged, 0 quarantined; 100 wait to be migrated"
    found = instance.get_run_by_id(result.run_id)
    assert found
    assert found.tags["pipeline_poc/source"] == stand_in.url
    assert found.tags["pipeline_poc/version"] == version("pipeline-poc")

    result = run("migrate_posts", instance)
    begin, *progress, end = story(result, instance)
    assert begin == "about 100 records wait in 10 batches"
    assert len(progress) == 10
    assert progress[0].startswith("wrote 10 of about 100 records, lately batch ")
    assert end == "migrated 100 records in 10 batches, quarantined 0"

    monkeypatch.undo()
    begin, answer, end = story(run("ingest_posts", instance), instance)
    assert answer.endswith(" s: nothing has changed")


def test_the_source_is_observed(pipeline: Services, stand_in: StandIn, instance: DagsterInstance) -> None:
    """An ingestion tells what it saw of the source, without a request more; what it did not see is left out."""
    seen = []
    for _ in range(2):
        hits = stand_in.hits
        run("ingest_posts", instance)
        assert stand_in.hits == hits + 1
        [record] = instance.fetch_observations(AssetKey("jsonplaceholder_posts"), limit=1).records
        assert record.asset_observation
        seen.append({name: value.value for name, value in record.asset_observation.metadata.items()})
    first, second = seen
    assert (first["count"], first["not_modified"], first["url"]) == (100, False, stand_in.url)
    assert cast(float, first["latency_s"]) > 0
    assert first["etag"]
    assert (second["not_modified"], second["etag"], "count" in second) == (True, first["etag"], False)


def test_again(pipeline: Services, instance: DagsterInstance) -> None:
    """Materializing again writes nothing, and says so."""
    run("ingest_posts", instance)
    run("migrate_posts", instance)
    shown = metadata(run("ingest_posts", instance), "raw_posts")
    assert (shown["not_modified"], shown["fetched"], shown["batches"], shown["backlog"]) == (True, 0, 0, 0)
    shown = metadata(run("migrate_posts", instance), "migrated_posts")
    assert (shown["migrated"], shown["batches"], shown["records_per_s"]) == (0, 0, 0.0)


def test_bad_records_are_shown(pipeline: Services, stand_in: StandIn, instance: DagsterInstance) -> None:
    """Reasons of quarantined records and unknown fields stand in the metadata, whatever characters they have."""
    stand_in.posts = {500: {"id": 500, "more": 1, "\ud800": 2}, 501: "text"}
    shown = metadata(run("ingest_posts", instance), "raw_posts")
    assert shown["quarantine_reasons"] == {"missing_field": 1, "not_an_object": 1}
    assert shown["unknown_fields"] == {"more": 1, "\ud800": 1}


def test_previews(pipeline: Services, stand_in: StandIn, instance: DagsterInstance) -> None:
    """A preview shows a few posts, their texts cut and on one line."""
    stand_in.posts = {1: {"id": 1, "userId": 1, "title": "two\nlines", "body": "x" * 500}}
    results = {"raw_posts": run("ingest_posts", instance), "migrated_posts": run("migrate_posts", instance)}
    for asset, result in results.items():
        [materialization] = result.asset_materializations_for_node(asset)
        preview = materialization.metadata["preview"]
        assert isinstance(preview, TableMetadataValue)
        assert [record.data["externalId"] for record in preview.records] == ["1", "2", "3", "4", "5"]
        assert preview.records[0].data["title"] == "two lines"
        assert preview.records[0].data["body"] == "x" * 60 + "…"


def test_a_broken_source_fails_the_run(pipeline: Services, stand_in: StandIn, instance: DagsterInstance) -> None:
    """An ingestion that fails is a failed run, not an empty success, and stores nothing."""
    stand_in.behaviour = {"html": "1"}
    assert not run("ingest_posts", instance, raises=False).success
    assert pipeline.raw_store.counts().stored == 0


def test_an_outage_fails_the_run_and_heals(
    pipeline: Services, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration that fails half way has marked what it wrote and nothing else; the next run does the rest."""
    run("ingest_posts", instance)
    write = RelationalStore.write
    calls = 0

    def fail_on_third(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise ConnectionError("gone")
        return write(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(RelationalStore, "write", fail_on_third)
        assert not run("migrate_posts", instance, raises=False).success
    assert pipeline.raw_store.counts().migrated == 20
    assert pipeline.reconcile().ok
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("heartbeat")]
    assert metadata(run("migrate_posts", instance), "migrated_posts")["migrated"] == 80


def test_a_migration_that_moves_nothing_fails(
    pipeline: Services, instance: DagsterInstance, database: Database[dict[str, Any]]
) -> None:
    """A run that finds a batch and neither writes nor quarantines its posts fails, and says which they are."""
    run("ingest_posts", instance)
    batch = pipeline.ledger.batches("open")[0]
    database["posts"].update_many({"batchId": batch.id}, {"$set": {"migrated": None}})
    result = run("migrate_posts", instance, raises=False)
    assert not result.success
    failure = result.failure_data_for_node("migrated_posts")
    assert failure is not None
    assert failure.error is not None
    assert f"batch {batch.id}: of 0 posts read 0 were marked migrated" in failure.error.message
    assert batch.id in pipeline.ledger.waiting_ids()


def test_batches_stream(pipeline: Services, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches flow one at a time: each is marked before the next one is read, so that memory stays flat."""
    run("ingest_posts", instance)
    marked: list[int] = []
    write = RelationalStore.write

    def count_and_write(*arguments: Any) -> Any:
        marked.append(pipeline.raw_store.counts().migrated)
        return write(*arguments)

    monkeypatch.setattr(RelationalStore, "write", count_and_write)
    run("migrate_posts", instance)
    assert marked == list(range(0, 100, 10))


def test_inputs_are_loaded_lazily(pipeline: Services, instance: DagsterInstance) -> None:
    """Downstream assets get rows as a stream by id."""
    run("ingest_posts", instance)
    run("migrate_posts", instance)
    rows = cast(Iterator[RowState], defs.load_asset_value("migrated_posts", instance=instance))
    first = next(rows)
    assert isinstance(first, RowState)
    assert [first.external_id, *(row.external_id for row in rows)] == list(range(1, 101))
