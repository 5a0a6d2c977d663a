"""Whether the migration runs, drains or is paused: decided by a person, kept in MongoDB.

    running    ticks put the backlog on the queue, workers migrate it
    draining   ticks put nothing more on the queue; workers finish what is on it
    paused     workers finish what they are executing, and begin nothing

Ingestion goes on in every mode: what it stores joins the backlog.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, cast

from pipeline_poc.errors import PipelineError
from pipeline_poc.state import State

Mode = Literal["running", "draining", "paused"]

_KEY = "migration"


class MigrationPausedError(PipelineError):
    """The migration is paused, or drains, so that nothing new may begin."""


@dataclass(frozen=True, slots=True)
class Control:
    """The mode, and who wanted it.

    Attributes:
        since: When it was set; None where nobody ever did.
        by: Who set it.
        reason: Why, in their words.
    """

    mode: Mode = "running"
    since: datetime | None = None
    by: str | None = None
    reason: str | None = None

    @property
    def is_running(self) -> bool:
        """Whether the backlog is being migrated."""
        return self.mode == "running"

    def require_running(self) -> None:
        """Refuse what must not happen while the migration is paused or drains.

        Raises:
            MigrationPausedError: It is.
        """
        if not self.is_running:
            said = f" ({self.reason})" if self.reason else ""
            raise MigrationPausedError(
                f"the migration is {self.mode} since {self.since:%Y-%m-%d %H:%M:%S} UTC, by {self.by}{said}: "
                "`pipeline-poc resume` lets it go on"
            )


def load(state: State) -> Control:
    """Return the mode in force."""
    kept = state.load(_KEY)
    if not kept:
        return Control()
    return Control(cast(Mode, kept["mode"]), kept["since"], kept["by"], kept["reason"])


def save(state: State, control: Control) -> None:
    """Put a mode in force; ticks obey at once, workers within two seconds."""
    state.save(_KEY, {"mode": control.mode, "since": control.since, "by": control.by, "reason": control.reason})
