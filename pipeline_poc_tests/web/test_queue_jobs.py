"""The list of jobs: every state, page by page, whatever somebody wrote into Redis."""

import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import sqlalchemy as sa

from pipeline_poc.clock import utc_now
from pipeline_poc.migration_queue import JOB_STATES
from pipeline_poc.services import Services
from pipeline_poc.settings import Settings
from pipeline_poc.worker import run_worker
from pipeline_poc_tests.acceptance.programs import until
from pipeline_poc_tests.web.contract import checked
from pipeline_poc_tests.web.planting import at, problem, store

pytestmark = pytest.mark.usefixtures("kept_signals")

JOBS = "/data-migration/queue-jobs"
OLD_NAMES = {
    "waiting": "queued",
    "active": "started",
    "delayed": "scheduled",
    "completed": "finished",
    "failed": "failed",
}


@pytest.fixture
def relational_url(tmp_path: Path) -> str:
    """SQLite: which kind it is does not matter here."""
    return f"sqlite:///{tmp_path / 'relational.db'}"


@pytest.fixture
def api(web: httpx.Client) -> httpx.Client:
    """A client whose answers are held against the schema."""
    return checked(web)


@pytest.fixture
def registry(services: Services, redis_client: redis.Redis) -> Callable[[str], str]:
    """Returns the key of the jobs in a state."""
    queue = services.queue.rq
    keys = {
        "started": queue.started_job_registry.key,
        "scheduled": queue.scheduled_job_registry.key,
        "finished": queue.finished_job_registry.key,
        "failed": queue.failed_job_registry.key,
        "deferred": queue.deferred_job_registry.key,
    }
    return keys.__getitem__


def walk(api: httpx.Client, state: str, limit: int = 20) -> list[str]:
    """Return the ids of all jobs in a state, in the order of the pages."""
    found: list[str] = []
    cursor: dict[str, Any] = {}
    while True:
        answer = api.get(JOBS, params={"state": state, "limit": limit, **cursor}).json()
        page = [job["id"] for job in answer["jobs"][state]]
        found += page
        if answer["nextCursor"] is None:
            return found
        assert len(page) == limit
        cursor = {"cursor": answer["nextCursor"]}


def encoded(text: str) -> str:
    """Return a cursor that says so."""
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def test_every_state(
    api: httpx.Client, services: Services, redis_client: redis.Redis, registry: Callable[[str], str]
) -> None:
    """Jobs are listed under their state, also by its older name; without a state, the newest of each."""
    batches = store(services, range(1, 61))
    services.queue.enqueue(batches)
    for state, batch_id in zip(JOB_STATES[1:], batches[1:], strict=True):
        redis_client.lrem(services.queue.rq.key, 0, batch_id)
        entry = f"{batch_id}:execution" if state == "started" else batch_id
        redis_client.zadd(registry(state), {entry: utc_now().timestamp() + 3600})
    services.ledger.start(batches[1], "somebody", utc_now())
    expected: dict[str, str] = dict(zip(JOB_STATES, batches, strict=True))
    for name, batch_id in expected.items():
        answer = api.get(JOBS, params={"state": name}).json()
        [job] = answer["jobs"].pop(name)
        assert (answer["jobs"], answer["nextCursor"]) == ({}, None)
        assert (job["id"], job["batch"], job["state"], job["posts"]) == (batch_id, batch_id, name, 10)
        assert at(job["enqueuedAt"]) <= utc_now()
        assert (job["nextRetryAt"] is not None) == (name == "scheduled")
        assert job["error"] is None
    for old, named in OLD_NAMES.items():
        assert [job["state"] for job in api.get(JOBS, params={"state": old}).json()["jobs"][old]] == [named]
    everything = api.get(JOBS).json()
    assert {name: [job["id"] for job in jobs] for name, jobs in everything["jobs"].items()} == {
        old: [expected[state]] for old, state in OLD_NAMES.items()
    }
    counts = everything["counts"]
    assert counts.pop("paused") is False
    assert set(counts.values()) == {1}
    problem(api.get(JOBS, params={"state": "dancing"}), 422)
    for limit in (0, 101, "x"):
        problem(api.get(JOBS, params={"limit": limit}), 422)


def spread(services: Services, client: redis.Redis, key: str, state: str, ids: Sequence[str]) -> None:
    """Put jobs into a state, oldest first; many of them in the same second."""
    services.queue.enqueue(ids)
    if state != "queued":
        client.delete(services.queue.rq.key)
        client.zadd(key, {job_id: 2_000_000_000 + index // 7 for index, job_id in enumerate(ids)})


@pytest.mark.parametrize("state", ["queued", "failed"])
def test_pages(
    api: httpx.Client, services: Services, redis_client: redis.Redis, registry: Callable[[str], str], state: str
) -> None:
    """All jobs are found, each once, newest first; those that go away meanwhile hide none of the others."""
    ids = [f"job-{number:03}" for number in range(250)]
    spread(services, redis_client, registry("failed"), state, ids)
    assert walk(api, state) == walk(api, state, 100) == walk(api, state, 50) == ids[::-1]
    first = api.get(JOBS, params={"state": state, "limit": 100}).json()
    gone = ids[:151] if state == "queued" else [ids[150]]
    for job_id in gone:  # The one that the cursor names; queues lose the oldest first.
        (redis_client.lrem(services.queue.rq.key, 0, job_id) if state == "queued" else None)
        redis_client.zrem(registry("failed"), job_id)
    rest = api.get(JOBS, params={"state": state, "limit": 100, "cursor": first["nextCursor"]}).json()
    shown = {job["id"] for job in first["jobs"][state] + rest["jobs"][state]}
    assert set(ids) - set(gone) - shown <= set(ids[:60])
    if state == "queued":
        assert (rest["jobs"]["queued"], rest["nextCursor"]) == ([], None)
    else:
        [last_of_rest] = rest["jobs"]["failed"][-1:]
        oldest = ids.index(last_of_rest["id"])
        assert set(ids[oldest:]) - set(gone) <= shown


def test_pages_while_jobs_come(api: httpx.Client, services: Services) -> None:
    """Jobs that are enqueued while somebody turns the pages move none of the older ones."""
    ids = [f"job-{number:03}" for number in range(40)]
    services.queue.enqueue(ids)
    first = api.get(JOBS, params={"state": "queued", "limit": 20}).json()
    services.queue.enqueue([f"new-{number}" for number in range(30)])
    second = api.get(JOBS, params={"state": "queued", "limit": 20, "cursor": first["nextCursor"]}).json()
    assert [job["id"] for page in (first, second) for job in page["jobs"]["queued"]] == ids[::-1]
    assert second["nextCursor"] is None


WRONG_CURSORS = (
    "x",
    "é",
    "!!!!",
    "e30",
    encoded("null"),
    encoded('["a"]'),
    encoded('["a", "b"]'),
    encoded('["a", 1, 2]'),
    encoded("[7, 1]"),
    encoded('["a", NaN]'),
    encoded('["a", -Infinity]'),
    encoded(f'["a", {"9" * 330}]'),
    encoded('["\\ud800", 1]'),
    encoded("[" * 300),
)


def test_wrong_cursors(api: httpx.Client, services: Services) -> None:
    """A cursor that no page returned is refused, in every state."""
    services.queue.enqueue(["a"])
    for cursor in WRONG_CURSORS:
        for state in ("queued", "failed"):
            problem(api.get(JOBS, params={"state": state, "cursor": cursor}), 422)


def test_200_000_jobs(api: httpx.Client, redis_client: redis.Redis, registry: Callable[[str], str]) -> None:
    """A registry of 200,000 jobs is shown page by page like any other."""
    number = 200_000
    with redis_client.pipeline(transaction=False) as pipeline:
        for start in range(0, number, 10_000):
            pipeline.zadd(registry("finished"), {f"job-{i:06}": 1e9 + i for i in range(start, start + 10_000)})
        pipeline.execute()
    cursor: dict[str, Any] = {}
    for page in range(4):
        answer = api.get(JOBS, params={"state": "finished", "limit": 100, **cursor}).json()
        newest = number - 1 - page * 100
        assert [job["id"] for job in answer["jobs"]["finished"]] == [f"job-{newest - i:06}" for i in range(100)]
        cursor = {"cursor": answer["nextCursor"]}
    assert answer["counts"]["finished"] == number


HOSTILE: dict[str, dict[str, Any]] = {
    "gone": {},
    "html": {"meta": json.dumps({"error": {"type": "<script>alert(1)</script>", "message": "<img onerror=x>"}})},
    "huge": {"meta": json.dumps({"error": {"type": "T" * 100_000, "message": "M" * 1_000_000}})},
    "message-only": {"meta": json.dumps({"error": {"message": "x"}})},
    "strange-types": {"meta": json.dumps({"error": {"type": {"a": [1]}, "message": ["x", None]}})},
    "error-no-object": {"meta": json.dumps({"error": "x"})},
    "meta-no-object": {"meta": json.dumps([1, 2])},
    "meta-no-json": {"meta": b"\x80\x04pickle"},
    "meta-nested": {"meta": "[" * 100_000},
    "no-times": {"enqueued_at": "yesterday", "started_at": "", "ended_at": "32.13.2024"},
    "no-status": {"status": "dancing"},
    "no-data": {"data": None},
    "pickled-data": {"data": b"\x80\x04cos\nsystem\n"},
    "no-worker": {"worker_name": b"\xff\xfe"},
    "no-numbers": {"number_of_retries": "many", "timeout": "long"},
    "surrogate": {"meta": b'{"error": {"type": "\\ud800", "message": "\\udfff\\u0000"}}'},
}


def test_hostile_jobs(
    api: httpx.Client, services: Services, redis_client: redis.Redis, registry: Callable[[str], str]
) -> None:
    """Whatever a job's hash holds, the list shows its id, errors short and as text, and all the others."""
    for job_id, fields in HOSTILE.items():
        services.queue.enqueue([job_id])
        for name, value in fields.items():
            if value is None:
                redis_client.hdel(f"rq:job:{job_id}", name)
            else:
                redis_client.hset(f"rq:job:{job_id}", name, value)
    redis_client.delete("rq:job:gone", services.queue.rq.key)
    redis_client.zadd(registry("failed"), dict.fromkeys(HOSTILE, 2e9))
    redis_client.zadd(registry("failed"), {b"\xff\xfe": 1e9})
    answer = api.get(JOBS, params={"state": "failed", "limit": 100})
    assert len(answer.content) < 50_000
    assert answer.headers["x-content-type-options"] == "nosniff"
    jobs = {job["id"]: job for job in answer.json()["jobs"]["failed"]}
    assert jobs.keys() == {*HOSTILE, "\ufffd\ufffd"}
    assert jobs["html"]["error"] == {"type": "<script>alert(1)</script>", "message": "<img onerror=x>"}
    assert [len(text) for text in jobs["huge"]["error"].values()] == [500, 500]
    for name in ("gone", "error-no-object", "meta-no-object", "meta-no-json", "no-data"):
        assert jobs[name]["error"] is None
    assert api.get("/pipeline/overview").status_code == 200
    assert api.get("/metrics").status_code == 200
    assert walk(api, "failed", 3)[-1] == "\ufffd\ufffd"


def test_an_attempt_that_failed(api: httpx.Client, services: Services, settings: Settings, sql: sa.Engine) -> None:
    """Jobs that met an outage show why, when they are tried again and how often they were; statistics count it."""
    services.settings = settings.model_copy(update={"retry_base_s": 1e6, "retry_cap_s": 1e6})
    store(services, range(1, 11))
    services.tick()
    with sql.begin() as connection:
        connection.execute(sa.text("ALTER TABLE migrated_posts RENAME TO away"))
    run_worker(services, burst=True)
    [job] = api.get(JOBS, params={"state": "scheduled"}).json()["jobs"]["scheduled"]
    assert (job["attempt"], job["maxAttempts"]) == (1, settings.retry_max_attempts)
    assert at(job["nextRetryAt"]) > utc_now()
    assert job["error"]["type"] == "ServiceUnavailable"
    assert "SQL_URL" in job["error"]["message"]
    assert job["failedReason"] == job["error"]["message"]
    assert job["worker"].startswith(services.worker_name)
    until(
        lambda: api.get("/data-migration/stats").json()["attempts"]["retries"] == {"ServiceUnavailable": 1},
        "the statistics show the retry",
    )
    assert 'pipeline_retries_total{reason="ServiceUnavailable"} 1.0' in api.get("/metrics").text
    with sql.begin() as connection:
        connection.execute(sa.text("ALTER TABLE away RENAME TO migrated_posts"))


def test_a_job_that_ended(api: httpx.Client, services: Services) -> None:
    """A job that went well shows its numbers; a refused one its error, but neither stack nor payload."""
    [batch_id] = store(services, range(1, 11))
    services.tick()
    services.queue.rq.enqueue_call("os.system", args=("touch hunter2",), job_id="hostile")
    run_worker(services, burst=True)
    [finished] = api.get(JOBS, params={"state": "finished"}).json()["jobs"]["finished"]
    assert (finished["id"], finished["attempt"], finished["error"]) == (batch_id, 1, None)
    assert finished["result"] == {"migrated": 10, "quarantined": 0}
    assert at(finished["enqueuedAt"]) <= at(finished["startedAt"]) <= at(finished["endedAt"])
    assert (finished["processedAt"], finished["finishedAt"]) == (finished["startedAt"], finished["endedAt"])
    answer = api.get(JOBS, params={"state": "failed"})
    [failed] = answer.json()["jobs"]["failed"]
    assert (failed["id"], failed["error"]["type"]) == ("hostile", "RefusedJobError")
    for secret in ("hunter2", "Traceback", ".py"):
        assert secret not in answer.text
