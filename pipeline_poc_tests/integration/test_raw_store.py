"""The raw store: one document a post, nobody's newer version overwritten, records that are no posts kept."""

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pymongo
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pymongo.database import Database
from pymongo.errors import BulkWriteError, CursorNotFound, DuplicateKeyError, NotPrimaryError, OperationFailure

from pipeline_poc.chaos.servers import Mongo as MongoServer
from pipeline_poc.clock import utc_now
from pipeline_poc.errors import DataError, ServiceUnavailable, TransientError
from pipeline_poc.mongo import Mongo
from pipeline_poc.post_selection import PostSelection
from pipeline_poc.posts import POSTS
from pipeline_poc.raw_store import RawStore, _lookups, document_fields
from pipeline_poc.records import INT_MAX, StoredVersion, reject
from pipeline_poc.services import Services
from pipeline_poc_tests.posts import hashed

AT = datetime(2024, 5, 6, 7, 8, 9, 123_000, tzinfo=UTC)
Documents = Database[dict[str, Any]]


def test_new_changed_unchanged(raw_store: RawStore, database: Documents) -> None:
    """Storing tells new from changed posts, and what is read back is what was stored."""
    stored = raw_store.store([hashed(1), hashed(2)], {}, "one", AT)
    assert (stored.new, stored.changed, stored.unchanged) == (2, 0, 0)
    known = raw_store.versions([1, 2, 3])
    assert known[1] == StoredVersion(hashed(1).content_hash, int(AT.timestamp() * 1000))
    stored = raw_store.store([hashed(1, "new"), hashed(3)], known, "two", AT)
    assert (stored.new, stored.changed, stored.unchanged) == (1, 1, 0)
    assert [(post.external_id, post.values[1]) for post in raw_store.posts_to_migrate("two")] == [(1, "new"), (3, "t")]
    assert [post.external_id for post in raw_store.posts_to_migrate("one")] == [2]
    document = database["posts"].find_one({"externalId": 1}, {"_id": False})
    assert document is not None
    assert set(document) == set(document_fields(POSTS)) - {"quarantine"}
    assert (document["ingestedAt"], document["version"]) == (AT, int(AT.timestamp() * 1000) + 1)


def test_one_document_a_post(raw_store: RawStore, database: Documents) -> None:
    """The server itself refuses a second document of an id."""
    raw_store.store([hashed(1)], {}, "one", AT)
    with pytest.raises(DuplicateKeyError):
        database["posts"].insert_one({"externalId": 1})


def test_what_others_stored_meanwhile(raw_store: RawStore) -> None:
    """A stale idea of what is stored overwrites nothing unseen: same content counts as unchanged, other gets newer."""
    raw_store.store([hashed(1, "same"), hashed(2, "other")], {}, "theirs", AT)
    stored = raw_store.store([hashed(1, "same"), hashed(2, "mine"), hashed(3)], {}, "mine", AT)
    assert (stored.new, stored.changed, stored.unchanged) == (1, 1, 1)
    assert raw_store.versions([2])[2].version == int(AT.timestamp() * 1000) + 1
    assert [post.external_id for post in raw_store.posts_to_migrate("mine")] == [2, 3]
    assert [post.external_id for post in raw_store.posts_to_migrate("theirs")] == [1]


def test_many_writers(raw_store: RawStore) -> None:
    """Writers of the same posts at once leave one document each, whose version counts every accepted change."""
    changed: list[int] = []

    def write(name: str) -> None:
        posts = [hashed(i, name) for i in range(1, 31)]
        try:
            stored = raw_store.store(posts, raw_store.versions(range(1, 31)), name, AT)
        except TransientError:
            return
        changed.append(stored.new + stored.changed)

    threads = [threading.Thread(target=write, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    versions = raw_store.versions(range(1, 31))
    assert len(versions) == 30
    assert raw_store.counts().stored == 30
    base = int(AT.timestamp() * 1000)
    assert sum((version.version or 0) - base + 1 for version in versions.values()) >= sum(changed)


def test_posts_that_never_hold_still(raw_store: RawStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Posts that change under every attempt are given up with an error that a later run may not meet."""
    monkeypatch.setattr(raw_store, "_write", lambda _: (0, 0))
    with pytest.raises(TransientError, match="1 posts, such as 1, keep changing"):
        raw_store.store([hashed(1)], {}, "one", AT)


@given(ids=st.sets(st.integers(1, 5000), min_size=1, max_size=200) | st.sets(st.integers(1, 2**31 - 1), max_size=200))
def test_lookups_cover_all_ids(ids: set[int]) -> None:
    """The conditions match every id that is asked for, and not many more."""
    matched = 0
    found = set()
    for query in _lookups(sorted(ids)):
        if "$in" in query:
            found |= set(query["$in"])
            matched += len(query["$in"])
        else:
            found |= {i for i in ids if query["$gte"] <= i <= query["$lte"]}
            matched += query["$lte"] - query["$gte"] + 1
    assert found == ids
    assert matched <= 2 * len(ids)


@hypothesis_settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.sets(st.integers(1, 60), max_size=30))
def test_versions_of_any_ids(services: Services, ids: set[int]) -> None:
    """The versions of those ids that are stored are found, of no others, however dense the ids are."""
    store = services.raw_store
    if not store.has_posts():
        store.store([hashed(i) for i in range(1, 61, 2)], {}, "one", AT)
    assert set(store.versions(list(ids))) == {i for i in ids if i % 2} or set(store.versions(list(ids))) - ids


def test_marking_is_by_batch(raw_store: RawStore, database: Documents) -> None:
    """Marking a batch marks its posts, not those that left it, were quarantined, or belong to another."""
    raw_store.store([hashed(i) for i in (1, 2, 3)], {}, "one", AT)
    raw_store.store([hashed(3, "new")], raw_store.versions([3]), "two", AT)
    raw_store.quarantine_posts("one", {2: ("relational_1406", "too long"), 3: ("x", "not in it")}, AT)
    assert raw_store.mark_migrated("one", AT) == 1
    assert raw_store.mark_migrated("one", AT) == 0
    assert {post["externalId"] for post in database["posts"].find({"migrated": True})} == {1}
    assert {post["externalId"] for post in database["posts"].find({"quarantine": {"$exists": True}})} == {2}
    counts = raw_store.counts()
    assert (counts.stored, counts.migrated, counts.backlog, counts.quarantined) == (3, 1, 1, 1)


def test_moving(raw_store: RawStore) -> None:
    """Moving takes what waits in a batch to another, and leaves what is done."""
    raw_store.store([hashed(i) for i in (1, 2)], {}, "old", AT)
    raw_store.mark_migrated("old", AT)
    raw_store.store([hashed(3)], {}, "old", AT)
    assert raw_store.has_unmigrated("old")
    assert raw_store.move("old", "new") == 1
    assert not raw_store.has_unmigrated("old")
    assert [post.external_id for post in raw_store.posts_to_migrate("new")] == [3]


def test_quarantined_records(raw_store: RawStore, database: Documents) -> None:
    """A record that is no post is kept once, with payload, reason, and when it first and last came."""
    record = reject({"id": 7, "title": "\ud800"}, "missing_field", "userId: missing")
    raw_store.quarantine_records([record], AT)
    raw_store.quarantine_records([record, reject([], "not_an_object", "a list")], AT + timedelta(hours=1))
    kept = database["quarantined_records"].find_one({"_id": record.fingerprint}, {"_id": False})
    assert kept == {
        "code": "missing_field",
        "message": "userId: missing",
        "payload": '{"id": 7, "title": "\\ud800"}',
        "externalId": 7,
        "firstSeenAt": AT,
        "lastSeenAt": AT + timedelta(hours=1),
        "count": 2,
    }
    assert raw_store.quarantined_record_counts() == {"missing_field": 1, "not_an_object": 1}


@pytest.mark.parametrize("first", [1, 100_000])
def test_a_sample(raw_store: RawStore, first: int) -> None:
    """A sample is the posts with the lowest ids, also where those are not small."""
    assert raw_store.sample(3) == []
    raw_store.store([hashed(i) for i in range(first, first + 5)], {}, "one", AT)
    assert [post["externalId"] for post in raw_store.sample(3)] == [first, first + 1, first + 2]


def test_states_are_those_of_the_content(raw_store: RawStore, database: Documents) -> None:
    """Reconciliation sees the hash of what a document holds, not the hash that it claims."""
    raw_store.store([hashed(1), hashed(2)], {}, "one", AT)
    database["posts"].update_one({"externalId": 2}, {"$set": {"title": "edited"}})
    states = {state.external_id: state for state in raw_store.states()}
    assert states[1].hash_is_right
    assert (states[2].hash_is_right, states[2].content_hash) == (False, hashed(2, "edited").content_hash)
    assert [state.external_id for state in raw_store.states([2, 9])] == [2]


def test_state_of_the_ingestion(raw_store: RawStore) -> None:
    """An ingestion's state is kept, unless another ingestion kept its own since this one began."""
    first = {"ingestedAt": AT, "etag": "a"}
    second = {"ingestedAt": AT + timedelta(seconds=1), "etag": "b"}
    nothing = raw_store.load_state("k")
    assert nothing == {}
    assert raw_store.save_state("k", first, before=nothing)
    assert not raw_store.save_state("k", second, before=nothing)
    assert raw_store.load_state("k") == {"_id": "k", **first}
    assert raw_store.save_state("k", second, before=raw_store.load_state("k"))
    assert raw_store.load_state("k") == {"_id": "k", **second}
    raw_store.drop_state("k")
    assert raw_store.load_state("k") == {}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (CursorNotFound("cursor id 1 not found", 43), ServiceUnavailable),
        (NotPrimaryError("stepped down"), ServiceUnavailable),
        (OperationFailure("no space", 14031), ServiceUnavailable),
        (OperationFailure("not authorized", 13), ServiceUnavailable),
        (BulkWriteError({"writeErrors": [], "writeConcernErrors": [{"code": 64}]}), ServiceUnavailable),
        (BulkWriteError({"writeErrors": [{"code": 11600}], "writeConcernErrors": []}), ServiceUnavailable),
        (BulkWriteError({"writeErrors": [{"code": 11600}, {"code": 121}]}), DataError),
        (OperationFailure("Document failed validation", 121), DataError),
        (DuplicateKeyError("E11000", 11000), DataError),
    ],
    ids=["cursor", "election", "disk full", "login", "journal", "interrupted", "mixed", "validation", "duplicate"],
)
def test_errors_are_translated(mongo_url: str, error: Exception, kind: type[Exception]) -> None:
    """What heals by itself is an outage, what the server refuses for its content is bad data."""
    connection = Mongo(mongo_url, "db", timeout_s=1)
    with pytest.raises(kind), connection.translated():
        raise error
    connection.close()


@pytest.mark.parametrize("url", ["mongodb://127.0.0.1:1/", "mongodb://user:S3CRET@no-such-host.invalid/"])
def test_nobody_there(url: str) -> None:
    """A server that is not there is named with MONGO_URL, in one line, without password or topology."""
    connection = Mongo(url, "db", timeout_s=0.2)
    with pytest.raises(ServiceUnavailable, match=r"\(MONGO_URL\)") as caught:
        connection.ping()
    text = str(caught.value)
    assert "S3CRET" not in text
    assert "Topology" not in text
    assert "\n" not in text
    connection.close()


def test_an_outage_while_storing(raw_store: RawStore, mongo: MongoServer) -> None:
    """A server that dies is an outage for every kind of use; what was acknowledged is there afterwards."""
    raw_store.store([hashed(1)], {}, "one", AT)
    mongo.kill()
    for use in (
        lambda: raw_store.store([hashed(2)], {}, "one", AT),
        lambda: raw_store.mark_migrated("one", AT),
        lambda: list(raw_store.states()),
    ):
        with pytest.raises(ServiceUnavailable):
            use()
    mongo.start()
    assert [post.external_id for post in raw_store.posts_to_migrate("one")] == [1]


def test_times_are_aware(raw_store: RawStore) -> None:
    """Times come back aware, UTC, to the millisecond as they were."""
    now = utc_now()
    raw_store.store([hashed(1)], {}, "one", now)
    [post] = raw_store.posts_to_migrate("one")
    assert post.ingested_at == now
    assert post.ingested_at.utcoffset() == timedelta(0)
    assert pymongo.version_tuple >= (4, 15)


def test_a_dense_range_behind_a_gap(raw_store: RawStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """However ids are spread, all are streamed in order, and no more than a few of them are held at once."""
    monkeypatch.setattr("pipeline_poc.raw_store._PART", 5)
    ids = [*range(1, 8), *range(1_000_000, 1_000_040), 2_000_000_000]
    raw_store.store([hashed(external_id) for external_id in ids], {}, "one", AT)
    read, held = raw_store._read, list[int]()

    def noted(ids: dict[str, Any], limit: int = 0) -> list[dict[str, Any]]:
        found = read(ids, limit)
        held.append(len(found))
        return found

    monkeypatch.setattr(raw_store, "_read", noted)
    assert [state.external_id for state in raw_store.states()] == ids
    assert max(held) == 10
    for first, last in ((7, 1_000_003), (None, 6), (1_000_039, None)):
        wanted = [i for i in ids if (first or 1) <= i <= (last or INT_MAX)]
        found = raw_store.documents(PostSelection(from_id=first, to_id=last))
        assert [document["externalId"] for document in found] == wanted
