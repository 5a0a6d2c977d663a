"""Secrets: whatever goes wrong and whoever looks, no password, token or key is told."""

import contextlib
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from dagster import DagsterInstance
from dagster._serdes import serialize_value
from starlette.applications import Starlette

from pipeline_poc.chaos.servers import MariaDB
from pipeline_poc.errors import PipelineError, ServiceUnavailable
from pipeline_poc.logs import configure_logging
from pipeline_poc.orchestration.resources import close_services
from pipeline_poc.services import Services
from pipeline_poc.settings import Settings, load_settings
from pipeline_poc.web.auth import hash_of
from pipeline_poc_tests.definitions import defs
from pipeline_poc_tests.web.serving import served

MARK = "S3CR3T"
"""In every secret of these tests, and nowhere else."""
TOKEN = f"ppoc_{MARK}-operate"
DEAD = {
    "SOURCE_URL": f"http://someone:{MARK}-source@127.0.0.1:1/posts?api_key={MARK}-key",
    "MONGO_URL": f"mongodb://someone:{MARK}-mongo@127.0.0.1:1/?directConnection=true",
    "REDIS_URL": f"redis://someone:{MARK}-redis@127.0.0.1:1/0",
    "SQL_URL": f"mysql+pymysql://someone:{MARK}-sql@127.0.0.1:1/db?ssl_key_password={MARK}-ssl",
    "API_TOKEN": TOKEN,
    "SESSION_SECRET": f"{MARK}-session-secret-that-is-long-enough",
    "API_OPERATE_TOKEN_HASHES": hash_of(TOKEN),
    "API_READ_TOKEN_HASHES": hash_of(f"ppoc_{MARK}-read"),
    "ALERT_URLS": f"json://someone:{MARK}-hook@127.0.0.1:1/{MARK}-path",
    "SOURCE_MAX_ATTEMPTS": "1",
    "STORE_TIMEOUT_S": "0.3",
    "LOG_LEVEL": "DEBUG",
}
SECRETS = (MARK, hash_of(TOKEN), hash_of(f"ppoc_{MARK}-read"))
STORES: dict[str, Callable[[Services], object]] = {
    "source": lambda services: services.source.ping(),
    "source's answer": lambda services: services.ingest(),
    "raw store": lambda services: services.raw_store,
    "queue": lambda services: services.queue.ping(),
    "relational store": lambda services: services.relational_store,
}


def told(text: str) -> list[str]:
    """Return the secrets that a text tells, each with what stands around it."""
    return [text[max(0, text.find(secret) - 60) :][:120] for secret in SECRETS if secret in text]


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Settings]:
    """Settings, and the environment of them, whose every secret is marked and whose stores are away."""
    for name, value in DEAD.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    yield load_settings()
    close_services()


@pytest.fixture
def refusing(dead: Settings, mariadb: MariaDB, redis_url: str, mongo_url: str) -> Settings:
    """The same, but the stores are up, and refuse the login or take none."""
    mariadb.start()
    values: dict[str, Any] = {
        "sql_url": f"mysql+pymysql://pipeline:{MARK}-sql@127.0.0.1:{mariadb.port}/db",
        "redis_url": redis_url.replace("//", f"//someone:{MARK}-redis@"),
        "mongo_url": mongo_url.replace("//", f"//someone:{MARK}-mongo@"),
    }
    return load_settings(**values)


@pytest.fixture
def logged(capfd: pytest.CaptureFixture[str], dead: Settings) -> Iterator[Callable[[str, BaseException], str]]:
    """Logs an error with its traceback in a format; returns what was written."""
    root = logging.getLogger()
    before = root.handlers[:], root.level

    def write(log_format: Any, error: BaseException) -> str:
        configure_logging("DEBUG", log_format)
        try:
            logging.getLogger("pipeline_poc").error("it fails", exc_info=error, extra={"settings": dead})
        finally:
            root.handlers[:], level = before
            root.setLevel(level)
        return capfd.readouterr().err

    yield write
    root.handlers[:] = before[0]


def errors_of(settings: Settings) -> dict[str, PipelineError]:
    """Return what each store that can't be used raises."""
    errors = {}
    with Services(settings) as services:
        for name, use in STORES.items():
            try:
                use(services)
            except PipelineError as error:
                errors[name] = error
    return errors


def test_the_marks_are_found(dead: Settings) -> None:
    """The search of these tests finds what it is to find, and every secret setting is marked."""
    assert told(f"password={MARK}-sql")
    secret = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    assert {name.upper() for name in secret} <= set(DEAD)
    for name in secret - {"alert_urls"}:
        assert MARK in getattr(dead, name).get_secret_value()
    assert dead.alert_urls
    assert all(MARK in url.get_secret_value() for url in dead.alert_urls)


def test_no_object_tells_a_secret(dead: Settings) -> None:
    """Settings, services and stores can be printed, logged and formatted."""
    with Services(dead) as services:
        things = [dead, services, services.source, services._mongo_server, services.queue, services.queue.rq]
        for thing in [*things, services.queue.rq.connection, services._mongo_server.database, dead.model_copy()]:
            for text in (repr(thing), str(thing), f"{thing}"):
                assert told(text) == []
        for shown in (services.source.shown_url, services._mongo_server.shown_url, services.queue.shown_url):
            assert told(shown) == []


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_error_of_a_store_that_is_away_tells_a_secret(
    dead: Settings, logged: Callable[[str, BaseException], str], log_format: str
) -> None:
    """An outage of any store tells no secret: not as a text, nor with its causes, nor in a log with its traceback."""
    errors = errors_of(dead)
    assert set(errors) == set(STORES)
    check(errors, logged, log_format)


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_refused_login_tells_a_secret(
    refusing: Settings, logged: Callable[[str, BaseException], str], log_format: str
) -> None:
    """A store that refuses the login leads to an error that names the setting, and not what was refused."""
    errors = errors_of(refusing)
    assert {"raw store", "queue", "relational store"} <= set(errors)
    check(errors, logged, log_format)


def check(errors: dict[str, PipelineError], logged: Callable[[str, BaseException], str], log_format: str) -> None:
    """Look at errors as everybody may see them."""
    for name, error in errors.items():
        assert isinstance(error, ServiceUnavailable), name
        texts = [str(error), repr(error), *traceback.format_exception(error), logged(log_format, error)]
        assert "it fails" in texts[-1]
        for text in texts:
            assert told(text) == [], name


def test_unforeseen_errors_tell_no_secret(dead: Settings, logged: Callable[[str, BaseException], str]) -> None:
    """The log of an error that nobody foresaw shows where it happened, but no value of a variable there."""

    def fail(url: str) -> None:
        raise ZeroDivisionError(len(url))

    assert dead.sql_url is not None
    with pytest.raises(ZeroDivisionError) as caught:
        fail(dead.sql_url.get_secret_value())
    for log_format in ("json", "text"):
        text = logged(log_format, caught.value)
        assert "ZeroDivisionError" in text
        assert told(text) == []


COMMANDS = {
    ("status",): "text",
    ("ingest", "--json"): "text",
    ("enqueue",): "json",
    ("worker", "--burst"): "text",
}
"""Each with the format of its log."""


def test_no_program_tells_a_secret(dead: Settings) -> None:
    """Whatever a program prints and logs while everything is away, at the most talkative level, has no secret."""
    with contextlib.ExitStack() as stack:
        programs = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "pipeline_poc", *command],
                    env=dict(os.environ) | {"LOG_FORMAT": log_format},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
            for command, log_format in COMMANDS.items()
        ]
        for command, program in zip(COMMANDS, programs, strict=True):
            said, _ = program.communicate(timeout=60)
            assert program.returncode not in (0, None), command
            assert told(said) == [], command
            assert "Traceback" not in said
            assert "127.0.0.1:1" in said, command


def test_no_endpoint_tells_a_secret(dead: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """Health, metrics, the overview and all other looks tell no secret while everything is away, nor does their log."""
    caplog.set_level(logging.DEBUG)
    paths = ("/health", "/health/ready", "/metrics", "/pipeline/overview", "/openapi.json", "/data-ingestion/stats")
    with served(dead, Starlette()) as client:
        for path in (*paths, "/data-migration/stats", "/queue-jobs", "/quarantine", "/session", "/nowhere"):
            answer = client.get(path, headers={"Authorization": f"Bearer {TOKEN}"})
            assert told(f"{answer.headers}{answer.text}") == [], path
        assert "MONGO_URL" in client.get("/health", headers={"Authorization": f"Bearer {TOKEN}"}).text
        refused = client.get("/pipeline/overview", headers={"Authorization": f"Bearer {MARK}-wrong"})
        assert refused.status_code == httpx.codes.UNAUTHORIZED
        assert told(f"{refused.headers}{refused.text}") == []
    assert told(caplog.text) == []
    assert told(str([vars(record) for record in caplog.records])) == []


def test_dagster_is_told_no_secret(dead: Settings) -> None:
    """Neither the definitions nor the events of a run that fails, which Dagster keeps, have a secret."""
    for resource in (defs.resources or {}).values():
        assert told(f"{resource!r} {vars(resource)}") == []
    with DagsterInstance.ephemeral() as instance:
        result = defs.resolve_job_def("ingest_posts").execute_in_process(instance=instance, raise_on_error=False)
        assert not result.success
        kept = [record.event_log_entry for record in instance.get_records_for_run(result.run_id).records]
        text = " ".join(serialize_value(entry) for entry in kept)
        assert "ServiceUnavailable" in text
        assert told(text) == []
