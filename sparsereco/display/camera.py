"""Frames of a camera with the outlines of clusters and regions. Lengths in pixels, light in counts, energies in keV.

The frame is drawn in macro-pixels of 4 x 4, as the chain sees it, and pixel by pixel around its clusters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import awkward as ak
import numpy as np
from numpy.typing import NDArray

from sparsereco.display.page import HIDDEN, PLAIN_AXIS, Event, Table, Trace, View, escaped, numbers, packed_image

MACRO = 4
"""Edge of a macro-pixel."""
RANGE = -2.0, 12.0
"""Light from white to black [counts per pixel]."""
MARGIN = 10
"""What is drawn pixel by pixel, and shown of a cluster, beyond its box."""
MOST = 30
"""At most so many clusters are drawn pixel by pixel, those with the most light."""
CLUSTER_COLOUR, CHOSEN_COLOUR, REGION_COLOUR, TRUTH_COLOUR = "#d55e00", "#0072b2", "#aa3377", "#009e73"
FRAME, FINE = "frame", "full resolution"
CLUSTERS, CHOSEN, REGIONS, TRUTH = "clusters", "chosen pixels", "regions", "truth"
"""What is switched together."""
UNKNOWN = "?"
"""For numbers that a file does not have."""

Image = NDArray[np.float32]


def camera_event(
    image: Image | None, reco: ak.Record | None, regions: ak.Record | None, truth: ak.Record | None, name: str
) -> Event:
    """One frame.

    Args:
        image: (H, W) light without pedestal, NaN where a pixel cannot be used; None where there is none.
        reco: of schema `Events`, None where there is none; what only our files have (score, chosen pixels) may be
            missing. Without an image, the pixels of clusters are shown that it has.
        regions: of schema `roi`, None where there is none.
        truth: of schema `event_info`, None where there is none.
        name: of the frame.
    """
    from sparsereco.camera.redpix import cluster_rows  # with torch, which the rest does without

    traces: list[Trace] = []
    places: dict[str, dict[str, Any]] = {}
    if image is not None:
        traces.append(_macro(image))
        places["whole frame"] = _box(0, image.shape[1] - 1, 0, image.shape[0] - 1)
    if reco is not None:
        x, y, light = (ak.to_numpy(reco[f"redpix_i{axis}"]) for axis in "xyz")
        mine = [np.zeros(0, np.int64) if rows is None else rows for rows in cluster_rows(reco)]
        pixels = _pixels(x, y, light) if image is None else image
        visible = {"visible": HIDDEN} if image is not None else {}
        traces += [_fine(pixels, x[one], y[one], **visible) for one in mine[:MOST] if len(one)]
        if "redpix_hit" in reco.fields:
            hit = ak.to_numpy(reco.redpix_hit) > 0
            chosen = [outline(x[one][hit[one]], y[one][hit[one]]) for one in mine]
            traces.append(_lines(chosen, CHOSEN, CHOSEN_COLOUR, 1.2, visible=HIDDEN))
        traces.append(_lines([outline(x[one], y[one]) for one in mine], CLUSTERS, CLUSTER_COLOUR, 2))
        traces.append(_labels(reco))
        for n, one in enumerate(mine):
            if len(one):
                places[f"cluster {n}"] = _box(x[one].min(), x[one].max(), y[one].min(), y[one].max())
    if regions is not None:
        traces.append(_regions(regions))
    if truth is not None:
        tracks, x, y = (ak.to_numpy(truth[f"redpix_{name}"]) for name in ("track", "ix", "iy"))
        traces.append(
            _lines([outline(x[tracks == n], y[tracks == n]) for n in np.unique(tracks)], TRUTH, TRUTH_COLOUR, 1.5)
        )
        traces.append(_starts(truth))
    layout = {
        "xaxis": PLAIN_AXIS | {"title": {"text": "x [pixel]"}, "constrain": "domain"},
        "yaxis": PLAIN_AXIS | {"title": {"text": "y [pixel]"}, "scaleanchor": "x", "constrain": "domain"},
        "margin": {"l": 70, "r": 10, "t": 15, "b": 50}, "showlegend": False,
    }  # fmt: skip
    counts, tables = _counts(image, reco, regions, truth), _tables(reco, regions, truth)
    return Event(name, counts, tables, [View("frame", traces, layout, places)])


def outline(x: NDArray[Any], y: NDArray[Any]) -> list[NDArray[np.float64]]:
    """The border of a set of pixels, as straight lines.

    Args:
        x: (P,) of the pixels; the centre of pixel (0, 0) is at 0, 0.
        y: (P,) likewise.

    Returns:
        Lines (2, 2), start and end by x, y.
    """
    pixels = np.unique(np.stack([x, y], 1).astype(np.int64), axis=0)
    found = []
    for along in (0, 1):
        across = 1 - along
        for side in (-1, 1):
            neighbour = pixels.copy()
            neighbour[:, across] += side
            key = np.concatenate([pixels, neighbour]) @ [1 << 32, 1]
            edge = pixels[~np.isin(key[len(pixels) :], key[: len(pixels)])]
            edge = edge[np.lexsort([edge[:, along], edge[:, across]])]
            step = np.diff(edge, axis=0)
            cut = np.flatnonzero((step[:, across] != 0) | (step[:, along] != 1)) + 1
            for run in np.split(edge, cut):
                if len(run):
                    line = np.stack([run[0], run[-1]]).astype(np.float64)
                    line[:, across] += side / 2
                    line[:, along] += [-0.5, 0.5]
                    found.append(line)
    return found


def _lines(outlines: Iterable[list[NDArray[np.float64]]], group: str, colour: str, width: float, **trace: Any) -> Trace:
    """Outlines as one trace."""
    gap = np.full((1, 2), np.nan)
    pieces = [part for one in outlines for line in one for part in (line, gap)]
    x, y = (numbers(column, 1) for column in np.concatenate([np.empty((0, 2)), *pieces]).T)
    line = {"color": colour, "width": width}
    return {
        "type": "scatter", "mode": "lines", "x": x, "y": y, "line": line, "name": group, "legendgroup": group,
        "hoverinfo": "skip", **trace,
    }  # fmt: skip


def _macro(image: Image) -> Trace:
    """The frame in macro-pixels."""
    height, width = (side // MACRO for side in image.shape)
    blocks = image[: height * MACRO, : width * MACRO].reshape(height, MACRO, width, MACRO)
    good = np.isfinite(blocks)
    mean = np.where(good, blocks, 0).sum((1, 3)) / np.maximum(good.sum((1, 3)), 1)
    middle = (MACRO - 1) / 2
    return packed_image(
        mean, *RANGE, x0=middle, dx=MACRO, y0=middle, dy=MACRO, legendgroup=FRAME, name=FRAME,
        zmin=RANGE[0], zmax=RANGE[1], colorscale="Greys", reversescale=True,
        colorbar={"title": {"text": "light [counts per pixel]", "side": "right"}, "len": 0.6, "thickness": 12},
        hovertemplate="x %{x:.0f}, y %{y:.0f}: %{z:.1f} counts per pixel<extra></extra>",
    )  # fmt: skip


def _pixels(x: NDArray[Any], y: NDArray[Any], light: NDArray[Any]) -> Image:
    """An image that has only some pixels, NaN elsewhere."""
    image = np.full((y.max(initial=0) + 1, x.max(initial=0) + 1), np.nan, np.float32)
    image[y, x] = light
    return image


def _fine(image: Image, x: NDArray[Any], y: NDArray[Any], **trace: Any) -> Trace:
    """The pixels around a cluster."""
    left, right = max(int(x.min()) - MARGIN, 0), int(x.max()) + MARGIN + 1
    low, high = max(int(y.min()) - MARGIN, 0), int(y.max()) + MARGIN + 1
    return packed_image(
        image[low:high, left:right], -12.0, 39.0, x0=left, dx=1, y0=low, dy=1, legendgroup=FINE, name=FINE,
        zmin=-12, zmax=39, colorscale="Greys", reversescale=True, showscale=False,
        hovertemplate="x %{x}, y %{y}: %{z:.0f} counts<extra></extra>", **trace,
    )  # fmt: skip


def _labels(reco: ak.Record) -> Trace:
    """A number beside each cluster, its features for the pointer."""
    texts = [
        escaped({
            "cluster": str(n), "energy": f"{_energy(reco.sc_energy[n])} keV",
            "integral": f"{reco.sc_integral[n]:,.0f} counts",
            "pixels": f"{reco.sc_size[n]:.0f}, of which chosen {reco.sc_nhits[n]:.0f}",
            "length x width": f"{reco.sc_length[n]:.0f} x {reco.sc_width[n]:.0f}",
        } | ({"score": f"{reco.sc_score[n]:.2f}"} if "sc_score" in reco.fields else {}))
        for n in range(len(reco.sc_size))
    ]  # fmt: skip
    return {
        "type": "scatter", "mode": "text", "x": numbers(reco.sc_xmax, 1), "y": numbers(reco.sc_ymax, 1),
        "text": [f" {n}" for n in range(len(texts))], "textposition": "top right", "hovertext": texts,
        "hoverinfo": "text", "textfont": {"color": CLUSTER_COLOUR, "size": 13}, "legendgroup": CLUSTERS,
        "name": CLUSTERS,
    }  # fmt: skip


def _regions(regions: ak.Record) -> Trace:
    """Outlines of the regions with a number beside each, what is known of it at every corner for the pointer."""
    from sparsereco.camera.regions import polygons_of  # with torch and scikit-image, which the rest does without

    x, y = [], []
    numbered, texts = [], []
    for n, corners in enumerate(polygons_of(regions)):
        about = escaped({
            "region": str(n), "pixels": f"{regions.roi_area[n]:,}, of which chosen {regions.roi_nhits[n]:,}",
            "light": f"{regions.roi_integral[n]:,.0f} counts", "score": f"{regions.roi_score[n]:.2f}",
        })  # fmt: skip
        lowest = int(np.lexsort(corners.T)[0])
        corners = np.roll(corners, -lowest, axis=0)
        x += [*numbers(corners[:, 0], 1), *numbers(corners[:1, 0], 1), None]
        y += [*numbers(corners[:, 1], 1), *numbers(corners[:1, 1], 1), None]
        numbered += [str(n), *[""] * (len(corners) + 1)]
        texts += [about] * (len(corners) + 2)
    return {
        "type": "scatter", "mode": "lines+text", "x": x, "y": y, "text": numbered, "textposition": "bottom right",
        "hovertext": texts, "hoverinfo": "text", "textfont": {"color": REGION_COLOUR, "size": 13},
        "line": {"color": REGION_COLOUR, "width": 1.5, "dash": "dash"}, "legendgroup": REGIONS, "name": REGIONS,
    }  # fmt: skip


def _starts(truth: ak.Record) -> Trace:
    """Where true tracks start."""
    texts = [
        f"true {_species(int(pdg))}, {energy:.2f} keV<br>{light:,.0f} counts, {z:.0f} mm from the GEM"
        for pdg, energy, light, z in zip(truth.particle_type, truth.energy, truth.light, truth.z_vertex, strict=True)
    ]
    return {
        "type": "scatter", "mode": "markers", "x": numbers(truth.x_vertex, 1), "y": numbers(truth.y_vertex, 1),
        "marker": {"symbol": "x-thin-open", "color": TRUTH_COLOUR, "size": 7}, "hovertext": texts, "hoverinfo": "text",
        "legendgroup": TRUTH, "name": TRUTH, "showlegend": False,
    }  # fmt: skip


def _species(pdg: int) -> str:
    return "electron" if pdg == 11 else f"nucleus {pdg}"


def _energy(energy: float) -> str:
    """In keV; files without a calibration have -1."""
    return UNKNOWN if energy < 0 else f"{energy:.2f}"


def _box(left: float, right: float, low: float, high: float) -> dict[str, Any]:
    return {
        "xaxis.range": [float(left) - MARGIN, float(right) + MARGIN],
        "yaxis.range": [float(low) - MARGIN, float(high) + MARGIN],
    }


def _counts(
    image: Image | None, reco: ak.Record | None, regions: ak.Record | None, truth: ak.Record | None
) -> dict[str, str]:
    counts = {} if image is None else {"pixels": f"{image.shape[1]:,} x {image.shape[0]:,}"}
    if reco is not None:
        counts |= {"clusters": f"{len(reco.sc_size):,}", "pixels in clusters": f"{len(reco.redpix_ix):,}"}
        if "redpix_hit" in reco.fields:
            counts["chosen pixels"] = f"{ak.sum(reco.redpix_hit):,}"
        counts["energy [keV]"] = f"{ak.sum(reco.sc_energy):,.2f}" if ak.all(reco.sc_energy >= 0) else UNKNOWN
    if regions is not None:
        counts |= {"regions": f"{len(regions.roi_area):,}", "pixels in regions": f"{ak.sum(regions.roi_area):,}"}
    if truth is not None:
        counts |= {"true tracks": f"{len(truth.energy):,}", "true energy [keV]": f"{ak.sum(truth.energy):,.2f}"}
    return counts


def _tables(reco: ak.Record | None, regions: ak.Record | None, truth: ak.Record | None) -> list[Table]:
    tables = []
    if reco is not None:
        scores = reco.sc_score if "sc_score" in reco.fields else [np.nan] * len(reco.sc_size)
        columns = (reco.sc_energy, reco.sc_nhits, reco.sc_length, scores)
        rows = [
            (str(n), _energy(energy), f"{hits:.0f}", f"{length:.0f}", UNKNOWN if np.isnan(score) else f"{score:.1f}")
            for n, (energy, hits, length, score) in enumerate(zip(*columns, strict=True))
        ]
        tables.append(Table("Clusters", ("", "energy [keV]", "pixels", "length", "score"), rows))
    if regions is not None:
        kept = [
            (str(n), f"{area:,}", f"{light:,.0f}", f"{score:.1f}")
            for n, (area, light, score) in enumerate(
                zip(regions.roi_area, regions.roi_integral, regions.roi_score, strict=True)
            )
        ]
        tables.append(Table("Regions", ("", "pixels", "light [counts]", "score"), kept))
    if truth is not None:
        true = [
            (_species(int(pdg)), f"{energy:.2f}", f"{z:.0f}")
            for pdg, energy, z in zip(truth.particle_type, truth.energy, truth.z_vertex, strict=True)
        ]
        tables.append(Table("Truth", ("particle", "energy [keV]", "z [mm]"), true))
    return tables
