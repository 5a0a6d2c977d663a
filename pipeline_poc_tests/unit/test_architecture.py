"""The house: importing does nothing, modules say what they are, drivers stay in their rooms."""

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline_poc
from pipeline_poc.records import REASONS
from pipeline_poc.settings import Settings

PACKAGE = Path(pipeline_poc.__file__).parent
MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages([str(PACKAGE)], "pipeline_poc.")
    # Entry points, and what only Alembic can import.
    if not name.endswith("__main__") and ".migrations." not in name
)
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.read_text(encoding="utf-8").strip())
DOCS = [*sorted((PACKAGE.parent / "docs").glob("*.md")), PACKAGE.parent / "README.md"]

GUARDED_IMPORT = """
import collections.abc, importlib, os, socket, sys

ours = set(sys.argv[2].split(","))
module = sys.argv[1]

class Guarded(collections.abc.MutableMapping):
    def __init__(self, real): self.real = real
    def check(self, name):
        if name in ours: raise AssertionError(f"{name} is read at import")
    def __getitem__(self, name): self.check(name); return self.real[name]
    def __contains__(self, name): self.check(name); return name in self.real
    def get(self, name, default=None): self.check(name); return self.real.get(name, default)
    def __setitem__(self, name, value): self.real[name] = value
    def __delitem__(self, name): del self.real[name]
    def __iter__(self): return iter(self.real)
    def __len__(self): return len(self.real)
    def copy(self): return dict(self.real)

def refuse(*_, **__): raise AssertionError("a socket is opened at import")

os.environ = Guarded(os.environ)
for name in ("connect", "connect_ex", "bind", "listen"):
    setattr(socket.socket, name, refuse)
socket.create_connection = socket.getaddrinfo = refuse
for name in module.split(","):
    importlib.import_module(name)
"""


def test_imports_do_nothing() -> None:
    """Importing any module connects to nothing and reads none of our environment variables."""
    names = ",".join(name.upper() for name in Settings.model_fields)
    command = [sys.executable, "-c", GUARDED_IMPORT, ",".join(MODULES), names]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(MODULES) > 30


def test_the_guard_works() -> None:
    """The guard of the test above notices what it looks for."""
    for statement in ("import os; os.environ.get('BATCH_SIZE')", "import socket; socket.create_connection(('h', 1))"):
        code = GUARDED_IMPORT.partition("for name in module.split")[0] + statement
        done = subprocess.run(
            [sys.executable, "-c", code, "", "BATCH_SIZE"], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 1
        assert "at import" in done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_docstrings(path: Path) -> None:
    """Every module says in a sentence what it is."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring
    assert docstring.splitlines()[0].rstrip(":").endswith((".", "pipeline", "``")), docstring


def test_reason_codes_are_documented() -> None:
    """Each reason code has a meaning; documentation that lists one lists all."""
    assert all(REASONS.values())
    texts = {path.name: path.read_text(encoding="utf-8") for path in DOCS}
    incomplete = {name for name, text in texts.items() if 0 < sum(code in text for code in REASONS) < len(REASONS)}
    assert not incomplete
