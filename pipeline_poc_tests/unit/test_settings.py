"""Settings: read once, checked as a whole, secret where they may hold a password."""

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from pipeline_poc.errors import SettingsError
from pipeline_poc.settings import Settings, load_settings

SECRET = "S3CRET"


def test_defaults_need_nothing() -> None:
    """Without any setting everything is embedded, and made-up posts may be used."""
    settings = load_settings()
    assert settings == Settings(_env_file=None)
    assert (settings.source_url, settings.mongo_url, settings.redis_url, settings.sql_url) == (None,) * 4
    assert settings.may_use_stand_in


WRONG = [
    ("SOURCE_URL", "ftp://S3CRET", "must begin with http:// or https://"),
    ("SOURCE_URL", "https://", "names no host"),
    ("ALERT_URLS", "S3CRET", "must be URLs of Apprise"),
    ("SOURCE_TIMEOUT_S", "0", "greater than 0"),
    ("SOURCE_MAX_ATTEMPTS", "S3CRET", "valid integer"),
    ("MONGO_URL", "S3CRET", "must begin with mongodb://"),
    ("MONGO_URL", "mongodb://user:S3CRET@", "names no host"),
    ("MONGO_URL", "mongodb://user:S3CRET℀@host", "is no valid URL"),
    ("MONGO_DATABASE", "S3CRET.db", "match pattern"),
    ("MONGO_DATABASE", "S3CRET db", "match pattern"),
    ("MONGO_DATABASE", "x" * 64, "at most 63"),
    ("REDIS_URL", "http://user:S3CRET@host", "must begin with redis://"),
    ("QUEUE_NAME", "S3CRET/x", "match pattern"),
    ("SQL_URL", "postgresql://user:S3CRET@host/db", "must begin with mysql://"),
    ("SQL_URL", "mysql://user:S3CRET[@host/db", "is no valid URL"),
    ("BATCH_SIZE", "0", "greater than or equal to 1"),
    ("BATCH_SIZE", "50001", "less than or equal to 50000"),
    ("QUEUE_WINDOW", "-1", "greater than or equal to 1"),
    ("STORE_TIMEOUT_S", "nan", "greater than 0"),
    ("RETRY_MAX_ATTEMPTS", "1.5", "valid integer"),
    ("WEB_PORT", "70000", "less than or equal to 65535"),
    ("LOG_LEVEL", "S3CRET", "'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
    ("LOG_FORMAT", "xml", "'auto', 'text' or 'json'"),
]


@pytest.mark.parametrize(("name", "value", "problem"), WRONG)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str) -> None:
    """An error names the setting and what is wrong with it, and shows no part of its value."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    text = str(caught.value)
    assert text.startswith(f"{name} ")
    assert problem in text
    assert SECRET not in text
    assert caught.value.__cause__ is None


def test_all_wrong_settings_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several wrong settings are one error that names each."""
    names = {name: value for name, value, _ in WRONG}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert {problem.split(" ")[0] for problem in str(caught.value).split("; ")} == set(names)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_an_empty_setting_is_wrong(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A setting that is set to nothing, as by a broken deployment, is an error, not the default."""
    monkeypatch.setenv(name.upper(), "")
    with pytest.raises(SettingsError, match=rf"^{name.upper()} is set, but empty"):
        load_settings()


def test_the_env_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`.env` of the working directory is read; the environment wins over it, arguments over both."""
    Path(".env").write_text("BATCH_SIZE=7\nQUEUE_WINDOW=8\nQUEUE_NAME=file\nSOMETHING_ELSE=1\n", encoding="utf-8")
    monkeypatch.setenv("QUEUE_WINDOW", "9")
    monkeypatch.setenv("QUEUE_NAME", "environment")
    settings = load_settings(queue_name="argument")
    assert (settings.batch_size, settings.queue_window, settings.queue_name) == (7, 9, "argument")
    assert load_settings(env_file=None).batch_size == Settings.model_fields["batch_size"].default
    assert load_settings(env_file=tmp_path / "missing").queue_window == 9


def test_an_error_in_the_env_file() -> None:
    """What is wrong in `.env` is named like the rest."""
    Path(".env").write_text("BATCH_SIZE=S3CRET\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"^BATCH_SIZE ") as caught:
        load_settings()
    assert SECRET not in str(caught.value)


def test_settings_are_frozen() -> None:
    """Nothing changes settings once they are read."""
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().batch_size = 1  # type: ignore[misc]


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """No URL, which may hold a password, is in any text or dump of the settings."""
    urls = {
        "SOURCE_URL": "https://u:S3CRET@h",
        "MONGO_URL": "mongodb://u:S3CRET@h",
        "REDIS_URL": "redis://:S3CRET@h",
        "SQL_URL": "mysql://u:S3CRET@h/db",
    }
    for name, value in urls.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    for text in (repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump())):
        assert SECRET not in text
    assert not settings.may_use_stand_in
    for name, value in urls.items():
        secret = getattr(settings, name.lower())
        assert isinstance(secret, SecretStr)
        assert secret.get_secret_value() == value


@pytest.mark.parametrize("name", ["SOURCE_URL", "MONGO_URL", "REDIS_URL", "SQL_URL"])
def test_no_made_up_posts_in_a_store_that_somebody_chose(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """One set URL is enough: the stand-in must not mix its posts with real ones."""
    values = {"SOURCE_URL": "http://h", "MONGO_URL": "mongodb://h", "REDIS_URL": "redis://h", "SQL_URL": "sqlite:///x"}
    monkeypatch.setenv(name, values[name])
    assert not load_settings().may_use_stand_in


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MONGO_URL", "mongodb+srv://cluster.example.org/"),
        ("MONGO_URL", "mongodb://a:27017,b:27017,c:27017/?replicaSet=rs"),
        ("REDIS_URL", "rediss://:p@h:6380/1"),
        ("REDIS_URL", "unix:///run/redis.sock"),
        ("SQL_URL", "sqlite:////var/lib/x.db"),
        ("SQL_URL", "mariadb+pymysql://u:p%40ss@h:3307/db?ssl_disabled=true"),
    ],
)
def test_urls_of_all_kinds(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Every kind of URL that a store understands is taken."""
    monkeypatch.setenv(name, value)
    assert getattr(load_settings(), name.lower()).get_secret_value() == value


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"HEARTBEAT_INTERVAL_S": "20"}, "HEARTBEAT_TIMEOUT_S must be at least twice HEARTBEAT_INTERVAL_S"),
        ({"RETRY_BASE_S": "90"}, "RETRY_CAP_S must not be below RETRY_BASE_S"),
    ],
)
def test_settings_that_contradict_each_other(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], message: str
) -> None:
    """Two settings that make no sense together are both named."""
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert str(raised.value) == message


def test_every_setting_is_described() -> None:
    """Each setting has a description, a sentence."""
    for name, field in Settings.model_fields.items():
        assert (field.description or "").endswith((".", "posts")), name


def test_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policies of source and jobs have the numbers of the settings."""
    for name, value in {"SOURCE_MAX_ATTEMPTS": "2", "RETRY_MAX_ATTEMPTS": "5", "RETRY_BASE_S": "3"}.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert (settings.source_policy.max_attempts, settings.job_policy.max_attempts) == (2, 5)
    assert settings.source_policy.base_s == settings.job_policy.base_s == 3
    assert settings.source_policy.cap_s == settings.job_policy.cap_s == settings.retry_cap_s
