"""`.env.example` and docs/settings.md name every setting, with its default and what it means."""

import re
from pathlib import Path

from pydantic import SecretStr

from pipeline_poc.settings import SECRETS, Settings, load_settings
from pipeline_poc_tests.scripts import script

WRITER = script("settings-docs")
EXAMPLE: str = WRITER.EXAMPLE.read_text(encoding="utf-8")
DOCUMENT: str = WRITER.TABLE.read_text(encoding="utf-8")
NAMES = [name.upper() for name in Settings.model_fields]


def test_the_example_is_up_to_date() -> None:
    """`.env.example` is what scripts/settings-docs makes of the code: run it after a change."""
    assert WRITER.example() == EXAMPLE
    assert sorted(re.findall(r"^#([A-Z0-9_]+)=", EXAMPLE, re.MULTILINE)) == sorted(NAMES)


def test_the_table_is_up_to_date() -> None:
    """The table of docs/settings.md is what scripts/settings-docs makes of the code: run it after a change."""
    assert WRITER.with_table(DOCUMENT) == DOCUMENT
    assert re.findall(r"^\| `([A-Z0-9_]+)` \|", DOCUMENT.partition("## All settings")[2], re.MULTILINE) == NAMES


def test_a_row_tells_all_of_a_setting() -> None:
    """Type, bounds, default, unit, meaning and secrecy of a setting are what the code says."""
    rows = {line.split("`")[1]: line for line in DOCUMENT.splitlines() if line.startswith("| `")}
    meaning = {name.upper(): field.description for name, field in Settings.model_fields.items()}
    assert rows["RETRY_CAP_S"] == f"| `RETRY_CAP_S` | number above 0 | `60.0` s | {meaning['RETRY_CAP_S']} |  |"
    assert (
        rows["WORKER_COUNT"] == f"| `WORKER_COUNT` | whole number from 1 to 64 | `2` | {meaning['WORKER_COUNT']} |  |"
    )
    assert rows["SQL_URL"] == f"| `SQL_URL` | URL |  | {meaning['SQL_URL']} | yes |"
    assert rows["LOG_FORMAT"] == f"| `LOG_FORMAT` | `auto`, `text`, `json` | `auto` | {meaning['LOG_FORMAT']} |  |"
    assert {name.lower() for name, row in rows.items() if row.endswith("| yes |")} == SECRETS


def test_secrets_are_what_is_not_shown() -> None:
    """Secret is what its type hides, and the hashes of tokens."""
    typed = {name for name, field in Settings.model_fields.items() if SecretStr.__name__ in repr(field.annotation)}
    assert typed | {"api_read_token_hashes", "api_operate_token_hashes"} == SECRETS
    assert len(typed) == 7


def test_defaults_of_the_example_are_the_defaults(tmp_path: Path) -> None:
    """Uncommenting every line that has a value changes nothing."""
    uncommented = re.sub(r"^#([A-Z0-9_]+=.)", r"\1", EXAMPLE, flags=re.MULTILINE)
    (tmp_path / ".env").write_text(uncommented, encoding="utf-8")

    assert load_settings(env_file=tmp_path / ".env") == load_settings(env_file=None)
