"""The asset checks on real stores: green while the pipeline moves, and red, with a reason, once it does not."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from dagster import AssetCheckEvaluation, AssetCheckSeverity, DagsterInstance
from pymongo.database import Database
from rq.job import Job

from pipeline_poc import clock
from pipeline_poc.chaos.servers import Mongo
from pipeline_poc.clock import utc_now
from pipeline_poc.definitions import defs
from pipeline_poc.errors import PipelineError
from pipeline_poc.services import Services
from pipeline_poc.stand_in import StandIn
from pipeline_poc_tests.integration.conftest import database, job, queue

__all__ = ["database", "job", "queue"]


@pytest.fixture
def move_clock() -> Iterator[Callable[[float], None]]:
    """Sets the clock of this process so many seconds ahead."""
    yield lambda seconds: clock.shift(timedelta(seconds=seconds))
    clock.shift(timedelta(0))


@pytest.fixture
def check(pipeline: Services, instance: DagsterInstance) -> Callable[[], dict[str, AssetCheckEvaluation]]:
    """Evaluates all checks, as the schedule does, without materializing anything."""

    def evaluate() -> dict[str, AssetCheckEvaluation]:
        result = defs.resolve_job_def("check_posts").execute_in_process(instance=instance)
        assert not result.get_asset_materialization_events()
        return {found.check_name: found for found in result.get_asset_check_evaluations()}

    return evaluate


Check = Callable[[], dict[str, AssetCheckEvaluation]]


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
    assert lag.description == "a post waits longer than 900 s; the migration is paused"
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
    [evaluation] = result.get_asset_check_evaluations()
    assert (evaluation.passed, evaluation.severity) == (False, WARN)
    assert evaluation.description == "the source served nothing, though posts of it are stored"
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
    assert numbers(found["dead_letters"]) == {"dead_letters": 2, "posts": 20, "reasons": {"ValueError": 2}}


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
    assert failing(found) == {"nothing_is_stuck": ERROR}
    assert numbers(found["nothing_is_stuck"])["forgotten_posts"] == 100
    pipeline.repair()
    pipeline.adopt()
    pipeline.migrate()
    assert failing(check()) == {}
    assert pipeline.reconcile().ok


def test_an_outage_fails_the_run(pipeline: Services, instance: DagsterInstance, mongo: Mongo) -> None:
    """Checks that can't look fail their run: nothing is green that nobody has seen."""
    pipeline.ingest()
    mongo.kill()
    # One of them will do: each waits for the server until it gives up.
    job = defs.resolve_job_def("check_posts").get_subset(op_selection=["migrated_posts_lag"])
    result = job.execute_in_process(instance=instance, raise_on_error=False)
    mongo.start()
    assert not result.success
    assert not result.get_asset_check_evaluations()
