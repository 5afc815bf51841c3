"""Displays of camera frames and of the infill: what is drawn, and tools/display.py camera and infill."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
from display_samples import GAPS, SHAPE, camera_files, events, infill_files
from tool_loader import load_tool

from sparsereco import cli
from sparsereco.commands.display_camera import BOTH, read_events
from sparsereco.display.camera import MACRO, camera_event, outline
from sparsereco.display.infill import compare, infill_event
from sparsereco.errors import InputError
from sparsereco.frames import histogram
from sparsereco.infill.gaps import detector_of
from sparsereco.io import RootWriter, read
from sparsereco.schema import CHARGE_HITS, FRAME_TRUTH, FRAMES, INFILL, INFILL_TRUTH, ROIS

Display = Callable[..., int]

SHARED = Path(__file__).parents[2] / "shared" / "data" / "cygno" / "reco_gui"


@pytest.fixture
def display(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Display:
    module = load_tool("display")
    monkeypatch.chdir(tmp_path)
    return lambda *argv: cli.main(module.run, [str(word) for word in argv])


@pytest.fixture
def infill(tmp_path: Path) -> tuple[Path, Path]:
    return infill_files(tmp_path)


@pytest.fixture
def camera(tmp_path: Path) -> tuple[Path, Path]:
    return camera_files(tmp_path)


def test_filled_voxels_are_right_where_the_truth_has_them(infill: tuple[Path, Path]) -> None:
    filled, sample = infill
    hits, truth, fill = (
        read(sample, CHARGE_HITS, "hits")[0],
        read(sample, INFILL_TRUTH, "truth")[0],
        read(filled, INFILL)[0],
    )
    event = infill_event(hits, truth, fill, GAPS, "")
    assert event.counts["hits"] == str(len(hits.hit_e))
    assert event.counts["filled"] == str(len(fill.fill_e))
    groups = {name: len(event.voxels[name]["x"]) for name in ("filled, true", "filled, not true", "missed")}
    assert groups == {"filled, true": 3, "filled, not true": 2, "missed": 2}
    assert [table.title for table in event.tables] == ["Gaps", "Truth"]
    assert event.tables[0].rows == [("0", "1", "5", "5", "")]
    side = event.views[1]
    drawn = {one: [t["voxels"] for t in side.traces if t["scene"] == one] for one in ("scene", "scene2", "scene3")}
    assert drawn == {"scene": ["hits", "missing"], "scene2": ["hits"], "scene3": ["hits", "filled"]}


def test_voxels_are_compared_by_their_place_in_the_grid() -> None:
    grid = GAPS.detector.centre(np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0]]))
    compared = compare(grid[:2] + 0.4, grid[1:], GAPS)
    assert compared.right.tolist() == [False, True]
    assert compared.missed.tolist() == [False, True]


@pytest.mark.parametrize("given", [0, 1, 2, None])
def test_parts_of_an_infill_may_be_missing(given: int | None, infill: tuple[Path, Path]) -> None:
    filled, sample = infill
    parts = [read(sample, CHARGE_HITS, "hits")[0], read(sample, INFILL_TRUTH, "truth")[0], read(filled, INFILL)[0]]
    event = infill_event(*(part if n == given else None for n, part in enumerate(parts)), GAPS, "")
    assert len(event.views) == (2 if given in (1, 2) else 1)
    assert "whole detector" in event.views[0].places


def test_the_tool_takes_the_geometry_from_the_file(
    display: Display, infill: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    filled, sample = infill
    assert display("infill", filled, "--hits", sample, "-o", "event.html") == cli.DONE
    assert "event.html: 3 events" in capsys.readouterr().err
    assert display("infill", sample, "-o", "sample.html") == cli.WRONG_INPUT  # it does not say what it was made for
    assert "no geometry given: --detector" in capsys.readouterr().err
    assert display("infill", sample, "-o", "sample.html", "--detector", "gap10", "--event", 2) == cli.DONE
    assert "not in the files: infill" in capsys.readouterr().err
    with RootWriter("other.root") as writer:
        writer.create("Events", FRAMES)
    assert display("infill", filled, "--hits", "other.root", "-o", "none.html") == cli.WRONG_INPUT
    assert "none of the trees infill, truth, hits in other.root" in capsys.readouterr().err
    assert display("camera", filled, "-o", "none.html") == cli.WRONG_INPUT
    assert "no tree 'Events' in" in capsys.readouterr().err
    assert display("infill", filled, "-o", "none.html", "--event", 7) == cli.WRONG_INPUT
    assert "no event 7 in tree 'infill'" in capsys.readouterr().err


def test_a_provenance_that_describes_no_liquid_argon() -> None:
    assert detector_of({}, "a.root") is None
    with pytest.raises(InputError, match=r"a\.root: its provenance describes no detector: 'centres'"):
        detector_of({"detector": {"size": [1, 1, 1]}}, "a.root")


def test_an_outline_follows_the_border_of_the_pixels() -> None:
    x, y = (side.ravel() for side in np.meshgrid([4, 5, 6], [10, 11]))
    sides = {tuple(map(tuple, line.tolist())) for line in outline(np.append(x, 9), np.append(y, 20))}
    assert len(sides) == 8
    assert ((3.5, 9.5), (6.5, 9.5)) in sides
    assert ((6.5, 9.5), (6.5, 11.5)) in sides
    assert ((8.5, 20.5), (9.5, 20.5)) in sides
    length = sum(np.abs(np.diff(line, axis=0)).sum() for line in outline(x, y))
    assert length == 2 * (3 + 2)
    assert outline(np.empty(0), np.empty(0)) == []


def test_a_frame_has_the_clusters_of_the_file(camera: tuple[Path, Path]) -> None:
    reco, run = camera
    event, regions, truth = read(reco, FRAMES)[0], read(reco, ROIS)[0], read(run, FRAME_TRUTH)[0]
    image = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE) * 1e-4
    image[0, 0] = np.nan
    drawn = camera_event(image, event, regions, truth, "")
    assert drawn.counts["clusters"] == "2"
    assert drawn.counts["pixels in clusters"] == str(len(event.redpix_ix))
    assert drawn.counts["true tracks"] == "1"
    groups = [trace["legendgroup"] for trace in drawn.views[0].traces]
    assert groups == [
        "frame", *["full resolution"] * 2, "chosen pixels", "clusters", "clusters", "regions", "truth", "truth",
    ]  # fmt: skip
    frame = drawn.views[0].traces[0]
    assert (frame["width"], frame["dx"], frame["x0"]) == (SHAPE[1] // MACRO, MACRO, 1.5)
    assert list(drawn.views[0].places) == ["whole frame", "cluster 0", "cluster 1"]
    left, right = drawn.views[0].places["cluster 1"]["xaxis.range"]
    assert left < 40 < 43 < right
    labels = next(trace for trace in drawn.views[0].traces if trace["type"] == "scatter" and trace["mode"] == "text")
    assert "energy: 1.50 keV" in labels["hovertext"][0]


def test_regions_are_closed_outlines_with_numbers(camera: tuple[Path, Path]) -> None:
    regions = read(camera[0], ROIS)
    drawn = camera_event(None, None, regions[0], None, "")
    assert drawn.counts == {"regions": "2", "pixels in regions": "272"}
    assert drawn.tables[0].rows == [("0", "128", "1,500", "9.5"), ("1", "144", "500", "6.2")]
    (trace,) = drawn.views[0].traces
    assert [n for n, x in enumerate(trace["x"]) if x is None] == [7, 13]
    for first, last in ((0, 6), (8, 12)):
        assert (trace["x"][first], trace["y"][first]) == (trace["x"][last], trace["y"][last])
    assert [(n, text) for n, text in enumerate(trace["text"]) if text] == [(0, "0"), (8, "1")]
    assert "region: 1<br>pixels: 144, of which chosen 16<br>light: 500 counts" in trace["hovertext"][9]
    nothing = camera_event(None, None, regions[1], None, "")
    assert nothing.counts["regions"] == "0"
    assert nothing.views[0].traces[0]["x"] == []


def test_files_of_the_experiment(display: Display, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They have neither frames nor all of our branches, -1 for what they do not know, and keep large clusters only."""
    x, y = (side.ravel() for side in np.meshgrid(np.arange(40, 44), np.arange(20, 28)))
    columns = {
        "run": [2, 2], "event": [7, 8], "sc_size": [[16, 32], []], "sc_energy": [[-1, -1], []],
        "sc_redpixIdx": [[-1, 0], []], "sc_xmax": [[15, 43], []], "sc_ymax": [[23, 27], []],
        "redpix_ix": [x, []], "redpix_iy": [y, []], "redpix_iz": [np.arange(32) - 4.0, []],
    }  # fmt: skip
    with RootWriter("theirs.root") as writer:
        writer.extend("Events", BOTH, events(BOTH, 2, **columns))
    read_back = read_events("theirs.root")
    drawn = camera_event(None, read_back[0], None, None, "")
    assert drawn.counts == {"clusters": "2", "pixels in clusters": "32", "energy [keV]": "?"}
    assert [row[1] for row in drawn.tables[0].rows] == ["?", "?"]
    assert list(drawn.views[0].places) == ["cluster 1"]
    fine, *lines = drawn.views[0].traces
    assert [trace["legendgroup"] for trace in lines] == ["clusters", "clusters"]
    assert (fine["width"], fine["x0"], fine["y0"], "visible" in fine) == (14, 30, 10, False)
    levels = np.frombuffer(base64.b64decode(fine["bytes"]), np.uint8).reshape(18, 14) * fine["step"] + fine["low"]
    np.testing.assert_allclose(levels[10:, 10:], np.arange(32).reshape(8, 4) - 4.0, atol=fine["step"])
    assert (levels[:10] == -12).all()
    assert camera_event(None, read_back[1], None, None, "").counts["clusters"] == "0"
    assert display("camera", "theirs.root", "-o", "theirs.html", "--event", 7) == cli.DONE
    assert "theirs.html: 2 frames" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["noise_runs/reco_run05780_3D_cygno_p1_r4", "simulation_6kev/reco_run20001_3D_unet_p1_r4"]
)
def test_real_files_of_the_experiment(name: str, display: Display) -> None:
    path = SHARED / f"{name}.root"
    if not path.is_file():
        pytest.skip("the real files are not here")
    given = read_events(str(path))
    most = int(ak.argmax(ak.num(given.redpix_ix)))
    assert display("camera", path, "-o", "theirs.html", "--event", int(given.event[most]), "-n", 1) == cli.DONE
    drawn = camera_event(None, given[most], None, None, "")
    assert drawn.counts["clusters"] == str(len(given[most].sc_size))
    assert 0 < len(drawn.views[0].places) == np.count_nonzero(given[most].sc_redpixIdx >= 0)


def test_a_frame_without_clusters_or_image(camera: tuple[Path, Path]) -> None:
    event = read(camera[0], FRAMES)[1]
    drawn = camera_event(None, event, None, None, "")
    assert drawn.counts["clusters"] == "0"
    assert drawn.views[0].places == {}


def test_frames_with_and_without_their_pedestal(
    display: Display, camera: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    reco, run = camera
    assert display("camera", reco, "--frames", run, "-o", "frames.html") == cli.DONE
    assert "frames.html: 2 frames" in capsys.readouterr().err
    assert display("camera", reco, "--frames", run, "--pedestal", run, "--event", 1, "-o", "one.html") == cli.DONE
    assert '"run 2, event 1"' in Path("one.html").read_text()
    assert '"run 2, event 0"' not in Path("one.html").read_text()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--event", 9], "no event 9 in tree 'Events' of .*reco.root; its numbers go from 0 to 1"),
        (["--frames", "other.root"], "other.root has no frame of run 2, event 0"),
        (["--frames", "absent.root"], "no such file"),
        (["--pedestal", "other.root"], "--pedestal is taken off the frames of --frames, which are not given"),
    ],
)
def test_frames_that_are_none(
    argv: list, message: str, display: Display, camera: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with RootWriter("other.root") as writer:
        writer.put("pic_run9_ev0", histogram("pic_run9_ev0", np.full(SHAPE, 99, np.int32)))
    assert display("camera", camera[0], *argv, "-o", "frames.html") == cli.WRONG_INPUT
    assert re.search(message, capsys.readouterr().err)
    assert not Path("frames.html").exists()


def test_an_empty_reconstruction(display: Display, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RootWriter(tmp_path / "empty.root") as writer:
        writer.create("Events", FRAMES)
    assert display("camera", "empty.root", "-o", "frames.html") == cli.WRONG_INPUT
    assert "tree 'Events' of empty.root is empty" in capsys.readouterr().err
    assert ak.num(read(tmp_path / "empty.root", FRAMES), axis=0) == 0
