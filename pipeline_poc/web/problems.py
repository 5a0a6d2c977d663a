"""Errors as RFC 9457 has them: ``application/problem+json``, with a request id, never with a secret."""

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from math import ceil
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline_poc.control import MigrationPausedError
from pipeline_poc.dagster_api import RunNotLaunchedError
from pipeline_poc.errors import (
    DataError,
    PipelineError,
    SchemaError,
    ServiceStartError,
    SettingsError,
    SourceAnswerError,
    TransientError,
    mask_secrets,
)
from pipeline_poc.selection import SelectionError

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 5
"""Where nobody knows when a service is back: soon enough for a person, too rarely to be a burden."""
_MAX_ERRORS = 20
"""Errors of a request that are listed; a body may hold any number."""


class NotFound(PipelineError):
    """There is no such thing; answered with 404."""


class InvalidInput(BaseModel):
    """What is wrong with one value of a request."""

    loc: list[str | int] = Field(description="Where the value stands, such as `query`, `limit`.")
    message: str


class Problem(BaseModel):
    """An error, as RFC 9457 describes it."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    type: str = Field("about:blank", description="`about:blank`: the title says what the status means.")
    title: str
    status: int
    detail: str = Field(description="What went wrong this time, and what helps.")
    instance: str = Field(description="The path that was asked for.")
    request_id: str = Field(description="Finds the request in the log; also in the header `X-Request-ID`.")
    errors: list[InvalidInput] | None = Field(None, description="What is wrong with the values of the request.")


def described(text: str, *headers: str) -> dict[str, Any]:
    """Return what the schema says of a problem that an endpoint answers with, and of the header fields with it."""
    said: dict[str, Any] = {
        "description": text,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    if headers:
        said["headers"] = {name: {"schema": {"type": "string"}} for name in headers}
    return said


def problem_response(
    status: int,
    title: str | None,
    detail: str,
    *,
    instance: str,
    request_id: str,
    errors: Sequence[InvalidInput] | None = None,
    headers: Mapping[str, str] | None = None,
    type_: str = "about:blank",
) -> Response:
    """Return an error as a response.

    Without a title it gets what the status means. ``instance`` is the path that was asked for,
    without its query.
    """
    problem = Problem(
        type=type_,
        title=mask_secrets(title or _phrase(status)),
        status=status,
        detail=mask_secrets(detail),
        instance=quote(instance),
        request_id=request_id,
        errors=[InvalidInput(loc=error.loc, message=mask_secrets(error.message)) for error in errors or ()] or None,
    )
    content = problem.model_dump(by_alias=True, exclude_none=True)
    return JSONResponse(content, status, headers=headers, media_type=MEDIA_TYPE)


def problem_for(
    scope: Scope,
    status: int,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    errors: Sequence[InvalidInput] | None = None,
) -> Response:
    """Return an error as the response to this request."""
    return problem_response(
        status,
        None,
        detail,
        instance=scope.get("path", ""),
        request_id=scope.get("state", {}).get("request_id", ""),
        headers=headers,
        errors=errors,
    )


def install(app: FastAPI) -> None:
    """Make every error of this app a problem."""
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(PipelineError, _pipeline_error)
    app.add_middleware(_Unexpected)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - for the type checker
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and (methods := _methods(request)):
        # The router names the methods of one of the routes of a path only.
        headers["Allow"] = ", ".join(methods)
    return problem_for(request.scope, error.status_code, str(error.detail), headers=headers)


def _methods(request: Request) -> list[str]:
    path = {"type": "http", "path": request.url.path, "root_path": "", "headers": []}
    return [
        method
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
        if any(
            route.matches({**path, "method": method})[0] is Match.FULL
            for route in request.app.routes
            if not isinstance(route, Mount)  # Which match whatever the method, and name theirs themselves.
        )
    ]


async def _invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - for the type checker
    errors = [
        InvalidInput(loc=list(problem["loc"]), message=str(problem["msg"])) for problem in error.errors()[:_MAX_ERRORS]
    ]
    return problem_for(request.scope, 422, "The request is not valid; see `errors`.", errors=errors)


async def _pipeline_error(request: Request, error: Exception) -> Response:
    status, headers = 500, {}
    match error:
        case NotFound():
            status = 404
        case MigrationPausedError() | RunNotLaunchedError():
            status = 409
        case DataError() | SelectionError():
            status = 422
        case SourceAnswerError():
            status = 502
        case TransientError():
            status = 503
            headers["Retry-After"] = str(ceil(error.retry_after_s or RETRY_AFTER_S))
        case SettingsError() | ServiceStartError() | SchemaError():
            status = 503
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.warning("request failed", extra={**_id(request.scope), "error": mask_secrets(str(error))})
    return problem_for(request.scope, status, str(error), headers=headers)


class _Unexpected:
    """Answers what nobody expected with 500 and says nothing of it; the log has the stack.

    Starlette's own handler of `Exception` raises the error again, which would log it twice.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientDisconnect:
            logger.debug("client went away", extra=_id(scope))
        except Exception:
            if scope["type"] != "http" or started:
                raise
            logger.exception("request failed unexpectedly", extra=_id(scope))
            detail = "Something went wrong that nobody expected; the log has it under this request id."
            await problem_for(scope, 500, detail)(scope, receive, send)


def _id(scope: Scope) -> dict[str, Any]:
    return {"request_id": scope.get("state", {}).get("request_id", "")}


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
