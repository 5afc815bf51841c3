"""Small ROOT files with hits, and `tools/reco.py` with a chain that only averages them."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import awkward as ak
import numpy as np
import pytest
import uproot
from hypothesis import settings
from tool_loader import load_tool

from sparsereco import cli
from sparsereco.io import HITS, RECO, RootWriter
from sparsereco.vertex.config import VertexConfig

if TYPE_CHECKING:
    from sparsereco.vertex.light import LightYield

WriteHits = Callable[..., Path]
Reco = Callable[..., int]
RunTool = Callable[..., int]

ROOT = Path(__file__).parent.parent

# The same examples in every run, and no test that fails because the machine is busy.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def bank() -> Any:
    """600 tracks from Geant4."""
    if importlib.util.find_spec("geant4_pybind") is None:
        pytest.skip("geant4-pybind is not installed: pip install 'sparsereco[sim]'")
    from sparsereco.sim.bank import make_bank

    return make_bank(600, seed=11)


def some_hits(n_events: int, first_event: int = 0, seed: int = 1) -> ak.Array:
    """Events with 0 to 5 random hits, on voxel centres of the default detector; the first has none, the second one."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 6, n_events)
    counts[:2] = range(min(n_events, 2))
    total = int(counts.sum())
    index = rng.integers(0, (192, 56, 184), (total, 3))
    position = (index - np.array([96, 28, 92]) + 0.5) * 10.0
    flat = {
        "hit_x": position[:, 0],
        "hit_y": position[:, 1],
        "hit_z": position[:, 2],
        "hit_pe": rng.gamma(2, 20, total),
    }
    event = np.arange(first_event, first_event + n_events)
    fields: dict[str, Any] = {"run": np.full(n_events, 7, "i4"), "subrun": np.full(n_events, 3, "i4"), "event": event}
    fields |= {name: ak.unflatten(values.astype("f4"), counts) for name, values in flat.items()}
    return ak.zip(fields, depth_limit=1)


@pytest.fixture
def write_hits(tmp_path: Path) -> WriteHits:
    """Writes events to a file in the temporary folder, as a TTree or an RNTuple, and gives its path."""

    def write(name: str, events: ak.Array, *, tree: str = "hits", rntuple: bool = False) -> Path:
        path = tmp_path / name
        if rntuple:
            with uproot.recreate(path) as file:
                types = {b.name: f"var * {b.dtype}" if b.name in HITS.counters else b.dtype for b in HITS.branches}
                ntuple = file.mkrntuple(tree, types)
                if len(events):
                    ntuple.extend({b.name: ak.values_astype(events[b.name], b.dtype) for b in HITS.branches})
        else:
            with RootWriter(path) as writer:
                writer.create(tree, HITS)
                writer.extend(tree, HITS, events)
        return path

    return write


class AveragingChain:
    """Stands in for `VertexChain`: one vertex in the middle of all hits, and all of them as the image of its proton."""

    def __init__(self, config: VertexConfig, device: str) -> None:
        if config.finder_weights is not None:
            from sparsereco.checkpoint import metadata

            metadata(config.finder_weights)
        self.config, self.device = config, device
        self.fits: Counter[str] = Counter()
        self.light_scale = 1.0 if config.light_scale is None else config.light_scale

    def measure_light(self, events: ak.Array) -> LightYield:
        from sparsereco.vertex.light import nothing_seen

        return nothing_seen()

    def __call__(self, events: ak.Array) -> ak.Array:
        counts = np.asarray(ak.num(events["hit_pe"]))
        one = {counter: (counts > 0).astype(int) for counter in ("nvtx", "npart")}
        lengths = one | {"ntrk": np.zeros_like(counts), "nimg": counts}
        fields = {name: events[name] for name in ("run", "subrun", "event")}
        for counter, group in RECO.groups.items():
            for branch in group:
                fields[branch.name] = ak.unflatten(np.zeros(lengths[counter].sum(), branch.dtype), lengths[counter])
        for axis in "xyz":
            sums = np.asarray(ak.sum(events[f"hit_{axis}"], axis=1))[counts > 0]
            fields[f"vtx_{axis}"] = ak.unflatten((sums / counts[counts > 0]).astype("f4"), one["nvtx"])
            fields[f"img_{axis}"] = events[f"hit_{axis}"]
        fields["img_pe"] = ak.values_astype(events["hit_pe"] / self.light_scale, "f4")
        return ak.zip(fields, depth_limit=1)

    def provenance(self) -> dict[str, Any]:
        return {"finder": {"sha256": "00ff"}}


@pytest.fixture
def run_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunTool:
    """Runs a tool in the temporary folder and gives the exit code."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *argv: object) -> int:
        return cli.main(load_tool(name).run, [str(word) for word in argv])

    return run


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("reco")


@pytest.fixture
def reco(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reco:
    """Runs the tool in the temporary folder with the averaging chain and gives the exit code."""
    stand_in = ModuleType("sparsereco.vertex.chain")
    monkeypatch.setattr(stand_in, "VertexChain", AveragingChain, raising=False)
    monkeypatch.setitem(sys.modules, "sparsereco.vertex.chain", stand_in)
    monkeypatch.chdir(tmp_path)
    return lambda *argv: cli.main(tool.run, ["vertex", *map(str, argv)])
