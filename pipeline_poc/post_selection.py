"""Which posts an operator means. Pure."""

from dataclasses import dataclass
from datetime import datetime

from pipeline_poc.records import INT_MAX
from pipeline_poc.selection import SelectionError


@dataclass(frozen=True, slots=True)
class PostSelection:
    """Posts by their ids, by a range of ids, by the time of their last change, or all.

    Attributes:
        ids: Ids in the source; unknown ones are no error, they select nothing.
        from_id: Lowest id of a range; None where it has no lower end.
        to_id: Highest id of a range, which selects nothing if it is below the lowest; None where it has no upper end.
        changed_since: Posts whose content arrived then or later; aware.
        all: Everything there is.

    Raises:
        SelectionError: Not exactly one of the four is given, or it makes no sense.
    """

    ids: tuple[int, ...] | None = None
    from_id: int | None = None
    to_id: int | None = None
    changed_since: datetime | None = None
    all: bool = False

    def __post_init__(self) -> None:
        is_range = self.from_id is not None or self.to_id is not None
        if (self.ids is not None) + is_range + (self.changed_since is not None) + self.all != 1:
            raise SelectionError("Select posts either by ids, or by a range of ids, or by a time of change, or all")
        for external_id in (*(self.ids or ()), self.from_id, self.to_id):
            if external_id is not None and not 1 <= external_id <= INT_MAX:
                raise SelectionError(f"The id of a post is a number from 1 to {INT_MAX}, not {external_id}")
        if self.changed_since is not None and self.changed_since.tzinfo is None:
            raise SelectionError("A time needs its offset from UTC, such as 2026-01-31T09:30:00Z")

    @property
    def first(self) -> int:
        """Lowest id that may be meant, but for a list of ids."""
        return 1 if self.from_id is None else self.from_id

    @property
    def last(self) -> int:
        """Highest id that may be meant, but for a list of ids."""
        return INT_MAX if self.to_id is None else self.to_id
