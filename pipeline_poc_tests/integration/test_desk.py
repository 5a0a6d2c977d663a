"""The operator's desk: what a person does reaches every post once, whatever breaks and whoever else is at it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo.database import Database

from pipeline_poc import desk
from pipeline_poc.clock import utc_now
from pipeline_poc.dead_letters import DeadLetters
from pipeline_poc.desk import DiscardResult, Requeued, RequeuedBatches
from pipeline_poc.ledger import Ledger
from pipeline_poc.quarantine import Quarantine
from pipeline_poc.raw_store import RawStore
from pipeline_poc.records import RejectedRecord, reject
from pipeline_poc.selection import Selection, SelectionError
from pipeline_poc.services import Services
from pipeline_poc.settings import Settings
from pipeline_poc.stand_in import StandIn
from pipeline_poc_tests.posts import record

Documents = Database[dict[str, Any]]

AT = datetime(2024, 5, 6, 7, 8, 9, 123_000, tzinfo=UTC)
EVERYTHING = Selection(all=True)


class CrashError(Exception):
    """The process dies here."""


@contextmanager
def crash_in(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, *, after: bool) -> Iterator[None]:
    """Let a method of a store be the last thing that happens, done or not done."""
    real = getattr(owner, method)

    def crash(*arguments: Any, **named: Any) -> Any:
        if after:
            real(*arguments, **named)
        raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, crash)
        yield


def kept(external_id: int, title: str = "t", code: str = "too_long", **others: Any) -> RejectedRecord:
    """Return a record that was refused by yesterday's rules, and is a post by today's."""
    return reject(record(external_id, title, **others), code, "a rule of yesterday")


def migrate(services: Services) -> None:
    """Adopt and migrate everything."""
    services.adopt()
    services.migrate()


def titles(services: Services) -> dict[int, str]:
    """Return the title of every row."""
    return {row["externalId"]: row["title"] for row in services.relational_store.sample(1000)}


@pytest.fixture
def refused(services: Services) -> Services:
    """A pipeline with 100 posts, of which the relational store refused 3, 4 and 15; the rest is migrated."""
    services.ingest()
    by_batch = {0: (3, 4), 1: (15,)}
    for index, batch in enumerate(services.ledger.batches("open")):
        reasons = dict.fromkeys(by_batch.get(index, ()), (f"relational_{1406 + index}", "refused"))
        services.raw_store.quarantine_posts(batch.id, reasons, utc_now())
    services.migrate()
    assert services.raw_store.counts().quarantined == 3
    return services


def test_requeue_posts(refused: Services) -> None:
    """Requeued posts leave quarantine for the backlog, are adopted in a new version and migrated."""
    assert refused.requeue_quarantined(EVERYTHING, dry_run=True) == Requeued(True, 3, 3)
    assert refused.raw_store.counts().quarantined == 3
    assert refused.requeue_quarantined(Selection(reason="relational_1406")) == Requeued(False, 2, 2)
    between = refused.reconcile()
    assert (between.ok, between.backlog, between.quarantined) == (True, 2, 1)
    assert refused.requeue_quarantined(EVERYTHING) == Requeued(False, 1, 1)
    assert refused.requeue_quarantined(EVERYTHING) == Requeued(False)
    migrate(refused)
    result = refused.reconcile()
    assert (result.ok, result.migrated, result.rows, result.quarantined) == (True, 100, 100, 0)


def test_requeue_one_post_by_id_even_if_discarded(refused: Services) -> None:
    """A post that was discarded comes back when it is named, and only then."""
    refused.discard_quarantined(EVERYTHING, "hopeless", "me")
    assert refused.requeue_quarantined(EVERYTHING) == Requeued(False)
    item = refused.quarantine.items(discarded=True).items[0]
    assert refused.requeue_quarantined(Selection(ids=(item.id,))) == Requeued(False, 1, 1)
    migrate(refused)
    assert refused.reconcile().migrated == 98


def test_invalid_documents_stay_in_quarantine(services: Services, database: Documents) -> None:
    """A document that is no post by today's rules either stays where it is; once it is mended it goes on."""
    database["posts"].insert_one({"externalId": 1, "userId": 1, "title": None, "body": "b"})
    migrate(services)
    assert services.requeue_quarantined(EVERYTHING) == Requeued(False, 1, 0, still_invalid=1)
    assert services.raw_store.counts().quarantined == 1
    database["posts"].update_one({}, {"$set": {"title": "mended"}})
    assert services.requeue_quarantined(EVERYTHING) == Requeued(False, 1, 1)
    migrate(services)
    assert titles(services) == {1: "mended"}
    assert services.reconcile().ok


def test_a_document_that_spoils_on_the_way_returns_to_quarantine(refused: Services, database: Documents) -> None:
    """What is requeued, and invalid when it is adopted, is quarantined again."""
    refused.requeue_quarantined(EVERYTHING)
    database["posts"].update_one({"externalId": 3}, {"$set": {"title": 7}})
    migrate(refused)
    assert [(group.reason, group.count) for group in refused.quarantine.groups()] == [("wrong_type", 1)]
    assert refused.raw_store.counts().migrated == 99


def test_requeue_records(services: Services) -> None:
    """Records that are valid today become posts and leave quarantine; the others stay."""
    still_bad = reject({"id": 9}, "missing_field", "no title")
    deep = reject(json_nested(), "not_an_object", "deep")
    services.raw_store.quarantine_records([kept(1), kept(2), still_bad, deep], AT)
    assert services.requeue_quarantined(EVERYTHING, dry_run=True) == Requeued(True, 4, 2, still_invalid=2)
    assert services.raw_store.counts().stored == 0
    assert services.requeue_quarantined(EVERYTHING) == Requeued(False, 4, 2, still_invalid=2)
    assert services.requeue_quarantined(EVERYTHING) == Requeued(False, 2, 0, still_invalid=2)
    assert {item.id for item in services.quarantine.items().items} == {still_bad.fingerprint, deep.fingerprint}
    services.migrate()
    assert titles(services) == {1: "t", 2: "t"}
    assert services.reconcile().ok


def json_nested() -> Any:
    """Return a record that is nested as deep as JSON can be read, but not written."""
    value: Any = []
    for _ in range(100_000):
        value = [value]
    return value


def test_a_record_never_overwrites_what_the_source_served_since(services: Services, stand_in: StandIn) -> None:
    """A post that changed after its record was last seen is left alone; so is the record."""
    services.raw_store.quarantine_records([kept(1, "old")], utc_now() - timedelta(hours=1))
    services.ingest()
    for dry_run in (True, False):
        result = services.requeue_quarantined(EVERYTHING, dry_run=dry_run)
        assert result == Requeued(dry_run, 1, 0, superseded=1)
    services.migrate()
    assert titles(services)[1] != "old"
    assert len(services.quarantine.items().items) == 1


def test_a_record_that_is_newer_than_its_post_becomes_its_next_version(services: Services) -> None:
    """A record seen after the post last changed is the post's newer content; the source is asked again for all."""
    services.ingest()
    services.migrate()
    assert services.ingest().not_modified
    services.raw_store.quarantine_records([kept(1, "newer")], utc_now())
    assert services.requeue_quarantined(EVERYTHING) == Requeued(False, 1, 1)
    services.migrate()
    assert titles(services)[1] == "newer"
    assert services.reconcile().ok
    # The source, which does not serve it, has the last word.
    assert services.ingest().changed == 1


def test_the_newest_of_several_records_of_a_post_counts(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """However they are cut into portions, the record seen last becomes the post."""
    for number, title in enumerate(["b", "a", "d", "c"]):
        services.raw_store.quarantine_records([kept(1, title)], AT + timedelta(seconds=number))
    assert services.requeue_quarantined(EVERYTHING) == Requeued(False, 4, 1, superseded=3)
    services.migrate()
    assert titles(services) == {1: "c"}


def test_the_same_post_kept_for_two_reasons(services: Services) -> None:
    """Two records with the same content are both done with by storing it once."""
    services.raw_store.quarantine_records([kept(1), kept(1, code="out_of_range")], AT)
    assert services.requeue_quarantined(EVERYTHING) == Requeued(False, 2, 2)
    assert services.raw_store.counts().stored == 1


def test_of_two_contents_in_one_answer_the_first_still_counts(services: Services, stand_in: StandIn) -> None:
    """A duplicate that contradicts the first one stays as long as the post is stored."""
    stand_in.posts[101] = record(1, "another")
    services.ingest()
    assert services.requeue_quarantined(EVERYTHING) == Requeued(False, 1, 0, superseded=1)
    later = utc_now() + timedelta(hours=1)
    services.raw_store.quarantine_records([kept(1, "another", "conflicting_duplicate")], later)
    assert services.requeue_quarantined(EVERYTHING) == Requeued(False, 2, 0, superseded=2)


def test_a_post_that_the_source_changes_in_this_moment_wins(
    services: Services, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer version that arrives between the look and the write is not overwritten."""
    services.ingest()
    services.raw_store.quarantine_records([kept(1, "record")], utc_now())
    real = RawStore.offer

    def overtaken(store: RawStore, *arguments: Any) -> int:
        stand_in.behaviour = {"revision": "2"}
        services.ingest()
        return real(store, *arguments)

    monkeypatch.setattr(RawStore, "offer", overtaken)
    assert services.requeue_quarantined(EVERYTHING) == Requeued(False, 1, 0, superseded=1)
    services.migrate()
    assert titles(services)[1] != "record"
    assert services.reconcile().ok


CRASHES: list[tuple[type, str]] = [
    (Ledger, "create"),
    (RawStore, "offer"),
    (Ledger, "seal"),
    (RawStore, "forget_answers"),
    (Quarantine, "remove_records"),
    (Quarantine, "release_posts"),
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("owner,method", CRASHES)
def test_requeueing_that_dies_is_repeated(  # noqa: PLR0917 - fixtures and parameters
    refused: Services,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    method: str,
    after: bool,
) -> None:
    """A crash between any two steps loses nothing: the equation holds, and a repetition ends the work."""
    refused.settings = settings.model_copy(update={"filling_timeout_s": 1e-9})
    refused.raw_store.quarantine_records([kept(501), kept(502)], AT)
    with crash_in(monkeypatch, owner, method, after=after), pytest.raises(CrashError):
        refused.requeue_quarantined(EVERYTHING)
    between = refused.reconcile()
    assert between.ok
    assert between.stored == between.migrated + between.backlog + between.quarantined
    refused.requeue_quarantined(EVERYTHING)
    migrate(refused)
    result = refused.reconcile()
    assert (result.ok, result.migrated, result.quarantined, result.rows) == (True, 102, 0, 102)
    assert refused.quarantine.groups() == []


def at_once(work: Callable[[], Any]) -> list[Any]:
    """Let two people do the same in the same moment; return what each did."""
    gate, results, errors = threading.Barrier(2), [], []

    def person() -> None:
        try:
            gate.wait()
            results.append(work())
        except Exception as error:  # noqa: BLE001 - any error fails the test
            errors.append(error)

    people = [threading.Thread(target=person) for _ in range(2)]
    for thread in people:
        thread.start()
    for thread in people:
        thread.join()
    assert not errors
    return results


def test_two_people_requeue_at_once(refused: Services) -> None:
    """Two people who requeue everything at once requeue each item once."""
    refused.raw_store.quarantine_records([kept(i) for i in range(501, 701)], AT)
    results = at_once(lambda: refused.requeue_quarantined(EVERYTHING))
    assert sum(result.requeued for result in results) == 203
    migrate(refused)
    outcome = refused.reconcile()
    assert (outcome.ok, outcome.migrated, outcome.quarantined) == (True, 300, 0)
    assert not refused.ledger.batches("open")


@pytest.fixture
def dead(services: Services) -> Services:
    """A pipeline with ten batches of ten posts, of which three are dead letters."""
    services.ingest()
    batches = services.ledger.batches("open")
    for batch, error in zip(batches, ("ValueError: a: b", "ValueError", "KeyError: 'x'"), strict=False):
        services.ledger.bury(batch.id, utc_now(), error)
    services.migrate()
    assert services.raw_store.counts().backlog == 30
    return services


def test_dead_letters_are_shown(dead: Services) -> None:
    """Dead letters are grouped by the type of their error, listed in pages, and looked at one by one."""
    groups = dead.dead_letters.groups()
    assert [(group.reason, group.batches, group.posts) for group in groups] == [
        ("ValueError", 2, 20),
        ("KeyError", 1, 10),
    ]
    assert all(group.first_at <= group.last_at for group in groups)
    buried = [batch.id for batch in dead.ledger.batches("dead")]
    found = []
    page = dead.dead_letters.items(limit=1)
    found += [letter.id for letter in page.items]
    while page.next_cursor:
        page = dead.dead_letters.items(limit=1, cursor=page.next_cursor)
        found += [letter.id for letter in page.items]
    assert found == buried[::-1]
    assert [letter.id for letter in dead.dead_letters.items("ValueError").items] == [buried[1], buried[0]]
    assert dead.dead_letters.items("Value").items == []
    letter = dead.dead_letters.item(buried[0])
    assert letter is not None
    assert (letter.reason, letter.message, letter.posts) == ("ValueError", "ValueError: a: b", 10)
    assert letter.external_ids == tuple(range(1, 11))
    assert dead.dead_letters.item("unknown") is None
    with pytest.raises(SelectionError):
        dead.dead_letters.items(cursor="x")


def test_requeue_dead_letters(dead: Services) -> None:
    """Dead letters return to the backlog by reason, by id, or all, each once."""
    buried = [batch.id for batch in dead.ledger.batches("dead")]
    assert dead.requeue_dead_letters(EVERYTHING, dry_run=True) == RequeuedBatches(True, 3, 3)
    assert dead.requeue_dead_letters(Selection(reason="KeyError")) == RequeuedBatches(False, 1, 1)
    assert dead.requeue_dead_letters(Selection(ids=(buried[0], buried[0], "x"))) == RequeuedBatches(False, 1, 1)
    assert sum(result.requeued for result in at_once(lambda: dead.requeue_dead_letters(EVERYTHING))) == 1
    assert dead.dead_letters.groups() == []
    dead.migrate()
    assert dead.reconcile().migrated == 100


def test_discard_dead_letters(dead: Services, database: Documents) -> None:
    """The posts of a discarded dead letter are quarantined, its batch is closed, and they can still be requeued."""
    dry = dead.discard_dead_letters(Selection(reason="ValueError"), "give up", "me", dry_run=True)
    assert dry == DiscardResult(True, 2, 2)
    done = dead.discard_dead_letters(Selection(reason="ValueError"), "give up", "me")
    assert done == DiscardResult(False, 2, 2)
    result = dead.reconcile()
    assert (result.ok, result.migrated, result.backlog, result.quarantined) == (True, 70, 10, 20)
    (group,) = dead.quarantine.groups()
    assert (group.reason, group.count) == ("dead_letter", 20)
    assert {item.message for item in dead.quarantine.items().items} == {"ValueError: a: b", "ValueError"}
    notes = [batch["discarded"] for batch in database["batches"].find({"discarded": {"$exists": True}})]
    assert [(note["reason"], note["by"]) for note in notes] == [("give up", "me")] * 2
    assert dead.discard_dead_letters(Selection(reason="ValueError"), "give up", "me").selected == 0
    assert dead.requeue_quarantined(EVERYTHING).requeued == 20
    dead.requeue_dead_letters(EVERYTHING)
    migrate(dead)
    assert dead.reconcile().migrated == 100


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("owner,method", [(Quarantine, "quarantine_batch"), (Ledger, "close")])
def test_discarding_that_dies_is_repeated(
    dead: Services,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    method: str,
    after: bool,
) -> None:
    """A crash between the posts and the batch leaves no post without somebody who cares."""
    with crash_in(monkeypatch, owner, method, after=after), pytest.raises(CrashError):
        dead.discard_dead_letters(EVERYTHING, "give up", "me")
    between = dead.reconcile()
    assert between.ok
    assert between.stored == between.migrated + between.backlog + between.quarantined == 100
    dead.discard_dead_letters(EVERYTHING, "give up", "me")
    result = dead.reconcile()
    assert (result.ok, result.migrated, result.quarantined, result.backlog) == (True, 70, 30, 0)
    assert dead.dead_letters.groups() == []


def test_one_discards_while_another_requeues(dead: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that is requeued and migrated while it is being discarded leaves no post behind."""
    real = DeadLetters.selected

    def then_requeued(letters: DeadLetters, selection: Selection) -> Any:
        chosen = list(real(letters, selection))
        monkeypatch.setattr(DeadLetters, "selected", real)
        dead.requeue_dead_letters(EVERYTHING)
        return chosen

    monkeypatch.setattr(DeadLetters, "selected", then_requeued)
    dead.discard_dead_letters(EVERYTHING, "give up", "me")
    dead.migrate()
    result = dead.reconcile()
    assert (result.ok, result.migrated + result.quarantined) == (True, 100)


def test_work_is_done_in_portions(refused: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """No step takes more than a portion of records at once."""
    sizes = []
    real = desk._requeue_records

    def measured(records: Any, *others: Any) -> None:
        sizes.append(len(records))
        real(records, *others)

    monkeypatch.setattr(desk, "_requeue_records", measured)
    refused.raw_store.quarantine_records([kept(i) for i in range(501, 751)], AT)
    assert refused.requeue_quarantined(EVERYTHING).requeued == 253
    assert sizes == [100, 100, 50]
