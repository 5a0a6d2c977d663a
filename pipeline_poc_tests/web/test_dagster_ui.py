"""Dagster's own UI in our process: what we use of its private parts still does what we use it for.

If these tests fail after an upgrade of Dagster, `pipeline_poc/orchestration/ui.py` is to be brought in
line with what `dagster-webserver`'s own command does now.
"""

import json
from typing import Any

import dagster
import httpx
import pytest
from starlette.types import ASGIApp
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from pipeline_poc.clock import utc_now
from pipeline_poc.dagster_api import DagsterApi
from pipeline_poc.settings import Settings
from pipeline_poc_tests.web.serving import served
from pipeline_poc_tests.web.stack import READ_TOKEN, WITH_TOKENS, bearer

pytestmark = pytest.mark.anyio

RUNS = 'subscription { pipelineRunLogs(runId: "no-run") { __typename } }'


def client(ui: ASGIApp) -> httpx.AsyncClient:
    """Return a client of the UI itself, without our server."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(ui), base_url="http://dagster")


def subscribe(web: httpx.Client, headers: dict[str, str] | None = None) -> ClientConnection:
    """Open the WebSocket that Dagster's page opens."""
    url = str(web.base_url.join("/graphql")).replace("http", "ws", 1)
    return connect(url, subprotocols=[Subprotocol("graphql-ws")], additional_headers=headers, proxy=None)


async def test_the_page_and_its_server(dagster_ui: ASGIApp) -> None:
    """The UI serves its page, its scripts, and the version that is installed."""
    async with client(dagster_ui) as ui:
        page = await ui.get("/")
        assert (page.status_code, "text/html" in page.headers["content-type"]) == (200, True)
        assert "Dagster" in page.text
        info = (await ui.get("/server_info")).json()
        assert info["dagster_version"] == info["dagster_webserver_version"] == dagster.__version__


async def test_the_state_that_we_ask_for(dagster_ui: ASGIApp) -> None:
    """GraphQL answers all that the report needs: code location, daemons, schedule, sensors, and our repository."""
    async with client(dagster_ui) as ui:
        api = DagsterApi(ui)
        state = await api.state()
        assert await api.run_under_way() is None
        assert await api.run("00000000-0000-0000-0000-000000000000") is None
    assert state.locations == {"pipeline_poc": None}
    assert state.repository == ("pipeline_poc", "__repository__")
    assert {"SENSOR", "SCHEDULER"} <= {daemon.name for daemon in state.daemons}
    assert not any(daemon.is_healthy for daemon in state.daemons)
    [schedule] = [schedule for schedule in state.schedules if schedule.name == "ingest_posts_every_ten_minutes"]
    assert schedule.next_at is not None
    assert schedule.next_at > utc_now()
    assert state.sensors


async def test_live_updates(web: httpx.Client) -> None:
    """Through our server, Dagster's page gets the WebSocket of its live updates, and answers on it."""

    def receive(socket: ClientConnection) -> Any:
        while (message := json.loads(socket.recv(10)))["type"] == "ka":
            pass
        return message

    with subscribe(web) as socket:
        assert socket.subprotocol == "graphql-ws"
        socket.send(json.dumps({"type": "connection_init", "payload": {}}))
        assert receive(socket)["type"] == "connection_ack"
        socket.send(json.dumps({"id": "1", "type": "start", "payload": {"query": RUNS, "variables": {}}}))
        answer = receive(socket)
    assert (answer["id"], answer["type"]) == ("1", "data")
    assert answer["payload"]["data"]["pipelineRunLogs"]["__typename"] == "PipelineRunLogsSubscriptionFailure"


async def test_live_updates_need_a_token(settings: Settings, services: object, dagster_ui: ASGIApp) -> None:
    """Where tokens are set, the WebSocket is refused without one."""
    with served(settings.model_copy(update=WITH_TOKENS), dagster_ui) as web:
        for headers in ({}, bearer("wrong"), bearer(READ_TOKEN) | {"Origin": "https://evil.example"}):
            with pytest.raises(InvalidStatus) as refused:
                subscribe(web, headers)
            assert refused.value.response.status_code == 403
        with subscribe(web, bearer(READ_TOKEN)) as socket:
            socket.send(json.dumps({"type": "connection_init"}))
            assert json.loads(socket.recv(10))["type"] == "connection_ack"
