"""Scripts of the project as modules, so that tests can call their functions."""

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "scripts"


def script(name: str) -> Any:
    """Load a script as a module."""
    loader = SourceFileLoader(name.replace("-", "_"), str(FOLDER / name))
    spec = spec_from_loader(loader.name, loader)
    assert spec
    module = module_from_spec(spec)
    sys.modules[loader.name] = module  # Dataclasses look for it there.
    loader.exec_module(module)
    return module
