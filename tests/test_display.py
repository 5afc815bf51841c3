"""The event display: what is drawn, by the data of its traces, and tools/display.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import awkward as ak
import numpy as np
import plotly.graph_objects as go
import pytest
from synthetic import DETECTOR, hit_events, reco_events, truth_events
from tool_loader import load_tool

from sparsereco import cli
from sparsereco.display import IMAGE_EDGE, IMAGES, SHORTEST, SPECIES_COLOURS, TRACK_COLOUR, event_figure, to_page
from sparsereco.io import HITS, RECO, TRUTH, RootWriter, read
from sparsereco.kinematics import track_range

TOOL = Path(__file__).parents[1] / "tools" / "display.py"
Display = Callable[..., int]


@pytest.fixture(scope="module")
def truth() -> ak.Array:
    return truth_events(12, species=(2212, 1000010030))


@pytest.fixture(scope="module")
def figure(truth: ak.Array) -> go.Figure:
    return event_figure(hit_events(truth[:1])[0], truth[0], reco_events(truth)[0], DETECTOR, "an event")


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
    return lambda *argv: cli.main(module.run, [str(argument) for argument in argv])


def named(figure: go.Figure, name: str) -> list:
    return [trace for trace in figure.data if trace.name and re.fullmatch(name, trace.name)]


def points(trace: go.Scatter3d) -> np.ndarray:
    return np.array([trace.x, trace.y, trace.z], np.float64).T


def test_voxels_are_cubes_to_scale(figure: go.Figure, truth: ak.Array) -> None:
    hits = hit_events(truth[:1])[0]
    (mesh,) = named(figure, r"hits \(\d+\)")
    assert mesh.name == f"hits ({len(hits.hit_pe)})"
    cubes = points(mesh).reshape(-1, 8, 3)
    assert cubes.mean(1)[:, 0] == pytest.approx(ak.to_numpy(hits.hit_x))
    assert np.ptp(cubes, axis=1) == pytest.approx(9.2, abs=0.02)
    assert np.reshape(mesh.intensity, (-1, 8))[:, 0] == pytest.approx(np.log10(hits.hit_pe), abs=1e-3)
    # Each cube is closed: every edge of its twelve triangles belongs to two of them.
    triangles = np.stack([mesh.i, mesh.j, mesh.k], 1)
    assert len(triangles) == 12 * len(cubes)
    edges = np.sort(triangles[:12][:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    assert np.all(np.unique(edges, axis=0, return_counts=True)[1] == 2)


def test_arrows_are_as_long_as_the_range(figure: go.Figure, truth: ak.Array) -> None:
    reco = reco_events(truth)[0]
    arrows = named(figure, r"[pt] .* ± .* MeV")
    assert len(arrows) == len(reco.part_ke) > 0
    ranges = track_range(ak.to_numpy(reco.part_ke), ak.to_numpy(reco.part_pdg))
    for n, arrow in enumerate(arrows):
        start, tip = points(arrow)[:2]
        assert start == pytest.approx([reco.vtx_x[0], reco.vtx_y[0], reco.vtx_z[0]], abs=1e-2)
        assert np.linalg.norm(tip - start) == pytest.approx(max(ranges[n], SHORTEST), abs=1e-2)
        assert f"range {ranges[n]:.1f} mm" in arrow.hovertext
    assert named(figure, "leaving track 0")


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
    figure = event_figure(hits, None, reco, DETECTOR, "")
    hadron, track = (trace for trace in figure.data if trace.legendgroup == IMAGES)
    assert (hadron.color, track.color) == (SPECIES_COLOURS[int(reco.part_pdg[0])], TRACK_COLOUR)
    for trace, part, share in ((hadron, 0, 0.75), (track, -1, 0.25)):
        light = ak.to_numpy(reco.img_pe[reco.img_part == part])
        assert trace.name.endswith(f": {len(light)} voxels")
        cubes = points(trace).reshape(-1, 8, 3)
        assert len(cubes) == len(light)
        assert cubes.mean(1)[:, 2] == pytest.approx(ak.to_numpy(reco.img_z[reco.img_part == part]), abs=0.01)
        edge = IMAGE_EDGE * DETECTOR.pitch * np.cbrt(share)
        assert np.ptp(cubes, axis=1) == pytest.approx(edge, abs=0.02)
        shown = [float(re.search(r"([\d.]+) p\.e\.", label)[1]) for label in trace.hovertext[::8]]
        assert shown == pytest.approx(light.tolist(), abs=0.051)
        assert all(f"{100 * share:.0f} % of the voxel" in label for label in trace.hovertext)


def test_without_hits_a_share_is_that_of_all_images(imaged: Path) -> None:
    figure = event_figure(None, None, read(imaged, RECO, "reco")[0], DETECTOR, "")
    track = next(trace for trace in figure.data if trace.legendgroup == IMAGES and "track" in trace.name)
    assert "25 % of the voxel" in track.hovertext[0]
    assert "100 % of the voxel" in track.hovertext[-1]


def test_the_button_swaps_hits_and_images(imaged: Path) -> None:
    hits, reco = read(imaged, HITS, "hits")[0], read(imaged, RECO, "reco")[0]
    figure = event_figure(hits, None, reco, DETECTOR, "")
    (button,) = figure.layout.updatemenus[1].buttons
    places = button.args[1]
    names = [figure.data[place].name for place in places]
    assert [name.startswith("hits") for name in names] == [False, False, True]
    assert button.args[0]["visible"] == [True, True, "legendonly"]
    # At first, and after a second click, the hits are there and the images are not.
    assert button.args2 == ({"visible": ["legendonly", "legendonly", True]}, places)
    assert [figure.data[place].visible or True for place in places] == button.args2[0]["visible"]


def test_truth_stays_in_the_detector_and_has_every_particle(figure: go.Figure, truth: ak.Array) -> None:
    lines = [trace for trace in figure.data if trace.legendgroup == "truth" and trace.mode == "lines"]
    assert len(lines) == len(truth[0].part_ke)
    half = np.array(DETECTOR.size) / 2
    for line in lines:
        assert np.nanmax(np.abs(points(line)) / half) <= 1 + 1e-6


def test_the_view_is_at_the_vertex_and_a_button_shows_all(figure: go.Figure, truth: ak.Array) -> None:
    reco = reco_events(truth)[0]
    assert np.mean(figure.layout.scene.xaxis.range) == pytest.approx(reco.vtx_x[0])
    near, whole = figure.layout.updatemenus[0].buttons
    assert near.args[0]["scene.xaxis.range"] == list(figure.layout.scene.xaxis.range)
    assert whole.args[0]["scene.zaxis.range"] == [-920, 920]
    assert whole.args[0]["scene.aspectratio"]["x"] / whole.args[0]["scene.aspectratio"]["y"] == pytest.approx(192 / 56)


@pytest.mark.parametrize("given", ["hits", "truth", "reco", "nothing"])
def test_every_part_may_be_missing(given: str, truth: ak.Array) -> None:
    parts = {"hits": hit_events(truth[:1])[0], "truth": truth[0], "reco": reco_events(truth)[0]}
    figure = event_figure(*(parts[name] if name == given else None for name in parts), DETECTOR, "")
    assert named(figure, "detector")
    assert len(figure.data) > 1 or given == "nothing"


def test_an_event_without_hits_or_vertex(truth: ak.Array) -> None:
    hits = hit_events(truth[:1])
    empty = ak.Array({name: hits[name][:, :0] if hits[name].ndim > 1 else hits[name] for name in hits.fields})
    figure = event_figure(empty[0], None, reco_events(truth, no_vertex=1.0)[0], DETECTOR, "")
    assert [trace.name for trace in figure.data] == ["detector"]
    assert list(figure.layout.scene.xaxis.range) == [-960, 960]


def test_the_page_is_escaped_and_complete(figure: go.Figure, truth: ak.Array) -> None:
    name = "</title><script>alert(1)</script>"
    page = to_page(event_figure(None, truth[0], None, DETECTOR, name), name)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", page[-200_000:] + page[:2000])
    assert "Plotly.newPlot" in page
    assert len(page) > 2_000_000  # plotly itself is inside


def test_tool_draws_what_the_files_have(
    display: Display, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    reco, sample = files
    assert display(reco, "--hits", sample, "--event", 3, "-o", "event.html") == cli.DONE
    assert "reco, truth, hits" in capsys.readouterr().err
    page = Path("event.html").read_text()
    assert "event 3" in page
    assert "true vertex" in page
    assert display(sample, "--event", 3, "-o", "sample.html") == cli.DONE
    assert "not in the files: reco" in capsys.readouterr().err
    assert display(reco, "--event", 3, "-o", "event.html") == cli.WRONG_INPUT
    assert "-f replaces it" in capsys.readouterr().err
    assert Path("event.html").read_text() == page


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
