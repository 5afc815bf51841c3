"""Voxels, lines, arrows and boxes as traces of a `page`, and the scene that they stand in. Lengths are in mm."""

from __future__ import annotations

from itertools import product
from typing import Any

import awkward as ak
import numpy as np
from numpy.typing import NDArray

from sparsereco.display.page import Trace, numbers

Points = NDArray[np.float64]

SIZE = 1.1
"""Longest edge of what a scene shows, in the unit of plotly's orthographic projection: with room for the axes. The page
makes it smaller where a scene is narrower than high."""
SIGNED = [[0, "#b2182b"], [0.25, "#ef8a62"], [0.5, "#f7f7f7"], [0.75, "#67a9cf"], [1, "#2166ac"]]
"""Colours around 0: blue above, red below, as matplotlib's RdBu."""

_CORNERS = np.array(list(product((0, 1), repeat=3)))
_EDGES = [(a, b) for a in range(8) for b in range(a) if np.abs(_CORNERS[a] - _CORNERS[b]).sum() == 1]


def points(record: ak.Record, prefix: str) -> Points:
    """(N, 3) columns x, y, z of a group of branches."""
    return np.stack([ak.to_numpy(record[f"{prefix}{axis}"]) for axis in "xyz"], axis=1).astype(np.float64)


def voxels(centres: Points, value: Any, unit: str, share: Any = None) -> dict[str, Any]:
    """Voxels for traces of ``cubes``.

    Args:
        centres: (N, 3).
        value: (N,) what their colour shows.
        unit: of it.
        share: (N,) volume of each cube over that of a full one.
    """
    columns = {axis: numbers(column, 2) for axis, column in zip("xyz", centres.T, strict=True)}
    return columns | {
        "value": [float(f"{x:.4g}") for x in np.asarray(value, np.float64).tolist()],
        "unit": unit,
        "share": None if share is None else numbers(share, 4),
    }


def cubes(key: str, edge: float, label: str, **trace: Any) -> Trace:
    """The voxels of an event with that key as cubes, with a label for the pointer."""
    return {"type": "cubes", "voxels": key, "edge": edge, "label": label, **trace}


def lines(pieces: list[Points], name: str, colour: str, width: float = 5, **trace: Any) -> Trace:
    """Polylines, each (N, 3), as one trace."""
    gap = np.full((1, 3), np.nan)
    x, y, z = (numbers(column) for column in np.concatenate([part for piece in pieces for part in (piece, gap)]).T)
    line = {"color": colour, "width": width}
    return {"type": "scatter3d", "mode": "lines", "x": x, "y": y, "z": z, "name": name, "line": line, **trace}


def marker(place: Points, name: str, label: str, **trace: Any) -> Trace:
    """A point (3,)."""
    x, y, z = ([value] for value in numbers(place))
    return {
        "type": "scatter3d", "mode": "markers", "x": x, "y": y, "z": z, "name": name, "hoverinfo": "text",
        "hovertext": label, **trace,
    }  # fmt: skip


def arrow(
    start: Points, direction: Points, length: float, name: str, label: str, colour: str, width: float, **trace: Any
) -> Trace:
    """A line from a point along a unit vector, with four barbs at its end."""
    tip = start + length * direction
    side = np.cross(direction, np.eye(3)[np.argmin(np.abs(direction))])
    side /= np.linalg.norm(side)
    other = np.cross(direction, side)
    barb = min(0.3 * length, 4.0)
    barbs = [np.stack([tip, tip + barb * (0.4 * s - direction)]) for s in (side, -side, other, -other)]
    return lines([np.stack([start, tip]), *barbs], name, colour, width, hoverinfo="text", hovertext=label, **trace)


def boxes(lower: Points, upper: Points, name: str, colour: str, width: float = 2, **trace: Any) -> Trace:
    """The edges of boxes.

    Args:
        lower: (N, 3) corners.
        upper: (N, 3) the opposite ones.
        name: of the trace.
        colour: of the edges.
        width: of the edges [pixel].
        trace: further attributes.
    """
    pieces = [
        low + _CORNERS[list(edge)] * (high - low) for low, high in zip(lower, upper, strict=True) for edge in _EDGES
    ]
    return lines(pieces, name, colour, width, hoverinfo="skip", **trace)


def colour_axis(values: NDArray[Any], title: str, **bar: Any) -> dict[str, Any]:
    """A colour axis over the logarithm of positive values, for ``cubes`` with ``log``; dark is much."""
    logarithm = np.log10(np.maximum(values, 1e-3)) if len(values) else np.zeros(1)
    low, high = float(logarithm.min()), float(max(logarithm.max(), logarithm.min() + 0.01))
    steps = (1, 2, 5) if high - low < 1.5 else (1,)
    ticks = [step * 10.0**decade for decade in range(int(np.floor(low)), int(high) + 1) for step in steps]
    text = {"title": {"text": title, "side": "right"}, "len": 0.6, "thickness": 12}
    text |= {"tickvals": np.log10(ticks).tolist(), "ticktext": [f"{tick:g}" for tick in ticks]}
    return {"colorscale": "Viridis", "reversescale": True, "cmin": low, "cmax": high, "colorbar": text | bar}


def scene(**more: Any) -> dict[str, Any]:
    """A scene in an orthographic projection, y upwards."""
    wall = {"gridcolor": "#e3e8ef", "zerolinecolor": "#e3e8ef", "showspikes": False, "nticks": 6}
    axes = {f"{axis}axis": {"title": {"text": f"{axis} [mm]"}, **wall} for axis in "xyz"}
    camera = {
        "up": {"x": 0, "y": 1, "z": 0},
        "eye": {"x": 1.2, "y": 0.8, "z": 1.2},
        "projection": {"type": "orthographic"},
    }
    return {**axes, "camera": camera, "aspectmode": "manual", **more}


def place(centre: Points, half: Points, scenes: tuple[str, ...] = ("scene",)) -> dict[str, Any]:
    """Changes of the layout that show a box.

    Args:
        centre: (3,) of the box.
        half: (3,) half of its lengths.
        scenes: that show it.
    """
    ratio = dict(zip("xyz", numbers(SIZE * half / half.max(), 6), strict=True))
    ranges = {f"{axis}axis.range": numbers([c - h, c + h]) for axis, c, h in zip("xyz", centre, half, strict=True)}
    return {f"{one}.{key}": value for one in scenes for key, value in {**ranges, "aspectratio": ratio}.items()}


def in_mm(centre: Points) -> str:
    """A place as text."""
    return f"({', '.join(f'{x:.1f}' for x in centre)}) mm"
