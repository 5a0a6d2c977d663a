"""The schema of the raw store: indexes and the validator of posts, set up by version.

All of it stands here. Whoever changes it raises `VERSION`; docs/operations.md has the rules.
"""

from collections.abc import Mapping
from typing import Any

from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import DuplicateKeyError, OperationFailure

from pipeline_poc.counters import MINUTES_KEPT_S
from pipeline_poc.idempotency import KEPT_S
from pipeline_poc.mongo import Document, Mongo
from pipeline_poc.raw_store import FIELDS, STORED_AS
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

    Raises (every method):
        ServiceUnavailable: MongoDB can't be reached.
    """

    def __init__(self, mongo: Mongo, *, ledger_retention_s: int) -> None:
        self._mongo = mongo
        self._schema = mongo.database["schema"]
        self._retention_s = ledger_retention_s
        self._indexes = {
            "posts": [
                IndexModel([("externalId", ASCENDING)], unique=True),
                IndexModel([("batchId", ASCENDING), ("migrated", ASCENDING)]),
                IndexModel([("quarantine.code", ASCENDING)], sparse=True),
            ],
            "batches": [
                IndexModel([("state", ASCENDING), ("createdAt", ASCENDING)]),
                IndexModel([(_EXPIRING, ASCENDING)], expireAfterSeconds=ledger_retention_s),
            ],
            "quarantined_records": [
                IndexModel([("code", ASCENDING)]),
                IndexModel([("lastSeenAt", DESCENDING), ("_id", DESCENDING)]),
            ],
            "counters": [IndexModel([("at", ASCENDING)], expireAfterSeconds=MINUTES_KEPT_S)],
            "idempotency_keys": [IndexModel([("at", ASCENDING)], expireAfterSeconds=KEPT_S)],
        }

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
        note = self._set_validator()
        self._record({"version": VERSION})
        return Upgrade(before, self.read(), note)

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

    def _set_validator(self) -> str | None:
        """Set the validator where it differs; returns why there is none on a server that does not take it."""
        posts = self._mongo.database["posts"]
        # A document that is no post is kept, told of, and quarantined: nothing that anybody stored may be refused.
        rules = {"validator": validator(), "validationLevel": "moderate", "validationAction": "warn"}
        refusal: object = "it is accepted, and not kept"
        with self._mongo.translated():
            if _has(posts.options(), rules):
                return None
            try:
                self._mongo.database.command({"collMod": "posts", **rules})
            except OperationFailure as error:
                if error.code not in _NOT_TAKEN:
                    raise
                refusal = error
            if _has(posts.options(), rules):
                return None
        return f"this server takes no validator, so that it warns of no document ({refusal})"

    def _apply_retention(self) -> None:
        with self._mongo.translated():
            for name, index in self._mongo.database["batches"].index_information().items():
                if _key(index) == [(_EXPIRING, ASCENDING)] and index.get("expireAfterSeconds") != self._retention_s:
                    change = {"name": name, "expireAfterSeconds": self._retention_s}
                    self._mongo.database.command("collMod", "batches", index=change)


def validator() -> Document:
    """Return what a document of ``posts`` looks like, in MongoDB's words; made of `FIELDS`.

    Documents of the replaced service fit it, and may have more fields.
    """
    required = sorted(STORED_AS.values())
    properties = {
        name: {
            "bsonType": _BSON_TYPES.get(bson, [bson]) + ([] if name in required else ["null"]),
            "description": meaning,
        }
        for name, (bson, meaning) in FIELDS.items()
    }
    return {"$jsonSchema": {"bsonType": "object", "required": required, "properties": properties}}


def _has(options: Mapping[str, Any], rules: Document) -> bool:
    return all(options.get(name) == value for name, value in rules.items())


def _key(index: Document) -> list[tuple[str, object]]:
    return [*dict(index["key"]).items()]


def _kind(index: Document) -> tuple[object, ...]:
    return _key(index), bool(index.get("unique")), "expireAfterSeconds" in index
