"""The fault suite in short: real processes killed, stopped and starved, and no promise broken; `make chaos` is long."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline_poc.chaos.catalogue import FAULTS
from pipeline_poc.chaos.runs import draw
from pipeline_poc_tests.conftest import Figures

pytestmark = [pytest.mark.mysql, pytest.mark.timeout(600)]


def chaos(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command as a person would."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline_poc", "chaos", "--jobs", "1", *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def sums(said: "subprocess.CompletedProcess[str]", measured: Figures) -> dict[str, Any]:
    """Return what it counted; nothing may be broken."""
    assert said.returncode == 0, said.stderr[-5000:]
    found: dict[str, Any] = json.loads(said.stdout)
    measured(", ".join(f"{name} {value}" for name, value in found.items()))
    assert found["violations"] == 0
    return found


def test_fault_runs_break_no_promise(tmp_path: Path, measured: Figures) -> None:
    """Of five runs, each with another fault, none breaks a promise; and the faults really strike."""
    found = sums(chaos(tmp_path, "--seed", "1", "--faults", "5", "--posts", "150"), measured)

    assert found["fault_runs"] == 5
    assert found["faults_struck"] > found["faults_missed"]
    assert found["kinds_of_faults_struck"] >= 4


@pytest.mark.slow
def test_whole_pipeline_breaks_no_promise(tmp_path: Path, measured: Figures) -> None:
    """Daemon, web server, code server, ingestions and workers are killed while posts flow, and all posts arrive."""
    report = tmp_path / "report.json"
    found = sums(
        chaos(tmp_path, "--seed", "1", "--faults", "0", "--kills", "2", "--posts", "400", "--json", str(report)),
        measured,
    )

    assert found["sigkills"] >= 2
    assert found["posts"] >= 400
    blows = json.loads(report.read_text())["stack"]["blows"]
    assert sum(number for name, number in blows.items() if name.startswith("SIGKILL")) == found["sigkills"]


def test_same_seed_same_plan() -> None:
    """A run of a campaign can be played once more by its number: its plan depends on nothing else."""
    names = list(FAULTS)
    plans = [draw(3, number, 30, names) for number in range(50)]

    assert plans == [draw(3, number, 30, names) for number in range(50)]
    assert plans != [draw(4, number, 30, names) for number in range(50)]


def test_unknown_fault_is_refused(tmp_path: Path) -> None:
    """A fault that nobody has heard of is a wrong usage; the message lists those there are."""
    said = chaos(tmp_path, "--fault", "meteorite")

    assert said.returncode == 2
    assert "kill at migration.committed" in said.stderr
