"""Reconciliation: every fault is reported with exactly its ids, and what merely moves is no fault."""

import threading
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from pymongo.database import Database

from pipeline_poc import reconciliation
from pipeline_poc.clock import utc_now
from pipeline_poc.raw_store import PostState, RawStore
from pipeline_poc.reconciliation import FAULTS, reconcile, spread
from pipeline_poc.relational_store import RelationalStore, RowState
from pipeline_poc.services import Services
from pipeline_poc.stand_in import StandIn
from pipeline_poc_tests.posts import stored

Documents = Database[dict[str, Any]]


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


def execute(engine: sa.Engine, statement: str) -> None:
    """Change rows past the pipeline."""
    with engine.begin() as connection:
        connection.execute(sa.text(statement))


def test_both_agree(migrated: Services) -> None:
    """Stores that agree are reported as such, with their numbers."""
    result = migrated.reconcile()
    assert result.ok
    summary = result.summary()
    assert summary.pop("duration_s") > 0
    assert summary == {
        "ok": True,
        "stored": 100,
        "migrated": 100,
        "backlog": 0,
        "quarantined": 0,
        "rows": 100,
        **{str(fault): 0 for fault in FAULTS},
    }


def test_empty_stores_agree(services: Services) -> None:
    """Two empty stores agree."""
    assert services.reconcile().ok


FAULTS_BY_HAND: dict[str, tuple[Callable[[Documents, sa.Engine], object], dict[str, list[int]]]] = {
    "rows deleted": (
        lambda _, sql: execute(sql, 'DELETE FROM migrated_posts WHERE "externalId" IN (1, 50, 100)'),
        {"missing": [1, 50, 100]},
    ),
    "documents deleted": (
        lambda db, _: db["posts"].delete_many({"externalId": {"$in": [1, 2, 99]}}),
        {"extra": [1, 2, 99]},
    ),
    "row of another content": (
        lambda _, sql: execute(sql, "UPDATE migrated_posts SET title = 'x' WHERE \"externalId\" = 7"),
        {"stale": [7]},
    ),
    "row whose text lost a space": (
        lambda _, sql: execute(sql, "UPDATE migrated_posts SET body = body || ' ' WHERE \"externalId\" = 8"),
        {"stale": [8]},
    ),
    "document edited": (
        lambda db, _: db["posts"].update_one({"externalId": 9}, {"$set": {"title": "edited"}}),
        {"stale": [9]},
    ),
    "flag without row": (
        lambda db, _: db["posts"].insert_one(
            {"externalId": 500, "userId": 1, "title": "t", "body": "b", "migrated": True, "batchId": "x"}
        ),
        {"missing": [500]},
    ),
    "flag taken away": (
        lambda db, _: db["posts"].update_one({"externalId": 10}, {"$set": {"migrated": False}}),
        {"wrongly_flagged": [10]},
    ),
    "hash of something else": (
        lambda db, _: db["posts"].update_one({"externalId": 11}, {"$set": {"contentHash": "0" * 32}}),
        {"wrongly_flagged": [11]},
    ),
    "migrated and quarantined": (
        lambda db, _: db["posts"].update_one({"externalId": 12}, {"$set": {"quarantine": {"code": "x"}}}),
        {"wrongly_flagged": [12]},
    ),
}


@pytest.mark.parametrize("fault", FAULTS_BY_HAND)
def test_faults(migrated: Services, database: Documents, sql: sa.Engine, fault: str) -> None:
    """A fault that was planted by hand is reported under its name, with its ids and no others."""
    plant, expected = FAULTS_BY_HAND[fault]
    plant(database, sql)
    result = migrated.reconcile()
    assert not result.ok
    assert {name: ids for name, ids in result.faults.items() if ids} == expected
    assert result.as_dict()["ids"] == result.faults
    assert result.stored == result.migrated + result.backlog + result.quarantined


def test_all_faults_at_once(migrated: Services, database: Documents, sql: sa.Engine) -> None:
    """Faults of all kinds, mixed, are told apart."""
    for plant, _ in FAULTS_BY_HAND.values():
        plant(database, sql)
    assert migrated.reconcile().faults == {
        "missing": [50, 100, 500],
        "extra": [2, 99],
        "stale": [7, 8, 9],
        "wrongly_flagged": [10, 11, 12],
    }


def test_what_waits_is_no_fault(services: Services, database: Documents) -> None:
    """Posts of the backlog, of dead letters, of no batch yet, and quarantined ones are no faults."""
    services.ingest()
    batches = services.ledger.batches("open")
    services.ledger.bury(batches[0].id, utc_now(), "bad")
    services.raw_store.quarantine_posts(batches[1].id, {11: ("relational_1406", "too long")}, utc_now())
    database["posts"].insert_one({"externalId": 200, "userId": 1, "title": "t", "body": "b", "migrated": False})
    result = services.reconcile()
    assert (result.ok, result.stored, result.migrated, result.backlog, result.quarantined) == (True, 101, 0, 100, 1)


def test_an_older_row_of_a_changed_post_is_no_fault(migrated: Services, stand_in: StandIn) -> None:
    """A post that changed and waits has an older row: that is the backlog, not a fault."""
    stand_in.behaviour = {"revision": "2"}
    migrated.ingest()
    result = migrated.reconcile()
    assert (result.ok, result.backlog, result.rows) == (True, 100, 100)


@pytest.mark.parametrize("suspects_max", [10_000, 5], ids=["few", "many"])
def test_live_traffic_gives_no_false_alarm(
    services: Services, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, suspects_max: int
) -> None:
    """While posts are ingested, changed and migrated, no fault is reported, however many posts move."""
    monkeypatch.setattr(reconciliation, "_SUSPECTS_MAX", suspects_max)
    monkeypatch.setattr(reconciliation, "_SECOND_LOOK_AFTER_S", 0.1)
    services.settings = services.settings.model_copy(update={"batch_size": 50})
    done = threading.Event()
    errors: list[Exception] = []

    def traffic() -> None:
        revision = 1
        try:
            while not done.is_set():
                revision += 1
                stand_in.behaviour = {"n": str(min(100 * revision, 1000)), "revision": str(revision)}
                services.ingest()
                services.migrate()
        except Exception as error:  # noqa: BLE001 - any error fails the test
            errors.append(error)

    thread = threading.Thread(target=traffic)
    thread.start()
    try:
        results = [services.reconcile() for _ in range(6)]
    finally:
        done.set()
        thread.join()
    assert not errors
    assert [result.faults for result in results if not result.ok] == []
    assert services.reconcile().ok


def test_many_posts_move_at_the_worst_moment(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """Posts that all arrive after the ledger was read are no fault, also where they are too many to ask for each."""
    monkeypatch.setattr(reconciliation, "_SUSPECTS_MAX", 5)
    states = RawStore.states

    def arrive(store: RawStore, *arguments: Any) -> Any:
        monkeypatch.setattr(RawStore, "states", states)
        services.ingest()
        return states(store, *arguments)

    monkeypatch.setattr(RawStore, "states", arrive)
    result = services.reconcile()
    assert (result.faults, result.backlog) == ({fault: [] for fault in FAULTS}, 100)


def test_many_faults_are_all_reported(migrated: Services, sql: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults too many to ask for each are looked at again all the same, and reported with exactly their ids."""
    monkeypatch.setattr(reconciliation, "_SUSPECTS_MAX", 5)
    execute(sql, 'DELETE FROM migrated_posts WHERE "externalId" > 20')
    assert migrated.reconcile().faults["missing"] == list(range(21, 101))


class ManyPosts(RawStore):
    """A raw store of so many posts, made while they are read."""

    def __init__(self, count: int) -> None:
        self.count = count

    def states(self, external_ids: Any = None) -> Any:
        """Yield them."""
        digest = stored(1).content_hash
        ids = range(1, self.count + 1) if external_ids is None else external_ids
        return (PostState(i, digest, True, False, None, True) for i in ids)


class ManyRows(RelationalStore):
    """A relational store of so many rows, made while they are read."""

    def __init__(self, count: int) -> None:
        self.many = count

    def rows(self, external_ids: Any = None, *, page: int = 5000) -> Any:  # noqa: ARG002 - the real signature
        """Yield them."""
        digest = stored(1).content_hash
        ids = range(1, self.many + 1) if external_ids is None else external_ids
        return (RowState(i, digest, 1) for i in ids)


def test_memory_is_flat(services: Services) -> None:
    """Comparing 200,000 posts takes no more memory than comparing few, and progress is told."""
    progress: list[int] = []
    tracemalloc.start()
    try:
        result = reconcile(ManyPosts(200_000), services.ledger, ManyRows(200_000), on_progress=progress.append)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (result.ok, result.stored, result.rows) == (True, 200_000, 200_000)
    assert progress == list(range(1000, 200_001, 1000))
    assert peak < 2_000_000


def test_reading_rows_and_posts_is_flat(services: Services, stand_in: StandIn) -> None:
    """The real stores are read in pieces as well: memory doesn't grow with what they hold."""
    stand_in.behaviour = {"n": "3000"}
    services.settings = services.settings.model_copy(update={"batch_size": 1000})
    services.ingest()
    services.migrate()
    tracemalloc.start()
    try:
        assert sum(1 for _ in services.relational_store.rows(page=100)) == 3000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


@given(first=st.integers(1, 50), count=st.integers(0, 30_000), size=st.integers(1, 3000))
def test_a_sample_is_spread(first: int, count: int, size: int) -> None:
    """A sample has about the size asked for, each id once at most and ascending, and comes from all over the range."""
    ids = range(first, first + count)
    parts = spread(ids, size)
    sampled = [external_id for part in parts for external_id in part]
    assert sampled == sorted(set(sampled))
    assert set(sampled) <= set(ids)
    if count <= size:
        assert sampled == [*ids]
    else:
        assert size / 2 <= len(sampled) <= 1.5 * size
        assert max(b - a for a, b in pairwise([first, *sampled, first + count])) <= 3 * count / len(parts)


def test_a_sample_compares_with_rows(migrated: Services, sql: sa.Engine) -> None:
    """A sample finds what is wrong with the ids in it, rows without a post included, and versions that are too old."""
    execute(sql, "DELETE FROM migrated_posts WHERE externalId = 3")
    execute(sql, "UPDATE migrated_posts SET version = version - 1 WHERE externalId = 4")
    result = migrated.reconcile_sample(100)
    assert (result.stored, result.rows, result.faults["missing"], result.outdated) == (100, 99, [3], [4])
    assert 10 <= migrated.reconcile_sample(10).stored < 30
    assert migrated.last_reconciliation().state == "none"
