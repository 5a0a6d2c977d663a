"""The endpoint that migrates posts again."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import AwareDatetime, ConfigDict, Field
from starlette.responses import Response

from pipeline_poc.post_selection import PostSelection
from pipeline_poc.web.context import context_of
from pipeline_poc.web.models import Answer, ExternalId, Wish
from pipeline_poc.web.once import IdempotencyKey, once
from pipeline_poc.web.parameters import DryRun
from pipeline_poc.web.problems import described

router = APIRouter()

_REPLAY_S = 600.0
"""Replaying everything takes its time."""
_IDS_MAX = 1000
_RESPONSES: dict[int | str, dict[str, Any]] = {409: described("The first request with this key is still at work.")}


def _given(name: str, type_: str) -> dict[str, Any]:
    return {"required": [name], "properties": {name: {"type": type_}}}


class ReplayWish(Wish):
    """Which posts: some ids, a range of ids, those changed since a time, or all. Exactly one of the four."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                _given("ids", "array"),
                {"anyOf": [_given("fromId", "integer"), _given("toId", "integer")]},
                _given("changedSince", "string"),
                _given("all", "boolean"),
            ]
        }
    )

    ids: Annotated[list[ExternalId], Field(min_length=1, max_length=_IDS_MAX)] | None = None
    from_id: ExternalId | None = Field(None, description="Lowest id of a range.")
    to_id: ExternalId | None = Field(None, description="Highest id of a range.")
    changed_since: AwareDatetime | None = Field(None, description="Posts whose content came then or later.")
    all: Literal[True] | None = None


class Replayed(Answer):
    """What a replay did, or would do."""

    dry_run: bool
    selected: int = Field(description="Migrated posts that were selected.")
    replayed: int = Field(description="Those that are in the backlog now.")
    waiting: int = Field(description="Selected posts that were in the backlog already.")
    quarantined: int = Field(description="Selected posts that are in quarantine; they stay there.")
    batches: int = Field(description="Batches that they are migrated in.")
    duration_s: float


@router.post(
    "/data-migration/replay",
    tags=["migration"],
    summary="Migrate posts again",
    response_model=Replayed,
    responses=_RESPONSES,
)
async def replay(
    request: Request, wish: ReplayWish, dry_run: DryRun = False, idempotency_key: IdempotencyKey = None
) -> Response:
    """Puts migrated posts back into the backlog, so that their rows are written again, right or wrong.

    The next tick of the sensor, or `POST /trigger-migration`, gives them jobs. What waits already, and what is in
    quarantine, is counted and left alone.
    """
    selection = PostSelection(
        ids=tuple(wish.ids) if wish.ids is not None else None,
        from_id=wish.from_id,
        to_id=wish.to_id,
        changed_since=wish.changed_since,
        all=bool(wish.all),
    )
    context = context_of(request)

    async def act() -> tuple[int, Replayed]:
        done = await context.act(lambda: context.patient.replay(selection, dry_run=dry_run), deadline_s=_REPLAY_S)
        return 200, Replayed.model_validate(done.summary())

    return await once(request, idempotency_key, act)
