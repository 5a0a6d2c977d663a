"""What happened in a rehearsal of an update, for people and for programs."""

from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

_TIMES = {"at_s": "at", "stopped_in_s": "stopped in", "back_in_s": "back in"}


@dataclass(slots=True)
class Rehearsal:
    """What happened.

    Attributes:
        posts: That the source served in the end.
        steps: What was restarted or replaced: when, how long that took, what clients met meanwhile.
        requests: Sent to web servers that had just said that they were ready.
        failures: What came of those that failed.
        asked_to_wait: Requests that were answered with 503 and Retry-After while a store was restarted.
        without_server_s: How long no web server was ready, in seconds.
        died: Programs that ended though nobody asked them to, and were started again.
        taken_up: What became of the batch that was in progress on a host as that was cut off; empty where none was.
        schema: What the schema is for the code of this release and of the next one.
        reconciliation: What `pipeline-poc reconcile` found in the end.
        problems: Whatever is not as it should be.
    """

    posts: int
    steps: list[dict[str, Any]] = field(default_factory=list)
    requests: int = 0
    failures: list[str] = field(default_factory=list)
    asked_to_wait: int = 0
    without_server_s: float = 0.0
    died: list[str] = field(default_factory=list)
    taken_up: str = ""
    schema: dict[str, str] = field(default_factory=dict)
    reconciliation: dict[str, Any] = field(default_factory=dict)
    duration_s: float = 0.0
    problems: list[str] = field(default_factory=list)

    def sentences(self) -> str:
        """Say how it ended."""
        found = self.reconciliation
        return (
            f"{self.posts} posts in {self.duration_s:.0f} s; {found.get('rows')} rows, reconciled: {found.get('ok')}\n"
            f"{self.requests} requests, {len(self.failures)} failed; {self.asked_to_wait} were asked to wait while a "
            f"store was restarted; no server was ready for {self.without_server_s:.1f} s\n"
            f"schema for the code of this release: {self.schema.get('this')}, of the next: {self.schema.get('next')}\n"
            f"ended by itself, and was started again: {', '.join(self.died) or 'nothing'}"
            + (f"\nin progress on the host that was cut off, and taken up: {self.taken_up}" if self.taken_up else "")
        )


def table(rehearsal: Rehearsal) -> Table:
    """Show each step."""
    shown = Table("what", *_TIMES.values(), "requests", "failed", title="Restarted and replaced")
    for column in shown.columns[1:]:
        column.justify = "right"
    for step in rehearsal.steps:
        times = (f"{step[name]:.1f} s" for name in _TIMES)
        shown.add_row(step["what"], *times, str(step["requests"]), str(step["failed"]))
    return shown
