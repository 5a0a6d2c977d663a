"""What several endpoints take."""

from typing import Annotated

from fastapi import Path, Query, Request

from pipeline_poc.web.problems import NotFound

Limit = Annotated[int, Query(ge=1, le=100, description="Most items on a page.")]
Cursor = Annotated[
    str | None, Query(min_length=1, max_length=500, description="`nextCursor` of the page before; unset: the newest.")
]
DryRun = Annotated[bool, Query(alias="dryRun", description="Only say what would be done.")]


def known_entity(request: Request, entity: Annotated[str, Path(description="One of ENTITIES.")]) -> None:
    """Refuse paths of entities that don't move here."""
    if entity not in request.app.state.contexts:
        raise NotFound(f"ENTITIES does not name {entity}")


def caller(request: Request) -> str:
    """Return how the one who asks is named in what is kept."""
    principal = request.scope.get("state", {}).get("principal")
    return f"api ({principal.name})" if principal else "api"
