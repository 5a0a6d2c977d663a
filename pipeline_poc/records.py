"""Records: what is valid, what identifies a content, and what an entity is. Pure.

An entity is one collection of the source, such as its posts, on its way into a table of its own.
All of it follows from a model of its records: `pipeline_poc.posts` has the first one.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from json.encoder import encode_basestring
from typing import Annotated, Any, Literal, NamedTuple

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


class Record(BaseModel):
    """A record as the source serves it; a value that is an instance is fit for every store.

    Types are strict: ``"1"``, ``1.0`` and ``true`` are no ids, numbers are no texts. Fields that the source adds
    are not part of a record; `Entity.unknown_fields` names them.

    A model's fields are of the types that `KINDS` names, and each has a description: what people are shown of it.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    external_id: Id = Field(alias="id", description="its id in the source")

    @property
    def content(self) -> tuple[Any, ...]:
        """Its values, the id first, in the order of the model's fields."""
        return tuple(self.__dict__.values())


Kind = Literal["integer", "text", "flag"]
KINDS: Mapping[type, Kind] = {int: "integer", str: "text", bool: "flag"}
"""What a record may be made of, by the type in its model."""


@dataclass(frozen=True, slots=True)
class Value:
    """A field of an entity's records, beside the id.

    Attributes:
        name: In the source, in the raw store and in the table.
        meaning: In words.
    """

    name: str
    kind: Kind
    meaning: str


WEB_PATH = "/entities/{entity}"
"""Begin of the paths at which the web server answers about any entity but the first one."""
_FIRST = "posts"
"""The entity whose batches, queue and so on have plain names; those of the others are told apart by theirs."""


@dataclass(frozen=True)
class Entity:
    """One collection of the source, with everything that follows from its name and its model.

    Attributes:
        name: A plural, as in the source's URL and the raw store.
        model: Of its records.
    """

    name: str
    model: type[Record]

    @property
    def web_path(self) -> str:
        """Begin of the paths at which the web server answers about it."""
        return "" if self.name == _FIRST else WEB_PATH.format(entity=self.name)

    def job(self, verb: str) -> str:
        """Return the name of Dagster's job that does something to it, such as `ingest`."""
        return f"{verb}_{self.name}"

    def schedule(self, verb: str) -> str:
        """Return the name of the schedule of such a job."""
        return f"{self.job(verb)}_every_ten_minutes"

    @property
    def noun(self) -> str:
        """What one of its records is called."""
        return self.name.removesuffix("s")

    @property
    def table(self) -> str:
        """Name of its table."""
        return f"migrated_{self.name}"

    def collection(self, name: str) -> str:
        """Return the name of a collection beside that of the records, such as its batches."""
        return name if self.name == _FIRST else f"{self.name}_{name}"

    def queue(self, name: str) -> str:
        """Return the name of its queue, by that of the posts' queue."""
        return name if self.name == _FIRST else f"{name}-{self.name}"

    @cached_property
    def values(self) -> tuple[Value, ...]:
        """The fields beside the id, in the order in which a content has them."""
        fields = {name: field for name, field in self.model.model_fields.items() if name != "external_id"}
        for name, field in fields.items():
            if field.annotation not in KINDS:
                raise TypeError(f"{self.model.__name__}.{name} is a {field.annotation}: no store takes that")
        return tuple(
            Value(field.alias or name, KINDS[field.annotation], field.description or "")  # type: ignore[index]
            for name, field in fields.items()
        )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the fields beside the id."""
        return tuple(value.name for value in self.values)

    @cached_property
    def stored_as(self) -> Mapping[str, str]:
        """The fields that every record has: their names in the raw store, by those in the source."""
        return {"id": "externalId"} | {name: name for name in self.names}

    def parse(self, record: Any) -> "Record | RejectedRecord":
        """Turn a record of the source into one that is valid, or into a rejection that says why.

        Args:
            record: Any value that JSON can hold.
        """
        if not isinstance(record, dict):
            return reject(record, "not_an_object", f"expected an object, found {type(record).__name__}")
        try:
            return self.model.model_validate(record)
        except ValidationError as error:
            problems = error.errors(include_url=False, include_input=True)
            message = "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in problems)
            return reject(record, _code(problems[0]), message)

    def as_served(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a document of the raw store has of the source's fields, as the source would serve it."""
        return {name: document[stored] for name, stored in self.stored_as.items() if stored in document}

    def missing_fields(self, record: Any) -> frozenset[str]:
        """Return the names of the model's fields that a record doesn't have; none where it is no object at all."""
        return self._known - frozenset(record) if isinstance(record, dict) else frozenset()

    def unknown_fields(self, record: Any) -> frozenset[str]:
        """Return the names of the fields of a record that the model doesn't have."""
        if not isinstance(record, dict) or self._known.issuperset(record):
            return frozenset()
        return frozenset(record) - self._known

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.stored_as)


class StoredVersion(NamedTuple):
    """What tells versions of a record apart; both are None in documents of the replaced service."""

    content_hash: str | None
    version: int | None


class HashedRecord(NamedTuple):
    """A record with its content hash."""

    record: Record
    content_hash: str

    @classmethod
    def of(cls, record: Record) -> "HashedRecord":
        """Hash a record."""
        return cls(record, content_hash(*record.content))

    @property
    def external_id(self) -> int:
        """The record's id in the source."""
        return self.record.external_id

    def is_stored(self, versions: Mapping[int, StoredVersion]) -> bool:
        """Return whether these are the versions of a store that holds this very content."""
        stored = versions.get(self.external_id)
        return stored is not None and stored.content_hash == self.content_hash


class StoredRecord(NamedTuple):
    """A version of a record as the raw store holds it, with what migrating it needs.

    Attributes:
        values: Of the fields beside the id, in the entity's order.
        version: Grows with each content of this record; see `next_version`.
        ingested_at: When the record was first stored; aware, UTC.
    """

    external_id: int
    values: tuple[Any, ...]
    content_hash: str
    version: int
    ingested_at: datetime


@dataclass(frozen=True, slots=True)
class RejectedRecord:
    """A record that is not valid, with everything that is needed to look into it.

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
"""Reason codes of `Entity.parse` and the ingestion, each with its meaning."""

_CODES = {
    "missing": "missing_field",
    "greater_than_equal": "out_of_range",
    "less_than_equal": "out_of_range",
    "too_long": "too_long",
    "invalid_unicode": "invalid_unicode",
}


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


_ENCODERS: dict[type, Callable[[Any], str]] = {int: int.__repr__, str: encode_basestring}


def content_hash(*content: Any) -> str:
    """Return the digest of a record's content: 32 hex digits, equal exactly if all values, the id first, are.

    Raises:
        TypeError, ValueError: A value, in a document that somebody else wrote, is nothing that JSON knows.
    """
    try:
        # The same text as below in a fifth of the time; every record that comes or goes is hashed.
        text = f"[{','.join([_ENCODERS[type(value)](value) for value in content])}]"
    except KeyError:
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


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
