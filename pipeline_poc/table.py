"""The table of an entity, such as ``migrated_posts``, and the guarded upsert that writes its rows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import ColumnElement

from pipeline_poc.posts import POSTS
from pipeline_poc.records import Entity, Kind, StoredRecord

_STATEMENT_BYTES = 1_000_000
"""Of rows in a statement; the smallest packet that servers come with is 1 MiB."""

metadata = sa.MetaData()
_big_key = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_time = sa.DateTime().with_variant(mysql.DATETIME(), "mysql", "mariadb")
"""Without fractions. Where Dagster is imported, it makes SQLAlchemy say DATETIME(6) for a plain one, which MySQL takes
with no default of whole seconds."""
_SQL_TYPES: Mapping[Kind, type[sa.types.TypeEngine[Any]]] = {
    "integer": sa.Integer,
    "text": sa.Text,
    "flag": sa.Boolean,
}


class _NowAndOnUpdate(ColumnElement[datetime]):
    """The server's clock when a row is made and, where the server can, whenever it changes."""

    inherit_cache = True


@compiles(_NowAndOnUpdate)
def _now(_element: _NowAndOnUpdate, compiler: SQLCompiler, **_: Any) -> str:
    now = "CURRENT_TIMESTAMP"
    return now if compiler.dialect.name == "sqlite" else f"{now} ON UPDATE {now}"


@lru_cache
def table_of(entity: Entity) -> sa.Table:
    """Return the table of an entity.

    ``contentHash`` and ``version`` are null in rows of posts that the replaced service wrote.
    """
    return sa.Table(
        entity.table,
        metadata,
        sa.Column("id", _big_key, primary_key=True, autoincrement=True, doc="surrogate key; may have gaps"),
        sa.Column("externalId", sa.Integer, nullable=False, unique=True, doc="its id in the source"),
        *(sa.Column(value.name, _SQL_TYPES[value.kind], nullable=False, doc=value.meaning) for value in entity.values),
        sa.Column("ingestedAt", _time, nullable=False, doc="when it first arrived, UTC"),
        sa.Column("migratedAt", _time, nullable=False, doc="when this version was written, UTC"),
        sa.Column(
            "createdAt",
            _time,
            nullable=False,
            server_default=sa.text("CURRENT_TIMESTAMP"),
            doc="when the row was made, by the server's clock",
        ),
        sa.Column(
            "updatedAt",
            _time,
            nullable=False,
            server_default=_NowAndOnUpdate(),
            server_onupdate=sa.FetchedValue(),
            doc="when the row last changed, by the server's clock",
        ),
        sa.Column("contentHash", sa.CHAR(32), nullable=True, doc="digest of the values of the source"),
        sa.Column(
            "version",
            sa.BigInteger,
            nullable=True,
            doc="grows with each content; older versions never overwrite newer ones",
        ),
        mysql_charset="utf8mb4",
    )


migrated_posts = table_of(POSTS)


_END = ("contentHash", "version")
"""Assignments run from left to right: `version`, which the guard reads, must come last."""


def _updated(entity: Entity) -> tuple[str, ...]:
    return *entity.names, "migratedAt", *_END


def _written(entity: Entity) -> tuple[str, ...]:
    return "externalId", *entity.names, "ingestedAt", "migratedAt", *_END


def copied(entity: Entity) -> tuple[str, ...]:
    """Return the columns that hold what the raw store holds under the same name."""
    return tuple(name for name in _written(entity) if name != "migratedAt")


def create_sql(entity: Entity) -> str:
    """Return the statement that creates a table in MySQL, to be read by people."""
    text = str(sa.schema.CreateTable(table_of(entity)).compile(dialect=mysql.dialect()))
    return "\n".join(line.rstrip() for line in text.strip().expandtabs(4).splitlines() if line.strip())


class Upsert:
    """Writes rows, but never an older version over a newer one.

    For MySQL and MariaDB it builds the statements itself, with the driver's escaping of text: the
    driver's own way with parameters takes twice the time of this process.

    Args:
        entity: Whose rows.
        dialect: Of an engine that has connected: which words are needed depends on the server.
    """

    def __init__(self, entity: Entity, dialect: sa.Dialect) -> None:
        self._sql = upsert_sql(entity, dialect)
        # Where MySQL's text has its rows; SQLite's has question marks.
        placeholders = f"({', '.join(['%s'] * len(_written(entity)))})"
        self._head, self._is_built, self._tail = self._sql.partition(placeholders)
        kinds = ["integer", *(value.kind for value in entity.values), "time", "time", "text", "integer"]
        places = ["{:d}" if kind in ("integer", "flag") else "'{}'" for kind in kinds]
        self._row = f"({','.join(places)})"
        self._texts = [place for place, kind in enumerate(kinds) if kind == "text"]

    def run(self, connection: sa.Connection, posts: Sequence[StoredRecord], at: str) -> None:
        """Write posts in the transaction of a connection; ``at`` becomes ``migratedAt``."""
        rows = [(p.external_id, *p.values, in_text(p.ingested_at), at, p.content_hash, p.version) for p in posts]
        values = self._in_text(rows) if self._is_built else None
        if values is None:
            connection.exec_driver_sql(self._sql, rows)
            return
        for part in _parts(values):
            statement = f"{self._head}{','.join(part)}{self._tail}"
            # Without parameters percent signs are the posts' own.
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})

    def _in_text(self, rows: Sequence[tuple[Any, ...]]) -> list[str] | None:
        """Return rows as they stand in a statement; None where a value has another type than the entity says.

        Somebody else may have changed a document; what becomes of its types is for the driver to say.
        """
        from pymysql.converters import escape_string  # noqa: PLC0415 - SQLite needs no driver of MySQL

        columns: list[Iterable[Any]] = [*zip(*rows, strict=True)]
        try:
            for place in self._texts:
                columns[place] = map(escape_string, columns[place])
            return list(map(self._row.format, *columns))
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


def upsert_sql(entity: Entity, dialect: sa.Dialect) -> str:
    """Return the guarded upsert as text for the driver; its parameters are a row's values, the id first."""
    table = table_of(entity)
    if dialect.name == "sqlite":
        lite = sqlite.insert(table)
        newer = sa.or_(table.c.version.is_(None), lite.excluded.version > table.c.version)
        values: dict[str, Any] = {name: lite.excluded[name] for name in _updated(entity)}
        values["updatedAt"] = sa.text("CURRENT_TIMESTAMP")
        statement: sa.Insert = lite.on_conflict_do_update(index_elements=["externalId"], set_=values, where=newer)
    else:
        my = mysql.insert(table)
        newer = sa.or_(table.c.version.is_(None), my.inserted.version > table.c.version)
        statement = my.on_duplicate_key_update(
            [(name, sa.func.IF(newer, my.inserted[name], table.c[name])) for name in _updated(entity)]
        )
    return str(statement.compile(dialect=dialect, column_keys=list(_written(entity))))


@lru_cache(maxsize=1024)
def in_text(at: datetime) -> str:
    """Format an aware UTC time for DATETIME: fractions cut, since servers differ in rounding them.

    The posts of an ingestion share a few times.
    """
    return at.strftime("%Y-%m-%d %H:%M:%S")
