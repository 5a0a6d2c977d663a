"""Other entities than posts: the same endpoints once more, below a path that names the entity."""

from collections.abc import Iterator

import httpx
import pytest
from pydantic import SecretStr
from starlette.types import ASGIApp

from pipeline_poc.services import Services
from pipeline_poc.settings import Settings
from pipeline_poc.stand_in import StandIn
from pipeline_poc_tests.web.serving import served


@pytest.fixture
def settings(settings: Settings, stand_in: StandIn) -> Settings:
    """Settings with comments, too."""
    return settings.model_copy(update={"entities": ("posts", "comments"), "source_url": SecretStr(stand_in.url)})


@pytest.fixture
def client(settings: Settings, services: Services, dagster_ui: ASGIApp) -> Iterator[httpx.Client]:
    """A server where comments are migrated, and posts were never ingested."""
    comments = services.of("comments")
    comments.ingest()
    comments.migrate()
    with served(settings, dagster_ui) as client:
        yield client


def test_the_endpoints_of_an_entity(client: httpx.Client) -> None:
    """What the endpoints say of comments is not what they say of posts."""
    ours, posts = (client.get(f"{begin}/data-ingestion/stats").json() for begin in ("/entities/comments", ""))
    assert (ours["lastRun"]["new"], posts["lastRun"]) == (100, None)
    passport = client.get("/entities/comments/posts/7").json()
    assert (passport["state"], passport["agrees"], passport["row"]["postId"]) == ("migrated", True, 1)
    assert client.get("/posts/7").status_code == 404
    replay = client.post("/entities/comments/data-migration/replay?dryRun=true", json={"all": True}).json()
    assert (replay["selected"], replay["replayed"]) == (100, 0)
    assert "pipeline_rows_written_total 100.0" in client.get("/entities/comments/metrics").text
    overview = client.get("/entities/comments/pipeline/overview").json()
    assert (overview["entity"], overview["entities"]) == ("comments", ["posts", "comments"])
    assert client.get("/pipeline/overview").json()["entity"] == "posts"
    assert client.get("/entities/comments/health").json()["checks"]["migration:lag"]
    assert "Pipeline" in client.get("/entities/comments/pipeline").text


def test_an_entity_that_does_not_move(client: httpx.Client) -> None:
    """What ENTITIES does not name is not found, whatever is asked of it."""
    for path in ("/entities/users/data-migration/stats", "/entities/users/metrics", "/entities/users", "/entities"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


def test_the_schema(client: httpx.Client, settings: Settings, dagster_ui: ASGIApp) -> None:
    """The schema has each path of posts once more, with the entity as a parameter; not where posts are alone."""
    paths = client.get("/openapi.json").json()["paths"]
    begin = "/entities/{entity}"
    ours = {path.removeprefix(begin): path for path in paths if path.startswith(begin)}
    assert {path for path in paths if not path.startswith(begin)} - ours.keys() <= {"/session", "/login", "/logout"}
    for path in ours.values():
        for operation in paths[path].values():
            assert "entity" in [parameter["name"] for parameter in operation["parameters"]]
    with served(settings.model_copy(update={"entities": ("posts",)}), dagster_ui) as alone:
        assert not [path for path in alone.get("/openapi.json").json()["paths"] if path.startswith(begin)]
        assert alone.get("/entities/comments/health").status_code == 404
