"""Job payloads that somebody else wrote to Redis: the one function with the id of a batch, or refused."""

import base64
import json
import sys
import zlib
from collections.abc import Iterator
from typing import Any, cast

import pytest
import redis
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rq.exceptions import DeserializationError
from rq.serializers import JSONSerializer

from pipeline_poc.migration_job import MigrationJob, RefusedJobError
from pipeline_poc.migration_queue import JOB_FUNCTION, MigrationQueue
from pipeline_poc.services import Services
from pipeline_poc.worker import run_worker

BATCH_ID = "20240102T030405678-0123abcd"
TEXTS = st.text(st.characters(codec=None), max_size=30) | st.sampled_from([BATCH_ID, JOB_FUNCTION, "os.system", "trap"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(TEXTS, children, max_size=3),
    max_leaves=8,
)
ALMOST_OURS = st.tuples(
    st.just(JOB_FUNCTION) | JSON, st.none() | JSON, st.just([BATCH_ID]) | st.just(BATCH_ID) | JSON, st.just({}) | JSON
).map(list)


Stream = list[tuple[bytes, dict[bytes, bytes]]]
NOTHING = base64.b64encode(zlib.compress(b""))


def handler(batch_id: str) -> dict[str, Any]:
    """Stand for the migration."""
    return {"batch": batch_id}


@pytest.fixture
def client(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    """Redis, and a worker's job class that has its function."""
    monkeypatch.setattr(MigrationJob, "handler", staticmethod(handler), raising=False)
    with redis.Redis.from_url(redis_url) as client:
        yield client


@hypothesis_settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    payload=st.binary(max_size=60) | (ALMOST_OURS | JSON).map(lambda value: json.dumps(value).encode()),
    compressed=st.booleans(),
)
@example(payload=json.dumps([JOB_FUNCTION, None, [BATCH_ID], {}]).encode(), compressed=True)
@example(payload=json.dumps([JOB_FUNCTION, None, 5, {}]).encode(), compressed=False)
@example(payload=json.dumps([JOB_FUNCTION, None, {BATCH_ID: 0}, {}]).encode(), compressed=False)
@example(payload=json.dumps([JOB_FUNCTION, None, [BATCH_ID], []]).encode(), compressed=True)
@example(payload=json.dumps([JOB_FUNCTION, 0, [BATCH_ID], ""]).encode(), compressed=False)
@example(payload=b"[" * 5000, compressed=True)
@example(payload=b'{"py/object": "trap.Thing"}', compressed=True)
def test_any_payload_is_ours_or_refused(client: redis.Redis, payload: bytes, compressed: bool) -> None:
    """Whatever a job carries, its function is the one there is, called with a batch's id, or it is refused."""
    modules = set(sys.modules)
    client.hset("rq:job:hostile", mapping={"data": zlib.compress(payload) if compressed else payload})
    job = MigrationJob.fetch("hostile", connection=client, serializer=JSONSerializer)
    try:
        function = job.func
    except (RefusedJobError, DeserializationError):
        assert json_or_none(payload) != [JOB_FUNCTION, None, [BATCH_ID], {}]
    else:
        assert function is handler
        name, instance, [batch_id], kwargs = json.loads(payload)
        assert (name, instance, kwargs) == (JOB_FUNCTION, None, {})
        assert function(*job.args, **job.kwargs) == {"batch": batch_id}
        assert batch_id == BATCH_ID
    assert all(name.startswith("encodings.utf_") for name in set(sys.modules) - modules)


def json_or_none(text: bytes) -> Any:
    """Return what a text says, None where it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def test_a_payload_that_unpacks_to_gigabytes(client: redis.Redis) -> None:
    """A payload that would take a thousand times as much once it is unpacked is refused without unpacking it."""
    packer = zlib.compressobj(9)
    bomb = b"".join([packer.compress(b"[" + b" " * (1 << 20)) for _ in range(32)]) + packer.flush()
    client.hset("rq:job:hostile", mapping={"data": bomb})
    job = MigrationJob.fetch("hostile", connection=client, serializer=JSONSerializer)
    with pytest.raises((RefusedJobError, DeserializationError)):
        _ = job.func
    assert len(job.data) < 10_000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data", json.dumps([JOB_FUNCTION, None, 5, {}])),
        ("data", b"\xff"),
        ("created_at", b"never"),
        ("status", b"\xff\xfe"),
        ("timeout", b"1" + b"0" * 30),
        ("meta", b"1e400"),
        ("dependency_ids", b"1e400"),
        ("retries_left", b"[[[["),
    ],
)
def test_a_hostile_job_stops_no_other(services: Services, client: redis.Redis, field: str, value: bytes | str) -> None:
    """A job that RQ stumbles over, in the place of a batch's own, ends no worker and buries no batch."""
    [hostile, *_] = services.ingest().batches
    services.tick()
    client.hset(f"rq:job:{hostile}", field, value)
    assert run_worker(services, burst=True) >= 9
    assert services.ledger.batches("dead") == []
    client.flushdb()
    services.tick()
    run_worker(services, burst=True)
    assert services.raw_store.counts().migrated == 100
    assert services.reconcile().ok


def test_nothing_in_redis_is_a_pickle(services: Services, client: redis.Redis) -> None:
    """Of jobs that wait, went well and failed, every byte in Redis is a text, and payload, result and meta are JSON."""
    services.ingest()
    services.tick()
    seen: set[str] = set()
    check_jobs(client, seen)
    services.queue.rq.enqueue_call("os.getcwd", job_id="hostile")
    run_worker(services, burst=True)
    check_jobs(client, seen)
    assert {"data", "meta", "status"} <= seen
    entries = [entry for key in client.scan_iter("rq:results:*") for _, entry in cast(Stream, client.xrange(key))]
    assert len(entries) == 11
    for entry in entries:
        assert isinstance(json.loads(base64.b64decode(entry.pop(b"return_value", b"e30="))), dict)
        assert zlib.decompress(base64.b64decode(entry.pop(b"exc_string", NOTHING))).decode() is not None
        assert all(value.isascii() for value in entry.values())


def check_jobs(client: redis.Redis, seen: set[str]) -> None:
    """Look at every field of every job."""
    for key in client.scan_iter("rq:job:*"):
        if client.type(key) != b"hash":
            continue
        for name, value in cast(dict[bytes, bytes], client.hgetall(key)).items():
            field = name.decode()
            seen.add(field)
            if field == "data":
                assert isinstance(json.loads(zlib.decompress(value)), list)
            elif field == "meta":
                assert isinstance(json.loads(value), dict)
            elif field == "exc_info":
                assert zlib.decompress(value).decode().startswith("Traceback")
            else:
                assert value.isascii(), field


def test_a_queue_of_jobs_only(services: Services) -> None:
    """The queue's serializer is JSON for whoever enqueues and for whoever executes."""
    assert isinstance(services.queue, MigrationQueue)
    assert services.queue.rq.serializer is JSONSerializer
