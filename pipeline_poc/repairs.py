"""Posts whose state is wrong, put back into the backlog, each by one guarded write."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from pymongo import UpdateOne

from pipeline_poc.mongo import Document, Mongo
from pipeline_poc.records import next_version

_STATE = ("migrated", "quarantine", "batchId", "contentHash", "version")


@dataclass(frozen=True, slots=True)
class Remedy:
    """What a post needs.

    Attributes:
        document: The post as it was when it was found to be wrong.
        row_version: Version of its row; 0 where there is none.
        content_hash: The one that is right for what the document holds.
    """

    document: Document
    row_version: int
    content_hash: str


class Repairs:
    """The documents of ``posts``, changed only where they still are as they were seen.

    Raises (every method):
        ServiceUnavailable: MongoDB can't be reached.
    """

    def __init__(self, mongo: Mongo) -> None:
        self.entity = mongo.entity
        """Whose records these are."""
        self._mongo = mongo
        self._posts = mongo.records

    def documents(self, external_ids: Sequence[int]) -> list[Document]:
        """Return the documents of those of these posts that are stored."""
        with self._mongo.translated():
            return list(
                self._posts.find({"externalId": {"$in": [*external_ids]}}, [*self.entity.stored_as.values(), *_STATE])
            )

    def put_back(self, remedies: Sequence[Remedy], at: datetime, batch_id: str | None = None) -> int:
        """Make posts unmigrated and newer than their rows; returns the number of those changed.

        Their quarantine stays. Whatever has changed since it was looked at is left alone.

        Args:
            remedies: As many as fit a bulk write.
            at: The time of the writing.
            batch_id: A batch that is not sealed yet; None where the next tick shall adopt the posts.
        """
        if not remedies:
            return 0
        with self._mongo.translated():
            writes = [UpdateOne(_as_seen(remedy.document), _remedy(remedy, at, batch_id)) for remedy in remedies]
            return self._posts.bulk_write(writes, ordered=False).modified_count


def _as_seen(document: Mapping[str, object]) -> Document:
    # None matches a field that is not there as well.
    seen = {name: document.get(name) for name in ("_id", "version", "migrated", "batchId", "contentHash")}
    return seen | {"quarantine": None if document.get("quarantine") is None else {"$ne": None}}


def _remedy(remedy: Remedy, at: datetime, batch_id: str | None) -> Document:
    version = remedy.document.get("version")
    known = version if isinstance(version, int) else 0
    return {
        "$set": {
            "migrated": False,
            "migratedAt": None,
            "batchId": batch_id,
            "contentHash": remedy.content_hash,
            "version": next_version(max(known, remedy.row_version), at),
        }
    }
