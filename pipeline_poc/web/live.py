"""The live view: an overview for the status page, its recent past, and a stream of its changes."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import datetime

from pipeline_poc.counters import number
from pipeline_poc.errors import PipelineError, TransientError
from pipeline_poc.health import Check
from pipeline_poc.settings import PUBLIC_SOURCE_URL
from pipeline_poc.web import models, views
from pipeline_poc.web.context import Context
from pipeline_poc.web.snapshot import Snapshot

logger = logging.getLogger(__name__)

_WATCHED_S = 2.0
"""Pause between two looks while somebody watches."""
_UNWATCHED_S = 10.0
_HEALTH_MAX_AGE_S = 5.0
_SAMPLES = 900
_WATCHERS = 100
"""Streams that may be open at once."""


class TooManyWatchersError(TransientError):
    """No more streams can be opened."""


class Live:
    """Looks at the pipeline now and then, keeps the recent past, and tells whoever watches.

    Args:
        context: Of the server.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._history: deque[models.Sample] = deque(maxlen=_SAMPLES)
        self._watchers = 0
        self._changed = asyncio.Condition()
        self._overview: models.Overview | None = None
        self._rows_before: tuple[datetime, float] | None = None
        self._hurry = asyncio.Event()

    async def run(self) -> None:
        """Look again and again, until it is cancelled."""
        while True:
            try:
                await self._look()
            except PipelineError as error:
                logger.debug("no look at the pipeline: %s", error)
            self._hurry.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), _WATCHED_S if self._watchers else _UNWATCHED_S)

    async def overview(self) -> models.Overview:
        """Return everything, now, with the whole of the recent past."""
        made = await self._make(await self._context.snapshot())
        return made.model_copy(update={"history": list(self._history)})

    def require_room(self) -> None:
        """Refuse another stream where too many are open.

        Raises:
            TooManyWatchersError: They are.
        """
        if self._watchers >= _WATCHERS:
            raise TooManyWatchersError(f"{_WATCHERS} streams are open already")

    async def watch(self) -> AsyncIterator[models.Overview]:
        """Yield the overview as often as it is made anew; each with the samples that are new since the last one."""
        if not self._watchers:
            self._overview = None  # Made for those who watched before, whenever that was.
        self._watchers += 1
        self._hurry.set()
        last_at = self._history[-1].at if self._history else 0.0
        seen: models.Overview | None = None
        try:
            while True:
                async with self._changed:
                    while (made := self._overview) is None or made is seen:
                        await self._changed.wait()
                seen = made
                fresh = [sample for sample in self._history if sample.at > last_at]
                last_at = fresh[-1].at if fresh else last_at
                yield seen.model_copy(update={"history": fresh})
        finally:
            self._watchers -= 1
            if not self._watchers:
                self._overview = None  # Nobody makes it anew: who comes next must not be shown an old one.

    async def _look(self) -> None:
        snapshot = await self._context.snapshot()
        if not self._history or self._history[-1].at != snapshot.at.timestamp():
            self._history.append(self._sample(snapshot))
        if self._watchers:
            made = await self._make(snapshot)
            async with self._changed:
                self._overview = made
                self._changed.notify_all()

    def _sample(self, snapshot: Snapshot) -> models.Sample:
        ledger = snapshot.ledger
        if ledger is None:
            self._rows_before = None
            return models.Sample(at=snapshot.at.timestamp(), migrated_per_s=None, backlog=None, lag_s=None)
        rows, before = number(ledger.totals, "migration.rows"), self._rows_before
        elapsed_s = (snapshot.at - before[0]).total_seconds() if before else 0.0
        self._rows_before = (snapshot.at, rows)
        return models.Sample(
            at=snapshot.at.timestamp(),
            migrated_per_s=round(max(0.0, rows - before[1]) / elapsed_s, 1) if before and elapsed_s > 0 else None,
            backlog=ledger.backlog.posts,
            lag_s=round(ledger.lag_s, 3),
        )

    async def _make(self, snapshot: Snapshot) -> models.Overview:
        context = self._context
        health = await context.health(max_age_s=_HEALTH_MAX_AGE_S)
        return views.overview(
            snapshot,
            context.census.tally,
            health,
            context.settings,
            entity=context.entity.name,
            source=self._source(snapshot, health.find("source:lastSuccess")),
            history=[],
        )

    def _source(self, snapshot: Snapshot, check: Check) -> models.SourceView:
        source = self._context.services.source
        last = snapshot.ledger.last_ingestion if snapshot.ledger else {}
        return models.SourceView(
            status=check.status,
            url=source.shown_url or PUBLIC_SOURCE_URL,
            is_stand_in=source.is_stand_in,
            last_success_at=last.get("lastSuccessAt"),
            errors_since=last.get("errorsSince", 0) if snapshot.ledger else None,
            last_error=last.get("lastError") if last.get("errorsSince") else None,
            next_at=next_ingestion(self._context),
            last_run=views.last_run(last),
        )


def next_ingestion(context: Context) -> datetime | None:
    """Return when the schedule ingests next; None where it is stopped, or Dagster is away."""
    state, name = context.inspector.dagster_state, context.entity.schedule("ingest")
    return next(
        (each.next_at for each in (state.schedules if state else ()) if each.name == name and each.is_running), None
    )
