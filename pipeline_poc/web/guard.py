"""What stands before every request, ours or of Dagster's UI: pure ASGI, each class a single concern."""

import logging
import re
import secrets
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline_poc.settings import Settings
from pipeline_poc.web.access import Access, acts, first_segment, is_static, refuse
from pipeline_poc.web.auth import Authenticator
from pipeline_poc.web.limits import Limiter
from pipeline_poc.web.problems import MEDIA_TYPE, problem_for
from pipeline_poc.web.traffic import OTHER, UI, Traffic

logger = logging.getLogger(__name__)

MAX_HEADER_BYTES = 16_384
"""All header fields together; the longest that browsers send have a tenth of it."""
MAX_TARGET_BYTES = 16_384
"""Path and query together; Dagster's UI keeps selections of assets in its query."""

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
"""Of our own responses that bring none along."""

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_SHOWN_PATH = 500
"""Characters of a path that the log has."""
_MAX_DIGITS = 15
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - recognised, not bound
_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9_.-]+))(?::[0-9]{1,5})?", re.ASCII)
_FILE = re.compile(r"\.(?:css|gif|ico|jpg|js|json|map|mp4|png|svg|txt|wasm|woff2?)$", re.ASCII)


def guarded(
    app: ASGIApp,
    settings: Settings,
    authenticator: Authenticator,
    limiter: Limiter,
    *,
    own: frozenset[str],
    traffic: Traffic,
) -> ASGIApp:
    """Return the app behind everything that guards it.

    ``own`` are the first segments (see `first_segment`) of the paths that are ours; all others are
    those of Dagster's UI.
    """
    app = Access(app, authenticator, limiter, own=own, protect_ui=settings.auth_protect_ui)
    app = BodyLimit(app, settings.web_max_body_bytes)
    origins = [origin.lower().rstrip("/") for origin in settings.web_allowed_origins or ()]
    app = Gate(app, partial(foreign_page, origins, own))
    if origins:
        app = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=("Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID"),
            expose_headers=("X-Request-ID", "RateLimit", "RateLimit-Policy", "Retry-After"),
        )
    app = Gate(app, partial(foreign_host, allowed_hosts(settings)))
    app = Gate(app, large_head)
    app = SecurityHeaders(app, own=own)
    return RequestLog(app, own=own, traffic=traffic)


class RequestLog:
    """Gives each request an id, and the log one line about it; counts it."""

    def __init__(self, app: ASGIApp, *, own: frozenset[str], traffic: Traffic) -> None:
        self._app = app
        self._own = own
        self._traffic = traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        request_id = secrets.token_hex(8)
        state = {**scope.get("state", {}), "request_id": request_id, "principal": None}
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR  # Unless somebody answers.
        answered_at: float | None = None

        async def watched(message: Message) -> None:
            nonlocal status, answered_at
            match message["type"]:
                case "http.response.start":
                    status, answered_at = message["status"], time.perf_counter()
                    MutableHeaders(scope=message)["X-Request-ID"] = request_id
                case "websocket.accept":
                    status = HTTPStatus.SWITCHING_PROTOCOLS
                case "websocket.close" if status == HTTPStatus.INTERNAL_SERVER_ERROR:
                    status = state.get("refused", HTTPStatus.FORBIDDEN)
            await send(message)

        inner = {**scope, "state": state}
        try:
            await self._app(inner, receive, watched)
        finally:
            ended_at = time.perf_counter()
            if scope["type"] == "http":
                # A stream may last for hours: what counts is when it begins.
                self._traffic.add(self._route(inner), scope["method"], int(status), (answered_at or ended_at) - begin)
            principal = state["principal"]
            logger.log(
                logging.DEBUG if self._is_noise(scope, status) else logging.INFO,
                "request",
                extra={
                    "request_id": request_id,
                    "method": scope.get("method", "WEBSOCKET"),
                    "path": quote(scope["path"][:_SHOWN_PATH]),
                    "status": int(status),
                    "duration_s": round(ended_at - begin, 6),
                    "principal": principal.name if principal else None,
                },
            )

    def _route(self, scope: Scope) -> str:
        """Return the route that answered, as it stands in the code."""
        if first_segment(scope["path"]) not in self._own:
            return UI
        # What is refused before, and files, get to no route.
        path = getattr(scope.get("route"), "path", OTHER)
        return path if isinstance(path, str) else OTHER

    def _is_noise(self, scope: Scope, status: int) -> bool:
        path = scope["path"]
        if status >= HTTPStatus.BAD_REQUEST:
            return False
        is_ui_file = first_segment(path) not in self._own and _FILE.search(path) is not None
        return path == "/health/live" or is_static(path) or is_ui_file


class SecurityHeaders:
    """Adds what protects browsers to each response that does not bring its own."""

    def __init__(self, app: ASGIApp, *, own: frozenset[str]) -> None:
        self._app = app
        self._own = own

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection."""
        if scope["type"] == "http":
            send = partial(self._send, send, first_segment(scope["path"]) in self._own)
        await self._app(scope, receive, send)

    async def _send(self, send: Send, is_ours: bool, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            content_type = headers.get("content-type", "").partition(";")[0]
            # Dagster's UI has a policy of its own where it needs one; ours would break what has none.
            if is_ours or content_type == MEDIA_TYPE:
                headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
                if content_type == "application/json" or content_type.endswith("+json"):
                    headers.setdefault("Cache-Control", "no-store")
        await send(message)


class Gate:
    """Refuses what there is an objection to."""

    def __init__(self, app: ASGIApp, objection: Callable[[Scope], Response | None]) -> None:
        self._app = app
        self._objection = objection

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection."""
        if scope["type"] in ("http", "websocket") and (response := self._objection(scope)):
            await refuse(response, scope, receive, send)
        else:
            await self._app(scope, receive, send)


def large_head(scope: Scope) -> Response | None:
    """Object to a head that is larger than any honest one."""
    if len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"]) > MAX_TARGET_BYTES:
        detail = f"Path and query have more than {MAX_TARGET_BYTES:,} bytes."
        return problem_for({**scope, "path": scope["path"][:_SHOWN_PATH]}, 414, detail)
    if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > MAX_HEADER_BYTES:
        return problem_for(scope, 431, f"The header fields have more than {MAX_HEADER_BYTES:,} bytes together.")
    return None


def foreign_host(names: frozenset[str] | None, scope: Scope) -> Response | None:
    """Object to names that are not ours; None allows any.

    A page could have its own name point to 127.0.0.1 (DNS rebinding), and count as ours in its browser.
    """
    values = Headers(scope=scope).getlist("host")
    name = host_name(values[0]) if len(values) == 1 else None
    if name is None:
        return problem_for(scope, 400, "The header `Host` is missing or malformed.")
    if names is not None and name not in names:
        detail = f"This server is not called {name}; WEB_ALLOWED_HOSTS says what it is called."
        return problem_for(scope, 421, detail)
    return None


def host_name(host: str) -> str | None:
    """Return the name in a `Host` header, in lower case, without port or brackets; None if it is malformed."""
    match = _HOST.fullmatch(host)
    return (match[1] or match[2].removesuffix(".")).lower() or None if match else None


def allowed_hosts(settings: Settings) -> frozenset[str] | None:
    """Return the names by which the server may be called; None for any."""
    if settings.web_allowed_hosts is None:
        own = () if settings.web_host in _WILDCARDS else (settings.web_host,)
        return frozenset(name.lower() for name in (*_LOCAL_NAMES, *own))
    if "*" in settings.web_allowed_hosts:
        return None
    # An IPv6 address may be written without brackets there.
    return frozenset(host_name(name) or name.lower() for name in settings.web_allowed_hosts)


def foreign_page(origins: Collection[str], own: frozenset[str], scope: Scope) -> Response | None:
    """Object to what pages elsewhere make a browser do: actions, and WebSockets.

    As `http.CrossOriginProtection` of Go: browsers say where a request comes from, and what says
    nothing is no browser's.
    """
    if scope["type"] != "websocket" and not acts(scope, own):
        return None
    headers = Headers(scope=scope)
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if origin is not None and origin.lower() in origins:
        return None
    if site is not None:
        is_ours = site in ("same-origin", "none")
    else:
        is_ours = origin is None or _authority(origin) == headers["host"].lower()
    if is_ours:
        return None
    return problem_for(scope, 403, "A page from elsewhere asked for this; WEB_ALLOWED_ORIGINS says which may.")


def _authority(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


class BodyLimit:
    """Refuses bodies that are too large, by what they say of themselves or by what comes."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        response = problem_for(scope, 413, f"The body has more than {self._max_bytes:,} bytes.")
        said = Headers(scope=scope).get("content-length", "0")
        if not said.isdecimal() or len(said) > _MAX_DIGITS or int(said) > self._max_bytes:
            await response(scope, receive, send)
            return
        counted = _CountedBody(receive, send, self._max_bytes)
        with suppress(_TooLarge):
            await self._app(scope, counted.receive, counted.send)
        if counted.is_too_large and not counted.is_answered:
            await response(scope, receive, send)


class _TooLarge(HTTPException):
    def __init__(self) -> None:
        super().__init__(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)


class _CountedBody:
    """The two ends of a request whose body is counted; once it is too large, only we answer."""

    def __init__(self, receive: Receive, send: Send, max_bytes: int) -> None:
        self._receive = receive
        self._send = send
        self._left = max_bytes
        self.is_answered = False

    @property
    def is_too_large(self) -> bool:
        return self._left < 0

    async def receive(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self.is_too_large:
            raise _TooLarge
        return message

    async def send(self, message: Message) -> None:
        # Frameworks answer our exception in their own way.
        if self.is_answered or not self.is_too_large:
            self.is_answered = True
            await self._send(message)
