"""What is asked of the web server: counted by route, method and status, with the time until an answer begins.

Kept in MongoDB with all that is counted, since a scraper may meet another web server each time.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline_poc.counters import histogram, observation

GROUP = "http"
"""Of the counters."""
OTHER = "other"
UI = "dagster"
"""The route of everything that is not ours."""

_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_DOT = "%2E"
"""Stands for the dots of a route, which divide the names of counters."""


class Traffic:
    """The requests that are counted and not kept yet; for one event loop."""

    def __init__(self) -> None:
        self._counts: dict[str, float] = {}

    def add(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request.

        Args:
            route: As it stands in the code, so that there are few; `OTHER` for what has none.
            method: Anything that a client may say.
            status: Of the answer.
            seconds: Until the answer began.
        """
        name = route.replace(".", _DOT)
        request = f"{GROUP}.requests.{method if method in _METHODS else OTHER} {status} {name}"
        self.put_back({request: 1} | observation(f"{GROUP}.seconds.{name}", seconds))

    def take(self) -> dict[str, float]:
        """Return what is to be kept, and begin anew."""
        counts, self._counts = self._counts, {}
        return counts

    def put_back(self, counts: Mapping[str, float]) -> None:
        """Take back what could not be kept."""
        for name, count in counts.items():
            self._counts[name] = self._counts.get(name, 0) + count


def requests(totals: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str, str], float]]:
    """Yield what was counted: route, method and status, and how often."""
    for name, count in totals.get(GROUP, {}).get("requests", {}).items():
        method, status, route = name.split(" ", 2)
        yield (route.replace(_DOT, "."), method, status), count


def durations(totals: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, float]], float]]:
    """Yield a histogram for each route, as `counters.histogram` returns it."""
    kept = totals.get(GROUP, {}).get("seconds", {})
    for name in kept:
        buckets, seconds = histogram(kept, name)
        yield name.replace(_DOT, "."), list(buckets), seconds
