"""What the endpoints share: the stores, Dagster, and what is kept of them between two requests."""

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from math import inf
from typing import Any, TypeVar

import httpx
from fastapi import Request
from starlette.types import ASGIApp

from pipeline_poc.dagster_api import DagsterApi
from pipeline_poc.deadline import Calls, DeadlineExceeded, SharedCalls, in_thread
from pipeline_poc.entities import ENTITIES
from pipeline_poc.errors import PipelineError, TransientError
from pipeline_poc.health import Health, Inspector
from pipeline_poc.ledger import Batch
from pipeline_poc.posts import POSTS
from pipeline_poc.reconciliation import Reconciliation
from pipeline_poc.records import Entity
from pipeline_poc.services import Services
from pipeline_poc.settings import Settings
from pipeline_poc.web import snapshot
from pipeline_poc.web.census import Census
from pipeline_poc.web.snapshot import Snapshot
from pipeline_poc.web.traffic import Traffic

T = TypeVar("T")

ANSWER_S = 6.0
"""Longest time that an endpoint works on an answer."""
FRESH_S = 1.0
"""A snapshot is used again for so long."""
_ANSWER_TIMEOUT_S = 5.0
STALE_S = 30.0
"""Where a store is too busy to answer in time, what it said last is shown for so long."""
_PART_S = 3.0
"""Longest time that a store has for its part of a snapshot."""
_CALLS = 64
_TRAFFIC_S = 5.0
"""Requests are counted so often; a web server that is killed takes those since with it."""


class Context:
    """What the endpoints share; made once in the life of a web server.

    Args:
        settings: Of the process.
        ui: Dagster's UI, whose GraphQL is asked in this process.
        entity: What the endpoints are about.
    """

    def __init__(self, settings: Settings, ui: ASGIApp, entity: Entity = POSTS) -> None:
        self.settings = settings
        self.entity = entity
        impatient = {"store_timeout_s": min(settings.store_timeout_s, settings.health_timeout_s)}
        self.services = Services(
            settings.model_copy(update=impatient), entity=entity, answer_timeout_s=_ANSWER_TIMEOUT_S
        )
        """For answers: gives up on a store that is away before the one who asks does."""
        self.patient = Services(settings, entity=entity)
        """For work in the background."""
        self.dagster = DagsterApi(
            httpx.AsyncClient(transport=httpx.ASGITransport(app=ui), base_url="http://dagster", timeout=ANSWER_S),
            entity,
        )
        self.inspector = Inspector(self.services, self.dagster)
        self.census = Census(self.patient)
        self.traffic = Traffic()
        self.launching = asyncio.Lock()
        """Held by who looks for a run under way and launches one if there is none."""
        self._calls = Calls(_CALLS)
        self._shared = SharedCalls()
        self._read: dict[str, tuple[float, Any]] = {}
        self._snapshot: Snapshot | None = None
        self._snapshot_at = 0.0
        self._health: Health | None = None
        self._health_at = 0.0
        self._inspecting = asyncio.Lock()
        self._reconciliation: Future[Reconciliation] | None = None

    def close(self) -> None:
        """Stop the background work and close the stores."""
        self.census.stop()
        self.services.close()
        self.patient.close()

    async def call(self, func: Callable[[], T], *, deadline_s: float = ANSWER_S) -> T:
        """Call something that waits for a store.

        Raises:
            TransientError: It takes too long.
            PipelineError: Whatever it raises.
        """
        try:
            return await self._calls.run(func, deadline_s)
        except DeadlineExceeded as error:
            raise TransientError(f"a store keeps this request waiting: {error}") from None

    async def act(self, func: Callable[[], T], *, deadline_s: float) -> T:
        """Call something that may work for a while, once MongoDB is seen to answer; raises as `call` does."""
        await self.call(lambda: self.services.raw_store.ping())
        return await self.call(func, deadline_s=deadline_s)

    @property
    def is_reconciling(self) -> bool:
        """Whether this process is comparing the stores."""
        return self._reconciliation is not None and not self._reconciliation.done()

    def begin_reconciliation(self) -> None:
        """Compare the stores in the background; how it goes and ends is kept in MongoDB."""
        self._reconciliation = in_thread(self.patient.reconcile)

    async def snapshot(self) -> Snapshot:
        """Return the live state; what is away leaves its part empty.

        At most a second old while the stores answer quickly, and half a minute while they are busy.
        """
        loop = asyncio.get_running_loop()
        if self._snapshot is None or loop.time() - self._snapshot_at > FRESH_S:
            services = self.services
            (ledger, error), (queue, queue_error) = await asyncio.gather(
                self._part("ledger", lambda: snapshot.ask_ledger(services)),
                self._part("queue", lambda: snapshot.ask_queue(services)),
            )
            batches: dict[str, Batch] | None = None
            if ledger and queue:
                batches, _ = await self._part("batches", lambda: services.ledger.by_ids(snapshot.wanted(queue)))
            self._snapshot = Snapshot(ledger, queue, batches or {}, error, queue_error)
            self._snapshot_at = loop.time()
        return self._snapshot

    async def _part(self, name: str, ask: Callable[[], T]) -> tuple[T | None, PipelineError | None]:
        def read() -> T:
            part = ask()
            self._read[name] = (time.monotonic(), part)
            return part

        try:
            return await self._shared.run(name, read, _PART_S), None
        except DeadlineExceeded as error:
            # A store that is busy is not away: what it said last, maybe in a call that nobody waited for, is shown.
            read_at, part = self._read.get(name, (-inf, None))
            if time.monotonic() - read_at < STALE_S:
                return part, None
            return None, TransientError(f"the {name} can't be read: {error}")
        except PipelineError as error:
            return None, error

    async def keep_counting(self) -> None:
        """Keep what is counted of requests, again and again, until it is cancelled."""
        while True:
            await asyncio.sleep(_TRAFFIC_S)
            await self.save_traffic()

    async def save_traffic(self, *, deadline_s: float = ANSWER_S) -> None:
        """Keep what was counted of requests; what MongoDB does not confirm in time may be counted twice."""
        counts = self.traffic.take()
        if not counts:
            return
        try:
            await self.call(lambda: self.services.ledger.counters.add_to_totals(counts), deadline_s=deadline_s)
        except PipelineError:
            self.traffic.put_back(counts)

    async def health(self, *, max_age_s: float = 0.0) -> Health:
        """Return the health, at most so old."""
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        async with self._inspecting:
            # Whoever waited for somebody else's report, begun after they asked, takes it.
            if self._health is None or asked_at - self._health_at > max_age_s:
                begun_at = loop.time()
                self._health = await self.inspector.report()
                self._health_at = begun_at
            return self._health


def context_of(request: Request) -> Context:
    """Return the context of the entity that a request is about."""
    contexts: Mapping[str, Context] = request.app.state.contexts
    return contexts[request.path_params.get("entity", POSTS.name)]


def contexts_of(settings: Settings, ui: ASGIApp) -> dict[str, Context]:
    """Return a context for each of ENTITIES, by name."""
    return {name: Context(settings, ui, ENTITIES[name]) for name in settings.entities}
