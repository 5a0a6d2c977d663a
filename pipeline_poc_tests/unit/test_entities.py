"""Entities: models, and what follows from them."""

import json

import pytest
from pydantic import ValidationError

from pipeline_poc.entities import ENTITIES
from pipeline_poc.raw_store import document_fields
from pipeline_poc.records import Entity, HashedRecord, Record, RejectedRecord, content_hash
from pipeline_poc.settings import Settings
from pipeline_poc.stand_in import make_record
from pipeline_poc.table import table_of

each_entity = pytest.mark.parametrize("entity", ENTITIES.values(), ids=ENTITIES)


@each_entity
def test_every_field_is_described(entity: Entity) -> None:
    """Each field of document and row has a type and a meaning, and the model says what it is."""
    assert entity.model.__doc__
    assert all(value.meaning for value in entity.values)
    assert all(type_ and meaning for type_, meaning in document_fields(entity).values())
    assert all(column.doc for column in table_of(entity).columns)
    assert {"externalId", *entity.names} <= document_fields(entity).keys()
    assert {"externalId", *entity.names} <= set(table_of(entity).columns.keys())


@each_entity
def test_records_are_parsed_and_hashed(entity: Entity) -> None:
    """A record keeps its values in order; its hash is that of what it holds, and survives the way into the store."""
    served = make_record(entity, 7)
    record = entity.parse(served)
    assert isinstance(record, Record)
    assert record.content == (7, *(served[name] for name in entity.names))
    document = {"externalId": 7} | {name: served[name] for name in entity.names} | {"migrated": True}
    assert entity.as_served(document) == served
    assert HashedRecord.of(record).content_hash == content_hash(*record.content)
    assert entity.unknown_fields(served | {"more": 1}) == {"more"}


@each_entity
def test_types_are_strict(entity: Entity) -> None:
    """A value of another type is refused, whatever the field."""
    served = make_record(entity, 7)
    for name in entity.names:
        rejected = entity.parse(served | {name: [1]})
        assert isinstance(rejected, RejectedRecord)
        assert (rejected.code, rejected.external_id) == ("wrong_type", 7)
        assert rejected.message.startswith(name)


def test_objects_become_text() -> None:
    """An object within a record, such as a user's address, is kept as JSON text, the same at each arrival."""
    users = ENTITIES["users"]
    served = make_record(users, 1) | {"address": {"city": "Zürich", "geo": {"lat": "-37.3"}}}
    record = users.parse(served)
    assert isinstance(record, Record)
    kept = dict(zip(users.names, record.content[1:], strict=True))["address"]
    assert kept == '{"city":"Zürich","geo":{"lat":"-37.3"}}'
    assert json.loads(kept) == served["address"]
    again = users.parse(served | {"address": kept})
    assert isinstance(again, Record)
    assert again.content == record.content


def test_a_model_of_other_types() -> None:
    """A model with a type that no store takes is refused by name."""

    class Price(Record):
        """A price."""

        amount: float

    with pytest.raises(TypeError, match=r"Price\.amount.*float"):
        _ = Entity("prices", Price).values


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("posts,pots", "names pots, but there are only posts, comments"),
        ("comments", "must name posts"),
        ("posts,posts", "nothing twice"),
    ],
)
def test_entities_that_are_none(given: str, said: str) -> None:
    """ENTITIES has to name posts and others that exist, each once."""
    with pytest.raises(ValidationError, match=said):
        Settings(_env_file=None, entities=given)
    assert Settings(_env_file=None, entities="posts, photos").entities == ("posts", "photos")
