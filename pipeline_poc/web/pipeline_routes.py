"""The endpoints of health, ingestion and migration."""

import asyncio
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from pipeline_poc import health
from pipeline_poc.control import Mode
from pipeline_poc.dagster_api import Run
from pipeline_poc.errors import TransientError
from pipeline_poc.health import Health
from pipeline_poc.migration_queue import JobInfo, JobState
from pipeline_poc.selection import SelectionError
from pipeline_poc.web import models, views
from pipeline_poc.web.context import Context, context_of
from pipeline_poc.web.live import next_ingestion
from pipeline_poc.web.once import IdempotencyKey, once
from pipeline_poc.web.parameters import Cursor, Limit, caller
from pipeline_poc.web.problems import described

router = APIRouter()

_WAIT_S = 60.0
"""Longest wait of `?wait=true`."""
_POLL_S = 0.25
_MIGRATE_S = 30.0
"""Adopting what a former service left may take a while."""
_TICKS = 20
_TICK_PAUSE_S = 0.25
_HEALTH_REUSED_S = 1.0
"""Reports are taken once a second at most, however many ask."""
_OLD_NAMES: dict[str, JobState] = {
    "waiting": "queued",
    "active": "started",
    "delayed": "scheduled",
    "completed": "finished",
    "failed": "failed",
}
"""States of jobs by the names of the service that this one replaces."""

AnyState = Annotated[
    str | None,
    Query(
        pattern="^(queued|started|scheduled|finished|failed|deferred|waiting|active|delayed|completed)$",
        description="Only jobs in this state; `waiting`, `active`, `delayed` and `completed` are older names.",
    ),
]
_HEALTH_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": models.HealthView, "description": "pass or warn"},
    503: {"model": models.HealthView, "description": "fail"},
}


class HealthResponse(JSONResponse):
    """JSON under the name that the draft gives to it."""

    media_type = health.MEDIA_TYPE


@router.get(
    "/health/live",
    tags=["health"],
    summary="Whether the process answers",
    response_class=HealthResponse,
    responses={200: {"model": models.LiveView, "description": "pass"}},
)
async def live() -> HealthResponse:
    """Touches nothing else; for liveness probes."""
    return HealthResponse({"status": "pass"})


@router.get(
    "/health/ready",
    tags=["health"],
    summary="Whether the next request can be served",
    response_class=HealthResponse,
    responses=_HEALTH_RESPONSES,
)
async def ready(request: Request) -> HealthResponse:
    """Looks at MongoDB and Redis, and whether this process was asked to stop; for readiness probes."""
    return _health_response(await context_of(request).inspector.ready())


@router.get(
    "/health",
    tags=["health"],
    summary="The whole report",
    response_class=HealthResponse,
    responses=_HEALTH_RESPONSES,
)
async def deep_health(request: Request) -> HealthResponse:
    """Every store, Dagster, workers, lag, quarantine, dead letters and disk, side by side, within a deadline.

    In the shape of `application/health+json`. 503 only if something has failed; a warning answers 200.
    """
    return _health_response(await context_of(request).health(max_age_s=_HEALTH_REUSED_S))


def _health_response(report: Health) -> HealthResponse:
    return HealthResponse(report.as_dict(), 503 if report.status == "fail" else 200)


@router.get("/data-ingestion/stats", tags=["ingestion"], summary="How the ingestion goes")
async def ingestion_stats(request: Request) -> models.IngestionStats:
    """Totals by state, the last run, failures since, and when the schedule ingests next."""
    context = context_of(request)
    snapshot, _ = await asyncio.gather(context.snapshot(), context.health(max_age_s=5.0))
    next_at = next_ingestion(context)
    return views.ingestion_stats(snapshot.require_ledger(), context.census.tally, next_at)


_TRIGGER_RESPONSES: dict[int | str, dict[str, Any]] = {
    202: {"model": models.IngestionTriggered, "description": "The run is under way."},
    409: described("Dagster refused, or the first request with this key is still at work."),
}
Wait = Annotated[bool, Query(description="Answer when the run has ended, after 60 s at most.")]


@router.post(
    "/data-ingestion/trigger",
    tags=["ingestion"],
    response_model=models.IngestionTriggered,
    responses=_TRIGGER_RESPONSES,
)
@router.post(
    "/trigger-ingestion", tags=["ingestion"], response_model=models.IngestionTriggered, responses=_TRIGGER_RESPONSES
)
async def trigger_ingestion(request: Request, idempotency_key: IdempotencyKey = None, wait: Wait = False) -> Response:
    """Launch the ingestion as a run of Dagster, like any other in its UI; one that is under way is joined.

    Answers 202 with the run, or 200 with its result where that was waited for. A run that failed has
    `success: false`, and says why.
    """
    context = context_of(request)

    async def act() -> tuple[int, models.IngestionTriggered]:
        async with context.launching:
            run_id = await context.dagster.run_under_way()
            joined = run_id is not None
            if run_id is None:
                run_id = await context.dagster.launch_ingestion({"pipeline_poc/started_by": "api"})
        run = await _run(context, run_id, wait_s=_WAIT_S if wait else 0.0)
        answer = _triggered(run, run_id, joined=joined)
        return (200 if wait and run is not None and run.is_over else 202), answer

    return await once(request, idempotency_key, act)


async def _run(context: Context, run_id: str, *, wait_s: float) -> Run | None:
    deadline = asyncio.get_running_loop().time() + wait_s
    while True:
        run = await context.dagster.run(run_id)
        if run is None or run.is_over or asyncio.get_running_loop().time() >= deadline:
            return run
        await asyncio.sleep(_POLL_S)


def _triggered(run: Run | None, run_id: str, *, joined: bool) -> models.IngestionTriggered:
    status = run.status if run else "STARTING"
    view = models.RunView(run_id=run_id, status=status, url=f"/runs/{run_id}")
    if run is None or not run.is_over:
        message = "joined the run that was under way" if joined else "launched a run"
        return models.IngestionTriggered(success=True, message=message, joined=joined, run=view, result=None)
    if run.status != "SUCCESS":
        message = f"the run ended with {run.status}: {run.error or 'see its page'}"
        return models.IngestionTriggered(success=False, message=message, joined=joined, run=view, result=None)
    return models.IngestionTriggered(
        success=True, message="the run went well", joined=joined, run=view, result=_ingestion_result(run)
    )


def _ingestion_result(run: Run) -> models.IngestionResultView:
    numbers = {
        name: int(run.numbers.get(name, 0)) for name in ("fetched", "new", "changed", "unchanged", "quarantined")
    }
    return models.IngestionResultView(
        **numbers,
        inserted=numbers["new"],
        duplicates=numbers["unchanged"],
        errors=numbers["quarantined"],
        started_at=run.started_at,
        duration_ms=round(run.numbers.get("duration_s", 0.0) * 1000),
    )


@router.get("/data-migration/stats", tags=["migration"], summary="How the migration goes")
async def migration_stats(request: Request) -> models.MigrationStats:
    """Where the posts are, what is queued, who works, how fast, and how late."""
    context = context_of(request)
    return views.migration_stats(await context.snapshot(), context.census.tally)


@router.get("/data-migration/queue-jobs", tags=["migration"], summary="The jobs of the queue, newest first")
async def queue_jobs(
    request: Request, state: AnyState = None, limit: Limit = 20, cursor: Cursor = None
) -> models.QueueJobs:
    """Jobs in one state, page by page; without a state, the newest of each.

    A cursor belongs to the state that it was returned for.
    """
    context = context_of(request)
    if cursor and not state:
        raise SelectionError("a cursor belongs to a state: say by ?state= which one")

    def look() -> models.QueueJobs:
        services = context.services
        wanted = {state: _OLD_NAMES.get(state, state)} if state else _OLD_NAMES
        pages = {
            name: services.queue.page(each, limit=limit, cursor=cursor)  # type: ignore[arg-type]
            for name, each in wanted.items()
        }
        jobs = [job for page, _ in pages.values() for job in page]
        batches = services.ledger.by_ids([job.id for job in jobs]) if jobs else {}

        def view(job: JobInfo) -> models.JobView:
            return views.job(job, batches.get(job.id), context.settings)

        counts = views.queue_counts(services.queue.counts(), is_paused=not services.control().is_running)
        return models.QueueJobs(
            counts=counts,
            jobs={name: [view(job) for job in page] for name, (page, _) in pages.items()},
            next_cursor=pages[state][1] if state else None,
        )

    return await context.call(look)


_MIGRATION_RESPONSES: dict[int | str, dict[str, Any]] = {
    409: described("The migration is paused, or the first request with this key is still at work.")
}


@router.post(
    "/data-migration/trigger",
    tags=["migration"],
    response_model=models.MigrationTriggered,
    responses=_MIGRATION_RESPONSES,
)
@router.post(
    "/trigger-migration", tags=["migration"], response_model=models.MigrationTriggered, responses=_MIGRATION_RESPONSES
)
async def trigger_migration(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Give every post that waits a batch, and put the batches on the queue at once, as far as the window allows.

    The sensor does the same every few seconds; asking twice enqueues nothing twice.
    """
    context = context_of(request)

    async def act() -> tuple[int, models.MigrationTriggered]:
        services = context.patient
        await context.call(context.services.require_running)
        await context.call(lambda: context.services.queue.ping())
        adopted = await context.act(services.adopt, deadline_s=_MIGRATE_S)
        for _ in range(_TICKS):
            tick = await context.call(services.tick)
            if not tick.busy:
                break
            await asyncio.sleep(_TICK_PAUSE_S)
        return 200, models.MigrationTriggered(
            success=True,
            message=tick.sentence(services.entity.noun),
            adopted=adopted + tick.adopted,
            posts=tick.posts,
            jobs=tick.enqueued + tick.requeued + tick.freed,
            outstanding=tick.outstanding,
        )

    return await once(request, idempotency_key, act)


@router.post("/data-migration/pause", tags=["migration"], summary="Begin no more jobs")
async def pause(request: Request, wish: models.ModeWish | None = None) -> models.ModeView:
    """The sensor enqueues nothing, and workers begin nothing within two seconds; what they execute is finished.

    Ingestion goes on: what it stores joins the backlog.
    """
    return await _set_mode(request, "paused", wish)


@router.post("/data-migration/drain", tags=["migration"], summary="Finish what is on the queue, and add nothing")
async def drain(request: Request, wish: models.ModeWish | None = None) -> models.ModeView:
    """The sensor enqueues nothing more; workers go on until the queue is empty: `outstanding` is 0 then."""
    return await _set_mode(request, "draining", wish)


@router.post("/data-migration/resume", tags=["migration"], summary="Let the migration go on")
async def resume(request: Request, wish: models.ModeWish | None = None) -> models.ModeView:
    """Ends a pause or a drain."""
    return await _set_mode(request, "running", wish)


async def _set_mode(request: Request, mode: Mode, wish: models.ModeWish | None) -> models.ModeView:
    context = context_of(request)

    def change() -> models.ModeView:
        services = context.services
        control = services.set_mode(mode, by=caller(request), reason=wish.reason if wish else None)
        outstanding = None
        with suppress(TransientError):  # The mode is in force, whether Redis is there or not.
            outstanding = len(services.queue.snapshot().outstanding)
        return models.ModeView(
            mode=control.mode,
            since=control.since,
            by=control.by,
            reason=control.reason,
            outstanding=outstanding,
        )

    return await context.call(change)
