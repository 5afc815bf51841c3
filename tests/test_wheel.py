"""What a wheel holds is all that the commands need: built without compiling, and run where no checkout is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from sparsereco.io import RECO, read


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What goes into a wheel, with the extension that is there already."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", folder, "build_py", "--build-lib"]
    subprocess.run([*command, folder / "lib"], cwd=ROOT, check=True, timeout=120)
    for extension in (ROOT / "sparsereco").glob("_C*.so"):
        shutil.copy(extension, folder / "lib" / "sparsereco")
    return folder / "lib"


def run(library: Path, folder: Path, *argv: str | Path) -> str:
    """What the command `sparsereco` of the wheel prints."""
    code = (
        f"import sparsereco, sys; assert {str(library)!r} in sparsereco.__file__; from sparsereco.commands import main"
    )
    environment = os.environ | {"PYTHONPATH": str(library), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", f"{code}; sys.exit(main.main())", *argv]
    return subprocess.run(command, cwd=folder, env=environment, check=True, timeout=120, stdout=-1, text=True).stdout


def files(*folders: Path) -> set[str]:
    """All files below some folders, each with the folder's name."""
    found = {path.relative_to(folder.parent) for folder in folders for path in folder.rglob("*") if path.is_file()}
    return {str(path) for path in found if path.suffix not in (".pyc", ".so")}


def test_the_files_are_all_there(library: Path) -> None:
    configs = {f"sparsereco/{name}" for name in files(ROOT / "configs")}
    assert files(library / "sparsereco") == files(ROOT / "sparsereco") | configs
    assert "sparsereco/configs/detectors/gap10.yaml" in configs


def test_events_are_reconstructed(library: Path, tmp_path: Path) -> None:
    sample = ROOT / "tests" / "data" / "demo.root"
    run(library, tmp_path, "reco", "vertex", sample, "-o", "reco.root", "-n", "20", "--device", "cpu", "-q")
    assert len(read(tmp_path / "reco.root", RECO)) == 20


def test_shipped_detectors_are_found(library: Path, tmp_path: Path) -> None:
    run(
        library,
        tmp_path,
        "simulate",
        "infill",
        "-o",
        "muons.root",
        "-n",
        "2",
        "--seed",
        "7",
        "--detector",
        "gap10",
        "-q",
    )
    assert (tmp_path / "muons.root").exists()
