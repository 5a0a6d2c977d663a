"""docs/extending.md, followed to the letter in a copy of the package: a model and a line make an entity."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import pipeline_poc
from pipeline_poc_tests.acceptance.programs import Programs

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(180)]

PACKAGE = Path(pipeline_poc.__file__).parent
WALK_THROUGH = PACKAGE.parent / "docs" / "extending.md"
LINES = {6: "six"}


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    """Programs of a copy of the package."""
    shutil.copytree(PACKAGE, tmp_path / "pipeline_poc", ignore=shutil.ignore_patterns("__pycache__"))
    programs = Programs(tmp_path, pythonpath=tmp_path)
    yield programs
    programs.kill_all()


def test_the_walk_through(programs: Programs) -> None:
    """The documented lines, and no other, take a new entity from the source to its table, reconciled."""
    text = WALK_THROUGH.read_text(encoding="utf-8")
    [model] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    [line] = re.findall(r"```diff\n         POSTS,\n\+(.*\n)", text)
    [command] = re.findall(r"^(ENTITIES=\S+) pipeline-poc up --once$", text, re.MULTILINE)
    entities = programs.folder / "pipeline_poc" / "entities.py"
    source = entities.read_text(encoding="utf-8")
    assert source.count("\n\nENTITIES = {") == source.count("\n        POSTS,\n") == 1
    source = source.replace("\n\nENTITIES = {", f"\n\n{model}\n\nENTITIES = {{").replace(
        "\n        POSTS,\n", f"\n        POSTS,\n{line}"
    )
    entities.write_text(source, encoding="utf-8")
    added = [each for each in (model + line).splitlines() if each]
    assert f"{LINES[len(added)]} lines" in text

    given = {"environment": "test", "entities": command.removeprefix("ENTITIES=")}
    said = programs.run("up", "--once", "--json", **given)
    assert said.status == 0, said.said
    outcomes = [json.loads(each) for each in said.out.splitlines()]
    assert [(one["entity"], one["ok"], one["ingestion"]["new"]) for one in outcomes] == [
        ("posts", True, 100),
        ("reviews", True, 100),
    ]
    assert programs.ask("--entity", "reviews", "reconcile", **given)["migrated"] == 100
