"""The raw store: MongoDB holds every post, its state, and the records that are no posts.

`FIELDS` describes a document of ``posts``; the first seven fields are those of the service that
this one replaces. Records that are no posts are kept in ``quarantined_records``.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from pymongo import ASCENDING, InsertOne, UpdateOne
from pymongo.errors import BulkWriteError, DuplicateKeyError

from pipeline_poc.errors import TransientError
from pipeline_poc.mongo import Document, Mongo
from pipeline_poc.posts import (
    INT_MAX,
    SOURCE_FIELDS,
    Post,
    RejectedRecord,
    StoredPost,
    content_hash,
    next_version,
    parse,
)

T = TypeVar("T")

FIELDS = {
    "externalId": ("int", "the post's id in the source; unique"),
    "userId": ("int", "the author's id in the source"),
    "title": ("string", "the post's title"),
    "body": ("string", "the post's text"),
    "ingestedAt": ("date", "when the post first arrived, UTC"),
    "migrated": ("bool", "whether the row of this version is committed"),
    "migratedAt": ("date", "when that was, UTC"),
    "contentHash": ("string", "digest of the four values of the source"),
    "version": ("long", "grows with each content of the post"),
    "changedAt": ("date", "when this version arrived, UTC"),
    "batchId": ("string", "the batch of the ledger in which this version is migrated"),
    "quarantine": ("object", "code, message and time, only where the relational store refuses the post"),
}
"""The fields of a document of ``posts``, each with BSON type and meaning."""

STORED_AS = {name: "externalId" if name == "id" else name for name in SOURCE_FIELDS}
"""The fields that every post has, by their names in the source."""
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
_TRIES = 5
"""Rounds in which an ingestion tries to get ahead of others that change the same posts."""


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """What tells versions of a post apart; both are None in documents of the replaced service."""

    content_hash: str | None
    version: int | None


@dataclass(frozen=True, slots=True)
class HashedPost:
    """A post with its content hash."""

    post: Post
    content_hash: str

    def is_stored(self, versions: Mapping[int, StoredVersion]) -> bool:
        """Return whether these are the versions of a store that holds this very content."""
        stored = versions.get(self.post.external_id)
        return stored is not None and stored.content_hash == self.content_hash


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


@dataclass(frozen=True, slots=True)
class PostState:
    """A post as reconciliation sees it.

    Attributes:
        content_hash: Of the four values that the document holds now, not the hash stored in it.
        batch_id: None where the post is in no batch.
    """

    external_id: int
    content_hash: str
    migrated: bool
    quarantined: bool
    batch_id: str | None
    hash_is_right: bool


class RawStore:
    """The collections ``posts``, ``quarantined_records`` and ``ingestion_state``.

    Raises (every method):
        ServiceUnavailable: MongoDB can't be reached.
    """

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._posts = mongo.database["posts"]
        self._rejected = mongo.database["quarantined_records"]
        self._state = mongo.database["ingestion_state"]

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
        self, posts: Sequence[HashedPost], known: Mapping[int, StoredVersion], batch_id: str, at: datetime
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
        for _ in range(_TRIES):
            inserted, modified = self._write([_store_operation(post, known, batch_id, at) for post in pending])
            new += inserted
            changed += modified
            if inserted + modified < len(pending):
                known = self.versions([post.post.external_id for post in pending])
                pending = [post for post in pending if not post.is_stored(known)]
            else:
                pending = []
            if not pending:
                return Stored(new=new, changed=changed, unchanged=len(posts) - new - changed)
        raise TransientError(
            f"{len(pending)} posts, such as {pending[0].post.external_id}, keep changing meanwhile, "
            "or something keeps them out of MongoDB, such as a unique index that is not the pipeline's"
        )

    def offer(
        self, posts: Sequence[HashedPost], known: Mapping[int, StoredVersion], batch_id: str, at: datetime
    ) -> int:
        """Store as `store` does, but give way to every version that somebody else stored meanwhile.

        Returns:
            Number of posts written.
        """
        return sum(self._write([_store_operation(post, known, batch_id, at) for post in posts]))

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

    def posts_to_migrate(self, batch_id: str) -> list[StoredPost]:
        """Return the posts of a sealed batch that are neither migrated nor quarantined, by id."""
        with self._mongo.translated():
            posts = [_stored_post(document) for document in self._posts.find(_unmigrated(batch_id), {"_id": False})]
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
            operations = [_adopt_operation(document, batch_id, at) for document in found]
            return sum(
                self._posts.bulk_write(chunk, ordered=False).modified_count for chunk in _chunks(operations, _BULK)
            )

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
        parts = _part_by_part(self._read, len) if external_ids is None else [self._read({"$in": sorted(external_ids)})]
        for documents in parts:
            for document in documents:
                if isinstance(document.get("externalId"), int):
                    yield post_state(document)

    def _read(self, ids: Document) -> list[Document]:
        with self._mongo.translated():
            return list(self._posts.find({"externalId": ids}, {"_id": False}).sort("externalId", ASCENDING))

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

    def note_ingestion(self, at: datetime, *, run: Document | None, error: str | None) -> None:
        """Keep how an ingestion ended: its numbers where it went well, else its error."""
        update: Document = (
            {"$set": {"lastRun": run, "lastSuccessAt": at, "errorsSince": 0}}
            if error is None
            else {"$set": {"lastError": error, "lastErrorAt": at}, "$inc": {"errorsSince": 1}}
        )
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
        first += width
        # Ids may be dense or have gaps; each part follows the density of the one before.
        width = 2 * width if 2 * size(found) < _PART else max(1, width * _PART // size(found))
    yield read({"$gte": first})


def _lookups(external_ids: Sequence[int]) -> Iterator[Document]:
    """Yield conditions on ``externalId`` that together match these ascending ids, and few others."""
    for ids in _chunks(external_ids, _BULK):
        if ids[-1] - ids[0] < _DENSE * len(ids):
            yield {"$gte": ids[0], "$lte": ids[-1]}
        else:
            yield from ({"$in": part} for part in _chunks(ids, _IN_LIST))


def _store_operation(
    hashed: HashedPost, known: Mapping[int, StoredVersion], batch_id: str, at: datetime
) -> InsertOne[Document] | UpdateOne:
    post = hashed.post
    stored = known.get(post.external_id)
    values = {
        "userId": post.user_id,
        "title": post.title,
        "body": post.body,
        "contentHash": hashed.content_hash,
        "version": next_version(stored.version if stored else None, at),
        "changedAt": at,
        "batchId": batch_id,
        "migrated": False,
        "migratedAt": None,
    }
    if stored is None:
        return InsertOne({"externalId": post.external_id, "ingestedAt": at} | values)
    # Compare and set: nobody's newer version is overwritten unseen.
    guard = {"externalId": post.external_id, "version": stored.version}
    return UpdateOne(guard, {"$set": values, "$unset": {"quarantine": ""}})


def _adopt_operation(document: Document, batch_id: str, at: datetime) -> UpdateOne:
    post = parse({name: document[stored] for name, stored in STORED_AS.items() if stored in document})
    values: Document
    if isinstance(post, RejectedRecord):
        values = {"quarantine": {"code": post.code, "message": post.message, "at": at}}
    else:
        version = document.get("version")
        values = {
            "batchId": batch_id,
            "migrated": False,
            "migratedAt": None,
            "contentHash": _hash_of(document),
            "version": next_version(version if isinstance(version, int) else None, at),
            "changedAt": _time(document.get("changedAt"), at),
            "ingestedAt": _time(document.get("ingestedAt"), at),
        }
    return UpdateOne({"_id": document["_id"], "batchId": None, "migrated": {"$ne": True}}, {"$set": values})


def _time(value: Any, default: datetime) -> datetime:
    return value if isinstance(value, datetime) else default


def _hash_of(document: Document) -> str:
    try:
        return content_hash(document["externalId"], document["userId"], document["title"], document["body"])
    except (KeyError, TypeError, ValueError):
        # A document that somebody else wrote; no valid post has this hash.
        return ""


def _stored_post(document: Document) -> StoredPost:
    return StoredPost(
        external_id=document["externalId"],
        user_id=document["userId"],
        title=document["title"],
        body=document["body"],
        content_hash=document["contentHash"],
        version=document["version"],
        ingested_at=document["ingestedAt"],
    )


def post_state(document: Document) -> PostState:
    """Return a document of ``posts`` as reconciliation sees it."""
    digest = _hash_of(document)
    return PostState(
        external_id=document["externalId"],
        content_hash=digest,
        migrated=document.get("migrated") is True,
        quarantined=document.get("quarantine") is not None,
        batch_id=document.get("batchId"),
        hash_is_right=document.get("contentHash") in (None, digest),
    )


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
