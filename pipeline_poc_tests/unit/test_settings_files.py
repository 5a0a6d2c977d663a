"""Secrets from files: `<NAME>_FILE` names the file with NAME."""

from pathlib import Path
from typing import Any

import pytest

from pipeline_poc.errors import SettingsError
from pipeline_poc.settings import SECRETS, load_settings

SECRET = "S3CRET"
VALUES = {name: f"https://u:{SECRET}@host/" for name in SECRETS if name.endswith("_url")} | {
    "mongo_url": f"mongodb://u:{SECRET}@host/",
    "redis_url": f"redis://:{SECRET}@host/0",
    "sql_url": f"mysql://u:{SECRET}@host/db",
    "session_secret": SECRET * 6,
    "api_token": SECRET,
    "alert_urls": f"slack://{SECRET}/x,\njson://u:{SECRET}@host/,mailto://u:{SECRET}@host?to=a@b.org,c@d.org",
    "api_read_token_hashes": "0" * 64,
    "api_operate_token_hashes": f"{'1' * 64},\n{'2' * 64}",
}
LISTS = {
    "api_read_token_hashes": ("0" * 64,),
    "api_operate_token_hashes": ("1" * 64, "2" * 64),
    "alert_urls": (
        f"slack://{SECRET}/x",
        f"json://u:{SECRET}@host/",
        f"mailto://u:{SECRET}@host?to=a@b.org,c@d.org",
    ),
}


def in_effect(name: str) -> Any:
    """Return a setting's value as it was written."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(plain, value))
        return value.get_secret_value() if hasattr(value, "get_secret_value") else value

    return plain(getattr(load_settings(), name))


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("name", sorted(SECRETS))
def test_each_secret_may_come_from_a_file(monkeypatch: pytest.MonkeyPatch, name: str, end: str, tmp_path: Path) -> None:
    """The file's content is the value, without newlines at its end."""
    (tmp_path / "secret").write_text(VALUES[name] + end, encoding="utf-8", newline="")
    monkeypatch.setenv(f"{name.upper()}_FILE", str(tmp_path / "secret"))
    assert in_effect(name) == LISTS.get(name, VALUES[name])


def test_spaces_belong_to_the_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only newlines at the end are taken off."""
    (tmp_path / "secret").write_text(f" {SECRET} \n", encoding="utf-8")
    monkeypatch.setenv("API_TOKEN_FILE", str(tmp_path / "secret"))
    assert in_effect("api_token") == f" {SECRET} "


def test_the_env_file_may_name_a_file(tmp_path: Path) -> None:
    """A line of `.env` will do; arguments win, as they win over all else."""
    (tmp_path / "secret").write_text(SECRET, encoding="utf-8")
    Path(".env").write_text(f"API_TOKEN_FILE={tmp_path / 'secret'}\n", encoding="utf-8")
    assert in_effect("api_token") == SECRET
    argument = load_settings(api_token="argument").api_token
    assert argument
    assert argument.get_secret_value() == "argument"


def refusal() -> str:
    """Return what is said of settings that are wrong; the secret is no part of it."""
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert SECRET not in str(raised.value)
    assert raised.value.__cause__ is None
    return str(raised.value)


@pytest.mark.parametrize("place", ["environment", ".env"])
def test_both_are_too_many(monkeypatch: pytest.MonkeyPatch, place: str, tmp_path: Path) -> None:
    """A secret given by value and by file is refused, and both are named; wherever they were given."""
    (tmp_path / "secret").write_text(VALUES["mongo_url"], encoding="utf-8")
    monkeypatch.setenv("MONGO_URL_FILE", str(tmp_path / "secret"))
    if place == ".env":
        Path(".env").write_text(f"MONGO_URL={VALUES['mongo_url']}\n", encoding="utf-8")
    else:
        monkeypatch.setenv("MONGO_URL", VALUES["mongo_url"])
    assert refusal() == "MONGO_URL is given by MONGO_URL_FILE, too: unset one of them"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "MONGO_URL can't be read from the file that MONGO_URL_FILE names: No such file or directory"),
        (b"\xff\xfe", "MONGO_URL can't be read from the file that MONGO_URL_FILE names: it is not UTF-8"),
        (b"\n", "MONGO_URL is set, but empty; unset it to get the default"),
        (b"http://u:S3CRET@host", "MONGO_URL must begin with mongodb:// or mongodb+srv://"),
    ],
)
def test_a_file_that_is_no_good(
    monkeypatch: pytest.MonkeyPatch, content: bytes | None, problem: str, tmp_path: Path
) -> None:
    """A file that is missing, no text, empty or holds a wrong value is named like any wrong setting."""
    if content is not None:
        (tmp_path / "secret").write_bytes(content)
    monkeypatch.setenv("MONGO_URL_FILE", str(tmp_path / "secret"))
    assert refusal() == problem


@pytest.mark.parametrize("value", ["", ".", f"mongodb://u:{SECRET}@host/", f"{SECRET}\udcff", SECRET * 100])
def test_a_secret_in_place_of_a_path_is_not_told(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Whoever mistakes the one for the other does not find the secret in a log."""
    monkeypatch.setenv("MONGO_URL_FILE", value)
    assert refusal().startswith("MONGO_URL can't be read from the file that MONGO_URL_FILE names: ")


def test_wrong_files_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Together with all else that is wrong."""
    for name, value in {"MONGO_URL_FILE": "missing", "SQL_URL_FILE": "missing", "BATCH_SIZE": "0"}.items():
        monkeypatch.setenv(name, value)
    problems = refusal().split("; ")
    assert {problem.split(" ")[0] for problem in problems} == {"MONGO_URL", "SQL_URL", "BATCH_SIZE"}


def test_production_looks_into_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A password that everybody knows is refused in a file as well."""
    (tmp_path / "secret").write_text("mongodb://u:CHANGE-ME@host/\n", encoding="utf-8")
    for name, value in {"ENVIRONMENT": "production", "ALLOW_EMBEDDED_STORES": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MONGO_URL_FILE", str(tmp_path / "secret"))
    assert refusal().startswith("MONGO_URL has no password, or one that everybody knows")
