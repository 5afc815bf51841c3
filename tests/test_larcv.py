"""Sparse tensors and clusters of LArCV become hits; `data/larcv.py` has written the file, with ROOT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot
from tool_loader import load_tool

from sparsereco import cli
from sparsereco.commands.lar import read_detector
from sparsereco.infill.gaps import Gaps
from sparsereco.io import read
from sparsereco.larcv import TENSOR
from sparsereco.schema import CHARGE_HITS, INFILL

Convert = Callable[..., int]

DATA = Path(__file__).parent / "data"
OF_LARCV = Path(__file__).parents[2] / "shared" / "data" / "lar" / "larcv_tutorial_electron.root"


@pytest.fixture
def convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Convert:
    monkeypatch.chdir(tmp_path)
    return lambda *argv: cli.main(load_tool("convert").run, ["larcv", *(str(word) for word in argv)])


def write_tensor(path: str = "bad.root", **columns: Any) -> None:
    """A tensor of one voxel in a grid of 8, with branches of the names that ROOT gives them, and one column changed."""
    values: dict[str, Any] = {branch.name: [1] for branch in TENSOR.scalars}
    values |= {"_voxel_v._id": [[7]], "_voxel_v._value": [[0.5]], **{f"_meta._{axis}num": [2] for axis in "xyz"}}
    values |= columns
    arrays = {name: ak.Array(column) for name, column in values.items()}
    with uproot.recreate(path) as file:
        file.mktree(TENSOR.tree, {name: array.type.content for name, array in arrays.items()}).extend(arrays)


def test_voxels_by_their_number_in_the_grid(convert: Convert, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(DATA / "larcv.root", "-o", "hits.root") == cli.DONE
    assert "hits.root: 3 events, 12 voxels" in capsys.readouterr().err
    events = read("hits.root", CHARGE_HITS)
    assert (events.run.tolist(), events.subrun.tolist(), events.event.tolist()) == ([4] * 3, [1] * 3, [10, 11, 12])
    # Numbers 0, 9, 10, 59, 60 and 239 of 10 x 6 x 4 voxels of 20 x 50 x 10 mm from (-100, -200, 80) mm.
    index = np.array([[0, 0, 0], [9, 0, 0], [0, 1, 0], [9, 5, 0], [0, 0, 1], [9, 5, 3]])
    centre = np.array([-100, -200, 80]) + (index + 0.5) * [20, 50, 10]
    for n, shift in ((0, 0), (2, 20)):
        found = np.stack([events[n][f"hit_{axis}"] for axis in "xyz"], 1)
        np.testing.assert_allclose(found, centre + np.array([shift, 0, 0]))
        assert events[n].hit_e.tolist() == [0.5, 1.25, 2.0, 4.0, 8.0, 0.25]
    assert len(events[1].hit_e) == 0
    assert "convert.py" in str(uproot.open("hits.root")["provenance"])


def test_several_files_and_a_named_tree(convert: Convert) -> None:
    file = f"{DATA / 'larcv.root'}:sparse3d_pcluster_tree"
    assert convert(file, file, "-o", "hits.root") == cli.DONE
    assert len(read("hits.root", CHARGE_HITS)) == 6


def test_a_track_of_a_tensor_is_filled_in(convert: Convert) -> None:
    """A straight row of voxels through the gap of `gap10`, in its grid: what comes out is what the infill takes."""
    gaps = Gaps(read_detector("gap10"))
    grid = gaps.detector
    across = np.arange(40, grid.shape[0] - 40)
    index = np.stack([across, np.full_like(across, 100), np.full_like(across, 50)], 1)
    live = index[gaps.of(index) == -1]
    assert 0 < len(index) - len(live) <= 12
    numbers = live @ np.cumprod([1, *grid.shape[:2]])
    per_axis = {f"_meta._{axis}num": [side] for axis, side in zip("xyz", grid.shape, strict=True)}
    per_axis |= {f"_meta._{axis}len": [grid.pitch / 10] for axis in "xyz"}
    per_axis |= {f"_meta._p1.{axis}": [low / 10] for axis, low in zip("xyz", grid.origin, strict=True)}
    voxels = {"_voxel_v._id": [numbers.tolist()], "_voxel_v._value": [[0.8] * len(live)]}
    write_tensor("track.root", **per_axis, **voxels)
    assert convert("track.root", "-o", "hits.root") == cli.DONE
    (event,) = read("hits.root", CHARGE_HITS)
    found = np.stack([event[f"hit_{axis}"] for axis in "xyz"], 1)
    np.testing.assert_array_equal(grid.index(found), live)
    reco = ["infill", "hits.root", "-o", "filled.root", "--detector", "gap10", "--device", "cpu"]
    assert cli.main(load_tool("reco").run, reco) == cli.DONE
    (filled,) = read("filled.root", INFILL)
    assert len(filled.fill_e) >= 8


def test_the_classes_are_those_of_larcv() -> None:
    """ROOT's checksum of a class goes by its name, bases and members."""
    if not OF_LARCV.is_file():
        pytest.skip("the file of LArCV in ../shared is not there")
    ours, theirs = (uproot.open(path).file.streamers for path in (DATA / "larcv.root", OF_LARCV))
    names = {name for name in ours if name.startswith("larcv::")}
    assert {"larcv::EventSparseTensor3D", "larcv::VoxelSet", "larcv::Voxel", "larcv::Voxel3DMeta"} <= names
    for name in names:
        sums = [{info.member("fCheckSum") for info in file[name].values()} for file in (ours, theirs)]
        assert sums[0] == sums[1], name


def test_voxels_of_clusters(convert: Convert) -> None:
    """Those of the tensor, and in another cluster voxels 9, which is there already, and 100."""
    assert convert(DATA / "larcv.root", "-o", "tensor.root") == cli.DONE
    assert convert(f"{DATA / 'larcv.root'}:cluster3d_pcluster_tree", "-o", "hits.root") == cli.DONE
    expected, events = read("tensor.root", CHARGE_HITS), read("hits.root", CHARGE_HITS)
    assert events.event.tolist() == [10, 11, 12]
    for n in (0, 2):
        assert events[n].hit_e.tolist() == [0.5, 2.25, 2.0, 4.0, 8.0, 3.0, 0.25]
        more = np.array([-100, -200, 80]) + np.array([20, 50, 10]) * [0.5, 4.5, 1.5] + [20 if n else 0, 0, 0]
        found = np.stack([events[n][f"hit_{axis}"] for axis in "xyz"], 1)
        np.testing.assert_allclose(found[5], more)
        others = np.stack([expected[n][f"hit_{axis}"] for axis in "xyz"], 1)
        np.testing.assert_array_equal(np.delete(found, 5, 0), others)
    assert len(events[1].hit_e) == 0


def test_what_is_not_in_live_argon_is_left_out(convert: Convert, capsys: pytest.CaptureFixture[str]) -> None:
    box = "size: [160, 300, 40]\ncentres: [[0, -50, 100]]\npitch: 5\n"  # the grid of the first event, less 20 mm in x
    Path("box.yaml").write_text(box)
    assert convert(DATA / "larcv.root", "-o", "hits.root", "--detector", "box.yaml") == cli.DONE
    assert "hits.root: 3 events, 3 voxels; 9 not in live argon were left out" in capsys.readouterr().err
    events = read("hits.root", CHARGE_HITS)
    assert events.hit_x.tolist() == [[], [], [-70.0] * 3]
    assert events.hit_e.tolist() == [[], [], [0.5, 2.0, 8.0]]
    assert convert(DATA / "larcv.root", "-o", "hits.root", "-f", "--detector", "nowhere") == cli.WRONG_INPUT
    assert "--detector: expected 2x2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "tree", ["sparse3d_whole_tree", "cluster3d_bad_tree", "cluster3d_short_tree", "cluster3d_no_tree"]
)
def test_what_cannot_be_read(convert: Convert, tree: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = DATA / "larcv.root"
    if tree.startswith("cluster3d"):
        file = Path("bad.root")
        head = [0x40, 0, 0, 28, 0, 9, *[0] * 6]  # not member by member
        voxels = {"bad": head + [0] * 20, "short": [0x40, 0, 0, 12, 0x40, 9, *[0] * 6, 0, 0, 0, 9], "no": [0] * 6}
        name = "_voxel_vv._voxel_v" if tree != "cluster3d_no_tree" else "other"
        columns = {branch.name: np.ones(1, branch.dtype) for branch in TENSOR.scalars}
        columns |= {name: ak.Array(np.array([voxels[tree.split("_")[1]]], np.uint8).tolist())}
        columns[name] = ak.values_astype(columns[name], np.uint8)
        with uproot.recreate(file) as out:
            types = {key: column.type.content if key == name else column.dtype for key, column in columns.items()}
            out.mktree(tree, types).extend(columns)
    assert convert(f"{file}:{tree}", "-o", "hits.root") == cli.WRONG_INPUT
    error = capsys.readouterr().err
    assert f"tree '{tree}' of" in error
    assert "expected a sparse tensor or clusters of LArCV 2 (sparse3d_NAME_tree, cluster3d_NAME_tree), split" in error
    assert not list(Path().glob("hits.root*"))


def test_images_are_no_voxels(convert: Convert, capsys: pytest.CaptureFixture[str]) -> None:
    if not OF_LARCV.is_file():
        pytest.skip("the file of LArCV in ../shared is not there")
    assert convert(OF_LARCV, "-o", "hits.root") == cli.WRONG_INPUT
    assert "it has: particle_mctruth_tree, image2d_data_tree; choose one with FILE:TREE" in capsys.readouterr().err
    assert convert(f"{OF_LARCV}:image2d_data_tree", "-o", "hits.root") == cli.WRONG_INPUT
    assert "expected a sparse tensor or clusters of LArCV 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"_voxel_v._id": [[8]]}, "voxel 8, expected the number of one in its grid"),
        ({"_voxel_v._id": np.array([[2**64 - 1]], "u8")}, "branch '_voxel_v._id' has [18446744073709551615]"),
        ({"_voxel_v._value": [[np.nan]]}, "energy nan, expected finite, at least 0 MeV"),
        ({"_voxel_v._value": [[-1.0]]}, "energy -1.0, expected finite"),
        ({"_meta._unit": [2]}, "unit of length 2, expected 1 (cm)"),
        ({"_meta._xnum": [0]}, "grid of voxels [0, 2, 2], expected at least one along each axis"),
        ({"_meta._ylen": [np.inf]}, "grid of voxels [2, 2, 2], expected at least one along each axis, of finite size"),
        ({"_event": np.array([2**64 - 1], "u8")}, "branch '_event' has 18446744073709551615, expected int64"),
    ],
)
def test_a_tensor_that_is_wrong(
    convert: Convert, columns: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tensor()
    assert convert("bad.root", "-o", "good.root") == cli.DONE
    assert read("good.root", CHARGE_HITS).hit_x.tolist() == [[25.0]]
    write_tensor(**columns)
    assert convert("bad.root", "-o", "hits.root") == cli.WRONG_INPUT
    error = capsys.readouterr().err
    assert "entry 0 of tree 'sparse3d_pcluster_tree'" in error
    assert message in error
    assert not list(Path().glob("hits.root*"))
