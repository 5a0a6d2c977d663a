"""The login of browsers: a token in a form becomes a cookie that no script and no other site gets to use."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline_poc.web import login
from pipeline_poc.web.auth import SESSION_COOKIE
from pipeline_poc.web.login import HOME, next_path
from pipeline_poc_tests.web.stack import OPERATE_TOKEN, READ_TOKEN, WITH_TOKENS, bearer, web

pytestmark = pytest.mark.anyio


class _Form(HTMLParser):
    """The fields of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.fields: dict[str, str] = {}
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = dict(attrs)
        assert "style" not in values
        assert not [name for name in values if name.startswith("on")]
        if tag == "input":
            self.fields[values["name"] or ""] = values.get("value") or ""


async def test_the_whole_way() -> None:
    """From a page to the login, and with a token back to that page; until the logout."""
    html = {"Accept": "text/html"}
    async with web(**WITH_TOKENS) as stack:
        asked = "/runs/a%20b?x=1&y=%22%3E%26"
        led = await stack.client.get(asked, headers=html)
        page = await stack.client.get(led.headers["location"])
        assert page.status_code == 200
        assert page.headers["cache-control"] == "no-store"
        form = _Form(page.text)
        assert not form.tags & {"script", "style"}
        assert form.fields["next"] == asked

        done = await stack.client.post("/login", data={**form.fields, "token": f" {READ_TOKEN} "})
        assert (done.status_code, done.headers["location"]) == (303, asked)
        assert (await stack.client.get(done.headers["location"], headers=html)).text == "page"
        assert (await stack.client.get("/session")).json() == {
            "authRequired": True,
            "authenticated": True,
            "scope": "read",
        }

        out = await stack.client.post("/logout")
        assert (out.status_code, out.headers["location"]) == (303, "/login")
        assert (await stack.client.get("/")).status_code == 401


async def test_nothing_gets_into_the_page() -> None:
    """What is asked for stays a value of the form, whatever is in it."""
    asked = "/x\"><script>alert('&amp;')</script>{token}"
    async with web(**WITH_TOKENS) as stack:
        form = _Form((await stack.client.get("/login", params={"next": asked})).text)
    assert form.fields["next"] == asked
    assert "script" not in form.tags


def test_files_of_the_page() -> None:
    """What the page links to is shipped beside the code."""
    files = re.findall(r'href="/pipeline/static/([^"]+)"', login._PAGE)
    assert "login.css" in files
    for file in files:
        assert (Path(login.__file__).parent / "static" / file).is_file()


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_cookie(scheme: str) -> None:
    """The cookie is out of reach of scripts and of other sites' actions, and stays on https where it came from."""
    async with web(base_url=f"{scheme}://localhost", **WITH_TOKENS, session_ttl_s=600) as stack:
        done = await stack.client.post("/login", data={"token": OPERATE_TOKEN})
        out = await stack.client.post("/logout")
    assert done.headers["location"] == HOME
    for response in (done, out):
        name, _, rest = response.headers["set-cookie"].partition("=")
        attributes = {part.strip().lower() for part in rest.split(";")[1:]}
        assert name == SESSION_COOKIE
        assert {"httponly", "samesite=lax", "path=/"} <= attributes
        assert ("secure" in attributes) == (scheme == "https")
        assert OPERATE_TOKEN not in response.headers["set-cookie"]
    assert "Max-Age=600" in done.headers["set-cookie"]


@pytest.mark.parametrize(
    "content", [b"", b"token=", b"token=wrong", b"\xff\xfe", b"{}", b"token", b"next=%2Fx&token=w"]
)
async def test_wrong_token(content: bytes) -> None:
    """A wrong token gets the form again, which says so, and no cookie."""
    async with web(**WITH_TOKENS) as stack:
        response = await stack.client.post("/login", content=content)
    assert response.status_code == 401
    assert "set-cookie" not in response.headers
    assert 'role="alert"' in response.text
    assert _Form(response.text).fields["next"] == ("/x" if b"next" in content else HOME)


async def test_no_tokens() -> None:
    """Where there are no tokens, the login leads on at once, and the session may do everything."""
    async with web() as stack:
        for response in (
            await stack.client.get("/login?next=/x"),
            await stack.client.post("/login", data={"next": "/x"}),
        ):
            assert (response.status_code, response.headers["location"]) == (303, "/x")
        assert (await stack.client.get("/session")).json() == {
            "authRequired": False,
            "authenticated": False,
            "scope": "operate",
        }


async def test_session_of_tokens() -> None:
    """The session says what a token may do, and that a wrong one may do nothing."""
    async with web(**WITH_TOKENS) as stack:
        for headers, scope in (({}, None), (bearer("wrong"), None), (bearer(OPERATE_TOKEN), "operate")):
            session = (await stack.client.get("/session", headers=headers)).json()
            assert session == {"authRequired": True, "authenticated": scope is not None, "scope": scope}


async def test_login_from_elsewhere() -> None:
    """No page elsewhere can log a browser in or out."""
    headers = {"Origin": "https://evil.example"}
    async with web(**WITH_TOKENS) as stack:
        for path in ("/login", "/logout"):
            response = await stack.client.post(path, data={"token": READ_TOKEN}, headers=headers)
            assert response.status_code == 403
            assert "set-cookie" not in response.headers


@given(asked=st.text(st.sampled_from("/\\.:@?#%a \t\r\n&é<\"'"), max_size=12) | st.text())
@example(asked="//evil.example")
@example(asked="/\\evil.example")
@example(asked="/\t/evil.example")
@example(asked="/ /evil.example")
@example(asked="https://evil.example")
@example(asked="javascript:alert(1)")
@example(asked="/login?next=/login")
@example(asked="/a\r\nSet-Cookie: x=y")
def test_next_path(asked: str) -> None:
    """Whatever is asked for, a login leads to a path of this site, as browsers understand it."""
    path = next_path(asked)
    understood = "".join(path.replace("\\", "/").split())  # Browsers turn the one around, and drop the other.
    base = "http://localhost:3000/login"
    assert path.startswith("/")
    assert urlsplit(urljoin(base, understood))[:2] == urlsplit(base)[:2]
    assert not understood.startswith("//")
    assert understood == path
    assert path in (asked, HOME)


@pytest.mark.parametrize(
    "path", ["/", "/runs/a?b=c&d=%2F%2Fx", "/pipeline#x", "/assets/a//b", "/x?next=https://a.example"]
)
def test_next_path_is_kept(path: str) -> None:
    """Every path of this site is found again after the login."""
    assert next_path(path) == path
