"""The fault suite finds what it is there to find: every promise is broken on purpose, and seen to be broken.

All of them take some minutes: `make mutations`. `make proofs` tries the first one.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline_poc
from pipeline_poc_tests.chaos.mutations import MUTATIONS, Mutation
from pipeline_poc_tests.conftest import Figures

pytestmark = [pytest.mark.mysql, pytest.mark.timeout(600)]

PACKAGE = Path(pipeline_poc.__file__).parent
RUNS = 8
"""Enough for every mutation to be found by nearly any seed; more are tried where it is not."""
TRIES = 3
CHOSEN = MUTATIONS if os.environ.get("MUTATIONS") == "all" else MUTATIONS[:1]


@pytest.mark.slow
@pytest.mark.parametrize("mutation", CHOSEN, ids=lambda mutation: mutation.name.replace(" ", "_"))
def test_mutation_is_found(mutation: Mutation, tmp_path: Path, measured: Figures) -> None:
    """The mistake breaks one of the promises that it is expected to break, and the suite says so."""
    shutil.copytree(PACKAGE, tmp_path / "pipeline_poc", ignore=shutil.ignore_patterns("__pycache__"))
    module = tmp_path / "pipeline_poc" / mutation.module
    text = module.read_text()
    assert text.count(mutation.right) == 1, f"the text of {mutation.name!r} is not in {mutation.module} once"
    module.write_text(text.replace(mutation.right, mutation.wrong))

    broken: set[int] = set()
    for seed in range(TRIES):
        report = tmp_path / f"report-{seed}.json"
        faults = [word for fault in mutation.faults for word in ("--fault", fault)]
        size = ["--faults", str(RUNS), "--posts", str(RUNS * 30), "--jobs", "1", "--exitfirst"]
        said = subprocess.run(
            [sys.executable, "-m", "pipeline_poc", "chaos", "--seed", str(seed), *size, *faults, "--json", str(report)],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert report.exists(), said.stderr
        runs = json.loads(report.read_text())["runs"]
        broken |= {violation["promise"] for run in runs for violation in run["violations"]}
        if broken & set(mutation.promises):
            assert said.returncode == 1
            measured(f"found with seed {seed}: promises {sorted(broken)} broken")
            return
    pytest.fail(f"not found in {TRIES * RUNS} runs; broken were {sorted(broken)}")


def test_every_promise_is_broken_by_some_mutation() -> None:
    """Nobody has to take a promise on trust."""
    assert {promise for mutation in MUTATIONS for promise in mutation.promises} == set(range(1, 9))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name.replace(" ", "_"))
def test_every_mutation_applies(mutation: Mutation) -> None:
    """The code that a mutation changes is still there, once."""
    assert (PACKAGE / mutation.module).read_text().count(mutation.right) == 1
