"""The quarantine: records that never became posts, and posts that can't be migrated.

Records stand in ``quarantined_records``; a post stays in ``posts`` with a ``quarantine`` of code,
message and time. What a person discards is kept with the reason, and is no longer shown.

Every question costs time in proportion to what is quarantined, never to what is stored.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Literal, TypeVar

from bson import ObjectId
from pymongo import DESCENDING
from pymongo.collection import Collection

from pipeline_poc.mongo import Document, Mongo
from pipeline_poc.records import REASONS
from pipeline_poc.selection import (
    Page,
    Selection,
    SelectionError,
    check_limit,
    check_text,
    decode_cursor,
    encode_cursor,
)

T = TypeVar("T")

Kind = Literal["record", "post"]
KINDS: tuple[Kind, ...] = ("record", "post")

DEAD_LETTER = "dead_letter"
"""Reason code of posts whose batch a person gave up."""
_MEANINGS = REASONS | {DEAD_LETTER: "the attempts of its batch ran out, and a person gave the batch up"}
_REFUSED = "the relational store refuses the post"

PORTION = 100
"""Items that are read or changed at once: a payload may be large, and servers handle long lists badly."""
_PAYLOAD_SHOWN = 2000
"""Characters of a payload in a list; looking at one item shows all of it."""
_FINGERPRINT = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class QuarantineGroup:
    """What is quarantined for one reason.

    Attributes:
        first_at: The first arrival of any of them.
        last_at: The latest arrival of any of them.
    """

    kind: Kind
    reason: str
    meaning: str
    count: int
    first_at: datetime | None
    last_at: datetime | None


@dataclass(frozen=True, slots=True)
class Discarded:
    """Who discarded something, when, and why."""

    reason: str
    at: datetime
    by: str


@dataclass(frozen=True, slots=True)
class QuarantinedItem:
    """A record or a post in quarantine.

    Attributes:
        id: For selections and for looking at it.
        external_id: The post's id, where it has a usable one.
        count: How often it arrived.
        payload: JSON text; in lists cut, with an ellipsis.
        discarded: None unless a person discarded it.
    """

    id: str
    kind: Kind
    reason: str
    message: str
    external_id: int | None
    count: int
    first_at: datetime | None
    last_at: datetime | None
    payload: str
    discarded: Discarded | None


@dataclass(frozen=True, slots=True)
class KeptRecord:
    """A record as it was kept."""

    fingerprint: str
    code: str
    payload: str
    last_seen_at: datetime


@dataclass(frozen=True, slots=True)
class KeptPost:
    """A quarantined post; its record is what the source would have served for it."""

    key: Any
    record: dict[str, Any]


class Quarantine:
    """The collection ``quarantined_records``, and the quarantined documents of ``posts``.

    Every method is safe to repeat and to run in several processes.

    Raises (every method):
        ServiceUnavailable: MongoDB can't be reached.
    """

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._records = mongo.collection("quarantined_records")
        self._posts = mongo.records

    def groups(self, *, include_discarded: bool = False) -> list[QuarantineGroup]:
        """Group what is quarantined by its reason, the largest groups first."""
        groups = []
        for kind in KINDS:
            where = _Where(kind)
            query = where.quarantined(discarded=None if include_discarded else False)
            totals: Document = {
                "count": {"$sum": 1},
                "first": {"$min": f"${where.first_at}"},
                "last": {"$max": f"${where.last_at}"},
            }
            with self._mongo.translated():
                found = self._collection(kind).aggregate(
                    [{"$match": query}, {"$group": {"_id": f"${where.code}", **totals}}]
                )
                groups += [
                    QuarantineGroup(
                        kind=kind,
                        reason=str(group["_id"]),
                        meaning=meaning(str(group["_id"])),
                        count=group["count"],
                        first_at=_time(group["first"]),
                        last_at=_time(group["last"]),
                    )
                    for group in found
                ]
        return sorted(groups, key=lambda group: (-group.count, group.kind, group.reason))

    def items(
        self,
        reason: str | None = None,
        kind: Kind | None = None,
        *,
        limit: int = 20,
        cursor: str | None = None,
        discarded: bool = False,
    ) -> Page[QuarantinedItem]:
        """List what is quarantined, or what was discarded of it, the latest first.

        Args:
            reason: Only those with this reason code.
            kind: Only records, or only posts.
            limit: Most items to return.
            cursor: What the page before returned.
            discarded: Those that were discarded instead of those that were not.

        Raises:
            SelectionError: The cursor is none of ours, or the limit is too high.
        """
        check_limit(limit)
        check_text(reason or "")
        after = _read_cursor(cursor) if cursor is not None else None
        found: list[tuple[_Place, QuarantinedItem]] = []
        for each in KINDS if kind is None else (kind,):
            where = _Where(each)
            query = where.quarantined(reason, discarded=discarded)
            found += [
                (_Place(where.at(document), each, document["_id"]), _item(each, document, cut=True))
                for document in self._newest(each, query, after, limit + 1)
            ]
        found.sort(key=lambda entry: entry[0].order, reverse=True)
        shown = found[:limit]
        return Page(
            items=[item for _, item in shown],
            next_cursor=_write_cursor(shown[-1][0]) if len(found) > limit else None,
        )

    def _newest(self, kind: Kind, query: Document, after: "_Place | None", limit: int) -> list[Document]:
        """Return the newest documents after a place, those without a time last."""
        at = _Where(kind).last_at
        steps: list[Document] = [{}]
        if after is not None:
            # In one condition with $or, servers would look through all that is stored.
            behind = {at: {"$lt": after.at}} if after.at is not None else None
            same: Document | None = {at: after.at}
            if kind == after.kind:
                same = {at: after.at, "_id": {"$lt": after.key}}
            elif kind > after.kind:
                same = None
            last = {at: None} if after.at is not None else None
            steps = [step for step in (same, behind, last) if step is not None]
        found: list[Document] = []
        with self._mongo.translated():
            for step in steps:
                if len(found) < limit:
                    cursor = self._collection(kind).find(query | step)
                    found += cursor.sort([(at, DESCENDING), ("_id", DESCENDING)]).limit(limit - len(found))
        return found

    def item(self, item_id: str) -> QuarantinedItem | None:
        """Look at one record or post with its whole payload; None where it is not in quarantine."""
        check_text(item_id)
        key = _key(item_id)
        if key is None:
            return None
        kind, value = key
        with self._mongo.translated():
            document = self._collection(kind).find_one({"_id": value} | _Where(kind).is_quarantined)
        return _item(kind, document, cut=False) if document else None

    def selected(self, kind: Kind, selection: Selection, *, again: bool) -> Iterator[list[Any]]:
        """Yield the keys of what is selected, the latest first, in portions.

        Args:
            kind: Records or posts.
            selection: Which of them.
            again: Whether something that was discarded, and is selected by its id, counts.
        """
        where = _Where(kind)
        if selection.ids is not None:
            keys = {key[1]: None for key in map(_key, selection.ids) if key is not None and key[0] == kind}
            query = where.is_quarantined if again else where.is_quarantined | {where.discarded: None}
            for portion in portions(keys):
                with self._mongo.translated():
                    found = self._collection(kind).find({"_id": {"$in": portion}} | query, {where.last_at: True})
                    ordered = sorted(found, key=lambda document: _epoch(where.at(document)), reverse=True)
                yield [document["_id"] for document in ordered]
            return
        query = where.quarantined(selection.reason, discarded=False)
        with self._mongo.translated():
            found = self._collection(kind).find(query, {"_id": True}).sort(where.last_at, DESCENDING)
            yield from portions(document["_id"] for document in found)

    def records(self, fingerprints: Sequence[str]) -> list[KeptRecord]:
        """Return these kept records, the latest first."""
        with self._mongo.translated():
            records = [
                KeptRecord(document["_id"], document["code"], document["payload"], document["lastSeenAt"])
                for document in self._records.find({"_id": {"$in": [*fingerprints]}})
            ]
        return sorted(records, key=lambda record: record.last_seen_at, reverse=True)

    def remove_records(self, fingerprints: Sequence[str]) -> int:
        """Remove records that are stored as posts now; returns the number of those that were there."""
        if not fingerprints:
            return 0
        with self._mongo.translated():
            return self._records.delete_many({"_id": {"$in": [*fingerprints]}}).deleted_count

    def posts(self, keys: Sequence[Any]) -> list[KeptPost]:
        """Return these quarantined posts as the source would serve them."""
        with self._mongo.translated():
            found = self._posts.find({"_id": {"$in": [*keys]}} | _Where("post").is_quarantined)
            return [KeptPost(document["_id"], self._mongo.entity.as_served(document)) for document in found]

    def release_posts(self, keys: Sequence[Any]) -> int:
        """Take posts out of quarantine and out of their batch, for adoption; returns their number.

        One write for each: a post is in quarantine or in the backlog, whatever breaks in between.
        """
        if not keys:
            return 0
        update = {"$unset": {"quarantine": ""}, "$set": {"batchId": None, "migrated": False, "migratedAt": None}}
        with self._mongo.translated():
            return self._posts.update_many(
                {"_id": {"$in": [*keys]}} | _Where("post").is_quarantined, update
            ).modified_count

    def discard(self, kind: Kind, keys: Sequence[Any], because: str, by: str, at: datetime) -> int:
        """Keep these for the record only; returns the number of those that were not discarded yet."""
        where = _Where(kind)
        query = {"_id": {"$in": [*keys]}, where.discarded: None} | where.is_quarantined
        with self._mongo.translated():
            return (
                self._collection(kind)
                .update_many(
                    query, {"$set": {where.discarded: {"reason": storable(because), "at": at, "by": storable(by)}}}
                )
                .modified_count
            )

    def quarantine_batch(self, batch_id: str, message: str, at: datetime) -> int:
        """Quarantine the posts of a batch that are neither migrated nor quarantined; returns their number."""
        query = {"batchId": batch_id, "migrated": False, "quarantine": None}
        reason = {"code": DEAD_LETTER, "message": message, "at": at}
        with self._mongo.translated():
            return self._posts.update_many(query, {"$set": {"quarantine": reason}}).modified_count

    def changed_at(self, external_ids: Sequence[int]) -> dict[int, datetime]:
        """Return when those of these posts that are stored last changed, where that is known."""
        with self._mongo.translated():
            found = self._posts.find(
                {"externalId": {"$in": [*external_ids]}}, {"_id": False, "externalId": True, "changedAt": True}
            )
            return {
                document["externalId"]: document["changedAt"]
                for document in found
                if isinstance(document.get("changedAt"), datetime)
            }

    def _collection(self, kind: Kind) -> Collection[Document]:
        return self._records if kind == "record" else self._posts


class _Where:
    """The names of the fields by which records and posts are in quarantine."""

    def __init__(self, kind: Kind) -> None:
        is_record = kind == "record"
        self.code = "code" if is_record else "quarantine.code"
        self.first_at = "firstSeenAt" if is_record else "quarantine.at"
        self.last_at = "lastSeenAt" if is_record else "quarantine.at"
        self.discarded = "discarded" if is_record else "quarantine.discarded"
        # A migrated post counts as migrated, whatever else is written in it.
        self.is_quarantined: Document = {} if is_record else {"quarantine": {"$ne": None}, "migrated": {"$ne": True}}

    def quarantined(self, reason: str | None = None, *, discarded: bool | None) -> Document:
        """Return a condition that a server answers from the index on the code."""
        query: Document = {self.code: {"$exists": True} if reason is None else reason}
        if self.code != "code":
            query["migrated"] = {"$ne": True}
        if discarded is not None:
            query[self.discarded] = {"$ne": None} if discarded else None
        return query

    def at(self, document: Document) -> datetime | None:
        """Return when a document was last refused."""
        value: Any = document
        for name in self.last_at.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return _time(value)


@dataclass(frozen=True, slots=True)
class _Place:
    """A place in the list of all that is quarantined."""

    at: datetime | None
    kind: Kind
    key: Any

    @property
    def order(self) -> tuple[float, str, str]:
        """Ascends as the list descends."""
        return _epoch(self.at), self.kind, str(self.key)


def meaning(code: str) -> str:
    """Return what a reason code means."""
    return _MEANINGS.get(code, _REFUSED)


def portions(items: Iterable[T], size: int = PORTION) -> Iterator[list[T]]:
    """Cut a stream into lists of so many."""
    stream = iter(items)
    while portion := list(islice(stream, size)):
        yield portion


def storable(text: str) -> str:
    """Return a text that a store accepts: lone surrogates are spelled out."""
    return text.encode(errors="backslashreplace").decode()


def _item(kind: Kind, document: Document, *, cut: bool) -> QuarantinedItem:
    if kind == "record":
        details, payload = document, str(document.get("payload", ""))
        first_at, last_at = _time(document.get("firstSeenAt")), _time(document.get("lastSeenAt"))
    else:
        details = document["quarantine"] if isinstance(document["quarantine"], dict) else {}
        own = {name: value for name, value in document.items() if name not in ("_id", "quarantine")}
        payload = json.dumps(own, ensure_ascii=True, default=str)
        first_at = last_at = _time(details.get("at"))
    external_id = document.get("externalId")
    return QuarantinedItem(
        id=document["_id"] if kind == "record" else f"post-{document['_id']}",
        kind=kind,
        reason=str(details.get("code")),
        message=str(details.get("message", "")),
        external_id=external_id if type(external_id) is int else None,
        count=document.get("count", 1) if kind == "record" else 1,
        first_at=first_at,
        last_at=last_at,
        payload=payload[:_PAYLOAD_SHOWN] + "…" if cut and len(payload) > _PAYLOAD_SHOWN else payload,
        discarded=_discarded(details.get("discarded")),
    )


def _discarded(value: Any) -> Discarded | None:
    return Discarded(value["reason"], value["at"], value["by"]) if isinstance(value, dict) else None


def _key(item_id: str) -> tuple[Kind, Any] | None:
    if item_id.startswith("post-"):
        return "post", _post_key(item_id.removeprefix("post-"))
    return ("record", item_id) if _FINGERPRINT.fullmatch(item_id) else None


def _post_key(text: str) -> ObjectId | str:
    # Documents that somebody else wrote may have ids of their own.
    return ObjectId(text) if ObjectId.is_valid(text) else text


def _write_cursor(place: _Place) -> str:
    return encode_cursor(place.at, place.kind, str(place.key))


def _read_cursor(cursor: str) -> _Place:
    at, (kind, text) = decode_cursor(cursor, length=2)
    if kind == "record":
        return _Place(at, "record", text)
    if kind == "post":
        return _Place(at, "post", _post_key(text))
    raise SelectionError("The cursor is not one that a page returned")


def _time(value: Any) -> datetime | None:
    return value if isinstance(value, datetime) else None


def _epoch(at: datetime | None) -> float:
    return at.timestamp() if at else float("-inf")
