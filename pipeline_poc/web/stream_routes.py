"""The endpoints of the live view: metrics, overview, the stream of its changes, and the status page."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from prometheus_client import CONTENT_TYPE_PLAIN_1_0_0
from starlette.responses import Response

from pipeline_poc.web import metrics, models
from pipeline_poc.web.context import context_of
from pipeline_poc.web.live import Live

router = APIRouter()

STATIC = Path(__file__).parent / "static"
_HEALTH_MAX_AGE_S = 5.0
_TEXT = {"text/plain": {"schema": {"type": "string"}}}


@router.get(
    "/metrics",
    tags=["live"],
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={
        200: {"description": "Prometheus's text format", "content": {"text/plain": {"schema": {"type": "string"}}}}
    },
)
async def prometheus(request: Request) -> Response:
    """Records, lag, queue, workers, attempts, durations, quarantine, reconciliation, stores; at most 5 s old."""
    context = context_of(request)
    snapshot, health = await asyncio.gather(context.snapshot(), context.health(max_age_s=_HEALTH_MAX_AGE_S))
    return Response(metrics.render(snapshot, context.census.tally, health), media_type=CONTENT_TYPE_PLAIN_1_0_0)


@router.get("/pipeline/overview", tags=["live"], summary="Everything that the status page shows")
async def overview(request: Request) -> models.Overview:
    """With the recent past: a point each ten seconds, each two while somebody watches."""
    return await _live(request).overview()


async def _room(request: Request) -> None:
    _live(request).require_room()


@router.get(
    "/events",
    tags=["live"],
    summary="The overview as often as it changes",
    response_class=EventSourceResponse,
    dependencies=[Depends(_room)],
)
async def events(request: Request) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events of the name `overview`, each with the samples of `history` that are new since the last one."""
    async for made in _live(request).watch():
        yield ServerSentEvent(event="overview", data=made.model_dump(mode="json", by_alias=True))


@router.get("/pipeline", include_in_schema=False)
async def page() -> FileResponse:
    """Return the status page."""
    return FileResponse(STATIC / "pipeline.html")


def _live(request: Request) -> Live:
    live: Live = request.app.state.lives[context_of(request).entity.name]
    return live
