"""The peers: what people would use instead, each set up as its documentation asks for."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import dlt
import pyarrow as pa
from redis import Redis
from rq import Queue, SimpleWorker

from bench.limit import Document, chunks, collection, mark, mongo, read, upsert_bound
from bench.task import Task

_PAGE = 5000
"""Posts that are handed to dlt at once."""
_opened: dict[str, Any] = {}
"""The stores, for jobs of RQ, which get plain values only."""


def _load(task: Task, pages: Callable[[Iterator[Document]], Iterator[Any]]) -> None:
    """Run dlt; it does not mark what it has read, and need not here."""
    # Its telemetry would time the network.
    os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"
    os.environ["RUNTIME__LOG_LEVEL"] = "ERROR"
    assert task.settings.sql_url
    url = task.settings.sql_url.get_secret_value()
    pipeline = dlt.pipeline(
        "peer",
        pipelines_dir="dlt",
        dataset_name=url.rpartition("/")[2],
        # Without a key its merge would compare every row with every other.
        destination=dlt.destinations.sqlalchemy(url, create_primary_keys=True),
    )
    with mongo(task) as client:
        client.admin.command("ping")
        resource = dlt.resource(
            pages(read(collection(task, client))),
            name="posts",
            write_disposition="merge",
            primary_key="externalId",
        )
        with task.meter.lap("load", task.posts):
            pipeline.run(resource).raise_on_failed_jobs()
    task.check_rows("posts")


def dlt_dicts(task: Task) -> None:
    """Load documents with dlt."""
    _load(task, lambda documents: chunks(documents, _PAGE))


def dlt_arrow(task: Task) -> None:
    """Load Arrow tables with dlt."""
    _load(task, lambda documents: (pa.Table.from_pylist(chunk) for chunk in chunks(documents, _PAGE)))


def rq_each(task: Task) -> None:
    """Migrate with one job of RQ for each post, in its quickest worker, which does not fork."""
    assert task.settings.redis_url
    redis = Redis.from_url(task.settings.redis_url.get_secret_value())
    queue = Queue("each", connection=redis)
    worker = SimpleWorker([queue], connection=redis)
    with mongo(task) as client, closing(task.connect()) as connection:
        posts = collection(task, client)
        ids = [post["externalId"] for post in posts.find({"migrated": False}, {"externalId": True})]
        _opened.update(posts=posts, connection=connection)
        with task.meter.lap("enqueue and work", task.posts):
            queue.enqueue_many([Queue.prepare_data(migrate_one, args=(external_id,)) for external_id in ids])
            worker.work(burst=True, logging_level="WARNING")
    task.check_rows()


def migrate_one(external_id: int) -> None:
    """Migrate a post: read, upsert, mark."""
    posts, connection = _opened["posts"], _opened["connection"]
    document = posts.find_one({"externalId": external_id})
    upsert_bound(connection, [document])
    mark(posts, [document])
