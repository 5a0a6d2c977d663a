"""The quarantine: everything in it is shown, page by page; what is discarded is kept, counted and not shown."""

import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo.database import Database

from pipeline_poc.chaos.servers import Mongo as MongoServer
from pipeline_poc.clock import utc_now
from pipeline_poc.errors import ServiceUnavailable
from pipeline_poc.posts import POSTS
from pipeline_poc.quarantine import Quarantine
from pipeline_poc.raw_store import RawStore
from pipeline_poc.records import REASONS, RejectedRecord, reject
from pipeline_poc.selection import PAGE_MAX, Selection, SelectionError
from pipeline_poc.services import Services
from pipeline_poc.stand_in import StandIn

Documents = Database[dict[str, Any]]

AT = datetime(2024, 5, 6, 7, 8, 9, 123_000, tzinfo=UTC)
EVERYTHING = Selection(all=True)


@pytest.fixture
def quarantine(services: Services) -> Quarantine:
    """The quarantine, empty."""
    assert services.raw_store
    return services.quarantine


def rejected(**values: Any) -> RejectedRecord:
    """Return a record that is no post."""
    found = POSTS.parse(values)
    assert isinstance(found, RejectedRecord)
    return found


def refused_post(database: Documents, external_id: int, at: datetime | None = AT, code: str = "relational_1406") -> str:
    """Plant a post that the relational store refused; returns its id in quarantine."""
    quarantine = {"code": code, "message": "too long"} | ({"at": at} if at else {})
    document = {"externalId": external_id, "userId": 1, "title": "t", "body": "b", "migrated": False}
    inserted = database["posts"].insert_one(document | {"batchId": "x", "version": 1, "quarantine": quarantine})
    return f"post-{inserted.inserted_id}"


def all_ids(quarantine: Quarantine, *, limit: int, **filters: Any) -> list[str]:
    """Return the ids of all items, read page by page."""
    page = quarantine.items(limit=limit, **filters)
    ids = [item.id for item in page.items]
    while page.next_cursor is not None:
        assert len(page.items) == limit
        page = quarantine.items(limit=limit, cursor=page.next_cursor, **filters)
        ids += [item.id for item in page.items]
    return ids


def test_groups(quarantine: Quarantine, raw_store: RawStore, database: Documents) -> None:
    """Records and posts are grouped by reason, with meaning, number, and first and last arrival."""
    assert quarantine.groups() == []
    later = AT + timedelta(hours=1)
    raw_store.quarantine_records([rejected(id=1), rejected(id=2)], AT)
    raw_store.quarantine_records([rejected(id=2)], later)
    refused_post(database, 3)
    refused_post(database, 4, later, code="wrong_type")
    groups = quarantine.groups()
    assert [(group.kind, group.reason, group.count, group.first_at, group.last_at) for group in groups] == [
        ("record", "missing_field", 2, AT, later),
        ("post", "relational_1406", 1, AT, AT),
        ("post", "wrong_type", 1, later, later),
    ]
    assert [group.meaning for group in groups] == [
        REASONS["missing_field"],
        "the relational store refuses the post",
        REASONS["wrong_type"],
    ]


def test_items(quarantine: Quarantine, raw_store: RawStore, database: Documents) -> None:
    """A record shows its payload as it came, a post its own fields; both say why they are here."""
    bad = rejected(id=7, title="\u202e\ud800", body="b" * 5000)
    raw_store.quarantine_records([bad, bad], AT)
    post_id = refused_post(database, 3, AT + timedelta(seconds=1))
    post, kept = quarantine.items().items
    assert (kept.id, kept.kind, kept.reason, kept.message) == (bad.fingerprint, "record", bad.code, bad.message)
    assert (kept.external_id, kept.count, kept.first_at, kept.discarded) == (7, 2, AT, None)
    assert kept.payload == bad.payload[:2000] + "…"
    assert (post.id, post.kind, post.reason, post.external_id, post.count) == (post_id, "post", "relational_1406", 3, 1)
    assert '"title": "t"' in post.payload
    assert "quarantine" not in post.payload
    whole = quarantine.item(bad.fingerprint)
    assert whole is not None
    assert whole.payload == bad.payload
    assert quarantine.item(post_id) == post
    for unknown in ("0" * 32, "post-" + "0" * 24, "post-", "", "x", "post-\0"):
        assert quarantine.item(unknown) is None


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
def test_pages(quarantine: Quarantine, raw_store: RawStore, database: Documents, limit: int) -> None:
    """Pages of any size show everything once, newest first, also where many came in the same instant."""
    ids = []
    for number in range(4):
        at = AT + timedelta(milliseconds=number // 2)
        bad = [rejected(id=number * 10 + i) for i in range(3)]
        raw_store.quarantine_records(bad, at)
        ids += [record.fingerprint for record in bad]
        ids += [refused_post(database, number * 10 + i, at) for i in range(3)]
    ids.append(refused_post(database, 99, at=None))
    found = all_ids(quarantine, limit=limit)
    assert sorted(found) == sorted(ids)
    times = [item.last_at for i in found if (item := quarantine.item(i))]
    assert times[-1] is None
    assert times[:-1] == sorted((at for at in times if at), reverse=True)
    records = all_ids(quarantine, limit=limit, kind="record")
    assert records == [i for i in found if not i.startswith("post-")]
    assert all_ids(quarantine, limit=limit, reason="relational_1406") == [i for i in found if i.startswith("post-")]
    assert all_ids(quarantine, limit=limit, reason="none") == []


def test_documents_with_ids_of_their_own(quarantine: Quarantine, database: Documents) -> None:
    """Documents whose _id somebody else chose are shown, turned over page by page, and found."""
    for name in ("one", "two", "three"):
        database["posts"].insert_one({"_id": name, "externalId": name, "quarantine": {"code": "wrong_type", "at": AT}})
    assert all_ids(quarantine, limit=1) == ["post-two", "post-three", "post-one"]
    item = quarantine.item("post-one")
    assert item is not None
    assert (item.reason, item.external_id) == ("wrong_type", None)


@pytest.mark.parametrize(
    "cursor", ["", "x", "null", "W10", "WzEsMl0", "WyJ4Iiwi\ud800", "WyIyMDI0IiwgInBvc3QiLCAieCJd", "é" * 10]
)
def test_wrong_cursor(quarantine: Quarantine, cursor: str) -> None:
    """A cursor that no page returned is refused, whatever is in it."""
    with pytest.raises(SelectionError, match="cursor"):
        quarantine.items(cursor=cursor)


def test_wrong_questions(quarantine: Quarantine) -> None:
    """Limits and texts that make no sense are refused, and selections need exactly one criterion."""
    for limit in (0, -1, PAGE_MAX + 1):
        with pytest.raises(SelectionError):
            quarantine.items(limit=limit)
    with pytest.raises(SelectionError):
        quarantine.items("\ud800")
    wrong: list[dict[str, Any]] = [{}, {"ids": (), "all": True}, {"reason": "x", "all": True}, {"ids": ("\ud800",)}]
    for arguments in wrong:
        with pytest.raises(SelectionError):
            Selection(**arguments)


def test_migrated_posts_are_not_quarantined(quarantine: Quarantine, database: Documents) -> None:
    """A document that is flagged migrated and quarantined counts as migrated; reconciliation reports it."""
    item_id = refused_post(database, 1)
    database["posts"].update_one({}, {"$set": {"migrated": True}})
    assert (quarantine.groups(), quarantine.items().items, quarantine.item(item_id)) == ([], [], None)


def test_discard(services: Services, raw_store: RawStore, database: Documents) -> None:
    """What is discarded is kept with reason, time and name, shown on demand only, and counted as before."""
    raw_store.quarantine_records([rejected(id=1), rejected(id=2)], AT)
    refused_post(database, 3)
    dry = services.discard_quarantined(EVERYTHING, "because", "me", dry_run=True)
    assert (dry.dry_run, dry.selected, dry.discarded) == (True, 3, 3)
    assert len(services.quarantine.items().items) == 3
    done = services.discard_quarantined(EVERYTHING, "because \ud800", "me")
    assert (done.dry_run, done.selected, done.discarded) == (False, 3, 3)
    again = services.discard_quarantined(EVERYTHING, "another", "you")
    assert (again.selected, again.discarded) == (0, 0)
    assert (services.quarantine.items().items, services.quarantine.groups()) == ([], [])
    discarded = services.quarantine.items(discarded=True).items
    assert {(item.discarded.reason, item.discarded.by) for item in discarded if item.discarded} == {
        ("because \\ud800", "me")
    }
    assert sum(group.count for group in services.quarantine.groups(include_discarded=True)) == 3
    assert raw_store.counts().quarantined == 1
    assert raw_store.quarantined_record_counts() == {"missing_field": 2}
    assert services.reconcile().ok


def test_a_discarded_record_that_arrives_again_stays_discarded(services: Services, raw_store: RawStore) -> None:
    """The same bad record, served again and again, bothers nobody once it was discarded."""
    raw_store.quarantine_records([rejected(id=1)], AT)
    services.discard_quarantined(Selection(ids=(rejected(id=1).fingerprint,)), "known", "me")
    raw_store.quarantine_records([rejected(id=1)], utc_now())
    assert services.quarantine.groups() == []
    (item,) = services.quarantine.items(discarded=True).items
    assert item.count == 2


def test_a_new_version_of_a_discarded_post_is_tried_again(services: Services, stand_in: StandIn) -> None:
    """Discarding concerns a version: a post that changes at the source comes back to life."""
    services.ingest()
    batch = services.ledger.batches("open")[0]
    services.raw_store.quarantine_posts(batch.id, {1: ("relational_1406", "too long")}, utc_now())
    assert services.discard_quarantined(EVERYTHING, "hopeless", "me").discarded == 1
    stand_in.behaviour = {"revision": "2"}
    services.ingest()
    services.migrate()
    assert services.quarantine.groups(include_discarded=True) == []
    assert services.reconcile().migrated == 100


def test_selections(services: Services, raw_store: RawStore, database: Documents) -> None:
    """Items are selected by ids of both kinds, unknown ones included, or by a reason, and no others."""
    bad = [rejected(id=1), rejected(id=2), rejected(id="x", userId=1, title="t", body="b")]
    raw_store.quarantine_records(bad, AT)
    posts = [refused_post(database, number) for number in (3, 4)]
    chosen = Selection(ids=(bad[0].fingerprint, posts[0], posts[0], "0" * 32, "nonsense", "post-nonsense"))
    assert services.discard_quarantined(chosen, "x", "me").discarded == 2
    assert services.discard_quarantined(Selection(reason="wrong_type"), "x", "me").discarded == 1
    assert services.discard_quarantined(Selection(reason="relational_1406"), "x", "me").discarded == 1
    assert services.discard_quarantined(Selection(reason="of nobody"), "x", "me").selected == 0
    assert [item.id for item in services.quarantine.items().items] == [bad[1].fingerprint]


def test_memory_is_flat(services: Services, raw_store: RawStore) -> None:
    """Discarding 1,500 records with payloads of 10 kB takes no more memory than discarding few."""
    raw_store.quarantine_records([reject({"id": i, "x": "y" * 10_000}, "missing_field", "m") for i in range(1500)], AT)
    assert services.quarantine
    tracemalloc.start()
    try:
        assert services.discard_quarantined(EVERYTHING, "x", "me").discarded == 1500
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000


QUESTIONS: list[Callable[[Services], object]] = [
    lambda services: services.quarantine.groups(),
    lambda services: services.quarantine.items(),
    lambda services: services.quarantine.item("0" * 32),
    lambda services: services.discard_quarantined(EVERYTHING, "x", "me"),
    lambda services: services.requeue_quarantined(EVERYTHING),
    lambda services: services.dead_letters.groups(),
    lambda services: services.dead_letters.items(),
    lambda services: services.dead_letters.item("x"),
    lambda services: services.requeue_dead_letters(EVERYTHING),
    lambda services: services.discard_dead_letters(EVERYTHING, "x", "me"),
    lambda services: services.passport(1),
    lambda services: services.last_reconciliation(),
]


def test_an_outage(services: Services, mongo: MongoServer) -> None:
    """Every question says ServiceUnavailable while MongoDB is away, and is answered once it is back."""
    for ask in QUESTIONS:
        ask(services)
    mongo.kill()
    try:
        for ask in QUESTIONS:
            with pytest.raises(ServiceUnavailable, match="MONGO_URL"):
                ask(services)
    finally:
        mongo.start()
    for ask in QUESTIONS:
        ask(services)


def test_what_an_ingestion_puts_aside(services: Services, stand_in: StandIn) -> None:
    """What an ingestion puts aside is what the quarantine shows."""
    stand_in.posts |= {101: {"id": 101}, 102: "text"}
    assert services.ingest().quarantined == 2
    assert {group.reason: group.count for group in services.quarantine.groups()} == {
        "missing_field": 1,
        "not_an_object": 1,
    }
