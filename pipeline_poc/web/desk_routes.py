"""The endpoints of the operator's desk: passports, quarantine, dead letters, reconciliation and repair."""

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse
from pydantic.alias_generators import to_camel

from pipeline_poc.dead_letters import DeadLetter
from pipeline_poc.passport import Passport
from pipeline_poc.quarantine import QuarantinedItem
from pipeline_poc.selection import Selection
from pipeline_poc.web import models, views
from pipeline_poc.web.context import Context, context_of
from pipeline_poc.web.parameters import Cursor, DryRun, Limit, caller
from pipeline_poc.web.problems import NotFound, described

router = APIRouter()

_DESK_S = 60.0
"""Requeueing or discarding everything takes its time."""
_REPAIR_S = 600.0
"""A repair compares all posts first."""
_IDS_SHOWN = 1000

Reason = Annotated[str | None, Query(min_length=1, max_length=200, description="Only those with this reason code.")]
ItemId = Annotated[str, Path(min_length=1, max_length=200)]
_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: described("There is none of that id.")}


@router.get("/posts/{externalId}", tags=["desk"], summary="A post's passport", responses=_NOT_FOUND)
async def post_passport(
    request: Request, external_id: Annotated[models.ExternalId, Path(alias="externalId")]
) -> models.PassportView:
    """When it came, where it is, its batch, its job and its row, and whether both stores agree."""
    context = context_of(request)
    found = await context.call(lambda: context.services.passport(external_id))
    if found is None:
        raise NotFound(f"neither store knows a post with the id {external_id}")
    return _passport(found, context)


def _passport(found: Passport, context: Context) -> models.PassportView:
    batch, job = found.batch, found.job
    return models.PassportView(
        external_id=found.external_id,
        state=found.state,
        first_seen_at=found.first_seen_at,
        changed_at=found.changed_at,
        content_hash=found.content_hash,
        version=found.version,
        batch=models.PassportBatch(
            id=found.batch_id,
            state=batch.state if batch else None,
            created_at=batch.created_at if batch else None,
            closed_at=batch.closed_at if batch else None,
            attempts=batch.attempts if batch else None,
            worker=batch.worker if batch else None,
            error=batch.error if batch else None,
        )
        if found.batch_id
        else None,
        job=views.job(job, batch, context.settings) if job else None,
        row=found.row and {name: _json_value(value) for name, value in found.row.items()},
        quarantine=models.PassportQuarantine.model_validate(found.quarantine, from_attributes=True)
        if found.quarantine
        else None,
        agrees=found.agrees,
        verdict=found.verdict,
        away=found.away,
    )


def _json_value(value: Any) -> Any:
    # Columns are UTC, though without saying so.
    return f"{value.isoformat()}Z" if isinstance(value, datetime) else value


@router.get("/quarantine", tags=["desk"], summary="The quarantine by reason")
async def quarantine(request: Request) -> models.QuarantineGroups:
    """What waits for a person, grouped; what was discarded is left out."""
    context = context_of(request)
    groups = await context.call(lambda: context.services.quarantine.groups())
    return models.QuarantineGroups(groups=views.quarantine_groups(groups), total=sum(group.count for group in groups))


@router.get("/quarantine/items", tags=["desk"], summary="Quarantined records and posts, newest first")
async def quarantine_items(  # noqa: PLR0917 - query parameters are given by name
    request: Request,
    reason: Reason = None,
    kind: Annotated[Literal["record", "post"] | None, Query(description="Only records, or only posts.")] = None,
    limit: Limit = 20,
    cursor: Cursor = None,
    discarded: Annotated[bool, Query(description="What was discarded, instead of what waits.")] = False,
) -> models.QuarantineItems:
    """A page of them; long payloads are cut, looking at one shows all of it."""
    services = context_of(request).services
    page = await context_of(request).call(
        lambda: services.quarantine.items(reason, kind, limit=limit, cursor=cursor, discarded=discarded)
    )
    return models.QuarantineItems(items=[_item(item) for item in page.items], next_cursor=page.next_cursor)


@router.get("/quarantine/items/{id}", tags=["desk"], summary="One quarantined record or post", responses=_NOT_FOUND)
async def quarantine_item(request: Request, item_id: Annotated[ItemId, Path(alias="id")]) -> models.QuarantineItemView:
    """With the whole payload, exactly as it arrived."""
    services = context_of(request).services
    item = await context_of(request).call(lambda: services.quarantine.item(item_id))
    if item is None:
        raise NotFound("nothing with that id is in quarantine")
    return _item(item)


def _item(item: QuarantinedItem) -> models.QuarantineItemView:
    return models.QuarantineItemView.model_validate(asdict(item))


@router.post("/quarantine/requeue", tags=["desk"], summary="Try quarantined records and posts again")
async def requeue_quarantined(
    request: Request, wish: models.SelectionWish, dry_run: DryRun = False
) -> models.QuarantineRequeued:
    """Those that are valid by today's rules join the backlog; the others stay."""
    services = context_of(request).patient
    done = await _decided(request, wish, lambda chosen: services.requeue_quarantined(chosen, dry_run=dry_run))
    return models.QuarantineRequeued.model_validate(done, from_attributes=True)


@router.post("/quarantine/discard", tags=["desk"], summary="Give quarantined records and posts up")
async def discard_quarantined(request: Request, wish: models.DiscardWish, dry_run: DryRun = False) -> models.Discarded:
    """They are kept with the reason, and no longer shown; posts go on counting as quarantined."""
    services, by = context_of(request).patient, caller(request)
    done = await _decided(
        request, wish, lambda chosen: services.discard_quarantined(chosen, wish.because, by, dry_run=dry_run)
    )
    return models.Discarded.model_validate(done, from_attributes=True)


@router.get("/dead-letters", tags=["desk"], summary="Dead letters by type of error")
async def dead_letters(request: Request) -> models.DeadLetterGroups:
    """Batches whose attempts ran out for another cause than an outage: they wait for a person."""
    context = context_of(request)
    groups = await context.call(lambda: context.services.dead_letters.groups())
    return models.DeadLetterGroups(
        groups=views.dead_letter_groups(groups), total=sum(group.batches for group in groups)
    )


@router.get("/dead-letters/items", tags=["desk"], summary="Dead letters, newest first")
async def dead_letter_items(
    request: Request, reason: Reason = None, limit: Limit = 20, cursor: Cursor = None
) -> models.DeadLetterItems:
    """A page of them."""
    services = context_of(request).services
    page = await context_of(request).call(lambda: services.dead_letters.items(reason, limit=limit, cursor=cursor))
    return models.DeadLetterItems(items=[_dead_letter(item) for item in page.items], next_cursor=page.next_cursor)


@router.get("/dead-letters/items/{id}", tags=["desk"], summary="One dead letter", responses=_NOT_FOUND)
async def dead_letter(request: Request, item_id: Annotated[ItemId, Path(alias="id")]) -> models.DeadLetterView:
    """With some of the posts that wait in it."""
    services = context_of(request).services
    found = await context_of(request).call(lambda: services.dead_letters.item(item_id))
    if found is None:
        raise NotFound("there is no dead letter with that id")
    return _dead_letter(found)


def _dead_letter(letter: DeadLetter) -> models.DeadLetterView:
    return models.DeadLetterView(
        id=letter.id,
        reason=letter.reason,
        error=letter.message,
        posts=letter.posts,
        attempts=letter.attempts,
        worker=letter.worker,
        created_at=letter.created_at,
        died_at=letter.died_at,
        external_ids=list(letter.external_ids) if letter.external_ids is not None else None,
    )


@router.post("/dead-letters/requeue", tags=["desk"], summary="Put dead letters back into the backlog")
async def requeue_dead_letters(
    request: Request, wish: models.SelectionWish, dry_run: DryRun = False
) -> models.Requeued:
    """The next tick of the sensor, or `POST /trigger-migration`, gives them a job again."""
    services = context_of(request).patient
    done = await _decided(request, wish, lambda chosen: services.requeue_dead_letters(chosen, dry_run=dry_run))
    return models.Requeued.model_validate(done, from_attributes=True)


@router.post("/dead-letters/discard", tags=["desk"], summary="Give dead letters up")
async def discard_dead_letters(request: Request, wish: models.DiscardWish, dry_run: DryRun = False) -> models.Discarded:
    """Their posts go to quarantine with the reason code `dead_letter`, from where they can be requeued."""
    services, by = context_of(request).patient, caller(request)
    done = await _decided(
        request, wish, lambda chosen: services.discard_dead_letters(chosen, wish.because, by, dry_run=dry_run)
    )
    return models.Discarded.model_validate(done, from_attributes=True)


async def _decided(request: Request, wish: models.SelectionWish, act: Callable[[Selection], Any]) -> Any:
    chosen = Selection(tuple(wish.ids) if wish.ids is not None else None, wish.reason, bool(wish.all))
    return await context_of(request).act(lambda: act(chosen), deadline_s=_DESK_S)


@router.get("/reconciliation", tags=["desk"], summary="The latest comparison of both stores")
async def reconciliation(request: Request) -> models.ReconciliationView:
    """How it went, or that it is under way; its numbers are those of the last one that was completed."""
    context = context_of(request)
    return views.reconciliation(await context.call(lambda: context.services.last_reconciliation()))


@router.post(
    "/reconciliation",
    tags=["desk"],
    summary="Compare both stores, post by post",
    status_code=202,
    response_model=models.ReconciliationView,
)
async def start_reconciliation(request: Request) -> JSONResponse:
    """Begins a comparison in the background; one that is under way is joined. `GET` tells how it goes."""
    context = context_of(request)
    last = await context.call(lambda: context.services.last_reconciliation())
    if last.state != "running" and not context.is_reconciling:
        context.begin_reconciliation()
    answer = models.ReconciliationView(state="running", started_at=last.started_at if last.state == "running" else None)
    return JSONResponse(answer.model_dump(mode="json", by_alias=True), 202, headers={"Location": "/reconciliation"})


@router.post("/reconciliation/repair", tags=["desk"], summary="Put mismatches back into the backlog")
async def repair(request: Request, dry_run: DryRun = False) -> models.Repaired:
    """Compares both stores, and migrates again whatever is missing, stale or wrongly flagged.

    Rows without a post are named, and left alone.
    """
    context = context_of(request)
    done = await context.act(lambda: context.patient.repair(dry_run=dry_run), deadline_s=_REPAIR_S)
    left = {to_camel(fault): ids[:_IDS_SHOWN] for fault, ids in done.left.items()}
    return models.Repaired(dry_run=done.dry_run, repaired=done.repaired, left=left)
