"""Ingestion: everything that the source serves is stored once, or put aside with a reason."""

import asyncio
import io
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pymongo import WriteConcern
from pymongo.database import Database

from pipeline_poc import enqueueing, ingestion
from pipeline_poc.chaos.servers import Mongo
from pipeline_poc.clock import utc_now
from pipeline_poc.enqueueing import TickPolicy
from pipeline_poc.errors import PipelineError, ServiceUnavailable, SourceAnswerError, TerminalError
from pipeline_poc.health import inspect
from pipeline_poc.ingestion import IngestionResult, take_over
from pipeline_poc.ledger import Ledger
from pipeline_poc.posts import POSTS
from pipeline_poc.raw_store import RawStore
from pipeline_poc.services import Services
from pipeline_poc.source import Answer, Source
from pipeline_poc.stand_in import StandIn
from pipeline_poc.testing import NASTY_RECORDS, UNUSUAL_POSTS
from pipeline_poc_tests.posts import NASTY_CODES, hashed, record

Documents = Database[dict[str, Any]]


class ListedSource(Source):
    """A source that serves the records of a list without a server in between."""

    def __init__(self, records: Sequence[Any]) -> None:
        self.records = records
        self.url = "http://listed.example/posts"

    def fetch(self, etag: str | None = None, digest: str | None = None) -> Answer:  # noqa: ARG002 - as the real one
        """Answer with the records."""
        answer = Answer([], io.BytesIO(), etag=None, digest=None, not_modified=False)
        answer.count = len(self.records)
        answer.records = lambda: iter(self.records)  # type: ignore[method-assign]
        return answer


def ingest(services: Services, records: Sequence[Any], batch_size: int = 10) -> IngestionResult:
    """Ingest a list of records."""
    return ingestion.ingest(ListedSource(records), services.raw_store, services.ledger, batch_size=batch_size)


def contents(database: Documents) -> dict[int, str]:
    """Return the title of each stored post."""
    return {post["externalId"]: post["title"] for post in database["posts"].find()}


def assert_conserved(services: Services, result: IngestionResult) -> None:
    """Everything that was fetched is accounted for, and every stored post has one state."""
    assert result.fetched == result.new + result.changed + result.unchanged + result.quarantined
    assert sum(result.reasons.values()) == result.quarantined
    counts = services.raw_store.counts()
    assert counts.stored == counts.migrated + counts.backlog + counts.quarantined


def test_first_ingestion(services: Services, database: Documents) -> None:
    """All posts are new, in batches of the size that was set, each sealed with the number of its posts."""
    result = services.ingest()
    assert (result.fetched, result.new, len(result.batches)) == (100, 100, 10)
    assert_conserved(services, result)
    assert [(batch.state, batch.size) for batch in services.ledger.batches("open")] == [("open", 10)] * 10
    assert Counter(post["batchId"] for post in database["posts"].find()) == dict.fromkeys(result.batches, 10)
    document = database["posts"].find_one({"externalId": 7}, {"_id": False})
    assert document is not None
    assert (document["migrated"], document["migratedAt"]) == (False, None)
    assert document["ingestedAt"] == document["changedAt"]
    assert abs(document["ingestedAt"] - utc_now()) < timedelta(minutes=1)


def test_again_writes_nothing(services: Services, stand_in: StandIn, database: Documents) -> None:
    """Ingesting the same answer again changes no document and makes no batch, with and without ETag and digest."""
    services.ingest()
    before = [list(database[name].find().sort("_id")) for name in ("posts", "batches")]
    for told_by in ("etag", "digest"):
        result = services.ingest()
        assert (result.not_modified, result.fetched, result.batches) == (True, 0, [])
        assert (
            database["ingestion_state"].update_many({told_by: {"$ne": None}}, {"$unset": {told_by: ""}}).modified_count
        )
    result = services.ingest()
    assert (result.not_modified, result.fetched, result.unchanged, result.batches) == (False, 100, 100, [])
    assert [list(database[name].find().sort("_id")) for name in ("posts", "batches")] == before


def test_only_what_changed(services: Services, stand_in: StandIn, database: Documents) -> None:
    """Of a changed answer only changed posts are written: newer, not migrated, in new batches."""
    services.ingest()
    services.migrate()
    before = {post["externalId"]: post for post in database["posts"].find()}
    stand_in.behaviour = {"changed": "3,42"}
    result = services.ingest()
    assert (result.new, result.changed, result.unchanged) == (0, 2, 98)
    after = {post["externalId"]: post for post in database["posts"].find()}
    assert {i for i in after if after[i] != before[i]} == {3, 42}
    for i in (3, 42):
        assert after[i]["version"] > before[i]["version"]
        assert after[i]["ingestedAt"] == before[i]["ingestedAt"]
        assert (after[i]["migrated"], after[i]["migratedAt"]) == (False, None)
        assert after[i]["batchId"] in result.batches
    assert services.raw_store.counts().backlog == 2
    assert_conserved(services, result)


def test_a_change_lifts_the_quarantine(services: Services, database: Documents) -> None:
    """A post that the relational store refused gets another chance with its next content."""
    ingest(services, [record(1)])
    [batch] = services.ledger.batches("open")
    services.raw_store.quarantine_posts(batch.id, {1: ("relational_1406", "too long")}, utc_now())
    assert services.raw_store.counts().quarantined == 1
    assert ingest(services, [record(1)]).unchanged == 1
    assert services.raw_store.counts().quarantined == 1
    assert ingest(services, [record(1, "shorter")]).changed == 1
    assert services.raw_store.counts().backlog == 1


def test_nasty_records(services: Services, stand_in: StandIn, database: Documents) -> None:
    """Each bad record is quarantined with its payload and the right code; every good post is stored."""
    stand_in.posts = {1_000_000 + i: json.loads(text) for i, (_, text) in enumerate(NASTY_RECORDS)}
    stand_in.posts |= {post["id"]: post for _, post in UNUSUAL_POSTS}
    result = services.ingest()
    assert_conserved(services, result)
    assert (result.new, result.quarantined) == (100 + len(UNUSUAL_POSTS), len(NASTY_RECORDS))
    assert result.unknown_fields["tags"] == result.unknown_fields["meta"] == 1
    found = {
        json.dumps(json.loads(kept["payload"])): (kept["code"], kept["count"])
        for kept in database["quarantined_records"].find()
    }
    assert found == {json.dumps(json.loads(text)): (NASTY_CODES[name], 1) for name, text in NASTY_RECORDS}
    assert services.raw_store.quarantined_record_counts() == Counter(NASTY_CODES.values())
    for name, post in UNUSUAL_POSTS:
        document = database["posts"].find_one({"externalId": post["id"]})
        assert document is not None, name
        stored = {key: document["externalId" if key == "id" else key] for key in POSTS.stored_as}
        assert stored == {key: post[key] for key in POSTS.stored_as}, name


def test_a_bad_record_at_every_position(services: Services, database: Documents) -> None:
    """Wherever in a batch a bad record stands, first, last or between, all the others are stored."""
    size = services.settings.batch_size
    for position in range(2 * size):
        records: list[Any] = [record(100 * position + number) for number in range(1, 2 * size)]
        records.insert(position, {"id": 100 * position})
        result = ingest(services, records)
        assert (result.new, result.quarantined) == (2 * size - 1, 1)
    assert database["posts"].count_documents({}) == 2 * size * (2 * size - 1)


def test_a_huge_record_stops_only_itself(services: Services, database: Documents) -> None:
    """A record that is too large for a document is quarantined in part, beside the posts that are stored."""
    result = ingest(services, [record(1), record(2, body="é" * 3_000_000), record(3)])
    assert (result.new, result.quarantined) == (2, 1)
    [kept] = database["quarantined_records"].find()
    assert (kept["code"], kept["externalId"]) == ("too_long", 2)
    assert " cut: 18000" in kept["payload"]


def test_unknown_fields_are_named_in_bounds(services: Services) -> None:
    """However many fields a source makes up, and however long their names, what is logged of them is bounded."""
    records = [record(i) | {f"{i}-{j}{'x' * 1000}": 1 for j in range(50)} for i in range(1, 21)]
    result = ingest(services, records)
    assert result.new == 20
    assert len(result.unknown_fields) == 100
    assert max(map(len, result.unknown_fields)) == 100


def test_quarantined_records_are_counted_not_repeated(services: Services, database: Documents) -> None:
    """The same bad record is kept once, with the number of times that it came."""
    for expected in (1, 2, 3):
        result = ingest(services, [record(1), "bad", {"id": 2}])
        assert result.quarantined == 2
        assert {kept["count"] for kept in database["quarantined_records"].find()} == {expected}
    assert database["quarantined_records"].count_documents({}) == 2


def test_all_bad(services: Services) -> None:
    """An answer without a single post fails the ingestion, and is fetched in full the next time."""
    with pytest.raises(TerminalError, match=r"All 2 records .* quarantined \(not_an_object: 2\)"):
        ingest(services, [1, "two"])
    assert services.raw_store.counts().stored == 0
    assert services.raw_store.quarantined_record_counts() == {"not_an_object": 2}


def test_all_bad_keeps_no_etag(services: Services, stand_in: StandIn, database: Documents) -> None:
    """An ingestion that failed leaves no ETag behind: the source can't hide what was not stored."""
    stand_in.behaviour = {"n": "0"}
    stand_in.posts = {5: {"id": 5}}
    for _ in range(2):
        with pytest.raises(TerminalError, match="quarantined"):
            services.ingest()
    assert database["ingestion_state"].count_documents({"etag": {"$exists": True}}) == 0


def test_an_empty_list(services: Services, stand_in: StandIn) -> None:
    """A source that serves nothing is a warning while posts are stored, each time; what is stored stays."""
    stand_in.behaviour = {"n": "0"}
    result = services.ingest()
    assert (result.fetched, result.served_nothing) == (0, False)
    stand_in.behaviour = {}
    services.ingest()
    stand_in.behaviour = {"n": "0"}
    for _ in range(2):
        result = services.ingest()
        assert (result.fetched, result.batches, result.served_nothing) == (0, [], True)
        assert services.raw_store.counts().stored == 100
        check = asyncio.run(inspect(services)).find("source:lastSuccess")
        assert (check.status, check.output) == ("warn", "the source served nothing, though posts of it are stored")
    stand_in.behaviour = {}
    assert not services.ingest().served_nothing
    assert asyncio.run(inspect(services)).find("source:lastSuccess").status == "pass"


@hypothesis_settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(served=st.lists(st.tuples(st.integers(1, 4), st.sampled_from("abc")), max_size=14), batch_size=st.integers(1, 6))
def test_duplicates(services: Services, served: list[tuple[int, str]], batch_size: int) -> None:
    """The first record of an id counts; equal ones change nothing, others are quarantined, in any batch."""
    services.raw_store._posts.delete_many({})
    services.raw_store._rejected.delete_many({})
    first: dict[int, str] = {}
    conflicts = [post for post in served if first.setdefault(*post) != post[1]]
    result = ingest(services, [record(i, title) for i, title in served], batch_size)
    assert {post["externalId"]: post["title"] for post in services.raw_store._posts.find()} == first
    assert (result.new, result.quarantined) == (len(first), len(conflicts))
    assert result.unchanged == len(served) - len(first) - len(conflicts)
    assert services.raw_store.quarantined_record_counts().get("conflicting_duplicate", 0) == len(set(conflicts))


def test_the_etag_is_not_used_once_the_store_was_emptied(services: Services, database: Documents) -> None:
    """After somebody dropped the posts, everything is fetched again, though the source says nothing changed."""
    services.ingest()
    database["posts"].delete_many({})
    result = services.ingest()
    assert (result.not_modified, result.new) == (False, 100)


def test_the_etag_is_not_used_once_posts_are_missing(services: Services, database: Documents) -> None:
    """After somebody dropped a part of the posts, everything is fetched again, too."""
    services.ingest()
    assert services.ingest().not_modified
    database["posts"].delete_many({"externalId": {"$gt": 70}})
    result = services.ingest()
    assert (result.not_modified, result.new, result.unchanged) == (False, 30, 70)
    assert services.ingest().not_modified


def test_the_etag_is_not_used_once_another_source_was_ingested(services: Services, database: Documents) -> None:
    """What another source has changed comes back from the first one, though that says nothing changed."""
    services.ingest()
    assert services.ingest().not_modified
    assert ingest(services, [record(7, "from elsewhere")]).changed == 1
    result = services.ingest()
    assert (result.not_modified, result.changed, result.unchanged) == (False, 1, 99)
    assert contents(database)[7] != "from elsewhere"
    assert services.ingest().not_modified


def test_posts_that_are_never_stored_fail_the_ingestion(services: Services, database: Documents) -> None:
    """An ingestion that finds new posts and stores none of them fails, and says so, however often it is repeated."""
    ingest(services, [record(1, "same")])
    database["posts"].create_index("title", unique=True)
    for failures in (1, 2):
        with pytest.raises(PipelineError, match=r"1 posts, such as 2, .* keeps them out of MongoDB"):
            ingest(services, [record(1, "same"), record(2, "same")])
        assert services.raw_store.last_ingestion()["errorsSince"] == failures
    assert contents(database) == {1: "same"}
    database["posts"].drop_index("title_1")
    assert ingest(services, [record(1, "same"), record(2, "same")]).new == 1


def test_unconfirmed_writes_fail_the_ingestion(services: Services, database: Documents) -> None:
    """Posts whose write the servers have not confirmed are no success: they may be gone after an election."""
    posts = services.raw_store._posts
    # A server on its own can't have a write confirmed by nine.
    services.raw_store._posts = posts.with_options(write_concern=WriteConcern(w=9))
    with pytest.raises(ServiceUnavailable, match="MONGO_URL"):
        services.ingest()
    services.raw_store._posts = posts
    database["posts"].delete_many({})  # What an election may do to them.
    assert services.ingest().new == 100
    assert services.migrate().migrated == 100


def test_an_overtaken_ingestion_trusts_no_etag(services: Services, stand_in: StandIn) -> None:
    """Of two ingestions at once nobody knows whose answer was newer: the next one asks for everything."""
    result = IngestionResult()
    slow = ingestion.read(services.source, services.raw_store, result, batch_size=1000)
    batch = next(slow)
    stand_in.behaviour = {"changed": "7"}
    services.ingest()
    # The slow one holds the older answer, stores it last, and must not leave the newer ETag in force.
    ingestion.store(batch, services.raw_store, services.ledger, result)
    assert result.changed == 1
    assert next(slow, None) is None
    assert services.ingest().changed == 1


def test_the_etag_ages(services: Services, database: Documents) -> None:
    """Everything is fetched at least once a day, and after a change of how posts are read."""
    services.ingest()
    for change in ({"ingestedAt": utc_now() - timedelta(hours=25)}, {"version": 0}):
        database["ingestion_state"].update_many({}, {"$set": change})
        assert services.ingest().unchanged == 100
        assert services.ingest().not_modified


def test_no_etag_of_an_ingestion_that_stopped_half_way(
    services: Services, mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an ingestion that broke off has not stored comes with the next one."""
    calls = 0
    create = Ledger.create

    def fail_on_third(ledger: Ledger, *arguments: Any) -> str:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise ServiceUnavailable("MongoDB", "MONGO_URL", "mongodb://x", "gone")
        return create(ledger, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "create", fail_on_third)
        with pytest.raises(ServiceUnavailable):
            services.ingest()
    assert services.raw_store.counts().stored == 20
    assert [batch.size for batch in services.ledger.batches("open")] == [10, 10]
    result = services.ingest()
    assert (result.new, result.unchanged) == (80, 20)


def test_a_broken_answer_changes_nothing(services: Services, stand_in: StandIn, database: Documents) -> None:
    """An answer that turns out broken at its end has stored nothing of its beginning."""
    stand_in.behaviour = {"truncate": "1"}
    with pytest.raises(SourceAnswerError, match="no valid JSON"):
        services.ingest()
    assert database["posts"].count_documents({}) == 0
    assert database["batches"].count_documents({}) == 0


@contextmanager
def paused(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, act: Callable[[], None]) -> Iterator[None]:
    """Let something else happen once, between two steps of an ingestion: right before a method."""
    original = getattr(owner, name)
    done = False

    def method(*arguments: Any, **named: Any) -> Any:
        nonlocal done
        if not done:
            done = True
            act()
        return original(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, method)
        yield
    assert done


POLICY = TickPolicy(window=20, batch_size=10, heartbeat_timeout_s=30, filling_timeout_s=0)


@pytest.mark.parametrize("step", ["store", "seal"])
def test_a_slow_ingestion_is_overtaken(services: Services, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Posts of an ingestion that was taken for dead, before or after they came, are all migrated once it goes on."""

    def tick_and_migrate() -> None:
        enqueueing.adopt(services.raw_store, services.ledger, POLICY)
        services.migrate()

    owner = RawStore if step == "store" else Ledger
    with paused(monkeypatch, owner, step, tick_and_migrate):
        result = ingest(services, [record(i) for i in range(1, 8)])
    assert result.new == 7
    assert_conserved(services, result)
    enqueueing.adopt(services.raw_store, services.ledger, POLICY)
    services.migrate()
    assert services.raw_store.counts().migrated == 7
    assert services.reconcile().ok
    assert not services.ledger.batches("filling") + services.ledger.batches("open")


def test_stragglers_of_an_ingestion_that_died_late(services: Services) -> None:
    """Posts that arrive in a batch after it was abandoned, from an ingestion that dies then, are adopted."""
    store, ledger = services.raw_store, services.ledger
    batch_id = ledger.create(5, utc_now())
    assert take_over(batch_id, utc_now(), store, ledger) == 0
    assert [batch.state for batch in ledger.batches("abandoned")] == ["abandoned"]
    store.store([hashed(i) for i in range(1, 6)], {}, batch_id, utc_now())
    assert enqueueing.adopt(store, ledger, POLICY) == 5
    assert services.migrate().migrated == 5
    assert services.reconcile().ok


def test_an_ingestion_that_died_long_ago_is_taken_over(services: Services, database: Documents) -> None:
    """Stragglers are watched for from the moment of the take-over, however old the batch was by then."""
    store, ledger = services.raw_store, services.ledger
    batch_id = ledger.create(5, utc_now() - timedelta(days=1))
    store.store([hashed(1), hashed(2)], {}, batch_id, utc_now())
    assert enqueueing.adopt(store, ledger, POLICY) == 2
    store.store([hashed(3)], {}, batch_id, utc_now())
    assert enqueueing.adopt(store, ledger, POLICY) == 1
    assert services.migrate().migrated == 3
    database["batches"].update_one({"_id": batch_id}, {"$set": {"abandonedAt": utc_now() - timedelta(hours=2)}})
    enqueueing.adopt(store, ledger, POLICY)
    assert not ledger.waiting_ids()


def test_take_over_twice_at_once(services: Services) -> None:
    """Two ticks that take the same batch over leave each post in one sealed batch."""
    store, ledger = services.raw_store, services.ledger
    batch_id = ledger.create(50, utc_now())
    store.store([hashed(i) for i in range(1, 51)], {}, batch_id, utc_now())
    moved: list[int] = []
    threads = [
        threading.Thread(target=lambda: moved.append(take_over(batch_id, utc_now(), store, ledger))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(moved) == 50
    assert services.migrate().migrated == 50
    assert services.reconcile().ok


def test_two_ingestions_at_once(services: Services, database: Documents) -> None:
    """Ingestions of the same changing posts, at the same time, store each id once and lose none."""
    errors: list[Exception] = []

    def run(name: str) -> None:
        try:
            for revision in range(3):
                ingest(services, [record(i, f"{name} {revision}") for i in range(1, 61)], 20)
        except Exception as error:  # noqa: BLE001 - any error fails the test
            errors.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("left", "right")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(contents(database)) == list(range(1, 61))
    assert set(contents(database).values()) <= {"left 2", "right 2"}
    services.migrate()
    result = services.reconcile()
    assert (result.ok, result.migrated, result.rows) == (True, 60, 60)


@hypothesis_settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    answers=st.lists(
        st.lists(
            st.one_of(
                st.builds(record, st.integers(1, 6), st.sampled_from("xyz")),
                st.sampled_from([None, 3, {}, {"id": 2}, record(2**31), record(3, "\ud800")]),
            ),
            max_size=8,
        ),
        max_size=4,
    ),
    batch_size=st.integers(1, 4),
)
def test_conservation(services: Services, answers: list[list[Any]], batch_size: int) -> None:
    """Whatever the source serves, everything is accounted for, migrated, and the same again is no work."""
    for answer in answers:
        try:
            result = ingest(services, answer, batch_size)
        except TerminalError:
            continue
        assert_conserved(services, result)
        services.migrate()
        assert ingest(services, answer, batch_size).batches == []
    reconciliation = services.reconcile()
    assert reconciliation.ok
    assert reconciliation.backlog == 0
    assert reconciliation.migrated == reconciliation.rows == reconciliation.stored
