"""How often things happen by themselves, and how late they may be: constants, since definitions read no environment."""

import time
from datetime import timedelta

from dagster import FreshnessPolicy

INGESTION_CRON = "*/10 * * * *"
CHECK_CRON = "5,15,25,35,45,55 * * * *"
"""Between two ingestions, which check what they have written themselves."""
PRUNING_CRON = "17 3 * * *"

FRESHNESS = FreshnessPolicy.time_window(warn_window=timedelta(minutes=30), fail_window=timedelta(hours=1))
"""Of both assets: each is brought up to date, or found to be, every ten minutes. A deployment, or an outage that heals
by itself, may cost two or three of those turns; after six, somebody has to look."""

PROGRESS_S = 3.0
"""Pause between two lines about progress: each is an event in Dagster's storage."""


class Pace:
    """Lets something pass now and then, the first time after a while."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._last = time.monotonic()

    def is_due(self) -> bool:
        """Return whether it is time again."""
        now = time.monotonic()
        if now - self._last < self._interval_s:
            return False
        self._last = now
        return True
