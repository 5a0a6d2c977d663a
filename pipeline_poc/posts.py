"""The post: what is valid, what identifies its content, how it becomes a row. Pure."""

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from json.encoder import encode_basestring
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

INT_MAX = 2_147_483_647
"""Largest value of the relational INT columns that hold ids."""
TEXT_MAX_BYTES = 65_535
"""Largest value of the relational TEXT columns, in bytes of UTF-8."""
PAYLOAD_MAX = 4_000_000
"""Largest payload that is kept whole, in characters: MongoDB takes no document above 16 MB."""
_PAYLOAD_CUT = 1_000_000
"""Characters that are kept of a larger one."""


def _fits_text_column(value: str) -> str:
    try:
        # Most texts are ASCII: nothing to encode.
        size = len(value) if value.isascii() else len(value.encode())
    except UnicodeEncodeError:
        raise PydanticCustomError("invalid_unicode", "a lone surrogate can't be encoded as UTF-8") from None
    if size > TEXT_MAX_BYTES:
        raise PydanticCustomError(
            "too_long", "{size} bytes of UTF-8, at most {most} fit", {"size": size, "most": TEXT_MAX_BYTES}
        )
    return value


Id = Annotated[int, Field(ge=1, le=INT_MAX)]
Text = Annotated[str, AfterValidator(_fits_text_column)]


class Post(BaseModel):
    """A post as the source serves it; a value that is an instance is fit for every store.

    Types are strict: ``"1"``, ``1.0`` and ``true`` are no ids, numbers are no titles.
    Fields that the source adds are not part of a post; `unknown_fields` names them.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    external_id: Id = Field(alias="id")
    user_id: Id = Field(alias="userId")
    title: Text
    body: Text


SOURCE_FIELDS = frozenset(field.alias or name for name, field in Post.model_fields.items())
"""Names of a post's fields in the source."""


@dataclass(frozen=True, slots=True)
class StoredPost:
    """A version of a post as the raw store holds it, with what migrating it needs.

    Attributes:
        version: Grows with each content of this post; see `next_version`.
        ingested_at: When the post was first stored; aware, UTC.
    """

    external_id: int
    user_id: int
    title: str
    body: str
    content_hash: str
    version: int
    ingested_at: datetime


@dataclass(frozen=True, slots=True)
class RejectedRecord:
    """A record that is no post, with everything that is needed to look into it.

    Attributes:
        code: Reason code; one of the keys of `REASONS`.
        message: The problem in a sentence; names fields, never whole values.
        payload: The record as ASCII JSON text, exactly as it was parsed; above `PAYLOAD_MAX` a
            JSON text that has the beginning, the size and a digest of it.
        external_id: Its id, where it has a usable one.
    """

    code: str
    message: str
    payload: str
    external_id: int | None

    @property
    def fingerprint(self) -> str:
        """Hex digest that is the same for the same payload and reason."""
        return hashlib.blake2b(f"{self.code}\n{self.payload}".encode("ascii"), digest_size=16).hexdigest()


REASONS = {
    "not_an_object": "the record is no JSON object",
    "missing_field": "a field is missing",
    "null_field": "a field is null",
    "wrong_type": "a field has the wrong type",
    "out_of_range": "an id is below 1 or above the largest INT",
    "too_long": "a text does not fit the relational TEXT column",
    "invalid_unicode": "a text has a lone surrogate, which UTF-8 can't encode",
    "conflicting_duplicate": "an id came twice in one answer with different contents; the first one counts",
}
"""Reason codes of `parse` and the ingestion, each with its meaning."""

_CODES = {
    "missing": "missing_field",
    "greater_than_equal": "out_of_range",
    "less_than_equal": "out_of_range",
    "too_long": "too_long",
    "invalid_unicode": "invalid_unicode",
}


def parse(record: Any) -> Post | RejectedRecord:
    """Turn a record of the source into a post, or into a rejection that says why.

    Args:
        record: Any value that JSON can hold.
    """
    if not isinstance(record, dict):
        return reject(record, "not_an_object", f"expected an object, found {type(record).__name__}")
    try:
        return Post.model_validate(record)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=True)
        message = "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in problems)
        return reject(record, _code(problems[0]), message)


def reject(record: Any, code: str, message: str) -> RejectedRecord:
    """Wrap a record that can't be stored, with a reason code of `REASONS`."""
    external_id = record.get("id") if isinstance(record, dict) else None
    usable = type(external_id) is int and abs(external_id) <= 2**63 - 1
    return RejectedRecord(
        code=code,
        message=message.encode("ascii", "backslashreplace").decode(),
        payload=_json(record),
        external_id=external_id if usable else None,
    )


def _json(record: Any) -> str:
    try:
        # What a foreign document holds may be of any type.
        payload = json.dumps(record, ensure_ascii=True, default=str)
    except RecursionError:
        return '"nested too deeply to be kept"'
    if len(payload) <= PAYLOAD_MAX:
        return payload
    digest = hashlib.blake2b(payload.encode("ascii"), digest_size=16).hexdigest()
    return json.dumps(f"{payload[:_PAYLOAD_CUT]}… cut: {len(payload)} characters with the digest {digest}")


def _code(problem: ErrorDetails) -> str:
    if problem["input"] is None:
        return "null_field"
    return _CODES.get(problem["type"], "wrong_type")


def unknown_fields(record: Any) -> frozenset[str]:
    """Return the names of the fields of a record that a post doesn't have."""
    return frozenset(record) - SOURCE_FIELDS if isinstance(record, dict) else frozenset()


def content_hash(external_id: int, user_id: int, title: str, body: str) -> str:
    """Return the digest of a post's content: 32 hex digits, equal exactly if all four values are.

    Raises:
        TypeError, ValueError: A value, in a document that somebody else wrote, is nothing that JSON knows.
    """
    if type(external_id) is type(user_id) is int and type(title) is type(body) is str:
        # The same text as below in a fifth of the time; every post that comes or goes is hashed.
        content = f"[{external_id},{user_id},{encode_basestring(title)},{encode_basestring(body)}]"
    else:
        content = json.dumps([external_id, user_id, title, body], ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def next_version(previous: int | None, at: datetime) -> int:
    """Return the version of a content that arrives now: a hybrid logical clock.

    Milliseconds since 1970, but always above the previous version, so that versions grow even
    where a clock jumps back, and stay comparable where one store was emptied or restored.

    Args:
        previous: The version before; None for the first content.
        at: The time of arrival; aware.
    """
    now_ms = int(at.timestamp() * 1000)
    return now_ms if previous is None else max(previous + 1, now_ms)
