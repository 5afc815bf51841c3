"""How long the page of an event takes in a browser, from navigation to the first drawn plot, and how large it is."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import awkward as ak
import jsonargparse
import numpy as np
import psutil

from sparsereco.detector import Detector
from sparsereco.display.page import to_page
from sparsereco.display.vertex import vertex_event
from sparsereco.errors import InputError

RENDERER = """() => {
  const gl = document.createElement("canvas").getContext("webgl");
  return gl.getParameter(gl.getExtension("WEBGL_debug_renderer_info")?.UNMASKED_RENDERER_WEBGL ?? gl.RENDERER);
}"""
DRAWN = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now()))))"
"""Time since navigation [ms], once the frame with the plot has gone out."""


def run(args: jsonargparse.Namespace) -> dict[str, Any]:
    """Makes the page and opens it again and again, each time in a fresh context."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise InputError("playwright is not installed: pip install playwright") from None
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise InputError("there is no chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = Path(folder) / "event.html"
        path.write_text(to_page("event", [vertex_event(random_hits(args.hits), None, None, Detector(), "")]))
        size = path.stat().st_size / 1e6
        print(f"{args.hits:,} hits: {size:.2f} MB")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])  # root has no sandbox
        rows = [opened(browser, path) for _ in range(args.rounds)]
        page = browser.new_page()
        renderer, version = page.evaluate(RENDERER), browser.version
        browser.close()
    wall, thread, total = (statistics.median(column) for column in zip(*rows, strict=True))
    busy = os.getloadavg()[0]
    print(f"Chromium {version}, WebGL by {renderer}; {os.cpu_count()} cores, load {busy:.1f}")
    print(f"drawn after {wall:.2f} s ({min(row[0] for row in rows):.2f} to {max(row[0] for row in rows):.2f}), median")
    print(f"of {args.rounds}; processor time: {total:.2f} s in all of the browser, {thread:.2f} s in the page's thread")
    return {
        "hits": args.hits, "size_mb": size, "seconds": wall, "all_seconds": [row[0] for row in rows],
        "processor_seconds": total, "thread_seconds": thread,
        "browser": version, "webgl": renderer, "load": busy, "cores": os.cpu_count(),
    }  # fmt: skip


def random_hits(n: int) -> ak.Record:
    """An event of n hits anywhere in the detector."""
    rng, detector = np.random.default_rng(1), Detector()
    index = np.stack([rng.integers(0, side, n) for side in detector.shape], 1)
    columns = {f"hit_{axis}": [column] for axis, column in zip("xyz", detector.centre(index).T, strict=True)}
    return ak.Array({"run": [1], "subrun": [0], "event": [0], **columns, "hit_pe": [rng.gamma(2, 20, n)]})[0]


def opened(browser: Any, path: Path) -> tuple[float, float, float]:
    """Seconds from navigation to the drawn plot: by the clock, and of processors in the page's thread and in all."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    page.set_default_timeout(120_000)
    session = context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    before = processor_time()
    page.goto(path.as_uri(), wait_until="commit")
    page.wait_for_selector("body[data-ready=true]")
    wall = page.evaluate(DRAWN)
    total = processor_time() - before
    metrics = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    context.close()
    return wall / 1e3, metrics["ThreadTime"], total


def processor_time() -> float:
    """Of all processes of the browser that run now [s]."""
    processes = [one for one in psutil.Process().children(recursive=True) if "chrom" in one.name()]
    return sum(sum(one.cpu_times()[:2]) for one in processes)
