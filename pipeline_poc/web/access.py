"""Who may do what: our endpoints by method, Dagster's UI by what its GraphQL would do."""

import json
from collections.abc import Collection
from http import HTTPStatus
from typing import Literal
from urllib.parse import quote

from graphql import GraphQLError, OperationDefinitionNode, OperationType, parse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Asgi

from pipeline_poc.web.auth import ANYBODY, Authenticator, Principal, Scope, bearer_token
from pipeline_poc.web.limits import Limiter
from pipeline_poc.web.problems import problem_for

PUBLIC_PATHS = frozenset({"/health/live", "/health/ready", "/login", "/logout", "/session"})
"""Need no token: probes have none, and whoever has none must get one."""
STATIC_PREFIX = "/pipeline/static/"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_GRAPHQL_PATH = "/graphql"


def first_segment(path: str) -> str:
    """Return what decides whose a path is."""
    return path[1:].partition("/")[0]


def is_static(path: str) -> bool:
    """Whether this is one of our files for browsers."""
    return path.startswith(STATIC_PREFIX) and "/.." not in path


def mutates(document: str) -> bool:
    """Whether any operation of a GraphQL document is a mutation."""
    if "mutation" not in document:  # The keyword can't be written in another way.
        return False
    try:
        definitions = parse(document).definitions
    except GraphQLError:
        # Where it is nested deeply, the depth of the stack decides whether somebody else can parse it.
        return True
    return any(
        isinstance(definition, OperationDefinitionNode) and definition.operation is OperationType.MUTATION
        for definition in definitions
    )


def acts(scope: Asgi, own: Collection[str]) -> bool:
    """Whether a request would change something, as far as its head says; Dagster takes mutations by GET, too."""
    if scope["type"] == "websocket":
        return False  # Dagster's takes subscriptions only, as one of our tests makes sure.
    if scope["method"] not in SAFE_METHODS:
        return True
    # At any path of the UI: what its router takes for /graphql is its own affair.
    return first_segment(scope["path"]) not in own and any(map(mutates, _queries(scope)))


class Access:
    """Lets through who may: finds out who asks, counts the request, and compares scope and path.

    Puts the principal, or None, into ``scope["state"]["principal"]``.

    Args:
        own: First segments of the paths that are ours; everything else is Dagster's UI.
        protect_ui: What of the UI needs a token, where there are tokens.
    """

    def __init__(
        self,
        app: ASGIApp,
        authenticator: Authenticator,
        limiter: Limiter,
        *,
        own: frozenset[str],
        protect_ui: Literal["all", "mutations", "off"],
    ) -> None:
        self._app = app
        self._authenticator = authenticator
        self._limiter = limiter
        self._own = own
        self._protect_ui = protect_ui

    async def __call__(self, scope: Asgi, receive: Receive, send: Send) -> None:
        """Handle a connection."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        address = scope["client"][0] if scope.get("client") else "unknown"
        is_login = scope["path"] == "/login" and scope.get("method") == "POST"
        token = bearer_token(Headers(scope=scope))
        # A right token is refused as well, or each answer would still tell whether a guess was right.
        if (token is not None or is_login) and (locked_s := self._limiter.locked_s(address)):
            detail = "Too many wrong tokens came from this address; wait, or use a session that is open."
            await refuse(problem_for(scope, 429, detail, headers={"Retry-After": str(locked_s)}), scope, receive, send)
            return
        connection = HTTPConnection(scope)
        principal = self._authenticator.authenticate(connection.headers, connection.cookies)
        scope["state"]["principal"] = principal
        if principal is None and token is not None:
            await self._limiter.failed(address, token)
        if is_login:
            send = self._counting_failures(send, address)
        if scope["type"] == "http" and self._is_limited(scope["path"]):
            quota = await self._limiter.hit(
                "read" if scope["method"] in SAFE_METHODS else "operate", _who(principal, address)
            )
            if not quota.allowed:
                detail = f"More than {quota.limit} requests in {quota.window_s} s; wait before the next one."
                await problem_for(scope, 429, detail, headers=quota.headers())(scope, receive, send)
                return
            send = _with_headers(send, quota.headers())
        await self._authorise(scope, receive, send, principal=principal)

    async def _authorise(self, scope: Asgi, receive: Receive, send: Send, *, principal: Principal | None) -> None:
        needed = self._needed(scope)
        if needed == "operate" and self._may_be_a_query(scope) and not (principal and principal.may("operate")):
            needed = "read" if self._protect_ui == "all" else None
            if needed is None or principal is not None:  # Else there is no need to read what it is.
                body, receive = await _read(receive)
                if await run_in_threadpool(_body_mutates, body, scope):
                    needed = "operate"
        if needed is None or (principal and principal.may(needed)):
            await self._app(scope, receive, send)
        else:
            await refuse(_refusal(scope, principal, needed), scope, receive, send)

    def _needed(self, scope: Asgi) -> Scope | None:
        path = scope["path"]
        if first_segment(path) in self._own:
            if path in PUBLIC_PATHS or is_static(path):
                return None
            return "operate" if acts(scope, self._own) else "read"
        if self._protect_ui == "off":
            return None
        if acts(scope, self._own):
            return "operate"
        return "read" if self._protect_ui == "all" else None

    def _may_be_a_query(self, scope: Asgi) -> bool:
        return (scope["path"], scope["type"], scope.get("method")) == (_GRAPHQL_PATH, "http", "POST")

    def _is_limited(self, path: str) -> bool:
        return first_segment(path) in self._own and path != "/health/live" and not is_static(path)

    def _counting_failures(self, send: Send, address: str) -> Send:
        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == HTTPStatus.UNAUTHORIZED:
                await self._limiter.failed(address)
            await send(message)

        return counting


async def refuse(response: Response, scope: Asgi, receive: Receive, send: Send) -> None:
    """Send a response instead of what was asked for.

    Where that was a WebSocket, it is plainly refused, and only the log has the status: browsers see
    no more of another answer, and uvicorn takes one for an error of ours.
    """
    if scope["type"] == "websocket":
        scope["state"]["refused"] = response.status_code
        await send({"type": "websocket.close", "code": 1008, "reason": ""})
    else:
        await response(scope, receive, send)


def _refusal(scope: Asgi, principal: Principal | None, needed: Scope) -> Response:
    if principal is not None:
        detail = f"This needs a token with the scope `{needed}`; yours has `{principal.scope}`."
        challenge = f'Bearer realm="pipeline_poc", error="insufficient_scope", scope="{needed}"'
        return problem_for(scope, 403, detail, headers={"WWW-Authenticate": challenge})
    headers = Headers(scope=scope)
    if bearer_token(headers) is not None:
        challenge = 'Bearer realm="pipeline_poc", error="invalid_token"'
        return problem_for(scope, 401, "The token is not known here.", headers={"WWW-Authenticate": challenge})
    if scope.get("method") == "GET" and "text/html" in headers.get("accept", ""):
        asked = quote(scope["path"]) + ("?" + scope["query_string"].decode("latin-1") if scope["query_string"] else "")
        return RedirectResponse(f"/login?next={quote(asked, safe='')}", 303, {"Cache-Control": "no-store"})
    detail = f"This needs a token with the scope `{needed}`, as `Authorization: Bearer …` or by way of /login."
    return problem_for(scope, 401, detail, headers={"WWW-Authenticate": 'Bearer realm="pipeline_poc"'})


def _who(principal: Principal | None, address: str) -> str:
    if principal is None or principal == ANYBODY:
        return address
    return principal.name.removeprefix("session of ")


def _with_headers(send: Send, headers: dict[str, str]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(headers)
        await send(message)

    return sending


def _queries(scope: Asgi) -> list[str]:
    return QueryParams(scope["query_string"]).getlist("query")


def _body_mutates(body: bytes, scope: Asgi) -> bool:
    # Dagster reads the body as the Content-Type says, else the query: whichever it chooses is among these.
    documents = [*_queries(scope), body.decode(errors="replace")]
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = None
    if isinstance(data, dict) and isinstance(data.get("query"), str):
        documents[-1] = data["query"]
    return any(map(mutates, documents))


async def _read(receive: Receive) -> tuple[bytes, Receive]:
    """Return the body, and a function that lets somebody else receive it again."""
    messages: list[Message] = []
    while not messages or messages[-1].get("more_body", False):
        messages.append(await receive())
    body = b"".join(message.get("body", b"") for message in messages)
    replayed = iter(messages)

    async def receive_again() -> Message:
        return next(replayed, None) or await receive()

    return body, receive_again
