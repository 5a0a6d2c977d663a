"""Our endpoints as an application, and both applications behind one guard."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import Depends, FastAPI
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPBearer
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline_poc.posts import POSTS
from pipeline_poc.records import WEB_PATH
from pipeline_poc.settings import Settings
from pipeline_poc.web import desk_routes, login, pipeline_routes, problems, replay_routes, stream_routes
from pipeline_poc.web.access import PUBLIC_PATHS, first_segment
from pipeline_poc.web.auth import Authenticator
from pipeline_poc.web.context import Context
from pipeline_poc.web.guard import guarded
from pipeline_poc.web.limits import Limiter
from pipeline_poc.web.live import Live
from pipeline_poc.web.parameters import known_entity

_DESCRIPTION = """\
The pipeline's endpoints, beside Dagster's UI and its GraphQL on the same port.

Errors are problems as RFC 9457 has them. Where tokens are set, `GET` needs one with the scope `read`, everything
else one with `operate`. Names are in camelCase, times in UTC.
"""
_LAST_S = 1.0
"""Longest wait for MongoDB when the server stops."""
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: problems.described("The request makes no sense."),
    401: problems.described("A token is needed.", "WWW-Authenticate"),
    403: problems.described("The token's scope is not enough, or the request comes from a page elsewhere."),
    413: problems.described("The body is too large."),
    414: problems.described("Path and query are too long."),
    421: problems.described("The server is not called by this name."),
    422: problems.described("A value is not valid; `errors` says which."),
    429: problems.described("Too many requests.", "Retry-After", "RateLimit", "RateLimit-Policy"),
    431: problems.described("The header fields are too long."),
    500: problems.described("Something that nobody expected."),
    503: problems.described("A store or Dagster is away; try again later.", "Retry-After"),
}
_DOCS = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>pipeline_poc: API</title>
<link rel="icon" href="/pipeline/static/icon.svg">
<link rel="stylesheet" href="/docs/static/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/static/swagger-ui-bundle.js"></script>
<script src="/pipeline/static/docs.js"></script>
</body>
</html>
"""
_DOCS_POLICY = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'none'; "
    "frame-ancestors 'none'"
)


def create_app(contexts: Mapping[str, Context], authenticator: Authenticator, limiter: Limiter) -> FastAPI:
    """Return our endpoints as an application; it closes the limiter when it stops.

    Args:
        contexts: By entity; that of posts counts the requests.
        authenticator: Knows who may log in.
        limiter: Counts against limits.
    """
    context = contexts[POSTS.name]

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.lives = {name: Live(each) for name, each in contexts.items()}
        tasks = [asyncio.create_task(live.run()) for live in app.state.lives.values()]
        tasks.append(asyncio.create_task(context.keep_counting()))
        for each in contexts.values():
            each.census.start()
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await context.save_traffic(deadline_s=_LAST_S)
            for each in contexts.values():
                each.census.stop()
                await each.dagster.close()
            await limiter.close()

    app = _Api(
        title="pipeline_poc",
        version=version("pipeline-poc"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=_PROBLEMS,
        dependencies=[Depends(HTTPBearer(auto_error=False, description="Needed where tokens are set."))],
    )
    app.state.contexts = contexts
    problems.install(app)
    of_entity = (pipeline_routes.router, replay_routes.router, desk_routes.router, stream_routes.router)
    routers = (*of_entity, login.router(authenticator))
    for router in routers:
        app.include_router(router)
    for router in of_entity if len(contexts) > 1 else ():
        app.include_router(router, prefix=WEB_PATH, dependencies=[Depends(known_entity)])
    _make_docs(app)
    app.mount("/pipeline/static", StaticFiles(directory=stream_routes.STATIC), name="static")
    routes = [*app.routes, *(route for router in routers for route in router.routes)]
    families = {first_segment(route.path) for route in routes if isinstance(route, (Route, Mount))}
    app.state.families = frozenset(families | {first_segment(WEB_PATH)})
    return app


def _make_docs(app: FastAPI) -> None:
    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        """Return the interactive documentation; nothing of it comes from elsewhere."""
        return HTMLResponse(_DOCS, headers={"Content-Security-Policy": _DOCS_POLICY})

    swagger = Path(fastapi_offline.__file__).parent / "static"
    app.mount("/docs/static", StaticFiles(directory=swagger), name="docs")


class _Api(FastAPI):
    """Ours; its schema has the problems that every endpoint may answer with."""

    def openapi(self) -> dict[str, Any]:
        """Return the schema."""
        schema = super().openapi()
        problem = problems.Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schema["components"]["schemas"] |= problem.pop("$defs", {}) | {"Problem": problem}
        for path in PUBLIC_PATHS & schema["paths"].keys():
            for operation in schema["paths"][path].values():
                operation["security"] = []
        return schema


class Dispatcher:
    """Sends what is ours to our application, and everything else to Dagster's UI.

    Dagster's UI answers every path it does not know with its page: what is ours must not get there,
    not even a wrong method or a path that we don't know either.
    """

    def __init__(self, own: FastAPI, ui: ASGIApp) -> None:
        self._own = own
        self._ui = ui
        self.families: frozenset[str] = own.state.families
        """First segments of the paths that are ours."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - ASGI's own
        if scope["type"] == "lifespan" or first_segment(scope["path"]) in self.families:
            await self._own(scope, receive, send)
        else:
            await self._ui(scope, receive, send)


def build(contexts: Mapping[str, Context], ui: ASGIApp, settings: Settings) -> ASGIApp:
    """Return everything that the web server serves; the contexts are by entity."""
    authenticator = Authenticator(settings)
    limiter = Limiter(settings, lambda: contexts[POSTS.name].services.redis_url)
    dispatcher = Dispatcher(create_app(contexts, authenticator, limiter), ui)
    return guarded(
        dispatcher, settings, authenticator, limiter, own=dispatcher.families, traffic=contexts[POSTS.name].traffic
    )
