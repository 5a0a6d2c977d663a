"""`.env.example` names every setting, with its default and what it means."""

import inspect
import re
from pathlib import Path

from pipeline_poc.settings import Settings, load_settings

EXAMPLE = Path(__file__).parents[2] / ".env.example"
HEADER = """\
# Every setting, with its default. Copy what you want to change to .env, without the # before it.
# A variable of the environment wins over .env.
"""


def expected() -> str:
    """Return what the file has to be; a blank line in the class begins a new group."""
    groups: list[list[str]] = [[]]
    for line in inspect.getsource(Settings).split("\n"):
        field = re.match(r"    ([a-z0-9_]+):", line)
        if not line:
            groups.append([])
        elif field and field[1] in Settings.model_fields:
            groups[-1].append(_lines(field[1]))
    return "\n".join([HEADER, *("".join(group) for group in groups if group)])


def _lines(name: str) -> str:
    field = Settings.model_fields[name]
    default = "" if field.default is None else field.default
    return f"# {field.description}\n#{name.upper()}={default}\n"


def test_example_tells_every_setting() -> None:
    """The file is exactly what the settings say; where it isn't, it is enough to paste what the failure shows."""
    text = EXAMPLE.read_text(encoding="utf-8")

    assert text == expected(), f"{EXAMPLE.name} has to be:\n{expected()}"
    assert set(re.findall(r"^#([A-Z0-9_]+)=", text, re.MULTILINE)) == {name.upper() for name in Settings.model_fields}


def test_defaults_of_the_example_are_the_defaults(tmp_path: Path) -> None:
    """Uncommenting every line that has a value changes nothing."""
    uncommented = re.sub(r"^#([A-Z0-9_]+=.)", r"\1", EXAMPLE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (tmp_path / ".env").write_text(uncommented, encoding="utf-8")

    assert load_settings(env_file=tmp_path / ".env") == load_settings(env_file=None)
