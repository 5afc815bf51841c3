"""One event as one self-contained page: voxels, reconstruction and truth in 3D, for any browser, without a network.

Voxels are drawn as cubes to scale. A hadron is an arrow as long as its range, a leaving track an arrow beyond the point
where it leaves the crop. The image of a particle, its part of the light, is cubes in the colour of its arrow.

Clicking an entry of the legend hides or shows it; buttons choose between the vertex and the detector, and put the
images in the place of the hits.
"""

from __future__ import annotations

import html
from itertools import product

import awkward as ak
import numpy as np
import plotly.graph_objects as go

from sparsereco.detector import Detector
from sparsereco.kinematics import particle_name, path_in_box, track_range

VIEW = 40.0
"""Half edge of the view of the vertex [mm]."""
SHORTEST = 6.0
"""An arrow is drawn at least this long [mm]; what it stands for is in its label."""
BEYOND = 40.0
"""How far a leaving track is drawn beyond the point where it leaves the crop [mm]."""
SPECIES_COLOURS = {2212: "#d55e00", 1000010020: "#009e73", 1000010030: "#aa3377", 1000020040: "#8c6d1f"}
OTHER_COLOUR, TRACK_COLOUR, TRUTH_COLOUR = "#555555", "#0072b2", "#111111"
HIT_EDGE, IMAGE_EDGE = 0.92, 0.84
"""Edge of the cube of a hit, and of an image that takes all light of its voxel, in units of the pitch."""
HITS, IMAGES = "hits", "images"
"""Legend groups that the button swaps."""

# A cube: its corners in units of half its edge, and two triangles per face.
_CORNERS = np.array(list(product((-1, 1), repeat=3)))
_TRIANGLES = np.array([
    (0, 1, 3), (0, 3, 2), (4, 6, 7), (4, 7, 5), (0, 4, 5), (0, 5, 1),
    (2, 3, 7), (2, 7, 6), (0, 2, 6), (0, 6, 4), (1, 5, 7), (1, 7, 3),
])  # fmt: skip


def event_figure(
    hits: ak.Record | None, truth: ak.Record | None, reco: ak.Record | None, detector: Detector, title: str
) -> go.Figure:
    """The event in 3D.

    Args:
        hits: one event of schema `hits`, None where there is none.
        truth: the same event of schema `truth`, or None.
        reco: the same event of schema `reco`, or None.
        detector: its outline, and the size of a voxel.
        title: shown above; may hold any characters.
    """
    traces = [_outline(detector)]
    if hits is not None and len(hits.hit_pe):
        traces.append(_voxels(hits, detector))
    if reco is not None:
        traces += [*_reconstruction(reco), *_images(reco, hits, detector)]
    if truth is not None:
        traces += _truth(truth, detector)
    figure = go.Figure(traces)
    centre = _centre(hits, truth, reco)
    whole = _view(np.array(detector.origin) + np.array(detector.size) / 2, np.array(detector.size) / 2)
    near = whole if centre is None else _view(centre, np.full(3, VIEW))
    menu = {"type": "buttons", "direction": "right", "x": 0.01, "y": 1.0, "xanchor": "left"}
    views = [{"label": "vertex", "args": [near]}, {"label": "whole detector", "args": [whole]}]
    menus = [menu | {"buttons": [view | {"method": "relayout"} for view in views]}]
    swap = _swap(figure)
    if swap is not None:
        menus.append(menu | {"pad": {"l": 190}, "active": -1, "buttons": [swap]})  # right of the two above
    figure.update_layout(
        title={"text": html.escape(title), "font": {"size": 15}},
        template="plotly_white",
        margin={"l": 0, "r": 0, "t": 50, "b": 0},
        legend={"x": 0.01, "y": 0.9, "groupclick": "toggleitem", "bgcolor": "rgba(255,255,255,0.7)"},
        scene={f"{axis}axis_title": f"{axis} [mm]" for axis in "xyz"}
        | {"camera_eye": {"x": 1.2, "y": 1.2, "z": 0.8}, "camera_projection_type": "orthographic"}
        | {"domain_x": [0.12, 1]},
        updatemenus=menus,
    )
    figure.update_layout({key.replace(".", "_"): value for key, value in near.items()})
    return figure


def to_page(figure: go.Figure, title: str) -> str:
    """A figure as an HTML page that holds plotly itself, about 5 MB.

    Args:
        figure: of `event_figure`.
        title: of the page; may hold any characters.
    """
    config = {"displaylogo": False, "responsive": True}
    body = figure.to_html(config, include_plotlyjs=True, full_html=False, default_height="100vh")
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>body {{ margin: 0; }}</style></head><body>\n{body}\n</body></html>\n"
    )


def _view(centre: np.ndarray, half: np.ndarray) -> dict:
    """Layout that shows a box around a point."""
    ranges = {f"scene.{axis}axis.range": [c - h, c + h] for axis, c, h in zip("xyz", centre, half, strict=True)}
    ratio = 1.25 * half / half.max()
    return ranges | {
        "scene.aspectmode": "manual",
        "scene.aspectratio": dict(zip("xyz", ratio.tolist(), strict=True)),
    }


def _centre(hits: ak.Record | None, truth: ak.Record | None, reco: ak.Record | None) -> np.ndarray | None:
    """What to look at: the best vertex, else the true one, else the light."""
    if reco is not None and len(reco.vtx_score):
        return _points(reco, "vtx_")[int(np.argmax(reco.vtx_score))]
    if truth is not None:
        return np.array([truth[f"vtx_{axis}"] for axis in "xyz"], np.float64)
    if hits is not None and len(hits.hit_pe):
        return np.average(_points(hits, "hit_"), axis=0, weights=ak.to_numpy(hits.hit_pe))
    return None


def _points(record: ak.Record, prefix: str) -> np.ndarray:
    """(N, 3) columns x, y, z of a group."""
    return np.stack([ak.to_numpy(record[f"{prefix}{axis}"]) for axis in "xyz"], axis=1).astype(np.float64)


def _outline(detector: Detector) -> go.Scatter3d:
    corners = np.array(detector.origin) + (_CORNERS + 1) / 2 * detector.size
    edges = [(a, b) for a in range(8) for b in range(a) if np.abs(_CORNERS[a] - _CORNERS[b]).sum() == 2]
    return _lines([corners[list(edge)] for edge in edges], "detector", colour="#999999", width=2, hoverinfo="skip")


def _lines(pieces: list[np.ndarray], name: str, colour: str, width: float = 5, **options: object) -> go.Scatter3d:
    """Polylines as one trace."""
    gap = np.full((1, 3), np.nan)
    points = np.concatenate([part for piece in pieces for part in (piece, gap)])
    x, y, z = (np.where(np.isnan(column), None, column.round(3)) for column in points.T)
    return go.Scatter3d(
        x=x, y=y, z=z, mode="lines", name=name, line={"color": colour, "width": width}, **options
    )  # fmt: skip


def _arrow(
    start: np.ndarray, direction: np.ndarray, length: float, name: str, label: str, colour: str, width: float,
    **options: object,
) -> go.Scatter3d:  # fmt: skip
    """A line with four barbs at its end."""
    tip = start + length * direction
    side = np.cross(direction, np.eye(3)[np.argmin(np.abs(direction))])
    side /= np.linalg.norm(side)
    other = np.cross(direction, side)
    barb = min(0.3 * length, 4.0)
    barbs = [np.stack([tip, tip + barb * (0.4 * s - direction)]) for s in (side, -side, other, -other)]
    return _lines([np.stack([start, tip]), *barbs], name, colour, width, hoverinfo="text", hovertext=label, **options)


def _cubes(centres: np.ndarray, edge: np.ndarray | float, labels: list[str], **options: object) -> go.Mesh3d:
    """Cubes around points as one trace.

    Args:
        centres: (N, 3) [mm].
        edge: (N,), or one for all [mm].
        labels: (N,) shown where the pointer is.
        options: of the trace.
    """
    half = np.broadcast_to(np.asarray(edge) / 2, len(centres))
    x, y, z = (centres[:, None] + half[:, None, None] * _CORNERS).reshape(-1, 3).T.round(2)
    i, j, k = (8 * np.arange(len(centres))[:, None, None] + _TRIANGLES).reshape(-1, 3).T
    return go.Mesh3d(
        x=x, y=y, z=z, i=i, j=j, k=k, flatshading=True, showlegend=True,
        hoverinfo="text", hovertext=np.repeat(labels, 8).tolist(), **options,
    )  # fmt: skip


def _place(centre: np.ndarray) -> str:
    x, y, z = centre
    return f"({x:.0f}, {y:.0f}, {z:.0f}) mm"


def _voxels(hits: ak.Record, detector: Detector) -> go.Mesh3d:
    """The hits, coloured by the logarithm of their signal."""
    centres, signal = _points(hits, "hit_"), ak.to_numpy(hits.hit_pe).astype(np.float64)
    logarithm = np.log10(np.maximum(signal, 1e-3))
    decades = np.arange(np.floor(logarithm.min()), np.ceil(logarithm.max()) + 1)
    colourbar = {
        "title": "signal [p.e.]", "len": 0.6, "thickness": 14,
        "tickvals": decades.tolist(), "ticktext": [f"{10**decade:g}" for decade in decades],
    }  # fmt: skip
    return _cubes(
        centres,
        HIT_EDGE * detector.pitch,
        [f"{_place(centre)}: {q:.1f} p.e." for centre, q in zip(centres, signal, strict=True)],
        name=f"hits ({len(signal)})",
        intensity=np.repeat(logarithm.round(3), 8),
        colorscale="Viridis",
        reversescale=True,
        opacity=0.22,
        legendgroup=HITS,
        colorbar=colourbar,
    )


def _images(reco: ak.Record, hits: ak.Record | None, detector: Detector) -> list[go.Mesh3d]:
    """The image of each hadron and leaving track; the volume of a cube is the particle's share of the voxel's light."""
    owners, light = ak.to_numpy(reco.img_part), ak.to_numpy(reco.img_pe).astype(np.float64)
    centres = _points(reco, "img_")
    share = light / _light_of_voxels(centres, light, hits, detector)
    traces = []
    for owner in sorted(set(owners.tolist()), key=lambda part: (part < 0, abs(part))):
        mine = owners == owner
        if owner >= 0:
            name = f"{particle_name(reco.part_pdg[owner])} {reco.part_ke[owner]:.1f} MeV"
            colour = SPECIES_COLOURS.get(int(reco.part_pdg[owner]), OTHER_COLOUR)
        else:
            name, colour = f"leaving track {-1 - owner}", TRACK_COLOUR
        labels = [
            f"{name}<br>{q:.1f} p.e., {100 * part:.0f} % of the voxel<br>{_place(centre)}"
            for centre, q, part in zip(centres[mine], light[mine], share[mine], strict=True)
        ]
        traces.append(
            _cubes(
                centres[mine],
                IMAGE_EDGE * detector.pitch * np.cbrt(share[mine]),
                labels,
                name=f"{name}: {len(labels)} voxels",
                color=colour,
                opacity=0.35,
                visible="legendonly",
                legendgroup=IMAGES,
                legendgrouptitle_text=IMAGES,
            )
        )
    return traces


def _light_of_voxels(
    centres: np.ndarray, light: np.ndarray, hits: ak.Record | None, detector: Detector
) -> np.ndarray:  # fmt: skip
    """(N,) light of the voxel of each entry of the images [p.e.]: its hit, or all images where that is not known."""
    hit_light = np.empty(0) if hits is None else ak.to_numpy(hits.hit_pe).astype(np.float64)
    hit_centres = np.empty((0, 3)) if hits is None else _points(hits, "hit_")
    index = detector.index(np.concatenate([centres, hit_centres]))
    voxel = np.unique(index, axis=0, return_inverse=True)[1].ravel()
    n = len(light)
    of_images = np.bincount(voxel[:n], light, len(voxel))
    of_hits = np.bincount(voxel[n:], hit_light, len(voxel))
    return np.maximum(np.maximum(of_images, of_hits), 1e-9)[voxel[:n]]


def _swap(figure: go.Figure) -> dict | None:
    """The button that puts the images in the place of the hits, and back; None where there are no images."""
    images = [n for n, trace in enumerate(figure.data) if trace.legendgroup == IMAGES]
    hits = [n for n, trace in enumerate(figure.data) if trace.legendgroup == HITS]
    if not images:
        return None
    shown, hidden = ([state] * len(images) for state in (True, "legendonly"))
    return {
        "label": "images",
        "method": "restyle",
        "args": [{"visible": shown + ["legendonly"] * len(hits)}, images + hits],
        "args2": [{"visible": hidden + [True] * len(hits)}, images + hits],
    }


def _reconstruction(reco: ak.Record) -> list:
    """Vertices with errors, hadrons and leaving tracks."""
    if not len(reco.vtx_score):
        return []
    group = {"legendgroup": "reco", "legendgrouptitle_text": "reconstruction"}
    vertices, errors = _points(reco, "vtx_"), _points(reco, "vtx_s")
    bars = {f"error_{axis}": {"array": errors[:, i], "color": TRACK_COLOUR} for i, axis in enumerate("xyz")}
    labels = [
        "<br>".join(
            [f"vertex {n}: score {score:.3f}"]
            + [f"{axis} {x:.1f} ± {err:.1f} mm" for axis, x, err in zip("xyz", vertex, error, strict=True)]
        )
        for n, (score, vertex, error) in enumerate(zip(reco.vtx_score, vertices, errors, strict=True))
    ]
    x, y, z = vertices.T
    traces: list = [
        go.Scatter3d(
            x=x, y=y, z=z, mode="markers", marker={"color": TRACK_COLOUR, "size": 4}, name="vertex", hoverinfo="text",
            hovertext=labels, **bars, **group,
        )
    ]  # fmt: skip
    ranges = track_range(ak.to_numpy(reco.part_ke), ak.to_numpy(reco.part_pdg))
    for n, direction in enumerate(_points(reco, "part_d")):
        pdg, ke, reach = int(reco.part_pdg[n]), reco.part_ke[n], float(np.nan_to_num(ranges[n]))
        name = f"{particle_name(pdg)} {ke:.1f} ± {reco.part_ke_err[n]:.1f} MeV"
        label = f"{name}<br>range {reach:.1f} mm<br>direction ± {np.degrees(reco.part_dir_err[n]):.0f}°"
        colour = SPECIES_COLOURS.get(pdg, OTHER_COLOUR)
        start = vertices[reco.part_vtx[n]]
        traces.append(_arrow(start, direction, max(reach, SHORTEST), name, label, colour, 7, **group))
    for n, (face, direction) in enumerate(zip(_points(reco, "trk_"), _points(reco, "trk_d"), strict=True)):
        energy = f"{reco.trk_ke[n]:.0f} MeV" if reco.trk_ke[n] >= 0 else "energy unknown"
        name, start = f"leaving track {n}", vertices[reco.trk_vtx[n]]
        label = f"{name}: {energy}<br>leaves at ({face[0]:.1f}, {face[1]:.1f}, {face[2]:.1f}) mm"
        line = _lines([np.stack([start, face])], name, TRACK_COLOUR, hoverinfo="skip", showlegend=False)
        line.update(legendgroup="reco")
        traces += [line, _arrow(face, direction, BEYOND, name, label, TRACK_COLOUR, 5, **group)]
    return traces


def _truth(truth: ak.Record, detector: Detector) -> list:
    """True vertex and particles as thin black lines; a muon as far as it goes in the detector."""
    group = {"legendgroup": "truth", "legendgrouptitle_text": "truth"}
    vertex = np.array([truth[f"vtx_{axis}"] for axis in "xyz"], np.float64)
    label = f"true vertex ({vertex[0]:.1f}, {vertex[1]:.1f}, {vertex[2]:.1f}) mm"
    marker = {"color": TRUTH_COLOUR, "size": 4, "symbol": "x"}
    x, y, z = vertex[:, None]
    traces: list = [
        go.Scatter3d(x=x, y=y, z=z, mode="markers", marker=marker, name="true vertex", hoverinfo="text",
                     hovertext=[label], **group)
    ]  # fmt: skip
    lower, upper = np.array(detector.origin), np.array(detector.origin) + detector.size
    ranges = track_range(ak.to_numpy(truth.part_ke), ak.to_numpy(truth.part_pdg))
    for n, direction in enumerate(_points(truth, "part_d")):
        pdg, reach = int(truth.part_pdg[n]), float(np.nan_to_num(ranges[n]))
        name = f"{particle_name(pdg)} {truth.part_ke[n]:.1f} MeV"
        to_wall = float(path_in_box(vertex, direction, lower, upper))
        label = f"true {name}<br>range {reach:.1f} mm"
        path = np.stack([vertex, vertex + max(min(reach, to_wall), SHORTEST) * direction])
        traces.append(_lines([path], name, TRUTH_COLOUR, 3, hoverinfo="text", hovertext=label, **group))
    return traces
