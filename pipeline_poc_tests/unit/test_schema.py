"""Which schema works with which code, and what is said where one does not."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from alembic.script import ScriptDirectory

from pipeline_poc import migrations, mongo_schema
from pipeline_poc.errors import SchemaError
from pipeline_poc.schema import Schema, Upgrade

ROOT = Path(__file__).parents[2]


def schema(**others: Any) -> Schema:
    """Return the schema of a store of code that needs version 3."""
    values: dict[str, Any] = {"needed": 3, "found": 3, "works_from": 3} | others
    return Schema("MongoDB", "MONGO_URL", "mongodb://u:***@host/", **values)


@pytest.mark.parametrize(
    ("found", "works_from", "verdict"),
    [
        (0, 0, "older"),
        (2, 1, "older"),
        (3, 1, "current"),
        (3, 3, "current"),
        (4, 3, "newer"),
        (9, 1, "newer"),
        (4, 4, "too new"),
        (9, 5, "too new"),
        (2, 4, "too new"),  # Something is being taken away in this moment.
    ],
)
def test_verdicts(found: int, works_from: int, verdict: str) -> None:
    """Newer is fine where it says that it works with this code; nothing else than the same is, otherwise."""
    one = schema(found=found, works_from=works_from)
    assert one.verdict == verdict
    assert one.is_usable is (verdict in {"current", "newer"})
    for may_upgrade in (True, False):
        if verdict == "too new" or (verdict == "older" and not may_upgrade):
            with pytest.raises(SchemaError) as raised:
                one.must_be_upgraded(may_upgrade=may_upgrade)
            assert str(raised.value) == one.sentence()
        else:
            assert one.must_be_upgraded(may_upgrade=may_upgrade) is (verdict == "older")


@pytest.mark.parametrize(
    ("found", "end"),
    [
        ({}, "has schema version 3, as this code needs it"),
        ({"found": 0}, "has no schema yet, this code needs version 3: run `pipeline-poc db upgrade`"),
        (
            {"missing": ("the index posts.a_1", "the index posts.b_1")},
            (
                "has schema version 3 without the index posts.a_1 and the index posts.b_1, "
                "this code needs version 3: run `pipeline-poc db upgrade`"
            ),
        ),
        ({"found": 4}, "has schema version 4, which works with this code, though it needs only 3"),
        (
            {"found": 5, "works_from": 4},
            (
                "has schema version 5, which works with code for version 4 or newer, and this code knows up to 3: "
                "use the newer pipeline_poc that upgraded it"
            ),
        ),
    ],
)
def test_sentences(found: dict[str, Any], end: str) -> None:
    """One sentence names the store, its setting, what it has, what this code needs, and what to do."""
    assert schema(**found).sentence() == f"MongoDB at mongodb://u:***@host/ (MONGO_URL) {end}"


def test_what_an_upgrade_says() -> None:
    """An upgrade says from where to where it went, or that there was nothing to do."""
    done = Upgrade(schema(found=0), schema(), "but")
    assert done.sentence().endswith("(MONGO_URL): upgraded from no schema yet to schema version 3; but")
    assert Upgrade(schema(), schema()).sentence().endswith("left as it is, schema version 3")


def test_the_names_of_the_revisions() -> None:
    """Revisions are numbered one by one; what once stopped working with older code never works with it again."""
    found = [script.revision for script in ScriptDirectory.from_config(migrations.config()).walk_revisions()][::-1]
    matches = [re.fullmatch(r"(\d{4})(?:_from_(\d{4}))?", revision) for revision in found]
    assert all(matches), found
    numbers = [(int(match[1]), int(match[2] or match[1])) for match in matches if match]
    assert [number for number, _ in numbers] == [*range(1, len(numbers) + 1)]
    assert all(works_from <= number for number, works_from in numbers)
    assert all(before[1] <= after[1] for before, after in pairwise(numbers))
    assert 1 <= mongo_schema.WORKS_FROM <= mongo_schema.VERSION


def test_schemas_are_upgraded_before_anything_starts() -> None:
    """On one host and in a cluster, what opens the stores waits until `db upgrade` has ended well."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    assert services["schema"]["command"] == ["db", "upgrade"]
    ours = {name for name, service in services.items() if service["image"] == "pipeline-poc"} - {"schema"}
    waiting = {name for name in ours if "schema" in services[name].get("depends_on", {})}
    assert all(
        services[name]["depends_on"]["schema"]["condition"] == "service_completed_successfully" for name in waiting
    )
    waiting |= {name for name in ours if waiting & {*services[name].get("depends_on", {})}}
    assert ours - waiting == {"dagster-storage"}
    job = yaml.safe_load((ROOT / "deploy/kubernetes/storage/job.yaml").read_text(encoding="utf-8"))
    assert ["db", "upgrade"] in [container["args"] for container in job["spec"]["template"]["spec"]["containers"]]
