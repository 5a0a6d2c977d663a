"""The limit: the plainest copy from MongoDB to MySQL, with no queue, no safety and no orchestration."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from pymongo import MongoClient
from pymongo.collection import Collection
from pymysql import Connection
from pymysql.converters import escape_string

from bench.task import Task

Document = dict[str, Any]
Upsert = Callable[["Connection[Any]", list[Document]], None]

ROWS = 1000
"""Rows in a statement and transaction; as many as ours."""
_COLUMNS = ("externalId", "userId", "title", "body", "ingestedAt", "migratedAt", "contentHash", "version")
_FIELDS = {"_id": False} | dict.fromkeys((name for name in _COLUMNS if name != "migratedAt"), True)
_INTO = f"INSERT INTO migrated_posts ({', '.join(_COLUMNS)}) VALUES "  # noqa: S608 - our own names
_OR_UPDATE = " ON DUPLICATE KEY UPDATE " + ", ".join(
    f"{name} = VALUES({name})" for name in _COLUMNS if name not in ("externalId", "ingestedAt")
)
_BOUND = f"{_INTO}({', '.join(['%s'] * len(_COLUMNS))}){_OR_UPDATE}"


def collection(task: Task, client: "MongoClient[Document]") -> "Collection[Document]":
    """Return the posts."""
    return client[task.settings.mongo_database]["posts"]


def mongo(task: Task) -> "MongoClient[Document]":
    """Connect to MongoDB."""
    assert task.settings.mongo_url
    return MongoClient(task.settings.mongo_url.get_secret_value())


def chunks(documents: Iterable[Document], size: int = ROWS) -> Iterator[list[Document]]:
    """Cut a stream into lists."""
    chunk: list[Document] = []
    for document in documents:
        chunk.append(document)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def upsert_bound(connection: "Connection[Any]", documents: list[Document]) -> None:
    """Write rows as the driver does it with parameters."""
    now = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
    with connection.cursor() as cursor:
        cursor.executemany(
            _BOUND,
            [
                (
                    post["externalId"],
                    post["userId"],
                    post["title"],
                    post["body"],
                    post["ingestedAt"],
                    now,
                    post["contentHash"],
                    post["version"],
                )
                for post in documents
            ],
        )
    connection.commit()


def upsert_text(connection: "Connection[Any]", documents: list[Document]) -> None:
    """Write rows with a statement made by hand, which is as fast as one process can be."""
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    values = ",".join(
        f"({post['externalId']},{post['userId']},'{escape_string(post['title'])}','{escape_string(post['body'])}',"
        f"'{post['ingestedAt']:%Y-%m-%d %H:%M:%S}','{now}','{post['contentHash']}',{post['version']})"
        for post in documents
    )
    with connection.cursor() as cursor:
        cursor.execute(_INTO + values + _OR_UPDATE)
    connection.commit()


def mark(posts: "Collection[Document]", documents: list[Document]) -> None:
    """Flag posts in MongoDB; a range of ids is the quickest way to name them."""
    ids = {"$gte": documents[0]["externalId"], "$lte": documents[-1]["externalId"]}
    posts.update_many({"externalId": ids}, {"$set": {"migrated": True, "migratedAt": datetime.now(UTC)}})


def read(posts: "Collection[Document]") -> Iterator[Document]:
    """Stream what is not migrated."""
    return posts.find({"migrated": False}, _FIELDS, batch_size=5 * ROWS)


def _copy(task: Task, upsert: Upsert) -> None:
    with mongo(task) as client, closing(task.connect()) as connection:
        posts = collection(task, client)
        client.admin.command("ping")
        with task.meter.lap("copy", task.posts):
            for documents in chunks(read(posts)):
                upsert(connection, documents)
                mark(posts, documents)
    task.check_rows()


def bound(task: Task) -> None:
    """Copy with bound parameters."""
    _copy(task, upsert_bound)


def text(task: Task) -> None:
    """Copy with hand-built text."""
    _copy(task, upsert_text)


def stages(task: Task) -> None:
    """Measure each stage of the copy alone."""
    with mongo(task) as client, closing(task.connect()) as connection:
        posts = collection(task, client)
        client.admin.command("ping")
        with task.meter.lap("read", task.posts):
            documents = list(read(posts))
        upserts: tuple[tuple[str, Upsert], ...] = (("upsert, bound", upsert_bound), ("upsert, text", upsert_text))
        for name, upsert in upserts:
            with connection.cursor() as cursor:
                cursor.execute("TRUNCATE migrated_posts")
            with task.meter.lap(name, task.posts):
                for chunk in chunks(documents):
                    upsert(connection, chunk)
        with task.meter.lap("mark", task.posts):
            for chunk in chunks(documents):
                mark(posts, chunk)
    task.check_rows()
