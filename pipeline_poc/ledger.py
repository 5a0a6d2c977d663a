"""The batch ledger: which posts were stored together, and whether they are migrated.

The backlog *is* the open batches. A batch lives like this:

    filling ──seal──▶ open ──close──▶ closed (expires)
       │                └───bury───▶ dead ──reopen──▶ open
       └──abandon──▶ abandoned ──close──▶ closed

A batch whose ingestion died is abandoned: its posts move to an heir, and for an hour it is
watched for stragglers, in case its ingestion was only slow.

A batch is written before its posts and sealed after them. Only a sealed batch is migrated, so
what a worker reads of it is all that it will ever hold: posts leave a batch (for a newer one),
but never join it. That makes "mark everything of batch B" safe.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pymongo import ASCENDING, ReturnDocument

from pipeline_poc.counters import Counters
from pipeline_poc.mongo import Document, Mongo

State = Literal["filling", "open", "dead", "abandoned", "closed"]


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as the ledger holds it.

    Attributes:
        id: Also the id of its job; sorts by time of creation.
        size: Number of posts that it was created for.
        attempts: Executions that have begun, over all jobs of this batch.
        started_at: Begin of the latest execution.
        heartbeat_at: Last sign of life of the latest execution.
        abandoned_at: When its ingestion was given up.
        closed_at: When nothing of it was left to do.
        worker: Who executes it, or did so last.
        migrated: Posts that its last execution migrated; None until it is closed.
        quarantined: Posts that the relational store refused; None until it is closed.
        traceparent: The span that stored it, as `tracing` wrote it, unchecked; None where nobody traced it.
    """

    id: str
    state: State
    size: int
    created_at: datetime
    attempts: int
    started_at: datetime | None
    heartbeat_at: datetime | None
    abandoned_at: datetime | None
    error: str | None
    closed_at: datetime | None = None
    died_at: datetime | None = None
    worker: str | None = None
    migrated: int | None = None
    quarantined: int | None = None
    traceparent: Any = None

    @property
    def last_sign_at(self) -> datetime | None:
        """Last sign of life of the execution that has begun; None where there is none."""
        return self.started_at and (self.heartbeat_at or self.started_at)

    def is_alive(self, now: datetime, timeout_s: float) -> bool:
        """Return whether somebody is executing the batch right now, on the queue or past it.

        A sign of life is believed for the time-out only, into the past and into the future: after
        a clock was set back, the last one of a dead worker would else hold the batch for as long.
        """
        last = self.last_sign_at
        return last is not None and abs((now - last).total_seconds()) <= timeout_s


@dataclass(frozen=True, slots=True)
class Backlog:
    """The batches that wait, those of dead letters included.

    Attributes:
        posts: Posts that they were created for; one that moved to a newer batch meanwhile counts twice.
        oldest_at: When the oldest of them was created; None where there is none.
        oldest_id: Its id.
        most_attempts: Most executions that one of them has seen.
    """

    batches: int
    posts: int
    oldest_at: datetime | None
    oldest_id: str | None
    most_attempts: int

    def lag_s(self, now: datetime) -> float:
        """Age of the oldest post that is not migrated, in seconds; 0 where none waits."""
        return max((now - self.oldest_at).total_seconds(), 0.0) if self.oldest_at else 0.0


class Ledger:
    """The collection ``batches``. Every method is safe to repeat and to run in several processes.

    Raises (every method):
        ServiceUnavailable: MongoDB can't be reached.
    """

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._batches = mongo.collection("batches")
        self.counters = Counters(mongo)
        """What happened to all batches there ever were."""

    def create(self, size: int, at: datetime, traceparent: str | None = None) -> str:
        """Write down the intent to store so many posts together; returns the batch's id.

        Which posts they are stands in one place: each carries the id of its batch.
        """
        batch_id = f"{at:%Y%m%dT%H%M%S}{at.microsecond // 1000:03d}-{secrets.token_hex(4)}"
        with self._mongo.translated():
            self._batches.insert_one(
                {
                    "_id": batch_id,
                    "state": "filling",
                    "size": size,
                    "createdAt": at,
                    "attempts": 0,
                }
                | ({"traceparent": traceparent} if traceparent else {})
            )
        return batch_id

    def seal(self, batch_id: str, size: int) -> bool:
        """Open a batch whose posts, so many, are all stored; False if it was abandoned meanwhile."""
        return self._move(batch_id, "filling", {"$set": {"state": "open", "size": size}})

    def abandon(self, batch_id: str, at: datetime) -> bool:
        """Give up on a batch that was never sealed; False if it was sealed after all."""
        return self._move(batch_id, "filling", {"$set": {"state": "abandoned", "abandonedAt": at}})

    def close(self, batch_id: str, at: datetime, outcome: dict[str, Any]) -> bool:
        """Close a batch of which nothing is left to do, noting its outcome: counts and timings."""
        done = {"$set": {"state": "closed", "closedAt": at, **outcome}, "$unset": {"error": ""}}
        return self._move(batch_id, {"$ne": "closed"}, done)

    def bury(self, batch_id: str, at: datetime, error: str) -> bool:
        """Take a batch out of the backlog's way until a person looks at it: a dead letter."""
        return self._move(batch_id, "open", {"$set": {"state": "dead", "diedAt": at, "error": error}})

    def reopen(self, batch_id: str) -> bool:
        """Put a dead batch back into the backlog."""
        return self._move(batch_id, "dead", {"$set": {"state": "open"}, "$unset": {"diedAt": "", "error": ""}})

    def start(self, batch_id: str, worker: str, at: datetime) -> Batch | None:
        """Begin an execution of an open batch; None where there is none to execute."""
        with self._mongo.translated():
            document = self._batches.find_one_and_update(
                {"_id": batch_id, "state": "open"},
                {"$inc": {"attempts": 1}, "$set": {"startedAt": at, "heartbeatAt": at, "worker": worker}},
                return_document=ReturnDocument.AFTER,
            )
        return _batch(document) if document else None

    def heartbeat(self, batch_id: str, worker: str, at: datetime) -> None:
        """Show that this worker is still executing the batch."""
        with self._mongo.translated():
            # An execution that was ended meanwhile must not come back to life.
            running = {"_id": batch_id, "worker": worker, "startedAt": {"$exists": True}}
            self._batches.update_one(running, {"$set": {"heartbeatAt": at}})

    def give_back(self, batch_id: str, worker: str, reason: str) -> bool:
        """End this worker's execution of an open batch, which did not fail; False where it is not this worker's."""
        with self._mongo.translated():
            mine = {"_id": batch_id, "state": "open", "worker": worker, "startedAt": {"$exists": True}}
            return self._batches.update_one(mine, _ended(reason)).modified_count == 1

    def note_failure(self, batch_id: str, error: str) -> None:
        """Keep the text of the last error of an open batch, and end its execution's heartbeat."""
        self._move(batch_id, "open", _ended(error))

    def get(self, batch_id: str) -> Batch | None:
        """Look a batch up."""
        with self._mongo.translated():
            document = self._batches.find_one({"_id": batch_id})
        return _batch(document) if document else None

    def by_ids(self, batch_ids: Sequence[str]) -> dict[str, Batch]:
        """Look several batches up; those that are not known, or no more, are left out."""
        with self._mongo.translated():
            return {
                document["_id"]: _batch(document) for document in self._batches.find({"_id": {"$in": [*batch_ids]}})
            }

    def backlog(self) -> Backlog:
        """Sum up the batches that wait; costs time in proportion to those, not to their posts."""
        stages: list[Document] = [
            {"$match": {"state": {"$in": list(_BACKLOG)}}},
            {
                "$group": {
                    "_id": None,
                    "batches": {"$sum": 1},
                    "posts": {"$sum": "$size"},
                    "oldest": {"$min": "$createdAt"},
                    "oldestId": {"$min": "$_id"},  # Ids begin with the time of creation.
                    "attempts": {"$max": "$attempts"},
                }
            },
        ]
        with self._mongo.translated():
            for group in self._batches.aggregate(stages):
                return Backlog(
                    batches=group["batches"],
                    posts=group["posts"],
                    oldest_at=group["oldest"],
                    oldest_id=group["oldestId"],
                    most_attempts=group["attempts"],
                )
        return Backlog(batches=0, posts=0, oldest_at=None, oldest_id=None, most_attempts=0)

    def batches(self, state: State, *, limit: int = 0) -> list[Batch]:
        """List the batches in a state, oldest first; limit 0 means all."""
        with self._mongo.translated():
            cursor = self._batches.find({"state": state})
            return [_batch(document) for document in cursor.sort("createdAt", ASCENDING).limit(limit)]

    def begun(self) -> list[Batch]:
        """List the open batches of which an execution has begun and not ended, as far as the ledger knows."""
        with self._mongo.translated():
            cursor = self._batches.find({"state": "open", "startedAt": {"$exists": True}})
            return [_batch(document) for document in cursor.sort("createdAt", ASCENDING)]

    def waiting_ids(self) -> set[str]:
        """Return the ids of all batches that are not closed."""
        with self._mongo.translated():
            cursor = self._batches.find({"state": {"$in": list(_WAITING)}}, {"_id": True})
            return {document["_id"] for document in cursor}

    def _move(self, batch_id: str, state: State | Document, update: Document) -> bool:
        with self._mongo.translated():
            return self._batches.update_one({"_id": batch_id, "state": state}, update).modified_count == 1


_BACKLOG: tuple[State, ...] = ("filling", "open", "dead")
_WAITING: tuple[State, ...] = ("filling", "open", "dead", "abandoned")


def _ended(why: str) -> Document:
    """Return the update that ends an execution, but not the batch."""
    return {"$set": {"error": why}, "$unset": {"heartbeatAt": "", "startedAt": ""}}


def _batch(document: Document) -> Batch:
    return Batch(
        id=document["_id"],
        state=document["state"],
        size=document["size"],
        created_at=document["createdAt"],
        attempts=document["attempts"],
        started_at=document.get("startedAt"),
        heartbeat_at=document.get("heartbeatAt"),
        abandoned_at=document.get("abandonedAt"),
        error=document.get("error"),
        closed_at=document.get("closedAt"),
        died_at=document.get("diedAt"),
        worker=document.get("worker"),
        migrated=document.get("migrated"),
        quarantined=document.get("quarantined"),
        traceparent=document.get("traceparent"),
    )
