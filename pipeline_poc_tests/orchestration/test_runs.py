"""The jobs that a person launches, and how runs try again where only a store is away."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from dagster import DagsterEventType, DagsterInstance, ExecuteInProcessResult
from pymongo.database import Database

from pipeline_poc import reconciliation
from pipeline_poc.clock import utc_now
from pipeline_poc.errors import ServiceUnavailable
from pipeline_poc.relational_store import RelationalStore
from pipeline_poc.services import Services
from pipeline_poc_tests.definitions import defs
from pipeline_poc_tests.integration.conftest import database

__all__ = ["database"]

STEPS = {"replay_posts": "put_back_posts", "repair_posts": "repair_faults_of_posts", "prune_history": "prune_old"}
Run = Callable[..., ExecuteInProcessResult]
AWAY = ServiceUnavailable("The relational store", "SQL_URL", "mysql://x", "gone")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Second looks come soon."""
    monkeypatch.setattr(reconciliation, "_SECOND_LOOK_AFTER_S", 0.01)


@pytest.fixture
def run(instance: DagsterInstance) -> Run:
    """Executes a job in this process, with this configuration of its only step."""

    def execute(job: str, **config: Any) -> ExecuteInProcessResult:
        run_config = {"ops": {STEPS[job]: {"config": config}}} if config else {}
        return defs.resolve_job_def(job).execute_in_process(
            instance=instance, run_config=run_config, raise_on_error=False
        )

    return execute


@pytest.fixture
def migrated(pipeline: Services) -> Services:
    """The stores, with 100 posts, all migrated."""
    pipeline.ingest()
    pipeline.migrate()
    return pipeline


def shown(result: ExecuteInProcessResult) -> dict[str, Any]:
    """Return the metadata of the output of the only step."""
    assert result.success
    [output] = [event for event in result.all_events if event.event_type == DagsterEventType.STEP_OUTPUT]
    return {name: value.value for name, value in output.step_output_data.metadata.items()}


def failure(result: ExecuteInProcessResult) -> str:
    """Return why the only step failed."""
    assert not result.success
    [event] = [event for event in result.all_events if event.event_type == DagsterEventType.STEP_FAILURE]
    error = event.step_failure_data.error
    assert error is not None
    return error.message


def test_the_default_replay_only_counts(migrated: Services, run: Run) -> None:
    """Launched as it stands, the replay says what migrating everything again would mean, and changes nothing."""
    numbers = shown(run("replay_posts"))
    assert (numbers["dry_run"], numbers["selected"], numbers["replayed"], numbers["batch_ids"]) == (True, 100, 0, [])
    assert migrated.reconcile().migrated == 100


def test_a_replay(migrated: Services, run: Run) -> None:
    """What is selected is back in the backlog, and the run shows its batches; a migration writes it again."""
    hour_ago = (utc_now() - timedelta(hours=1)).isoformat()
    selections: dict[int, dict[str, Any]] = {
        2: {"ids": [7, 42]},
        10: {"from_id": 91},
        3: {"from_id": 5, "to_id": 7},
        100: {"changed_since": hour_ago},
    }
    for posts, config in selections.items():
        numbers = shown(run("replay_posts", dry_run=False, **config))
        assert (numbers["selected"], numbers["replayed"]) == (posts, posts)
        assert numbers["batch_ids"] == [batch.id for batch in migrated.ledger.batches("open")]
        migrated.migrate()
    assert shown(run("replay_posts", dry_run=False, everything=True))["replayed"] == 100
    assert migrated.reconcile().backlog == 100
    assert run("migrate_posts").success
    assert migrated.reconcile().ok


def test_replays_that_are_not_clear(migrated: Services, run: Run) -> None:
    """A replay that selects nothing, or in two ways, or by no time, fails with a sentence that says so."""
    either = "Select posts either by ids, or by a range of ids, or by a time of change, or all"
    assert either in failure(run("replay_posts", dry_run=False))
    assert either in failure(run("replay_posts", ids=[1], everything=True))
    assert "changed_since is no time" in failure(run("replay_posts", changed_since="yesterday"))
    assert "needs its offset from UTC" in failure(run("replay_posts", changed_since="2026-01-31T09:30:00"))
    assert migrated.reconcile().migrated == 100


def test_a_repair(migrated: Services, run: Run, database: Database[dict[str, Any]]) -> None:
    """As it stands the repair only says what is wrong; told to act, it puts that back, and names what is left."""
    database["posts"].update_many({"externalId": {"$lte": 2}}, {"$set": {"title": "changed by hand"}})
    database["posts"].delete_one({"externalId": 9})
    for dry_run in (True, False):
        numbers = shown(run("repair_posts", **({} if dry_run else {"dry_run": False})))
        assert (numbers["dry_run"], numbers["repaired"], numbers["left"]) == (dry_run, 2, {"extra": [9]})
        assert (numbers["stale"], numbers["extra"]) == (2, 1)
        assert migrated.raw_store.has_unmigrated(None) is not dry_run


def test_pruning_with_another_age(pipeline: Services, run: Run, instance: DagsterInstance) -> None:
    """The age of what is pruned can be said for one run; without it the setting counts."""
    run("ingest_posts")
    assert shown(run("prune_history"))["retention_s"] == pipeline.settings.run_retention_s
    assert shown(run("prune_history", retention_s=1))["retention_s"] == 1
    assert not run("prune_history", retention_s=0).success


def test_an_outage_is_tried_again(pipeline: Services, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step whose store comes back within its attempts goes on where it stopped, and the run succeeds."""
    pipeline.ingest()
    real, calls = RelationalStore.write, []

    def away_twice(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) in (3, 5):
            raise AWAY
        return real(*arguments)

    monkeypatch.setattr(RelationalStore, "write", away_twice)
    result = run("migrate_posts")
    assert result.success
    events = [event.event_type for event in result.all_events]
    assert events.count(DagsterEventType.STEP_UP_FOR_RETRY) == 2
    assert (len(calls), pipeline.reconcile().migrated) == (12, 100)


def test_an_outage_that_lasts(pipeline: Services, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose store stays away fails after three attempts, with the pipeline's own sentence; others at once."""
    pipeline.ingest()
    for error, attempts in ((AWAY, 3), (ServiceUnavailable("The source", "SOURCE_URL", "http://x", "gone"), 1)):

        def fails(*_: Any, error: Exception = error) -> Any:
            raise error

        monkeypatch.setattr(RelationalStore, "write", fails)
        result = run("migrate_posts")
        assert str(error) in failure(result)
        retries = [event for event in result.all_events if event.event_type == DagsterEventType.STEP_UP_FOR_RETRY]
        assert len(retries) == attempts - 1
    assert pipeline.reconcile().ok
