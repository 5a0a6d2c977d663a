"""The breaker: keeps a worker from spending the attempts of one job after the other on a store that is away.

    closed ──systemic failure──▶ open ──pause over, store answers──▶ half open ──success──▶ closed
                                  ▲                                      │
                                  └───────────systemic failure───────────┘

Pure: it decides, and does nothing. While it is open nothing is begun; while it is half open one
job after the other is tried. Failures that say nothing about a store change nothing.
"""

import random
import time
from collections.abc import Callable
from typing import Literal

from pipeline_poc.errors import ServiceUnavailable, TransientError

_PING_PAUSE_S = 2.0
"""Pause between two pings of a store that does not answer: so soon after its return work flows again."""
_DOUBLINGS_MAX = 32


class Breaker:
    """The breaker of one worker.

    Args:
        base_s: Upper bound of the first pause, in seconds; it doubles with each failure in a row.
        cap_s: Upper bound of every pause, in seconds.
        clock: Seconds that only grow.
        uniform: Draws from a closed interval.

    Attributes:
        state: ``closed`` (all is well), ``open`` (nothing may begin) or ``half open`` (a job may show how it is).
        reason: What went wrong last, for people; None while it is closed.
    """

    def __init__(
        self,
        base_s: float,
        cap_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self._clock = clock
        self._uniform = uniform
        self._failures = 0
        self._next_look_at = 0.0
        self._setting: str | None = None
        self.state: Literal["closed", "open", "half open"] = "closed"
        self.reason: str | None = None

    def failed(self, error: TransientError) -> bool:
        """Take note of a systemic failure; returns whether that opened a closed breaker.

        The pause lies between half its bound and its bound, and is never shorter than what the
        other side asked for, up to the cap.
        """
        was_closed = self.state == "closed"
        bound_s = min(self._cap_s, self._base_s * 2 ** min(self._failures, _DOUBLINGS_MAX))
        pause_s = min(max(self._uniform(bound_s / 2, bound_s), error.retry_after_s or 0.0), self._cap_s)
        self._failures += 1
        self._next_look_at = self._clock() + pause_s
        self._setting = error.setting if isinstance(error, ServiceUnavailable) else None
        self.reason = str(error)
        self.state = "open"
        return was_closed

    def succeeded(self) -> bool:
        """Take note of a success; returns whether that closed the breaker."""
        was_closed = self.state == "closed"
        self.state, self.reason, self._setting, self._failures = "closed", None, None, 0
        return not was_closed

    def may_try(self, answers: Callable[[str], bool]) -> bool:
        """Return whether a job may begin now.

        Args:
            answers: Whether the store of that setting, such as ``SQL_URL``, answers a ping; asked
                only when the pause is over, and then every two seconds at most.
        """
        if self.state != "open":
            return True
        if self._clock() < self._next_look_at:
            return False
        if self._setting is None or answers(self._setting):
            self.state = "half open"
            return True
        self._next_look_at = self._clock() + min(_PING_PAUSE_S, self._cap_s)
        return False
