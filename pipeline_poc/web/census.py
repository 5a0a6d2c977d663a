"""Counts of everything stored, made in the background at a bounded cost: no request waits for one."""

import logging
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline_poc.clock import utc_now
from pipeline_poc.errors import PipelineError
from pipeline_poc.raw_store import Counts
from pipeline_poc.services import Services

logger = logging.getLogger(__name__)

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
        return self._services.ledger.counters.totals(), self._services.ledger.waiting()

    def count(self) -> float:
        """Count once; returns the seconds that it took."""
        begun_at, at = time.perf_counter(), utc_now()
        posts: Counts | None = None
        rows: int | None = None
        try:
            # Before the count: what moves meanwhile is counted again.
            self._seen = self._signs()
            posts = self._services.raw_store.counts()
        except PipelineError as error:
            logger.debug("posts not counted: %s", error)
        try:
            rows = self._services.relational_store.count()
        except PipelineError as error:
            logger.debug("rows not counted: %s", error)
        cost_s = time.perf_counter() - begun_at
        self.tally = Tally(posts, rows, at, round(max(self._interval_s, cost_s * _SHARE) + cost_s, 1))
        return cost_s
