"""The live view: a stream that tells every change, and a past that grows."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline_poc.clock import utc_now
from pipeline_poc.services import Services
from pipeline_poc.web import models
from pipeline_poc_tests.acceptance.programs import until
from pipeline_poc_tests.web.contract import checked
from pipeline_poc_tests.web.planting import at, problem, store


@pytest.fixture
def relational_url(tmp_path: Path) -> str:
    """SQLite: which kind it is does not matter here."""
    return f"sqlite:///{tmp_path / 'relational.db'}"


@pytest.fixture
def api(web: httpx.Client) -> httpx.Client:
    """A client whose answers are held against the schema."""
    return checked(web)


@contextmanager
def events(api: httpx.Client) -> Iterator[Iterator[tuple[str, dict[str, Any]]]]:
    """Open a stream; yields its events, each with its name."""

    def read(response: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
        name, data = "", ""
        for line in response.iter_lines():
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                data += value
            elif not line and data:
                models.Overview.model_validate_json(data)
                yield name, json.loads(data)
                name, data = "", ""

    with api.stream("GET", "/events") as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield read(response)


def test_changes_arrive(api: httpx.Client, services: Services) -> None:
    """Events have the name and the shape of the overview, tell changes, and repeat no sample of the past."""
    batches = store(services, range(1, 31))
    with events(api) as stream:
        # What was read last is shown again for a second.
        name, first = next(event for event in stream if event[1]["waiting"]["batches"] == 3)
        assert (name, first["mode"], first["waiting"]["posts"]) == ("overview", "running", 30)
        services.set_mode("paused", by="a test", reason="because")
        services.migrate(batches[:1])
        samples = list(first["history"])
        for name, later in stream:
            assert name == "overview"
            samples += later["history"]
            if later["mode"] == "paused" and later["waiting"]["batches"] == 2 and len(samples) > 1:
                break
        assert later["modeReason"] == "because"
        assert at(later["at"]) > at(first["at"])
    times = [sample["at"] for sample in samples]
    assert times == sorted(set(times))
    assert samples[-1]["backlog"] == 20
    overview = api.get("/pipeline/overview").json()
    assert [sample["at"] for sample in overview["history"]][-len(times) :] >= times
    assert len(overview["history"]) >= len(samples)
    assert overview["lagS"] > 0
    assert len(overview["recentJobs"]) == 0


def test_a_stream_begins_with_the_present(api: httpx.Client, services: Services) -> None:
    """Who begins to watch long after others have gone is not told how things were then."""
    with events(api) as stream:
        assert next(stream)[1]["mode"] == "running"
    time.sleep(2.5)  # Until the server sees that nobody watches.
    services.set_mode("paused", by="a test")
    opened_at = utc_now()
    time.sleep(1.1)  # What was read last is shown again for a second.
    with events(api) as stream:
        _, first = next(stream)
    assert first["mode"] == "paused"
    assert at(first["at"]) >= opened_at


def test_streams_are_bounded(api: httpx.Client) -> None:
    """So many streams can be open at once; who leaves makes room, however they leave."""
    limits = httpx.Limits(max_connections=None)
    with (
        httpx.Client(base_url=api.base_url, timeout=15.0, trust_env=False, limits=limits) as client,
        ExitStack() as open_,
    ):
        for _ in range(100):
            open_.enter_context(events(client))
        until(lambda: client.get("/pipeline/overview").status_code == 200, "the page is served all the same")
        refused = problem(api.get("/events"), 503)
        assert "100 streams" in refused["detail"]

    def opens() -> bool:
        with api.stream("GET", "/events") as response:
            return response.status_code == 200

    until(opens, "there is room again")
