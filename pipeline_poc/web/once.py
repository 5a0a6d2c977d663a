"""Idempotency keys of requests: what is sent again with the same key acts once, and is answered alike."""

import logging
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Annotated

from fastapi import Header, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.responses import Response

from pipeline_poc.clock import utc_now
from pipeline_poc.errors import TransientError
from pipeline_poc.web.context import Context, context_of
from pipeline_poc.web.problems import problem_for

logger = logging.getLogger(__name__)

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Any text of your choice. Sent again within a day, it gets the first answer, and acts once.",
    ),
]
_RETRY_AFTER_S = "1"


async def once(request: Request, key: str | None, act: Callable[[], Awaitable[tuple[int, BaseModel]]]) -> Response:
    """Act, or return the answer of the request that came first with this key.

    Args:
        request: Its path, query and body are what a key stands for.
        key: None where the caller sent none: every request acts.
        act: Returns status and answer; what it raises is not kept, so that it can be tried again.
    """
    if key is None:
        status, answer = await act()
        return JSONResponse(answer.model_dump(mode="json", by_alias=True), status)
    context = context_of(request)
    principal = request.scope.get("state", {}).get("principal")
    kept_as = _digest(principal.name if principal else "", request.url.path, key)
    fingerprint = _digest(request.method, request.url.query, (await request.body()).decode("utf-8", "replace"))
    keys = await context.call(lambda: context.services.idempotency_keys)
    first = await context.call(lambda: keys.begin(kept_as, fingerprint, utc_now()))
    if first is None:
        return await _first(context, kept_as, act)
    if first.fingerprint != fingerprint:
        return problem_for(request.scope, 422, "this Idempotency-Key was sent before, with another request")
    if first.status is None:
        headers = {"Retry-After": _RETRY_AFTER_S}
        return problem_for(request.scope, 409, "the first request with this key is still at work", headers=headers)
    return JSONResponse(first.body, first.status, headers={"Idempotent-Replayed": "true"})


async def _first(context: Context, kept_as: str, act: Callable[[], Awaitable[tuple[int, BaseModel]]]) -> Response:
    keys = context.services.idempotency_keys
    try:
        status, answer = await act()
    except BaseException:
        await context.call(lambda: keys.give_back(kept_as))
        raise
    body = answer.model_dump(mode="json", by_alias=True)
    try:
        await context.call(lambda: keys.finish(kept_as, status, body))
    except TransientError as error:
        # It is done, which the caller must hear; a repetition is refused for some minutes.
        logger.warning("the answer to an idempotency key is not kept", extra={"error": str(error)})
    return JSONResponse(body, status)


def _digest(*parts: str) -> str:
    return sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
