"""A file that another program wrote, by its own names of tree and branches: the example of docs/formats.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import awkward as ak
import numpy as np
import pytest
import uproot

from sparsereco import cli
from sparsereco.io import RECO, read

if TYPE_CHECKING:
    from conftest import Reco

ROOT = Path(__file__).parents[1]
GEANT4 = ROOT.parent / "shared" / "data" / "cygno" / "geant4_input" / "HeCF4gas_AmBe_part0.root"


@pytest.fixture
def config() -> list[str]:
    """The settings that the page shows, as a file in the folder of the run."""
    text = (ROOT / "docs" / "formats.md").read_text()
    (block,) = re.findall(r"```yaml\n(branches:\n.*?)```", text, re.DOTALL)
    Path("names.yaml").write_text(block)
    return ["-c", "names.yaml", "--device", "cpu"]


def plain_file(path: str) -> dict[str, ak.Array]:
    """An n-tuple of hits like that of Geant4, written by uproot alone."""
    rng = np.random.default_rng(3)
    counts = [3, 0, 5]
    hits = {name: ak.unflatten(rng.uniform(1, 90, sum(counts)), counts) for name in ("x", "y", "z", "energyDep")}
    columns = {f"{name}_hits": column for name, column in hits.items()} | {"eventnumber": ak.Array([8, 9, 12])}
    with uproot.recreate(path) as file:
        file.mktree("nTuple", {name: column.type.content for name, column in columns.items()}).extend(columns)
    return columns


def compare(file: str, columns: dict[str, ak.Array]) -> None:
    """The averaging chain has put one vertex in the middle of all hits, and its light in their places."""
    events = read(file, RECO)
    assert events.event.tolist() == columns["eventnumber"].tolist()
    assert set(events.run.tolist()) == {0}
    assert ak.num(events.img_pe).tolist() == ak.num(columns["x_hits"]).tolist()
    for name, theirs in (("img_pe", "energyDep_hits"), ("img_x", "x_hits"), ("img_z", "z_hits")):
        np.testing.assert_allclose(ak.flatten(events[name]), ak.flatten(columns[theirs]), rtol=1e-6)


def test_a_file_of_plain_uproot(reco: Reco, config: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    columns = plain_file("other.root")
    assert reco("other.root:nTuple", *config, "--check") == cli.DONE
    assert "hit_pe [p.e.]   from energyDep_hits" in capsys.readouterr().out
    assert reco("other.root:nTuple", *config, "-o", "reco.root") == cli.DONE
    compare("reco.root", columns)


def test_a_file_of_geant4(reco: Reco, config: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if not GEANT4.is_file():
        pytest.skip("the n-tuple of Geant4 in ../shared is not there")
    assert reco(f"{GEANT4}:nTuple", *config, "--check") == cli.DONE
    lines = (ROOT / "docs" / "formats.md").read_text().partition("tree 'nTuple', 136 events\n")[2].splitlines()[:7]
    assert len(lines) == 7
    shown = capsys.readouterr().out
    assert "tree 'nTuple', 136 events" in shown
    assert all(line.strip() in shown for line in lines)
    assert reco(f"{GEANT4}:nTuple", *config, "-o", "reco.root") == cli.DONE
    compare("reco.root", uproot.open(f"{GEANT4}:nTuple").arrays())
