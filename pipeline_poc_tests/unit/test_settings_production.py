"""ENVIRONMENT: production refuses what is good for a trial only, and says what to do; test has made-up posts."""

import re
from pathlib import Path

import pytest
import yaml

from pipeline_poc.errors import SettingsError
from pipeline_poc.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
STORES = {
    "MONGO_URL": "mongodb://pipeline:{}@mongo:27017/?authSource=admin",
    "REDIS_URL": "redis://:{}@redis:6379/0",
    "SQL_URL": "mysql://pipeline:{}@mysql:3306/pipeline_poc",
}
GOOD = "h7Kq2mX9"


@pytest.fixture
def production(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which production starts."""
    monkeypatch.setenv("ENVIRONMENT", "production")
    for name, url in STORES.items():
        monkeypatch.setenv(name, url.format(GOOD))
    return monkeypatch


def test_production_starts(production: pytest.MonkeyPatch) -> None:
    """With stores of one's own, and passwords that nobody knows, a worker needs nothing else; no token either."""
    assert load_settings().environment == "production"


def test_development_refuses_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ENVIRONMENT, what production refuses is taken."""
    monkeypatch.setenv("FAIL_POINTS", "tick.begun=kill")
    monkeypatch.setenv("SQL_URL", STORES["SQL_URL"].format("password"))
    assert load_settings().environment == "development"


@pytest.mark.parametrize("name", STORES)
def test_no_embedded_store(production: pytest.MonkeyPatch, name: str) -> None:
    """A store whose URL is not set is refused, with both ways out; one of them is to allow it."""
    production.delenv(name)
    with pytest.raises(SettingsError, match=rf"^{name} is not set.*ALLOW_EMBEDDED_STORES=true$"):
        load_settings()
    production.setenv("ALLOW_EMBEDDED_STORES", "true")
    assert getattr(load_settings(), name.lower()) is None


@pytest.mark.parametrize("password", ["", "CHANGE-ME", "change-me", "%63hangeme", "password", "root", "pipeline"])
@pytest.mark.parametrize("name", ["MONGO_URL", "SQL_URL"])
def test_no_password_that_everybody_knows(production: pytest.MonkeyPatch, name: str, password: str) -> None:
    """Empty passwords, those of examples, those that are tried first, and the user's name are refused, unsaid."""
    production.setenv(name, STORES[name].format(password))
    with pytest.raises(SettingsError, match=rf"^{name} has no password, or one that everybody knows") as raised:
        load_settings()
    assert "@" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("SQL_URL", "mysql://root@mysql/pipeline_poc"),
        ("SQL_URL", "mariadb+pymysql://root@mysql/pipeline_poc"),
        ("MONGO_URL", "mongodb://u:secret@a:27017,b:27017/?replicaSet=rs"),
        ("REDIS_URL", "rediss://:@redis:6380/0"),
        ("REDIS_URL", "redis://default:admin@redis"),
    ],
)
def test_known_passwords_in_urls_of_all_kinds(production: pytest.MonkeyPatch, name: str, url: str) -> None:
    """Several hosts, no user, and no password where that means an empty one make no difference."""
    production.setenv(name, url)
    with pytest.raises(SettingsError, match=rf"^{name} has no password, or one that everybody knows"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("MONGO_URL", "mongodb://mongo:27017/"),
        ("MONGO_URL", "mongodb://CN%3Dpipeline@mongo/?tls=true&authMechanism=MONGODB-X509"),
        ("REDIS_URL", "redis://redis:6379/0"),
        ("REDIS_URL", "unix:///run/redis.sock"),
        ("SQL_URL", "sqlite:////srv/pipeline/rows.sqlite"),
    ],
)
def test_a_store_without_a_login_is_allowed(production: pytest.MonkeyPatch, name: str, url: str) -> None:
    """Certificates, sockets and networks of their own guard stores, too."""
    production.setenv(name, url)
    assert getattr(load_settings(), name.lower()).get_secret_value() == url


def test_no_faults_in_production(production: pytest.MonkeyPatch) -> None:
    """Fail points are refused."""
    production.setenv("FAIL_POINTS", "tick.begun=kill")
    with pytest.raises(SettingsError, match=r"^FAIL_POINTS is for tests of faults.*unset it$"):
        load_settings()


def test_all_that_production_refuses_is_named_at_once(production: pytest.MonkeyPatch) -> None:
    """Together with what is wrong anyway, and with settings that contradict each other."""
    production.delenv("MONGO_URL")
    wrong = {
        "SQL_URL": "mysql://u:root@h/db",
        "FAIL_POINTS": "tick.begun=kill",
        "BATCH_SIZE": "0",
        "RETRY_BASE_S": "90",
        "HEARTBEAT_INTERVAL_S": "20",
        "SESSION_SECRET": "short",
    }
    for name, value in wrong.items():
        production.setenv(name, value)
    with pytest.raises(SettingsError) as raised:
        load_settings()
    named = {problem.partition(" ")[0] for problem in str(raised.value).split("; ")}
    assert named == {"MONGO_URL", "SQL_URL", "FAIL_POINTS", "BATCH_SIZE", "RETRY_CAP_S", "HEARTBEAT_TIMEOUT_S"} | {
        "SESSION_SECRET"
    }


def test_no_made_up_posts_in_production() -> None:
    """Though every store may be embedded, the stand-in is never the source; in tests and development it may be."""
    assert not load_settings(environment="production", allow_embedded_stores=True).may_use_stand_in
    assert load_settings(environment="test").may_use_stand_in
    assert load_settings().may_use_stand_in


def test_an_environment_that_is_none_of_them(production: pytest.MonkeyPatch) -> None:
    """A misspelt environment is refused, not taken for development."""
    production.setenv("ENVIRONMENT", "prod")
    with pytest.raises(SettingsError, match=r"^ENVIRONMENT .*'production'"):
        load_settings()


def compose_environment(service: str, **variables: str) -> dict[str, str]:
    """Return what docker-compose.yml gives to a service, with these variables of the host."""
    document = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    given = document["services"][service]["environment"]

    def value(match: re.Match[str]) -> str:
        return variables.get(match[1], match[2] or "")

    pattern = r"\$\{(\w+)(?::-([^}]*)|:\?[^}]*)?\}"
    return {name: re.sub(pattern, value, text) for name, text in given.items() if text is not None}


@pytest.mark.parametrize("service", ["code", "webserver", "daemon", "worker", "schema"])
def test_compose_is_production(monkeypatch: pytest.MonkeyPatch, service: str) -> None:
    """Each service of ours runs in production, with settings that exist, and not with a password of an example."""
    passwords = dict.fromkeys(("MONGO_PASSWORD", "MYSQL_PASSWORD", "REDIS_PASSWORD"), GOOD)
    environment = compose_environment(service, **passwords, API_OPERATE_TOKEN_HASHES="0" * 64)
    assert {name.lower() for name in environment} - set(Settings.model_fields) == {"dagster_mysql_url"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load_settings().environment == "production"

    for name, value in compose_environment(service, **dict.fromkeys(passwords, "CHANGE-ME")).items():
        monkeypatch.setenv(name, value or "0" * 64)
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert str(raised.value).count("everybody knows") == 3
