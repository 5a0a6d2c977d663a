"""The connection to MongoDB, shared by the raw store and the ledger, and its errors in our words."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any, Self

from pymongo import MongoClient, WriteConcern, errors
from pymongo.collection import Collection
from pymongo.database import Database

from pipeline_poc.errors import DataError, ServiceUnavailable, invalid_url, mask_secrets
from pipeline_poc.posts import POSTS
from pipeline_poc.records import Entity

Document = dict[str, Any]

_NAME = "MongoDB"
_SETTING = "MONGO_URL"
_LOGIN_CODES = {13, 18, 8000}
"""Unauthorized, AuthenticationFailed, AtlasError."""
_DATA_CODES = {2, 9, 14, 22, 28, 52, 56, 57, 121, 10334, 11000, 17280, 17419, 17420}
"""Bad value, failed to parse, type mismatch, invalid BSON, bad field names, validation, too large, duplicate key.

Every other error heals by itself once the server is in order, so it counts as an outage.
"""


class Mongo:
    """A database on a MongoDB server; write concern majority and journal, times aware and UTC.

    Args:
        url: The server, ``mongodb://…`` or ``mongodb+srv://…``; may hold a password.
        database: Name of the database.
        timeout_s: Longest wait to find and connect to a server, in seconds.
        answer_timeout_s: Longest wait for the answer to a command, in seconds. A bulk write of 1,000
            or an index build takes its time; a dead peer must not hang a worker.

    Attributes:
        entity: Whose collections these are.
    """

    entity: Entity = POSTS

    def __init__(self, url: str, database: str, *, timeout_s: float, answer_timeout_s: float = 60.0) -> None:
        self._url = url
        timeout_ms = int(timeout_s * 1000)
        try:
            self._client: MongoClient[Document] = MongoClient(
                url,
                serverSelectionTimeoutMS=timeout_ms,
                connectTimeoutMS=timeout_ms,
                socketTimeoutMS=int(answer_timeout_s * 1000),
                tz_aware=True,
                appname="pipeline_poc",
                connect=False,
            )
            self.database: Database[Document] = self._client.get_database(
                database, write_concern=WriteConcern(w="majority", j=True)
            )
        except (errors.PyMongoError, ValueError, OSError) as error:
            raise invalid_url(_SETTING, url, error) from None

    def of(self, entity: Entity) -> Self:
        """Return the same connections, with the collections of another entity."""
        other = copy(self)
        other.entity = entity
        return other

    @property
    def records(self) -> Collection[Document]:
        """The entity's records."""
        return self.database[self.entity.name]

    def collection(self, name: str) -> Collection[Document]:
        """Return a collection that each entity has of its own."""
        return self.database[self.entity.collection(name)]

    @property
    def shown_url(self) -> str:
        """The URL without secrets, fit for logs and screens."""
        return mask_secrets(self._url)

    def ping(self) -> None:
        """Check that the server answers and accepts the login.

        Raises:
            ServiceUnavailable: It does not.
        """
        with self.translated():
            self.database.command("ping")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Raise the driver's errors as errors of the pipeline.

        Raises:
            ServiceUnavailable: Network, time-out, elections, overload, refused login.
            DataError: The server refuses the data.
        """
        try:
            yield
        except errors.PyMongoError as error:
            if _is_about_data(error):
                raise DataError("raw_store_refused", f"{_NAME} refused: {mask_secrets(str(error))[:300]}") from error
            raise ServiceUnavailable(_NAME, _SETTING, self._url, _reason(error)) from error


def _is_about_data(error: errors.PyMongoError) -> bool:
    if isinstance(error, errors.BulkWriteError):
        return any(failure["code"] in _DATA_CODES for failure in error.details.get("writeErrors", ()))
    if isinstance(error, errors.OperationFailure):
        return error.code in _DATA_CODES
    # Raised by the driver, before anything is sent.
    return isinstance(error, (errors.InvalidOperation, errors.DocumentTooLarge))


def _reason(error: errors.PyMongoError) -> str:
    if isinstance(error, errors.OperationFailure) and error.code in _LOGIN_CODES:
        return f"the login is refused ({error.details.get('errmsg', error) if error.details else error})"
    # The driver appends the whole topology to the text.
    return str(error).split(", Timeout:")[0].split(" (configured timeouts:")[0]
