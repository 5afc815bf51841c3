"""Tools as modules: they are scripts, which no import finds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

TOOLS = Path(__file__).parents[1] / "tools"


def load_tool(name: str) -> ModuleType:
    """The script ``tools/<name>.py`` as a fresh module."""
    spec = importlib.util.spec_from_file_location(name.replace("/", "_") + "_tool", TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
