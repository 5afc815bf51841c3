"""Tools as modules: they are scripts, which no import finds."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

TOOLS = Path(__file__).parents[1] / "tools"


def load_tool(name: str) -> ModuleType:
    """The script ``tools/<name>.py`` as a fresh module."""
    spec = importlib.util.spec_from_file_location(name.replace("/", "_") + "_tool", TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


_WITHOUT = """
import runpy, sys
heavy, *sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    assert not stop.code
loaded = set(heavy.split(",")) & set(sys.modules)
assert not loaded, loaded
"""


def run_without(name: str, words: list[str], heavy: set[str]) -> subprocess.CompletedProcess[str]:
    """Runs ``tools/<name>.py`` in a process of its own, which fails where it has loaded one of some modules."""
    command = [sys.executable, "-c", _WITHOUT, ",".join(heavy), str(TOOLS / f"{name}.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)
