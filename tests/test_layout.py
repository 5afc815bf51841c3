"""Imports point one way: tools -> commands -> chains, train, plots -> stages -> nn -> voxels, ops -> torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sparsereco"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
FIT = {"generator", "expected", "parameters", "fits", "combination", "hypotheses", "refine", "limit"}
"""Of the vertex system: the refinement, and what it fits with."""
STAGES = {  # per system
    "vertex": {"finder", "tracks", "decomposer", *FIT},
    "camera": {"pedestal", "select", "unet", "anomaly", "cluster", "calibrate", "embed", "observer", "threshold"},
    "infill": set(),
}
LIGHT = {"gaps", "channels", "checks", "config"}  # of the infill: they know neither torch nor models
LATE = {  # what comes after the stages of a system, and with which parts of the package it stands
    "chain": "chain",
    "events": "chain",
    "training": "training",
    "adversary": "training",
    "fidelity": "training",
    "discrimination": "training",
    "dense_generator": "training",
    "oracle": "chain",
    "baselines": "baselines",
    "metrics": "plots",
    "causes": "plots",
    "region_metrics": "plots",
    "plots": "plots",
    "figures": "plots",
}
LEVELS = [  # a part imports from its own level and from those before it; what is not named here is on the first one
    {"detector", "io", "infill.light"},  # knows neither torch nor models
    {"cli", "ops", "reference", "convolution", "scale"},
    {"voxels", "segments", "geometry", "rows"},
    {"nn", "sim", "checkpoint", *STAGES},  # a system: what its stages share
    {"stage"},
    {"chain", "train", "training", "baselines", "plots", "report", "display"},
    {"commands"},  # what tools/ assembles
]
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}
DOORS = {
    "spconv": "nn/sparse.py",
    "torch_scatter": "ops.py",
    "geant4_pybind": "sim/geant4.py",
    "dask": "scale.py",
    "distributed": "scale.py",
    "fsspec": "remote.py",
}


def imports(path: Path) -> set[str]:
    """Absolute names of all that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} line {node.lineno}: imports are absolute here"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(names: list[str]) -> str:
    """Which part of the layout sparsereco.<names> belongs to."""
    system, *inner = names
    if system not in STAGES or not inner:
        return system
    if inner[0] in STAGES[system]:
        return "stage"
    if system == "infill" and inner[0] in LIGHT:
        return "infill.light"
    return LATE.get(inner[0], system)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    here = part([*path.relative_to(PACKAGE).with_suffix("").parts])
    level = LEVEL.get(here, 0)
    for name in imports(path):
        top, *inner = name.split(".")
        assert top != "tools"
        assert top not in DOORS or path == PACKAGE / DOORS[top], f"only {DOORS.get(top)} imports {top}"
        assert top not in {"torch", "safetensors"} or level > 0, f"{here} does not know torch"
        if top != "sparsereco" or inner[0].startswith("_"):
            continue
        there = part(inner)
        assert LEVEL.get(there, 0) <= level, f"{here} imports {name}, which comes after it"
        assert not {path.parent.name, inner[0]} <= set(STAGES) or path.parent.name == inner[0], (
            "systems are on their own"
        )
        assert there != "sim" or here in {"sim", "training", "commands"}, "only training imports the simulation"
        assert here != "sim" or there in {"sim", "voxels", "segments", "ops"} or LEVEL.get(there, 0) == 0, (
            f"sim imports {name}"
        )
        if here == there == "stage" and inner[1] != path.stem:
            assert {path.stem, inner[1]} <= FIT or (path.stem == "select" and inner[1] in {"unet", "anomaly"}), (
                "stages do not import each other"
            )


def test_the_networks_on_the_cpu_do_not_load_spconv() -> None:
    code = "import sys, sparsereco.vertex.chain; sys.exit('spconv' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("module", ["sparsereco", "sparsereco.detector", "sparsereco.io", "sparsereco.cli"])
def test_light_modules_do_not_load_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
