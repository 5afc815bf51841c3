"""A vertex taken apart: measured light, sum of the particles' images, residual and every image, side by side.

Light is summed along the third axis of each projection, in a window of at least 7 x 7 x 7 voxels. The same panels are
drawn for the page and, by `static_figure`, for print. Lengths are in mm, light in photo-electrons (p.e.).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import awkward as ak
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sparsereco.detector import Detector
from sparsereco.display.page import PLAIN_AXIS, Trace, View, numbers
from sparsereco.display.shapes import SIGNED, colour_axis, points
from sparsereco.kinematics import particle_name

Image = NDArray[np.float64]
Place = NDArray[np.int64]

WINDOW = 7
"""Voxels along each edge that are shown at least: the crop that the chain works on."""
PROJECTIONS = ("xy", "zy", "zx")
"""Axes to the right and up, per row of panels."""
RESIDUAL = "measured - sum"
LEAST = 0.05
"""Less light than this is not drawn [p.e.]."""


@dataclass(frozen=True)
class Decomposition:
    """The light around one vertex, on a grid of voxels."""

    vertex: int
    """Its index in the event."""
    lower: tuple[float, float, float]
    """Lower corner of the window [mm]."""
    pitch: float
    """Edge of a voxel [mm]."""
    measured: Image  # (X, Y, Z) [p.e.]
    parts: tuple[tuple[str, Image], ...]
    """Name and (X, Y, Z) image [p.e.] of each particle."""

    @property
    def total(self) -> Image:
        """Sum of the parts."""
        return np.sum([image for _, image in self.parts], axis=0)

    @property
    def panels(self) -> list[tuple[str, Image]]:
        """What is drawn, in this order."""
        total = self.total
        return [("measured", self.measured), ("sum of parts", total), (RESIDUAL, self.measured - total), *self.parts]

    def centres(self) -> NDArray[np.float64]:
        """(X, Y, Z, 3) centres of the voxels."""
        index = np.moveaxis(np.indices(self.measured.shape), 0, -1)
        return np.array(self.lower) + (index + 0.5) * self.pitch


def part_names(reco: ak.Record) -> dict[int, str]:
    """The name of each particle by what ``img_part`` calls it."""
    names = {
        n: f"{particle_name(int(pdg))} {ke:.1f} MeV"
        for n, (pdg, ke) in enumerate(zip(reco.part_pdg, reco.part_ke, strict=True))
    }
    return names | {-1 - n: f"leaving track {n}" for n in range(len(reco.trk_vtx))}


def in_order(owners: NDArray[Any]) -> list[int]:
    """The particles of ``img_part``: hadrons, then leaving tracks."""
    return sorted({int(owner) for owner in owners}, key=lambda part: (part < 0, abs(part)))


def decompose(hits: ak.Record | None, reco: ak.Record, detector: Detector) -> list[Decomposition]:
    """The vertices of an event that have images.

    Args:
        hits: one event of schema `hits`; without it the measured light is 0.
        reco: the same event of schema `reco`.
        detector: its grid.
    """
    owner = ak.to_numpy(reco.img_part).astype(int)
    vertex_of = dict(enumerate(reco.part_vtx.tolist())) | {-1 - n: v for n, v in enumerate(reco.trk_vtx.tolist())}
    index, light = detector.index(points(reco, "img_")), ak.to_numpy(reco.img_pe)
    found = []
    for vertex, centre in enumerate(detector.index(points(reco, "vtx_"))):
        mine = [
            part for part in sorted(set(owner.tolist()), key=lambda n: (n < 0, abs(n))) if vertex_of.get(part) == vertex
        ]
        if not mine:
            continue
        here = np.isin(owner, mine)
        low, high = index[here].min(0), index[here].max(0) + 1
        room = np.maximum(WINDOW - (high - low), 0)  # shared out so that the vertex is as near the middle as can be
        first = low - np.clip(WINDOW // 2 - (centre - low), 0, room)
        low = _against_walls(reco, vertex, detector, first, low, high)
        shape = np.maximum(high - low, WINDOW)
        names = part_names(reco)
        parts = [(names[part], _grid(index[owner == part], light[owner == part], low, shape)) for part in mine]
        measured = np.zeros(shape)
        if hits is not None:
            measured = _grid(detector.index(points(hits, "hit_")), ak.to_numpy(hits.hit_pe), low, shape)
        corner = np.array(detector.origin) + low * detector.pitch
        x, y, z = corner.tolist()
        found.append(Decomposition(vertex, (x, y, z), detector.pitch, measured, tuple(parts)))
    return found


def _against_walls(reco: ak.Record, vertex: int, detector: Detector, guess: Place, low: Place, high: Place) -> Place:
    """First voxel of the crop around a vertex.

    A leaving track says where the crop ends, as its point lies on a wall of it; along the other axes the guess stands.

    Args:
        reco: the event.
        vertex: its index.
        detector: its grid.
        guess: (3,) first voxel if no track says anything.
        low: (3,) first and ``high`` (3,) one past the last voxel of the images, which the crop holds.
    """
    first = guess.copy()
    for track in np.flatnonzero(ak.to_numpy(reco.trk_vtx) == vertex):
        place = (points(reco, "trk_")[track] - np.array(detector.origin)) / detector.pitch
        wall = np.rint(place).astype(int)
        begin = np.where(points(reco, "trk_d")[track] > 0, wall - WINDOW, wall)
        certain = (np.abs(place - wall) < 1e-3) & (begin <= low) & (begin + WINDOW >= high)
        first = np.where(certain, begin, first)
    return first


def _grid(index: NDArray[np.int64], light: NDArray[Any], low: NDArray[np.int64], shape: NDArray[np.int64]) -> Image:
    """Light of the voxels inside a window."""
    image = np.zeros(shape)
    inside = ((index >= low) & (index < low + shape)).all(1)
    np.add.at(image, tuple((index[inside] - low).T), light[inside])
    return image


def project(image: Image, axes: str) -> Image:
    """An (X, Y, Z) image summed along the axis that is not named, as rows along the second of the two."""
    right, up = ("xyz".index(axis) for axis in axes)
    flat = image.sum(3 - right - up)
    return flat.T if right < up else flat


def _scales(one: Decomposition) -> tuple[Image, float]:
    """All projected light, for the colour scale, and the largest residual [p.e.]."""
    flat = [project(image, axes).ravel() for name, image in one.panels if name != RESIDUAL for axes in PROJECTIONS]
    residual = [np.abs(project(one.measured - one.total, axes)).max() for axes in PROJECTIONS]
    light = np.concatenate(flat)
    return light[light >= 1], max(*residual, 1.0)


def view(one: Decomposition, name: str) -> View:
    """The panels for the page: columns are measured, sum, residual and the parts, rows the projections."""
    light, most = _scales(one)
    traces: list[Trace] = []
    layout: dict[str, Any] = {"showlegend": False, "margin": {"l": 50, "r": 10, "t": 45, "b": 40}, "annotations": []}
    width, height = 0.92 / len(one.panels), 1 / len(PROJECTIONS)
    for row, axes in enumerate(PROJECTIONS):
        for column, (title, image) in enumerate(one.panels):
            n = str(len(traces) + 1) if traces else ""  # plotly calls the first axis x, not x1
            traces.append(_heat_map(one, title, image, axes) | {"xaxis": f"x{n}", "yaxis": f"y{n}"})
            left, bottom = column * width, 1 - (row + 1) * height
            edges = _edges(one, axes[0])
            layout[f"xaxis{n}"] = PLAIN_AXIS | {
                "domain": [left + 0.006, left + width - 0.006], "anchor": f"y{n}", "constrain": "domain",
                "tickvals": [edges[1], edges[-2]], "title": {"text": f"{axes[0]} [mm]", "standoff": 4},
            }  # fmt: skip
            layout[f"yaxis{n}"] = PLAIN_AXIS | {
                "domain": [bottom + 0.1 * height, bottom + 0.93 * height], "anchor": f"x{n}", "constrain": "domain",
                "scaleanchor": f"x{n}", "nticks": 5, "showticklabels": column == 0,
                "title": {"text": f"{axes[1]} [mm]" if column == 0 else "", "standoff": 4},
            }  # fmt: skip
            if row == 0:
                layout["annotations"].append({
                    "text": f"{title}<br>{image.sum():,.0f} p.e.", "x": left + width / 2, "y": 1, "xref": "paper",
                    "yref": "paper", "xanchor": "center", "yanchor": "top", "showarrow": False, "yshift": 24,
                    "font": {"size": 11},
                })  # fmt: skip
    layout["coloraxis"] = colour_axis(light, "light [p.e.]", x=0.935, y=0.75, len=0.45)
    bar = {
        "title": {"text": f"{RESIDUAL} [p.e.]", "side": "right"},
        "x": 0.935,
        "y": 0.25,
        "len": 0.45,
        "thickness": 12,
    }
    layout["coloraxis2"] = {"colorscale": SIGNED, "cmin": -most, "cmax": most, "colorbar": bar}
    return View(name, traces, layout)


def _edges(one: Decomposition, axis: str) -> list[float | None]:
    """Edges of the voxels along an axis [mm]."""
    number = "xyz".index(axis)
    return numbers(one.lower[number] + np.arange(one.measured.shape[number] + 1) * one.pitch)


def _heat_map(one: Decomposition, title: str, image: Image, axes: str) -> Trace:
    """One panel; light in logarithms, what is left of it as it is, and nothing where there is nothing."""
    flat, signed = project(image, axes), title == RESIDUAL
    colour = flat if signed else np.log10(np.maximum(flat, 1))
    return {
        "type": "heatmap", "x": _edges(one, axes[0]), "y": _edges(one, axes[1]), "xgap": 1, "ygap": 1,
        "z": numbers(np.where(np.abs(flat) < LEAST, np.nan, colour)), "customdata": numbers(flat, 1),
        "hovertemplate": f"%{{customdata:.1f}} p.e.<br>{axes[0]} %{{x}} mm, {axes[1]} %{{y}} mm<extra>{title}</extra>",
        "hoverongaps": False, "coloraxis": "coloraxis2" if signed else "coloraxis",
    }  # fmt: skip


def static_figure(one: Decomposition, title: str) -> Figure:
    """The same panels for print."""
    light, most = _scales(one)
    columns = len(one.panels)
    figure = Figure(figsize=(1.75 * columns + 1.2, 5.9), layout="constrained")
    axes_of = figure.subplots(len(PROJECTIONS), columns, squeeze=False)
    norm = LogNorm(max(float(light.min(initial=1)), 1.0), max(float(light.max(initial=10)), 10.0))
    for i, axes in enumerate(PROJECTIONS):
        right, up = ("xyz".index(axis) for axis in axes)
        for j, (ax, (name, image)) in enumerate(zip(axes_of[i], one.panels, strict=True)):
            flat = project(image, axes)
            low, high = np.array(one.lower), np.array(one.lower) + np.array(image.shape) * one.pitch
            extent = (low[right], high[right], low[up], high[up])
            signed = name == RESIDUAL
            scale: dict[str, Any] = (
                {"cmap": "RdBu", "vmin": -most, "vmax": most} if signed else {"cmap": "viridis_r", "norm": norm}
            )
            shown = np.ma.masked_where(np.abs(flat) < LEAST, flat)
            mesh = ax.imshow(shown, origin="lower", extent=extent, interpolation="nearest", **scale)
            ax.tick_params(labelsize=6, labelleft=j == 0)
            ax.set_xlabel(f"{axes[0]} [mm]", fontsize=7)
            if j == 0:
                ax.set_ylabel(f"{axes[1]} [mm]", fontsize=7)
            if i == 0:
                ax.set_title(f"{name}\n{image.sum():,.0f} p.e.", fontsize=8)
            if signed:
                residual = mesh
            elif name == "measured":
                measured = mesh
    for mesh, label, side in ((measured, "light [p.e.]", axes_of[0]), (residual, f"{RESIDUAL} [p.e.]", axes_of[1])):
        bar = figure.colorbar(mesh, ax=side.tolist(), pad=0.01, aspect=15)
        bar.set_label(label, fontsize=7)
        bar.ax.tick_params(labelsize=6)
    figure.suptitle(title, fontsize=9)
    return figure
