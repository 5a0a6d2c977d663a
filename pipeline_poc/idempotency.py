"""Idempotency keys: a request that is sent again gets the answer of the first time, and acts once."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pymongo.errors import DuplicateKeyError

from pipeline_poc.mongo import Mongo

KEPT_S = 86_400
"""A key is remembered for a day."""
_GIVEN_UP_AFTER = timedelta(minutes=5)
"""A request that has no answer for so long died with its server; its key may be used again."""


@dataclass(frozen=True, slots=True)
class FirstRequest:
    """What the first request with a key asked, and was answered.

    Attributes:
        fingerprint: Digest of what it asked.
        status: HTTP status of the answer; None while it is being worked out.
        body: The answer.
    """

    fingerprint: str
    status: int | None
    body: Any


class IdempotencyKeys:
    """The collection ``idempotency_keys``.

    Raises (every method):
        ServiceUnavailable: MongoDB can't be reached; the request must not be executed then.
    """

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._keys = mongo.database["idempotency_keys"]

    def begin(self, key: str, fingerprint: str, at: datetime) -> FirstRequest | None:
        """Take a key for a request; None where it is the first one, which has to be executed."""
        with self._mongo.translated():
            self._keys.delete_one({"_id": key, "status": None, "at": {"$lt": at - _GIVEN_UP_AFTER}})
            try:
                self._keys.insert_one({"_id": key, "fingerprint": fingerprint, "at": at, "status": None})
            except DuplicateKeyError:
                found = self._keys.find_one({"_id": key})
                if found is None:  # Given back in this very moment.
                    return FirstRequest(fingerprint, None, None)
                return FirstRequest(found["fingerprint"], found["status"], found.get("body"))
        return None

    def finish(self, key: str, status: int, body: Any) -> None:
        """Keep the answer."""
        with self._mongo.translated():
            self._keys.update_one({"_id": key}, {"$set": {"status": status, "body": body}})

    def give_back(self, key: str) -> None:
        """Forget a request that failed, so that it can be tried again with the same key."""
        with self._mongo.translated():
            self._keys.delete_one({"_id": key, "status": None})
