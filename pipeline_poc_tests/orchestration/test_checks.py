"""The asset checks on real stores: green while the pipeline moves, and red, with a reason, once it does not."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, cast

import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetCheckSeverity,
    AssetKey,
    AssetRecordsFilter,
    DagsterInstance,
)
from pymongo.database import Database
from rq.job import Job
from sqlalchemy import Engine, text

from pipeline_poc import clock, reconciliation
from pipeline_poc.chaos.servers import Mongo
from pipeline_poc.clock import utc_now
from pipeline_poc.errors import PipelineError
from pipeline_poc.services import Services
from pipeline_poc.stand_in import StandIn
from pipeline_poc_tests.definitions import defs
from pipeline_poc_tests.integration.conftest import database, job, queue, sql

__all__ = ["database", "job", "queue", "sql"]


@pytest.fixture
def move_clock() -> Iterator[Callable[[float], None]]:
    """Sets the clock of this process so many seconds ahead."""
    yield lambda seconds: clock.shift(timedelta(seconds=seconds))
    clock.shift(timedelta(0))


@pytest.fixture
def check(pipeline: Services, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> "Check":
    """Evaluates all checks, as the schedule does, without materializing anything; takes config of the comparison."""
    monkeypatch.setattr(reconciliation, "_SECOND_LOOK_AFTER_S", 0.01)

    def evaluate(**config: Any) -> dict[str, AssetCheckEvaluation]:
        job = defs.resolve_job_def("check_posts")
        run_config = {"ops": {"migrated_posts_checks": {"config": config}}}
        result = job.execute_in_process(instance=instance, run_config=run_config, raise_on_error=False)
        assert not result.get_asset_materialization_events()
        found = {evaluation.check_name: evaluation for evaluation in result.get_asset_check_evaluations()}
        # One that blocks fails its run.
        assert result.success == (found["unique_ids"].passed or found["unique_ids"].severity == WARN)
        return found

    return evaluate


Check = Callable[..., dict[str, AssetCheckEvaluation]]


def failing(found: dict[str, AssetCheckEvaluation]) -> dict[str, AssetCheckSeverity]:
    """Return the checks that did not pass, with their severity."""
    return {name: evaluation.severity for name, evaluation in found.items() if not evaluation.passed}


def numbers(evaluation: AssetCheckEvaluation) -> dict[str, object]:
    """Return the metadata of an evaluation."""
    return {name: value.value for name, value in evaluation.metadata.items()}


WARN, ERROR = AssetCheckSeverity.WARN, AssetCheckSeverity.ERROR


def test_all_is_well(pipeline: Services, check: Check) -> None:
    """While posts flow, and once all are migrated, every check passes."""
    pipeline.ingest()
    found = check()
    assert failing(found) == {}
    assert {name: numbers(found["lag"])[name] for name in ("backlog", "batches", "most_attempts", "mode")} == {
        "backlog": 100,
        "batches": 10,
        "most_attempts": 0,
        "mode": "running",
    }
    assert numbers(found["lag"])["oldest_batch"] == pipeline.ledger.batches("open")[0].id
    pipeline.migrate()
    found = check()
    assert failing(found) == {}
    assert (numbers(found["lag"])["lag_s"], numbers(found["lag"])["oldest_batch"]) == (0.0, "none")
    assert len(found) == 11
    assert numbers(found["conservation"]) == {
        "stored": 100,
        "migrated": 100,
        "backlog": 0,
        "quarantined": 0,
        "rows": 100,
    }
    assert numbers(found["content_matches"])["documents_compared"] == 100
    assert numbers(found["documents_fit"])["ids_looked_at"] == 100


def test_an_idle_pipeline_stays_fresh(pipeline: Services, check: Check, instance: DagsterInstance) -> None:
    """The job says that the rows are up to date, before it checks them, and never while posts or dead letters wait."""
    asset = AssetKey("migrated_posts")

    def reports() -> list[float]:
        found = instance.fetch_materializations(AssetRecordsFilter(asset), limit=9).records
        return [record.timestamp for record in found]

    check()
    [reported_at] = reports()
    key = AssetCheckKey(asset, "lag")
    evaluated = instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
    assert evaluated.event is not None
    assert evaluated.event.timestamp > reported_at
    pipeline.ingest()
    check()
    for batch in pipeline.ledger.batches("open"):
        pipeline.ledger.bury(batch.id, utc_now(), "ValueError: for a person")
    check()
    assert reports() == [reported_at]


def test_how_much_is_compared(pipeline: Services, check: Check) -> None:
    """The comparison takes a sample of the size that the config names, or everything, whose outcome is kept."""
    pipeline.ingest()
    pipeline.migrate()
    found = numbers(check(sample_size=10)["content_matches"])
    assert (found["documents_compared"], found["rows_compared"]) == (10, 10)
    assert pipeline.last_reconciliation().state == "none"
    assert numbers(check(compare="all", sample_size=10)["content_matches"])["documents_compared"] == 100
    assert (pipeline.last_reconciliation().summary or {})["stored"] == 100


def test_stores_that_disagree(pipeline: Services, check: Check, sql: Engine) -> None:
    """Lost, changed, older and foreign rows are errors, with their ids and the way to a post's passport."""
    pipeline.ingest()
    pipeline.migrate()
    with sql.begin() as connection:
        for statement in (
            "DELETE FROM migrated_posts WHERE externalId IN (7, 70)",
            "UPDATE migrated_posts SET title = 'another' WHERE externalId = 8",
            "UPDATE migrated_posts SET version = version - 1 WHERE externalId = 9",
        ):
            connection.execute(text(statement))
    found = check()
    assert failing(found) == dict.fromkeys(("conservation", "content_matches", "no_stale_rows"), ERROR)
    assert str(found["conservation"].description).startswith("2 records are flagged migrated and have no row; ")
    assert str(found["content_matches"].description).startswith("2 missing, such as 7, 70; 1 stale, such as 8; ")
    shown = numbers(found["content_matches"])
    assert (shown["ids"], shown["passport"]) == ({"missing": [7, 70], "stale": [8]}, "/posts/7")
    shown = numbers(found["no_stale_rows"])
    assert (shown["stale_rows"], shown["ids"], shown["passport"]) == (1, ["9"], "/posts/9")
    pipeline.repair()
    pipeline.adopt()
    pipeline.migrate()
    assert failing(check()) == {"no_stale_rows": ERROR}
    with sql.begin() as connection:
        connection.execute(text("UPDATE migrated_posts SET externalId = 1000 + externalId WHERE externalId = 9"))
        copied = "userId, title, body, ingestedAt, migratedAt"
        wanted = f"SELECT 2000 + externalId, {copied} FROM migrated_posts WHERE externalId < 3"
        connection.execute(text(f"INSERT INTO migrated_posts (externalId, {copied}) {wanted}"))
    found = check()
    assert str(found["conservation"].description).startswith("2 rows have no document; ")
    assert failing(found) == dict.fromkeys(("conservation", "content_matches"), ERROR)


def test_documents(
    pipeline: Services, check: Check, instance: DagsterInstance, database: Database[dict[str, Any]]
) -> None:
    """Documents of another shape are a warning; an id that comes twice is an error, and blocks the migration."""
    pipeline.ingest()
    pipeline.migrate()
    posts = database["posts"]
    posts.update_one({"externalId": 7}, {"$set": {"title": 7}})
    posts.insert_one({"externalId": "eight"})
    found = check()
    assert found["documents_fit"].severity == WARN
    shown = numbers(found["documents_fit"])
    assert (found["documents_fit"].passed, shown["misfits"], shown["passport"]) == (False, 2, "/posts/7")
    assert set(cast(list[str], shown["ids"])) == {"7", "eight"}
    assert found["unique_ids"].passed
    # Put aside, it is known.
    pipeline.adopt()
    posts.delete_one({"externalId": 7})
    assert check()["documents_fit"].passed

    posts.drop_index("externalId_1")
    found = check()
    assert (found["unique_ids"].passed, found["unique_ids"].severity) == (False, WARN)
    document = posts.find_one({"externalId": 9}, {"_id": False})
    assert document
    posts.insert_one(document)
    found = check()
    assert (found["unique_ids"].passed, found["unique_ids"].severity) == (False, ERROR)
    assert numbers(found["unique_ids"])["ids"] == ["9"]
    everything = defs.resolve_implicit_global_asset_job_def()
    result = everything.execute_in_process(instance=instance, raise_on_error=False)
    assert [event.asset_key for event in result.get_asset_materialization_events()] == [AssetKey("raw_posts")]


def test_a_source_that_changes(pipeline: Services, check: Check, stand_in: StandIn) -> None:
    """Fields that come or go, and many bad records, are warnings, also once the answer is the same again."""
    found = check()
    assert {name: found[name].description for name in ("quarantine_rate", "source_schema")} == dict.fromkeys(
        ("quarantine_rate", "source_schema"), "no answer of the source was looked at yet"
    )
    stand_in.posts = {i: {"id": i, "userId": 1, "body": "", "$a.b\ud800": 1} for i in range(1, 21)}
    for _ in range(2):
        pipeline.ingest()
        found = check()
        assert failing(found) == {"quarantine_rate": WARN, "source_schema": WARN}
        assert str(found["source_schema"].description) == (
            "fields that the model does not have: $a.b\\ud800; fields that have vanished: title"
        )
        shown = numbers(found["source_schema"])
        assert (shown["unknown_fields"], shown["missing_fields"]) == ({"$a.b\\ud800": 20}, {"title": 20})
        shown = numbers(found["quarantine_rate"])
        assert (shown["share_of_last_answer"], shown["waiting"], shown["reasons"]) == (0.2, 20, {"missing_field": 20})
    stand_in.posts = {}
    pipeline.ingest()
    found = check()
    assert found["source_schema"].passed
    assert str(found["quarantine_rate"].description).endswith("% of all records ever served were quarantined")
    stand_in.posts = {i: {"id": i} for i in range(1, 101)}
    with pytest.raises(PipelineError):
        pipeline.ingest()
    described = str(check()["source_schema"].description)
    assert described == "fields that have vanished: body, title, userId"


@pytest.mark.parametrize(("lag_s", "severity"), [(901, WARN), (3601, ERROR)])
def test_lag(
    pipeline: Services, check: Check, move_clock: Callable[[float], None], lag_s: float, severity: AssetCheckSeverity
) -> None:
    """A backlog that nobody works off is a warning after LAG_WARN_S, and an error after four times that."""
    pipeline.ingest()
    pipeline.set_mode("paused", by="a test")
    move_clock(lag_s)
    lag = check()["lag"]
    assert (lag.passed, lag.severity) == (False, severity)
    assert lag.description == "a record waits longer than 900 s; the migration is paused"
    assert float(str(numbers(lag)["lag_s"])) >= lag_s


def test_ingestions(pipeline: Services, check: Check, stand_in: StandIn, move_clock: Callable[[float], None]) -> None:
    """No ingestion yet, failed ones, and none for SOURCE_WARN_S are warnings, with their reason."""
    assert check()["last_ingestion"].description == "no ingestion has gone well yet"
    stand_in.behaviour = {"html": "1"}
    with pytest.raises(PipelineError):
        pipeline.ingest()
    found = check()
    assert found["last_ingestion"].description == "no ingestion has gone well yet; 1 failed since"
    assert "answered 200" in str(numbers(found["last_ingestion"])["last_error"])
    stand_in.behaviour = {}
    pipeline.ingest()
    assert check()["last_ingestion"].passed
    move_clock(1801)
    found = check()
    assert found["last_ingestion"].severity == WARN
    assert found["last_ingestion"].description == "the last ingestion that went well is older than 1800 s"


def test_a_source_that_serves_nothing(pipeline: Services, instance: DagsterInstance, stand_in: StandIn) -> None:
    """An empty list is a run that goes well, with a failed check and a mark in the metadata; nothing is deleted."""
    pipeline.ingest()
    stand_in.behaviour = {"n": "0"}
    result = defs.resolve_job_def("ingest_posts").execute_in_process(instance=instance)
    [evaluation] = [each for each in result.get_asset_check_evaluations() if each.check_name == "last_ingestion"]
    assert (evaluation.passed, evaluation.severity) == (False, WARN)
    assert evaluation.description == "the source served nothing, though records of it are stored"
    [materialization] = result.asset_materializations_for_node("raw_posts")
    assert materialization.metadata["served_nothing"].value is True
    assert pipeline.raw_store.counts().stored == 100


def test_dead_letters(pipeline: Services, check: Check) -> None:
    """Batches that wait for a person fail a check, with their number and the types of their errors."""
    pipeline.ingest()
    for batch in pipeline.ledger.batches("open", limit=2):
        pipeline.ledger.bury(batch.id, utc_now(), "ValueError: what nobody foresaw")
    pipeline.migrate()
    found = check()
    assert failing(found) == {"dead_letters": WARN}
    assert numbers(found["dead_letters"]) == {"dead_letters": 2, "records": 20, "reasons": {"ValueError": 2}}


def test_silent_batches(
    pipeline: Services, check: Check, job: Callable[[str], Job], move_clock: Callable[[float], None]
) -> None:
    """Batches whose run or ingestion died fail a check until a tick has freed them."""
    pipeline.ingest()
    lost = pipeline.ledger.batches("open")[0].id
    pipeline.ledger.start(lost, "a run that dies", utc_now())
    filling = pipeline.ledger.create(3, utc_now())
    assert failing(check()) == {}
    move_clock(121)
    found = check()
    assert failing(found) == {"nothing_is_stuck": WARN}
    assert {name: numbers(found["nothing_is_stuck"])[name] for name in ("silent", "never_completed", "batches")} == {
        "silent": 1,
        "never_completed": 1,
        "batches": [lost, filling],
    }
    pipeline.tick()
    assert failing(check()) == {}
    # An attempt of which the ledger could not be told that it failed waits for the next one.
    pipeline.ledger.start(lost, "a worker", utc_now() - timedelta(seconds=60))
    assert job(lost).get_status() == "queued"
    assert failing(check()) == {}


def test_forgotten_posts(pipeline: Services, check: Check, database: Database[dict[str, Any]]) -> None:
    """Posts that wait in a batch that the ledger has lost are an error, until they are repaired."""
    pipeline.ingest()
    database["batches"].delete_many({})
    found = check()
    assert failing(found) == {"nothing_is_stuck": ERROR, "content_matches": ERROR}
    assert numbers(found["nothing_is_stuck"])["forgotten_records"] == 100
    assert (pipeline.last_reconciliation().summary or {})["ok"] is False
    pipeline.repair()
    pipeline.adopt()
    pipeline.migrate()
    assert failing(check()) == {}
    assert (pipeline.last_reconciliation().summary or {})["ok"], "everything was compared again"
    assert pipeline.reconcile().ok


def test_an_outage_fails_the_run(pipeline: Services, instance: DagsterInstance, mongo: Mongo) -> None:
    """Checks that can't look fail their run: nothing is green that nobody has seen."""
    pipeline.ingest()
    mongo.kill()
    # One of them will do: each waits for the server until it gives up.
    lag = AssetCheckKey(AssetKey("migrated_posts"), "lag")
    job = defs.resolve_job_def("check_posts").get_subset(asset_check_selection={lag})
    result = job.execute_in_process(instance=instance, raise_on_error=False)
    mongo.start()
    assert not result.success
    assert not result.get_asset_check_evaluations()
