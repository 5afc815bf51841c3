"""Events of a liquid-argon detector before and after the infill.

Where the truth is known, filled voxels are green where they are right and orange where not, and missed ones purple; the
same event stands as target, input and prediction side by side, coloured by energy, in scenes that turn together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import awkward as ak
import numpy as np
from numpy.typing import NDArray

from sparsereco.display.page import Event, Table, Trace, View
from sparsereco.display.shapes import Points, boxes, colour_axis, cubes, place, points, scene, voxels
from sparsereco.infill.gaps import Gaps
from sparsereco.kinematics import particle_name

NEAR = 60.0
"""Half edge of the view of a gap [mm]."""
FEW = 10
"""An event in which fewer voxels are filled and missing is shown as a whole at first."""
EDGE = 0.92
"""Edge of a cube in units of the pitch."""
INPUT_COLOUR, RIGHT_COLOUR, WRONG_COLOUR, MISSED_COLOUR = "#8aa0b8", "#009e73", "#e66101", "#8f3a97"
FILLED = "filled"
SCENES = ("scene", "scene2", "scene3")


@dataclass(frozen=True)
class Filled:
    """The voxels of an event that are not in the input."""

    right: NDArray[np.bool_]
    """(F,) of the filled ones, those that are true."""
    missed: NDArray[np.bool_]
    """(M,) of the true ones, those that are not filled."""


def compare(fill: Points, miss: Points, gaps: Gaps) -> Filled:
    """Compares filled and true voxels by their place in the grid.

    Args:
        fill: (F, 3) centres [mm].
        miss: (M, 3) centres [mm].
        gaps: has the grid.
    """
    both = np.concatenate([gaps.detector.index(fill), gaps.detector.index(miss)])
    key = np.unique(both, axis=0, return_inverse=True)[1].ravel()
    filled, true = key[: len(fill)], key[len(fill) :]
    return Filled(np.isin(filled, true), ~np.isin(true, filled))


def infill_event(
    hits: ak.Record | None, truth: ak.Record | None, filled: ak.Record | None, gaps: Gaps, name: str
) -> Event:
    """One event.

    Args:
        hits: of schema `hits` of a liquid-argon detector, None where there is none.
        truth: the same event of schema `truth`, or None.
        filled: the same event of schema `infill`, or None.
        gaps: of the detector.
        name: of the event.
    """
    centres = {
        "hits": np.empty((0, 3)) if hits is None else points(hits, "hit_"),
        "filled": np.empty((0, 3)) if filled is None else points(filled, "fill_"),
        "missing": np.empty((0, 3)) if truth is None else points(truth, "miss_"),
    }
    energy = {
        "hits": np.empty(0) if hits is None else ak.to_numpy(hits.hit_e),
        "filled": np.empty(0) if filled is None else ak.to_numpy(filled.fill_e),
        "missing": np.empty(0) if truth is None else ak.to_numpy(truth.miss_e),
    }
    compared = compare(centres["filled"], centres["missing"], gaps)
    parts = [("hits", "hits", np.full(len(energy["hits"]), True), INPUT_COLOUR, "input")]
    if truth is None:
        parts.append((FILLED, "filled", compared.right | True, WRONG_COLOUR, "filled"))
    elif filled is None:
        parts.append(("missing", "missing", compared.missed, MISSED_COLOUR, "missing"))
    else:
        parts += [
            ("filled, true", "filled", compared.right, RIGHT_COLOUR, "filled, and true"),
            ("filled, not true", "filled", ~compared.right, WRONG_COLOUR, "filled, but not true"),
            ("missed", "missing", compared.missed, MISSED_COLOUR, "true, but not filled"),
        ]
    edge = EDGE * gaps.detector.pitch
    shown: dict[str, Any] = {key: voxels(centres[key], energy[key], "MeV") for key in centres if len(centres[key])}
    traces: list[Trace] = []
    for group, key, chosen, colour, label in parts:
        shown[group] = voxels(centres[key][chosen], energy[key][chosen], "MeV")
        opacity = 0.3 if key == "hits" else 0.6
        traces.append(
            cubes(
                group, edge, label, name=f"{group} ({chosen.sum()})", color=colour, opacity=opacity, legendgroup=group
            )
        )
    traces += _outlines(filled, gaps)
    legend = {"x": 0, "y": 1, "bgcolor": "rgba(255,255,255,0.7)"}
    layout = {"scene": scene(), "legend": legend}
    views = [View("3D", traces, layout, _places(centres, filled, truth, gaps))]
    if truth is not None or filled is not None:
        views.append(_side_by_side(shown, energy, edge, _places(centres, filled, truth, gaps, SCENES)))
    return Event(name, _counts(energy, truth, filled, compared), _tables(truth, filled), views, shown)


def _outlines(filled: ak.Record | None, gaps: Gaps) -> list[Trace]:
    """The boxes of live argon, and the gaps that were looked at."""
    detector = gaps.detector
    centre, half = np.array(detector.centres, np.float64), np.array(detector.size) / 2
    traces = [boxes(centre - half, centre + half, "live argon", "#999999", legendgroup="live argon")]
    looked = [] if filled is None else [gaps.bounds(gap) for gap in filled.gap_id.tolist()]
    edges = [bounds for bounds in looked if bounds is not None]
    if edges:
        lower, upper = (np.array(side) * detector.pitch + detector.origin for side in zip(*edges, strict=True))
        traces.append(boxes(lower, upper, "gaps", "#cc79a7", legendgroup="gaps"))
    return traces


def _places(
    centres: dict[str, Points], filled: ak.Record | None, truth: ak.Record | None, gaps: Gaps,
    scenes: tuple[str, ...] = SCENES[:1],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """The gaps, that with the most voxels first; the event, which comes first where few are missing; the detector."""
    filled_in = np.empty(0, int) if filled is None else ak.to_numpy(filled.fill_gap)
    missing_in = np.empty(0, int) if truth is None else ak.to_numpy(truth.miss_gap)
    gap, voxel = np.concatenate([filled_in, missing_in]), np.concatenate([centres["filled"], centres["missing"]])
    numbers, counts = np.unique(gap, return_counts=True)
    places: dict[str, dict[str, Any]] = {}

    def box(middle: Points, half: float) -> dict[str, Any]:
        return place(middle, np.full(3, max(NEAR, half)), scenes)

    for number in numbers[np.argsort(-counts, kind="stable")].tolist():
        low, high = np.quantile(voxel[gap == number], [0.1, 0.9], axis=0)  # a few voxels may lie far from the others
        places[f"gap {number}"] = box((low + high) / 2, 0.75 * float((high - low).max()))
    everything = np.concatenate(list(centres.values()))
    if len(everything):
        low, high = everything.min(0), everything.max(0)
        event = {"event": box((low + high) / 2, 0.55 * float((high - low).max()))}
        places = event | places if len(gap) < FEW else places | event
    half = np.array(gaps.detector.shape) * gaps.detector.pitch / 2
    places["whole detector"] = place(np.array(gaps.detector.origin) + half, half, scenes)
    return places


def _side_by_side(
    shown: dict[str, Any], energy: dict[str, NDArray[Any]], edge: float, places: dict[str, dict[str, Any]]
) -> View:
    """Target, input and prediction."""
    panels = {"target": ("hits", "missing"), "input": ("hits",), "prediction": ("hits", "filled")}
    traces: list[Trace] = []
    layout: dict[str, Any] = {"showlegend": False, "annotations": []}
    for n, (one, (title, keys)) in enumerate(zip(SCENES, panels.items(), strict=True)):
        for key in keys:
            if key in shown:
                traces.append(cubes(key, edge, key, log=True, opacity=0.5, coloraxis="coloraxis", scene=one))
        layout[one] = scene(domain={"x": [0.31 * n, 0.31 * n + 0.3]})
        for axis in "xyz":
            layout[one][f"{axis}axis"] |= {"tickfont": {"size": 10}, "nticks": 4}
        layout["annotations"].append({
            "text": title, "x": 0.31 * n + 0.15, "y": 0.98, "xref": "paper", "yref": "paper", "showarrow": False,
            "xanchor": "center", "font": {"size": 14},
        })  # fmt: skip
    layout["coloraxis"] = colour_axis(np.concatenate(list(energy.values())), "energy [MeV]", x=0.94)
    return View("side by side", traces, layout, places)


def _counts(
    energy: dict[str, NDArray[Any]], truth: ak.Record | None, filled: ak.Record | None, compared: Filled
) -> dict[str, str]:
    counts = {"hits": f"{len(energy['hits']):,}", "energy of hits [MeV]": f"{energy['hits'].sum():,.1f}"}
    if filled is not None:
        counts |= {"filled": f"{len(energy['filled']):,}", "energy filled [MeV]": f"{energy['filled'].sum():,.1f}"}
    if truth is not None:
        counts |= {"missing": f"{len(energy['missing']):,}", "energy missing [MeV]": f"{energy['missing'].sum():,.1f}"}
    if truth is not None and filled is not None:
        counts |= {"filled, true": f"{compared.right.sum():,}", "missed": f"{compared.missed.sum():,}"}
    return counts


def _tables(truth: ak.Record | None, filled: ak.Record | None) -> list[Table]:
    tables = []
    if filled is not None:
        rows = []
        columns = (filled[f"gap_{column}"] for column in ("id", "joined", "alone", "wide"))
        for gap, joined, alone, wide in zip(*columns, strict=True):
            flags = [text for flag, text in ((alone, "left alone"), (wide, "wide")) if flag]
            true = "" if truth is None else f"{ak.sum(truth.miss_gap == gap):,}"
            rows.append((str(gap), str(joined), f"{ak.sum(filled.fill_gap == gap):,}", true, ", ".join(flags)))
        tables.append(Table("Gaps", ("gap", "joined", "filled", "true", ""), rows))
    if truth is not None:
        particles = [
            (particle_name(int(pdg)), f"{ke:.1f}" if ke > 0 else "unknown")
            for pdg, ke in zip(truth.part_pdg, truth.part_ke, strict=True)
        ]
        tables.append(Table("Truth", ("particle", "energy [MeV]"), particles))
    return tables
