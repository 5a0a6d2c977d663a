"""The ledger: a batch moves along its states only, whoever moves it and however often."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pymongo.database import Database

from pipeline_poc.chaos.servers import Mongo as MongoServer
from pipeline_poc.clock import utc_now
from pipeline_poc.errors import ServiceUnavailable
from pipeline_poc.ledger import Backlog, Ledger
from pipeline_poc.mongo import Mongo
from pipeline_poc.mongo_schema import MongoSchema
from pipeline_poc.services import Services

AT = datetime(2024, 5, 6, 7, 8, 9, 123_000, tzinfo=UTC)

MOVES: dict[str, tuple[Callable[[Ledger, str], Any], dict[str, str]]] = {
    "seal": (lambda ledger, i: ledger.seal(i, 3), {"filling": "open"}),
    "abandon": (lambda ledger, i: ledger.abandon(i, AT), {"filling": "abandoned"}),
    "start": (lambda ledger, i: ledger.start(i, "w", AT) is not None, {"open": "open"}),
    "bury": (lambda ledger, i: ledger.bury(i, AT, "bad"), {"open": "dead"}),
    "reopen": (lambda ledger, i: ledger.reopen(i), {"dead": "open"}),
    "close": (
        lambda ledger, i: ledger.close(i, AT, {"migrated": 3}),
        dict.fromkeys(("filling", "open", "dead", "abandoned"), "closed"),
    ),
}


@hypothesis_settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=st.lists(st.sampled_from(sorted(MOVES)), max_size=8))
def test_states(ledger: Ledger, moves: list[str]) -> None:
    """Any sequence of moves follows the diagram: a move that it doesn't draw says False and changes nothing."""
    batch_id = ledger.create(5, AT)
    state = "filling"
    for name in moves:
        move, edges = MOVES[name]
        before = ledger.get(batch_id)
        assert move(ledger, batch_id) == (state in edges)
        after = ledger.get(batch_id)
        assert after is not None
        if state not in edges:
            assert after == before
        state = edges.get(state, state)
        assert after.state == state
        assert (batch_id in ledger.waiting_ids()) == (state != "closed")
    assert [batch.id for batch in ledger.batches(state) if batch.id == batch_id] == [batch_id]  # type: ignore[arg-type]


def test_a_new_batch(ledger: Ledger) -> None:
    """A batch is born filling; its id sorts by time and is fit for a job."""
    batch_id = ledger.create(5, AT)
    batch = ledger.get(batch_id)
    assert batch is not None
    assert (batch.state, batch.size, batch.created_at, batch.attempts) == ("filling", 5, AT, 0)
    assert batch_id.startswith("20240506T070809123-")
    assert ledger.create(5, AT + timedelta(milliseconds=1)) > batch_id
    assert len({ledger.create(1, AT) for _ in range(20)}) == 20


def test_executions(ledger: Ledger) -> None:
    """Executions are counted; a heartbeat counts for the worker that has the batch; a failure ends it."""
    batch_id = ledger.create(5, AT)
    assert ledger.start(batch_id, "one", AT) is None
    ledger.seal(batch_id, 5)
    first = ledger.start(batch_id, "one", AT)
    assert first is not None
    assert (first.attempts, first.started_at, first.heartbeat_at) == (1, AT, AT)
    second = ledger.start(batch_id, "two", AT + timedelta(seconds=1))
    assert second is not None
    assert second.attempts == 2
    ledger.heartbeat(batch_id, "one", AT + timedelta(seconds=8))
    ledger.heartbeat(batch_id, "two", AT + timedelta(seconds=5))
    batch = ledger.get(batch_id)
    assert batch is not None
    assert batch.heartbeat_at == AT + timedelta(seconds=5)
    assert [found.id for found in ledger.begun()] == [batch_id]
    ledger.note_failure(batch_id, "gone")
    batch = ledger.get(batch_id)
    assert batch is not None
    assert (batch.error, batch.started_at, batch.heartbeat_at, batch.attempts) == ("gone", None, None, 2)
    assert not batch.is_alive(AT, 30)
    assert ledger.begun() == []
    ledger.close(batch_id, AT, {})
    batch = ledger.get(batch_id)
    assert batch is not None
    assert batch.error is None


def test_lists(ledger: Ledger) -> None:
    """Batches are listed oldest first, as many as asked for; the lag is that of the oldest one that waits."""
    assert (ledger.get("x"), ledger.backlog()) == (None, Backlog(0, 0, None, None, 0))
    assert ledger.backlog().lag_s(AT) == 0
    ids = [ledger.create(1, AT + timedelta(seconds=number)) for number in (3, 1, 2)]
    for batch_id in ids:
        ledger.seal(batch_id, 1)
    by_age = [ids[1], ids[2], ids[0]]
    assert [batch.id for batch in ledger.batches("open")] == by_age
    assert [batch.id for batch in ledger.batches("open", limit=2)] == by_age[:2]
    assert ledger.backlog() == Backlog(3, 3, AT + timedelta(seconds=1), ids[1], 0)
    assert ledger.backlog().lag_s(AT + timedelta(seconds=9)) == 8
    assert ledger.backlog().lag_s(AT - timedelta(hours=1)) == 0
    ledger.close(ids[1], AT, {})
    ledger.close(ids[2], AT + timedelta(days=1), {})
    assert ledger.backlog().oldest_at == AT + timedelta(seconds=3)
    ledger.bury(ids[0], AT, "bad")
    assert (ledger.backlog().oldest_at, ledger.backlog().oldest_id) == (AT + timedelta(seconds=3), ids[0])


@pytest.mark.parametrize(("moved_s", "alive"), [(0, True), (29, True), (31, False), (-29, True), (-31, False)])
def test_signs_of_life(ledger: Ledger, moved_s: float, alive: bool) -> None:
    """A heartbeat holds a batch for the time-out, whichever way the clock was set since."""
    batch_id = ledger.create(5, AT)
    ledger.seal(batch_id, 5)
    batch = ledger.start(batch_id, "one", AT)
    assert batch is not None
    assert batch.is_alive(AT + timedelta(seconds=moved_s), 30) is alive


def test_the_retention_can_be_changed(services: Services, mongo_url: str, mongo_database: str) -> None:
    """Another LEDGER_RETENTION_S takes effect on a database that has an index with the old one."""
    assert services.ledger
    connection = Mongo(mongo_url, mongo_database, timeout_s=2)
    for retention_s in (7200, 7200, 86_400):
        MongoSchema(connection, ledger_retention_s=retention_s).ensure(may_upgrade=False)
        indexes = connection.database["batches"].index_information()
        assert indexes["closedAt_1"]["expireAfterSeconds"] == retention_s
    connection.close()


def test_only_closed_batches_expire(ledger: Ledger, database: Database[dict[str, Any]]) -> None:
    """The field by which batches expire exists in closed ones only."""
    closed, opened = ledger.create(1, AT), ledger.create(1, AT)
    ledger.seal(opened, 1)
    ledger.close(closed, utc_now(), {})
    assert [batch["_id"] for batch in database["batches"].find({"closedAt": {"$exists": True}})] == [closed]


def test_an_outage(ledger: Ledger, mongo: MongoServer) -> None:
    """Every method says ServiceUnavailable with MONGO_URL where MongoDB is away, and works once it is back."""
    batch_id = ledger.create(1, AT)
    mongo.kill()
    with pytest.raises(ServiceUnavailable, match=r"MongoDB at mongodb://.* \(MONGO_URL\) is not available"):
        ledger.get(batch_id)
    mongo.start()
    assert ledger.seal(batch_id, 1)
