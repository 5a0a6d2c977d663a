"""Replay: what is migrated goes back into the backlog, and its rows are written again, right or wrong."""

from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from pymongo.database import Database

from pipeline_poc import enqueueing, failpoints, reconciliation
from pipeline_poc.clock import utc_now
from pipeline_poc.enqueueing import TickPolicy
from pipeline_poc.errors import ServiceUnavailable, TransientError
from pipeline_poc.post_selection import PostSelection
from pipeline_poc.repairs import Repairs
from pipeline_poc.selection import SelectionError
from pipeline_poc.services import Services
from pipeline_poc.stand_in import StandIn
from pipeline_poc_tests.integration.test_repair import migrate, migrated, relational_url, sql
from pipeline_poc_tests.posts import record

__all__ = ["migrated", "relational_url", "sql"]

Documents = Database[dict[str, Any]]

ALL = PostSelection(all=True)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Second looks come soon."""
    monkeypatch.setattr(reconciliation, "_SECOND_LOOK_AFTER_S", 0.01)


def backlog(database: Documents) -> list[int]:
    """Return the ids of the posts that are not migrated."""
    return sorted(post["externalId"] for post in database["posts"].find({"migrated": False}))


def test_rows_are_right_afterwards(migrated: Services, database: Documents, sql: sa.Engine) -> None:
    """Rows are written again, wrong ones, missing ones and right ones alike, and nothing else of the posts changes."""
    with sql.begin() as connection:
        connection.execute(sa.text('DELETE FROM migrated_posts WHERE "externalId" <= 3'))
        # As a person would: the row keeps its version, so that a late retry would leave it as it is.
        connection.execute(sa.text("UPDATE migrated_posts SET title = 'x', \"migratedAt\" = '2001-01-01 00:00:00'"))
        connection.execute(sa.text('UPDATE migrated_posts SET version = version + 100000000000 WHERE "externalId" = 5'))
    before = {post["externalId"]: post for post in database["posts"].find()}
    result = migrated.replay(ALL)
    assert (result.selected, result.replayed, result.waiting, result.quarantined) == (100, 100, 0, 0)
    assert len(result.batches) == 10
    between = migrated.reconcile()
    assert (between.backlog, between.migrated, between.faults["wrongly_flagged"]) == (100, 0, [])
    migrated.migrate(result.batches)
    after = migrated.reconcile()
    assert (after.ok, after.migrated, after.rows) == (True, 100, 100)
    for external_id in (1, 5, 50):
        row = migrated.relational_store.row(external_id)
        assert row is not None
        assert row["title"] != "x"
        assert row["migratedAt"] > datetime(2020, 1, 1)  # noqa: DTZ001 - as the store has it
        post = database["posts"].find_one({"externalId": external_id})
        assert post is not None
        assert post["version"] == row["version"] > before[external_id]["version"]
        assert post["migratedAt"] > before[external_id]["migratedAt"]
        for name in ("changedAt", "ingestedAt", "contentHash", "title"):
            assert post[name] == before[external_id][name]


def test_selections(migrated: Services, database: Documents) -> None:
    """Ids, ranges and times of change select what they say; a dry run counts the same, and changes nothing."""
    middle = utc_now() + timedelta(seconds=5)
    database["posts"].update_many({"externalId": {"$gte": 91}}, {"$set": {"changedAt": middle}})
    database["posts"].update_one({"externalId": 17}, {"$unset": {"changedAt": ""}})
    for selection, expected in (
        (PostSelection(ids=(7, 3, 3, 12_345)), [3, 7]),
        (PostSelection(from_id=98), [98, 99, 100]),
        (PostSelection(to_id=2), [1, 2]),
        (PostSelection(from_id=40, to_id=42), [40, 41, 42]),
        (PostSelection(from_id=42, to_id=40), []),
        (PostSelection(changed_since=middle), list(range(91, 101))),
        (PostSelection(changed_since=middle + timedelta(seconds=1)), []),
    ):
        dry = migrated.replay(selection, dry_run=True)
        assert (dry.selected, dry.replayed, dry.batches, backlog(database)) == (len(expected), 0, [], [])
        done = migrated.replay(selection)
        assert (done.selected, done.replayed) == (len(expected), len(expected))
        assert backlog(database) == expected
        migrate(migrated)
    assert migrated.reconcile().ok


def test_selections_that_make_no_sense() -> None:
    """Not exactly one way of selecting, ids that no post has, and times of nobody's zone are refused."""
    wrong: tuple[dict[str, Any], ...] = (
        {},
        {"ids": (1,), "all": True},
        {"from_id": 1, "ids": (1,)},
        {"ids": (0,)},
        {"to_id": 2**31},
        {"changed_since": datetime(2026, 1, 1)},  # noqa: DTZ001 - this is the mistake
    )
    for arguments in wrong:
        with pytest.raises(SelectionError):
            PostSelection(**arguments)


def test_what_is_not_migrated_is_left_alone(migrated: Services, stand_in: StandIn, database: Documents) -> None:
    """Posts in the backlog keep their batch, posts in quarantine stay there; both are counted."""
    stand_in.posts[101] = record(101)
    migrated.ingest()
    database["posts"].update_one({"externalId": 5}, {"$set": {"quarantine": {"code": "x"}, "migrated": False}})
    waiting = database["posts"].find_one({"externalId": 101})
    result = migrated.replay(ALL)
    assert (result.selected, result.replayed, result.waiting, result.quarantined) == (99, 99, 1, 1)
    assert database["posts"].find_one({"externalId": 101}) == waiting
    again = migrated.replay(ALL)
    assert (again.selected, again.waiting, again.batches) == (0, 100, [])


def test_a_post_that_changes_in_this_moment(
    migrated: Services, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A post that is stored anew between the look and the write keeps its newer version, and nothing is lost."""
    real = Repairs.put_back

    def overtaken(repairs: Repairs, *arguments: Any) -> int:
        monkeypatch.setattr(Repairs, "put_back", real)
        stand_in.posts[7] = record(7, "newer")
        migrated.ingest()
        return real(repairs, *arguments)

    monkeypatch.setattr(Repairs, "put_back", overtaken)
    result = migrated.replay(ALL)
    assert (result.selected, result.replayed) == (100, 99)
    migrate(migrated)
    row = migrated.relational_store.row(7)
    assert row is not None
    assert row["title"] == record(7, "newer")["title"]
    assert migrated.reconcile().ok


@pytest.mark.parametrize("action", ["fail", "crash"])
def test_a_crash_is_healed_by_the_tick(migrated: Services, action: str) -> None:
    """A replay that dies between the stamping and the seal leaves a batch that a tick takes over."""
    failpoints.arm(f"replay.stamped={action}:2")
    with pytest.raises((TransientError, RuntimeError)):
        migrated.replay(ALL)
    failpoints.arm(None)
    left = migrated.reconcile()
    assert (left.ok, left.backlog) == (True, 20)
    policy = TickPolicy(window=5, batch_size=10, heartbeat_timeout_s=30, filling_timeout_s=0)
    enqueueing.adopt(migrated.raw_store, migrated.ledger, policy)
    migrated.migrate()
    after = migrated.reconcile()
    assert (after.ok, after.migrated, after.backlog) == (True, 100, 0)
    assert not migrated.ledger.batches("filling")


def test_documents_that_somebody_else_wrote(services: Services, database: Documents) -> None:
    """Flagged documents without what the pipeline needs are completed, and those that are no posts quarantined."""
    good = {"externalId": 1, "userId": 1, "title": "t", "body": "b", "migrated": True}
    database["posts"].insert_many([good, {"externalId": 2, "userId": 1, "title": "t", "migrated": True}])
    assert services.replay(ALL).replayed == 2
    migrate(services)
    after = services.reconcile()
    assert (after.ok, after.migrated, after.quarantined) == (True, 1, 1)


def test_progress_is_told(migrated: Services) -> None:
    """Whoever waits is told of each batch."""
    seen: list[int] = []
    migrated.replay(PostSelection(to_id=25), on_progress=lambda so_far: seen.append(so_far.replayed))
    assert seen == [10, 20, 25]


def test_a_store_that_is_away_changes_nothing(migrated: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the relational store, whose versions it needs, a replay begins nothing."""

    def away() -> None:
        raise ServiceUnavailable("The relational store", "SQL_URL", "mysql://x", "gone")

    monkeypatch.setattr(migrated.relational_store, "ping", away)
    with pytest.raises(ServiceUnavailable):
        migrated.replay(ALL)
    assert migrated.reconcile().migrated == 100
    assert not migrated.ledger.batches("filling")
