"""What several endpoints take."""

from typing import Annotated

from fastapi import Query, Request

Limit = Annotated[int, Query(ge=1, le=100, description="Most items on a page.")]
Cursor = Annotated[
    str | None, Query(min_length=1, max_length=500, description="`nextCursor` of the page before; unset: the newest.")
]


def caller(request: Request) -> str:
    """Return how the one who asks is named in what is kept."""
    principal = request.scope.get("state", {}).get("principal")
    return f"api ({principal.name})" if principal else "api"
