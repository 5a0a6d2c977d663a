"""Posts for tests."""

from datetime import UTC, datetime
from typing import Any

from pipeline_poc.posts import Post
from pipeline_poc.records import HashedRecord, StoredRecord, content_hash

LONG_AGO = datetime(2020, 2, 29, 23, 59, 58, 999_000, tzinfo=UTC)
"""A time that any clock of today differs from."""

NASTY_CODES = {
    "no id": "missing_field",
    "id as text": "wrong_type",
    "null id": "null_field",
    "negative id": "out_of_range",
    "id above INT": "out_of_range",
    "float id": "wrong_type",
    "boolean id": "wrong_type",
    "no title": "missing_field",
    "null title": "null_field",
    "numeric title": "wrong_type",
    "object as title": "wrong_type",
    "body of 70 kB": "too_long",
    "lone surrogate": "invalid_unicode",
    "NaN": "wrong_type",
    "text, not an object": "not_an_object",
    "null, not an object": "not_an_object",
    "list, not an object": "not_an_object",
    "id of 4,000 digits": "out_of_range",
    "id beyond every float": "wrong_type",
    "id with an exponent": "wrong_type",
    "id of minus zero": "out_of_range",
    "id beyond 64 bits": "out_of_range",
    "null in a second id": "null_field",
    "lone surrogate in a key": "missing_field",
    "names of our own": "missing_field",
    "prototypes": "missing_field",
    "operators": "wrong_type",
    "title 100 deep": "wrong_type",
    "empty object": "missing_field",
}
"""The reason code of each of `NASTY_RECORDS`."""


def record(external_id: int, title: str = "t", **others: Any) -> dict[str, Any]:
    """Return a record as the source serves it."""
    return {"userId": 1, "id": external_id, "title": title, "body": "b", **others}


def hashed(external_id: int, title: str = "t") -> HashedRecord:
    """Return a post as an ingestion holds it."""
    return HashedRecord.of(Post.model_validate(record(external_id, title)))


def stored(external_id: int, title: str = "t", body: str = "b", *, version: int = 1) -> StoredRecord:
    """Return a post as a migration reads it."""
    digest = content_hash(external_id, 1, title, body)
    return StoredRecord(external_id, (1, title, body), digest, version, LONG_AGO)
