"""The schema of the raw store: indexes and the validator of each entity, set up by version.

All of it stands here. Whoever changes it raises `VERSION`; docs/operations.md has the rules.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import DuplicateKeyError, OperationFailure

from pipeline_poc.counters import MINUTES_KEPT_S
from pipeline_poc.idempotency import KEPT_S
from pipeline_poc.mongo import Document, Mongo
from pipeline_poc.posts import POSTS
from pipeline_poc.raw_store import document_fields
from pipeline_poc.records import Entity
from pipeline_poc.schema import Schema, Upgrade

VERSION = 1
"""The version that this code needs."""
WORKS_FROM = 1
"""The oldest code that can work with it, by the version which that needs."""

_ID = "mongodb"
_EXPIRING = "closedAt"
_BSON_TYPES = {"int": ["int", "long"], "long": ["int", "long"]}
"""Drivers choose between the two by the size of the number."""
_NOT_TAKEN = {59, 72, 115, 238, 40415}
"""Command not found, invalid options, command not supported, not implemented, unknown field."""


class MongoSchema:
    """Indexes, validator, and the collection ``schema`` with their version.

    Args:
        mongo: The database.
        ledger_retention_s: Closed batches expire after so long.
        entities: Whose collections belong to the schema.

    Raises (every method):
        ServiceUnavailable: MongoDB can't be reached.
    """

    def __init__(self, mongo: Mongo, *, ledger_retention_s: int, entities: Sequence[Entity] = (POSTS,)) -> None:
        self._mongo = mongo
        self._entities = entities
        self._schema = mongo.database["schema"]
        self._retention_s = ledger_retention_s
        self._indexes = {"idempotency_keys": [IndexModel([("at", ASCENDING)], expireAfterSeconds=KEPT_S)]}
        for entity in entities:
            self._indexes |= _indexes_of(entity, ledger_retention_s)

    def read(self) -> Schema:
        """Return what there is: the version that is written down, and whether its indexes are there."""
        with self._mongo.translated():
            kept = self._schema.find_one({"_id": _ID}) or {}
        found: int = kept.get("version", 0)
        # Those of another version are not known here. A collection that somebody dropped has lost its own.
        lost = self._missing() if found == VERSION else {}
        return Schema(
            "MongoDB",
            "MONGO_URL",
            self._mongo.shown_url,
            needed=VERSION,
            found=found,
            works_from=kept.get("worksFrom", found),
            missing=tuple(f"the index {name}.{index.document['name']}" for name in lost for index in lost[name]),
        )

    def ensure(self, *, may_upgrade: bool) -> None:
        """Check that this code can work with what there is, set up what is missing, obey LEDGER_RETENTION_S.

        Raises:
            SchemaError: It can't, or something is missing and may not be set up.
        """
        if self.read().must_be_upgraded(may_upgrade=may_upgrade):
            self.upgrade()
        self._apply_retention()

    def upgrade(self) -> Upgrade:
        """Set up what is missing; idempotent, and safe with several processes at once.

        Raises:
            SchemaError: What there is is too new for this code.
        """
        before = self.read()
        before.must_be_upgraded(may_upgrade=True)
        if before.verdict == "newer":
            return Upgrade(before, before)
        # Code that can't work with the new version has to know before anything is taken away.
        self._record({"worksFrom": WORKS_FROM})
        for name, indexes in self._missing().items():
            with self._mongo.translated():
                self._mongo.database[name].create_indexes(indexes)
        notes = [self._set_validator(entity) for entity in self._entities]
        self._record({"version": VERSION})
        return Upgrade(before, self.read(), next(filter(None, notes), None))

    def _record(self, numbers: Document) -> None:
        """Write numbers down where they are above those that a newer pipeline_poc may have written meanwhile."""
        with self._mongo.translated():
            try:
                self._schema.update_one({"_id": _ID}, {"$max": numbers}, upsert=True)
            except DuplicateKeyError:  # Two who wrote the first ones in the same moment.
                self._schema.update_one({"_id": _ID}, {"$max": numbers})

    def _missing(self) -> dict[str, list[IndexModel]]:
        """Return the indexes that are not there, by collection; names don't matter."""
        missing: dict[str, list[IndexModel]] = {}
        for name, indexes in self._indexes.items():
            with self._mongo.translated():
                present = [_kind(index) for index in self._mongo.database[name].index_information().values()]
            if lost := [index for index in indexes if _kind(index.document) not in present]:
                missing[name] = lost
        return missing

    def _set_validator(self, entity: Entity) -> str | None:
        """Set the validator where it differs; returns why there is none on a server that does not take it."""
        records = self._mongo.database[entity.name]
        # A document that is no post is kept, told of, and quarantined: nothing that anybody stored may be refused.
        rules = {"validator": validator(entity), "validationLevel": "moderate", "validationAction": "warn"}
        refusal: object = "it is accepted, and not kept"
        with self._mongo.translated():
            if _has(records.options(), rules):
                return None
            try:
                self._mongo.database.command({"collMod": entity.name, **rules})
            except OperationFailure as error:
                if error.code not in _NOT_TAKEN:
                    raise
                refusal = error
            if _has(records.options(), rules):
                return None
        return f"this server takes no validator, so that it warns of no document ({refusal})"

    def _apply_retention(self) -> None:
        with self._mongo.translated():
            for batches in (self._mongo.of(entity).collection("batches") for entity in self._entities):
                for name, index in batches.index_information().items():
                    if _key(index) == [(_EXPIRING, ASCENDING)] and index.get("expireAfterSeconds") != self._retention_s:
                        change = {"name": name, "expireAfterSeconds": self._retention_s}
                        self._mongo.database.command("collMod", batches.name, index=change)


def _indexes_of(entity: Entity, ledger_retention_s: int) -> dict[str, list[IndexModel]]:
    return {
        entity.name: [
            IndexModel([("externalId", ASCENDING)], unique=True),
            IndexModel([("batchId", ASCENDING), ("migrated", ASCENDING)]),
            IndexModel([("quarantine.code", ASCENDING)], sparse=True),
        ],
        entity.collection("batches"): [
            IndexModel([("state", ASCENDING), ("createdAt", ASCENDING)]),
            IndexModel([(_EXPIRING, ASCENDING)], expireAfterSeconds=ledger_retention_s),
        ],
        entity.collection("quarantined_records"): [
            IndexModel([("code", ASCENDING)]),
            IndexModel([("lastSeenAt", DESCENDING), ("_id", DESCENDING)]),
        ],
        entity.collection("counters"): [IndexModel([("at", ASCENDING)], expireAfterSeconds=MINUTES_KEPT_S)],
    }


def validator(entity: Entity) -> Document:
    """Return what a document of an entity looks like, in MongoDB's words.

    Documents of the replaced service fit it, and may have more fields.
    """
    required = sorted(entity.stored_as.values())
    properties = {
        name: {
            "bsonType": _BSON_TYPES.get(bson, [bson]) + ([] if name in required else ["null"]),
            "description": meaning,
        }
        for name, (bson, meaning) in document_fields(entity).items()
    }
    return {"$jsonSchema": {"bsonType": "object", "required": required, "properties": properties}}


def _has(options: Mapping[str, Any], rules: Document) -> bool:
    return all(options.get(name) == value for name, value in rules.items())


def _key(index: Document) -> list[tuple[str, object]]:
    return [*dict(index["key"]).items()]


def _kind(index: Document) -> tuple[object, ...]:
    return _key(index), bool(index.get("unique")), "expireAfterSeconds" in index
