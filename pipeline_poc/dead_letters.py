"""The dead letters of the ledger: batches whose attempts ran out, grouped by the type of their error."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from pymongo import ASCENDING, DESCENDING

from pipeline_poc.mongo import Document, Mongo
from pipeline_poc.selection import Page, Selection, check_limit, check_text, decode_cursor, encode_cursor

_PORTION = 100
_POSTS_SHOWN = 20


@dataclass(slots=True)
class DeadLetterGroup:
    """Dead letters that died of the same type of error.

    Attributes:
        reason: The error's type.
        posts: Posts that their batches were created for.
    """

    reason: str
    batches: int
    posts: int
    first_at: datetime
    last_at: datetime


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A batch that waits for a person.

    Attributes:
        reason: The type of the last attempt's error.
        message: The error's text.
        posts: Posts that it was created for.
        external_ids: Some of those that still wait, the lowest first; None in lists.
    """

    id: str
    reason: str
    message: str
    posts: int
    attempts: int
    worker: str | None
    created_at: datetime
    died_at: datetime
    external_ids: tuple[Any, ...] | None = None


class DeadLetters:
    """The batches in state ``dead``. Costs time in proportion to those, and changes none.

    Raises (every method):
        ServiceUnavailable: MongoDB can't be reached.
    """

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._batches = mongo.collection("batches")
        self._posts = mongo.records

    def groups(self) -> list[DeadLetterGroup]:
        """Group the dead letters by the type of their error, the largest groups first."""
        groups: dict[str, DeadLetterGroup] = {}
        fields = {"error": True, "size": True, "createdAt": True, "diedAt": True}
        with self._mongo.translated():
            for document in self._batches.find({"state": "dead"}, fields):
                reason, at = _reason(document), _died_at(document)
                group = groups.setdefault(reason, DeadLetterGroup(reason, 0, 0, at, at))
                group.batches += 1
                group.posts += document["size"]
                group.first_at = min(group.first_at, at)
                group.last_at = max(group.last_at, at)
        return sorted(groups.values(), key=lambda group: (-group.batches, group.reason))

    def items(self, reason: str | None = None, *, limit: int = 20, cursor: str | None = None) -> Page[DeadLetter]:
        """List dead letters, those that were created last first.

        Args:
            reason: Only those of this type of error.
            limit: Most to return.
            cursor: What the page before returned.

        Raises:
            SelectionError: The cursor is none of ours, or the limit is too high.
        """
        check_limit(limit)
        check_text(reason or "")
        newest_first = [("createdAt", DESCENDING), ("_id", DESCENDING)]
        steps: list[Document] = [{}]
        if cursor is not None:
            at, (batch_id,) = decode_cursor(cursor, length=1)
            steps = [{"createdAt": at, "_id": {"$lt": batch_id}}, {"createdAt": {"$lt": at}}]
        found: list[DeadLetter] = []
        with self._mongo.translated():
            for step in steps:
                documents = self._batches.find({"state": "dead"} | step).sort(newest_first)
                matching = (document for document in documents if reason in (None, _reason(document)))
                found += map(_dead_letter, islice(matching, limit + 1 - len(found)))
        shown = found[:limit]
        return Page(
            items=shown,
            next_cursor=encode_cursor(shown[-1].created_at, shown[-1].id) if len(found) > limit else None,
        )

    def item(self, batch_id: str) -> DeadLetter | None:
        """Look at one dead letter, with some of the posts that wait in it; None where it is no dead letter."""
        check_text(batch_id)
        with self._mongo.translated():
            document = self._batches.find_one({"_id": batch_id, "state": "dead"})
            if document is None:
                return None
            waiting = {"batchId": batch_id, "migrated": False, "quarantine": None}
            found = self._posts.find(waiting, {"_id": False, "externalId": True})
            posts = tuple(post["externalId"] for post in found.sort("externalId", ASCENDING).limit(_POSTS_SHOWN))
        return _dead_letter(document, posts)

    def selected(self, selection: Selection) -> Iterator[list[DeadLetter]]:
        """Yield what is selected, oldest first, in portions."""
        stream = self._stream(selection)
        while portion := list(islice(stream, _PORTION)):
            yield portion

    def _stream(self, selection: Selection) -> Iterator[DeadLetter]:
        with self._mongo.translated():
            if selection.ids is not None:
                for batch_id in dict.fromkeys(selection.ids):
                    if document := self._batches.find_one({"_id": batch_id, "state": "dead"}):
                        yield _dead_letter(document)
                return
            for document in self._batches.find({"state": "dead"}).sort("createdAt", ASCENDING):
                if selection.reason in (None, _reason(document)):
                    yield _dead_letter(document)


def _dead_letter(document: Document, external_ids: Sequence[Any] | None = None) -> DeadLetter:
    return DeadLetter(
        id=document["_id"],
        reason=_reason(document),
        message=str(document.get("error") or ""),
        posts=document["size"],
        attempts=document["attempts"],
        worker=document.get("worker"),
        created_at=document["createdAt"],
        died_at=_died_at(document),
        external_ids=None if external_ids is None else tuple(external_ids),
    )


def _reason(document: Document) -> str:
    return str(document.get("error") or "").partition(":")[0] or "unknown"


def _died_at(document: Document) -> datetime:
    died_at: datetime = document.get("diedAt") or document["createdAt"]
    return died_at
