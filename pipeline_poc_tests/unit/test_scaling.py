"""docs/scaling.md: its model agrees with what was measured, and its tables are what the model says."""

import re
from pathlib import Path

import pytest

from pipeline_poc.settings import Settings
from pipeline_poc_tests.scripts import script

TEXT = (Path(__file__).parents[2] / "docs/scaling.md").read_text("utf-8")
MODEL = script("scaling-model")


def test_the_model_agrees_with_what_was_measured() -> None:
    """One worker is as quick as it says; where cores are full, it is too good by less than is planned for."""
    found = {workers: MODEL.throughput(workers) / measured for workers, measured in MODEL.MEASURED.items()}
    assert found[1] == pytest.approx(1, abs=0.05)
    assert all(1 <= ratio <= 1 / MODEL.BUSY for workers, ratio in found.items() if workers > 1)


def test_the_model_has_the_defaults_of_the_code() -> None:
    """Batch and window are those of the settings."""
    plan = MODEL.Plan(1)
    fields = Settings.model_fields
    assert (plan.batch, plan.window) == (fields["batch_size"].default, fields["queue_window"].default)


def test_the_tables_are_those_of_the_model() -> None:
    """What stands in the document is what the script prints; the two plans that take long are not played again."""
    for line in MODEL.compared():
        assert line in TEXT
    for plan in MODEL.PLANS[:-2]:
        assert MODEL.row(plan) in TEXT
    assert len(re.findall(r"^\|(?: [\d,.]+(?: s)? \|){10}$", TEXT, re.MULTILINE)) == len(MODEL.PLANS)
