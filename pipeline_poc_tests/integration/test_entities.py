"""Other entities than posts: the same pipeline, with a collection, a queue and a table of their own."""

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from pymongo.database import Database

from pipeline_poc.entities import ENTITIES
from pipeline_poc.errors import SchemaError, SettingsError
from pipeline_poc.services import Services
from pipeline_poc.settings import Settings
from pipeline_poc.stand_in import StandIn
from pipeline_poc.worker import run_worker

pytestmark = pytest.mark.usefixtures("kept_signals")


@pytest.fixture
def relational_url(any_sql_url: str) -> str:
    """URL of the relational store: each kind."""
    return any_sql_url


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings with all entities."""
    return settings.model_copy(update={"entities": tuple(ENTITIES)})


@pytest.fixture
def rows(relational_url: str) -> Iterator[Any]:
    """Return all rows of a table."""
    engine = sa.create_engine(relational_url)

    def ask(table: str) -> list[dict[str, Any]]:
        with engine.connect() as connection:
            found = connection.execute(sa.text(f"SELECT * FROM {table} ORDER BY externalId"))
            return [dict(row) for row in found.mappings()]

    yield ask
    engine.dispose()


def move(services: Services) -> None:
    """Ingest, enqueue, execute the jobs, and compare."""
    services.ingest()
    services.tick()
    run_worker(services, burst=True)
    assert services.reconcile().ok


def test_every_entity_moves_by_itself(
    services: Services, stand_in: StandIn, database: Database[dict[str, Any]], rows: Any
) -> None:
    """Each entity gets to a table of its own, with its values as they were served; a changed record moves again."""
    stand_in.behaviour["n"] = "25"
    for pipeline in services.pipelines():
        entity = pipeline.entity
        move(pipeline)
        served = pipeline.source.url
        assert served == stand_in.url.replace("/posts", f"/{entity.name}")
        written = rows(f"migrated_{entity.name}")
        assert [row["externalId"] for row in written] == list(range(1, 26))
        documents = list(database[entity.name].find({}, {"_id": False}).sort("externalId"))
        for document, row in zip(documents, written, strict=True):
            for name in entity.names:
                assert document[name] == row[name], f"{entity.name}.{name}"
    assert set(database.list_collection_names()) >= {"posts", "batches", "comments", "comments_batches"}
    before = {name: rows(f"migrated_{name}") for name in ENTITIES}
    stand_in.behaviour["changed"] = "7"
    move(services.of("todos"))
    after = {name: rows(f"migrated_{name}") for name in ENTITIES}
    changed = [row["externalId"] for row, old in zip(after["todos"], before["todos"], strict=True) if row != old]
    assert changed == [7]
    assert {name: after[name] for name in ENTITIES if name != "todos"} == {
        name: before[name] for name in ENTITIES if name != "todos"
    }


def test_what_is_no_record_of_an_entity(services: Services, stand_in: StandIn) -> None:
    """A record that its entity's model refuses is quarantined there, and shows nowhere else."""
    comments = services.of("comments")
    stand_in.behaviour |= {"n": "3"}
    comments.ingest()
    document = {"externalId": 9, "postId": "one", "name": "n", "email": "e", "body": "b"}
    comments.raw_store._posts.insert_one(dict(document))
    comments.adopt()
    assert [(group.reason, group.count) for group in comments.quarantine.groups()] == [("wrong_type", 1)]
    assert services.quarantine.groups() == []
    passport = comments.passport(9)
    assert passport is not None
    assert passport.state == "quarantined"
    assert services.passport(9) is None


def test_a_pause_is_for_all(services: Services) -> None:
    """The mode counts for the migration of every entity."""
    services.of("comments").set_mode("paused", by="a test")
    assert services.control().mode == services.of("albums").control().mode == "paused"


def test_an_entity_that_comes_later(settings: Settings, services: Services, relational_url: str) -> None:
    """In production a new entity's tables and collections are made by `db upgrade`, and missed in a sentence before."""
    with Services(settings.model_copy(update={"entities": ("posts",)})) as posts_alone:
        posts_alone.open_all()
    production = settings.model_copy(update={"environment": "production", "entities": ("posts", "comments")})
    with Services(production) as later:
        with pytest.raises(SchemaError, match=r"without the table migrated_comments, .*`pipeline-poc db upgrade`"):
            _ = later.relational_store
        with pytest.raises(SchemaError, match=r"the index comments\.externalId_1"):
            _ = later.raw_store
        sql = later.schema_sql()
        assert "CREATE TABLE migrated_comments" in sql
        assert ("ON UPDATE CURRENT_TIMESTAMP" in sql) == relational_url.startswith("mysql")
        assert [upgrade.after.verdict for upgrade in later.upgrade_schemas()] == ["current", "current"]
        assert later.schema_sql() == ""
        later.of("comments").open_all()
    assert services.of("posts") is services


def test_names_that_are_refused(services: Services, settings: Settings) -> None:
    """An entity that does not move, and a source beside which there is nothing, are told by their names."""
    with (
        Services(settings.model_copy(update={"entities": ("posts",)})) as posts_alone,
        pytest.raises(SettingsError, match=r"comments is none of ENTITIES \(posts\)"),
    ):
        posts_alone.of("comments")
    elsewhere = settings.model_copy(update={"source_url": SecretStr("http://127.0.0.1:9/articles")})
    with Services(elsewhere) as other, pytest.raises(SettingsError, match="SOURCE_URL has to end with /posts"):
        _ = other.of("comments").source
