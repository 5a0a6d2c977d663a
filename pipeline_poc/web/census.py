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

logger = logging.getLogger(__name__)

S = TypeVar("S")
T = TypeVar("T")

_SHARE = 20
"""Counting may take one part in so many of the time: a count that takes a second is made every 20."""
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
                cost_s = self.count()
                pause_s = max(self._interval_s, cost_s * _SHARE)

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
        return self._services.ledger.counters.read()[0], self._services.ledger.backlog()

    def count(self) -> float:
        """Count once; returns the seconds that it took.

        Those to open a store, or to find that it is away, are left out: they say nothing about a count.
        """
        at, services = utc_now(), self._services
        with suppress(PipelineError):
            # Before the count: what moves meanwhile is counted again.
            self._seen = self._signs()
        posts, posts_s = _timed(lambda: services.raw_store, lambda store: store.counts())
        rows, rows_s = _timed(lambda: services.relational_store, lambda store: store.count())
        cost_s = posts_s + rows_s
        self.tally = Tally(posts, rows, at, round(max(self._interval_s, cost_s * _SHARE) + cost_s, 1))
        return cost_s


def _timed(open_: Callable[[], S], count: Callable[[S], T]) -> tuple[T | None, float]:
    try:
        store = open_()
        begun_at = time.perf_counter()
        counted = count(store)
    except PipelineError as error:
        logger.debug("not counted: %s", error)
        return None, 0.0
    return counted, time.perf_counter() - begun_at
