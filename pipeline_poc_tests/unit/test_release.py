"""What is released: sdist and wheel have what they should and nothing else, and the facts about them agree."""

import os
import re
import shutil
import subprocess
import tarfile
import tomllib
from email.parser import Parser
from itertools import chain
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

from pipeline_poc_tests.scripts import script

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSION: str = PROJECT["version"]
NAME = f"pipeline_poc-{VERSION}"
EPOCH = 1_700_000_000
ACTIONS = [yaml.safe_load(path.read_text("utf-8")) for path in (ROOT / ".github" / "workflows").glob("*.yml")]


def project_files() -> list[str]:
    """Return what belongs to the project: what git knows, or in an unpacked sdist, what setuptools put there."""
    if (ROOT / ".git").exists():
        # CI's folder may belong to somebody else.
        command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
        names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    else:
        names = (ROOT / "pipeline_poc.egg-info" / "SOURCES.txt").read_text(encoding="utf-8").splitlines()
    return [name for name in names if (ROOT / name).is_file() and ".egg-info/" not in name]


def files_in(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder with what is in them."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's own files."""
    target = tmp_path_factory.mktemp("tree")
    for name in project_files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target / name)
    return target


@pytest.fixture(scope="module")
def expected(tree: Path) -> dict[str, bytes]:
    """What is in those files, before anything is built there."""
    return files_in(tree)


@pytest.fixture(scope="module")
def built(tree: Path, expected: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist and the wheel."""
    sdist, wheel = script("build-dist").build(tree, tmp_path_factory.mktemp("dist"), EPOCH)
    return sdist, wheel


def test_sdist_is_the_whole_project(built: tuple[Path, Path], expected: dict[str, bytes], tmp_path: Path) -> None:
    """From the sdist everything can be built, tested and linted; beside it is only what setuptools adds."""
    with tarfile.open(built[0]) as archive:
        archive.extractall(tmp_path, filter="data")
    found = files_in(tmp_path / NAME)
    added = {name for name in found.keys() - expected.keys() if ".egg-info/" not in name}
    assert added <= {"PKG-INFO", "setup.cfg"}
    assert {name: found.get(name) for name in expected} == expected


def test_wheel_is_the_package_alone(built: tuple[Path, Path], expected: dict[str, bytes]) -> None:
    """The wheel has every file of the package, none of tests or benchmarks, and the licence."""
    with ZipFile(built[1]) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    about = f"{NAME}.dist-info/"
    package = {name: content for name, content in found.items() if not name.startswith(about)}
    assert package == {name: content for name, content in expected.items() if name.startswith("pipeline_poc/")}
    # By name what is easily forgotten, since it is not Python.
    assert package.keys() >= {"pipeline_poc/py.typed", "pipeline_poc/dagster.yaml", "pipeline_poc/web/static/live.js"}
    names = {name.removeprefix(about) for name in found.keys() - package.keys()}
    assert names == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}
    metadata = Parser().parsestr(found[f"{about}METADATA"].decode())
    assert (metadata["Version"], metadata["Requires-Python"]) == (VERSION, PROJECT["requires-python"])


def test_another_build_is_the_same(built: tuple[Path, Path], tree: Path, tmp_path: Path) -> None:
    """Built elsewhere, from files with other times and modes, both are the same byte by byte."""
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tree, elsewhere, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns("*.egg-info"))
    for path in elsewhere.rglob("*"):
        executable = os.access(tree / path.relative_to(elsewhere), os.X_OK)
        path.chmod(0o775 if executable else 0o664)
        os.utime(path, (EPOCH - 1, EPOCH - 1))
    again: tuple[Path, Path] = script("build-dist").build(elsewhere, tmp_path, EPOCH)
    for one, other in zip(built, again, strict=True):
        assert (one.name, one.read_bytes()) == (other.name, other.read_bytes())


def test_changelog_and_version_agree() -> None:
    """The newest version of the changelog is the one of pyproject.toml; above it is at most what is not released."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+)\](?: - \d{4}-\d\d-\d\d)?$", text, re.MULTILINE)
    assert len(headings) == len(re.findall(r"^## ", text, re.MULTILINE))
    assert "Unreleased" not in headings[1:]
    assert [heading for heading in headings if heading != "Unreleased"][:1] in ([], [VERSION])


def test_workflows_run_what_there_is() -> None:
    """CI tests every Python that we say we run on; each target and script that a workflow calls exists."""
    classifiers = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    jobs = list(chain.from_iterable(workflow["jobs"].values() for workflow in ACTIONS))
    [tested] = [job["strategy"]["matrix"]["python"] for job in jobs if "strategy" in job]
    assert tested == classifiers
    commands = "\n".join(step.get("run", "") for job in jobs for step in job.get("steps", ()))
    targets = set(re.findall(r"\bmake ([a-z-]+)", commands))
    scripts = set(re.findall(r"\b(?:bash |scripts/)(\S+)", commands))
    assert targets
    assert targets <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert all((ROOT / name).is_file() or (ROOT / "scripts" / name).is_file() for name in scripts)
