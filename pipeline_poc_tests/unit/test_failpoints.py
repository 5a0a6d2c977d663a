"""Fail points strike where and when they were asked to, and never unasked."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import pipeline_poc
from pipeline_poc import failpoints
from pipeline_poc.errors import SettingsError, TransientError
from pipeline_poc.settings import load_settings


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    """No test leaves a point armed."""
    yield
    failpoints.arm(None)


def test_nothing_happens_unasked() -> None:
    """Every point is passed where none is armed."""
    for point in failpoints.POINTS:
        failpoints.reach(point)


def test_strikes_once_at_the_hit_asked_for() -> None:
    """The third hit fails; the ones before and after it, and other points, do not."""
    failpoints.arm("migration.started=fail:3,tick.begun=crash")
    failpoints.reach("migration.started")
    failpoints.reach("migration.started")
    with pytest.raises(TransientError):
        failpoints.reach("migration.started")
    failpoints.reach("migration.started")
    with pytest.raises(RuntimeError):
        failpoints.reach("tick.begun")


@pytest.mark.parametrize(
    "text", ["nowhere=kill", "tick.begun", "tick.begun=dance", "tick.begun=kill:0", "tick.begun=kill:x"]
)
def test_wrong_settings_are_refused(text: str) -> None:
    """A setting that names no point, no action or no hit says so."""
    with pytest.raises(SettingsError, match="FAIL_POINTS"):
        load_settings(env_file=None, fail_points=text)


def test_each_point_is_reached_in_one_place() -> None:
    """The table of fail points is what the code has, no more and no less."""
    code = "".join(path.read_text() for path in Path(pipeline_poc.__file__).parent.glob("*.py"))
    reached = re.findall(r'failpoints\.reach\("([a-z.]+)"\)', code)

    assert sorted(reached) == sorted(failpoints.POINTS)


def test_the_documented_points_are_these() -> None:
    """The table of docs/reliability.md has every fail point with its meaning, and no other."""
    text = (Path(pipeline_poc.__file__).parents[1] / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `([a-z]+\.[a-z]+)` \| (.+) \|$", text, re.MULTILINE)) == failpoints.POINTS
