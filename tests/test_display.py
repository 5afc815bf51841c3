"""Displays of the vertex chain: what is drawn, by the data of its traces, and tools/display.py vertex."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
from synthetic import DETECTOR, hit_events, reco_events, truth_events
from tool_loader import load_tool

from sparsereco import cli
from sparsereco.display.decomposition import RESIDUAL, decompose, project, static_figure
from sparsereco.display.page import HIDDEN, Event, numbers, packed_image, to_page
from sparsereco.display.vertex import IMAGE_EDGE, SHORTEST, SPECIES_COLOURS, TRACK_COLOUR, vertex_event
from sparsereco.io import HITS, RECO, TRUTH, RootWriter, read
from sparsereco.kinematics import track_range

Display = Callable[..., int]
Trace = dict[str, Any]


@pytest.fixture(scope="module")
def truth() -> ak.Array:
    return truth_events(12, species=(2212, 1000010030))


@pytest.fixture(scope="module")
def event(truth: ak.Array) -> Event:
    return vertex_event(hit_events(truth[:1])[0], truth[0], reco_events(truth)[0], DETECTOR, "an event")


@pytest.fixture
def files(truth: ak.Array, tmp_path: Path) -> tuple[Path, Path]:
    """A reconstruction and its sample; event 4 exists in two runs."""
    run = np.where(np.arange(12) == 8, 2, 1)
    event = np.where(np.arange(12) == 8, 4, np.arange(12))
    truth = ak.with_field(ak.with_field(truth, run, "run"), event, "event")
    with RootWriter(tmp_path / "sample.root") as writer:
        writer.extend("hits", HITS, hit_events(truth))
        writer.extend("truth", TRUTH, truth)
    with RootWriter(tmp_path / "reco.root") as writer:
        writer.extend("reco", RECO, reco_events(truth))
    return tmp_path / "reco.root", tmp_path / "sample.root"


@pytest.fixture
def display(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Display:
    module = load_tool("display")
    monkeypatch.chdir(tmp_path)
    return lambda *argv: cli.main(module.run, ["vertex", *map(str, argv)])


def named(event: Event, name: str) -> list[Trace]:
    return [trace for trace in event.views[0].traces if re.fullmatch(name, trace["name"])]


def points(trace: Trace) -> np.ndarray:
    return np.array([trace["x"], trace["y"], trace["z"]], np.float64).T


def test_voxels_have_the_place_and_the_light_of_the_hits(event: Event, truth: ak.Array) -> None:
    hits = hit_events(truth[:1])[0]
    (trace,) = named(event, r"hits \(\d+\)")
    assert trace["name"] == f"hits ({len(hits.hit_pe)})"
    assert trace["edge"] == pytest.approx(9.2)
    drawn = event.voxels[trace["voxels"]]
    assert drawn["x"] == pytest.approx(ak.to_numpy(hits.hit_x), abs=0.01)
    assert drawn["value"] == pytest.approx(ak.to_numpy(hits.hit_pe), rel=1e-3)


def test_counts_are_those_of_the_records(event: Event, truth: ak.Array) -> None:
    hits, reco = hit_events(truth[:1])[0], reco_events(truth)[0]
    assert event.counts["hits"] == f"{len(hits.hit_pe):,}"
    assert event.counts["hadrons"] == str(len(reco.part_ke))
    assert event.counts["true particles"] == str(len(truth[0].part_ke))
    assert sum(len(table.rows) for table in event.tables) == len(reco.part_ke) + 1 + len(truth[0].part_ke)


def test_arrows_are_as_long_as_the_range(event: Event, truth: ak.Array) -> None:
    reco = reco_events(truth)[0]
    arrows = named(event, r"[pt] .* ± .* MeV")
    assert len(arrows) == len(reco.part_ke) > 0
    ranges = track_range(ak.to_numpy(reco.part_ke), ak.to_numpy(reco.part_pdg))
    for n, arrow in enumerate(arrows):
        start, tip = points(arrow)[:2]
        assert start == pytest.approx([reco.vtx_x[0], reco.vtx_y[0], reco.vtx_z[0]], abs=1e-2)
        assert np.linalg.norm(tip - start) == pytest.approx(max(ranges[n], SHORTEST), abs=1e-2)
        assert f"range {ranges[n]:.1f} mm" in arrow["hovertext"]
    assert named(event, "leaving track 0")


@pytest.fixture
def imaged(truth: ak.Array, tmp_path: Path) -> Path:
    """A file whose first event has images: 3/4 of the first ten hits to hadron 0, 1/4 of all hits to track 0."""
    truth, hits = truth[:1], hit_events(truth[:1])
    rows = np.append(np.arange(10), np.arange(len(hits[0].hit_pe)))
    first = np.arange(len(rows)) < 10
    images = {f"img_{axis}": [hits[f"hit_{axis}"][0][rows]] for axis in "xyz"}
    images |= {"img_part": [np.where(first, 0, -1)], "img_pe": [hits.hit_pe[0][rows] * np.where(first, 0.75, 0.25)]}
    reco = reco_events(truth)
    for name, column in images.items():
        reco = ak.with_field(reco, ak.Array(column), name)
    path = tmp_path / "images.root"
    with RootWriter(path) as writer:
        writer.extend("hits", HITS, hits)
        writer.extend("reco", RECO, reco)
    return path


def test_images_have_the_voxels_and_the_light_of_the_file(imaged: Path) -> None:
    hits, reco = read(imaged, HITS, "hits")[0], read(imaged, RECO, "reco")[0]
    event = vertex_event(hits, None, reco, DETECTOR, "")
    hadron, track = (trace for trace in event.views[0].traces if trace.get("legendgroup") == "images")
    assert (hadron["color"], track["color"]) == (SPECIES_COLOURS[int(reco.part_pdg[0])], TRACK_COLOUR)
    for trace, part, share in ((hadron, 0, 0.75), (track, -1, 0.25)):
        light = ak.to_numpy(reco.img_pe[reco.img_part == part])
        assert trace["name"].endswith(f": {len(light)} voxels")
        assert trace["visible"] == HIDDEN
        assert trace["edge"] == IMAGE_EDGE * DETECTOR.pitch
        drawn = event.voxels[trace["voxels"]]
        assert drawn["z"] == pytest.approx(ak.to_numpy(reco.img_z[reco.img_part == part]), abs=0.01)
        assert drawn["value"] == pytest.approx(light, rel=1e-3)
        assert drawn["share"] == pytest.approx(np.full(len(light), share), abs=1e-3)


def test_without_hits_a_share_is_that_of_all_images(imaged: Path) -> None:
    event = vertex_event(None, None, read(imaged, RECO, "reco")[0], DETECTOR, "")
    share = event.voxels["image -1"]["share"]
    assert (share[0], share[-1]) == (0.25, 1.0)


def test_a_decomposition_adds_up_and_shows_what_is_left(imaged: Path) -> None:
    hits, reco = read(imaged, HITS, "hits")[0], read(imaged, RECO, "reco")[0]
    (one,) = decompose(hits, reco, DETECTOR)
    assert min(one.measured.shape) >= 7
    assert one.measured.sum() == pytest.approx(ak.sum(hits.hit_pe), rel=1e-5)  # the images reach to every hit
    assert [image.sum() for _, image in one.parts] == pytest.approx(
        [ak.sum(reco.img_pe[reco.img_part == part]) for part in (0, -1)], rel=1e-5
    )
    titles = [title for title, _ in one.panels]
    assert titles[:3] == ["measured", "sum of parts", RESIDUAL]
    assert titles[4] == "leaving track 0"
    left = dict(one.panels)[RESIDUAL]
    place = tuple(((np.array([reco[f"img_{axis}"][0] for axis in "xyz"]) - one.lower) // one.pitch).astype(int))
    assert left[place] == pytest.approx(0, abs=1e-3)
    assert left.sum() == pytest.approx(0.75 * ak.sum(hits.hit_pe[10:]), rel=1e-4)
    assert one.centres()[place] == pytest.approx([reco[f"img_{axis}"][0] for axis in "xyz"], abs=0.01)
    event = vertex_event(hits, None, reco, DETECTOR, "")
    assert [view.name for view in event.views] == ["3D", "decomposition"]
    assert len(event.views[1].traces) == 3 * len(titles)


def test_a_window_stays_around_its_vertex_and_its_images() -> None:
    truth = truth_events(1)
    reco = reco_events(truth)  # its only image is one voxel, at the vertex
    (one,) = decompose(None, reco[0], DETECTOR)
    assert one.measured.shape == (7, 7, 7)
    assert one.total[3, 3, 3] == 1
    assert one.measured.sum() == 0


def test_projections_keep_their_axes() -> None:
    image = np.zeros((3, 4, 5))
    image[1, 2, 3] = 2.0
    for axes, shape, place in (("xy", (4, 3), (2, 1)), ("zy", (4, 5), (2, 3)), ("zx", (3, 5), (1, 3))):
        flat = project(image, axes)
        assert flat.shape == shape
        assert flat[place] == flat.sum() == 2


def test_the_figure_for_print_has_a_panel_per_part_and_projection(imaged: Path) -> None:
    hits, reco = read(imaged, HITS, "hits")[0], read(imaged, RECO, "reco")[0]
    (one,) = decompose(hits, reco, DETECTOR)
    figure = static_figure(one, "an event")
    images = [ax.images[0] for ax in figure.axes if ax.images]
    assert len(images) == 3 * len(one.panels)
    assert images[0].get_array().sum() == pytest.approx(one.measured.sum())
    assert figure.axes[0].get_title().startswith("measured")


def test_truth_stays_in_the_detector_and_has_every_particle(event: Event, truth: ak.Array) -> None:
    traces = event.views[0].traces
    lines = [trace for trace in traces if trace.get("legendgroup") == "truth" and trace["mode"] == "lines"]
    assert len(lines) == len(truth[0].part_ke)
    half = np.array(DETECTOR.size) / 2
    for line in lines:
        assert np.nanmax(np.abs(points(line)) / half) <= 1 + 1e-6


def test_the_view_is_at_the_vertex_and_another_shows_all(event: Event, truth: ak.Array) -> None:
    reco = reco_events(truth)[0]
    near, whole = event.views[0].places.values()
    assert list(event.views[0].places) == ["vertex", "whole detector"]
    assert np.mean(near["scene.xaxis.range"]) == pytest.approx(reco.vtx_x[0], abs=1e-3)
    assert whole["scene.zaxis.range"] == [-920, 920]
    assert whole["scene.aspectratio"]["x"] / whole["scene.aspectratio"]["y"] == pytest.approx(192 / 56, rel=1e-3)


@pytest.mark.parametrize("given", ["hits", "truth", "reco", "nothing"])
def test_every_part_may_be_missing(given: str, truth: ak.Array) -> None:
    parts = {"hits": hit_events(truth[:1])[0], "truth": truth[0], "reco": reco_events(truth)[0]}
    event = vertex_event(*(parts[name] if name == given else None for name in parts), DETECTOR, "")
    assert named(event, "detector")
    assert len(event.views[0].traces) > 1 or given == "nothing"


def test_an_event_without_hits_or_vertex(truth: ak.Array) -> None:
    hits = hit_events(truth[:1])
    empty = ak.Array({name: hits[name][:, :0] if hits[name].ndim > 1 else hits[name] for name in hits.fields})
    event = vertex_event(empty[0], None, reco_events(truth, no_vertex=1.0)[0], DETECTOR, "")
    assert [trace["name"] for trace in event.views[0].traces] == ["detector"]
    assert list(event.views[0].places) == ["whole detector"]


def test_the_page_is_escaped_and_complete(event: Event) -> None:
    name = "</title><script>alert(1)</script>"
    page = to_page(name, [event, vertex_event(None, None, None, DETECTOR, name)])
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("</script>") == 3
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=[\"'](?!data:)", page[-200_000:] + page[:6000])
    assert 1.7e6 < len(page) < 3e6  # plotly itself is inside, once


def test_what_is_no_number_becomes_null() -> None:
    assert numbers([1.23456, np.nan, np.inf]) == [1.235, None, None]


def test_packed_images_keep_their_values() -> None:
    import base64

    image = np.array([[0.0, 1.0, 2.0], [9.0, -5.0, np.nan]])
    trace = packed_image(image, 0.0, 5.1, x0=3)
    levels = np.frombuffer(base64.b64decode(trace["bytes"]), np.uint8).reshape(-1, trace["width"])
    assert trace["low"] + trace["step"] * levels == pytest.approx(np.array([[0, 1, 2], [5.1, 0, 0]]), abs=0.011)
    assert trace["x0"] == 3


def test_tool_draws_what_the_files_have(
    display: Display, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    reco, sample = files
    assert display(reco, "--hits", sample, "--event", 3, "-n", 2, "-o", "event.html") == cli.DONE
    assert "event.html: 2 events" in capsys.readouterr().err
    page = Path("event.html").read_text()
    assert '"run 1, subrun 0, event 3"' in page
    assert '"run 1, subrun 0, event 4"' in page
    assert '"run 1, subrun 0, event 5"' not in page
    assert "true vertex" in page
    assert display(sample, "-o", "sample.html") == cli.DONE
    said = capsys.readouterr().err
    assert "not in the files: reco" in said
    assert "10 events" in said
    assert display(reco, "--event", 3, "-o", "event.html") == cli.WRONG_INPUT
    assert "-f replaces it" in capsys.readouterr().err
    assert Path("event.html").read_text() == page


def test_a_page_replaces_nothing_else(
    display: Display, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    reco, sample = files
    content = sample.read_bytes()
    assert display(reco, "--hits", sample, "-o", "sample.root", "-f") == cli.WRONG_INPUT
    assert "output sample.root is an input, too: expected another file" in capsys.readouterr().err
    assert display(reco, "-o", "sample.root", "-f") == cli.WRONG_INPUT
    assert "output sample.root: expected a name that ends in .html" in capsys.readouterr().err
    assert display(reco, "-o", "page.html", "--figure", "./page.html") == cli.WRONG_INPUT
    assert "expected outputs that are different files" in capsys.readouterr().err
    os.mkfifo("pipe.html")
    assert display(reco, "-o", "pipe.html", "-f") == cli.WRONG_INPUT
    assert "output pipe.html is a device or a pipe" in capsys.readouterr().err
    assert sample.read_bytes() == content


def test_the_figure_of_a_decomposition(
    display: Display, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    reco, sample = files
    assert display(reco, "--hits", sample, "-o", "event.html", "--figure", "parts.pdf") == cli.DONE
    assert Path("parts.pdf").read_bytes().startswith(b"%PDF")
    assert display(reco, "-o", "other.html", "--figure", "parts.gif") == cli.WRONG_INPUT
    assert "ends in .pdf or .png" in capsys.readouterr().err
    assert display(sample, "-o", "other.html", "--figure", "other.png") == cli.WRONG_INPUT
    assert "has no images of particles" in capsys.readouterr().err
    assert not Path("other.html").exists()


def test_a_number_of_events_that_is_none(
    display: Display, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert display(files[0], "-n", 0, "-o", "event.html") == cli.WRONG_INPUT
    assert "-n: expected a positive number, got 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ("99", "no event 99 in tree 'reco' of .*; its numbers go from 0 to 11"),
        ("4", "event 4 occurs 2 times in tree 'reco' of .*, first as 1:0:4, 2:0:4; give RUN:SUBRUN:NUMBER"),
        ("3:0:4", "no event 3:0:4"),
        ("x", "expected an event as NUMBER or RUN:SUBRUN:NUMBER, got 'x'"),
        ("1:2", "expected an event as NUMBER or RUN:SUBRUN:NUMBER, got '1:2'"),
    ],
)
def test_events_that_are_none_or_not_one(
    event: str, message: str, display: Display, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert display(files[0], "--event", event, "-o", "event.html") == cli.WRONG_INPUT
    assert re.search(message, capsys.readouterr().err)
    assert not Path("event.html").exists()


def test_run_and_subrun_choose_between_equal_numbers(display: Display, files: tuple[Path, Path]) -> None:
    assert display(files[0], "--hits", files[1], "--event", "2:0:4", "-o", "event.html") == cli.DONE
    assert "run 2, subrun 0, event 4" in Path("event.html").read_text()


def test_a_file_with_no_known_tree(display: Display, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RootWriter(tmp_path / "empty.root"):
        pass
    assert display("empty.root", "--event", 0, "-o", "event.html") == cli.WRONG_INPUT
    assert "none of the trees reco, truth, hits in empty.root" in capsys.readouterr().err


def test_the_window_of_a_decomposition_ends_where_tracks_leave_the_crop() -> None:
    middle = np.array(DETECTOR.origin) + 10.0 * (np.array([50, 20, 60]) + 0.5)
    # The crop is of voxels 47 to 53, but the vertex was moved to the next voxel along x.
    wall = middle[0] + 35.0
    one = {f"vtx_{axis}": [float(middle[i] + (6.0 if i == 0 else 0.0))] for i, axis in enumerate("xyz")}
    one |= {"part_vtx": [0], "part_pdg": [2212], "part_ke": [30.0]}
    one |= {"trk_vtx": [0], "img_part": [-1, -1], "img_pe": [10.0, 10.0]}
    one |= {"trk_x": [float(wall)], "trk_y": [float(middle[1] + 1)], "trk_z": [float(middle[2] + 2)]}
    one |= {"trk_dx": [0.9], "trk_dy": [0.3], "trk_dz": [0.316]}
    one |= {
        f"img_{axis}": [float(middle[i]), float(middle[i] + (30.0 if i == 0 else 0.0))] for i, axis in enumerate("xyz")
    }
    event = ak.Array([one])[0]
    (found,) = decompose(None, event, DETECTOR)
    lower = (np.array(found.lower) - np.array(DETECTOR.origin)) / DETECTOR.pitch
    np.testing.assert_allclose(lower, [47, 17, 57])
    assert found.measured.shape == (7, 7, 7)
