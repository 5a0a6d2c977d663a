"""Counts of everything stored, made in the background at a bounded cost: no request waits for one."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from pipeline_poc.clock import utc_now
from pipeline_poc.errors import PipelineError
from pipeline_poc.raw_store import Counts
from pipeline_poc.services import Services
from pipeline_poc.web.traffic import GROUP

logger = logging.getLogger(__name__)

S = TypeVar("S")
T = TypeVar("T")

_SHARE = 20
"""Counting may take one part in so many of a store's time."""
_FIRST_SHARE = 4
"""The first count may take more, since nothing is known before it."""
_MOMENT_S = 1.0
_REST_MAX_S = 5.0
_AT_REST_S = 300.0
"""Even where nothing seems to move, a count is made so often: somebody may write past the pipeline."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What was counted last.

    Attributes:
        posts: None before the first count, or while MongoDB is away.
        rows: None before the first count, or while the relational store is away.
        counted_at: Begin of the count.
        max_age_s: Oldest that it gets while posts move, in seconds.
    """

    posts: Counts | None
    rows: int | None
    counted_at: datetime | None
    max_age_s: float


class Census:
    """Counts again and again, in a thread of its own, while posts move.

    Args:
        services: With the patience for a long answer.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._interval_s = services.settings.count_interval_s
        self._stopped = threading.Event()
        self._seen: Any = None
        self.tally = Tally(None, None, None, self._interval_s)

    def start(self) -> None:
        """Begin to count."""
        threading.Thread(target=self._run, name="census", daemon=True).start()

    def stop(self) -> None:
        """Count no more; does not wait for a count that is under way."""
        self._stopped.set()

    def _run(self) -> None:
        pause_s = 0.0
        while not self._stopped.wait(pause_s):
            pause_s = self._interval_s
            if self._is_due():
                pause_s = self.count()

    def _is_due(self) -> bool:
        tally = self.tally
        if tally.posts is None or tally.rows is None or tally.counted_at is None:
            return True
        if (utc_now() - tally.counted_at).total_seconds() > _AT_REST_S:
            return True
        try:
            return bool(self._signs() != self._seen)
        except PipelineError:
            return True

    def _signs(self) -> Any:
        """Return what changes whenever posts move; costs two short questions."""
        totals = self._services.ledger.counters.read()[0]
        # Requests move nothing.
        moves = {name: counts for name, counts in totals.items() if name not in ("_id", GROUP)}
        return moves, self._services.ledger.backlog()

    def count(self) -> float:
        """Count once, with a rest after each part; returns the seconds to rest after the last.

        Those to open a store, or to find that it is away, are left out: they say nothing about a count.
        """
        begun, at, services = time.perf_counter(), utc_now(), self._services
        with suppress(PipelineError):
            # Before the count: what moves meanwhile is counted again.
            self._seen = self._signs()
        rest = _Rest(_FIRST_SHARE if self.tally.counted_at is None else _SHARE, self._stopped)
        posts = _counted(lambda: services.raw_store, lambda store: store.counts(on_part=rest.take), rest)
        rows = _counted(lambda: services.relational_store, lambda store: store.count(), rest)
        pause_s = max(self._interval_s, rest.due_s)
        took_s = time.perf_counter() - begun
        self.tally = Tally(posts, rows, at, round(2 * took_s + pause_s, 1))
        return pause_s


class _Rest:
    """Sees to it that a count takes its share of the time, and no more."""

    def __init__(self, share: int, stopped: threading.Event) -> None:
        self._share = share
        self._stopped = stopped
        self.begin()
        self.due_s = 0.0
        """Rest that is still to be taken."""

    def begin(self) -> None:
        """Work begins now."""
        self._since = time.perf_counter()

    def end(self) -> None:
        """Work ends now."""
        self.due_s += (time.perf_counter() - self._since) * self._share

    def take(self) -> None:
        """Take the rest that is due in the middle of the work; a moment is not worth it."""
        self.end()
        if self.due_s > _MOMENT_S:
            # A store that is slow at the moment would else put the end of a count off by hours.
            self._stopped.wait(min(self.due_s, _REST_MAX_S))
            self.due_s = 0.0
        self.begin()


def _counted(open_: Callable[[], S], count: Callable[[S], T], rest: _Rest) -> T | None:
    try:
        store = open_()
        rest.begin()
        counted = count(store)
    except PipelineError as error:
        logger.debug("not counted: %s", error)
        return None
    rest.end()
    return counted
