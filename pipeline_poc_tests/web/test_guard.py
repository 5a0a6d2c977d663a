"""What stands before every request: names, origins, sizes, headers, and one line in the log."""

import logging
import string
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_poc.settings import Settings
from pipeline_poc.web.guard import MAX_HEADER_BYTES, MAX_TARGET_BYTES, allowed_hosts, host_name
from pipeline_poc_tests.web.stack import OPERATE_HASH, OPERATE_TOKEN, READ_TOKEN, WITH_TOKENS, bearer, web

pytestmark = pytest.mark.anyio

ELSEWHERE = "https://evil.example"


def _refused(response: httpx.Response, status: int) -> None:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["requestId"] == response.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/things", "/", "/health/live"])
async def test_names_of_this_machine(path: str) -> None:
    """Unless told otherwise the server goes by the names of this machine, on any port, and by no other."""
    async with web() as stack:
        for host in ("localhost", "LOCALHOST:3000", "localhost.", "127.0.0.1:1", "[::1]:3000", "[::1]"):
            assert (await stack.client.get(path, headers={"Host": host})).status_code == 200
        for host in ("evil.example", "evil.example:3000", "localhost.evil.example", "127.0.0.2", "0.0.0.0", "[::2]"):
            _refused(await stack.client.get(path, headers={"Host": host}), 421)
        for host in ("", "localhost:x", "localhost/", "a b", "localhost@evil", "[::1", "::1", "localhost:3000:1"):
            _refused(await stack.client.get(path, headers={"Host": host}), 400)
        twice = [("Host", "localhost"), ("Host", "evil.example")]
        _refused(await stack.client.get(path, headers=twice), 400)


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ({}, {"localhost", "127.0.0.1", "::1"}),
        ({"web_host": "192.168.1.5"}, {"localhost", "127.0.0.1", "::1", "192.168.1.5"}),
        ({"web_host": "0.0.0.0"}, {"localhost", "127.0.0.1", "::1"}),
        ({"web_host": "::"}, {"localhost", "127.0.0.1", "::1"}),
        ({"web_allowed_hosts": "Pipeline.example:443, [::5], ::6"}, {"pipeline.example", "::5", "::6"}),
        ({"web_allowed_hosts": "a.example, *"}, None),
    ],
)
def test_allowed_hosts(overrides: dict[str, Any], names: set[str] | None) -> None:
    """Names are those of the settings, else of this machine and of the address that is listened on."""
    assert allowed_hosts(Settings(_env_file=None, **overrides)) == names


async def test_names_that_are_set() -> None:
    """Names that are set are the only ones; a star stands for any."""
    async with web(web_allowed_hosts="pipeline.example") as stack:
        assert (await stack.client.get("/things", headers={"Host": "pipeline.example"})).status_code == 200
        _refused(await stack.client.get("/things"), 421)
    async with web(web_allowed_hosts="*") as stack:
        assert (await stack.client.get("/things", headers={"Host": "any.example"})).status_code == 200
        _refused(await stack.client.get("/things", headers={"Host": "a b"}), 400)


LABEL = st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=20)
PORT = st.none() | st.integers(0, 65_535)


@given(labels=st.lists(LABEL, min_size=1, max_size=4), dot=st.sampled_from(["", "."]), port=PORT)
def test_host_name(labels: list[str], dot: str, port: int | None) -> None:
    """The name in a Host header is found whatever its case, port and last dot."""
    name = ".".join(labels)
    host = name + dot + ("" if port is None else f":{port}")
    assert host_name(host) == name.lower()


@given(address=st.ip_addresses(v=6), port=PORT)
def test_host_address(address: object, port: int | None) -> None:
    """An IPv6 address in a Host header is found without its brackets."""
    assert host_name(f"[{address}]" + ("" if port is None else f":{port}")) == str(address)


@given(host=st.text(string.printable, max_size=30) | st.text(max_size=30))
def test_any_host(host: str) -> None:
    """Whatever stands in a Host header: it is a name without anything around it, or malformed."""
    name = host_name(host)
    if name is not None:
        assert name
        assert name == name.lower()
        assert not set(name) & set(" /\\@[]?#\t\r\n")
        assert host.lower().removeprefix("[").startswith(name)


@pytest.mark.parametrize("path", ["/things", "/anything"])
@pytest.mark.parametrize(
    ("headers", "is_let_through"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost:3000"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Origin": "http://localhost:3000"}, True),
        ({"Origin": "HTTP://LOCALHOST:3000"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://friend.example"}, True),
        ({"Origin": "https://friend.example"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "anything"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost:3000"}, False),
        ({"Origin": ELSEWHERE}, False),
        ({"Origin": "http://localhost:3001"}, False),
        ({"Origin": "http://localhost"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://["}, False),
        ({"Origin": "https://friend.example.evil.example"}, False),
    ],
)
async def test_pages_elsewhere(path: str, headers: dict[str, str], is_let_through: bool) -> None:
    """A page elsewhere can't make a browser act, nor open a WebSocket; what is no browser can."""
    async with web(web_allowed_origins="https://friend.example/") as stack:
        response = await stack.client.post(path, json={"size": 1}, headers=headers)
        sent = await stack.connect("/graphql", headers)
        assert (await stack.client.get(path, headers=headers)).status_code == 200
    if is_let_through:
        assert response.status_code == 200
        assert sent[0]["type"] == "websocket.accept"
    else:
        _refused(response, 403)
        assert [message["type"] for message in sent] == ["websocket.close"]


async def test_pictures_elsewhere() -> None:
    """Not even by an address alone, which a picture may have, does a page elsewhere reach a mutation."""
    headers = {"Sec-Fetch-Site": "cross-site"}
    async with web() as stack:
        query = {"query": "mutation { terminateRun(runId: 1) { __typename } }"}
        _refused(await stack.client.get("/graphql", params=query, headers=headers), 403)
        assert not stack.ui.reached
        assert (await stack.client.get("/graphql", params=query)).status_code == 200


async def test_websocket_by_another_name() -> None:
    """A WebSocket is asked for by our name, too."""
    async with web() as stack:
        sent = await stack.connect("/graphql", {"host": "evil.example"})
        assert [message["type"] for message in sent] == ["websocket.close"]
        assert not stack.ui.reached


async def test_no_cors() -> None:
    """Unless told otherwise no page elsewhere may read anything."""
    async with web() as stack:
        response = await stack.client.get("/things", headers={"Origin": ELSEWHERE})
        assert not [name for name in response.headers if name.startswith("access-control")]


async def test_cors() -> None:
    """Pages of the origins that are set may call the endpoints with a token, also to learn of errors; others not."""
    friend, evil = {"Origin": "https://friend.example"}, {"Origin": ELSEWHERE}
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    async with web(web_allowed_origins="https://Friend.example", **WITH_TOKENS) as stack:
        preflight = await stack.client.options("/things", headers={**friend, **asks})
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == friend["Origin"]
        assert (await stack.client.options("/things", headers={**evil, **asks})).status_code == 400
        for headers, status in (({}, 401), (bearer(READ_TOKEN), 200)):
            response = await stack.client.get("/things", headers={**friend, **headers})
            assert response.status_code == status
            assert response.headers["access-control-allow-origin"] == friend["Origin"]
            assert "RateLimit" in response.headers["access-control-expose-headers"]
            assert "access-control-allow-credentials" not in response.headers
        response = await stack.client.get("/things", headers={**evil, **bearer(READ_TOKEN)})
        assert "access-control-allow-origin" not in response.headers


async def _stream(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // 100):
        yield b" " * 100


@pytest.mark.parametrize("path", ["/things", "/graphql", "/report", "/login"])
@pytest.mark.parametrize("tokens", [{}, WITH_TOKENS])
async def test_large_bodies(path: str, tokens: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """A body may be as large as is set, and no larger, whether it says its size or not."""
    async with web(web_max_body_bytes=1000, **tokens) as stack:
        for token in (READ_TOKEN, OPERATE_TOKEN) if path == "/graphql" else (OPERATE_TOKEN,):
            headers = {**bearer(token), "Content-Type": "application/json"}
            for content in (b" " * 1001, _stream(1100), _stream(5000)):
                _refused(await stack.client.post(path, content=content, headers=headers), 413)
            _refused(await stack.client.post(path, content=b"", headers={**headers, "Content-Length": "9" * 5000}), 413)
            assert not stack.ui.reached
            for content in (b" " * 1000, _stream(1000)):
                assert (await stack.client.post(path, content=content, headers=headers)).status_code in (
                    200,
                    303,
                    401,
                    422,
                )
            stack.ui.reached.clear()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("path", ["/things", "/anything"])
async def test_large_heads(path: str) -> None:
    """Header fields and addresses may be large, but not larger than browsers make them."""
    async with web() as stack:

        async def ask(field: int = 0, query: int = 0) -> httpx.Response:
            return await stack.client.get(path, params={"x": "y" * query}, headers={"Cookie": "c" * field})

        assert (await ask(field=MAX_HEADER_BYTES - 1000)).status_code == 200
        _refused(await ask(field=MAX_HEADER_BYTES), 431)
        many = [(f"X-{number}", "y" * 100) for number in range(200)]
        _refused(await stack.client.get(path, headers=many), 431)
        assert (await ask(query=MAX_TARGET_BYTES - 100)).status_code == 200
        _refused(await ask(query=MAX_TARGET_BYTES), 414)


async def test_security_headers() -> None:
    """All responses protect browsers; the UI keeps its own policy, and ours are not kept by caches."""
    async with web() as stack:
        ours = await stack.client.get("/things")
        theirs = await stack.client.get("/")
        refusal = await stack.client.get("/", headers={"Host": "evil.example"})
    for response in (ours, theirs, refusal):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["referrer-policy"]
        assert response.headers["cross-origin-opener-policy"] == "same-origin"
        assert response.headers["permissions-policy"]
        assert len(response.headers.get_list("content-security-policy")) == 1
    assert theirs.headers["content-security-policy"] == "object-src 'none'"
    assert "cache-control" not in theirs.headers
    for response in (ours, refusal):
        assert "default-src 'self'" in response.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
        assert response.headers["cache-control"] == "no-store"


async def test_no_policy_for_what_has_none() -> None:
    """Pages and answers of the UI that bring no policy along get none of ours, which they don't expect."""
    async with web() as stack:
        response = await stack.client.post("/graphql", json={"query": "{a}"})
        assert "content-security-policy" not in response.headers


def _line(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    [record] = [record for record in caplog.records if record.getMessage() == "request"]
    caplog.clear()
    return {**vars(record), "level": record.levelno}


async def test_one_line_for_each_request(caplog: pytest.LogCaptureFixture) -> None:
    """Each request is one line: its id, who asked for what, the outcome; never a query, which may hold secrets."""
    caplog.set_level(logging.DEBUG, "pipeline_poc.web.guard")
    async with web(**WITH_TOKENS) as stack:
        response = await stack.client.get("/things?token=hunter2", headers=bearer(OPERATE_TOKEN))
        line = _line(caplog)
        assert (line["method"], line["path"], line["status"], line["level"]) == ("GET", "/things", 200, logging.INFO)
        assert line["principal"] == f"token-{OPERATE_HASH[:8]}"
        assert line["request_id"] == response.headers["x-request-id"]
        assert line["duration_s"] >= 0
        assert "hunter2" not in str(line)

        other = await stack.client.get("/things", headers={**bearer("hunter2"), "X-Request-ID": "mine"})
        line = _line(caplog)
        assert (line["status"], line["principal"]) == (401, None)
        assert line["request_id"] == other.headers["x-request-id"] not in ("mine", response.headers["x-request-id"])
        assert "hunter2" not in str(line)

        await stack.client.get("/a%0Ab", headers={"Host": "evil.example"})
        line = _line(caplog)
        assert (line["path"], line["status"]) == ("/a%0Ab", 421)

        await stack.connect("/graphql", bearer(READ_TOKEN))
        line = _line(caplog)
        assert (line["method"], line["status"]) == ("WEBSOCKET", 101)
        await stack.connect("/graphql")
        assert _line(caplog)["status"] == 401


async def test_lines_that_nobody_reads(caplog: pytest.LogCaptureFixture) -> None:
    """Probes of liveness and files are logged for those only who look for everything, unless something is wrong."""
    caplog.set_level(logging.DEBUG, "pipeline_poc.web.guard")
    async with web() as stack:
        for path in ("/health/live", "/pipeline/static/x.css", "/_next/static/a.js"):
            await stack.client.get(path)
            assert _line(caplog)["level"] == logging.DEBUG
        for path in ("/health/ready", "/pipeline", "/", "/pipeline/static/none.css"):
            await stack.client.get(path)
            assert _line(caplog)["level"] == logging.INFO
