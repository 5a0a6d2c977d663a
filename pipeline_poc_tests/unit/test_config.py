"""`pipeline-poc config`: what is in force, where it comes from, what is wrong with it; and no secret."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pipeline_poc.cli import cli
from pipeline_poc.config_cli import misspelt
from pipeline_poc.settings import Settings

SECRET = "S3CRET"
WRONG_SETTING = 2
OTHERS = """
PATH HOME SHELL USER PWD TERM LANG LC_ALL HOSTNAME TZ VIRTUAL_ENV PYTHONPATH SSH_AUTH_SOCK XDG_DATA_DIRS
KUBERNETES_SERVICE_HOST KUBERNETES_PORT PIPELINE_POC_WEB_PORT PIPELINE_POC_WEB_SERVICE_HOST REDIS_PORT
REDIS_HOST MYSQL_HOST MYSQL_PORT MYSQL_DATABASE MONGO_HOST MONGO_USER DATABASE_URL API_KEY GITHUB_TOKEN
HTTP_PROXY NO_PROXY PORT HOST NODE_ENV WEB_CONCURRENCY SESSION_MANAGER SECRET_KEY DAGSTER_HOME
DAGSTER_MYSQL_URL SOURCE_DATE_EPOCH LOG_FILE
"""


@pytest.fixture(autouse=True)
def _kept_log() -> Iterator[None]:
    """The command sets up the log of its process, which here is the one of all tests."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before


def run(*arguments: str) -> Result:
    """Run the command; no secret is said."""
    result = CliRunner().invoke(cli, ["config", *arguments])
    assert SECRET not in result.output + result.stderr
    return result


def shown() -> dict[str, Any]:
    """Return the settings that the command shows to programs."""
    result = run("--json")
    assert result.exit_code == 0
    settings: dict[str, Any] = json.loads(result.stdout)["settings"]
    return settings


def test_every_setting_is_shown() -> None:
    """All of them, with their defaults, to programs and to people."""
    settings = shown()
    assert list(settings) == [name.upper() for name in Settings.model_fields]
    assert settings["BATCH_SIZE"] == {"value": 5000, "from": "default"}
    assert settings["MONGO_URL"] == {"value": None, "from": "default"}
    text = run().stdout
    assert [line.split()[0] for line in text.splitlines()] == list(settings)
    assert re.search(r"^ALLOW_EMBEDDED_STORES +default +false$", text, re.MULTILINE)
    assert re.search(r"^MONGO_URL +default +-$", text, re.MULTILINE)


def test_where_it_comes_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment wins over `.env`; a file is named."""
    (tmp_path / "secret").write_text(f"redis://:{SECRET}@host/0\n", encoding="utf-8")
    Path(".env").write_text("BATCH_SIZE=7\nQUEUE_WINDOW=8\n", encoding="utf-8")
    monkeypatch.setenv("QUEUE_WINDOW", "9")
    monkeypatch.setenv("WEB_ALLOWED_HOSTS", "a,b")
    monkeypatch.setenv("REDIS_URL_FILE", str(tmp_path / "secret"))
    settings = shown()
    assert settings["BATCH_SIZE"] == {"value": 7, "from": ".env"}
    assert settings["QUEUE_WINDOW"] == {"value": 9, "from": "environment"}
    assert settings["WEB_ALLOWED_HOSTS"] == {"value": ["a", "b"], "from": "environment"}
    assert settings["REDIS_URL"] == {"value": "redis://:***@host/0", "from": f"file {tmp_path / 'secret'}"}
    assert re.search(r"^WEB_ALLOWED_HOSTS +environment +a,b$", run().stdout, re.MULTILINE)


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a URL all but its secrets is shown, of other secrets nothing."""
    values = {
        "SOURCE_URL": f"https://host/posts?api_key={SECRET}",
        "MONGO_URL": f"mongodb://u:{SECRET}@a,b/?replicaSet=rs",
        "SQL_URL": f"mysql://u:{SECRET}@h/db",
        "SESSION_SECRET": f"https://{SECRET}{SECRET}{SECRET}{SECRET}{SECRET}",
        "API_TOKEN": SECRET,
        "API_READ_TOKEN_HASHES": "0" * 64,
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    settings = shown()
    assert {name: settings[name]["value"] for name in values} == {
        "SOURCE_URL": "https://host/posts?api_key=***",
        "MONGO_URL": "mongodb://u:***@a,b/?replicaSet=rs",
        "SQL_URL": "mysql://u:***@h/db",
        "SESSION_SECRET": "***",
        "API_TOKEN": "***",
        "API_READ_TOKEN_HASHES": "***",
    }
    assert "0" * 64 not in run().stdout


def test_all_that_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 2, with each wrong setting, and still with what may be misspelt."""
    for name, value in {"ENVIRONMENT": "production", "BATCH_SIZE": SECRET, "MONGO_URI": SECRET}.items():
        monkeypatch.setenv(name, value)
    result = run()
    assert result.exit_code == WRONG_SETTING
    assert all(f"{name} " in result.stderr for name in ("MONGO_URL", "REDIS_URL", "SQL_URL", "BATCH_SIZE"))
    assert "Note: MONGO_URI is no setting; MONGO_URL is, and is not set.\n" in result.stderr
    result = run("--json")
    assert result.exit_code == WRONG_SETTING
    assert json.loads(result.stdout)["error"] == "SettingsError"


def test_an_env_file_that_cannot_be_read() -> None:
    """It is an error like any other, said once."""
    Path(".env").write_bytes(b"\xff")
    result = run()
    assert result.exit_code == WRONG_SETTING
    assert result.stderr == "Error: .env can't be read: it is not UTF-8\n"


def test_whether_the_web_server_would_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is right for a worker need not be for the web server; that is said, and no error."""
    assert json.loads(run("--json").stdout)["webserver"] == "ok"
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.setenv("ALLOW_EMBEDDED_STORES", "true")
    result = run("--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["webserver"].startswith("API_OPERATE_TOKEN_HASHES is not set")
    assert "`webserver` would not start: API_OPERATE_TOKEN_HASHES is not set" in run().stdout


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MONGO_URI", "MONGO_URL"),
        ("mongodb_url", "MONGO_URL"),
        ("BATCHSIZE", "BATCH_SIZE"),
        ("LOGLEVEL", "LOG_LEVEL"),
        ("HEARTBEAT_TIMEOUT", "HEARTBEAT_TIMEOUT_S"),
        ("API_OPERATE_TOKEN_HASH", "API_OPERATE_TOKEN_HASHES"),
    ],
)
def test_misspelt_settings(name: str, meant: str) -> None:
    """A name that is nearly a setting's is noticed, unless the setting is set, by value or by file."""
    assert misspelt([name, "PATH"]) == {name.upper(): meant}
    assert misspelt([name, meant]) == {}
    if meant == "MONGO_URL":
        assert misspelt([name, "MONGO_URL_FILE"]) == {}


def test_no_false_alarms() -> None:
    """Variables of others, as they lie beside ours in compose, in a cluster and in a shell, are let be."""
    compose = (Path(__file__).parents[2] / "docker-compose.yml").read_text(encoding="utf-8")
    beside = re.findall(r"\$\{(\w+)", compose)
    assert len(beside) > 5
    assert misspelt([*OTHERS.split(), *beside]) == {}
