"""Tracks in liquid argon, their voxels, and samples over gaps."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import awkward as ak
import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT

from sparsereco.errors import BranchError, InputError
from sparsereco.hdf5 import SegmentTable, VoxelTable, read_hdf5
from sparsereco.infill.gaps import ChargeResponse, Gaps, LArDetector
from sparsereco.schema import CHARGE_HITS
from sparsereco.segments import Segments, voxelize
from sparsereco.sim import lar_sample
from sparsereco.sim.lartpc import COMPOSITIONS, MIP, SegmentBank, TrackSource, draw_tracks, recombined

EDEP = ROOT.parent / "shared" / "data" / "lar" / "ynashed_module0_corsika.h5"
RANGES = ROOT.parent / "shared" / "data" / "lar" / "geometry" / "csda_pE_liquid_argon.txt"
SLAB = LArDetector(size=(190, 190, 190), centres=((-104.5, 0, 0), (104.5, 0, 0)))


@pytest.fixture(scope="module")
def lar_bank() -> SegmentBank:
    """60 tracks from Geant4."""
    if importlib.util.find_spec("geant4_pybind") is None:
        pytest.skip("geant4-pybind is not installed: pip install 'sparsereco[sim]'")
    from sparsereco.sim.lartpc import make_segment_bank

    return make_segment_bank(60, seed=5)


def segments(*rows: tuple[tuple, tuple, float]) -> Segments:
    start, end, energy = zip(*rows, strict=True)
    zero = torch.zeros(len(rows), dtype=torch.int64)
    return Segments(torch.tensor(start), torch.tensor(end), torch.tensor(energy), zero, 1)


def test_energy_goes_by_path_length_and_points_to_their_voxel() -> None:
    voxels = voxelize(
        segments(((0.5, 0.5, 0.5), (3.5, 0.5, 0.5), 6.0), ((1.5, 1.5, 1.5), (1.5, 1.5, 1.5), 2.0)),
        (0, 0, 0),
        1.0,
        (4, 4, 4),
    )
    found = dict(zip(map(tuple, voxels.coords.tolist()), voxels.signal.tolist(), strict=True))
    assert found == pytest.approx({(0, 0, 0): 1.0, (1, 0, 0): 2.0, (2, 0, 0): 2.0, (3, 0, 0): 1.0, (1, 1, 1): 2.0})


def test_what_leaves_the_grid_is_lost() -> None:
    voxels = voxelize(segments(((-2.0, 0.5, 0.5), (2.0, 0.5, 0.5), 4.0)), (0, 0, 0), 1.0, (4, 4, 4))
    assert float(voxels.signal.sum()) == pytest.approx(2.0)


def test_recombination_is_calibrated_for_muons_and_grows_with_the_loss() -> None:
    length = 10.0
    losses = torch.tensor([MIP, 3 * MIP, 10 * MIP])
    rows = [((0.0, 0.0, 0.0), (length, 0.0, 0.0), float(loss) * length) for loss in losses]
    share = recombined(segments(*rows), ChargeResponse()).energy / (losses * length)
    assert float(share[0]) == pytest.approx(1.0)
    # Modified box model by hand: log(0.93 + x) / x with x = 0.304 cm/MeV * dE/dx.
    x, mip = 0.304 * 21.0, 0.304 * 2.1
    assert float(share[2]) == pytest.approx(np.log(0.93 + x) / x / (np.log(0.93 + mip) / mip), rel=1e-5)
    assert float(share[1]) > float(share[2])


def test_protons_in_argon_have_their_range() -> None:
    if not RANGES.is_file():
        pytest.skip("the range tables in ../shared are not there")
    if importlib.util.find_spec("geant4_pybind") is None:
        pytest.skip("geant4-pybind is not installed: pip install 'sparsereco[sim]'")
    from sparsereco.sim.geant4 import simulate
    from sparsereco.sim.lartpc import ARGON

    table = np.loadtxt(RANGES, skiprows=1)
    expected = float(table[table[:, 0] == 100.0, 4][0]) / 1.396 * 10  # g/cm2 to mm
    ends = [steps[np.argmax(steps[:, 5]), 5] for steps in simulate([("proton", 100.0)] * 40, 3, ARGON)]
    assert np.mean(ends) == pytest.approx(expected, rel=0.02)


def test_a_change_of_medium_leaves_the_other_as_it_was(lar_bank: SegmentBank) -> None:
    from sparsereco.sim.geant4 import simulate

    def deepest() -> float:
        return float(np.mean([steps[:, 5].max() for steps in simulate([("proton", 50.0)] * 20, 3)]))

    assert len(lar_bank) > 0
    assert 20.5 < deepest() < 22.5  # 22 mm in polystyrene by NIST's tables


def test_a_bank_keeps_steps_below_a_voxel(lar_bank: SegmentBank, tmp_path: Path) -> None:
    length = np.linalg.norm(lar_bank.end - lar_bank.start, axis=1)
    assert length.max() < 2.1
    assert set(lar_bank.pdg.tolist()) == {13, 211, 2212, 11}
    lar_bank.save(tmp_path / "bank.npz")
    again = SegmentBank.load(tmp_path / "bank.npz")
    np.testing.assert_array_equal(again.energy, lar_bank.energy)


@pytest.mark.parametrize("kind", ["muon", "mixed", "hadrons"])
def test_hits_are_live_and_missing_voxels_dead(lar_bank: SegmentBank, kind: str) -> None:
    gaps = Gaps(SLAB)
    draw = lar_sample.from_tracks(TrackSource(lar_bank), COMPOSITIONS[kind])
    sample = draw(gaps, 20, torch.Generator().manual_seed(1))
    assert (gaps.of(sample.hits.coords.numpy()) == -1).all()
    assert (gaps.of(sample.missing.coords.numpy()) == sample.gap.numpy()).all()
    assert float(sample.missing.signal.min()) >= SLAB.response.threshold
    hits, truth = lar_sample.to_records(sample, gaps)
    assert ak.sum(ak.num(truth["miss_e"])) == len(sample.missing.coords) > 0
    assert ak.all(truth["miss_part"] >= 0)
    assert ak.all(truth["miss_part"] < ak.num(truth["part_pdg"]))
    assert hits["event"].tolist() == list(range(20))
    again = draw(gaps, 20, torch.Generator().manual_seed(1))
    assert torch.equal(again.hits.feats, sample.hits.feats)


def test_every_muon_leaves_something_in_its_gap(lar_bank: SegmentBank) -> None:
    draw = lar_sample.from_tracks(TrackSource(lar_bank), COMPOSITIONS["muon"])
    sample = draw(Gaps(SLAB), 50, torch.Generator().manual_seed(2))
    assert int((sample.missing.offsets.diff() > 0).sum()) >= 45  # a few scatter past this small detector


def test_hadrons_that_interact_are_cut_and_others_start_there(lar_bank: SegmentBank) -> None:
    source, kind = TrackSource(lar_bank), replace(COMPOSITIONS["hadrons"], interaction=30.0)
    tracks = draw_tracks(source, kind, torch.zeros(20, 3), torch.eye(3)[:1].repeat(20, 1), 50.0, generator=seeded(3))
    assert (tracks.event.diff() >= 0).all()
    tip, cut = source.tips(tracks)
    assert int(cut.sum()) > 10
    assert set(source.pdg[tracks.track[cut]].tolist()) <= {211, 2212}
    apart = (tip[cut][:, None] - tracks.start).norm(dim=2)
    assert float(apart.amin(1).max()) < 1e-3  # something starts where each of them ends
    segments, owner = source.segments(tracks, 20)
    away = (segments.start - tracks.start[owner]).norm(dim=1)
    assert (away < tracks.reach[owner] + 1e-3).all()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def write_segments(path: Path, n: int = 30, **changed: np.ndarray) -> Path:
    rng = np.random.default_rng(0)
    kind = [("eventID", "u4"), ("trackID", "u4"), ("pdgId", "i4"), ("dE", "f4")]
    rows = np.zeros(n, kind + [(f"{a}_{s}", "f4") for s in ("start", "end") for a in "xyz"])
    rows["eventID"], rows["dE"] = np.arange(n) // 10, 1.0
    for name in rows.dtype.names[4:]:
        rows[name] = rng.uniform(-5, 5, n)
    for name, values in changed.items():
        rows[name] = values
    with h5py.File(path, "w") as file:
        file["segments"] = rows
    return path


def test_segments_come_in_millimetres(tmp_path: Path) -> None:
    table = read_hdf5(str(write_segments(tmp_path / "s.h5", x_start=np.full(30, 1.5))))
    assert isinstance(table, SegmentTable)
    assert table.start[:, 0].tolist() == [15.0] * 30
    assert table.event.tolist() == [0] * 10 + [1] * 10 + [2] * 10


NEWER = {"eventID": "event_id", "trackID": "traj_id", "pdgId": "pdg_id"}


def renamed(old: Path, new: Path, names: dict[str, str], **further: str) -> Path:
    """The same segments with other names of fields, and further fields."""
    with h5py.File(old) as file:
        rows = file["segments"][:]
    kinds = [(names.get(name, name), rows.dtype[name]) for name in rows.dtype.names]
    changed = np.zeros(len(rows), kinds + list(further.items()))
    for name in rows.dtype.names:
        changed[names.get(name, name)] = rows[name]
    with h5py.File(new, "w") as file:
        file["segments"] = changed
    return new


@pytest.mark.parametrize("real", [False, True])
def test_segments_of_newer_files(real: bool, tmp_path: Path) -> None:
    if real and not EDEP.is_file():
        pytest.skip("the edep-sim segments in ../shared are not there")
    rng = np.random.default_rng(1)
    old = EDEP if real else write_segments(tmp_path / "old.h5", trackID=np.arange(30), pdgId=rng.permutation(30))
    further = {"vertex_id": "u8", "segment_id": "u4", "file_traj_id": "u4"}
    table, newer = (read_hdf5(str(path)) for path in (old, renamed(old, tmp_path / "new.h5", NEWER, **further)))
    assert isinstance(table, SegmentTable)
    assert len(np.unique(table.track)) > 1
    for column in ("event", "start", "end", "energy", "track", "pdg"):
        np.testing.assert_array_equal(getattr(newer, column), getattr(table, column))


def test_segments_without_track_and_species(tmp_path: Path) -> None:
    old = write_segments(tmp_path / "old.h5", trackID=7, pdgId=13)
    table = read_hdf5(str(renamed(old, tmp_path / "new.h5", {"trackID": "other", "pdgId": "another"})))
    assert isinstance(table, SegmentTable)
    assert set(table.track) == set(table.pdg) == {0}
    with pytest.raises(BranchError, match="lacks the field 'event_id' or 'eventID'; it has: entry, "):
        read_hdf5(str(renamed(old, tmp_path / "none.h5", {"eventID": "entry"})))


def test_voxels_are_told_by_their_fields(tmp_path: Path) -> None:
    rows = np.zeros(3, [("imageInd", "i4"), ("voxx", "i4"), ("voxy", "i4"), ("voxz", "i4"), ("voxdE", "f4")])
    rows["imageInd"], rows["voxx"], rows["voxdE"] = [1, 0, 1], [5, 6, 7], 0.5
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["data"] = rows
    table = read_hdf5(str(tmp_path / "v.h5"))
    assert isinstance(table, VoxelTable)
    assert table.event.tolist() == [0, 1, 1]
    assert table.index[:, 0].tolist() == [6, 5, 7]


def test_bad_hdf5(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_hdf5(str(tmp_path / "none.h5"))
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(InputError, match="cannot be read as an HDF5 file"):
        read_hdf5(str(tmp_path / "text.h5"))
    with h5py.File(tmp_path / "odd.h5", "w") as file:
        file["odd"] = np.zeros(3)
    with pytest.raises(InputError, match=r"expected a dataset 'segments'.*it has: odd"):
        read_hdf5(str(tmp_path / "odd.h5"))
    with h5py.File(tmp_path / "short.h5", "w") as file:
        file["segments"] = np.zeros(3, [("eventID", "u4")])
    with pytest.raises(BranchError, match="lacks the field 'dE'"):
        read_hdf5(str(tmp_path / "short.h5"))
    with pytest.raises(InputError, match=r"row 0 has dE -1\.0, expected at least 0 MeV"):
        read_hdf5(str(write_segments(tmp_path / "negative.h5", dE=np.full(30, -1.0))))


def test_real_segments_make_a_sample() -> None:
    if not EDEP.is_file():
        pytest.skip("the edep-sim segments in ../shared are not there")
    table = read_hdf5(str(EDEP))
    assert isinstance(table, SegmentTable)
    numbers, event = np.unique(table.event, return_inverse=True)
    rows = Segments(*map(torch.from_numpy, (table.start, table.end, table.energy, event)), len(numbers))
    draw = lar_sample.from_segments(rows, torch.from_numpy(table.track), torch.from_numpy(table.pdg))
    gaps = Gaps(replace(SLAB, response=ChargeResponse(noise=0.0)))
    sample = draw(gaps, 30, torch.Generator().manual_seed(4))
    assert int((sample.missing.offsets.diff() > 0).sum()) > 15  # the others are below the threshold there
    hits, truth = lar_sample.to_records(sample, gaps)
    assert set(ak.fields(hits)) == {branch.name for branch in CHARGE_HITS.branches}
    assert set(ak.flatten(truth["part_pdg"]).tolist()) <= set(table.pdg.tolist())
