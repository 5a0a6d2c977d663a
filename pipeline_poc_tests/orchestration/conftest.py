"""The definitions on real stores, and a Dagster instance of the test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import DagsterInstance

from pipeline_poc.orchestration.resources import close_services
from pipeline_poc.services import Services
from pipeline_poc_tests.integration.conftest import (
    environment,
    raw_store,
    redis_client,
    relational_url,
    services,
    settings,
)

__all__ = ["environment", "raw_store", "redis_client", "relational_url", "services", "settings"]


@pytest.fixture
def pipeline(services: Services, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    """The stores, named by the environment, as Dagster's processes find them."""
    for name in services.settings.model_fields_set:
        monkeypatch.setenv(name.upper(), environment[name.upper()])
    yield services
    close_services()


@pytest.fixture
def dagster_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for Dagster's data."""
    home = tmp_path / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    return home


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    """An instance that forgets everything."""
    with DagsterInstance.ephemeral() as instance:
        yield instance
