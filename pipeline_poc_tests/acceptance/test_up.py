"""`pipeline-poc up`: everything from nothing in one command, and nothing left behind, however it ends."""

import signal
import socket
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests

from pipeline_poc.embedded import free_port
from pipeline_poc.stand_in import StandIn
from pipeline_poc_tests.acceptance.programs import AUTOMATION, Programs, allowed_s, until
from pipeline_poc_tests.acceptance.schedules import let_miss
from pipeline_poc_tests.conftest import Figures

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]


class Ui:
    """The running UI, asked through its GraphQL."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._repository = {"repositoryName": "__repository__", "repositoryLocationName": "pipeline_poc"}

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """Return the data of an answer without errors."""
        body = {"query": query, "variables": variables}
        with requests.Session() as session:
            session.trust_env = False
            answer = session.post(f"http://127.0.0.1:{self.port}/graphql", json=body, timeout=60).json()
        assert "errors" not in answer, answer
        data: dict[str, Any] = answer["data"]
        return data

    def ingest(self) -> str:
        """Launch the ingestion as the UI's button does; returns how the run ends."""
        launch = """mutation ($selector: JobOrPipelineSelector!) {
            launchRun(executionParams: {selector: $selector}) {
                ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
        launched = self.ask(launch, selector=self._repository | {"pipelineName": "ingest_posts"})["launchRun"]
        return self.end_of(launched["run"]["runId"])

    def end_of(self, run_id: str) -> str:
        """Wait until a run ends; returns how."""
        query = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"

        def end() -> str | None:
            status = str(self.ask(query, id=run_id)["runOrError"]["status"])
            return status if status in ("SUCCESS", "FAILURE", "CANCELED") else None

        return until(end, "the run ends") or ""

    def automation(self) -> dict[str, str]:
        """Return the status of the schedule and the sensor by name."""
        query = """query ($selector: RepositorySelector!) { repositoryOrError(repositorySelector: $selector) {
            ... on Repository {
                schedules { name scheduleState { status } } sensors { name sensorState { status } } } } }"""
        found = self.ask(query, selector=self._repository)["repositoryOrError"]
        states = {schedule["name"]: schedule["scheduleState"] for schedule in found["schedules"]}
        states |= {sensor["name"]: sensor["sensorState"] for sensor in found["sensors"]}
        return {name: state["status"] for name, state in states.items()}

    def ticks(self, kind: str, name: str) -> list[dict[str, Any]]:
        """Return the completed ticks of a ``schedule`` or ``sensor``, the newest first."""
        query = """query ($selector: %sSelector!) { %sOrError(%sSelector: $selector) { ... on %s {
            %sState { ticks(limit: 5) { status runIds skipReason } } } } }"""
        query %= (kind.title(), kind, kind, kind.title(), kind)
        found = self.ask(query, selector=self._repository | {f"{kind}Name": name})[f"{kind}OrError"]
        return [tick for tick in found[f"{kind}State"]["ticks"] if tick["status"] != "STARTED"]

    def materializations(self, asset: str) -> list[dict[str, Any]]:
        """Return the materializations of an asset, the newest first: run id and numbers."""
        query = """query ($key: AssetKeyInput!) { assetOrError(assetKey: $key) { ... on Asset {
            assetMaterializations { runId metadataEntries { label ... on IntMetadataEntry { intValue } } } } } }"""
        found = self.ask(query, key={"path": [asset]})["assetOrError"].get("assetMaterializations", [])
        return [
            {"run": entry["runId"]} | {each["label"]: each.get("intValue") for each in entry["metadataEntries"]}
            for entry in found
        ]


def rows(data_dir: Path) -> dict[int, str]:
    """Return the titles in the embedded relational store, by id."""
    try:
        with closing(sqlite3.connect(f"file:{data_dir / 'relational.sqlite'}?mode=ro", uri=True)) as connection:
            return dict(connection.execute("SELECT externalId, title FROM migrated_posts"))
    except sqlite3.OperationalError:  # Nobody has made it yet.
        return {}


@pytest.fixture
def port() -> int:
    """A port for the UI."""
    return free_port()


@pytest.fixture
def source(stand_in: StandIn, programs: Programs) -> StandIn:
    """A source that is chosen by SOURCE_URL."""
    programs.settings["source_url"] = stand_in.url
    return stand_in


def test_once_migrates_all_and_again_finds_all(programs: Programs, source: StandIn) -> None:
    """`up --once` migrates every post and exits 0; a second one finds them, and puts bad records aside."""
    first = programs.ask("up", "--once")
    assert first["ok"]
    assert (first["ingestion"]["fetched"], first["ingestion"]["new"]) == (100, 100)
    assert (first["reconciliation"]["migrated"], first["reconciliation"]["rows"]) == (100, 100)
    assert not programs.processes(), "embedded services outlive `up`"
    source.behaviour = {"malformed": "17"}
    second = programs.run("up", "--once")
    assert second.status == 0, second.said
    for line in ("new                 0", "unchanged         100", "quarantined        17", "reconciliation     ok"):
        assert line in second.out
    assert len(rows(programs.data_dir)) == 100


def test_stand_in_replaces_the_unreachable_public_api(programs: Programs) -> None:
    """Without SOURCE_URL and internet the bundled stand-in is the source, and the screen says so."""
    result = programs.run("up", "--once")
    assert result.status == 0, result.said
    assert "https://jsonplaceholder.typicode.com/posts can't be reached" in result.out
    assert "stand-in with made-up posts" in result.out
    assert len(rows(programs.data_dir)) == 100


def test_made_up_posts_never_reach_a_store_of_somebodys(programs: Programs, redis_url: str) -> None:
    """With the URL of any store set, an unreachable public API is an error, not a reason for made-up posts."""
    result = programs.run("up", "--once", redis_url=redis_url, retry_base_s=0.01)
    assert result.status == 3, result.said
    assert "(SOURCE_URL) is not available" in result.out
    assert "stand-in" not in result.said
    assert rows(programs.data_dir) == {}


def test_up_shows_migrates_and_stops(programs: Programs, source: StandIn, port: int, measured: Figures) -> None:
    """`up` serves the UI, runs schedule, sensor and workers, brings changes through, and stops in 10 s."""
    let_miss(programs.data_dir, "check_posts_every_ten_minutes")
    program = programs.start("up", web_port=port)
    migrated_s = program.wait_for("reconciliation     ok")
    answers_s = program.wait_for(f"http://localhost:{port}")
    ui = Ui(port)

    assert ui.automation() == dict.fromkeys(AUTOMATION, "RUNNING")
    assert sum(each["new"] for each in ui.materializations("raw_posts")) == 100
    reports = until(lambda: ui.materializations("migrated_posts"), "the workers report")
    assert sum(report["migrated"] for report in reports) == 100
    assert {report["run"] for report in reports} == {""}, "reports of workers belong to no run"

    source.posts[7] = {"userId": 1, "id": 7, "title": "changed at the source", "body": "b"}
    assert ui.ingest() == "SUCCESS"
    changed_at = time.monotonic()
    until(lambda: rows(programs.data_dir)[7] == "changed at the source", "the change arrives")
    arrived_s = time.monotonic() - changed_at
    assert programs.ask("reconcile")["migrated"] == 100

    # The first one; another comes where the time of the schedule passes just now.
    tick = until(lambda: ui.ticks("schedule", "check_posts_every_ten_minutes"), "the schedule ticks")[-1]
    assert (tick["status"], [ui.end_of(run_id) for run_id in tick["runIds"]]) == ("SUCCESS", ["SUCCESS"])
    newest = ui.ticks("sensor", "enqueue_posts")[0]
    assert (newest["status"], newest["runIds"], "outstanding" in newest["skipReason"]) == ("SKIPPED", [], True)

    second = programs.run("up", web_port=port)
    assert second.status == 3
    assert second.err.startswith("Error: `pipeline-poc up` is already running on"), second.said
    assert f"(process {program.pid})" in second.err

    status, stopped_s = programs.stop(program, signal.SIGINT)
    assert status == 0, program.said
    logs = {path.name: path.read_text() for path in (programs.data_dir / "logs").iterdir()}
    assert set(logs) == {"code-server.log", "webserver.log", "daemon.log", "worker-1.log", "worker-2.log"}
    assert not [f"{name}:\n{text}" for name, text in logs.items() if "Traceback" in text]
    assert "Traceback" not in program.said
    measured(
        f"migrated after {migrated_s:.1f} s, UI after {answers_s:.1f} s, "
        f"a change {arrived_s:.1f} s after its ingestion, stopped in {stopped_s:.1f} s"
    )
    assert stopped_s < allowed_s()


@pytest.mark.parametrize("moment", ["starting the stores", "ingesting"])
def test_sigterm_stops_everything(programs: Programs, source: StandIn, port: int, moment: str) -> None:
    """SIGTERM stops every process within 10 s at any moment, without a stack trace; `Programs.up` has one more."""
    if moment == "ingesting":
        source.open.clear()
    program = programs.start("up", web_port=port)
    if moment == "ingesting":
        until(lambda: source.hits, "the source is asked")
    else:
        until(lambda: programs.processes("mongo"), "a supervisor starts")
    _, stopped_s = programs.stop(program, signal.SIGTERM)
    assert stopped_s < allowed_s()
    assert "Traceback" not in program.said


def test_port_in_use(programs: Programs, mongo_url: str, redis_url: str) -> None:
    """A port that another program uses is named, with the setting and a way out; exit code 3."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        result = programs.run("up", web_port=taken, mongo_url=mongo_url, redis_url=redis_url)
    assert result.status == 3, result.said
    assert result.err.splitlines()[-1] == (
        f"Error: port {taken} (WEB_PORT) is in use by another program: "
        f"stop it, or choose another port, such as WEB_PORT={taken + 1}"
    )
    assert not programs.processes()


def test_leftovers_of_a_killed_up_are_healed(programs: Programs, source: StandIn, port: int) -> None:
    """What `kill -9` of `up` leaves behind is ended by the next one, which migrates the rest."""
    program = programs.start("up", web_port=port)
    until(lambda: programs.processes("worker"), "a worker starts")
    program.kill()
    source.behaviour = {"n": "150"}
    result = programs.run("up", "--once")
    assert result.status == 0, result.said
    assert "Ended a leftover of a killed start: worker-1" in result.out
    assert len(rows(programs.data_dir)) == 150
    assert not programs.processes()


@pytest.mark.slow
def test_data_survives_the_death_of_everything(programs: Programs, source: StandIn) -> None:
    """After `kill -9` of every process in the middle of the work, the next start has all data and finishes."""
    source.behaviour = {"n": "1500"}
    program = programs.start("up", "--once", batch_size=100)
    until(lambda: len(rows(programs.data_dir)) > 100, "the first posts are migrated")
    programs.kill_all()
    assert "Traceback" not in program.said
    outcome = programs.ask("up", "--once", heartbeat_interval_s=1, heartbeat_timeout_s=5)
    assert outcome["ok"]
    assert outcome["reconciliation"]["migrated"] == 1500
    assert len(rows(programs.data_dir)) == 1500
