"""Fixtures of the tests of the web server."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from starlette.types import ASGIApp

import pipeline_poc
from pipeline_poc.orchestration.ui import ui_app
from pipeline_poc.settings import Settings
from pipeline_poc_tests.integration.conftest import database, redis_client, services, sql
from pipeline_poc_tests.web.serving import served

__all__ = ["database", "redis_client", "services", "sql"]

WORKSPACE = """\
load_from:
  - python_module:
      module_name: pipeline_poc.definitions
      location_name: pipeline_poc
"""


@pytest.fixture
def anyio_backend() -> str:
    """What runs the asynchronous tests: what runs the server."""
    return "asyncio"


@pytest.fixture(scope="session")
def dagster_ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ASGIApp]:
    """Dagster's own UI with its code server, but without a daemon; once for the whole run."""
    home = tmp_path_factory.mktemp("dagster")
    shutil.copy(Path(pipeline_poc.__file__).parent / "dagster.yaml", home / "dagster.yaml")
    (home / "workspace.yaml").write_text(WORKSPACE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DAGSTER_HOME", str(home))
        environment.chdir(home)
        with ui_app(home / "workspace.yaml") as app:
            yield app


@pytest.fixture
def relational_url(sql_url: str) -> str:
    """URL of the relational store: MariaDB."""
    return sql_url


@pytest.fixture
def settings(mongo_url: str, mongo_database: str, redis_url: str, relational_url: str, tmp_path: Path) -> Settings:
    """Settings that name the servers of the run; without limits and tokens."""
    values: dict[str, Any] = {
        "mongo_url": SecretStr(mongo_url),
        "mongo_database": mongo_database,
        "redis_url": SecretStr(redis_url),
        "sql_url": SecretStr(relational_url),
        "data_dir": tmp_path / "data",
        "batch_size": 10,
        "health_timeout_s": 1.0,
        "count_interval_s": 0.2,
        "rate_limit_read": "100000/minute",
        "rate_limit_operate": "100000/minute",
    }
    return Settings(_env_file=None, **values)


@pytest.fixture
def web(settings: Settings, services: object, dagster_ui: ASGIApp) -> Iterator[httpx.Client]:
    """A client of the web server; whoever asks may act."""
    with served(settings, dagster_ui) as client:
        yield client
