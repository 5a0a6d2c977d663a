"""The replay over HTTP: who asks for it says exactly which posts, and acts once."""

from typing import Any

import httpx
import pytest

from pipeline_poc.services import Services
from pipeline_poc_tests.web.contract import checked
from pipeline_poc_tests.web.planting import problem, store

PATH = "/data-migration/replay"


@pytest.fixture
def api(web: httpx.Client) -> httpx.Client:
    """A client whose answers are held against the schema."""
    return checked(web)


def test_replay(api: httpx.Client, services: Services) -> None:
    """A dry run counts, a replay puts posts back once for each key, and the trigger gives them jobs."""
    services.migrate(store(services, range(1, 31)))
    waiting = store(services, range(31, 36))
    dry = api.post(PATH, params={"dryRun": "true"}, json={"all": True}).json()
    assert (dry["dryRun"], dry["selected"], dry["replayed"], dry["waiting"], dry["batches"]) == (True, 30, 0, 5, 0)
    assert services.raw_store.counts().backlog == 5
    key = {"Idempotency-Key": "again"}
    done = api.post(PATH, json={"fromId": 1, "toId": 15}, headers=key)
    assert (done.json()["dryRun"], done.json()["replayed"], done.json()["batches"]) == (False, 15, 2)
    services.migrate(batch.id for batch in services.ledger.batches("open") if batch.id not in waiting)
    again = api.post(PATH, json={"fromId": 1, "toId": 15}, headers=key)
    assert (again.json(), again.headers["idempotent-replayed"]) == (done.json(), "true")
    assert services.raw_store.counts().backlog == 5
    assert api.post(PATH, json={"ids": [7, 12_345]}).json()["replayed"] == 1
    assert api.post(PATH, json={"changedSince": "2999-01-31T09:30:00+01:00"}).json()["selected"] == 0
    assert api.post(PATH, json={"toId": 9, "ids": None}).json()["replayed"] == 8
    assert api.post("/trigger-migration").json()["posts"] == 14
    services.migrate()
    assert services.reconcile().ok


def test_wishes_that_make_no_sense(api: httpx.Client) -> None:
    """Not exactly one way of selecting, ids that no post has, times of nobody's zone and unknown fields are refused."""
    wrong: tuple[Any, ...] = (
        {},
        [],
        {"ids": []},
        {"ids": [0]},
        {"ids": ["1"], "all": True},
        {"all": False},
        {"fromId": 1, "all": True},
        {"toId": 2**31},
        {"changedSince": "2026-01-31T09:30:00"},
        {"everything": True},
    )
    for body in wrong:
        problem(api.post(PATH, json=body), 422)
