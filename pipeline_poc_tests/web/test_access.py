"""Who may do what: each kind of path, with no token, a wrong one, one that may look, and one that may act."""

import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from dagster_graphql.schema import create_schema

from pipeline_poc.web.access import mutates
from pipeline_poc.web.auth import SESSION_COOKIE
from pipeline_poc_tests.web.stack import OPERATE_TOKEN, READ_TOKEN, WITH_TOKENS, Web, bearer, web

pytestmark = pytest.mark.anyio

QUERY = "query Runs { runsOrError { __typename } }"
MUTATION = "mutation Launch { launchRun(executionParams: {}) { __typename } }"
MIXED = f"{QUERY} {MUTATION}"
JSON = {"content-type": "application/json"}
GRAPHQL = {"content-type": "application/graphql"}

Call = tuple[str, str, bytes, dict[str, str]]


def _post(content: str | bytes, headers: dict[str, str], path: str = "/graphql") -> Call:
    return ("POST", path, content.encode() if isinstance(content, str) else content, headers)


def _get(path: str, method: str = "GET") -> Call:
    return (method, path, b"", {})


OURS: dict[str, tuple[Call, str]] = {
    "liveness": (_get("/health/live"), "nobody"),
    "readiness": (_get("/health/ready"), "nobody"),
    "login": (_get("/login"), "nobody"),
    "session": (_get("/session"), "nobody"),
    "logout": (_post(b"", {}, "/logout"), "nobody"),
    "static": (_get("/pipeline/static/x.css"), "nobody"),
    "health": (_get("/health"), "read"),
    "page": (_get("/pipeline"), "read"),
    "look": (_get("/things"), "read"),
    "head": (_get("/things", "HEAD"), "read"),
    "options": (_get("/things", "OPTIONS"), "read"),
    "no such": (_get("/things/none"), "read"),
    "almost public": (_get("/health/live/"), "read"),
    "out of static": (_get("/pipeline/static/%2e%2e/x"), "read"),
    "act": (_post(b'{"size": 1}', JSON, "/things"), "operate"),
    "delete": (_get("/things/1", "DELETE"), "operate"),
}
UI: dict[str, tuple[Call, str]] = {
    "home": (_get("/"), "read"),
    "run": (_get("/runs/abc"), "read"),
    "file": (_get("/_next/static/a.js"), "read"),
    "search": (_get("/assets?query=mutation"), "operate"),  # Can't be parsed, and isn't what the UI asks.
    "query by GET": (_get(f"/graphql?query={quote(QUERY)}"), "read"),
    "mutation by GET": (_get(f"/graphql?query={quote(MUTATION)}"), "operate"),
    "mutation by HEAD": (_get(f"/graphql?query={quote(MUTATION)}", "HEAD"), "operate"),
    "mutation by GET, second": (_get(f"/graphql?query=%7Ba%7D&query={quote(MUTATION)}"), "operate"),
    "mutation by GET, newline": (_get(f"/graphql%0A?query={quote(MUTATION)}"), "operate"),
    "query": (_post(json.dumps({"query": QUERY, "variables": {"mutation": 1}}), JSON), "read"),
    "query in a list": (_post(json.dumps([{"query": QUERY}]), JSON), "read"),
    "mutation": (_post(json.dumps({"query": MUTATION}), JSON), "operate"),
    "mutation, escaped": (
        _post(json.dumps({"query": MUTATION}).replace("mutation", "mut\\u0061tion"), JSON),
        "operate",
    ),
    "mutation in UTF-16": (_post(json.dumps({"query": MUTATION}).encode("utf-16"), JSON), "operate"),
    "mutation among others": (_post(json.dumps({"query": MIXED, "operationName": "Runs"}), JSON), "operate"),
    "mutation in a list": (_post(json.dumps([{"query": MUTATION}]), JSON), "operate"),
    "query as text": (_post(QUERY, GRAPHQL), "read"),
    "mutation as text": (_post(MUTATION, GRAPHQL), "operate"),
    "mutation without a type": (_post(MUTATION, {}), "operate"),
    "mutation in the query": (_post(b"", {}, f"/graphql?query={quote(MUTATION)}"), "operate"),
    "mutation behind a body": (_post(json.dumps({"query": QUERY}), {}, f"/graphql?query={quote(MUTATION)}"), "operate"),
    "word in a string": (_post(json.dumps({"query": '{ a(b: "mutation") }'}), JSON), "read"),
    "unparsable": (_post(json.dumps({"query": "{ a"}), JSON), "read"),
    "no JSON": (_post(b"{", JSON), "read"),
    "nothing": (_post(b"", {}), "read"),
    "report": (_post(b"{}", JSON, "/report_asset_materialization/x"), "operate"),
    "newline": (_post(json.dumps({"query": QUERY}), JSON, "/graphql%0A"), "operate"),
}


async def _send(stack: Web, call: Call, headers: dict[str, str]) -> httpx.Response:
    method, path, content, more = call
    return await stack.client.request(method, path, content=content, headers={**more, **headers})


async def _check(stack: Web, call: Call, needed: str) -> None:
    expected = {
        "nobody": (None, None, None, None),
        "read": (401, 401, None, None),
        "operate": (401, 401, 403, None),
    }[needed]
    credentials: tuple[dict[str, str], ...] = ({}, bearer("wrong"), bearer(READ_TOKEN), bearer(OPERATE_TOKEN))
    for headers, refusal in zip(credentials, expected, strict=True):
        stack.ui.reached.clear()
        response = await _send(stack, call, headers)
        if refusal is None:
            assert response.status_code not in (401, 403)
        else:
            assert response.status_code == refusal
            assert not stack.ui.reached
            assert response.headers["www-authenticate"].startswith("Bearer ")
            assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("protect_ui", ["all", "off"])
async def test_our_paths(kind: str, protect_ui: str) -> None:
    """Looking needs a token, acting one that may act, however much of the UI is protected; probes need none."""
    async with web(**WITH_TOKENS, auth_protect_ui=protect_ui) as stack:
        await _check(stack, *OURS[kind])


@pytest.mark.parametrize("kind", UI)
async def test_the_whole_ui(kind: str) -> None:
    """With the whole UI protected, looking needs a token, and whatever may mutate needs one that may act."""
    async with web(**WITH_TOKENS) as stack:
        await _check(stack, *UI[kind])


@pytest.mark.parametrize("kind", UI)
async def test_only_mutations(kind: str) -> None:
    """With mutations protected, everybody may look at the UI, and only an operating token may change something."""
    call, needed = UI[kind]
    async with web(**WITH_TOKENS, auth_protect_ui="mutations") as stack:
        await _check(stack, call, "nobody" if needed == "read" else needed)


@pytest.mark.parametrize("kind", UI)
async def test_ui_left_open(kind: str) -> None:
    """Nothing of the UI needs a token if nothing is to be protected."""
    async with web(**WITH_TOKENS, auth_protect_ui="off") as stack:
        await _check(stack, UI[kind][0], "nobody")


@pytest.mark.parametrize("kind", [*OURS, *UI])
async def test_no_tokens(kind: str) -> None:
    """Where there are no tokens, nothing needs one."""
    async with web() as stack:
        await _check(stack, {**OURS, **UI}[kind][0], "nobody")


@pytest.mark.parametrize("protect_ui", ["all", "mutations"])
async def test_what_was_read_arrives(protect_ui: str) -> None:
    """What was looked into on its way reaches the UI whole, however it came in."""
    body = json.dumps({"query": QUERY, "variables": {"filler": "x" * 100_000}}).encode()

    async def parts() -> Any:
        for begin in range(0, len(body), 10_000):
            yield body[begin : begin + 10_000]

    async with web(**WITH_TOKENS, auth_protect_ui=protect_ui) as stack:
        for token in (READ_TOKEN, OPERATE_TOKEN):
            for content in (body, parts()):
                headers = {**JSON, **bearer(token)}
                response = await stack.client.post("/graphql", content=content, headers=headers)
                assert response.status_code == 200
                assert stack.ui.reached.pop() == ("POST", "/graphql", body)


async def test_sessions() -> None:
    """The cookie of a login is as good as its token."""
    async with web(**WITH_TOKENS) as stack:
        for token, may_act in ((READ_TOKEN, False), (OPERATE_TOKEN, True)):
            cookie = {"Cookie": f"a=b; {SESSION_COOKIE}={stack.authenticator.login(token)}"}
            assert (await _send(stack, UI["home"][0], cookie)).status_code == 200
            assert (await _send(stack, OURS["act"][0], cookie)).status_code == (200 if may_act else 403)
            assert (await _send(stack, UI["mutation"][0], cookie)).status_code == (200 if may_act else 403)
            assert (await _send(stack, UI["home"][0], {**cookie, **bearer("wrong")})).status_code == 401


@pytest.mark.parametrize(
    ("protect_ui", "token", "is_let_in"),
    [
        ("all", None, False),
        ("all", "wrong", False),
        pytest.param("all", READ_TOKEN, True, id="all-read-True"),
        pytest.param("all", OPERATE_TOKEN, True, id="all-operate-True"),
        ("mutations", None, True),
        ("off", None, True),
    ],
)
async def test_websocket(protect_ui: str, token: str | None, is_let_in: bool) -> None:
    """The UI's WebSocket needs what looking at the UI needs."""
    async with web(**WITH_TOKENS, auth_protect_ui=protect_ui) as stack:
        sent = await stack.connect("/graphql", bearer(token) if token else None)
        assert bool(stack.ui.reached) == is_let_in
        if is_let_in:
            assert sent[0]["type"] == "websocket.accept"
        else:
            assert [message["type"] for message in sent] == ["websocket.close"]


async def test_dagster_takes_no_mutation_by_websocket() -> None:
    """Dagster executes nothing that is no subscription on its WebSocket; else it would have to be looked into."""
    schema = create_schema()
    graphql_schema = schema.graphql_schema
    assert graphql_schema.mutation_type is not None
    assert graphql_schema.subscription_type is not None
    # What is sent is validated as a mutation, and then begun as a subscription: no field may be both.
    assert not set(graphql_schema.mutation_type.fields) & set(graphql_schema.subscription_type.fields)
    free = 'mutation { freeConcurrencySlots(runId: "x") }'
    assert mutates(free)
    for document in (free, free.replace("{", "{ __typename", 1)):
        try:
            result = await schema.subscribe(document)
        except TypeError:
            continue  # `__typename` is no stream.
        assert result.errors


async def test_browsers_are_led_to_the_login() -> None:
    """A browser without a login is led there, and knows the way back; other callers, and actions, are not."""
    html = {"Accept": "text/html,application/xhtml+xml"}
    async with web(**WITH_TOKENS) as stack:
        response = await stack.client.get("/runs/a%20b?x=1&y=%2F", headers=html)
        assert response.status_code == 303
        assert response.headers["location"] == f"/login?next={quote('/runs/a%20b?x=1&y=%2F', safe='')}"
        assert (await stack.client.get("/things", headers=html)).status_code == 303
        assert (await stack.client.get("/things", headers={"Accept": "*/*"})).status_code == 401
        assert (await stack.client.get("/things", headers={**html, **bearer("wrong")})).status_code == 401
        assert (await stack.client.post("/things", headers=html)).status_code == 401


@pytest.mark.parametrize("depth", [10, 100_000])
def test_nesting_hides_nothing(depth: int) -> None:
    """A document that is nested too deeply for the parser counts as a mutation, not as harmless."""
    assert mutates(MUTATION + "{a" * depth + "}" * depth)


@pytest.mark.parametrize(
    "document", ["{ mutation }", "query mutation { a }", "# mutation\n{ a }", 'query { a(b: "mutation") }']
)
def test_the_mere_word(document: str) -> None:
    """A query that only has the word in it is a query."""
    assert not mutates(document)


@pytest.mark.parametrize(
    "document", [MUTATION, MIXED, "mutation{a}", "\ufeff, mutation\n{a}", "fragment F on Q {a} mutation {...F}"]
)
def test_mutations(document: str) -> None:
    """Any mutation in a document counts, however it is written."""
    assert mutates(document)
