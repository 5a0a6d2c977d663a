"""Every route: who may use it, what is documented of it, and what becomes of paths and methods that don't exist."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from pipeline_poc.settings import Settings
from pipeline_poc_tests.web.contract import METHODS, Contract, checked
from pipeline_poc_tests.web.planting import problem
from pipeline_poc_tests.web.serving import served
from pipeline_poc_tests.web.stack import OPERATE_TOKEN, READ_TOKEN, WITH_TOKENS, bearer

PUBLIC = (
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/session"),
    ("GET", "/login"),
    ("POST", "/login"),
    ("POST", "/logout"),
    ("GET", "/pipeline/static/icon.svg"),
)
READABLE = (
    ("GET", "/pipeline"),
    ("GET", "/docs"),
    ("GET", "/docs/static/swagger-ui.css"),
    ("GET", "/openapi.json"),
    ("GET", "/"),
    ("GET", "/runs"),
    ("GET", "/server_info"),
    ("GET", "/graphql?query={version}"),
)
ENDPOINTS = {
    "GET": (
        "/health /data-ingestion/stats /data-migration/stats /data-migration/queue-jobs /posts/{externalId} /quarantine"
        " /quarantine/items /quarantine/items/{id} /dead-letters /dead-letters/items /dead-letters/items/{id}"
        " /reconciliation /metrics /events /pipeline/overview"
    ),
    "POST": (
        "/data-ingestion/trigger /data-migration/trigger /trigger-ingestion /trigger-migration /data-migration/pause"
        " /data-migration/resume /data-migration/drain /data-migration/replay /quarantine/requeue /quarantine/discard"
        " /dead-letters/requeue /dead-letters/discard /reconciliation /reconciliation/repair"
    ),
}
"""The endpoints that need a token, by what they do: to look, or to act."""
QUERY = {"query": "{ version }"}
MUTATION = {"query": 'mutation { terminateRuns(runIds: ["x"]) { __typename } }'}


@pytest.fixture
def relational_url(tmp_path: Path) -> str:
    """SQLite: which kind it is does not matter here."""
    return f"sqlite:///{tmp_path / 'relational.db'}"


@pytest.fixture
def protected(settings: Settings, services: object, dagster_ui: ASGIApp) -> Iterator[httpx.Client]:
    """A client of a server that has tokens; sends none by itself."""
    with served(settings.model_copy(update=WITH_TOKENS), dagster_ui) as client:
        yield client


def ask(client: httpx.Client, method: str, path: str, token: str | None, **request: Any) -> int:
    """Ask, and return the status alone: streams are closed at once."""
    headers = bearer(token) if token else {}
    with client.stream(method, path, headers=headers, **request) as response:
        if response.status_code in (401, 403):
            response.read()
            assert problem(response, response.status_code)
            assert response.headers["www-authenticate"].startswith("Bearer")
        return response.status_code


def test_who_may_use_what(protected: httpx.Client) -> None:
    """Each route lets through exactly those whose token is good for it; public are only those that must be."""
    contract = Contract(protected.get("/openapi.json", headers=bearer(READ_TOKEN)).json())
    known = {(method.upper(), path) for path, method, _ in contract.operations}
    needing = {(method, path) for method, paths in ENDPOINTS.items() for path in paths.split()}
    assert known == needing | {("GET", path) for path in ("/health/live", "/health/ready", "/session")}
    for method, path in (*sorted(needing), *READABLE):
        place = re.sub(r"\{(externalId|id)\}", "1", path)
        # What acts is asked for what makes no sense: it must be let through, and not act.
        request: dict[str, Any] = {"params": {"wait": "x", "dryRun": "x"}, "content": b"{"} if method == "POST" else {}
        found = [
            ask(protected, method, place, token, **request) for token in (None, "wrong", READ_TOKEN, OPERATE_TOKEN)
        ]
        assert found[:2] == [401, 401], path
        assert (found[2] == 403) == (method == "POST"), path
        assert found[3] not in (401, 403), path
        assert all(status < 500 or path == "/health" for status in found), path
    for method, path in PUBLIC:
        allowed = {200, 303, 503} | ({401} if (method, path) == ("POST", "/login") else set())
        for token in (None, READ_TOKEN, OPERATE_TOKEN):
            headers = bearer(token) if token else {}
            assert protected.request(method, path, headers=headers).status_code in allowed, path


def test_who_may_use_graphql(protected: httpx.Client) -> None:
    """Whoever may look may query Dagster; only who may operate may send it mutations."""
    statuses = {
        token: [ask(protected, "POST", "/graphql", token, json=body) for body in (QUERY, MUTATION)]
        for token in (None, "wrong", READ_TOKEN, OPERATE_TOKEN)
    }
    assert statuses == {None: [401, 401], "wrong": [401, 401], READ_TOKEN: [200, 403], OPERATE_TOKEN: [200, 200]}
    answer = protected.post("/graphql", json=QUERY, headers=bearer(READ_TOKEN)).json()
    assert answer["data"]["version"]


def test_everything_is_documented(web: httpx.Client) -> None:
    """Each operation has a summary, a description, a tag, a schema of its answer, and the problems it may have."""
    contract = Contract(web.get("/openapi.json").json())
    ids = [operation["operationId"] for _, _, operation in contract.operations]
    assert len(ids) == len(set(ids))
    for path, method, operation in contract.operations:
        where = f"{method} {path}"
        assert all(operation.get(field) for field in ("summary", "description", "tags")), where
        responses = operation["responses"]
        good = [responses[status] for status in responses if status.startswith("2")]
        assert all(
            kind.get("schema") or "json" not in name for each in good for name, kind in each["content"].items()
        ), where
        for status, response in responses.items():
            if status.startswith(("4", "5")) and not (path.startswith("/health") and status == "503"):
                assert set(response["content"]) == {"application/problem+json"}, f"{where} {status}"
        assert {"401", "403", "429", "500", "503"} <= set(responses), where
        for parameter in operation.get("parameters", []):
            assert parameter.get("description") or parameter["in"] == "path", where


def test_answers_are_as_documented(web: httpx.Client) -> None:
    """What an empty pipeline answers to all that only looks is as the schema says."""
    api = checked(web)
    for method, path in [("GET", path) for path in ENDPOINTS["GET"].split() if path != "/events"]:
        place = re.sub(r"\{(externalId|id)\}", "1", path)
        assert api.request(method, place).status_code in (200, 404, 503)
    for path in ("/health/live", "/health/ready", "/session"):
        assert api.get(path).status_code == 200


def test_wrong_methods(web: httpx.Client) -> None:
    """A method that a path does not know is answered with a problem, and with all those that it knows."""
    contract = Contract(web.get("/openapi.json").json())
    paths = {path: set(operations) for path, operations in contract.document["paths"].items()}
    for path, methods in (paths | {"/login": {"get", "post"}, "/logout": {"post"}, "/pipeline": {"get"}}).items():
        place = re.sub(r"\{(externalId|id)\}", "1", path)
        for method in set(METHODS) - methods:
            answer = web.request(method.upper(), place)
            problem(answer, 405)
            assert set(answer.headers["allow"].lower().split(", ")) - {"head"} == methods, place
    static = web.post("/pipeline/static/icon.svg")
    problem(static, 405)
    assert set(static.headers["allow"].split(", ")) == {"GET", "HEAD"}


def test_unknown_paths(web: httpx.Client) -> None:
    """What begins like a path of ours and is none is a problem; everything else is the UI's."""
    for path in (
        "/health/",
        "/health/x",
        "/posts",
        "/posts/1/x",
        "/quarantine/x",
        "/quarantine/items/x/y",
        "/data-migration",
        "/metrics/x",
        "/docs/x",
        "/pipeline/x",
        "/pipeline/static/x.js",
        "/trigger-migration/",
        "/openapi.json/x",
    ):
        for method in ("GET", "POST"):
            found = web.request(method, path)
            problem(found, 405 if (method, path) == ("POST", "/pipeline/static/x.js") else 404)
    for path in (
        "/",
        "/runs",
        "/overview/activity/timeline",
        "/pipelines",
        "/healthy",
        "/assets/raw_posts",
        "/locations",
        "/x/health",
    ):
        page = web.get(path)
        assert page.status_code == 200
        assert "text/html" in page.headers["content-type"]
        assert "Dagster" in page.text


def test_documentation_without_internet(web: httpx.Client) -> None:
    """The interactive documentation has everything it needs from this server."""
    page = web.get("/docs")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assets = re.findall(r"""(?:src|href)=["']([^"']+)""", page.text)
    assert assets
    for asset in assets:
        assert re.match(r"/[a-z]", asset), asset
        found = web.get(asset)
        assert (found.status_code, len(found.content) > 100) == (200, True), asset
    script = next(asset for asset in assets if asset.endswith("docs.js"))
    assert "/openapi.json" in web.get(script).text
    assert not re.search("https?://", page.text + web.get(script).text)
