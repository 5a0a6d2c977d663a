"""The web server as `up` starts it, with tokens: its endpoints by REST, Dagster's UI beside them, and its documents."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Page, WebSocket, expect
from prometheus_client.parser import text_string_to_metric_families

from pipeline_poc.embedded import free_port
from pipeline_poc.services import Services
from pipeline_poc.settings import Settings
from pipeline_poc.stand_in import StandIn
from pipeline_poc.testing import NASTY_RECORDS
from pipeline_poc.web.auth import new_token
from pipeline_poc_tests.acceptance.conftest import chromium_in
from pipeline_poc_tests.acceptance.programs import AUTOMATION, TIMEOUT_S, Programs, until
from pipeline_poc_tests.acceptance.schedules import INGESTING, stop_ingesting
from pipeline_poc_tests.conftest import Figures
from pipeline_poc_tests.scripts import script

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
CASES = int(os.environ.get("CASES", "2"))
"""Random requests that schemathesis makes for each operation, beside those that cover its schema."""
PAGES = {"GET /pipeline", "GET /docs", "GET /openapi.json", "GET /login", "POST /login", "POST /logout"}
"""What is documented, though no part of the schema."""
MOST_MS = TIMEOUT_S * 1000


@dataclass(frozen=True, slots=True)
class Served:
    """An `up` of all tests of this file.

    Attributes:
        client: May operate.
        token: Its token.
        source: What is ingested.
    """

    programs: Programs
    client: httpx.Client
    token: str
    source: StandIn

    @property
    def url(self) -> str:
        """Where the web server is."""
        return str(self.client.base_url)

    def graphql(self, query: str, **variables: object) -> dict[str, Any]:
        """Ask Dagster."""
        answer = self.client.post("/graphql", json={"query": query, "variables": variables}).json()
        assert "errors" not in answer, answer
        data: dict[str, Any] = answer["data"]
        return data

    def ended(self, run_id: str) -> str:
        """Wait for the end of a run; returns how it ended."""

        def end() -> str | None:
            query = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
            status = str(self.graphql(query, id=run_id)["runOrError"]["status"])
            return status if status in ("SUCCESS", "FAILURE", "CANCELED") else None

        return until(end, f"run {run_id} ends") or ""


@pytest.fixture(scope="module")
def served(shared: Programs) -> Iterator[Served]:
    """One `up` on servers, with both tokens, and a source that has some bad records."""
    (read, read_hash), (operate, operate_hash) = new_token(), new_token()
    with StandIn() as source:
        source.behaviour = {"malformed": str(len(NASTY_RECORDS))}
        shared.settings |= {
            "source_url": source.url,
            "api_read_token_hashes": read_hash,
            "api_operate_token_hashes": operate_hash,
            "api_token": read,
            "rate_limit_read": "1000000/minute",
            "rate_limit_operate": "1000000/minute",
            "heartbeat_interval_s": 1,
            "heartbeat_timeout_s": 5,
        }
        client = httpx.Client(
            base_url=f"http://localhost:{shared.settings['web_port']}",
            headers={"Authorization": f"Bearer {operate}"},
            timeout=TIMEOUT_S + 30,
            trust_env=False,
        )
        stop_ingesting(shared.data_dir)
        with client, shared.up():
            yield Served(shared, client, operate, source)


@pytest.fixture(scope="module")
def browser(served: Served) -> Iterator[Browser]:
    """Chromium, in the environment of the programs."""
    with chromium_in(served.programs) as browser:
        yield browser


def test_trigger_launches_a_run_and_a_second_one_joins(served: Served) -> None:
    """A trigger answers at once with a run that Dagster knows; another one joins it, and can wait for its result."""
    served.source.posts[7] = {"userId": 1, "id": 7, "title": "changed at the source", "body": "b"}
    served.source.open.clear()
    hits = served.source.hits
    first = served.client.post("/trigger-ingestion")
    assert first.status_code == 202
    run = first.json()["run"]
    assert (first.json()["joined"], run["url"]) == (False, f"/runs/{run['runId']}")
    query = "query ($id: ID!) { runOrError(runId: $id) { __typename ... on Run { jobName tags { key value } } } }"
    known = served.graphql(query, id=run["runId"])["runOrError"]
    assert (known["__typename"], known["jobName"]) == ("Run", "ingest_posts")
    assert {"key": "pipeline_poc/started_by", "value": "api"} in known["tags"]

    with ThreadPoolExecutor() as pool:
        asked = pool.submit(served.client.post, "/data-ingestion/trigger", params={"wait": True})
        until(lambda: served.source.hits > hits, "the source is asked")
        assert not wait([asked], timeout=1).done
        served.source.open.set()
        second = asked.result()
    assert second.status_code == 200, second.text
    answer = second.json()
    assert (answer["success"], answer["joined"], answer["run"]["runId"]) == (True, True, run["runId"])
    result = answer["result"]
    bad = len(NASTY_RECORDS)
    assert (result["fetched"], result["new"], result["changed"], result["unchanged"]) == (100 + bad, 0, 1, 99)
    assert (result["inserted"], result["duplicates"], result["errors"]) == (0, 99, bad)
    assert result["durationMs"] >= 1000
    until(lambda: served.client.get("/posts/7").json()["state"] == "migrated", "the change is migrated")
    assert served.client.get("/posts/7").json()["row"]["title"] == "changed at the source"


def test_a_run_is_forked_and_can_be_terminated(served: Served) -> None:
    """The code server forks a run off a process of one thread that imported everything; terminating it still works."""
    served.source.open.clear()
    hits = served.source.hits
    run_id = served.client.post("/trigger-ingestion").json()["run"]["runId"]
    until(lambda: served.source.hits > hits, "the source is asked")
    (code_server,) = served.programs.processes("dagster", "api", "grpc")
    (fork_server,) = [child for child in code_server.children() if "multiprocessing.forkserver" in child.cmdline()[-1]]
    assert len(fork_server.children()) == 1, "the run"
    assert fork_server.num_threads() == 1, "a fork would lose the others"
    loaded = {Path(each.path).name.partition(".")[0] for each in fork_server.memory_maps()}
    assert loaded >= {"_pydantic_core", "_cbson"}
    ended = served.graphql("mutation ($id: String!) { terminateRun(runId: $id) { __typename } }", id=run_id)
    assert ended["terminateRun"]["__typename"] == "TerminateRunSuccess"
    assert served.ended(run_id) == "CANCELED"
    served.source.open.set()
    until(lambda: not fork_server.children(), "its process, too")
    assert served.client.post("/trigger-ingestion", params={"wait": True}).json()["success"], "the next goes well"


def test_failing_source(served: Served) -> None:
    """Where the source fails, the result of the run says so in the source's sentence, and statistics keep it."""
    usual, served.source.behaviour = served.source.behaviour, {"status": "404"}
    answer = served.client.post("/trigger-ingestion", params={"wait": True})
    served.source.behaviour = usual
    assert answer.status_code == 200
    body = answer.json()
    assert (body["success"], body["result"], body["run"]["status"]) == (False, None, "FAILURE")
    assert "SOURCE_URL" in body["message"]
    assert "404" in body["message"]
    until(lambda: served.client.get("/data-ingestion/stats").json()["errorsSince"] == 1, "statistics follow")
    assert "404" in served.client.get("/data-ingestion/stats").json()["lastError"]


def test_idempotency_key_replays(served: Served) -> None:
    """The same key gets the same run, even after its end; the failure before is over then."""
    key = {"Idempotency-Key": "nightly-1"}
    first = served.client.post("/trigger-ingestion", headers=key)
    assert first.status_code == 202
    assert served.ended(first.json()["run"]["runId"]) == "SUCCESS"
    again = served.client.post("/trigger-ingestion", headers=key)
    assert (again.status_code, again.json()) == (first.status_code, first.json())
    assert again.headers["idempotent-replayed"] == "true"
    assert served.client.post("/trigger-ingestion", params={"wait": True}, headers=key).status_code == 422
    until(lambda: served.client.get("/data-ingestion/stats").json()["errorsSince"] == 0, "statistics follow")


def test_status_says_what_health_says(served: Served) -> None:
    """`pipeline-poc status` with a token reports the checks of `/health`.

    All of them are good, but for the bad records and the schedule that somebody has stopped.
    """

    def settled() -> bool:
        return bool(served.client.get("/health").json()["checks"]["migration:lag"][0]["observedValue"] == 0)

    until(settled, "nothing waits")
    report = served.client.get("/health").json()
    checks = {
        (name, check.get("componentId")): check["status"] for name, group in report["checks"].items() for check in group
    }
    assert {name for (name, _), status in checks.items() if status != "pass"} == {
        "quarantine:records",
        "dagster:schedule",
    }
    assert report["status"] == "warn"
    assert report["checks"]["workers:live"][0]["observedValue"] == 2
    automation = {check["componentId"]: check["observedValue"] for check in report["checks"]["dagster:schedule"]}
    automation |= {check["componentId"]: check["observedValue"] for check in report["checks"]["dagster:sensor"]}
    assert automation == dict.fromkeys(AUTOMATION, "RUNNING") | {INGESTING: "STOPPED"}
    assert {"SENSOR", "SCHEDULER"} <= {check["componentId"] for check in report["checks"]["dagster:daemons"]}

    status = served.programs.run("status", "--json").json
    told = {
        (name, check.get("componentId")): check["status"] for name, group in status["checks"].items() for check in group
    }
    assert told == checks


def test_own_webserver_of_dagster(served: Served) -> None:
    """Dagster's own `dagster-webserver` serves the same runs without our endpoints, beside ours."""
    port = free_port()
    folder = served.programs.data_dir
    command = [sys.executable, "-m", "dagster_webserver", "-h", "127.0.0.1", "-p", str(port)]
    program = served.programs.launch(
        *command, "-w", str(folder / "workspace.yaml"), dagster_home=folder.absolute() / "dagster"
    )
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=TIMEOUT_S) as client:

        def info() -> dict[str, Any] | None:
            try:
                answer: dict[str, Any] = client.get("/server_info").json()
            except httpx.TransportError:
                assert program.is_running, program.said
                return None
            return answer

        told = until(info, "dagster-webserver answers")
        assert told
        assert told["dagster_version"] == served.client.get("/server_info").json()["dagster_version"]
        query = "{ runsOrError { ... on Runs { results { runId } } } }"
        runs = client.post("/graphql", json={"query": query}).json()["data"]
        assert runs == served.graphql(query)
        assert runs["runsOrError"]["results"]
    program.signal(signal.SIGINT)
    program.wait()


def test_ui_asks_for_a_login(served: Served, chromium: str, browser: Browser) -> None:
    """Whoever is not logged in is led to the login from any page, and from there to where they wanted to go."""
    page = browser.new_context().new_page()
    page.goto(f"{served.url}/runs")
    assert urlsplit(page.url).path == "/login"
    page.fill("#token", "ppoc_wrong")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_contain_text("not known")
    log_in(page, served.token)
    page.wait_for_url(f"{served.url}/runs", timeout=MOST_MS)
    page.context.close()


def test_live_run_in_the_ui(served: Served, chromium: str, browser: Browser) -> None:
    """Dagster's UI of this process shows a run that the endpoints launched, and its end, live by WebSocket."""
    page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    page.set_default_timeout(MOST_MS)
    sockets: list[WebSocket] = []
    frames: list[str | bytes] = []
    complaints: list[str] = []

    def opened(socket: WebSocket) -> None:
        sockets.append(socket)
        socket.on("framereceived", lambda frame: frames.append(frame))

    page.on("websocket", opened)
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{served.url}/login?next=/runs")
    log_in(page, served.token)
    page.wait_for_url(f"{served.url}/runs")
    served.source.open.clear()
    run = served.client.post("/trigger-ingestion").json()["run"]
    page.goto(f"{served.url}{run['url']}")
    expect(page.get_by_text(re.compile("Started|Starting")).first).to_be_visible()
    before = len(frames)
    served.source.open.set()
    expect(page.get_by_text("Success", exact=True).first).to_be_visible()
    assert {urlsplit(socket.url).path for socket in sockets} == {"/graphql"}
    assert len(frames) > before
    assert any(run["runId"] in str(frame) or "RUN_SUCCESS" in str(frame) for frame in frames)
    assert not complaints
    page.context.close()


def test_asset_graph(served: Served, chromium: str, browser: Browser) -> None:
    """Dagster's page of the asset graph shows both assets and of which kind they are."""
    page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    page.goto(f"{served.url}/login?next=/asset-groups")
    log_in(page, served.token)
    for text in ("raw_posts", "migrated_posts", "mongodb", "mysql"):  # The kinds are pictures with a name.
        page.wait_for_function("text => document.body.outerHTML.includes(text)", arg=text, timeout=MOST_MS)
    page.context.close()


def test_docs_page(served: Served, chromium: str, browser: Browser) -> None:
    """`/docs` shows every operation, and asks no other host for anything."""
    page = browser.new_context().new_page()
    hosts: set[str] = set()
    complaints: list[str] = []
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto(f"{served.url}/login?next=/docs")
    log_in(page, served.token)
    operations = page.locator(".opblock")
    expect(operations.first).to_be_visible()
    assert operations.count() == len(operations_of(served))
    assert {host for host in hosts if host} == {urlsplit(served.url).netloc}
    assert not complaints
    page.context.close()


def test_api_document(served: Served) -> None:
    """docs/api.md has every endpoint and metric and no other, and its answers are those of a live pipeline."""
    api_docs = script("api-docs")
    document = api_docs.PATH.read_text()
    with Services(settings_of(served)) as services:
        api_docs.prepare(services)
    assert sorted(api_docs.headings(document)) == sorted(operations_of(served) | PAGES)
    examples = api_docs.examples(document)
    assert {example.heading for example in examples} == set(api_docs.headings(document))
    different = {}
    for example in examples:
        answer = api_docs.ask(served.client, example.command)
        media_type = answer.headers.get("content-type", "no body")
        assert (answer.status_code, media_type) == (example.status, example.media_type), example.command
        if "json" in media_type and " -o " not in example.command:
            shown, live = structure(json.loads(example.body)), structure(answer.json())
            if not fits(shown, live):
                different[example.command] = (shown, live)
        elif example.heading == "GET /events":
            assert answer.text.startswith("event: overview\ndata: {")
            assert example.body.startswith("event: overview\ndata: {")
    assert not different
    families = list(text_string_to_metric_families(served.client.get("/metrics").text))
    described = api_docs.metrics(document)
    assert set(described) == {api_docs.exposed_name(family) for family in families}
    for family in families:
        kind, labels, meaning = described[api_docs.exposed_name(family)]
        assert (kind, meaning) == (family.type, family.documentation)
        assert set(api_docs.labels_of(family)) == set(re.findall(r"`(\w+)`", labels)) or not family.samples


@pytest.mark.slow
@pytest.mark.timeout(300 + 5 * CASES)
def test_schema_tells_the_truth(served: Served, measured: Figures) -> None:
    """Thousands of requests, right and wrong, get what the schema says, and never an error of the server.

    Fewer here; for the long form: CASES=400, or `make fuzz-api`.
    """
    config = served.programs.folder / "schemathesis.toml"
    # A run of Dagster takes seconds: other tests wait for some.
    without_waiting = """
[[operations]]
include-path = ["/data-ingestion/trigger", "/trigger-ingestion"]
parameters = { "query.wait" = false }
"""
    config.write_text((ROOT / "schemathesis.toml").read_text() + without_waiting)
    command = Path(sys.executable).with_name("schemathesis")
    arguments = ["--config-file", str(config), "run", f"{served.url}/openapi.json", "--checks", "all", "--seed", "1"]
    ended = subprocess.run(
        [command, *arguments, "--max-examples", str(CASES)],
        env=served.programs.environment(api_token=served.token),
        cwd=served.programs.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    served.client.post("/data-migration/resume").raise_for_status()
    assert ended.returncode == 0, ended.stdout
    found = re.search(r"(\d+) generated, \d+ passed", ended.stdout)
    assert found, ended.stdout
    assert int(found[1]) > 500
    measured(f"{found[1]} requests")
    log = (served.programs.data_dir / "logs" / "webserver.log").read_text()
    assert "Traceback" not in log


def log_in(page: Page, token: str) -> None:
    """Fill in the form of the login."""
    page.fill("#token", token)
    page.get_by_role("button", name="Log in").click()


def operations_of(served: Served) -> set[str]:
    """Return the operations of the schema: verbs with paths."""
    paths = served.client.get("/openapi.json").json()["paths"]
    return {f"{verb.upper()} {path}" for path, verbs in paths.items() for verb in verbs}


def settings_of(served: Served) -> Settings:
    """Return the settings of the programs."""
    values: dict[str, Any] = {
        name: served.programs.settings[name] for name in ("mongo_url", "mongo_database", "redis_url", "sql_url")
    }
    return Settings(_env_file=None, **values)


def structure(value: Any) -> Any:
    """Return keys and types of a JSON value; of a list those of its first element."""
    match value:
        case dict():
            return {key: structure(each) for key, each in value.items()}
        case list():
            return [structure(each) for each in value[:1]]
        case bool() | str() | None:
            return type(value).__name__
    return "number"


def fits(shown: Any, live: Any) -> bool:
    """Whether two structures are the same, as far as one does not say nothing: null, or an empty list."""
    if isinstance(shown, dict) and isinstance(live, dict):
        return shown.keys() == live.keys() and all(fits(shown[key], live[key]) for key in shown)
    if isinstance(shown, list) and isinstance(live, list):
        return not shown or not live or fits(shown[0], live[0])
    return "NoneType" in (shown, live) or bool(shown == live)
