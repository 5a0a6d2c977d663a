"""What an operator picks of many things, and pages of lists. Pure."""

import base64
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from pipeline_poc.errors import PipelineError

T = TypeVar("T")

PAGE_MAX = 200
"""Most items on a page: each may carry a payload."""


class SelectionError(PipelineError, ValueError):
    """A selection or a cursor that makes no sense."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Some by their ids, a group by its reason, or all.

    Attributes:
        ids: As lists show them; unknown ones are no error, they select nothing.
        reason: As groups show it.
        all: Everything there is.

    Raises:
        SelectionError: Not exactly one of the three is given.
    """

    ids: tuple[str, ...] | None = None
    reason: str | None = None
    all: bool = False

    def __post_init__(self) -> None:
        if (self.ids is not None) + (self.reason is not None) + self.all != 1:
            raise SelectionError("Select either by ids, or by a reason, or all")
        for text in (*(self.ids or ()), self.reason or ""):
            check_text(text)


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A part of a list, newest first.

    Attributes:
        next_cursor: Asks for the next page; None where this is the last one.
    """

    items: list[T]
    next_cursor: str | None


def check_text(text: str) -> None:
    """Refuse a text that no store can look for.

    Raises:
        SelectionError: It has a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SelectionError("A text has a lone surrogate, which UTF-8 can't encode") from None


def check_limit(limit: int) -> None:
    """Refuse a page that is empty or too long.

    Raises:
        SelectionError: It is.
    """
    if not 1 <= limit <= PAGE_MAX:
        raise SelectionError(f"A page has 1 to {PAGE_MAX} items, not {limit}")


def encode_cursor(at: datetime | None, *place: str) -> str:
    """Return an opaque text for a place in a list that is sorted by time first."""
    values = [at.isoformat() if at else None, *place]
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


def decode_cursor(cursor: str, *, length: int) -> tuple[datetime | None, list[str]]:
    """Read what `encode_cursor` wrote: the time, and so many texts.

    Raises:
        SelectionError: The cursor is none of ours.
    """
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        values: Any = json.loads(text)
        at, *place = values
        given = datetime.fromisoformat(at) if at is not None else None
        # At the ends of the calendar there are times that UTC has no name for.
        time = given.astimezone(UTC) if given is not None else None
        texts = [str(value) for value in place if isinstance(value, str)]
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise SelectionError("The cursor is not one that a page returned") from None
    if len(texts) != length or len(place) != length or (given is not None and given.tzinfo is None):
        raise SelectionError("The cursor is not one that a page returned")
    for value in texts:
        check_text(value)
    return time, texts
