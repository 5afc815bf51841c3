"""Dead regions from boxes, lists of dead channels and free boxes; and what is wrong with a geometry."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT

from sparsereco.commands.lar import NAMES, read_detector
from sparsereco.errors import InputError
from sparsereco.infill.channels import Channels, read_channels
from sparsereco.infill.gaps import Gaps, LArDetector

TWO_BOXES = LArDetector(size=(40, 40, 40), centres=((-25, 0, 0), (25, 0, 0)), pitch=2.0)


def every_voxel(detector: LArDetector) -> np.ndarray:
    return np.stack(np.meshgrid(*map(np.arange, detector.shape), indexing="ij"), -1).reshape(-1, 3)


def in_boxes(detector: LArDetector, coords: np.ndarray) -> np.ndarray:
    """By definition: whether the centre of a voxel lies in a live box."""
    centre = detector.centre(coords)
    half = np.array(detector.size) / 2
    return np.any([(np.abs(centre - np.array(box)) < half).all(1) for box in detector.centres], 0)


def test_a_voxel_is_live_where_its_centre_is_in_a_box() -> None:
    coords = every_voxel(TWO_BOXES)
    gap = Gaps(TWO_BOXES).of(coords)
    np.testing.assert_array_equal(gap == -1, in_boxes(TWO_BOXES, coords))
    assert set(gap.tolist()) == {-1, 0}
    assert TWO_BOXES.shape == (45, 20, 20)
    assert Gaps(TWO_BOXES).width.tolist() == [5]


def test_outside_the_grid_is_neither_live_nor_dead() -> None:
    assert Gaps(TWO_BOXES).of(np.array([[-1, 0, 0], [45, 0, 0], [0, 20, 0], [0, 0, 10**7]])).tolist() == [-2] * 4


def test_a_lattice_of_boxes_has_one_slab_per_gap() -> None:
    centres = tuple((x, y, 0.0) for x in (-25.0, 25.0) for y in (-23.0, 23.0))
    lattice = replace(TWO_BOXES, centres=centres)
    gaps = Gaps(lattice)
    assert gaps.n == 2
    assert gaps.width.tolist() == [5, 3]
    coords = every_voxel(lattice)
    np.testing.assert_array_equal(gaps.of(coords) == -1, in_boxes(lattice, coords))


def test_a_missing_box_is_a_gap_of_its_own() -> None:
    centres = ((-20.0, -20.0, 0.0), (20.0, -20.0, 0.0), (-20.0, 20.0, 0.0))
    gaps = Gaps(replace(TWO_BOXES, centres=centres))
    assert gaps.n == 1
    assert [bound.tolist() for bound in gaps.bounds(0) or ()] == [[20, 20, 0], [40, 40, 20]]


def test_free_boxes_come_after_the_slabs() -> None:
    gaps = Gaps(replace(TWO_BOXES, dead=((-41.0, -10.0, -10.0, -37.0, 10.0, 10.0),)))
    coords = every_voxel(gaps.detector)
    centre = gaps.detector.centre(coords)
    inside = ((centre > [-41, -10, -10]) & (centre < [-37, 10, 10])).all(1)
    np.testing.assert_array_equal(gaps.of(coords) == 1, inside)
    assert gaps.width.tolist() == [5, 2]


def test_a_dead_channel_darkens_the_drift_above_its_pixel(tmp_path: Path) -> None:
    file = tmp_path / "dead.csv"
    file.write_text("box,u,v\n1,-15,11\n")  # y and z of the pixel
    gaps = Gaps(replace(TWO_BOXES, channels=Channels(str(file), "x", 2.0)))
    coords = every_voxel(gaps.detector)
    dark = coords[gaps.of(coords) == 1]
    assert dark.tolist() == [[x, 2, 15] for x in range(25, 45)]  # the second box alone
    assert gaps.n_regions == 1
    assert gaps.n == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("box,u\n0,1\n", "expected numbers in columns box, u, v"),
        ("box,u,v\n0,a,1\n", "expected numbers in columns box, u, v"),
        ("box,u,v\n2,0,0\n", "box 2, expected 0 to 1"),
    ],
)
def test_bad_lists_of_channels(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "dead.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        Gaps(replace(TWO_BOXES, channels=Channels(str(file))))


LAYOUT = {
    "pixel_pitch": 2.0,
    "chip_channel_to_position": {11000: [0, 0], 11001: [1, 0], 11002: [0, 1], 12000: [1, 1]},
    "tile_chip_to_io": {1: {11: 1001, 12: 1002}, 2: {11: 2001, 12: 2002}},
    "tile_orientations": {1: [1, -1, 1], 2: [-1, 1, -1]},
    "tile_positions": {1: [-50.0, 10.0, -4.0], 2: [50.0, -6.0, 8.0]},
}
"""Two tiles of 2 x 2 pixels, one at either end of x."""


def list_of_larndsim(folder: Path, listed: dict[str, list[int]]) -> Channels:
    (folder / "layout.yaml").write_text(yaml.safe_dump(LAYOUT))
    (folder / "bad.json").write_text(json.dumps(listed))
    return Channels(str(folder / "bad.json"), "x", 2.0, str(folder / "layout.yaml"))


def test_a_list_of_larndsim_becomes_pixels(tmp_path: Path) -> None:
    channels = list_of_larndsim(tmp_path, {"1-1-11": [0, 1, 2, 40], "2-2-12": [0]})  # nothing is wired to 40
    box, centre = read_channels(channels, np.array(TWO_BOXES.centres))
    assert box.tolist() == [0, 0, 0, 1]
    # y and z: the tile's first index runs along z, its second one along y, turned by the orientation.
    assert centre.tolist() == [[11, -5], [11, -3], [9, -5], [-5, 7]]
    keys = np.array([(1 << 22) + (1 << 14) + (11 << 6) + 1])
    np.savez(tmp_path / "off.npz", keys=keys)
    box, centre = read_channels(replace(channels, file=str(tmp_path / "off.npz")), np.array(TWO_BOXES.centres))
    assert (box.tolist(), centre.tolist()) == ([0], [[11, -3]])


def test_all_stands_for_every_chip(tmp_path: Path) -> None:
    box, centre = read_channels(list_of_larndsim(tmp_path, {"All": [0]}), np.array(TWO_BOXES.centres))
    assert box.tolist() == [0, 0, 1, 1]
    assert centre.tolist() == [[11, -5], [9, -3], [-7, 9], [-5, 7]]


def test_bad_lists_of_larndsim(tmp_path: Path) -> None:
    centres = np.array(TWO_BOXES.centres)
    with pytest.raises(InputError, match=r"io_group, io_channel, chip \(7, 1, 11\) is not in the layout"):
        read_channels(list_of_larndsim(tmp_path, {"7-1-11": [0]}), centres)
    channels = list_of_larndsim(tmp_path, {"1-11": [0]})
    with pytest.raises(InputError, match=r"expected a list of larnd-sim, as there is a channels\.layout"):
        read_channels(channels, centres)
    with pytest.raises(InputError, match="expected a pixel layout with chip_channel_to_position"):
        read_channels(replace(list_of_larndsim(tmp_path, {}), layout=channels.file), centres)
    with pytest.raises(ValueError, match=r"channels\.layout is of a drift along x"):
        replace(channels, drift="z")


def test_the_bad_channels_of_module_0() -> None:
    lar = ROOT.parent / "shared" / "data" / "lar"
    if not lar.exists():
        pytest.skip("the lists of channels in ../shared are not there")
    channels = Channels(
        str(lar / "deadchannels" / "module0_bad_channels.json"),
        layout=str(lar / "geometry" / "multi_tile_layout-2.4.16.yaml"),
    )
    detector = replace(read_detector("module"), channels=channels)
    box, centre = read_channels(channels, np.array(detector.centres))
    assert len(box) > 6000
    assert (np.abs(centre) < np.array([detector.size[1], detector.size[2]]) / 2 + 2).all()
    assert len(np.unique(np.column_stack([box, centre]), axis=0)) == len(box)  # no pixel twice
    on_grid = (centre / channels.pitch - 0.5) % 1
    np.testing.assert_allclose(np.minimum(on_grid, 1 - on_grid), 0, atol=0.01)
    assert Gaps(detector).n > 5000


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": (0, 1, 1)}, "positive lengths"),
        ({"centres": ()}, "one or more points"),
        ({"pitch": -1}, "pitch must be positive"),
        ({"dead": ((0, 0, 0, -1, 1, 1),)}, "lower and of an upper corner"),
    ],
)
def test_a_detector_that_cannot_be(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TWO_BOXES, **values)


@pytest.mark.parametrize(("name", "widths"), [("2x2", [1, 15, 1, 13]), ("module", [1]), ("gap10", [10])])
def test_shipped_geometries(name: str, widths: list[int]) -> None:
    assert Gaps(read_detector(name)).width.tolist() == widths


def test_nd_lar_has_the_gaps_of_its_35_modules() -> None:
    gaps = Gaps(read_detector("nd-lar"))
    assert gaps.n == 7 + 6 + 4  # cathodes of seven modules along x, the gaps between them, those of five along z


@pytest.mark.parametrize("name", NAMES)
def test_shipped_geometries_cover_their_volume(name: str) -> None:
    detector = read_detector(name)
    coords = np.random.default_rng(0).integers(0, np.array(detector.shape) - 1, (5000, 3))
    np.testing.assert_array_equal(Gaps(detector).of(coords) == -1, in_boxes(detector, coords))


def test_what_the_command_line_says_about_geometries(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no geometry given: --detector, expected 2x2"):
        read_detector(None)
    with pytest.raises(InputError, match="got 'nowhere'"):
        read_detector("nowhere")
    (tmp_path / "odd.yaml").write_text("size: [1, 2, 3]\n")
    with pytest.raises(InputError, match="has no boxes"):
        read_detector(str(tmp_path / "odd.yaml"))
    (tmp_path / "odd.yaml").write_text("size: [1, 2, 3]\ncentres: [[0, 0, 0]]\npich: 1\n")
    with pytest.raises(InputError, match=r"odd\.yaml: no setting 'pich'; nearest: pitch"):
        read_detector(str(tmp_path / "odd.yaml"))
    assert (ROOT / "configs" / "detectors" / "2x2.yaml").is_file()
