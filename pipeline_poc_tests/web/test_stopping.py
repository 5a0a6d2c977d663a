"""A web server that is asked to stop."""

import httpx
import pytest
from starlette.types import ASGIApp

from pipeline_poc.settings import Settings
from pipeline_poc_tests.acceptance.programs import until
from pipeline_poc_tests.web.serving import server_and_client


def test_who_is_going_says_so_first(settings: Settings, services: object, dagster_ui: ASGIApp) -> None:
    """Asked to stop, a server says that it isn't ready, answers all the same for WEB_DRAIN_S, and is gone then."""
    with server_and_client(settings.model_copy(update={"web_drain_s": 60.0}), dagster_ui) as (server, client):
        assert client.get("/health/ready").status_code == 200
        server.should_exit = True
        until(lambda: client.get("/health/ready").status_code == 503, "it says that it is going")
        assert client.get("/health/ready").json()["output"].startswith("process:stopping: ")
        assert client.get("/data-migration/stats").status_code == 200
        server.force_exit = True  # Nobody wants to wait for a minute.
        url = str(client.base_url)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health/live", trust_env=False)
