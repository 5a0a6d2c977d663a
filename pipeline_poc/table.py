"""The table ``migrated_posts``, and the guarded upsert that writes its rows."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from pymysql.converters import escape_string
from sqlalchemy.dialects import mysql, sqlite

from pipeline_poc.posts import StoredPost

_STATEMENT_BYTES = 1_000_000
"""Of rows in a statement; the smallest packet that servers come with is 1 MiB."""

metadata = sa.MetaData()
_big_key = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
migrated_posts = sa.Table(
    "migrated_posts",
    metadata,
    sa.Column("id", _big_key, primary_key=True, autoincrement=True),
    sa.Column("externalId", sa.Integer, nullable=False, unique=True),
    sa.Column("userId", sa.Integer, nullable=False),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("ingestedAt", sa.DateTime, nullable=False),
    sa.Column("migratedAt", sa.DateTime, nullable=False),
    sa.Column("createdAt", sa.DateTime, nullable=False, server_default=sa.text("CURRENT_TIMESTAMP")),
    sa.Column(
        "updatedAt",
        sa.DateTime,
        nullable=False,
        server_default=sa.text("CURRENT_TIMESTAMP"),
        server_onupdate=sa.FetchedValue(),
    ),
    sa.Column("contentHash", sa.CHAR(32), nullable=True),
    sa.Column("version", sa.BigInteger, nullable=True),
    mysql_charset="utf8mb4",
)
"""``contentHash`` and ``version`` are null in rows that the replaced service wrote."""

_WRITTEN = ("externalId", "userId", "title", "body", "ingestedAt", "migratedAt", "contentHash", "version")
_UPDATED = ("userId", "title", "body", "migratedAt", "contentHash", "version")
_PLACEHOLDERS = f"({', '.join(['%s'] * len(_WRITTEN))})"
"""Where MySQL's text has its rows; SQLite's has question marks."""

COLUMNS = {
    "id": "surrogate key; may have gaps",
    "externalId": "the post's id in the source",
    "userId": "the author's id in the source",
    "title": "the post's title",
    "body": "the post's text",
    "ingestedAt": "when the post first arrived, UTC",
    "migratedAt": "when this version was written, UTC",
    "createdAt": "when the row was made, by the server's clock",
    "updatedAt": "when the row last changed, by the server's clock",
    "contentHash": "digest of the four values of the source",
    "version": "grows with each content of the post; older versions never overwrite newer ones",
}
"""What each column means."""


def column_types() -> dict[str, str]:
    """Return the SQL type of each column."""
    return {column.name: str(column.type) for column in migrated_posts.columns}


Row = tuple[int, int, str, str, str, str, str, int]
"""What is written, in the order of `_WRITTEN`; times are text."""


class Upsert:
    """Writes rows, but never an older version over a newer one.

    For MySQL and MariaDB it builds the statements itself, with the driver's escaping of text: the
    driver's own way with parameters takes twice the time of this process.

    Args:
        dialect: Of an engine that has connected: which words are needed depends on the server.
    """

    def __init__(self, dialect: sa.Dialect) -> None:
        self._sql = upsert_sql(dialect)
        self._head, self._is_built, self._tail = self._sql.partition(_PLACEHOLDERS)

    def run(self, connection: sa.Connection, posts: Sequence[StoredPost], at: str) -> None:
        """Write posts in the transaction of a connection; ``at`` becomes ``migratedAt``."""
        rows: list[Row] = [
            (p.external_id, p.user_id, p.title, p.body, in_text(p.ingested_at), at, p.content_hash, p.version)
            for p in posts
        ]
        values = _values(rows) if self._is_built else None
        if values is None:
            connection.exec_driver_sql(self._sql, rows)
            return
        for part in _parts(values):
            statement = f"{self._head}{','.join(part)}{self._tail}"
            # Without parameters percent signs are the posts' own.
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def _values(rows: Iterable[Row]) -> list[str] | None:
    """Return rows as they stand in a statement; None where a value has another type than `Row` says.

    Somebody else may have changed a document; what becomes of its types is for the driver to say.
    """
    try:
        return [
            f"({external_id:d},{user_id:d},'{escape_string(title)}','{escape_string(body)}',"
            f"'{ingested_at}','{migrated_at}','{escape_string(content_hash)}',{version:d})"
            for external_id, user_id, title, body, ingested_at, migrated_at, content_hash, version in rows
        ]
    except (AttributeError, TypeError, ValueError):
        return None


def _parts(values: Iterable[str]) -> Iterator[list[str]]:
    """Divide rows among statements, each of a size that servers take."""
    part: list[str] = []
    size = 0
    for text in values:
        length = len(text) if text.isascii() else 4 * len(text)
        if part and size + length > _STATEMENT_BYTES:
            yield part
            part, size = [], 0
        part.append(text)
        size += length
    yield part


def upsert_sql(dialect: sa.Dialect) -> str:
    """Return the guarded upsert as text for the driver; its parameters are the columns `_WRITTEN`."""
    table = migrated_posts.c
    if dialect.name == "sqlite":
        lite = sqlite.insert(migrated_posts)
        newer = sa.or_(table.version.is_(None), lite.excluded.version > table.version)
        values: dict[str, Any] = {name: lite.excluded[name] for name in _UPDATED}
        values["updatedAt"] = sa.text("CURRENT_TIMESTAMP")
        statement: sa.Insert = lite.on_conflict_do_update(index_elements=["externalId"], set_=values, where=newer)
    else:
        my = mysql.insert(migrated_posts)
        newer = sa.or_(table.version.is_(None), my.inserted.version > table.version)
        # Assignments run from left to right: `version`, which the guard reads, must come last.
        statement = my.on_duplicate_key_update(
            [(name, sa.func.IF(newer, my.inserted[name], table[name])) for name in _UPDATED]
        )
    return str(statement.compile(dialect=dialect, column_keys=list(_WRITTEN)))


@lru_cache(maxsize=1024)
def in_text(at: datetime) -> str:
    """Format an aware UTC time for DATETIME: fractions cut, since servers differ in rounding them.

    The posts of an ingestion share a few times.
    """
    return at.strftime("%Y-%m-%d %H:%M:%S")
