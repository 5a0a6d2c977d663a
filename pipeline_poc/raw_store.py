"""The raw store: MongoDB holds every post, its state, and the records that are no posts.

`document_fields` describes a document; the first seven fields of one of ``posts`` are those of the service
that this one replaces. Records that are no posts are kept in ``quarantined_records``.

Where another entity's records are stored, they take the posts' place, in collections of their own.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, islice
from typing import Any, NamedTuple, TypeVar

from bson import Int64
from pymongo import ASCENDING, DESCENDING, InsertOne, UpdateOne
from pymongo.errors import BulkWriteError, DuplicateKeyError

from pipeline_poc.errors import TransientError
from pipeline_poc.mongo import Document, Mongo
from pipeline_poc.post_selection import PostSelection
from pipeline_poc.records import (
    INT_MAX,
    Entity,
    HashedRecord,
    Kind,
    RejectedRecord,
    StoredRecord,
    StoredVersion,
    content_hash,
    next_version,
)

T = TypeVar("T")

_BSON_TYPES: Mapping[Kind, str] = {"integer": "int", "text": "string", "flag": "bool"}
_PYTHON_TYPES: Mapping[str, tuple[type, ...]] = {
    "int": (int, Int64),
    "long": (int, Int64),
    "string": (str,),
    "bool": (bool,),
    "date": (datetime,),
    "object": (dict,),
}
"""What the driver makes of each BSON type."""
_STATE = {
    "ingestedAt": ("date", "when it first arrived, UTC"),
    "migrated": ("bool", "whether the row of this version is committed"),
    "migratedAt": ("date", "when that was, UTC"),
    "contentHash": ("string", "digest of the values of the source"),
    "version": ("long", "grows with each content"),
    "changedAt": ("date", "when this version arrived, UTC"),
    "batchId": ("string", "the batch of the ledger in which this version is migrated"),
    "quarantine": ("object", "code, message and time, only where the relational store refuses it"),
}


def document_fields(entity: Entity) -> dict[str, tuple[str, str]]:
    """Return the fields of a document, each with BSON type and meaning."""
    own = {value.name: (_BSON_TYPES[value.kind], value.meaning) for value in entity.values}
    return {"externalId": ("int", "its id in the source; unique")} | own | _STATE


_BULK = 1000
"""Operations in one bulk write; more gain nothing and make a message large."""
_IN_LIST = 50
"""Ids in one $in list; servers that handle long lists badly take the same time for ten short ones."""
_DENSE = 2
"""Ids that fill at least one in so many places of their range are read as a range, at a quarter of the time."""
_PART = 5000
"""Posts that one question is about, more or less; servers in Python take a quarter of a second for them."""
_FOREIGN: tuple[Document, ...] = ({"$lt": 1}, {"$in": [None, False, True]}, {"$gte": ""}, {"$gte": {}})
"""What is no id of ours, but may be one in documents that somebody else wrote; a condition matches one type only."""
_DUPLICATE_KEY = 11000
_LAST_INGESTION = "last"
_ID_RANGE = "ids"
_TRIES = 5
"""Rounds in which an ingestion tries to get ahead of others that change the same posts."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Outcome of storing posts: how many were new, changed, or there already in this version."""

    new: int
    changed: int
    unchanged: int


@dataclass(frozen=True, slots=True)
class Counts:
    """The conservation equation: ``stored = migrated + backlog + quarantined``."""

    stored: int
    migrated: int
    backlog: int
    quarantined: int


class PostState(NamedTuple):
    """A post as reconciliation sees it.

    Attributes:
        content_hash: Of the four values that the document holds now, not the hash stored in it.
        batch_id: None where the post is in no batch.
        version: None in documents of the replaced service.
    """

    external_id: int
    content_hash: str
    migrated: bool
    quarantined: bool
    batch_id: str | None
    hash_is_right: bool
    version: int | None = None


class RawStore:
    """The collections ``posts``, ``quarantined_records`` and ``ingestion_state``.

    Raises (every method):
        ServiceUnavailable: MongoDB can't be reached.
    """

    def __init__(self, mongo: Mongo) -> None:
        self.entity = mongo.entity
        """Whose records these are."""
        self._fields = document_fields(mongo.entity)
        self._mongo = mongo
        self._posts = mongo.records
        self._rejected = mongo.collection("quarantined_records")
        self._state = mongo.collection("ingestion_state")

    @property
    def shown_url(self) -> str:
        """The URL without secrets, fit for logs and screens."""
        return self._mongo.shown_url

    def ping(self) -> None:
        """Check that the store answers."""
        self._mongo.ping()

    def versions(self, external_ids: Sequence[int]) -> dict[int, StoredVersion]:
        """Return the stored versions of those of these posts that are stored."""
        found: dict[int, StoredVersion] = {}
        fields = {"_id": False, "externalId": True, "contentHash": True, "version": True}
        with self._mongo.translated():
            for query in _lookups(sorted(external_ids)):
                for document in self._posts.find({"externalId": query}, fields):
                    found[document["externalId"]] = StoredVersion(document.get("contentHash"), document.get("version"))
        return found

    def store(
        self, posts: Sequence[HashedRecord], known: Mapping[int, StoredVersion], batch_id: str, at: datetime
    ) -> Stored:
        """Store new and changed posts as the newest versions, stamped with their batch.

        Args:
            posts: Each id at most once.
            known: The versions that are stored already, as `versions` returned them.
            batch_id: A batch that is not sealed yet.
            at: Becomes ``changedAt``, and ``ingestedAt`` of the new ones.

        Returns:
            What was written; versions that another ingestion stored meanwhile count as unchanged.

        Raises:
            TransientError: Others keep changing the same posts, or the collection takes them not.
        """
        new = changed = 0
        pending = list(posts)
        self._note_ids([post.external_id for post in posts])
        for _ in range(_TRIES):
            inserted, modified = self._write([self._storing(post, known, batch_id, at) for post in pending])
            new += inserted
            changed += modified
            if inserted + modified < len(pending):
                known = self.versions([post.external_id for post in pending])
                pending = [post for post in pending if not post.is_stored(known)]
            else:
                pending = []
            if not pending:
                return Stored(new=new, changed=changed, unchanged=len(posts) - new - changed)
        raise TransientError(
            f"{len(pending)} posts, such as {pending[0].external_id}, keep changing meanwhile, "
            "or something keeps them out of MongoDB, such as a unique index that is not the pipeline's"
        )

    def offer(
        self, posts: Sequence[HashedRecord], known: Mapping[int, StoredVersion], batch_id: str, at: datetime
    ) -> int:
        """Store as `store` does, but give way to every version that somebody else stored meanwhile.

        Returns:
            Number of posts written.
        """
        return sum(self._write([self._storing(post, known, batch_id, at) for post in posts]))

    def _storing(
        self, post: HashedRecord, known: Mapping[int, StoredVersion], batch_id: str, at: datetime
    ) -> InsertOne[Document] | UpdateOne:
        external_id, *content = post.record.content
        stored = known.get(external_id)
        values = dict(zip(self.entity.names, content, strict=True)) | {
            "contentHash": post.content_hash,
            "version": next_version(stored.version if stored else None, at),
            "changedAt": at,
            "batchId": batch_id,
            "migrated": False,
            "migratedAt": None,
        }
        if stored is None:
            return InsertOne({"externalId": external_id, "ingestedAt": at} | values)
        # Compare and set: nobody's newer version is overwritten unseen.
        guard = {"externalId": external_id, "version": stored.version}
        return UpdateOne(guard, {"$set": values, "$unset": {"quarantine": ""}})

    def _write(self, operations: Sequence[InsertOne[Document] | UpdateOne]) -> tuple[int, int]:
        """Return how many documents were inserted and modified; the rest met a version of somebody else."""
        inserted = modified = 0
        with self._mongo.translated():
            for chunk in _chunks(operations, _BULK):
                try:
                    result = dict(self._posts.bulk_write(chunk, ordered=False).bulk_api_result)
                except BulkWriteError as error:
                    result = dict(error.details)
                    # What was written, but never confirmed, may be gone after an election.
                    is_unsure = bool(result.get("writeConcernErrors"))
                    if is_unsure or any(failure["code"] != _DUPLICATE_KEY for failure in result["writeErrors"]):
                        raise
                inserted += result["nInserted"]
                modified += result["nModified"]
        return inserted, modified

    def posts_to_migrate(self, batch_id: str) -> list[StoredRecord]:
        """Return the posts of a sealed batch that are neither migrated nor quarantined, by id."""
        with self._mongo.translated():
            found = self._posts.find(_unmigrated(batch_id), {"_id": False})
            posts = [_stored_post(document, self.entity.names) for document in found]
        posts.sort(key=lambda post: post.external_id)
        return posts

    def mark_migrated(self, batch_id: str, at: datetime) -> int:
        """Mark the posts of a sealed batch whose rows are committed; returns their number."""
        with self._mongo.translated():
            update = {"$set": {"migrated": True, "migratedAt": at}}
            return self._posts.update_many(_unmigrated(batch_id), update).modified_count

    def quarantine_posts(self, batch_id: str, reasons: Mapping[int, tuple[str, str]], at: datetime) -> None:
        """Quarantine posts of a batch that the relational store refuses.

        Args:
            batch_id: Guards against quarantining a newer version, which is in another batch, or
                one that a quicker worker has migrated meanwhile.
            reasons: Reason code and message for each id.
            at: The time of the refusal.
        """
        operations = [
            UpdateOne(
                {"externalId": external_id} | _unmigrated(batch_id),
                {"$set": {"quarantine": {"code": code, "message": message, "at": at}}},
            )
            for external_id, (code, message) in reasons.items()
        ]
        with self._mongo.translated():
            for chunk in _chunks(operations, _BULK):
                self._posts.bulk_write(chunk, ordered=False)

    def quarantine_records(self, records: Iterable[RejectedRecord], at: datetime) -> None:
        """Keep records that are no posts: the same payload once, with a count of its arrivals."""
        operations = [
            UpdateOne(
                {"_id": record.fingerprint},
                {
                    "$set": {"lastSeenAt": at, "message": record.message},
                    "$setOnInsert": {
                        "code": record.code,
                        "payload": record.payload,
                        "externalId": record.external_id,
                        "firstSeenAt": at,
                    },
                    "$inc": {"count": 1},
                },
                upsert=True,
            )
            for record in records
        ]
        with self._mongo.translated():
            for chunk in _chunks(operations, _BULK):
                self._rejected.bulk_write(chunk, ordered=False)

    def move(self, old_batch_id: str, new_batch_id: str) -> int:
        """Move the unmigrated posts of a batch into one that is not sealed yet; returns their number."""
        with self._mongo.translated():
            update = {"$set": {"batchId": new_batch_id}}
            return self._posts.update_many(_unmigrated(old_batch_id), update).modified_count

    def adopt(self, batch_id: str, at: datetime, *, limit: int) -> int:
        """Stamp unmigrated posts that are in no batch, and give them what the pipeline needs.

        Such posts were written by the service that this one replaces, or by hand. Those that
        are not valid are quarantined.

        Args:
            batch_id: A batch that is not sealed yet.
            at: The time of the adoption.
            limit: Most posts to adopt.

        Returns:
            Number of posts adopted or quarantined; repeat until it is 0.
        """
        with self._mongo.translated():
            found = self._posts.find(_unmigrated(None)).limit(limit)
            operations = [self._adopting(document, batch_id, at) for document in found]
            return sum(
                self._posts.bulk_write(chunk, ordered=False).modified_count for chunk in _chunks(operations, _BULK)
            )

    def _adopting(self, document: Document, batch_id: str, at: datetime) -> UpdateOne:
        post = self.entity.parse(self.entity.as_served(document))
        values: Document
        if isinstance(post, RejectedRecord):
            values = {"quarantine": {"code": post.code, "message": post.message, "at": at}}
        else:
            version = document.get("version")
            values = {
                "batchId": batch_id,
                "migrated": False,
                "migratedAt": None,
                "contentHash": _hash_of(document, self.entity),
                "version": next_version(version if isinstance(version, int) else None, at),
                "changedAt": _time(document.get("changedAt"), at),
                "ingestedAt": _time(document.get("ingestedAt"), at),
            }
        return UpdateOne({"_id": document["_id"], "batchId": None, "migrated": {"$ne": True}}, {"$set": values})

    def left_behind(self, batch_id: str, *, limit: int) -> list[Any]:
        """Return some ids of a batch's posts that are neither migrated nor quarantined, whatever their flag holds."""
        query = {"batchId": batch_id, "migrated": {"$ne": True}, "quarantine": None}
        with self._mongo.translated():
            return [post.get("externalId") for post in self._posts.find(query, {"externalId": True}).limit(limit)]

    def has_unmigrated(self, batch_id: str | None) -> bool:
        """Return whether a batch, or None for no batch, holds posts that wait."""
        with self._mongo.translated():
            return self._posts.find_one(_unmigrated(batch_id), {"_id": True}) is not None

    def counts(self, *, on_part: Callable[[], None] = lambda: None) -> Counts:
        """Count the posts by state; costs time in proportion to what is stored.

        It goes through the ids part by part. Each post counts once, in the state that it has when
        its part is counted.

        Args:
            on_part: Called after each part, such as to let others have a turn.
        """
        states: Counter[str] = Counter()
        for found in _part_by_part(self._count, Counter.total):
            states.update(found)
            on_part()
        return Counts(
            stored=states.total(), **{state: states[state] for state in ("migrated", "backlog", "quarantined")}
        )

    def _count(self, ids: Document) -> "Counter[str]":
        state = {"migrated": "$migrated", "quarantine": {"$ifNull": ["$quarantine.code", None]}}
        stages: list[Document] = [
            {"$match": {"externalId": ids}},
            {"$group": {"_id": state, "posts": {"$sum": 1}}},
        ]
        found: Counter[str] = Counter()
        with self._mongo.translated():
            for group in self._posts.aggregate(stages):
                is_migrated = group["_id"].get("migrated") is True
                state_name = (
                    "migrated" if is_migrated else "quarantined" if group["_id"].get("quarantine") else "backlog"
                )
                found[state_name] += group["posts"]
        return found

    def quarantined_record_counts(self) -> dict[str, int]:
        """Count the kept records that are no posts, by reason code."""
        with self._mongo.translated():
            groups = self._rejected.aggregate([{"$group": {"_id": "$code", "records": {"$sum": 1}}}])
            return {group["_id"]: group["records"] for group in groups}

    def has_posts(self) -> bool:
        """Return whether any post is stored."""
        return bool(self.sample(1))

    def sample(self, limit: int) -> list[Document]:
        """Return some stored posts as documents, the lowest ids first."""
        with self._mongo.translated():
            # Ids mostly begin at 1; a bounded range spares servers that sort everything first.
            for query in ({"externalId": {"$gte": 1, "$lte": limit}}, {}):
                if found := list(self._posts.find(query, {"_id": False}).sort("externalId", ASCENDING).limit(limit)):
                    return found
        return []

    def states(self, external_ids: Collection[int] | None = None) -> Iterator[PostState]:
        """Stream the states of all posts, or of these, by id.

        Documents without an integer for an id, which `adopt` quarantined, have no place in that order.
        """
        parts = (
            chain(map(self._read, _FOREIGN), self._read_range(1, None))
            if external_ids is None
            else [self._read(_among(external_ids))]
        )
        for document in chain.from_iterable(parts):
            if isinstance(document.get("externalId"), int):
                yield post_state(document, self.entity)

    def _read(self, ids: Document, limit: int = 0) -> list[Document]:
        with self._mongo.translated():
            return list(self._posts.find({"externalId": ids}).sort("externalId", ASCENDING).limit(limit))

    def _read_range(self, first: int, last: int | None) -> Iterator[list[Document]]:
        """Read the posts of a range of ids, some thousands at once; where the last one is None, all from the first."""
        width, end = _PART, INT_MAX if last is None else last
        while first <= end:
            until = min(first + width - 1, end)
            found = self._read({"$gte": first, "$lte": until}, limit=2 * _PART)
            yield found
            if len(found) < 2 * _PART:
                first, width = until + 1, _next_width(width, len(found))
            else:  # Dense behind a gap: the rest of the part is left for the next ones.
                behind = int(found[-1]["externalId"]) + 1
                first, width = behind, behind - first
        if last is None:
            yield self._read({"$gt": INT_MAX})

    def documents(self, selection: PostSelection) -> Iterator[Document]:
        """Stream the documents of posts by id, as they are; some thousands are held at once."""
        if selection.ids is None:
            parts = self._read_range(selection.first, selection.last)
        else:
            parts = (self._read(ids) for ids in _lookups(sorted(set(selection.ids))))
        ids = None if selection.ids is None else frozenset(selection.ids)
        for document in chain.from_iterable(parts):
            if _is_meant(document, ids, selection.changed_since):
                yield document

    def id_range(self) -> range:
        """Return all numbers from the lowest id that was ever stored to the highest; none where there was none."""
        kept = self.load_state(_ID_RANGE)
        if not kept.get("isWhole"):  # What was stored before this was kept, or by somebody else, is looked for once.
            ids = {"externalId": {"$gte": 1, "$lte": INT_MAX}}
            with self._mongo.translated():
                ends = [
                    int(document["externalId"])
                    for direction in (ASCENDING, DESCENDING)
                    for document in self._posts.find(ids, {"externalId": True}).sort("externalId", direction).limit(1)
                ]
            if not ends:
                return range(0)
            self._note_ids(ends, {"isWhole": True})
            kept = self.load_state(_ID_RANGE)
        return range(kept["lowest"], kept["highest"] + 1)

    def _note_ids(self, ids: Sequence[int], more: Document | None = None) -> None:
        """Keep the lowest and the highest id: some servers look through everything to find them."""
        update: Document = {"$min": {"lowest": min(ids)}, "$max": {"highest": max(ids)}}
        if more:
            update["$set"] = more
        with self._mongo.translated():
            try:
                self._state.update_one({"_id": _ID_RANGE}, update, upsert=True)
            except DuplicateKeyError:  # Two that were the first in the same moment.
                self._state.update_one({"_id": _ID_RANGE}, update)

    def keeps_ids_unique(self) -> bool:
        """Return whether the unique index is there, which lets no id come twice."""
        with self._mongo.translated():
            indexes = self._posts.index_information().values()
        return any(index.get("unique") and dict(index["key"]) == {"externalId": ASCENDING} for index in indexes)

    def repeated_ids(self, *, limit: int) -> list[Any]:
        """Return some ids that more than one document has; costs time in proportion to what is stored."""
        stages: list[Document] = [
            {"$group": {"_id": "$externalId", "documents": {"$sum": 1}}},
            {"$match": {"documents": {"$gt": 1}}},
            {"$limit": limit},
        ]
        with self._mongo.translated():
            return [group["_id"] for group in self._posts.aggregate(stages, allowDiskUse=True)]

    def misfits(self, parts: Iterable[range], *, limit: int) -> list[Any]:
        """Return some ids of documents that have another shape than `document_fields` says, and are not quarantined.

        Args:
            parts: The ids to look at; documents that have no id of a record are looked at, too.
            limit: Most ids to return.
        """
        # Servers that know $jsonSchema take far longer for it than for the documents.
        documents = chain.from_iterable(self._read(ids) for ids in chain(_FOREIGN, map(_among, parts)))
        misfits = (each for each in documents if each.get("quarantine") is None and not self._fits(each))
        return [document.get("externalId") for document in islice(misfits, limit)]

    def _fits(self, document: Document) -> bool:
        required = self.entity.stored_as.values()
        return all(
            type(value := document.get(name)) in _PYTHON_TYPES[bson] or (value is None and name not in required)
            for name, (bson, _) in self._fields.items()
        )

    def document(self, external_id: int) -> Document | None:
        """Look the document of a post up, as it is."""
        with self._mongo.translated():
            return self._posts.find_one({"externalId": external_id})

    def load_state(self, key: str) -> Document:
        """Return what `save_state` kept under a key; empty where that is nothing."""
        with self._mongo.translated():
            return self._state.find_one({"_id": key}) or {}

    def save_state(self, key: str, values: Document, *, before: Document) -> bool:
        """Keep values about an ingestion under a key, if nobody else has done so in the meantime.

        Args:
            key: Of the source.
            values: With ``ingestedAt``, which tells ingestions apart.
            before: What `load_state` returned at the begin of the ingestion.

        Returns:
            Whether they were kept.
        """
        with self._mongo.translated():
            try:
                expected = {"_id": key, "ingestedAt": before.get("ingestedAt")}
                self._state.update_one(expected, {"$set": values}, upsert=True)
            except DuplicateKeyError:
                return False
        return True

    def note_ingestion(
        self, at: datetime, *, run: Document | None, error: str | None, answer: Document | None = None
    ) -> None:
        """Keep how an ingestion ended: its numbers where it went well, else its error.

        Args:
            at: When.
            run: Its numbers.
            error: Why it failed; None where it went well.
            answer: What the source's answer was like; None where it was not looked at, and the one before stands.
        """
        update: Document = (
            {"$set": {"lastRun": run, "lastSuccessAt": at, "errorsSince": 0}}
            if error is None
            else {"$set": {"lastError": error, "lastErrorAt": at}, "$inc": {"errorsSince": 1}}
        )
        if answer is not None:
            update["$set"]["lastAnswer"] = answer
        with self._mongo.translated():
            self._state.update_one({"_id": _LAST_INGESTION}, update, upsert=True)

    def last_ingestion(self) -> Document:
        """Return what `note_ingestion` kept; empty where nothing was ever ingested."""
        return self.load_state(_LAST_INGESTION)

    def forget_answers(self) -> None:
        """Make the next ingestion of each source ask for everything."""
        with self._mongo.translated():
            self._state.update_many({}, {"$unset": {"etag": "", "digest": ""}})

    def drop_state(self, key: str) -> None:
        """Forget what is kept under a key."""
        with self._mongo.translated():
            self._state.delete_one({"_id": key})


def _unmigrated(batch_id: str | None) -> Document:
    # None also matches documents that lack the field; $ne matches a missing flag.
    return {
        "batchId": batch_id,
        "migrated": False if batch_id else {"$ne": True},
        "quarantine": None,
    }


def _part_by_part(read: Callable[[Document], T], size: Callable[[T], int]) -> Iterator[T]:
    """Read all posts, some thousands at once and by id: no question keeps the server from others for long."""
    for ids in _FOREIGN:
        yield read(ids)
    first, width = 1, _PART
    while first + width <= INT_MAX:
        found = read({"$gte": first, "$lt": first + width})
        yield found
        first, width = first + width, _next_width(width, size(found))
    yield read({"$gte": first})


def _next_width(width: int, found: int) -> int:
    """Return how many ids to ask for next: they may be dense or have gaps, and each part follows the one before."""
    return 2 * width if 2 * found < _PART else max(1, width * _PART // found)


def _is_meant(document: Document, ids: Collection[int] | None, changed_since: datetime | None) -> bool:
    external_id, changed_at = document["externalId"], document.get("changedAt")
    if not isinstance(external_id, int) or (ids is not None and external_id not in ids):
        return False
    # What has no time of change was written by somebody else, and is as old as can be.
    return changed_since is None or (isinstance(changed_at, datetime) and changed_at >= changed_since)


def _among(external_ids: Collection[int]) -> Document:
    """Return the condition on ``externalId`` that matches these ids; a range is read as one, where there is any id."""
    if isinstance(external_ids, range) and external_ids:
        return {"$gte": external_ids[0], "$lte": external_ids[-1]}
    return {"$in": sorted(external_ids)}


def _lookups(external_ids: Sequence[int]) -> Iterator[Document]:
    """Yield conditions on ``externalId`` that together match these ascending ids, and few others."""
    for ids in _chunks(external_ids, _BULK):
        if ids[-1] - ids[0] < _DENSE * len(ids):
            yield {"$gte": ids[0], "$lte": ids[-1]}
        else:
            yield from ({"$in": part} for part in _chunks(ids, _IN_LIST))


def _time(value: Any, default: datetime) -> datetime:
    return value if isinstance(value, datetime) else default


def _hash_of(document: Document, entity: Entity) -> str:
    try:
        return content_hash(*[document[name] for name in entity.stored_as.values()])
    except (KeyError, TypeError, ValueError):
        # A document that somebody else wrote; no valid post has this hash.
        return ""


def _stored_post(document: Document, names: Sequence[str]) -> StoredRecord:
    return StoredRecord(
        external_id=document["externalId"],
        values=tuple([document[name] for name in names]),
        content_hash=document["contentHash"],
        version=document["version"],
        ingested_at=document["ingestedAt"],
    )


def post_state(document: Document, entity: Entity) -> PostState:
    """Return a document as reconciliation sees it."""
    digest, version = _hash_of(document, entity), document.get("version")
    return PostState(
        external_id=document["externalId"],
        content_hash=digest,
        migrated=document.get("migrated") is True,
        quarantined=document.get("quarantine") is not None,
        batch_id=document.get("batchId"),
        hash_is_right=document.get("contentHash") in (None, digest),
        version=version if isinstance(version, int) else None,
    )


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
