"""Whether this code can work with the schema that a store has, and the sentence where it can't.

Code is known by the version of the schema that it needs. A newer schema says from which code on it
works: a step that only adds works with the code before it, one that takes away does not.
"""

from dataclasses import dataclass
from typing import Literal

from pipeline_poc.errors import SchemaError

Verdict = Literal["current", "newer", "older", "too new"]


@dataclass(frozen=True, slots=True)
class Schema:
    """The schema that a store was found to have.

    Attributes:
        store: Name of the store.
        setting: The setting that names it.
        url: Where it is, without secrets.
        needed: The version that this code needs; versions count from 1.
        found: The version that the store has; 0 where it has none.
        works_from: The oldest code that can work with it, by the version which that needs.
        missing: What there should be by its version, and is not.
    """

    store: str
    setting: str
    url: str
    needed: int
    found: int
    works_from: int
    missing: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """``newer`` works with this code all the same, ``too new`` does not, ``older`` is to be upgraded."""
        if self.works_from > self.needed:
            return "too new"
        if self.found < self.needed or self.missing:
            return "older"
        return "newer" if self.found > self.needed else "current"

    @property
    def is_usable(self) -> bool:
        """Whether this code can work with it as it is."""
        return self.verdict in ("current", "newer")

    def must_be_upgraded(self, *, may_upgrade: bool) -> bool:
        """Return whether it has to be upgraded before it is used.

        Raises:
            SchemaError: It is too new for this code, or it has to be upgraded and may not.
        """
        verdict = self.verdict
        if verdict == "too new" or (verdict == "older" and not may_upgrade):
            raise SchemaError(self.sentence())
        return verdict == "older"

    @property
    def version(self) -> str:
        """What it has, in words."""
        if not self.found:
            return "no schema yet"
        return f"schema version {self.found}" + (f" without {' and '.join(self.missing)}" if self.missing else "")

    def sentence(self) -> str:
        """Say what there is, what this code needs, and what to do."""
        begin = f"{self.store} at {self.url} ({self.setting}) has {self.version}"
        match self.verdict:
            case "current":
                return f"{begin}, as this code needs it"
            case "newer":
                return f"{begin}, which works with this code, though it needs only {self.needed}"
            case "older":
                return f"{begin}, this code needs version {self.needed}: run `pipeline-poc db upgrade`"
            case "too new":
                return (
                    f"{begin}, which works with code for version {self.works_from} or newer, and this code knows "
                    f"up to {self.needed}: use the newer pipeline_poc that upgraded it"
                )


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What an upgrade found and left.

    Attributes:
        before: What it found.
        after: What it left.
        note: What is as it should be, but for the store.
    """

    before: Schema
    after: Schema
    note: str | None = None

    def sentence(self) -> str:
        """Say what was done."""
        done = (
            f"upgraded from {self.before.version} to {self.after.version}"
            if self.before.version != self.after.version
            else f"left as it is, {self.after.version}"
        )
        begin = f"{self.after.store} at {self.after.url} ({self.after.setting}): {done}"
        return f"{begin}; {self.note}" if self.note else begin
