"""The relational store: one row a post in ``migrated_posts``, on MySQL, MariaDB or SQLite.

Each entity has a table of its own; what is said of posts holds for the records of the others.

Rows are written with one guarded upsert: a row never goes back to an older version of its post,
whatever is retried, repeated or overtaken. Times are UTC without fractions.
"""

import fcntl
import logging
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.schema import CreateTable

from pipeline_poc import failpoints
from pipeline_poc.errors import DataError, SchemaError, ServiceUnavailable, SettingsError, invalid_url, mask_secrets
from pipeline_poc.posts import POSTS
from pipeline_poc.records import Entity, StoredRecord, content_hash
from pipeline_poc.schema import Schema, Upgrade
from pipeline_poc.table import Upsert, in_text, metadata, table_of

logger = logging.getLogger(__name__)

SCHEMA_VERSION = "0001"
"""The Alembic revision that this code needs.

A revision's name is its number, and, where code for older ones can work with it, from which one on: `0002_from_0001`.
"""

_NAME = "The relational store"
_SETTING = "SQL_URL"
_REVISION = re.compile(r"(\d{4})(?:_from_(\d{4}))?")
_SCHEMA_LOCK = "pipeline_poc_schema"
_SCHEMA_LOCK_S = 60
_WAL_TRIES = 100
_WAL_PAUSE_S = 0.1
_ROWS = 1000
"""Rows in one statement and transaction; more gain nothing."""


class RowState(NamedTuple):
    """A row as reconciliation sees it; the hash is that of the values it holds now."""

    external_id: int
    content_hash: str
    version: int


class RelationalStore:
    """The tables of some entities, and above all that of one of them, the first.

    Args:
        url: SQLAlchemy URL of a MySQL, MariaDB or SQLite database; may hold a password.
        timeout_s: Longest wait for a connection, in seconds.
        answer_timeout_s: Longest wait for the answer to a statement, in seconds.
        entities: Whose tables belong to the schema.

    Attributes:
        entity: Whose table is read and written.

    Raises (every method):
        ServiceUnavailable: The store can't be reached, refuses the login or is out of order.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        answer_timeout_s: float = 60.0,
        entities: Sequence[Entity] = (POSTS,),
    ) -> None:
        self._url = url
        self._entities = entities
        self.entity = entities[0]
        try:
            parsed = make_url(url)
        except (sa.exc.ArgumentError, ValueError) as error:
            raise invalid_url(_SETTING, url, error) from None
        _check_tls(parsed, url)
        if parsed.drivername in ("mysql", "mariadb"):
            parsed = parsed.set(drivername=f"{parsed.drivername}+pymysql")
        self._engine = (
            _sqlite_engine(parsed, timeout_s)
            if _is_sqlite(parsed)
            else _mysql_engine(parsed, timeout_s, answer_timeout_s)
        )
        self._upsert: Upsert | None = None

    def of(self, entity: Entity) -> Self:
        """Return the same connections, for the table of another entity."""
        other = copy(self)
        other.entity, other._upsert = entity, None
        return other

    @property
    def _table(self) -> sa.Table:
        return table_of(self.entity)

    @property
    def shown_url(self) -> str:
        """The URL without secrets, fit for logs and screens."""
        return mask_secrets(self._url)

    @property
    def system(self) -> str:
        """What it is by its URL: ``mysql``, ``mariadb`` or ``sqlite``."""
        return self._engine.dialect.name

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def ping(self) -> None:
        """Check that the store answers and accepts the login."""
        with self._translated(), self._engine.connect() as connection:
            connection.execute(sa.text("SELECT 1"))

    def schema(self) -> Schema:
        """Return the version that the database has.

        Raises:
            SchemaError: It is another program's.
        """
        version = None
        with self._translated(), self._engine.connect() as connection:
            present = sa.inspect(connection).get_table_names()
            if "alembic_version" in present:
                version = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
        number, works_from = _numbers(version or "0000")
        if number is None:
            raise SchemaError(
                f"{_NAME} at {self.shown_url} ({_SETTING}) has schema version {version}, which is none of "
                "pipeline_poc: name a database of its own"
            )
        needed = _numbers(SCHEMA_VERSION)[0] or 0
        missing = [entity.table for entity in self._entities if entity is not POSTS and entity.table not in present]
        return Schema(
            _NAME,
            _SETTING,
            self.shown_url,
            needed=needed,
            found=number,
            works_from=works_from,
            missing=tuple(f"the table {name}" for name in missing) if number else (),
        )

    def ensure_schema(self, *, may_upgrade: bool = True) -> None:
        """Create or upgrade the table where needed; safe with several processes at once.

        Raises:
            SchemaError: The schema is too new for this code, or has to be upgraded and may not.
        """
        if self.schema().must_be_upgraded(may_upgrade=may_upgrade):
            self.upgrade_schema()

    def upgrade_schema(self) -> Upgrade:
        """Create or upgrade the table; idempotent, and safe with several processes at once.

        Raises:
            SchemaError: The schema is too new for this code.
        """
        before = self.schema()
        if not before.must_be_upgraded(may_upgrade=True):
            return Upgrade(before, before)
        from pipeline_poc.migrations import upgrade  # noqa: PLC0415 - Alembic is needed once in the life of a database

        with self._translated(), self._schema_lock():
            before = self.schema()
            if before.must_be_upgraded(may_upgrade=True):
                upgrade(self._engine)
                metadata.create_all(self._engine, self._tables_beside_posts)
            return Upgrade(before, self.schema())

    @property
    def _tables_beside_posts(self) -> list[sa.Table]:
        """The tables that have no history of revisions: they are made as the entities are now."""
        return [table_of(entity) for entity in self._entities if entity is not POSTS]

    def schema_sql(self) -> str:
        """Return what `upgrade_schema` would execute now; nothing where there is nothing to do."""
        if not self.schema().must_be_upgraded(may_upgrade=True):
            return ""
        from pipeline_poc.migrations import upgrade_sql  # noqa: PLC0415 - as above

        with self._translated(), self._engine.connect() as connection:
            present = sa.inspect(connection).get_table_names()
            made = [CreateTable(table) for table in self._tables_beside_posts if table.name not in present]
            texts = [str(each.compile(dialect=self._engine.dialect)).strip() for each in made]
            return "".join([upgrade_sql(self._engine), *(f"{text};\n\n" for text in texts)])

    @contextmanager
    def _schema_lock(self) -> Iterator[None]:
        """Keep other processes from upgrading at the same time."""
        url = self._engine.url
        if _is_sqlite(url):
            with Path(f"{url.database}.lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            return
        with self._engine.connect() as connection:
            if connection.execute(sa.text(f"SELECT GET_LOCK('{_SCHEMA_LOCK}', {_SCHEMA_LOCK_S})")).scalar() != 1:
                raise self._unavailable(f"another process has been upgrading the schema for {_SCHEMA_LOCK_S} s")
            try:
                yield
            finally:
                # The lock belongs to the connection, which the pool would keep open.
                connection.execute(sa.text(f"SELECT RELEASE_LOCK('{_SCHEMA_LOCK}')"))

    def write(self, posts: Sequence[StoredRecord], at: datetime) -> dict[int, tuple[str, str]]:
        """Upsert posts, sorted by id, in transactions of 1,000; older versions never win.

        Args:
            posts: At most one version of each post.
            at: Becomes ``migratedAt``.

        Returns:
            Reason code and message for each id that the store refuses; all others are committed.
        """
        refused: dict[int, tuple[str, str]] = {}
        for start in range(0, len(posts), _ROWS):
            self._write_or_split(posts[start : start + _ROWS], in_text(at), refused)
        return refused

    def _write_or_split(self, posts: Sequence[StoredRecord], at: str, refused: dict[int, tuple[str, str]]) -> None:
        try:
            self._write_chunk(posts, at)
        except DataError as error:
            if len(posts) == 1:
                refused[posts[0].external_id] = (error.code, str(error))
                return
            middle = len(posts) // 2
            self._write_or_split(posts[:middle], at, refused)
            self._write_or_split(posts[middle:], at, refused)

    def _write_chunk(self, posts: Sequence[StoredRecord], at: str) -> None:
        with self._translated(), self._engine.begin() as connection:
            if self._upsert is None:
                # Which words it needs is known once the first connection told the server's version.
                self._upsert = Upsert(self.entity, self._engine.dialect)
            self._upsert.run(connection, posts, at)
            failpoints.reach("migration.uncommitted")

    def count(self) -> int:
        """Count the rows."""
        with self._translated(), self._engine.connect() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(self._table)).scalar_one()

    def sample(self, limit: int) -> list[dict[str, Any]]:
        """Return the rows with the lowest ids, column by column."""
        query = sa.select(self._table).order_by(self._table.c.externalId).limit(limit)
        with self._translated(), self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def row(self, external_id: int) -> dict[str, Any] | None:
        """Look the row of a post up, column by column; times are UTC without a zone."""
        query = sa.select(self._table).where(self._table.c.externalId == external_id)
        with self._translated(), self._engine.connect() as connection:
            found = connection.execute(query).mappings().first()
        return dict(found) if found is not None else None

    def rows(self, external_ids: Sequence[int] | None = None, *, page: int = 5000) -> Iterator[RowState]:
        """Stream the rows, or those of these posts, by id; memory is bounded by a page."""
        table = self._table.c
        query = sa.select(table.version, *(table[name] for name in self.entity.stored_as.values()))
        if external_ids is not None:
            query = query.where(table.externalId.in_(external_ids))
        last = -(2**31)
        while True:
            part = query.where(table.externalId > last).order_by(table.externalId).limit(page)
            with self._translated(), self._engine.connect() as connection:
                found = connection.execute(part).all()
            for version, *content in found:
                yield RowState(content[0], content_hash(*content), version or 0)
            if len(found) < page:
                return
            last = found[-1].externalId

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (UnicodeError, OverflowError) as error:
            raise DataError("relational_encoding", f"the value can't be encoded: {error}") from error
        except sa.exc.DBAPIError as error:
            code, reason = _code_and_reason(error)
            if isinstance(error, (sa.exc.DataError, sa.exc.IntegrityError)) or code in _DATA_CODES:
                raise DataError(f"relational_{code}", f"the relational store refuses it: {reason}") from error.orig
            # Not from SQLAlchemy's error, which tells the statement with all its posts.
            raise self._unavailable(reason) from error.orig
        except sa.exc.TimeoutError as error:
            raise self._unavailable("no connection became free in time") from error
        except OSError as error:
            # The driver lets through what it meets on files that the URL names, such as certificates.
            raise self._unavailable(f"a file that it needs can't be used: {error}") from error

    def _unavailable(self, reason: object) -> ServiceUnavailable:
        return ServiceUnavailable(_NAME, _SETTING, self._url, reason)


_DATA_CODES = {1153, 1264, 1366, 1406, 3140, 3819, 4025}
"""Packet too large, out of range, incorrect string, too long, bad JSON, CHECK violated (MySQL, MariaDB).

Drivers file some of them under operational errors. Every error that is not about data heals by
itself once the store is in order, so it counts as an outage, never as a reason for quarantine.
"""


def _code_and_reason(error: sa.exc.DBAPIError) -> tuple[str | int, str]:
    original = error.orig
    name = getattr(original, "sqlite_errorname", None)
    if name:
        return str(name).lower(), str(original)
    args = original.args if original is not None else ()
    if args and isinstance(args[0], int):
        # PyMySQL wraps the reason of a failed connection in prose of its own.
        return args[0], " ".join(str(part) for part in args[1:]) or str(original)
    return type(original).__name__.lower(), str(original)


def _numbers(revision: str) -> tuple[int | None, int]:
    """Return the number of a revision, None if it is none of ours, and from which one on code can work with it."""
    match = _REVISION.fullmatch(revision)
    return (int(match[1]), int(match[2] or match[1])) if match else (None, 0)


def _is_sqlite(url: sa.URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _check_tls(parsed: sa.URL, url: str) -> None:
    # From a URL, PyMySQL forgets ssl_ca where one of these is set, too, and never checks the name.
    surplus = sorted({"ssl_verify_cert", "ssl_verify_identity"} & set(parsed.query))
    if surplus:
        raise SettingsError(
            f"{_SETTING} {mask_secrets(url)} is not valid: give ssl_ca in place of {' and '.join(surplus)}; "
            "with it, certificate and name of the server are always checked"
        )


def _mysql_engine(url: sa.URL, timeout_s: float, answer_timeout_s: float) -> sa.Engine:
    return sa.create_engine(
        url,
        pool_pre_ping=True,
        pool_recycle=1800,
        pool_timeout=timeout_s,
        isolation_level="READ COMMITTED",
        # The upsert is run with tuples.
        paramstyle="format",
        connect_args={
            "charset": "utf8mb4",
            "connect_timeout": max(1, round(timeout_s)),
            "read_timeout": max(1, round(answer_timeout_s)),
            "write_timeout": max(1, round(answer_timeout_s)),
            "init_command": "SET time_zone = '+00:00', sql_mode = 'TRADITIONAL'",
        },
    )


def _sqlite_engine(url: sa.URL, timeout_s: float) -> sa.Engine:
    if url.database and url.database != ":memory:":
        try:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ServiceUnavailable(_NAME, _SETTING, str(url), error) from error
    engine = sa.create_engine(url, connect_args={"timeout": max(timeout_s, 30.0)})

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        # Readers beside one writer; a commit that returned survives a loss of power.
        _use_wal(connection)
        connection.execute("PRAGMA synchronous = FULL")

    return engine


def _use_wal(connection: Any) -> None:
    """Switch a file to WAL; several processes that do so at once meet a lock for which SQLite does not wait."""
    for left in range(_WAL_TRIES - 1, -1, -1):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if not left:
                raise
            time.sleep(_WAL_PAUSE_S)
        else:
            return
