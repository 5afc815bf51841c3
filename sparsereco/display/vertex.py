"""Events of the vertex chain: voxels, reconstruction, truth and the decomposition of the light.

Voxels are drawn as cubes to scale. A hadron is an arrow as long as its range, a leaving track an arrow beyond the point
where it leaves the crop. The image of a particle, its part of the light, is cubes in the colour of its arrow; a cube of
a residual is blue where light is left over, red where there is too much.
"""

from __future__ import annotations

import html
from typing import Any

import awkward as ak
import numpy as np

from sparsereco.detector import Detector
from sparsereco.display.decomposition import Decomposition, decompose, in_order, part_names, view
from sparsereco.display.page import HIDDEN, Event, Table, Trace, View
from sparsereco.display.shapes import (
    SIGNED,
    Points,
    arrow,
    boxes,
    colour_axis,
    cubes,
    in_mm,
    lines,
    marker,
    place,
    points,
    scene,
    voxels,
)
from sparsereco.kinematics import particle_name, path_in_box, track_range

NEAR = 40.0
"""Half edge of the view of a vertex [mm]."""
SHORTEST = 6.0
"""An arrow is drawn at least this long [mm]; what it stands for is in its label."""
BEYOND = 40.0
"""How far a leaving track is drawn beyond the point where it leaves the crop [mm]."""
SPECIES_COLOURS = {2212: "#d55e00", 1000010020: "#009e73", 1000010030: "#aa3377", 1000020040: "#8c6d1f"}
OTHER_COLOUR, TRACK_COLOUR, TRUTH_COLOUR = "#555555", "#0072b2", "#111111"
HIT_EDGE, IMAGE_EDGE = 0.92, 0.84
"""Edge of the cube of a hit, and of an image that takes all light of its voxel, in units of the pitch."""
HITS, IMAGES, RESIDUAL, RECO, TRACKS, TRUTH = "hits", "images", "residual", "reconstruction", "leaving tracks", "truth"
"""What is switched together."""


def vertex_event(
    hits: ak.Record | None, truth: ak.Record | None, reco: ak.Record | None, detector: Detector, name: str
) -> Event:
    """One event.

    Args:
        hits: of schema `hits`, None where there is none.
        truth: the same event of schema `truth`, or None.
        reco: the same event of schema `reco`, or None.
        detector: its outline, and the size of a voxel.
        name: of the event.
    """
    traces, shown = [], {}
    decompositions = [] if reco is None else decompose(hits, reco, detector)
    if hits is not None and len(hits.hit_pe):
        shown["hits"] = voxels(points(hits, "hit_"), hits.hit_pe, "p.e.")
        traces.append(
            cubes("hits", HIT_EDGE * detector.pitch, "hit", name=f"hits ({len(hits.hit_pe)})", log=True, opacity=0.22,
                  coloraxis="coloraxis", legendgroup=HITS)
        )  # fmt: skip
    if reco is not None:
        traces += [*_reconstruction(reco), *_images(reco, hits, detector, shown), *_residuals(decompositions, shown)]
    if truth is not None:
        traces += _truth(truth, detector)
    lower = np.array(detector.origin, np.float64)
    traces.append(boxes(lower[None], lower[None] + detector.size, "detector", "#999999", legendgroup="detector"))
    places = {title: place(centre, np.full(3, NEAR)) for title, centre in _centres(hits, truth, reco).items()}
    places["whole detector"] = place(lower + np.array(detector.size) / 2, np.array(detector.size) / 2)
    most = max((float(np.abs(one.measured - one.total).max()) for one in decompositions), default=1.0)
    light = np.empty(0) if hits is None else ak.to_numpy(hits.hit_pe)
    layout = {
        "scene": scene(domain={"x": [0.14, 1]}),
        "legend": {"x": 0, "y": 1, "bgcolor": "rgba(255,255,255,0.7)", "groupclick": "toggleitem"},
        "coloraxis": colour_axis(light, "signal [p.e.]"),
        "coloraxis2": {"colorscale": SIGNED, "cmin": -max(most, 1), "cmax": max(most, 1), "showscale": False},
    }
    views = [View("3D", traces, layout, places)]
    for one in decompositions:
        views.append(view(one, "decomposition" if len(decompositions) == 1 else f"decomposition, vertex {one.vertex}"))
    return Event(name, _counts(hits, truth, reco), _tables(truth, reco), views, shown)


def _counts(hits: ak.Record | None, truth: ak.Record | None, reco: ak.Record | None) -> dict[str, str]:
    counts: dict[str, str] = {}
    if hits is not None:
        counts |= {"hits": f"{len(hits.hit_pe):,}", "light [p.e.]": f"{ak.sum(hits.hit_pe):,.0f}"}
    if reco is not None:
        counts |= {"vertices": f"{len(reco.vtx_score):,}", "hadrons": f"{len(reco.part_ke):,}"}
        counts |= {"leaving tracks": f"{len(reco.trk_ke):,}", "voxels in images": f"{len(reco.img_pe):,}"}
    if truth is not None:
        counts["true particles"] = f"{len(truth.part_ke):,}"
    return counts


def _tables(truth: ak.Record | None, reco: ak.Record | None) -> list[Table]:
    tables = []
    if reco is not None:
        for n, score in enumerate(reco.vtx_score):
            rows = [
                (particle_name(int(pdg)), f"{ke:.1f} ± {err:.1f}", _angle(angle))
                for vertex, pdg, ke, err, angle in zip(
                    reco.part_vtx, reco.part_pdg, reco.part_ke, reco.part_ke_err, reco.part_dir_err, strict=True
                )
                if vertex == n
            ]
            rows += [
                ("leaving track", f"{ke:.0f}" if ke >= 0 else "unknown", "")
                for vertex, ke in zip(reco.trk_vtx, reco.trk_ke, strict=True)
                if vertex == n
            ]
            title = f"Vertex {n}, score {score:.2f}, hadrons {reco.vtx_ke[n]:.1f} ± {reco.vtx_ke_err[n]:.1f} MeV"
            if reco.vtx_ndf[n] > 0:
                title += f", deviance {reco.vtx_deviance[n]:.1f} / {reco.vtx_ndf[n]:.0f}"
            tables.append(Table(title, ("particle", "energy [MeV]", "direction"), rows))
    if truth is not None:
        true = [(particle_name(int(pdg)), f"{ke:.1f}") for pdg, ke in zip(truth.part_pdg, truth.part_ke, strict=True)]
        tables.append(Table("Truth", ("particle", "energy [MeV]"), true))
    return tables


def _angle(error: float) -> str:
    """An error of a direction [rad] as text."""
    return f"± {np.degrees(error):.0f}°" if error < np.pi / 2 else "unknown"


def _centres(hits: ak.Record | None, truth: ak.Record | None, reco: ak.Record | None) -> dict[str, Points]:
    """What to look at, by its name, the best first."""
    if reco is not None and len(reco.vtx_score):
        vertices = points(reco, "vtx_")
        order = np.argsort(-ak.to_numpy(reco.vtx_score), kind="stable")
        return {f"vertex {n}" if len(order) > 1 else "vertex": vertices[n] for n in order.tolist()}
    if truth is not None:
        return {"true vertex": np.array([truth[f"vtx_{axis}"] for axis in "xyz"], np.float64)}
    if hits is not None and len(hits.hit_pe):
        return {"light": np.average(points(hits, "hit_"), axis=0, weights=ak.to_numpy(hits.hit_pe))}
    return {}


def _images(reco: ak.Record, hits: ak.Record | None, detector: Detector, shown: dict[str, Any]) -> list[Trace]:
    """The image of each hadron and leaving track; the volume of a cube is the particle's share of the voxel's light."""
    owners, light = ak.to_numpy(reco.img_part), ak.to_numpy(reco.img_pe).astype(np.float64)
    centres = points(reco, "img_")
    share = light / _light_of_voxels(centres, light, hits, detector)
    names = part_names(reco)
    traces = []
    for owner in in_order(owners):
        mine = owners == owner
        colour = TRACK_COLOUR if owner < 0 else SPECIES_COLOURS.get(int(reco.part_pdg[owner]), OTHER_COLOUR)
        shown[f"image {owner}"] = voxels(centres[mine], light[mine], "p.e.", share[mine])
        traces.append(
            cubes(f"image {owner}", IMAGE_EDGE * detector.pitch, names[owner],
                  name=f"{names[owner]}: {mine.sum()} voxels", color=colour, opacity=0.35, visible=HIDDEN,
                  legendgroup=IMAGES, legendgrouptitle={"text": IMAGES})
        )  # fmt: skip
    return traces


def _light_of_voxels(
    centres: Points, light: np.ndarray, hits: ak.Record | None, detector: Detector
) -> np.ndarray:  # fmt: skip
    """(N,) light of the voxel of each entry of the images [p.e.]: its hit, or all images where that is not known."""
    hit_light = np.empty(0) if hits is None else ak.to_numpy(hits.hit_pe).astype(np.float64)
    hit_centres = np.empty((0, 3)) if hits is None else points(hits, "hit_")
    index = detector.index(np.concatenate([centres, hit_centres]))
    voxel = np.unique(index, axis=0, return_inverse=True)[1].ravel()
    n = len(light)
    of_images = np.bincount(voxel[:n], light, len(voxel))
    of_hits = np.bincount(voxel[n:], hit_light, len(voxel))
    return np.maximum(np.maximum(of_images, of_hits), 1e-9)[voxel[:n]]


def _residuals(decompositions: list[Decomposition], shown: dict[str, Any]) -> list[Trace]:
    """Measured light less the sum of the images; the volume of a cube is its share of the larger of the two."""
    traces = []
    for one in decompositions:
        residual = one.measured - one.total
        larger = np.maximum(np.maximum(one.measured, one.total), 1e-9)
        drawn = np.abs(residual) > 0.05
        key = f"residual {one.vertex}"
        shown[key] = voxels(one.centres()[drawn], residual[drawn], "p.e.", (np.abs(residual) / larger)[drawn])
        traces.append(
            cubes(key, IMAGE_EDGE * one.pitch, "measured - sum of parts", name=f"residual: {residual.sum():+.0f} p.e.",
                  coloraxis="coloraxis2", opacity=0.7, visible=HIDDEN, legendgroup=RESIDUAL)
        )  # fmt: skip
    return traces


def _reconstruction(reco: ak.Record) -> list[Trace]:
    """Vertices with errors, hadrons and leaving tracks."""
    group = {"legendgroup": RECO, "legendgrouptitle": {"text": RECO}}
    vertices, errors = points(reco, "vtx_"), points(reco, "vtx_s")
    traces = []
    for n, (vertex, error) in enumerate(zip(vertices, errors, strict=True)):
        bars = {f"error_{axis}": {"array": [float(error[i])], "color": TRACK_COLOUR} for i, axis in enumerate("xyz")}
        where = [f"{axis} {x:.1f} ± {err:.1f} mm" for axis, x, err in zip("xyz", vertex, error, strict=True)]
        text = "<br>".join([f"vertex {n}: score {reco.vtx_score[n]:.3f}", *where])
        traces.append(marker(vertex, "vertex", text, marker={"color": TRACK_COLOUR, "size": 4}, **bars, **group))
    ranges = track_range(ak.to_numpy(reco.part_ke), ak.to_numpy(reco.part_pdg))
    for n, direction in enumerate(points(reco, "part_d")):
        pdg, ke, reach = int(reco.part_pdg[n]), reco.part_ke[n], float(np.nan_to_num(ranges[n]))
        name = f"{particle_name(pdg)} {ke:.1f} ± {reco.part_ke_err[n]:.1f} MeV"
        label = f"{name}<br>range {reach:.1f} mm<br>direction {_angle(reco.part_dir_err[n])}"
        colour = SPECIES_COLOURS.get(pdg, OTHER_COLOUR)
        start = vertices[reco.part_vtx[n]]
        traces.append(arrow(start, direction, max(reach, SHORTEST), name, label, colour, 7, **group))
    for n, (face, direction) in enumerate(zip(points(reco, "trk_"), points(reco, "trk_d"), strict=True)):
        energy = f"{reco.trk_ke[n]:.0f} MeV" if reco.trk_ke[n] >= 0 else "energy unknown"
        name, start = f"leaving track {n}", vertices[reco.trk_vtx[n]]
        label = f"{name}: {energy}<br>leaves at {in_mm(face)}"
        inside = lines([np.stack([start, face])], name, TRACK_COLOUR, hoverinfo="skip", showlegend=False)
        beyond = arrow(face, direction, BEYOND, name, label, TRACK_COLOUR, 5)
        traces += [{**trace, "legendgroup": TRACKS} for trace in (inside, beyond)]
    return traces


def _truth(truth: ak.Record, detector: Detector) -> list[Trace]:
    """True vertex and particles as thin black lines; a muon as far as it goes in the detector."""
    group = {"legendgroup": TRUTH, "legendgrouptitle": {"text": TRUTH}}
    vertex = np.array([truth[f"vtx_{axis}"] for axis in "xyz"], np.float64)
    cross = {"color": TRUTH_COLOUR, "size": 4, "symbol": "x"}
    traces = [marker(vertex, "true vertex", f"true vertex {in_mm(vertex)}", marker=cross, **group)]
    lower, upper = np.array(detector.origin), np.array(detector.origin) + detector.size
    ranges = track_range(ak.to_numpy(truth.part_ke), ak.to_numpy(truth.part_pdg))
    for n, direction in enumerate(points(truth, "part_d")):
        pdg, reach = int(truth.part_pdg[n]), float(np.nan_to_num(ranges[n]))
        name = html.escape(f"{particle_name(pdg)} {truth.part_ke[n]:.1f} MeV")
        to_wall = float(path_in_box(vertex, direction, lower, upper))
        label = f"true {name}<br>range {reach:.1f} mm"
        path = np.stack([vertex, vertex + max(min(reach, to_wall), SHORTEST) * direction])
        traces.append(lines([path], name, TRUTH_COLOUR, 3, hoverinfo="text", hovertext=label, **group))
    return traces
