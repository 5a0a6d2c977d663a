"""The relational store: the newest version wins, a bad post stops only itself, the schema takes care of itself."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy.dialects import mysql, sqlite

from pipeline_poc import migrations, relational_store, table
from pipeline_poc.chaos.servers import MariaDB
from pipeline_poc.clock import utc_now
from pipeline_poc.errors import SchemaError, ServiceUnavailable, SettingsError
from pipeline_poc.posts import POSTS, Post
from pipeline_poc.records import StoredRecord, content_hash
from pipeline_poc.relational_store import SCHEMA_VERSION, RelationalStore
from pipeline_poc.table import migrated_posts
from pipeline_poc.testing import UNUSUAL_POSTS
from pipeline_poc_tests.posts import LONG_AGO, stored

AT = datetime(2024, 5, 6, 7, 8, 9, 999_000, tzinfo=UTC)

LEGACY_MYSQL = """
CREATE TABLE migrated_posts (
  id INT AUTO_INCREMENT PRIMARY KEY, `externalId` INT NOT NULL UNIQUE, `userId` INT NOT NULL, title TEXT NOT NULL,
  body TEXT NOT NULL, `ingestedAt` DATETIME NOT NULL, `migratedAt` DATETIME NOT NULL,
  `createdAt` DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP,
  `updatedAt` DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP
) DEFAULT CHARSET=utf8mb4"""
LEGACY_SQLITE = """
CREATE TABLE migrated_posts (
  id INTEGER PRIMARY KEY, "externalId" INT NOT NULL, "userId" INT NOT NULL, title TEXT NOT NULL, body TEXT NOT NULL,
  "ingestedAt" DATETIME NOT NULL, "migratedAt" DATETIME NOT NULL,
  "createdAt" DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP, "updatedAt" DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP
)"""

MIGRATE_SCHEMA = """
import sys
from pipeline_poc.relational_store import RelationalStore
store = RelationalStore(sys.argv[1], timeout_s=10)
print("ready", flush=True)
sys.stdin.readline()
store.ensure_schema()
"""


@pytest.fixture
def engine(any_sql_url: str) -> Iterator[sa.Engine]:
    """The database, past the store."""
    engine = sa.create_engine(any_sql_url)
    yield engine
    engine.dispose()


@pytest.fixture
def store(any_sql_url: str) -> Iterator[RelationalStore]:
    """A store with its schema and no rows."""
    store = RelationalStore(any_sql_url, timeout_s=5)
    store.ensure_schema()
    yield store
    store.close()


def rows(engine: sa.Engine) -> list[dict[str, Any]]:
    """Return all rows by id."""
    with engine.connect() as connection:
        found = connection.execute(sa.select(migrated_posts).order_by(migrated_posts.c.externalId))
        return [dict(row) for row in found.mappings()]


def test_round_trip(store: RelationalStore, engine: sa.Engine) -> None:
    """A row holds the values of its post; times are UTC with fractions cut, also where the server keeps other hours."""
    before = utc_now()
    assert store.write([stored(7, "title", "body", version=3)], AT) == {}
    [row] = rows(engine)
    assert (row["externalId"], row["userId"], row["title"], row["body"], row["version"]) == (7, 1, "title", "body", 3)
    assert row["contentHash"] == content_hash(7, 1, "title", "body")
    assert row["ingestedAt"] == LONG_AGO.replace(microsecond=0, tzinfo=None)
    assert row["migratedAt"] == AT.replace(microsecond=0, tzinfo=None)
    for name in ("createdAt", "updatedAt"):
        assert abs(row[name].replace(tzinfo=UTC) - before) < timedelta(minutes=1)


@pytest.mark.mysql
def test_server_with_other_defaults() -> None:
    """Times are UTC whatever the time zone of the server, and text is escaped whatever it thinks of backslashes."""
    with MariaDB("--default-time-zone=+09:00", "--sql-mode=NO_BACKSLASH_ESCAPES,ANSI_QUOTES") as server:
        store = RelationalStore(server.url("other"), timeout_s=5)
        store.ensure_schema()
        store.write([stored(1, "\\', 1) -- ", '"\\"')], AT)
        [row] = store.sample(1)
        store.close()
    assert row["migratedAt"] == AT.replace(microsecond=0, tzinfo=None)
    assert abs(row["createdAt"].replace(tzinfo=UTC) - utc_now()) < timedelta(minutes=1)
    assert (row["title"], row["body"]) == ("\\', 1) -- ", '"\\"')


@hypothesis_settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.lists(st.integers(1, 6), min_size=1, max_size=8))
def test_newest_version_wins(store: RelationalStore, order: list[int]) -> None:
    """Whatever the order in which versions arrive, and however often, the row ends with the newest."""
    for version in [0, *order]:
        store.write([stored(0 - len(order), f"title {version}", version=version)], AT)
        store.write([stored(1, f"title {version}", version=version + 1_000_000 * len(order))], AT)
    newest = {row.external_id: row for row in store.rows([-len(order)])}[-len(order)]
    assert newest.version >= max(order)
    assert newest.content_hash == content_hash(-len(order), 1, f"title {newest.version}", "b")


def test_an_older_version_touches_nothing(store: RelationalStore, engine: sa.Engine) -> None:
    """An older or equal version leaves every column of the row as it is."""
    store.write([stored(1, "new", version=2)], AT)
    before = rows(engine)
    for version in (1, 2):
        assert store.write([stored(1, "old", version=version)], AT + timedelta(days=1)) == {}
    assert rows(engine) == before


def test_a_newer_version_keeps_the_beginning(store: RelationalStore, engine: sa.Engine) -> None:
    """A newer version replaces content and migratedAt, but neither the key nor ingestedAt and createdAt."""
    store.write([stored(1, "old")], AT)
    [before] = rows(engine)
    later = StoredRecord(1, (2, "new", "text"), "f" * 32, 2, AT)
    store.write([later], AT + timedelta(days=1))
    [after] = rows(engine)
    kept = ("id", "externalId", "ingestedAt", "createdAt")
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert (after["userId"], after["title"], after["body"], after["version"]) == (2, "new", "text", 2)
    assert after["contentHash"] == "f" * 32
    assert after["migratedAt"] == before["migratedAt"] + timedelta(days=1)
    assert after["updatedAt"] >= before["updatedAt"]


@pytest.mark.parametrize("bad", [{0}, {4}, {8}, {0, 8}, {3, 4}, set(range(9))], ids=str)
def test_bad_posts_stop_only_themselves(store: RelationalStore, bad: set[int]) -> None:
    """Posts that the store refuses are named with a reason, wherever they stand; all others are committed."""
    refusable = StoredRecord(1, (1, "t", None), "0" * 32, 1, LONG_AGO)
    posts = [stored(i) if i not in bad else _with_id(refusable, i) for i in range(9)]
    refused = store.write(posts, AT)
    assert set(refused) == bad
    for code, message in refused.values():
        assert code in ("relational_1048", "relational_sqlite_constraint_notnull")
        assert "refuses it" in message
    assert [row.external_id for row in store.rows()] == [i for i in range(9) if i not in bad]


def _with_id(post: StoredRecord, external_id: int) -> StoredRecord:
    return StoredRecord(external_id, post.values, post.content_hash, 1, post.ingested_at)


@pytest.mark.parametrize(
    ("post", "code"),
    [
        (stored(1, "t", "x" * 65_536), "relational_1406"),
        (StoredRecord(1, (2**31, "t", "b"), "0" * 32, 1, LONG_AGO), "relational_1264"),
        (stored(1, "t", "b", version=2**63), "relational_1264"),
    ],
    ids=["too long", "out of range", "version out of range"],
)
def test_strict_mode(sql_url: str, post: StoredRecord, code: str) -> None:
    """MariaDB refuses what doesn't fit instead of cutting it, and the neighbours go on."""
    store = RelationalStore(sql_url, timeout_s=5)
    store.ensure_schema()
    assert {i: reason[0] for i, reason in store.write([stored(0), post, stored(2)], AT).items()} == {1: code}
    assert [row.external_id for row in store.rows()] == [0, 2]
    store.close()


def test_lone_surrogate_is_refused(store: RelationalStore) -> None:
    """Text that UTF-8 can't encode is refused as data, not taken for an outage."""
    bad = StoredRecord(2, (1, "\ud800", "b"), "0" * 32, 1, LONG_AGO)
    refused = store.write([stored(1), bad, stored(3)], AT)
    assert {i: reason[0] for i, reason in refused.items()} == {2: "relational_encoding"}
    assert [row.external_id for row in store.rows()] == [1, 3]


def test_unusual_posts_round_trip(store: RelationalStore) -> None:
    """Emoji, NUL, quotes, white space, 65,535 bytes and the largest ids come back as they were."""
    posts = [Post.model_validate(post) for _, post in UNUSUAL_POSTS]
    rows = [
        StoredRecord(p.external_id, p.content[1:], f"{p.external_id:032}", 1, LONG_AGO)
        for p in sorted(posts, key=lambda post: post.external_id)
    ]
    assert store.write(rows, AT) == {}
    expected = {p.external_id: content_hash(*p.content) for p in posts}
    assert {row.external_id: row.content_hash for row in store.rows()} == expected


def test_many_posts_and_pages(store: RelationalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Posts beyond one transaction are all written; reading in small pages yields each once, in order."""
    monkeypatch.setattr(relational_store, "_ROWS", 7)
    assert store.write([stored(i) for i in range(1, 31)], AT) == {}
    assert store.count() == 30
    for page in (1, 7, 30, 31):
        assert [row.external_id for row in store.rows(page=page)] == list(range(1, 31))
    assert [row.external_id for row in store.rows([3, 17, 99], page=1)] == [3, 17]
    assert [row["externalId"] for row in store.sample(3)] == [1, 2, 3]


def test_long_posts_share_no_statement(store: RelationalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Posts that are too long for one statement are written by several of them, in one transaction."""
    monkeypatch.setattr(table, "_STATEMENT_BYTES", 1000)
    assert store.write([stored(i, "t", "x" * 100 * i) for i in range(30)], AT) == {}
    assert [row.content_hash for row in store.rows()] == [content_hash(i, 1, "t", "x" * 100 * i) for i in range(30)]


def test_values_of_other_types(store: RelationalStore) -> None:
    """What somebody else put into a document is written as the driver does it, or refused, and harms no neighbour."""
    number = StoredRecord(2, (1, 17, "b"), "0" * 32, 1, LONG_AGO)
    text = StoredRecord(3, ("1), (4, 1", "t", "b"), "0" * 32, 1, LONG_AGO)
    refused = store.write([stored(1), number, text, stored(5)], AT)
    assert set(refused) <= {3}
    assert [row.external_id for row in store.rows()] == [i for i in (1, 2, 3, 5) if i not in refused]
    assert store.sample(2)[1]["title"] == "17"


def test_unchanged_rows_do_not_read_as_new(store: RelationalStore) -> None:
    """Writing the same posts again changes no row and adds none."""
    for _ in range(2):
        store.write([stored(i) for i in range(1, 5)], AT)
    assert store.count() == 4


def test_upsert_text() -> None:
    """MySQL 8 gets a row alias, MariaDB and SQLite their own words; the guard's column is assigned last."""
    eight, maria = mysql.dialect(paramstyle="format"), mysql.dialect(is_mariadb=True, paramstyle="format")
    eight._requires_alias_for_on_duplicate_key = True  # What the first connection to MySQL 8.0.20 and later sets.
    text = table.upsert_sql(POSTS, eight)
    assert "AS new ON DUPLICATE KEY UPDATE" in text
    assert "VALUES(" not in text
    assert text.count("%s") == 8
    assert text.endswith(
        "version = IF(migrated_posts.version IS NULL OR new.version > migrated_posts.version, "
        "new.version, migrated_posts.version)"
    )
    assert "`ingestedAt` = " not in text
    text = table.upsert_sql(POSTS, maria)
    assert "AS new" not in text
    assert text.endswith(
        "IF(migrated_posts.version IS NULL OR VALUES(version) > migrated_posts.version, "
        "VALUES(version), migrated_posts.version)"
    )
    text = table.upsert_sql(POSTS, sqlite.dialect())
    assert "ON CONFLICT" in text
    assert text.endswith("WHERE migrated_posts.version IS NULL OR excluded.version > migrated_posts.version")


def test_first_use_needs_no_schema_check(any_sql_url: str, store: RelationalStore) -> None:
    """A store object whose first act is to write speaks the server's dialect."""
    other = RelationalStore(any_sql_url, timeout_s=5)
    assert other.write([stored(1)], AT) == {}
    other.close()
    assert store.count() == 1


def test_a_table_of_the_replaced_service_is_completed(any_sql_url: str, engine: sa.Engine) -> None:
    """The old table gets what it lacks, its rows survive, and any version of the pipeline wins over them."""
    with engine.begin() as connection:
        connection.execute(sa.text(LEGACY_SQLITE if engine.dialect.name == "sqlite" else LEGACY_MYSQL))
        for i in (1, 2):
            connection.execute(
                sa.text(
                    "INSERT INTO migrated_posts (`externalId`, `userId`, title, body, `ingestedAt`, `migratedAt`)"
                    " VALUES (:i, 1, 'old', 'old body', '2020-01-01 00:00:00', '2020-01-01 00:00:00')"
                ),
                {"i": i},
            )
    store = RelationalStore(any_sql_url, timeout_s=5)
    store.ensure_schema()
    store.write([stored(1, "new"), stored(3, "third")], AT)
    found = {row["externalId"]: row for row in rows(engine)}
    assert [(i, row["title"], row["version"]) for i, row in found.items()] == [
        (1, "new", 1),
        (2, "old", None),
        (3, "third", 1),
    ]
    assert [row.version for row in store.rows()] == [1, 0, 1]
    with pytest.raises(sa.exc.IntegrityError), engine.begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO migrated_posts SELECT 99, `externalId`, `userId`, title, body,"
                " `ingestedAt`, `migratedAt`, `createdAt`, `updatedAt`, NULL, NULL"
                " FROM migrated_posts WHERE `externalId` = 2"
            )
        )
    store.close()


def test_models_are_the_schema(store: RelationalStore, engine: sa.Engine) -> None:
    """The migrated schema is the one that the models describe, and its version is the newest revision."""
    assert ScriptDirectory.from_config(migrations.config()).get_heads() == [SCHEMA_VERSION]
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert context.get_current_revision() == SCHEMA_VERSION
        # Tables of other entities have no history: they are made as the models describe them.
        posts_alone = sa.MetaData()
        migrated_posts.to_metadata(posts_alone)
        assert compare_metadata(context, posts_alone) == []


def test_every_column_is_described() -> None:
    """Each column has a type and a meaning, in the table's order."""
    assert all(column.doc for column in table.migrated_posts.columns)


def test_two_processes_migrate_the_schema(any_sql_url: str) -> None:
    """Processes that meet an empty database at the same moment leave one whole schema and no error."""
    command = [sys.executable, "-c", MIGRATE_SCHEMA, any_sql_url]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    store = RelationalStore(any_sql_url, timeout_s=5)
    store.ensure_schema()
    assert store.count() == 0
    store.close()


@pytest.mark.parametrize(
    ("revision", "refusal"),
    [
        ("9999", r"\(SQL_URL\) has schema version 9999.*code for version 9999 or newer.*knows up to 1: use the newer"),
        ("9999_from_0002", r"code for version 2 or newer"),
        ("9999_from_0001", None),
        ("ae1027a6acf", r"has schema version ae1027a6acf, which is none of pipeline_poc: name a database of its own"),
    ],
)
def test_another_schema_is_left_alone(
    store: RelationalStore, engine: sa.Engine, revision: str, refusal: str | None
) -> None:
    """A schema that a newer release or another program made is refused with a sentence, unless it says it works."""
    with engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE alembic_version SET version_num = '{revision}'"))
    for use in (store.ensure_schema, store.upgrade_schema, store.schema_sql):
        with pytest.raises(SchemaError, match=refusal) if refusal else nullcontext():
            use()
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar() == revision


@pytest.mark.parametrize("legacy", [False, True], ids=["empty", "of the replaced service"])
def test_the_sql_of_an_upgrade(any_sql_url: str, engine: sa.Engine, legacy: bool) -> None:
    """What is shown changes nothing until a person executes it, and then leaves nothing to upgrade."""
    if legacy:
        with engine.begin() as connection:
            connection.execute(sa.text(LEGACY_SQLITE if engine.dialect.name == "sqlite" else LEGACY_MYSQL))
    store = RelationalStore(any_sql_url, timeout_s=5)
    before = sa.inspect(engine).get_table_names()
    text = store.schema_sql()
    assert sa.inspect(engine).get_table_names() == before
    assert ("ADD COLUMN" in text, "CREATE TABLE migrated_posts" in text) == (legacy, not legacy)
    with engine.begin() as connection:
        for statement in filter(str.strip, text.split(";")):
            connection.execute(sa.text(statement))
    assert store.schema().verdict == "current"
    assert store.schema_sql() == ""
    assert store.write([stored(1)], AT) == {}
    store.close()


def test_a_failed_upgrade_releases_its_lock(sql_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upgrade that fails doesn't keep other processes waiting."""
    store, other = RelationalStore(sql_url, timeout_s=5), RelationalStore(sql_url, timeout_s=5)

    def fail(engine: sa.Engine) -> None:
        raise sa.exc.OperationalError("ALTER TABLE", None, Exception("disk full"))

    with monkeypatch.context() as patched:
        patched.setattr(migrations, "upgrade", fail)
        with pytest.raises(ServiceUnavailable, match="disk full"):
            store.ensure_schema()
    with other._engine.connect() as connection:
        free = connection.execute(sa.text("SELECT IS_FREE_LOCK('pipeline_poc_schema')")).scalar()
    assert free == 1
    store.close()
    other.close()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"password": "wrong-Pa55"}, "Access denied"),
        ({"database": "no_such_database", "username": "nobody", "password": "wrong-Pa55"}, "denied"),
        ({"database": "no_such_database"}, "Unknown database"),
        ({"host": "no-such-host.invalid"}, "no-such-host"),
        ({"port": 1}, "refused"),
    ],
    ids=["password", "user", "database", "host", "port"],
)
def test_what_is_wrong_is_said(sql_url: str, change: dict[str, Any], reason: str) -> None:
    """A login, host or database that is wrong is one sentence that names SQL_URL, and shows no password."""
    url = sa.make_url(sql_url).set(**change)
    store = RelationalStore(url.render_as_string(hide_password=False), timeout_s=2)
    for use in (store.ping, store.ensure_schema, store.count, lambda: store.write([stored(1)], AT)):
        with pytest.raises(ServiceUnavailable) as caught:
            use()
        text = str(caught.value)
        assert "(SQL_URL) is not available" in text
        assert reason in text
        assert str(url.password) not in text.replace("password: YES", "")
        assert "\n" not in text
        assert caught.value.setting == "SQL_URL"
    store.close()


def test_no_password_in_a_malformed_url() -> None:
    """A URL that can't be read is refused with its setting's name and without its password."""
    with pytest.raises(SettingsError, match="SQL_URL") as caught:
        RelationalStore("mysql://user:s3cr3t@host:port/db", timeout_s=1)
    assert "s3cr3t" not in str(caught.value)


def test_an_outage_is_transient(mariadb: MariaDB, sql_url: str) -> None:
    """A server that dies under a store makes it unavailable; once it is back, so is the store."""
    store = RelationalStore(sql_url, timeout_s=2)
    store.ensure_schema()
    store.write([stored(1)], AT)
    mariadb.kill()
    with pytest.raises(ServiceUnavailable):
        store.write([stored(2)], AT)
    mariadb.start()
    assert store.write([stored(2)], AT) == {}
    assert store.count() == 2
    store.close()


def test_a_lock_is_waited_for_or_transient(sql_url: str) -> None:
    """A row that somebody else has locked for long is no bad data: the write is to be tried again."""
    store = RelationalStore(f"{sql_url}", timeout_s=2)
    store.ensure_schema()
    store.write([stored(1)], AT)
    with store._engine.connect() as holder, store._engine.connect() as session:
        session.execute(sa.text("SET GLOBAL innodb_lock_wait_timeout = 1"))
        holder.execute(sa.text("SELECT * FROM migrated_posts FOR UPDATE"))
        writer = RelationalStore(sql_url, timeout_s=2)
        with pytest.raises(ServiceUnavailable, match="Lock wait timeout"):
            writer.write([stored(1, "new", version=2)], AT)
        writer.close()
        session.execute(sa.text("SET GLOBAL innodb_lock_wait_timeout = 50"))
    store.close()
