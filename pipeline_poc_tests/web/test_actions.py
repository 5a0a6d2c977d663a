"""Actions on the migration: triggered at once, acting once for each key, paused and drained by a person."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo.database import Database
from starlette.types import ASGIApp

from pipeline_poc.services import Services
from pipeline_poc.settings import Settings
from pipeline_poc.web.auth import new_token
from pipeline_poc_tests.acceptance.programs import until
from pipeline_poc_tests.web.contract import checked
from pipeline_poc_tests.web.planting import environment_of, problem, store
from pipeline_poc_tests.web.serving import served

Documents = Database[dict[str, Any]]

TRIGGER, SHORT = "/data-migration/trigger", "/trigger-migration"


@pytest.fixture
def relational_url(tmp_path: Path) -> str:
    """SQLite: which kind it is does not matter here."""
    return f"sqlite:///{tmp_path / 'relational.db'}"


@pytest.fixture
def api(web: httpx.Client) -> httpx.Client:
    """A client whose answers are held against the schema."""
    return checked(web)


def key(value: str) -> dict[str, str]:
    """Return the header that carries an idempotency key."""
    return {"Idempotency-Key": value}


def mode_check(api: httpx.Client) -> dict[str, Any]:
    """Return what health says of the migration's mode."""
    [check] = api.get("/health").json()["checks"]["migration:mode"]
    found: dict[str, Any] = check
    return found


@pytest.mark.parametrize("path", [TRIGGER, SHORT])
def test_the_backlog_is_enqueued_at_once(api: httpx.Client, services: Services, database: Documents, path: str) -> None:
    """Posts without a batch get one, every batch gets a job, and asking again enqueues nothing twice."""
    document = {"userId": 1, "title": "t", "body": "b", "migrated": False}
    database["posts"].insert_many([{"externalId": 1000 + i} | document for i in range(25)])
    store(services, range(1, 16))
    first = api.post(path).json()
    assert (first["success"], first["adopted"], first["posts"], first["jobs"]) == (True, 25, 40, 5)
    assert first["outstanding"] == services.queue.counts().queued == 5
    again = api.post(path).json()
    assert (again["adopted"], again["posts"], again["jobs"], again["outstanding"]) == (0, 0, 0, 5)
    assert services.queue.counts().queued == 5
    services.migrate()
    assert services.reconcile().migrated == 40


def test_nothing_is_enqueued_while_it_must_not(api: httpx.Client, services: Services) -> None:
    """While the migration is paused or drains, triggering it is refused with the reason, and changes nothing."""
    store(services, range(1, 11))
    for wish, mode in (("pause", "paused"), ("drain", "draining")):
        api.post(f"/data-migration/{wish}", json={"reason": "the disk is full"})
        for path in (TRIGGER, SHORT):
            refused = problem(api.post(path, headers=key(mode)), 409)
            assert mode in refused["detail"]
            assert "the disk is full" in refused["detail"]
    assert services.queue.counts().queued == 0
    api.post("/data-migration/resume")
    # The keys of refused requests were given back.
    answer = api.post(TRIGGER, headers=key("paused"))
    assert (answer.json()["jobs"], "idempotent-replayed" in answer.headers) == (1, False)


def test_a_key_acts_once(api: httpx.Client, services: Services) -> None:
    """The same key is answered as the first time and acts once; with another request it is refused."""
    store(services, range(1, 11))
    first = api.post(SHORT, headers=key("a"))
    assert (first.status_code, first.json()["jobs"], "idempotent-replayed" in first.headers) == (200, 1, False)
    store(services, range(11, 31))
    replayed = api.post(SHORT, headers=key("a"))
    assert (replayed.status_code, replayed.headers["idempotent-replayed"]) == (200, "true")
    assert replayed.json() == first.json()
    assert services.queue.counts().queued == 1
    problem(api.post(SHORT, headers=key("a"), params={"x": "1"}), 422)
    problem(api.post(SHORT, headers=key("a"), json={"x": 1}), 422)
    # The two names are two requests.
    other = api.post(TRIGGER, headers=key("a"))
    assert (other.json()["jobs"], "idempotent-replayed" in other.headers) == (2, False)
    assert api.post(TRIGGER, headers=key("b")).json()["jobs"] == 0
    for wrong in ("", "x" * 256, "two words", "tab\tbed"):
        problem(api.post(TRIGGER, headers=key(wrong)), 422)


def test_a_key_at_work(api: httpx.Client, services: Services) -> None:
    """While the first request with a key is at work, others with that key are told to come again, and act never."""
    store(services, range(1, 11))
    with ThreadPoolExecutor(8) as pool:
        with services.queue.tick_lock() as mine:  # Which keeps the server's tick waiting.
            assert mine
            asked = [pool.submit(api.post, TRIGGER, headers=key("a")) for _ in range(8)]
            until(lambda: sum(future.done() for future in asked) == 7, "all but one are answered")
        answers = [future.result() for future in asked]
    [winner] = [answer for answer in answers if answer.status_code == 200]
    assert (winner.json()["jobs"], "idempotent-replayed" in winner.headers) == (1, False)
    for answer in answers:
        if answer is not winner:
            problem(answer, 409)
            assert int(answer.headers["retry-after"]) > 0
    replayed = api.post(TRIGGER, headers=key("a"))
    assert (replayed.json(), replayed.headers["idempotent-replayed"]) == (winner.json(), "true")


def test_keys_belong_to_their_tokens(settings: Settings, services: Services, dagster_ui: ASGIApp) -> None:
    """The same key sent with two tokens is two keys: nobody sees the answer that was meant for somebody else."""
    (one, one_hash), (other, other_hash) = new_token(), new_token()
    tokens = {"api_operate_token_hashes": (one_hash, other_hash)}
    store(services, range(1, 11))
    with served(settings.model_copy(update=tokens), dagster_ui) as client:
        answers = [
            client.post(TRIGGER, headers={"Authorization": f"Bearer {token}", **key("a")})
            for token in (one, other, one, other)
        ]
    assert [answer.json()["jobs"] for answer in answers] == [1, 0, 1, 0]
    assert ["idempotent-replayed" in answer.headers for answer in answers] == [False, False, True, True]


def test_pause_and_resume(api: httpx.Client, services: Services, settings: Settings) -> None:
    """A paused migration enqueues and begins nothing, everybody is told so and why; resumed, it finishes."""
    store(services, range(1, 31))
    services.tick()
    store(services, range(31, 61))
    paused = api.post("/data-migration/pause", json={"reason": " maintenance of <MySQL> "}).json()
    assert (paused["mode"], paused["by"], paused["reason"]) == ("paused", "api (anonymous)", "maintenance of <MySQL>")
    assert paused["outstanding"] == 3
    tick = services.tick()
    assert (tick.mode, tick.enqueued) == ("paused", 0)
    until(lambda: mode_check(api)["status"] == "warn", "health warns")
    check = mode_check(api)
    assert (check["observedValue"], "maintenance of <MySQL>" in check["output"]) == ("paused", True)
    until(lambda: api.get("/pipeline/overview").json()["mode"] == "paused", "the overview shows it")
    assert api.get("/pipeline/overview").json()["modeReason"] == "maintenance of <MySQL>"
    assert api.get("/data-migration/queue-jobs").json()["counts"]["paused"] is True
    command = [sys.executable, "-m", "pipeline_poc", "worker"]
    with subprocess.Popen(command, env=environment_of(settings), stderr=subprocess.DEVNULL) as worker:

        def states() -> list[str]:
            return [each["state"] for each in api.get("/data-migration/stats").json()["workers"]]

        try:
            until(lambda: states() == ["suspended"], "the worker is suspended")
            time.sleep(1.0)
            assert services.raw_store.counts().migrated == 0
            resumed = api.post("/data-migration/resume").json()
            assert (resumed["mode"], resumed["outstanding"]) == ("running", 3)
            services.tick()
            until(lambda: services.raw_store.counts().migrated == 60, "all is migrated")
            until(lambda: states() == ["idle"], "the worker is idle")
        finally:
            worker.terminate()
    until(lambda: mode_check(api)["status"] == "pass", "health is content")


def test_drain(api: httpx.Client, services: Services) -> None:
    """A draining migration adds nothing to the queue, and says how much is left until nothing is."""
    store(services, range(1, 31))
    services.tick()
    late = store(services, range(31, 41))
    drained = api.post("/data-migration/drain").json()
    assert (drained["mode"], drained["reason"], drained["outstanding"]) == ("draining", None, 3)
    assert services.tick().enqueued == 0
    until(lambda: mode_check(api)["status"] == "warn", "health warns")
    for batch_id in services.queue.snapshot().queued:
        services.queue.rq.remove(batch_id)
    assert api.post("/data-migration/drain").json()["outstanding"] == 0
    api.post("/data-migration/resume")
    assert services.tick().enqueued == 4
    assert late[0] in services.queue.snapshot().queued


def test_wishes_that_make_no_sense(api: httpx.Client) -> None:
    """A reason that is empty or too long, and a field that nobody knows, are refused with what is wrong."""
    bodies: tuple[Any, ...] = ({"reason": " "}, {"reason": "x" * 501}, {"reason": "\0"}, {"because": "x"}, [], "x")
    for body in bodies:
        wrong = problem(api.post("/data-migration/pause", json=body), 422)
        assert wrong["errors"][0]["loc"][0] == "body"
    problem(api.post("/data-migration/pause", content=b"{", headers={"Content-Type": "application/json"}), 422)
    assert api.get("/data-migration/stats").json()["mode"] == "running"
