"""Counters: what happened, in all and minute by minute, kept in MongoDB so that restarts lose none of it.

They are for people and monitoring. The ledger and the posts are the truth: a crash between a
deed and its count loses the count.
"""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pymongo import UpdateOne
from pymongo.errors import BulkWriteError

from pipeline_poc.errors import PipelineError
from pipeline_poc.mongo import Document, Mongo

logger = logging.getLogger(__name__)

SECONDS_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Upper bounds of the histograms' buckets, in seconds; the last bucket has none."""

_TOTAL = "total"
MINUTES_KEPT_S = 7200
"""The counts of a minute are kept for so long."""
_TRIES = 3
"""Two who count the first event of a minute at once meet in the unique index; one of them counts again."""


class Counters:
    """The collection ``counters``: a document of totals, and one for each minute of the last two hours.

    Raises (reading):
        ServiceUnavailable: MongoDB can't be reached.
    """

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._counters = mongo.collection("counters")

    def add(self, at: datetime, increments: Mapping[str, float]) -> None:
        """Count; what can't be counted is logged, never raised, since the deed is done.

        Args:
            at: When it happened.
            increments: By name; a dot in a name begins a group, such as ``retries.ServiceUnavailable``.
        """
        minute = at.replace(second=0, microsecond=0)
        wanted = {name: number for name, number in increments.items() if number}
        if not wanted:
            return
        pending = [
            UpdateOne({"_id": _TOTAL}, {"$inc": wanted}, upsert=True),
            UpdateOne({"_id": _minute_id(minute)}, {"$inc": wanted, "$setOnInsert": {"at": minute}}, upsert=True),
        ]
        try:
            with self._mongo.translated():
                for left in range(_TRIES - 1, -1, -1):
                    pending = self._write(pending, is_last=left == 0)
                    if not pending:
                        return
        except PipelineError as error:
            logger.warning("not counted", extra={"counts": dict(wanted), "error": str(error)})

    def add_to_totals(self, increments: Mapping[str, float]) -> None:
        """Count in the totals alone, where a count by the minute would be of no use.

        Raises:
            PipelineError: They may not be counted; whoever counts may try again.
        """
        with self._mongo.translated():
            self._counters.update_one({"_id": _TOTAL}, {"$inc": dict(increments)}, upsert=True)

    def _write(self, operations: list[UpdateOne], *, is_last: bool) -> list[UpdateOne]:
        """Return those that met somebody else's first count of the same minute."""
        try:
            self._counters.bulk_write(operations, ordered=False)
        except BulkWriteError as error:
            if is_last:
                raise
            return [operations[failure["index"]] for failure in error.details["writeErrors"]]
        return []

    def read(self) -> tuple[Document, dict[datetime, Document]]:
        """Return all that was ever counted, groups as documents, and what was in each minute of the last two hours."""
        totals: Document = {}
        minutes: dict[datetime, Document] = {}
        with self._mongo.translated():
            for document in self._counters.find({}):
                if document["_id"] == _TOTAL:
                    totals = document
                else:
                    minutes[document["at"]] = document
        return totals, minutes


def observation(name: str, seconds: float) -> dict[str, float]:
    """Return the increments that put a duration into the histogram of that name."""
    bucket = next((index for index, bound in enumerate(SECONDS_BUCKETS) if seconds <= bound), len(SECONDS_BUCKETS))
    return {f"{name}.count": 1, f"{name}.sum": seconds, f"{name}.bucket{bucket}": 1}


def histogram(totals: Mapping[str, Any], name: str) -> tuple[Sequence[tuple[str, float]], float]:
    """Return a histogram's cumulated buckets, each with its upper bound as text, and the sum of all seconds."""
    kept = totals.get(name, {})
    cumulated, buckets = 0.0, []
    for index, bound in enumerate([*map(str, SECONDS_BUCKETS), "+Inf"]):
        cumulated += kept.get(f"bucket{index}", 0)
        buckets.append((bound, cumulated))
    return buckets, float(kept.get("sum", 0.0))


def number(totals: Mapping[str, Any], name: str) -> float:
    """Return a counter by its name, groups separated by dots; 0 where nothing was counted."""
    value: Any = totals
    for part in name.split("."):
        value = value.get(part, {}) if isinstance(value, Mapping) else {}
    return value if isinstance(value, (int, float)) else 0


def _minute_id(minute: datetime) -> str:
    return f"{minute:%Y%m%dT%H%M}"
