"""A small web server behind the real guard: a few endpoints of ours beside a stand-in for Dagster's UI."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from pipeline_poc.control import MigrationPausedError
from pipeline_poc.errors import DataError, ServiceUnavailable, SettingsError
from pipeline_poc.settings import Settings
from pipeline_poc.web import login, problems
from pipeline_poc.web.access import first_segment
from pipeline_poc.web.auth import Authenticator, new_token
from pipeline_poc.web.guard import guarded
from pipeline_poc.web.limits import Limiter
from pipeline_poc.web.traffic import Traffic

OWN = frozenset({"health", "things", "errors", "login", "logout", "session", "pipeline"})

READ_TOKEN, READ_HASH = new_token()
OPERATE_TOKEN, OPERATE_HASH = new_token()
WITH_TOKENS: dict[str, Any] = {"api_read_token_hashes": (READ_HASH,), "api_operate_token_hashes": (OPERATE_HASH,)}


class Thing(BaseModel):
    """A thing."""

    size: int


@dataclass
class Ui:
    """What stands where Dagster's UI stands; knows what reached it."""

    reached: list[tuple[str, str, bytes]] = field(default_factory=list)

    def app(self) -> Starlette:
        """Return it as an app, with Dagster's own policy on its page."""
        return Starlette(
            routes=[
                WebSocketRoute("/graphql", self._subscribe),
                Route("/graphql", self._answer, methods=["GET", "POST"]),
                Route("/{path:path}", self._page, methods=["GET", "POST", "PUT", "DELETE"]),
            ]
        )

    async def _answer(self, request: Request) -> Response:
        self.reached.append((request.method, request.url.path, await request.body()))
        return JSONResponse({"data": {}})

    async def _page(self, request: Request) -> Response:
        self.reached.append((request.method, request.url.path, await request.body()))
        return PlainTextResponse("page", headers={"Content-Security-Policy": "object-src 'none'"})

    async def _subscribe(self, websocket: WebSocket) -> None:
        self.reached.append(("WEBSOCKET", websocket.url.path, b""))
        await websocket.accept()
        await websocket.close()


def own_app(authenticator: Authenticator) -> FastAPI:
    """Return a few endpoints of our kind."""
    app = FastAPI()
    problems.install(app)
    app.include_router(login.router(authenticator))

    @app.api_route("/health/live", methods=["GET"])
    @app.api_route("/health/ready", methods=["GET"])
    @app.api_route("/health", methods=["GET"])
    @app.api_route("/pipeline", methods=["GET"])
    @app.api_route("/pipeline/static/x.css", methods=["GET"])
    @app.api_route("/things", methods=["GET", "HEAD"])
    async def look() -> dict[str, bool]:
        return {"ok": True}

    @app.post("/things")
    async def act(thing: Thing) -> Thing:
        return thing

    @app.get("/errors/{kind}")
    async def fail(kind: str) -> None:
        raise {
            "conflict": MigrationPausedError("one is under way; wait for it"),
            "not-found": problems.NotFound("no post 7"),
            "unavailable": ServiceUnavailable("MongoDB", "MONGO_URL", "mongodb://me:hunter2@db", "refused"),
            "busy": ServiceUnavailable("source", "SOURCE_URL", "https://api", "429", retry_after_s=11.2),
            "settings": SettingsError("REDIS_URL redis://:hunter2@host is wrong"),
            "data": DataError("relational_1406", "too long"),
            "unexpected": RuntimeError("hunter2"),
        }[kind]

    return app


@dataclass
class Web:
    """The stack, and a client of it."""

    app: ASGIApp
    client: httpx.AsyncClient
    ui: Ui
    authenticator: Authenticator
    limiter: Limiter

    async def connect(self, path: str, headers: dict[str, str] | None = None) -> list[Message]:
        """Ask for a WebSocket; returns what was sent."""
        sent: list[Message] = []
        received: Iterator[Message] = iter(
            [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}]
        )

        async def receive() -> Message:
            return next(received)

        async def send(message: Message) -> None:
            sent.append(message)

        given = {"host": "localhost:3000", **(headers or {})}
        scope = {
            "type": "websocket",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode()) for name, value in given.items()],
            "client": ("127.0.0.1", 4711),
            "scheme": "ws",
        }
        await self.app(scope, receive, send)
        return sent


@asynccontextmanager
async def web(
    redis_url: Callable[[], str | None] = lambda: None,
    *,
    base_url: str = "http://localhost:3000",
    client: tuple[str, int] = ("127.0.0.1", 4711),
    **overrides: Any,
) -> AsyncIterator[Web]:
    """Open a stack with these settings."""
    settings = Settings(_env_file=None, **overrides)
    authenticator = Authenticator(settings)
    limiter = Limiter(settings, redis_url)
    ui = Ui()
    ours, theirs = own_app(authenticator), ui.app()

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        await (ours if first_segment(scope["path"]) in OWN else theirs)(scope, receive, send)

    app = guarded(dispatch, settings, authenticator, limiter, own=OWN, traffic=Traffic())
    transport = httpx.ASGITransport(app, client=client)
    try:
        async with httpx.AsyncClient(transport=transport, base_url=base_url) as http:
            yield Web(app, http, ui, authenticator, limiter)
    finally:
        await limiter.close()


def bearer(token: str) -> dict[str, str]:
    """Return the header that carries a token."""
    return {"Authorization": f"Bearer {token}"}
