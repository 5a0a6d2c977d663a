"""Stores that are away, dead or frozen: every endpoint answers in time, and tells the truth."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import pytest

from pipeline_poc.chaos.servers import MariaDB, Mongo, Redis, Server
from pipeline_poc.settings import Settings
from pipeline_poc_tests.acceptance.programs import until

pytestmark = pytest.mark.timeout(300)

STORES = {"mongo": "mongodb", "redis_server": "redis", "mariadb": "relationalStore"}
OTHERS_S = 3.0
"""What a report may take beyond its deadline: for the rest of the request, on a busy machine."""
READS = (
    "/data-ingestion/stats",
    "/data-migration/stats",
    "/data-migration/queue-jobs",
    "/data-migration/queue-jobs?state=failed",
    "/posts/1",
    "/quarantine",
    "/quarantine/items",
    "/dead-letters",
    "/dead-letters/items",
    "/reconciliation",
    "/metrics",
    "/pipeline/overview",
)
ACTIONS: tuple[tuple[str, dict[str, Any] | None], ...] = (
    ("/data-migration/trigger", None),
    ("/trigger-migration", None),
    ("/data-migration/resume", None),
    ("/quarantine/requeue", {"all": True}),
    ("/quarantine/discard", {"all": True, "because": "a test"}),
    ("/dead-letters/requeue", {"all": True}),
    ("/dead-letters/discard", {"all": True, "because": "a test"}),
    ("/reconciliation", None),
)


@pytest.fixture(params=[pytest.param(name, id=store) for name, store in STORES.items()])
def store(request: pytest.FixtureRequest) -> Iterator[tuple[str, Server]]:
    """Each of the stores in turn; up again afterwards."""
    server: Mongo | Redis | MariaDB = request.getfixturevalue(request.param)
    yield STORES[request.param], server
    server.start()


@pytest.fixture(params=["dead", "frozen"])
def outage(request: pytest.FixtureRequest, store: tuple[str, Server]) -> Callable[[], str]:
    """Take the store away; returns the component that is then away."""
    name, server = store

    def take_away() -> str:
        (server.kill if request.param == "dead" else server.pause)()
        return name

    return take_away


def statuses(report: dict[str, Any]) -> dict[str, str]:
    """Return the status of each store in a report."""
    return {name: report["checks"][f"{name}:responseTime"][0]["status"] for name in STORES.values()}


def test_health_tells_the_truth_in_time(
    web: httpx.Client, store: tuple[str, Server], outage: Callable[[], str], settings: Settings
) -> None:
    """Health names the store that is away, and only that one, within its deadline; and sees it come back."""
    until(lambda: set(statuses(web.get("/health").json()).values()) == {"pass"}, "all stores pass")
    away = outage()
    time.sleep(1.1)  # A report is answered again for a second.
    begun_at = time.monotonic()
    answer = web.get("/health")
    assert time.monotonic() - begun_at < settings.health_timeout_s + OTHERS_S
    report = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/health+json")
    assert statuses(report) == {name: "fail" if name == away else "pass" for name in STORES.values()}
    assert f"{away}:responseTime" in report["output"]
    assert web.get("/health/live").status_code == 200
    assert web.get("/health/ready").status_code == (503 if away in ("mongodb", "redis") else 200)
    store[1].start()
    until(lambda: set(statuses(web.get("/health").json()).values()) == {"pass"}, "all stores pass again")


def test_no_endpoint_hangs(web: httpx.Client, store: tuple[str, Server], outage: Callable[[], str]) -> None:
    """Every endpoint answers in time: with what it knows, or with 503, saying what is away and when to ask again."""
    assert web.get("/data-migration/stats").status_code == 200
    outage()
    time.sleep(1.1)  # What was read last is answered for a second.
    with ThreadPoolExecutor(len(READS) + len(ACTIONS)) as pool:
        asked = {path: pool.submit(web.get, path) for path in READS}
        asked |= {path: pool.submit(web.post, path, json=body) for path, body in ACTIONS}
    answers = {path: future.result() for path, future in asked.items()}
    for path, answer in answers.items():
        assert answer.status_code in (200, 202, 404, 503), (path, answer.text)
        if answer.status_code == 503:
            assert answer.headers["content-type"] == "application/problem+json", path
            assert int(answer.headers["retry-after"]) > 0
            assert answer.json()["detail"]
    for path in ("/metrics", "/pipeline/overview"):
        assert answers[path].status_code == 200
    if store[0] == "mongodb":
        overview = answers["/pipeline/overview"].json()
        assert overview["rawStore"]["stored"] is None
        assert (overview["mode"], overview["lagS"], overview["waiting"]["posts"]) == (None, None, None)
    store[1].start()
    until(lambda: web.get("/data-migration/stats").status_code == 200, "statistics are back")
    until(lambda: web.post("/trigger-migration").status_code == 200, "the migration can be triggered again")


def test_many_requests_to_a_frozen_store_do_no_harm(web: httpx.Client, mongo: Mongo) -> None:
    """However many requests wait for a frozen store, liveness answers, and health within its deadline."""
    assert web.get("/quarantine").status_code == 200
    mongo.pause()
    try:
        with httpx.Client(base_url=web.base_url, timeout=0.05, trust_env=False) as impatient:
            for _ in range(200):
                with suppress(httpx.TimeoutException):
                    impatient.get("/quarantine")
        assert web.get("/health/live").status_code == 200
        assert web.get("/health").status_code == 503
        assert web.get("/quarantine").status_code == 503
    finally:
        mongo.start()
    until(lambda: web.get("/quarantine").status_code == 200, "the quarantine can be looked at again")
