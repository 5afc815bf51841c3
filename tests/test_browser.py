"""Displays and reports in a real browser: no errors on loading, switches that work, and the numbers of the file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import awkward as ak
import numpy as np
import pytest
from display_samples import camera_files, infill_files
from synthetic import DETECTOR, hit_events, reco_events, truth_events
from tool_loader import TOOLS, load_tool

from sparsereco import cli
from sparsereco.display.page import to_page
from sparsereco.display.shapes import SIZE
from sparsereco.display.vertex import vertex_event
from sparsereco.io import HITS, RECO, TRUTH, RootWriter, read
from sparsereco.schema import CHARGE_HITS, FRAMES, INFILL, ROIS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Open = Callable[[Path], "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The distribution's Chromium, which draws 3D without a GPU."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    options = ["--no-sandbox", "--disable-background-networking"]  # root has no sandbox
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Opens a file; at the end there must have been no error and no request to anywhere."""
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.set_default_timeout(120_000)  # one core and no GPU
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))

    def open_file(path: Path) -> Page:
        page.goto(path.resolve().as_uri())
        return page

    yield open_file
    page.close()
    assert errors == []
    assert [url[:60] for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a tool in the temporary folder."""
    monkeypatch.chdir(tmp_path)

    def call(tool: str, *argv: object) -> None:
        assert cli.main(load_tool(tool).run, [str(word) for word in argv]) == cli.DONE

    return call


@pytest.fixture
def vertex_files(tmp_path: Path) -> tuple[Path, Path]:
    truth = truth_events(3)
    with RootWriter(tmp_path / "sample.root") as writer:
        writer.extend("hits", HITS, hit_events(truth))
        writer.extend("truth", TRUTH, truth)
    with RootWriter(tmp_path / "reco.root") as writer:
        writer.extend("reco", RECO, reco_events(truth))
        writer.provenance({"config": {}})
    return tmp_path / "reco.root", tmp_path / "sample.root"


def ready(page: Page) -> Page:
    page.wait_for_selector("body[data-ready=true]")
    assert not page.get_by_text("WebGL is not supported").is_visible()
    return page


def counts(page: Page) -> dict[str, str]:
    """What the panel says."""
    return {one.get_attribute("data-count"): one.inner_text() for one in page.locator("dd").all()}


def drawn(page: Page, group: str) -> list[dict[str, Any]]:
    """Name, visibility and number of points of what is drawn of a group."""
    return page.evaluate(
        "group => plot._fullData.filter(trace => trace.legendgroup === group)"
        ".map(trace => ({ name: trace.name, visible: trace.visible, n: trace.x ? trace.x.length : 0 }))",
        group,
    )


def invalid(page: Page) -> list[str]:
    """What plotly finds wrong with the traces and the layout."""
    found = page.evaluate("(Plotly.validate(plot.data, plot.layout) ?? []).map(one => one.msg)")
    # plotly 4 has no colour axis in its list of a mesh's values, yet uses it.
    return [message for message in found if "key coloraxis is set to an invalid value" not in message]


def test_events_of_the_vertex_chain(run: Callable[..., None], open_page: Open, vertex_files: tuple[Path, Path]) -> None:
    reco_file, sample = vertex_files
    run("display", "vertex", reco_file, "--hits", sample, "-o", "events.html")
    hits, reco = read(sample, HITS, "hits"), read(reco_file, RECO)
    page = ready(open_page(Path("events.html")))
    assert page.title() == str(reco_file)
    assert invalid(page) == []
    for n in range(3):
        assert page.locator("#event option:checked").inner_text() == f"run 1, subrun 0, event {n}"
        shown = counts(page)
        assert shown["hits"] == f"{len(hits[n].hit_pe):,}"
        assert shown["light [p.e.]"] == f"{ak.sum(hits[n].hit_pe):,.0f}"
        assert shown["hadrons"] == str(len(reco[n].part_ke))
        assert [trace["n"] for trace in drawn(page, "hits")] == [8 * len(hits[n].hit_pe)]
        assert len(page.locator("#tables tbody tr").all()) == len(reco[n].part_ke) + 1 + int(shown["true particles"])
        assert page.locator("#next").is_disabled() == (n == 2)
        if n < 2:
            page.click("#next")
    page.click("#previous")
    assert counts(page)["hits"] == f"{len(hits[1].hit_pe):,}"
    page.keyboard.press("ArrowLeft")
    assert counts(page)["hits"] == f"{len(hits[0].hit_pe):,}"
    assert page.locator("#previous").is_disabled()


def test_what_is_switched_off_stays_off_in_the_next_event(
    run: Callable[..., None], open_page: Open, vertex_files: tuple[Path, Path]
) -> None:
    run("display", "vertex", vertex_files[0], "--hits", vertex_files[1], "-o", "events.html")
    page = ready(open_page(Path("events.html")))
    groups = [box.get_attribute("data-group") for box in page.locator("#toggles input").all()]
    assert groups == ["hits", "reconstruction", "leaving tracks", "images", "residual", "truth", "detector"]
    for group in groups:
        box = page.locator(f"input[data-group='{group}']")
        before = [trace["visible"] for trace in drawn(page, group)]
        assert before == [True if box.is_checked() else "legendonly"] * len(before)
        box.click()
        assert [trace["visible"] for trace in drawn(page, group)] == [True if box.is_checked() else "legendonly"] * len(
            before
        )
    page.click("#next")
    assert {trace["visible"] for trace in drawn(page, "hits")} == {"legendonly"}
    assert {trace["visible"] for trace in drawn(page, "images")} == {True}
    page.get_by_role("button", name="decomposition").click()
    assert page.evaluate("plot.data.map(trace => trace.type)") == ["heatmap"] * 12  # 4 panels in 3 projections
    assert invalid(page) == []
    page.get_by_role("button", name="3D").click()
    page.select_option("#place", "whole detector")
    assert page.evaluate("plot.layout.scene.xaxis.range") == [-960, 960]


def test_names_are_no_html(open_page: Open, tmp_path: Path) -> None:
    name = "</script><img src=x onerror=\"document.title='broken'\"><b>.root"
    truth = truth_events(1)
    event = vertex_event(hit_events(truth)[0], truth[0], None, DETECTOR, name)
    (tmp_path / "names.html").write_text(to_page(name, [event]))
    page = ready(open_page(tmp_path / "names.html"))
    assert page.title() == page.locator("h1").inner_text() == name
    assert page.locator("img, h1 b").count() == 0


def test_an_event_of_5000_hits(open_page: Open, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    index = np.stack([rng.integers(0, n, 5000) for n in DETECTOR.shape], 1)
    columns = {f"hit_{axis}": [column] for axis, column in zip("xyz", DETECTOR.centre(index).T, strict=True)}
    hits = ak.Array({"run": [1], "subrun": [0], "event": [0], **columns, "hit_pe": [rng.gamma(2, 20, 5000)]})[0]
    path = tmp_path / "large.html"
    path.write_text(to_page("large", [vertex_event(hits, None, None, DETECTOR, "")]))
    assert path.stat().st_size < 2.5e6
    page = ready(open_page(path))
    assert counts(page)["hits"] == "5,000"
    assert drawn(page, "hits")[0]["n"] == 40_000


@pytest.mark.usefixtures("browser")  # there is one
def test_how_fast_a_page_opens(tmp_path: Path) -> None:
    command = [sys.executable, TOOLS / "benchmark.py", "display", "--hits", "200", "--rounds", "1", "--json", "s.json"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["webgl"] in said
    assert 1.7 < found["size_mb"] < 2
    assert 0 < found["thread_seconds"] <= found["seconds"]


def test_the_infill_before_and_after(run: Callable[..., None], open_page: Open, tmp_path: Path) -> None:
    filled, sample = infill_files(tmp_path)
    run("display", "infill", filled, "--hits", sample, "-o", "events.html")
    hits, fill = read(sample, CHARGE_HITS, "hits")[0], read(filled, INFILL)[0]
    page = ready(open_page(Path("events.html")))
    shown = counts(page)
    assert (shown["hits"], shown["filled"]) == (str(len(hits.hit_e)), str(len(fill.fill_e)))
    assert (shown["filled, true"], shown["missed"]) == ("3", "2")
    assert [trace["n"] for trace in drawn(page, "filled, true")] == [24]
    page.locator("input[data-group='missed']").click()
    assert drawn(page, "missed")[0]["visible"] == "legendonly"
    page.get_by_role("button", name="side by side").click()
    assert page.evaluate("plot.data.map(trace => trace.scene)") == ["scene", "scene", "scene2", "scene3", "scene3"]
    # Plotly draws a cube by the height of its panel; in a narrow one it is smaller, so that the labels stay inside.
    size, width, height = page.evaluate("[plot.layout.scene.aspectratio.x, plot.clientWidth, plot.clientHeight]")
    assert size == pytest.approx(SIZE * (0.3 * width - 60) / height, rel=0.01)
    turned = {"x": 0.1, "y": 2, "z": 0.1}
    page.evaluate("eye => Plotly.relayout(plot, { 'scene2.camera': { ...plot.layout.scene2.camera, eye } })", turned)
    page.wait_for_function("plot.layout.scene3.camera.eye.y === 2 && plot.layout.scene.camera.eye.y === 2")
    page.click("#next")
    assert page.locator("#event option:checked").inner_text() == "run 1, subrun 0, event 1"


def test_frames_with_clusters(run: Callable[..., None], open_page: Open, tmp_path: Path) -> None:
    reco, frames = camera_files(tmp_path)
    run("display", "camera", reco, "--frames", frames, "-o", "frames.html")
    event, regions = read(reco, FRAMES)[0], read(reco, ROIS)[0]
    page = ready(open_page(Path("frames.html")))
    assert invalid(page) == []
    shown = counts(page)
    assert shown["clusters"] == str(len(event.sc_size))
    assert shown["pixels in clusters"] == str(len(event.redpix_ix))
    assert (shown["regions"], shown["pixels in regions"]) == (str(len(regions.roi_area)), str(sum(regions.roi_area)))
    assert page.evaluate("[plot.data[0].z.length, plot.data[0].z[0].length]") == [16, 24]
    page.locator("input[data-group='full resolution']").click()
    assert [trace["visible"] for trace in drawn(page, "full resolution")] == [True, True]
    box = page.locator("input[data-group='regions']")
    assert [trace["n"] for trace in drawn(page, "regions")] == [len(regions.corner_x) + 2 * len(regions.roi_area)]
    assert page.locator(".scatterlayer text", has_text="0").count() == 2  # of a cluster and of a region
    box.click()
    assert [trace["visible"] for trace in drawn(page, "regions")] == ["legendonly"]
    box.click()
    hover = "plot._fullData.find(trace => trace.legendgroup === 'regions')"
    page.evaluate(f"Plotly.Fx.hover(plot, [{{ curveNumber: {hover}.index, pointNumber: 1 }}])")
    assert "region: 0" in page.locator(".hoverlayer").text_content()
    page.select_option("#place", "cluster 1")
    left, right = page.evaluate("plot.layout.xaxis.range")
    assert left < 40 < 43 < right
    page.click("#next")
    assert counts(page)["clusters"] == "0"


def test_a_report(run: Callable[..., None], open_page: Open, vertex_files: tuple[Path, Path]) -> None:
    run("evaluate", "vertex", *vertex_files, "-o", "report")
    page = open_page(Path("report/report.html"))
    assert "3 events" in page.locator(".facts").inner_text()
    assert page.locator("figure img").count() > 5
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 100)")
    details = page.locator("details")
    assert not details.locator("pre").is_visible()
    details.locator("summary").click()
    assert "evaluate.py vertex" in details.locator("pre").inner_text()
