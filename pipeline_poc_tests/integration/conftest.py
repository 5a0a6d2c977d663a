"""The whole pipeline on real servers: SecantusDB, Valkey, a stand-in source, and a relational store."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from pydantic import SecretStr
from pymongo import MongoClient
from pymongo.database import Database
from rq.job import Job
from rq.serializers import JSONSerializer
from sqlalchemy import Engine, create_engine

from pipeline_poc.ledger import Ledger
from pipeline_poc.migration_queue import MigrationQueue
from pipeline_poc.raw_store import RawStore
from pipeline_poc.relational_store import RelationalStore
from pipeline_poc.services import Services
from pipeline_poc.settings import Settings
from pipeline_poc.stand_in import StandIn
from pipeline_poc_tests.integration.workers import Start, workers


@pytest.fixture
def relational_url(tmp_path: Path) -> str:
    """URL of the relational store; a file overrides this with `any_sql_url` where the kind matters."""
    return f"sqlite:///{tmp_path / 'relational.db'}"


@pytest.fixture
def settings(  # noqa: PLR0917 - fixtures are asked for by name
    mongo_url: str, mongo_database: str, redis_url: str, relational_url: str, stand_in: StandIn, tmp_path: Path
) -> Settings:
    """Settings that name the servers of the run, with small numbers."""
    values: dict[str, Any] = {
        "source_url": stand_in.url,
        "mongo_url": mongo_url,
        "mongo_database": mongo_database,
        "redis_url": redis_url,
        "sql_url": relational_url,
        "data_dir": tmp_path / "data",
        "batch_size": 10,
        "store_timeout_s": 1.0,
        "retry_base_s": 0.01,
        "retry_max_attempts": 3,
    }
    return Settings(_env_file=None, **values)


@pytest.fixture
def environment(settings: Settings) -> dict[str, str]:
    """The environment of a process that has these settings."""
    values = {}
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        values[name.upper()] = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    return dict(os.environ) | values


@pytest.fixture
def services(settings: Settings, mongo_url: str, mongo_database: str) -> Iterator[Services]:
    """The pipeline as an entry point has it."""
    with Services(settings) as services:
        yield services
    with MongoClient[dict[str, Any]](mongo_url) as client:
        client.drop_database(mongo_database)


@pytest.fixture
def raw_store(services: Services) -> RawStore:
    """The raw store, empty."""
    return services.raw_store


@pytest.fixture
def ledger(services: Services) -> Ledger:
    """The ledger, empty."""
    return services.ledger


@pytest.fixture
def queue(services: Services) -> MigrationQueue:
    """The migration queue, empty."""
    return services.queue


@pytest.fixture
def relational_store(services: Services) -> RelationalStore:
    """The relational store, empty."""
    return services.relational_store


@pytest.fixture
def database(services: Services, mongo_url: str, mongo_database: str) -> Iterator[Database[dict[str, Any]]]:
    """The raw store's database, for faults that are planted by hand."""
    assert services.raw_store
    with MongoClient[dict[str, Any]](mongo_url, tz_aware=True) as client:
        yield client[mongo_database]


@pytest.fixture
def sql(services: Services, relational_url: str) -> Iterator[Engine]:
    """The relational store, for looks and faults past the pipeline."""
    assert services.relational_store
    engine = create_engine(relational_url)
    yield engine
    engine.dispose()


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """The queue's Redis, for looks and faults past the pipeline."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def job(queue: MigrationQueue) -> Callable[[str], Job]:
    """Looks a job up."""

    def look_up(job_id: str) -> Job:
        return Job.fetch(job_id, connection=queue.rq.connection, serializer=JSONSerializer)

    return look_up


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Starts workers, and other commands."""
    with workers(environment, tmp_path) as start:
        yield start
