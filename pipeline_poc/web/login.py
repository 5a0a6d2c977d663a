"""The login of browsers: a form that takes a token and sets a cookie; no script."""

from html import escape
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from starlette.responses import HTMLResponse, RedirectResponse, Response

from pipeline_poc.web.auth import SESSION_COOKIE, Authenticator, Scope

HOME = "/pipeline"
"""Where a login leads that was not on its way to somewhere."""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Log in – Pipeline</title>
<link rel="icon" href="/pipeline/static/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="/pipeline/static/login.css">
</head>
<body>
<main>
<h1>Log in</h1>
{error}<form method="post" action="/login">
<input type="hidden" name="next" value="{next}">
<label for="token">Token</label>
<input type="password" id="token" name="token" required autofocus autocomplete="current-password" spellcheck="false"
 aria-describedby="{described_by}"{invalid}>
<p id="hint">Whoever runs this pipeline makes tokens with <code>pipeline-poc token</code>.</p>
<button type="submit">Log in</button>
</form>
</main>
</body>
</html>
"""
_ERROR = '<p id="error" role="alert">This token is not known here.</p>\n'


class Session(BaseModel):
    """Whether a token is needed, and what the one that came along may do."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    auth_required: bool = Field(description="Whether a token is needed at all.")
    authenticated: bool = Field(description="Whether a token or a login came along that is good.")
    scope: Scope | None = Field(description="What the caller may do; null for nothing.")


def router(authenticator: Authenticator) -> APIRouter:
    """Return the routes of the login."""
    routes = APIRouter()

    @routes.get("/login", include_in_schema=False)
    async def show(next: str = HOME) -> Response:  # noqa: A002 - the name of the parameter
        if not authenticator.required:
            return RedirectResponse(next_path(next), 303)
        return _page(next_path(next))

    @routes.post("/login", include_in_schema=False)
    async def log_in(request: Request) -> Response:
        form = parse_qs((await request.body()).decode(errors="replace"), keep_blank_values=True)
        target = next_path(form.get("next", [HOME])[-1])
        if not authenticator.required:
            return RedirectResponse(target, 303)
        cookie = authenticator.login(form.get("token", [""])[-1].strip())
        if cookie is None:
            return _page(target, is_wrong=True)
        response = RedirectResponse(target, 303, {"Cache-Control": "no-store"})
        # Not `strict`: a link to a run in an alert would lead to the login of whoever is logged in.
        # Pages elsewhere are kept from acting by what guards all requests.
        response.set_cookie(
            SESSION_COOKIE,
            cookie,
            max_age=authenticator.session_ttl_s,
            httponly=True,
            secure=request.url.scheme == "https",
            samesite="lax",
        )
        return response

    @routes.post("/logout", include_in_schema=False)
    async def log_out(request: Request) -> Response:
        response = RedirectResponse("/login", 303)
        response.delete_cookie(SESSION_COOKIE, httponly=True, secure=request.url.scheme == "https", samesite="lax")
        return response

    @routes.get("/session", summary="What the caller may do", tags=["session"])
    async def session(request: Request) -> Session:
        """Say whether a token is needed, and what the one that came along may do."""
        principal = authenticator.authenticate(request.headers, request.cookies)
        return Session(
            auth_required=authenticator.required,
            authenticated=authenticator.required and principal is not None,
            scope=principal.scope if principal else None,
        )

    return routes


def next_path(asked: str) -> str:
    """Return where a login leads: the path that was asked for if it is one of this site, else `HOME`.

    Browsers take two slashes, and a slash with a backslash, for the begin of another site, and leave out
    tabs and newlines.
    """
    is_path = asked.startswith("/") and not asked.startswith("//")
    is_plain = asked.isascii() and asked.isprintable() and not set(asked) & set("\\ ")
    return asked if is_path and is_plain and not asked.startswith("/login") else HOME


def _page(target: str, *, is_wrong: bool = False) -> Response:
    page = _PAGE.format(
        next=escape(target),
        error=_ERROR if is_wrong else "",
        described_by="error hint" if is_wrong else "hint",
        invalid=' aria-invalid="true"' if is_wrong else "",
    )
    return HTMLResponse(page, 401 if is_wrong else 200, {"Cache-Control": "no-store"})
