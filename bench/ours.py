"""Ours: the pipeline's own ways to migrate and to ingest."""

from datetime import UTC, datetime
from typing import Any

from pymongo import InsertOne

from bench.limit import collection, mongo
from bench.posts import hashed_posts
from bench.source import serving
from bench.task import Task
from pipeline_poc.clock import utc_now
from pipeline_poc.posts import POSTS
from pipeline_poc.records import StoredRecord, next_version
from pipeline_poc.services import Services

_BULK = 1000
_JOBS = 1000


def migrate(task: Task) -> None:
    """Run the use case in this process."""
    with Services(task.settings) as services:
        services.open_all()
        with task.meter.lap("migrate", task.posts):
            services.migrate()
    task.check_rows()


def upsert(task: Task) -> None:
    """Write rows alone, as a batch after the other."""
    now = utc_now()
    posts = [
        StoredRecord(hashed.external_id, hashed.record.content[1:], hashed.content_hash, next_version(None, now), now)
        for hashed in hashed_posts(1, task.posts)
    ]
    size = task.settings.batch_size
    with Services(task.settings) as services:
        services.relational_store.ping()
        with task.meter.lap("upsert", task.posts):
            for start in range(0, len(posts), size):
                services.relational_store.write(posts[start : start + size], utc_now())
    task.check_rows()


def enqueue(task: Task) -> None:
    """Put jobs on the queue, past the ledger."""
    ids = [f"20260101T000000000-{number:08x}" for number in range(_JOBS)]
    with Services(task.settings) as services:
        services.queue.ping()
        with task.meter.lap("enqueue") as lap:
            services.queue.enqueue(ids)
        lap.figures["enqueue a job, ms"] = lap.wall_s * 1000 / _JOBS


def ingest(task: Task) -> None:
    """Ingest from a source on this machine: everything new, then nothing changed, told in three ways."""
    with serving(task.posts) as url, Services(task.settings.model_copy(update={"source_url": url})) as services:
        services.raw_store.ping()
        services.ledger.batches("open", limit=1)
        with task.meter.lap("first ingestion", task.posts):
            new = services.ingest().new
        with task.meter.lap("unchanged, by ETag", task.posts):
            services.ingest()
        services.raw_store._state.update_many({}, {"$unset": {"etag": ""}})  # As if the source served none.
        with task.meter.lap("unchanged, by digest", task.posts):
            services.ingest()
        services.raw_store.forget_answers()
        with task.meter.lap("unchanged, by content", task.posts):
            unchanged = services.ingest().unchanged
    if new != task.posts or unchanged != task.posts:
        raise RuntimeError(f"{new} new and {unchanged} unchanged of {task.posts} posts")


def bulk_write(task: Task) -> None:
    """Write the documents that an ingestion stores, made beforehand, and nothing else."""
    now = datetime.now(UTC)
    documents: list[dict[str, Any]] = [
        {
            "externalId": hashed.external_id,
            "ingestedAt": now,
            **dict(zip(POSTS.names, hashed.record.content[1:], strict=True)),
            "contentHash": hashed.content_hash,
            "version": next_version(None, now),
            "changedAt": now,
            "batchId": "20260101T000000000-00000000",
            "migrated": False,
            "migratedAt": None,
        }
        for hashed in hashed_posts(1, task.posts)
    ]
    operations = [InsertOne(document) for document in documents]
    with mongo(task) as client:
        posts = collection(task, client)
        client.admin.command("ping")
        with task.meter.lap("bulk_write", task.posts):
            for start in range(0, len(operations), _BULK):
                posts.bulk_write(operations[start : start + _BULK], ordered=False)
