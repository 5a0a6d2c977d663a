"""The operator's desk over HTTP: passports, quarantine, dead letters, reconciliation and repair."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from pymongo.database import Database

from pipeline_poc import passport, reconciliation
from pipeline_poc.clock import utc_now
from pipeline_poc.records import reject
from pipeline_poc.services import Services
from pipeline_poc_tests.acceptance.programs import until
from pipeline_poc_tests.posts import record
from pipeline_poc_tests.web.contract import checked
from pipeline_poc_tests.web.planting import at, problem, refuse, store
from pipeline_poc_tests.web.test_queue_jobs import encoded

Documents = Database[dict[str, Any]]

DRY = {"dryRun": "true"}
BEGAN_AT = datetime(2024, 5, 6, 7, 8, 9, 123_000, tzinfo=UTC)
NOT_ONE_SELECTION: tuple[Any, ...] = (
    {},
    {"ids": ["x"], "all": True},
    {"reason": "x", "ids": ["x"]},
    {"ids": []},
    {"all": False},
    [],
)


@pytest.fixture
def api(web: httpx.Client) -> httpx.Client:
    """A client whose answers are held against the schema."""
    return checked(web)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Second looks come soon."""
    monkeypatch.setattr(passport, "_SECOND_LOOK_AFTER_S", 0.01)
    monkeypatch.setattr(reconciliation, "_SECOND_LOOK_AFTER_S", 0.01)


def contents(database: Documents) -> dict[str, Any]:
    """Return all that a desk could change."""
    names = ("posts", "batches", "quarantined_records")
    return {name: sorted(database[name].find(), key=lambda document: str(document["_id"])) for name in names}


def keep_records(services: Services, count: int, code: str = "too_long") -> None:
    """Keep records that are posts by today's rules, and one that is not, a second apart."""
    for number in range(count):
        kept = [reject(record(5000 + number, "<b>"), code, "a rule of yesterday")]
        services.raw_store.quarantine_records(kept, BEGAN_AT + timedelta(seconds=number))
    bad = [reject({"id": 9, "title": "x"}, "missing_field", "no body")]
    services.raw_store.quarantine_records(bad, BEGAN_AT - timedelta(days=1))


def walk(api: httpx.Client, path: str, **params: Any) -> list[dict[str, Any]]:
    """Return the items of all pages."""
    found: list[dict[str, Any]] = []
    cursor: dict[str, Any] = {}
    while True:
        page = api.get(path, params={**params, **cursor}).json()
        found += page["items"]
        if page["nextCursor"] is None:
            return found
        cursor = {"cursor": page["nextCursor"]}


def bury(services: Services, batches: Sequence[str], *errors: str) -> None:
    """Make dead letters of batches."""
    for batch_id, error in zip(batches, errors, strict=True):
        assert services.ledger.bury(batch_id, utc_now(), error)


def test_passports(api: httpx.Client, services: Services, sql: sa.Engine, database: Documents) -> None:
    """A post's passport says where it is, in which batch and job, why it does not go on, and whether stores agree."""
    batches = store(services, range(1, 21))
    refuse(services, batches[0], 3)
    services.migrate(batches[:1])
    services.tick()

    def known(external_id: int) -> dict[str, Any]:
        answer = api.get(f"/posts/{external_id}")
        assert answer.status_code == 200
        found: dict[str, Any] = answer.json()
        assert found["externalId"] == external_id
        assert found["away"] == {}
        return found

    migrated = known(1)
    assert (migrated["state"], migrated["agrees"], migrated["quarantine"]) == ("migrated", True, None)
    assert (migrated["batch"]["id"], migrated["batch"]["state"]) == (batches[0], "closed")
    assert migrated["row"]["externalId"] == 1
    assert migrated["row"]["contentHash"] == migrated["contentHash"]
    assert at(migrated["firstSeenAt"]) == at(migrated["changedAt"])
    at(migrated["row"]["migratedAt"])
    waiting = known(11)
    assert (waiting["state"], waiting["agrees"], waiting["row"]) == ("backlog", True, None)
    assert (waiting["job"]["id"], waiting["job"]["state"], waiting["job"]["posts"]) == (batches[1], "queued", 10)
    quarantined = known(3)
    assert (quarantined["state"], quarantined["agrees"]) == ("quarantined", True)
    assert quarantined["quarantine"]["reason"] == "relational_1406"
    assert quarantined["quarantine"]["isDiscarded"] is False
    with sql.begin() as connection:
        connection.execute(sa.text("DELETE FROM migrated_posts WHERE externalId = 2"))
    database["posts"].delete_one({"externalId": 4})
    assert (known(2)["state"], known(2)["agrees"]) == ("migrated", False)
    assert known(2)["verdict"] == "it is flagged migrated, but there is no row"
    assert (known(4)["state"], known(4)["agrees"]) == ("unknown", False)
    strange = {"externalId": 77, "contentHash": 7, "version": "x", "batchId": 7, "ingestedAt": "x", "quarantine": 7}
    database["posts"].insert_one(strange)
    assert (known(77)["contentHash"], known(77)["version"], known(77)["batch"]) == (None, None, None)
    problem(api.get("/posts/12345"), 404)
    for wrong in ("0", "-1", "x", "1.5", str(2**31), "9" * 400):
        problem(api.get(f"/posts/{wrong}"), 422)


def test_looking_at_the_quarantine(api: httpx.Client, services: Services) -> None:
    """The quarantine is shown by reason, page by page, and one by one with the whole payload."""
    [batch_id] = store(services, range(1, 11))
    refuse(services, batch_id, 3, 4)
    keep_records(services, 45)
    long = record(8000, "x" * 5000)
    services.raw_store.quarantine_records([reject(long, "too_long", "long")], BEGAN_AT + timedelta(days=1))
    answer = api.get("/quarantine").json()
    assert answer["total"] == 49
    assert [(group["kind"], group["reason"], group["count"]) for group in answer["groups"]] == [
        ("record", "too_long", 46),
        ("post", "relational_1406", 2),
        ("record", "missing_field", 1),
    ]
    assert all(group["meaning"] for group in answer["groups"])
    items = walk(api, "/quarantine/items", limit=20)
    assert len({item["id"] for item in items}) == len(items) == 49
    assert [at(item["lastAt"]) for item in items] == sorted((at(item["lastAt"]) for item in items), reverse=True)
    assert [item["kind"] for item in walk(api, "/quarantine/items", kind="post")] == ["post", "post"]
    assert len(walk(api, "/quarantine/items", reason="too_long", limit=7)) == 46
    assert api.get("/quarantine/items", params={"reason": "dancing"}).json() == {"items": [], "nextCursor": None}
    cut = items[2]
    assert (cut["externalId"], cut["payload"].endswith("…")) == (8000, True)
    whole = api.get(f"/quarantine/items/{cut['id']}").json()
    assert "x" * 5000 in whole["payload"]
    assert api.get(f"/quarantine/items/{items[0]['id']}").json()["externalId"] in (3, 4)
    for unknown in ("x", "0" * 32, "post-x", "post-" + "0" * 24):
        problem(api.get(f"/quarantine/items/{unknown}"), 404)
    texts = ("x", "é", encoded("[]"), encoded('["2024-01-01T00:00:00", "record", "x"]'), encoded('[null, "a", "b"]'))
    ends = (encoded(f'["{time}", "record", "x"]') for time in ("0001-01-01T00:00+23:59", "9999-12-31T23:59-23:59"))
    for cursor in (*texts, *ends):
        problem(api.get("/quarantine/items", params={"cursor": cursor}), 422)


def test_requeueing_the_quarantine(api: httpx.Client, services: Services, database: Documents) -> None:
    """One, a group or all are requeued; a dry run says the same, and writes nothing."""
    [batch_id] = store(services, range(1, 11))
    refuse(services, batch_id, 3, 4)
    keep_records(services, 2)
    [first, *_] = api.get("/quarantine/items", params={"reason": "too_long"}).json()["items"]
    before = contents(database)
    for wish, (selected, requeued, invalid) in {
        "ids": (1, 1, 0),
        "reason": (2, 2, 0),
        "all": (5, 4, 1),
    }.items():
        body = {wish: {"ids": [first["id"]], "reason": "relational_1406", "all": True}[wish]}
        answer = api.post("/quarantine/requeue", params=DRY, json=body).json()
        expected = {"dryRun": True, "selected": selected, "requeued": requeued}
        assert answer == expected | {"stillInvalid": invalid, "superseded": 0}
    assert contents(database) == before
    one = api.post("/quarantine/requeue", json={"ids": [first["id"], "unknown"]}).json()
    assert (one["dryRun"], one["selected"], one["requeued"]) == (False, 1, 1)
    group = api.post("/quarantine/requeue", json={"reason": "relational_1406"}).json()
    assert (group["selected"], group["requeued"]) == (2, 2)
    rest = api.post("/quarantine/requeue", json={"all": True}).json()
    assert (rest["selected"], rest["requeued"], rest["stillInvalid"]) == (2, 1, 1)
    assert api.post("/trigger-migration").json()["posts"] == 10 + 2 + 1 + 1
    services.migrate()
    result = services.reconcile()
    assert (result.ok, result.migrated, result.quarantined) == (True, 12, 0)
    for path in ("/quarantine/requeue", "/dead-letters/requeue"):
        for wrong in NOT_ONE_SELECTION:
            problem(api.post(path, json=wrong), 422)


def test_discarding_from_the_quarantine(api: httpx.Client, services: Services, database: Documents) -> None:
    """What is discarded is kept with the reason and shown no more, unless it is asked for; a dry run writes nothing."""
    [batch_id] = store(services, range(1, 11))
    refuse(services, batch_id, 3)
    keep_records(services, 2)
    body = {"all": True, "because": "spam <from> a test"}
    before = contents(database)
    assert api.post("/quarantine/discard", params=DRY, json=body).json()["discarded"] == 4
    assert contents(database) == before
    done = api.post("/quarantine/discard", json={"reason": "too_long", "because": "long"}).json()
    assert done == {"dryRun": False, "selected": 2, "discarded": 2}
    assert api.post("/quarantine/discard", json=body).json()["discarded"] == 2
    assert api.post("/quarantine/discard", json=body).json()["discarded"] == 0
    assert api.get("/quarantine").json() == {"groups": [], "total": 0}
    discarded = walk(api, "/quarantine/items", discarded=True, limit=3)
    assert len(discarded) == 4
    assert {item["discarded"]["reason"] for item in discarded} == {"long", "spam <from> a test"}
    assert {item["discarded"]["by"] for item in discarded} == {"api (anonymous)"}
    assert api.get("/posts/3").json()["quarantine"]["isDiscarded"] is True
    assert services.raw_store.counts().quarantined == 1
    assert api.post("/quarantine/requeue", json={"ids": [discarded[0]["id"]]}).json()["selected"] == 1
    for path in ("/quarantine/discard", "/dead-letters/discard"):
        for wrong in ({"all": True}, {"all": True, "because": " "}, {"because": "x"}, body | {"reason": "x"}):
            problem(api.post(path, json=wrong), 422)


def test_dead_letters(api: httpx.Client, services: Services, database: Documents) -> None:
    """Dead letters are shown, requeued and discarded by type of error; a dry run writes nothing."""
    batches = store(services, range(1, 51))
    bury(services, batches, "KeyError: 'x'", "KeyError: <y>", "ValueError: a: b", "SchemaError", "ValueError: c")
    answer = api.get("/dead-letters").json()
    assert answer["total"] == 5
    found = [(group["reason"], group["batches"], group["posts"]) for group in answer["groups"]]
    assert found == [("KeyError", 2, 20), ("ValueError", 2, 20), ("SchemaError", 1, 10)]
    items = walk(api, "/dead-letters/items", limit=2)
    assert [item["id"] for item in items] == sorted(batches, reverse=True)
    assert [item["error"] for item in walk(api, "/dead-letters/items", reason="ValueError", limit=1)] == [
        "ValueError: c",
        "ValueError: a: b",
    ]
    one = api.get(f"/dead-letters/items/{batches[0]}").json()
    assert (one["externalIds"], one["reason"], one["posts"]) == (list(range(1, 11)), "KeyError", 10)
    problem(api.get("/dead-letters/items/unknown"), 404)
    for cursor in ("x", encoded('["0001-01-01T00:00+23:59", "x"]'), encoded('["2024-01-01T00:00:00", "x"]')):
        problem(api.get("/dead-letters/items", params={"cursor": cursor}), 422)
    before = contents(database)
    dry = api.post("/dead-letters/requeue", params=DRY, json={"all": True}).json()
    assert dry == {"dryRun": True, "selected": 5, "requeued": 5}
    gone = {"reason": "KeyError", "because": "hopeless"}
    dry = api.post("/dead-letters/discard", params=DRY, json=gone).json()
    assert dry == {"dryRun": True, "selected": 2, "discarded": 2}
    assert contents(database) == before
    assert api.post("/dead-letters/discard", json=gone).json()["discarded"] == 2
    assert api.post("/dead-letters/requeue", json={"ids": [batches[3], "unknown"]}).json()["requeued"] == 1
    assert api.post("/dead-letters/requeue", json={"reason": "ValueError"}).json()["requeued"] == 2
    assert api.post("/dead-letters/requeue", json={"all": True}).json()["selected"] == 0
    assert api.get("/dead-letters").json() == {"groups": [], "total": 0}
    [group] = api.get("/quarantine").json()["groups"]
    assert (group["kind"], group["reason"], group["count"]) == ("post", "dead_letter", 20)
    services.migrate()
    result = services.reconcile()
    assert (result.ok, result.migrated, result.quarantined) == (True, 30, 20)


def test_reconciliation_and_repair(api: httpx.Client, services: Services, database: Documents, sql: sa.Engine) -> None:
    """A comparison is started, followed and kept; a repair puts what it would find back into the backlog."""
    never = api.get("/reconciliation").json()
    assert (never["state"], never["ok"], never["missing"]) == ("none", None, None)
    services.migrate(store(services, range(1, 31)))

    def compare() -> dict[str, Any]:
        before = api.get("/reconciliation").json()
        begun = api.post("/reconciliation")
        assert (begun.status_code, begun.headers["location"]) == (202, "/reconciliation")
        assert begun.json()["state"] == "running"

        def look() -> Any:
            found = api.get("/reconciliation").json()
            return found if found["state"] == "done" and found["endedAt"] != before["endedAt"] else None

        found: dict[str, Any] = until(look, "the comparison is done")
        assert at(found["startedAt"]) <= at(found["endedAt"])
        assert found["stored"] == found["migrated"] + found["backlog"] + found["quarantined"]
        return found

    good = compare()
    assert (good["ok"], good["stored"], good["rows"], good["missing"]) == (True, 30, 30, 0)
    with sql.begin() as connection:
        connection.execute(sa.text("DELETE FROM migrated_posts WHERE externalId IN (1, 2)"))
        connection.execute(sa.text("UPDATE migrated_posts SET title = 'x' WHERE externalId = 7"))
    database["posts"].delete_one({"externalId": 9})
    database["posts"].update_one({"externalId": 10}, {"$set": {"migrated": False}})
    bad = compare()
    assert (bad["ok"], bad["missing"], bad["stale"], bad["extra"], bad["wronglyFlagged"]) == (False, 2, 1, 1, 1)
    assert bad["ids"] == {"missing": [1, 2], "stale": [7], "extra": [9], "wronglyFlagged": [10]}
    before = contents(database)
    dry = api.post("/reconciliation/repair", params=DRY).json()
    left = {"missing": [], "stale": [], "extra": [9], "wronglyFlagged": []}
    assert dry == {"dryRun": True, "repaired": 4, "left": left}
    assert contents(database) == before
    assert api.post("/reconciliation/repair").json() == {"dryRun": False, "repaired": 4, "left": left}
    assert api.post("/trigger-migration").json()["adopted"] == 4
    services.migrate()
    after = compare()
    assert (after["ok"], after["extra"], after["migrated"], after["backlog"]) == (False, 1, 29, 0)


def test_a_reconciliation_that_is_under_way_is_joined(api: httpx.Client, services: Services) -> None:
    """A comparison that another process is making is shown and joined; one whose process died is begun anew."""
    began_at = utc_now()
    running = {"state": "running", "startedAt": began_at, "aliveAt": began_at}
    services.state.save("reconciliation", running)
    joined = api.post("/reconciliation").json()
    assert at(joined["startedAt"]) == began_at
    shown = api.get("/reconciliation").json()
    assert (shown["state"], at(shown["startedAt"])) == ("running", began_at)
    services.state.save("reconciliation", running | {"aliveAt": began_at - timedelta(minutes=5)})
    assert api.get("/reconciliation").json()["state"] == "failed"
    api.post("/reconciliation")
    until(lambda: api.get("/reconciliation").json()["state"] == "done", "another one is done")
