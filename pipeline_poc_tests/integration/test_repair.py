"""Repair: whatever is wrong with posts and rows goes back into the backlog, and comes out right."""

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from pymongo.database import Database

from pipeline_poc import reconciliation
from pipeline_poc.clock import utc_now
from pipeline_poc.errors import ServiceUnavailable
from pipeline_poc.reconciliation import FAULTS, Fault
from pipeline_poc.repairs import Repairs
from pipeline_poc.services import Services
from pipeline_poc.stand_in import StandIn
from pipeline_poc_tests.integration.test_reconciliation import FAULTS_BY_HAND

Documents = Database[dict[str, Any]]

NOTHING_LEFT: dict[Fault, list[int]] = {fault: [] for fault in FAULTS}


@pytest.fixture
def relational_url(any_sql_url: str) -> str:
    """SQLite, and MariaDB."""
    return any_sql_url


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Second looks come soon."""
    monkeypatch.setattr(reconciliation, "_SECOND_LOOK_AFTER_S", 0.01)


@pytest.fixture
def migrated(services: Services) -> Services:
    """A pipeline with 100 posts, all migrated."""
    services.ingest()
    services.migrate()
    return services


@pytest.fixture
def sql(sql: sa.Engine) -> sa.Engine:
    """The relational store, which understands the same quotes and concatenation on every server."""
    if sql.dialect.name == "mysql":

        @sa.event.listens_for(sql, "connect")
        def _ansi(connection: Any, _record: Any) -> None:
            with connection.cursor() as cursor:
                cursor.execute("SET sql_mode = 'ANSI'")

    return sql


def migrate(services: Services) -> None:
    """Adopt and migrate everything."""
    services.adopt()
    services.migrate()


@pytest.mark.parametrize("fault", [name for name in FAULTS_BY_HAND if name != "documents deleted"])
def test_every_fault(migrated: Services, database: Documents, sql: sa.Engine, fault: str) -> None:
    """After repair, adoption and migration, both stores agree again."""
    plant, expected = FAULTS_BY_HAND[fault]
    plant(database, sql)
    number = sum(len(ids) for ids in expected.values())
    dry = migrated.repair(dry_run=True)
    assert (dry.dry_run, dry.repaired, dry.left) == (True, number, NOTHING_LEFT)
    assert not migrated.reconcile().ok
    done = migrated.repair()
    assert (done.dry_run, done.repaired, done.left) == (False, number, NOTHING_LEFT)
    between = migrated.reconcile()
    assert between.ok
    assert between.stored == between.migrated + between.backlog + between.quarantined
    migrate(migrated)
    after = migrated.reconcile()
    assert (after.ok, after.backlog) == (True, 0)
    assert migrated.repair().repaired == 0


def test_all_faults_at_once(migrated: Services, database: Documents, sql: sa.Engine) -> None:
    """All faults together are repaired but for rows without a post, which are reported and stay."""
    for plant, _ in FAULTS_BY_HAND.values():
        plant(database, sql)
    result = migrated.repair()
    assert (result.repaired, result.left) == (9, NOTHING_LEFT | {"extra": [2, 99]})
    migrate(migrated)
    after = migrated.reconcile()
    assert after.faults == NOTHING_LEFT | {"extra": [2, 99]}
    assert (after.migrated, after.quarantined, after.rows) == (97, 1, 100)


def test_rows_of_a_later_life(migrated: Services, database: Documents, sql: sa.Engine) -> None:
    """A row with a version from the future, written before the raw store was restored, is overwritten all the same."""
    future = int((utc_now() + timedelta(days=365)).timestamp() * 1000)
    with sql.begin() as connection:
        connection.execute(
            sa.text(f"UPDATE migrated_posts SET version = {future}, title = 'x' WHERE \"externalId\" = 5")
        )
    assert migrated.repair().repaired == 1
    migrate(migrated)
    assert migrated.reconcile().ok
    row = migrated.relational_store.row(5)
    assert row is not None
    assert row["version"] > future


def test_documents_and_rows_of_the_replaced_service(services: Services, database: Documents, sql: sa.Engine) -> None:
    """Documents without hash and version, flagged without a row, are repaired as well."""
    document = {"externalId": 1, "userId": 1, "title": "t", "body": "b", "migrated": True}
    database["posts"].insert_one(document)
    assert services.repair().repaired == 1
    migrate(services)
    assert services.reconcile().migrated == 1


def test_a_document_that_is_no_post(migrated: Services, database: Documents) -> None:
    """A document that somebody spoiled ends in quarantine, and the stores agree."""
    database["posts"].update_one({"externalId": 5}, {"$set": {"title": None}})
    assert migrated.repair().repaired == 1
    assert migrated.reconcile().ok
    migrate(migrated)
    result = migrated.reconcile()
    assert (result.ok, result.migrated, result.quarantined) == (True, 99, 1)


def test_faults_of_an_earlier_comparison(migrated: Services, database: Documents) -> None:
    """Ids that are wrong no more, that never were, or that nobody knows are left alone."""
    database["posts"].update_one({"externalId": 10}, {"$set": {"migrated": False}})
    result = migrated.repair({"missing": [1, 2, 12_345], "wrongly_flagged": [10]})
    assert (result.repaired, result.left) == (1, NOTHING_LEFT)
    assert migrated.raw_store.counts().backlog == 1


def test_a_post_that_changes_in_this_moment_is_left_alone(
    migrated: Services, sql: sa.Engine, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A post that is stored anew between the look and the write keeps its new version and batch."""
    with sql.begin() as connection:
        connection.execute(sa.text("UPDATE migrated_posts SET title = 'x'"))
    real = Repairs.put_back

    def overtaken(repairs: Repairs, *arguments: Any) -> int:
        monkeypatch.setattr(Repairs, "put_back", real)
        stand_in.behaviour = {"revision": "2"}
        migrated.ingest()
        return real(repairs, *arguments)

    monkeypatch.setattr(Repairs, "put_back", overtaken)
    result = migrated.repair()
    assert (result.repaired, result.left) == (0, NOTHING_LEFT)
    assert migrated.raw_store.has_unmigrated(None) is False
    migrate(migrated)
    after = migrated.reconcile()
    assert (after.ok, after.migrated) == (True, 100)


def test_posts_of_an_open_batch_are_no_fault(services: Services) -> None:
    """What waits for its migration is not touched, whatever a reconciliation is said to have found."""
    services.ingest()
    result = services.repair({"missing": list(range(1, 101))})
    assert (result.repaired, result.left) == (0, NOTHING_LEFT)
    assert not services.raw_store.has_unmigrated(None)


def test_many(migrated: Services, database: Documents, monkeypatch: pytest.MonkeyPatch) -> None:
    """More faults than fit one portion are all repaired."""
    database["posts"].update_many({}, {"$set": {"batchId": "gone", "migrated": False}})
    monkeypatch.setattr("pipeline_poc.desk._REPAIRED_AT_ONCE", 7)
    assert migrated.repair().repaired == 100
    migrate(migrated)
    assert migrated.reconcile().migrated == 100


def test_the_last_reconciliation_is_kept(migrated: Services, database: Documents) -> None:
    """Everybody can look at how the latest comparison ended, with the ids of its faults."""
    assert migrated.last_reconciliation() == reconciliation.LastReconciliation("none")
    migrated.reconcile()
    first = migrated.last_reconciliation()
    assert (first.state, first.summary and first.summary["ok"], first.error) == ("done", True, None)
    assert first.started_at is not None
    assert first.ended_at is not None
    assert first.started_at <= first.ended_at
    database["posts"].update_one({"externalId": 10}, {"$set": {"migrated": False}})
    migrated.reconcile()
    second = migrated.last_reconciliation()
    assert second.ids == NOTHING_LEFT | {"wrongly_flagged": [10]}
    assert second.summary is not None
    assert (second.summary["ok"], second.summary["wrongly_flagged"], second.summary["stored"]) == (False, 1, 100)


def test_a_reconciliation_that_runs_or_fails(migrated: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison shows that it runs and how it failed, beside the numbers of the last one; a dead one is told."""
    migrated.reconcile()
    summary = migrated.last_reconciliation().summary
    seen = []

    def fails(*_: Any, **__: Any) -> Any:
        seen.append(migrated.last_reconciliation())
        monkeypatch.setattr(reconciliation, "_GIVEN_UP_AFTER", timedelta(0))
        seen.append(migrated.last_reconciliation())
        raise ServiceUnavailable("The relational store", "SQL_URL", "mysql://u:secret@x", "gone")

    monkeypatch.setattr("pipeline_poc.services.reconcile", fails)
    with pytest.raises(ServiceUnavailable):
        migrated.reconcile()
    running, silent = seen
    assert (running.state, running.summary) == ("running", summary)
    assert (silent.state, silent.error) == ("failed", "its process gave no sign of life")
    failed = migrated.last_reconciliation()
    assert (failed.state, failed.summary) == ("failed", summary)
    assert failed.error is not None
    assert failed.error.startswith("ServiceUnavailable: The relational store")
    assert "secret" not in failed.error


def test_ids_that_are_kept_are_bounded(migrated: Services, monkeypatch: pytest.MonkeyPatch, sql: sa.Engine) -> None:
    """However many ids are wrong, a bounded number is kept, and the summary counts them all."""
    monkeypatch.setattr(reconciliation, "_IDS_KEPT", 5)
    with sql.begin() as connection:
        connection.execute(sa.text("DELETE FROM migrated_posts"))
    assert len(migrated.reconcile().faults["missing"]) == 100
    kept = migrated.last_reconciliation()
    assert kept.ids is not None
    assert kept.summary is not None
    assert (kept.ids["missing"], kept.summary["missing"]) == ([1, 2, 3, 4, 5], 100)


def test_progress_is_told(migrated: Services, stand_in: StandIn) -> None:
    """Keeping the outcome takes nothing from whoever wants to see the progress."""
    stand_in.behaviour = {"n": "1000"}
    migrated.ingest()
    progress: list[int] = []
    migrated.reconcile(progress.append)
    assert progress == [1000]
