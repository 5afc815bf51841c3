"""What needs no network: total energy from the light around the vertex, and two simple vertices.

They set the scale for the chain, so they get every help: the vertex that the chain found, coefficients fitted on the
sample itself (on one half, applied to the other), and for one variant even the true muon. Two energies, each with the
leaving tracks' light estimated from their path through the crop:

`linear`: E = a + b (crop light) + c (path of the leaving tracks), a least-squares fit.
`unfolded`: the light left after c/b of each mm of path is taken away, Birks-unfolded as a single particle would be,
then a straight line against the true energy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import awkward as ak
import numpy as np

from sparsereco.detector import Detector
from sparsereco.kinematics import MUON, path_in_box
from sparsereco.matching import best_vertex
from sparsereco.metrics import Comparison

CROP = 7
"""Edge of the cube of voxels around the vertex."""
BRIGHT = 100.0
"""The farthest voxel above this signal sets the length of the Birks unfolding; higher values do worse [p.e.]."""
MIN_EVENTS = 20
"""Fewer events with a vertex than this and no coefficients are fitted."""

Fit = Callable[[np.ndarray], np.ndarray]
"""From (E, K) terms of all events to the (K,) least-squares coefficients of the training half."""


@dataclass(frozen=True)
class Crop:
    """Light around the reconstructed vertex of E events, NaN where there is no vertex."""

    light: np.ndarray
    """(E,) summed signal [p.e.]."""
    centroid: np.ndarray
    """(E, 3) charge-weighted mean of the voxel centres [mm], NaN also for a crop without hits."""
    extent: np.ndarray
    """(E,) distance from the vertex to the farthest voxel above `BRIGHT` [mm], 0 where there is none."""
    true_path: np.ndarray
    """(E,) path of the true muons through the crop [mm]."""
    reco_path: np.ndarray
    """(E,) path of the reconstructed leaving tracks from the vertex to the face of the crop [mm]."""


def measure_crop(hits: ak.Array, truth: ak.Array, reco: ak.Array, vertex: np.ndarray, detector: Detector) -> Crop:
    """Sum up the `CROP`^3 voxels centred on the voxel of the vertex.

    Args:
        hits: E events of schema `hits`.
        truth: the same events.
        reco: the same events.
        vertex: (E, 3) the reconstructed vertex [mm], NaN where there is none.
        detector: its grid.
    """
    n = len(vertex)
    found = np.isfinite(vertex).all(1)
    centre = detector.index(np.where(found[:, None], vertex, 0))
    lower = detector.centre(centre - CROP // 2) - detector.pitch / 2
    upper = lower + CROP * detector.pitch

    event = np.repeat(np.arange(n), ak.to_numpy(ak.num(hits.hit_pe)))
    position = np.stack([ak.to_numpy(ak.flatten(hits[f"hit_{axis}"])) for axis in "xyz"], axis=1).astype(np.float64)
    signal = ak.to_numpy(ak.flatten(hits.hit_pe)).astype(np.float64)
    inside = (np.abs(detector.index(position) - centre[event]) <= CROP // 2).all(1) & found[event]
    event, position, signal = event[inside], position[inside], signal[inside]
    light = np.bincount(event, signal, n)
    with np.errstate(invalid="ignore"):
        centroid = np.stack([np.bincount(event, signal * x, n) / light for x in position.T], axis=1)
    distance = np.linalg.norm(position - vertex[event], axis=1)
    extent = np.zeros(n)
    np.maximum.at(extent, event[signal >= BRIGHT], distance[signal >= BRIGHT])

    true_vertex = np.stack([ak.to_numpy(truth[f"vtx_{axis}"]) for axis in "xyz"], axis=1)
    owner, direction = _flat(truth, "part_d", np.abs(truth.part_pdg) == MUON)
    true_path = np.bincount(owner, path_in_box(true_vertex[owner], direction, lower[owner], upper[owner]), n)
    owner, face = _flat(reco, "trk_", reco.trk_vtx == best_vertex(reco))
    reco_path = np.bincount(owner, np.linalg.norm(face - vertex[owner], axis=1), n)
    return Crop(
        np.where(found, light, np.nan),
        centroid,
        np.where(found, extent, np.nan),
        np.where(found, true_path, np.nan),
        np.where(found, reco_path, np.nan),
    )


def _flat(events: ak.Array, prefix: str, chosen: ak.Array) -> tuple[np.ndarray, np.ndarray]:
    """Entry (M,) and x, y, z columns (M, 3) of the chosen members of a group."""
    owner = np.repeat(np.arange(len(events)), ak.to_numpy(ak.sum(chosen, axis=1)))
    columns = [ak.to_numpy(ak.flatten(events[f"{prefix}{axis}"][chosen])) for axis in "xyz"]
    return owner, np.stack(columns, axis=1).astype(np.float64)


def energies(crop: Crop, true_total: np.ndarray, detector: Detector) -> dict[str, np.ndarray]:
    """(E,) total hadronic kinetic energy [MeV] of each method, with the true and the reconstructed path.

    An event without vertex gets the mean energy of the half that its coefficients come from.

    Args:
        crop: of E events.
        true_total: (E,) true energy [MeV], which calibrates: even entries for odd ones and the other way round.
        detector: the light yield and Birks constant of its response are those of the unfolding.
    """

    def linear(fit: Fit, terms: np.ndarray) -> np.ndarray:
        return terms @ fit(terms)

    def unfolded(fit: Fit, terms: np.ndarray) -> np.ndarray:
        _, per_light, per_path = fit(terms)
        ratio = per_path / per_light if per_light else 0.0  # 0 where no event has any hadron
        light = np.maximum(terms[:, 1] + ratio * terms[:, 2], 0)
        line = np.stack([np.ones(len(light)), birks_unfolded(light, crop.extent, detector)], axis=1)
        return line @ fit(line)

    result = {}
    for source, path in (("true muon", crop.true_path), ("reconstructed tracks", crop.reco_path)):
        terms = np.stack([np.ones(len(path)), crop.light, path], axis=1)
        result[f"linear, {source}"] = cross_fit(terms, true_total, linear)
        result[f"unfolded, {source}"] = cross_fit(terms, true_total, unfolded)
    return result


def cross_fit(terms: np.ndarray, target: np.ndarray, predict: Callable[[Fit, np.ndarray], np.ndarray]) -> np.ndarray:
    """(E,) predictions in which no event took part in its own fit.

    Args:
        terms: (E, K), NaN in the rows that can be neither fitted nor predicted: they get the mean of the target.
        target: (E,).
        predict: given the `Fit` of the training half and the terms, returns (E,) predictions.
    """
    usable = np.isfinite(terms).all(1)
    result = np.empty(len(target))
    for half in (0, 1):
        tested = np.arange(len(target)) % 2 == half
        train = usable & ~tested

        def fit(columns: np.ndarray, train: np.ndarray = train) -> np.ndarray:
            scale = np.maximum(np.abs(columns[train]).max(0), 1e-12)  # keeps the rank test of lstsq meaningful
            return np.linalg.lstsq(columns[train] / scale, target[train], rcond=None)[0] / scale

        result[tested] = np.where(usable, predict(fit, terms), target[train].mean())[tested]
    return result


def birks_unfolded(light: np.ndarray, extent: np.ndarray, detector: Detector) -> np.ndarray:
    """V / (1 - kB V / L): energy of one particle [MeV] that left V = light / yield evenly over a length L.

    The unfolding of arXiv:2310.19695 and the programs that follow it, in mm: L is `extent` within half a voxel and 4.5
    voxel diagonals. Several hadrons share the light but not the length, so the bracket is kept above 0.2.

    Args:
        light: (E,) hadronic light [p.e.].
        extent: (E,) [mm].
        detector: its pitch, light yield and Birks constant.
    """
    visible = light / detector.response.light_yield
    length = np.clip(extent, 0.5 * detector.pitch, 4.5 * np.sqrt(3) * detector.pitch)
    return visible / np.maximum(1 - detector.response.birks * visible / length, 0.2)


def vertices(crop: Crop, reco: ak.Array) -> dict[str, np.ndarray]:
    """(E, 3) vertex [mm] of each method, NaN where the chain found none.

    The charge-weighted centre of the crop; and the point nearest to all leaving tracks of the best vertex, which for a
    single track is the point of its line nearest to that centre, and for none the centre itself.
    """
    owner, point = _flat(reco, "trk_", reco.trk_vtx == best_vertex(reco))
    _, direction = _flat(reco, "trk_d", reco.trk_vtx == best_vertex(reco))
    return {
        "charge-weighted centre": crop.centroid,
        "crossing of leaving tracks": crossing_point(owner, point, direction, crop.centroid),
    }


def crossing_point(owner: np.ndarray, point: np.ndarray, direction: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Point with the least summed square distance to the lines of each event.

    Args:
        owner: (M,) event of each line.
        point: (M, 3) a point on it [mm].
        direction: (M, 3) its unit vector.
        prior: (E, 3) [mm], decides along directions that the lines leave open, with a weight of 1e-6 lines.

    Returns:
        (E, 3) [mm].
    """
    transverse = np.eye(3) - direction[:, :, None] * direction[:, None, :]
    normal = np.tile(1e-6 * np.eye(3), (len(prior), 1, 1))
    offset = np.zeros_like(prior)
    np.add.at(normal, owner, transverse)
    np.add.at(offset, owner, np.einsum("mij,mj->mi", transverse, point - prior[owner]))
    return prior + np.linalg.solve(normal, offset[:, :, None])[:, :, 0]


@dataclass(frozen=True)
class Baselines:
    """Predictions of all methods for E events; `note` says why some are missing."""

    energy: dict[str, np.ndarray]
    vertex: dict[str, np.ndarray]
    note: str = ""


def baselines(
    hits: Iterable[ak.Array], truth: ak.Array, reco: ak.Array, comparison: Comparison, detector: Detector
) -> Baselines:
    """All baselines that the sample allows.

    Args:
        hits: chunks of events of schema `hits`, together the E events in their order.
        truth: the events.
        reco: the events.
        comparison: of `truth` and `reco`.
        detector: its grid and response.

    Raises:
        ValueError: the numbers of events differ.
    """
    crops, start = [], 0
    for chunk in hits:
        part = slice(start, start + len(chunk))
        crops.append(measure_crop(chunk, truth[part], reco[part], comparison.reco_vertex[part], detector))
        start += len(chunk)
    if start != len(truth):
        raise ValueError(f"expected hits of {len(truth)} events, got {start}")
    columns = {field.name: np.concatenate([getattr(crop, field.name) for crop in crops]) for field in fields(Crop)}
    crop = Crop(**columns)
    enough = np.isfinite(crop.light).sum() >= MIN_EVENTS
    return Baselines(
        energies(crop, comparison.true_total, detector) if enough else {},
        vertices(crop, reco),
        "" if enough else f"No energy baselines: they are fitted on at least {MIN_EVENTS} events with a vertex.",
    )
