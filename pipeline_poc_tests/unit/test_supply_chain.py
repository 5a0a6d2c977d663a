"""What is installed is what was locked, and nothing that is read can carry code."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline_poc

ROOT = Path(__file__).parents[2]
LOCKS = sorted(path.name for path in ROOT.glob("requirements*.lock"))
CODE_CARRIERS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "jsonpickle", "joblib"}
FILES = sorted(Path(pipeline_poc.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("name", LOCKS)
def test_every_dependency_is_pinned_with_hashes(name: str) -> None:
    """Each requirement of a lock is one version, with at least one SHA-256, and comes from nowhere special."""
    entries = re.split(r"\n(?=\S)", (ROOT / name).read_text(encoding="utf-8").strip())
    assert entries
    for entry in entries:
        first, *hashes = entry.replace("\\\n", "").split("--hash=")
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[^\s;]+\s*(;.*)?", first.strip()), entry
        assert hashes, entry
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", text.strip()) for text in hashes), entry


def test_the_locks_are_the_ones_that_are_used() -> None:
    """Whatever installs from a lock insists on its hashes."""
    assert {"requirements.lock", "requirements-production.lock", "requirements-fuzz.lock"} <= set(LOCKS)
    for name in ("Makefile", "Dockerfile", "scripts/check-dist"):
        text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
        installing = [line for line in text.splitlines() if re.search(r"(?:install|sync) --.*\.lock", line)]
        assert installing, name
        assert all("--require-hashes" in line for line in installing), installing


def imports_of(path: Path) -> set[str]:
    """Return the names of the packages that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {(node.module or "").partition(".")[0]} | {alias.name for alias in node.names}
    return found


def test_nothing_that_carries_code_is_read() -> None:
    """No module knows pickle or its kin, nor gives RQ a serializer that does."""
    for path in FILES:
        assert imports_of(path) & (CODE_CARRIERS | {"DefaultSerializer", "PickleSerializer"}) == set(), path
        assert not re.search(r"\b(?:eval|exec)\(", path.read_text(encoding="utf-8")), path
    assert "JSONSerializer" in imports_of(Path(pipeline_poc.__file__).parent / "migration_queue.py")


def test_an_audit_finds_what_is_vulnerable(tmp_path: Path) -> None:
    """An audit ends with 1 where a locked version has an advisory, with 0 where none has or nobody could say."""
    folder = tmp_path / "advisories" / "vulns" / "some-thing"
    folder.mkdir(parents=True)
    events = '[{introduced: "1.0"}, {fixed: "1.4"}]'
    advisory = f'id: PYSEC-1\naffected:\n- ranges: [{{type: ECOSYSTEM, events: {events}}}]\n  versions: ["0.9"]\n'
    (folder / "PYSEC-1.yaml").write_text(advisory, encoding="utf-8")
    lock = tmp_path / "some.lock"
    shutil.copy(ROOT / "scripts" / "audit", tmp_path / "audit")
    for version, status in {"0.9": 1, "0.8": 0, "1.0": 1, "1.3.9": 1, "1.4": 0, "2.0": 0}.items():
        lock.write_text(f"some_thing=={version} \\\n    --hash=sha256:{'0' * 64}\n", encoding="utf-8")
        command = [sys.executable, str(tmp_path / "audit"), "--advisories", str(tmp_path / "advisories"), str(lock)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, "PYSEC-1" in done.stdout) == (status, bool(status)), (version, done)
    command[3] = str(tmp_path / "nowhere")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, "NOT CHECKED" in done.stdout) == (0, True)
