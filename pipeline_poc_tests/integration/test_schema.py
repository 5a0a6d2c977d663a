"""Schemas: set up by version, alone and together, upgraded beside old workers, and in production by a person only."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from pymongo.database import Database

from pipeline_poc import migrations, mongo_schema
from pipeline_poc.clock import utc_now
from pipeline_poc.errors import SchemaError
from pipeline_poc.health import inspect
from pipeline_poc.mongo import Mongo
from pipeline_poc.mongo_schema import MongoSchema, validator
from pipeline_poc.posts import POSTS
from pipeline_poc.services import Services
from pipeline_poc.settings import Settings
from pipeline_poc.stand_in import StandIn
from pipeline_poc_tests.acceptance.programs import Program, until
from pipeline_poc_tests.integration.test_enqueueing import INVALID, LEGACY
from pipeline_poc_tests.integration.workers import Start
from pipeline_poc_tests.posts import record

Documents = Database[dict[str, Any]]

UNAVAILABLE = 3

REVISION = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "{revision}", "{before}"
branch_labels = depends_on = None


def upgrade():
    {change}
"""


@pytest.fixture
def mongodb(mongo_url: str, mongo_database: str) -> Iterator[Mongo]:
    """An empty database."""
    connection = Mongo(mongo_url, mongo_database, timeout_s=2)
    yield connection
    connection.database.client.drop_database(mongo_database)
    connection.close()


@pytest.fixture
def mongodb_schema(mongodb: Mongo) -> MongoSchema:
    """The schema of that database."""
    return MongoSchema(mongodb, ledger_retention_s=7200)


@pytest.fixture
def production(settings: Settings) -> Iterator[Services]:
    """The pipeline as production has it, on stores that nobody has set up."""
    with Services(settings.model_copy(update={"environment": "production"})) as services:
        yield services


def set_up(mongodb: Mongo) -> dict[str, Any]:
    """Return all that is set up: indexes and options of each collection, and what is written down."""
    database = mongodb.database
    return {
        name: (database[name].index_information(), database[name].options())
        for name in sorted(database.list_collection_names())
    } | {"version": database["schema"].find_one()}


def test_setting_up_again_changes_nothing(mongodb: Mongo, mongodb_schema: MongoSchema) -> None:
    """An empty database is older than any; what an upgrade set up is current, and left as it is by the next."""
    assert (mongodb_schema.read().verdict, set_up(mongodb)) == ("older", {"version": None})
    first = mongodb_schema.upgrade()
    before = set_up(mongodb)
    assert (first.before.found, first.after.verdict, first.note) == (0, "current", None)
    assert before["version"] == {"_id": "mongodb", "version": 1, "worksFrom": 1}
    assert before["posts"][0]["externalId_1"]["unique"]
    assert before["posts"][1]["validationAction"] == "warn"
    assert mongodb_schema.upgrade().before.verdict == "current"
    assert set_up(mongodb) == before


def test_several_set_up_at_once(mongodb: Mongo, mongo_url: str, mongo_database: str) -> None:
    """Programs that meet an empty database at the same moment leave one whole schema and no error."""
    start, results = threading.Barrier(4), list[str]()

    def upgrade() -> None:
        connection = Mongo(mongo_url, mongo_database, timeout_s=5)
        start.wait()
        results.append(MongoSchema(connection, ledger_retention_s=7200).upgrade().after.verdict)
        connection.close()

    threads = [threading.Thread(target=upgrade) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["current"] * 4


def test_a_dropped_collection_is_noticed(mongodb: Mongo, mongodb_schema: MongoSchema) -> None:
    """With a collection its indexes go, and with them the promise of no duplicates: that is no current schema."""
    mongodb_schema.upgrade()
    mongodb.database["posts"].drop()
    with pytest.raises(SchemaError, match=r"version 1 without the index posts.externalId_1.*db upgrade"):
        mongodb_schema.ensure(may_upgrade=False)
    mongodb_schema.ensure(may_upgrade=True)
    assert mongodb_schema.read().verdict == "current"


def test_an_index_of_another_name_will_do(mongodb: Mongo, mongodb_schema: MongoSchema) -> None:
    """Where somebody made an index of ours by hand under a name of theirs, MongoDB would refuse a second one."""
    mongodb.database["posts"].create_index("externalId", unique=True, name="by_hand")
    assert mongodb_schema.upgrade().after.verdict == "current"
    assert "externalId_1" not in mongodb.database["posts"].index_information()


@pytest.mark.parametrize(("works_from", "is_fine"), [(1, True), (2, False), (None, False)])
def test_a_newer_set_up(mongodb: Mongo, mongodb_schema: MongoSchema, works_from: int | None, is_fine: bool) -> None:
    """What a newer pipeline_poc set up is never changed, and used if it says that it works with this code."""
    mongodb_schema.upgrade()
    newer = {"version": 2} | ({"worksFrom": works_from} if works_from else {})
    mongodb.database["schema"].replace_one({}, newer)
    mongodb.database["posts"].drop_index("batchId_1_migrated_1")
    before = set_up(mongodb)
    if is_fine:
        mongodb_schema.ensure(may_upgrade=True)
        assert mongodb_schema.upgrade().after.verdict == "newer"
    else:
        for use in (mongodb_schema.upgrade, lambda: mongodb_schema.ensure(may_upgrade=True)):
            with pytest.raises(SchemaError, match=r"\(MONGO_URL\) has schema version 2.*code for version 2.*up to 1"):
                use()
    assert set_up(mongodb) == before


def test_the_validator_tells_posts_from_others(services: Services, stand_in: StandIn, database: Documents) -> None:
    """It refuses nothing, fits what the pipeline and the replaced service write, and finds what is no post."""
    stand_in.behaviour = {"n": "20"}
    services.ingest()
    stand_in.posts[1] = record(1, "changed")
    services.ingest()
    services.migrate()
    posts = database["posts"]
    posts.update_one({"externalId": 2}, {"$set": {"quarantine": {"code": "c", "message": "m", "at": utc_now()}}})
    of_replaced = {"externalId": 1001, "userId": 1, "title": "t", "body": "b", "ingestedAt": utc_now(), "__v": 0}
    posts.insert_one(of_replaced | {"migrated": False, "migratedAt": None})
    assert posts.count_documents({"$nor": [validator(POSTS)]}) == 0

    shift = 2000
    others = [post for post in LEGACY if "text" in post.values() or "yesterday" in post.values()]
    others += [post for post, code in INVALID if code in {"null_field", "missing_field", "wrong_type"}]
    for post in others:
        posts.insert_one(post | {"externalId": post["externalId"] + shift})
    posts.insert_one({"_id": "no post at all"})
    posts.update_one({"externalId": 3}, {"$set": {"title": 7}})
    assert posts.count_documents({"$nor": [validator(POSTS)]}) == len(others) + 2
    # The check of the documents, which does without the server's validator, finds the same.
    assert len(services.raw_store.misfits([range(1, 5000)], limit=1000)) == len(others) + 2
    while services.adopt():  # Quarantines what is no post, in documents that don't fit.
        pass
    assert posts.count_documents({"quarantine.code": {"$in": ["null_field", "missing_field", "wrong_type"]}}) == 5


def test_a_server_without_validators(
    mongodb: Mongo, mongodb_schema: MongoSchema, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a server takes none, that is said, and all the rest is set up."""
    # This server takes them: one that it can't read stands for those of a server that reads none.
    refused = {"$jsonSchema": {"bsonType": "nonsense"}}
    monkeypatch.setattr(mongo_schema, "validator", lambda _: refused)
    monkeypatch.setattr(mongo_schema, "_NOT_TAKEN", {2, 9})
    done = mongodb_schema.upgrade()
    assert done.after.verdict == "current"
    assert "this server takes no validator" in done.sentence()
    assert "validator" not in mongodb.database["posts"].options()


def test_production_is_upgraded_by_a_person(production: Services, mongodb: Mongo, relational_url: str) -> None:
    """Every store that is opened says in one sentence what to do, and nothing is set up until somebody does it."""
    opens: list[Callable[[], object]] = [
        lambda: production.open_all(),
        lambda: production.ingest(),
        lambda: production.tick(),
        lambda: production.control(),
        lambda: production.quarantine,
        lambda: production.idempotency_keys,
    ]
    for use in opens:
        with pytest.raises(SchemaError, match=r"\(MONGO_URL\) has no schema yet.*run `pipeline-poc db upgrade`$"):
            use()
    with pytest.raises(SchemaError, match=r"\(SQL_URL\) has no schema yet.*run `pipeline-poc db upgrade`$"):
        _ = production.relational_store
    engine = sa.create_engine(relational_url)
    assert (mongodb.database.list_collection_names(), sa.inspect(engine).get_table_names()) == ([], [])
    assert [schema.verdict for schema in production.schemas()] == ["older", "older"]
    report = asyncio.run(inspect(production))
    for name in ("mongodb:responseTime", "relationalStore:responseTime"):
        assert report.find(name).status == "fail"
        assert "run `pipeline-poc db upgrade`" in (report.find(name).output or "")

    assert [done.after.verdict for done in production.upgrade_schemas()] == ["current", "current"]
    production.open_all()
    assert production.ingest().new == 100
    production.migrate()
    assert production.reconcile().ok
    engine.dispose()


def test_the_commands(start: Start) -> None:
    """Production programs say what is to be done; `db upgrade`, run twice at once, does it, and `db status` agrees."""

    def db(*arguments: str) -> Program:
        return start(*arguments, command="db", environment="production")

    worker, looked, shown = start(environment="production"), db("status"), db("upgrade", "--sql", "--json")
    assert worker.wait() == UNAVAILABLE
    assert "(MONGO_URL) has no schema yet, this code needs version 1: run `pipeline-poc db upgrade`\n" in worker.said
    assert "Traceback" not in worker.said
    assert looked.wait() == 1
    assert looked.said.count("has no schema yet") == 2
    assert shown.wait() == 0
    assert "CREATE TABLE migrated_posts" in json.loads(shown.said)["sql"]
    both = db("upgrade"), db("upgrade")
    for program in both:
        assert program.wait() == 0, program.said
        assert program.said.count("schema version 1\n") == 2
    last = db("status", "--json")
    assert last.wait() == 0, last.said
    assert [(store["setting"], store["verdict"]) for store in json.loads(last.said)["stores"]] == [
        ("MONGO_URL", "current"),
        ("SQL_URL", "current"),
    ]


class TestRollingUpdate:
    """On a server, whose changes other sessions see while they are made."""

    @pytest.fixture
    def relational_url(self, sql_url: str) -> str:
        """MariaDB."""
        return sql_url

    def test_old_workers_work_beside_a_newer_schema(
        self, services: Services, start: Start, stand_in: StandIn, sql: sa.Engine, tmp_path: Path
    ) -> None:
        """A column that is added in the middle stops no old worker, nor its restart; one that is taken away does."""

        def revise(revision: str, before: str, change: str) -> None:
            """Upgrade as a newer release would."""
            (tmp_path / f"{revision}.py").write_text(REVISION.format(revision=revision, before=before, change=change))
            newer = migrations.config()
            newer.set_main_option("version_locations", f"{Path(migrations.__file__).parent / 'versions'} {tmp_path}")
            newer.set_main_option("path_separator", "space")
            with sql.begin() as connection:
                newer.attributes["connection"] = connection
                command.upgrade(newer, revision)

        def migrated(number: int) -> None:
            """Wait for so many posts, as the ledger has them."""
            until(lambda: services.raw_store.counts().migrated == number, f"{number} migrated: {old.said}")

        def ingest_and_enqueue() -> int:
            result = services.ingest()
            services.tick()
            return result.new + result.changed

        old = start()
        ingest_and_enqueue()
        migrated(100)
        stand_in.behaviour = {"n": "200"}
        stand_in.posts = {i: record(i, "changed") for i in range(1, 51)}
        assert ingest_and_enqueue() == 150
        revise("0002_from_0001", "0001", "op.add_column('migrated_posts', sa.Column('language', sa.String(8)))")
        migrated(200)
        assert services.reconcile().ok

        stand_in.posts |= {i: record(i, "changed again") for i in range(1, 51)}
        assert ingest_and_enqueue() == 50
        restarted = start("--burst")
        assert restarted.wait() == 0, restarted.said
        migrated(200)
        outcome = services.reconcile()
        assert (outcome.ok, outcome.rows, old.is_running) == (True, 200, True)
        assert services.dead_letters.groups() == []

        revise("0003", "0002_from_0001", "op.drop_column('migrated_posts', 'language')")
        refused = start("--burst")
        assert refused.wait() == UNAVAILABLE
        assert "(SQL_URL) has schema version 3, which works with code for version 3 or newer" in refused.said
