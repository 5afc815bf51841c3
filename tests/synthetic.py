"""Truth and reconstruction whose resolution is known, and hits whose light is known: no simulation, no network."""

from __future__ import annotations

import awkward as ak
import numpy as np

from sparsereco.detector import Detector
from sparsereco.kinematics import path_in_box

DETECTOR = Detector()


def unit_vectors(rng: np.random.Generator, n: int) -> np.ndarray:
    """(n, 3) isotropic."""
    v = rng.normal(size=(n, 3))
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def smeared(rng: np.random.Generator, direction: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Directions turned by a Gaussian angle of `sigma` [rad] along each of the two transverse axes."""
    first = np.cross(direction, np.where(np.abs(direction[:, :1]) < 0.9, [[1.0, 0, 0]], [[0, 1.0, 0]]))
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(direction, first)
    a, b = rng.normal(size=(2, len(direction), 1)) * sigma[:, None]
    size = np.hypot(a, b)
    turned = np.cos(size) * direction + np.sin(size) / np.maximum(size, 1e-12) * (a * first + b * second)
    return turned / np.linalg.norm(turned, axis=1, keepdims=True)


def truth_events(n: int, seed: int = 0, max_hadrons: int = 5, species: tuple[int, ...] = (2212,)) -> ak.Array:
    """One muon and 1 to `max_hadrons` hadrons of 0 to 60 MeV per event, schema `truth`."""
    rng = np.random.default_rng(seed)
    hadrons = rng.integers(1, max_hadrons + 1, n)
    counts = hadrons + 1
    total = counts.sum()
    is_muon = np.zeros(total, bool)
    is_muon[np.cumsum(counts) - counts] = True
    ke = np.where(is_muon, rng.uniform(300, 1000, total), rng.uniform(0, 60, total))
    half = np.array(DETECTOR.size) / 2 - 60
    vertex = rng.uniform(-half, half, (n, 3))
    direction = unit_vectors(rng, total)
    columns = {"pdg": np.where(is_muon, 13, rng.choice(species, total)).astype(np.int32), "ke": ke.astype(np.float32)}
    columns |= {f"d{axis}": direction[:, i].astype(np.float32) for i, axis in enumerate("xyz")}
    return ak.Array(
        {"run": np.ones(n, np.int32), "subrun": np.zeros(n, np.int32), "event": np.arange(n)}
        | {f"vtx_{axis}": vertex[:, i].astype(np.float32) for i, axis in enumerate("xyz")}
        | {f"part_{name}": ak.unflatten(column, counts) for name, column in columns.items()}
    )


def reco_events(
    truth: ak.Array,
    seed: int = 1,
    vertex_sigma: float = 1.0,
    ke_sigma: float = 2.0,
    dir_sigma: float = 0.15,
    inefficiency: float = 0.0,
    fakes: float = 0.0,
    no_vertex: float = 0.0,
) -> ak.Array:
    """A Gaussian reconstruction of `truth_events` that knows its errors, schema `reco` with the muon as leaving track.

    Args:
        truth: the events.
        seed: of the smearing.
        vertex_sigma: per axis [mm].
        ke_sigma: per hadron [MeV]; energies may come out negative, so that the smearing stays Gaussian.
        dir_sigma: per transverse axis [rad].
        inefficiency: probability that a hadron is lost.
        fakes: probability of one invented hadron of 1 MeV per event.
        no_vertex: probability of an event without any vertex.
    """
    rng = np.random.default_rng(seed)
    n = len(truth)
    found = rng.random(n) >= no_vertex
    vertex = np.stack([ak.to_numpy(truth[f"vtx_{axis}"]) for axis in "xyz"], axis=1)
    vertex = vertex + rng.normal(size=(n, 3)) * vertex_sigma

    muon = truth.part_pdg == 13
    kept = ~muon & found & ak.unflatten(rng.random(ak.sum(ak.num(muon))) >= inefficiency, ak.num(muon))
    owner = ak.to_numpy(ak.flatten(ak.broadcast_arrays(np.arange(n), kept)[0][kept]))
    ke = ak.to_numpy(ak.flatten(truth.part_ke[kept]))
    direction = np.stack([ak.to_numpy(ak.flatten(truth[f"part_d{axis}"][kept])) for axis in "xyz"], axis=1)
    ke = ke + rng.normal(size=len(ke)) * ke_sigma
    direction = smeared(rng, direction, np.full(len(ke), dir_sigma))
    pdg = ak.to_numpy(ak.flatten(truth.part_pdg[kept]))
    fake_owner = np.flatnonzero(found & (rng.random(n) < fakes))
    owner, pdg = np.append(owner, fake_owner), np.append(pdg, np.full(len(fake_owner), 2212))
    ke, direction = np.append(ke, np.ones(len(fake_owner))), np.append(direction, unit_vectors(rng, len(fake_owner)), 0)
    order = np.lexsort([-ke, owner])
    counts = np.bincount(owner, minlength=n)

    def particles(values: np.ndarray, dtype: type = np.float32) -> ak.Array:
        return ak.unflatten(np.broadcast_to(values, len(ke))[order].astype(dtype), counts)

    def vertices(values: np.ndarray, dtype: type = np.float32) -> ak.Array:
        return ak.unflatten(np.broadcast_to(values, n)[found].astype(dtype), found.astype(np.int64))

    muon_direction = np.stack([ak.to_numpy(ak.firsts(truth[f"part_d{axis}"][muon])) for axis in "xyz"], axis=1)
    lower = DETECTOR.origin + (DETECTOR.index(vertex) - 3) * DETECTOR.pitch
    face = vertex + path_in_box(vertex, muon_direction, lower, lower + 7 * DETECTOR.pitch)[:, None] * muon_direction
    return ak.Array(
        {name: truth[name] for name in ("run", "subrun", "event")}
        | {f"vtx_{axis}": vertices(vertex[:, i]) for i, axis in enumerate("xyz")}
        | {f"vtx_s{axis}": vertices(vertex_sigma) for axis in "xyz"}
        | {"vtx_ke": vertices(np.bincount(owner, ke, n)), "vtx_ke_err": vertices(ke_sigma * np.sqrt(counts))}
        | {"vtx_score": vertices(0.9), "vtx_deviance": vertices(0), "vtx_ndf": vertices(0)}
        | {"part_vtx": particles(0, np.int32), "part_pdg": particles(pdg, np.int32), "part_score": particles(0.9)}
        | {"part_ke": particles(ke), "part_ke_err": particles(ke_sigma), "part_dir_err": particles(dir_sigma)}
        | {f"part_d{axis}": particles(direction[:, i]) for i, axis in enumerate("xyz")}
        | {"trk_vtx": vertices(0, np.int32), "trk_ke": vertices(-1)}
        | {f"trk_{axis}": vertices(face[:, i]) for i, axis in enumerate("xyz")}
        | {f"trk_d{axis}": vertices(muon_direction[:, i]) for i, axis in enumerate("xyz")}
        | {"img_part": vertices(0, np.int32), "img_pe": vertices(1)}
        | {f"img_{axis}": vertices(vertex[:, i]) for i, axis in enumerate("xyz")}
    )


def hit_events(truth: ak.Array, light_per_mev: float = 60.0, light_per_mm: float = 16.0) -> ak.Array:
    """Hits of `truth_events`, schema `hits`, without fluctuations.

    The hadrons leave `light_per_mev` p.e. per MeV in the voxel of the vertex, the muon `light_per_mm` p.e. per mm over
    its first 400 mm or to the wall, in steps of 0.5 mm.
    """
    entries = []
    for event in truth:
        vertex = np.array([event.vtx_x, event.vtx_y, event.vtx_z])
        muon = np.stack([ak.to_numpy(event[f"part_d{axis}"]) for axis in "xyz"], axis=1)[event.part_pdg == 13]
        ke = ak.sum(event.part_ke[event.part_pdg != 13])
        steps = vertex + (np.arange(800)[:, None] * 0.5 + 0.25) * muon[0]
        index = DETECTOR.index(np.concatenate([vertex[None], steps]))
        light = np.append(light_per_mev * ke, np.full(len(steps), 0.5 * light_per_mm))
        inside = ((index >= 0) & (index < DETECTOR.shape)).all(1)
        voxels, inverse = np.unique(index[inside], axis=0, return_inverse=True)
        centres = DETECTOR.centre(voxels)
        entries.append((*centres.T, np.bincount(inverse.ravel(), light[inside])))
    columns = {
        f"hit_{name}": ak.values_astype(ak.Array([entry[i] for entry in entries]), np.float32)
        for i, name in enumerate(("x", "y", "z", "pe"))
    }
    return ak.Array({name: truth[name] for name in ("run", "subrun", "event")} | columns)
