"""Filled voxels against the missing ones: by voxel, by energy, by track; for the network and the baselines alike.

Everything is counted per event first, so that the errors can be those of a bootstrap over events.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from sparsereco.stats import Estimate, fraction, median, quantile, spread

JOINED = 0.9
"""A track is joined where at least this share of its missing voxels has a filled one within one voxel."""

LEAST = 4
"""Tracks with fewer missing voxels in a gap are not asked about."""

BOOTSTRAPS = 200
BINS = 15


@dataclass(frozen=True)
class VoxelSet:
    """Voxels in gaps, sorted by event."""

    event: NDArray[np.int64]  # (N,)
    coords: NDArray[np.int64]  # (N, 3)
    energy: NDArray[np.float64]  # (N,) [MeV]
    gap: NDArray[np.int64]  # (N,)


@dataclass(frozen=True)
class Truth:
    """What is missing, and what left it there."""

    voxels: VoxelSet
    part: NDArray[np.int64]  # (N,) particle of each voxel, as a row of the arrays below
    part_event: NDArray[np.int64]  # (P,)
    pdg: NDArray[np.int64]  # (P,)
    direction: NDArray[np.float64]  # (P, 3)
    n_events: int
    width: NDArray[np.int64]  # (G,) of each gap [voxels]
    axis: NDArray[np.int64]  # (G,) across each gap


@dataclass(frozen=True)
class Match:
    """Filled voxels held against the missing ones."""

    filled: VoxelSet
    exact: NDArray[np.int64]  # (F,) the missing voxel in the same place, -1 for none
    near: NDArray[np.bool_]  # (F,) whether there is a missing voxel within one voxel
    found: NDArray[np.bool_]  # (N,) whether a missing voxel was filled
    found_near: NDArray[np.bool_]  # (N,) whether there is a filled one within one voxel of it
    away: NDArray[np.float64]  # (F,) distance to the nearest missing voxel of the event [voxels], inf without any
    missed_by: NDArray[np.float64]  # (N,) distance of each missing voxel to the nearest filled one, inf without any


def match(truth: Truth, filled: VoxelSet) -> Match:
    """Finds for every voxel of either side the nearest of the other in its event."""
    ours, theirs = places(filled), places(truth.voxels)
    away, at = nearest(ours, theirs)
    missed_by, _ = nearest(theirs, ours)
    near, found_near = (nearest(a, b, np.inf)[0] <= 1 for a, b in ((ours, theirs), (theirs, ours)))
    exact = np.where(away == 0, at, -1)
    return Match(filled, exact, near, missed_by == 0, found_near, away, missed_by)


APART = 1e5
"""Events lie this far from each other along a fourth axis [voxels]."""


def places(voxels: VoxelSet) -> NDArray[np.float64]:
    """(N, 4): their index, and the event along a fourth axis, on which events lie far apart."""
    return np.concatenate([voxels.coords, APART * voxels.event[:, None]], 1).astype(np.float64)


def nearest(a: NDArray, b: NDArray, p: float = 2.0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Distance of each of (A, 4) places to the nearest of (B, 4) in the same event, inf without any, and its row."""
    if not len(a) or not len(b):
        return np.full(len(a), np.inf), np.full(len(a), -1)
    distance, at = cKDTree(b).query(a, p=p)
    return np.where(distance < APART / 2, distance, np.inf), at


def scores(truth: Truth, m: Match, chosen: NDArray[np.bool_] | None = None) -> dict[str, Estimate]:
    """Precision, recall and F1 by exact voxel and within one voxel, summed over the (chosen) events.

    Args:
        truth: what is missing.
        m: what was filled.
        chosen: (n_events,) bool.
    """
    n = truth.n_events
    filled, missing = m.filled.event, truth.voxels.event
    counts = np.stack(
        [
            np.bincount(filled, minlength=n),
            np.bincount(missing, minlength=n),
            np.bincount(filled[m.exact >= 0], minlength=n),
            np.bincount(missing[m.found], minlength=n),
            np.bincount(filled[m.near], minlength=n),
            np.bincount(missing[m.found_near], minlength=n),
        ],
        1,
    )
    counts = counts if chosen is None else counts[chosen]
    draws = np.random.default_rng(0).multinomial(len(counts), np.full(len(counts), 1 / max(len(counts), 1)), BOOTSTRAPS)
    names = ("precision", "recall", "f1", "precision_near", "recall_near", "f1_near")
    values, samples = _scores(counts.sum(0)), _scores(draws @ counts)
    return {
        name: Estimate(float(value), float(np.std(sample)), len(counts))
        for name, value, sample in zip(names, values, samples, strict=True)
    }


def _scores(counts: NDArray) -> list[NDArray]:
    filled, missing, hit, found, near, found_near = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    result = []
    for right, seen in ((hit, found), (near, found_near)):
        precision = np.divide(right, filled, out=np.zeros_like(filled), where=filled > 0)
        recall = np.divide(seen, missing, out=np.zeros_like(missing), where=missing > 0)
        both = precision + recall
        f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
        result += [precision, recall, f1]
    return result


def chamfer(truth: Truth, m: Match, pitch: float) -> Estimate:
    """Median over events of the mean nearest distance, averaged over both directions [mm]; events with both only."""
    n = truth.n_events
    means = []
    for event, distance in ((m.filled.event, m.away), (truth.voxels.event, m.missed_by)):
        ok = np.isfinite(distance)
        count = np.bincount(event[ok], minlength=n)
        with np.errstate(invalid="ignore"):
            means.append(np.bincount(event[ok], distance[ok], minlength=n) / count)
    both = (means[0] + means[1]) / 2
    return median(pitch * both[np.isfinite(both)])


def energies(truth: Truth, filled: VoxelSet) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n_events, G) true and filled energy in each gap [MeV]."""
    size = truth.n_events * len(truth.width)
    true, said = (
        np.bincount(v.event * len(truth.width) + v.gap, v.energy, minlength=size).astype(np.float64)
        for v in (truth.voxels, filled)
    )
    return true.reshape(truth.n_events, -1), said.reshape(truth.n_events, -1)


def energy_scores(true: NDArray, said: NDArray) -> dict[str, Estimate]:
    """Median and 68 % of the absolute relative residual over crossings, and the relative bias of their sum."""
    residual = said / true - 1
    total = Estimate(float(said.sum() / true.sum() - 1) if len(true) else np.nan, np.nan, len(true))
    if len(true):
        draws = np.random.default_rng(0).integers(0, len(true), (BOOTSTRAPS, len(true)))
        total = Estimate(total.value, float(np.std(said[draws].sum(1) / true[draws].sum(1))), len(true))
    return {"bias": median(residual), "bias_of_sum": total, "spread": spread(residual)}


def expected_energies(
    truth: Truth, event: NDArray[np.int64], gap: NDArray[np.int64], energy: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n_events, G) stated energy of gaps [MeV], 0 where nothing is stated.

    Args:
        truth: what is missing.
        event: (K,) and gap: (K,) that it is stated for.
        energy: (K,) [MeV].
    """
    said = np.zeros((truth.n_events, len(truth.width)))
    said[event, gap] = energy
    return said


def crossings(truth: Truth) -> tuple[NDArray, NDArray, NDArray]:
    """Tracks in gaps with at least `LEAST` missing voxels: particle, gap, and the crossing of each voxel, or -1."""
    key = truth.part * len(truth.width) + truth.voxels.gap
    keys, row, count = np.unique(key, return_inverse=True, return_counts=True)
    kept = count >= LEAST
    number = np.where(kept, np.cumsum(kept) - 1, -1)
    return keys[kept] // len(truth.width), keys[kept] % len(truth.width), number[row]


def lone_tracks(truth: Truth) -> NDArray[np.bool_]:
    """(n_events, G) whether all that is missing in a gap was left by one particle."""
    key = np.unique(np.stack([truth.voxels.event, truth.voxels.gap, truth.part], 1), axis=0)
    count = np.zeros((truth.n_events, len(truth.width)), int)
    np.add.at(count, (key[:, 0], key[:, 1]), 1)
    return count == 1


def joined(truth: Truth, m: Match) -> NDArray[np.bool_]:
    """Of each of `crossings`, whether the track was joined."""
    part, _, row = crossings(truth)
    inside = row >= 0
    count = np.bincount(row[inside], minlength=len(part))
    seen = np.bincount(row[inside], m.found_near[inside], minlength=len(part))
    return seen >= JOINED * count


def calibration(probability: NDArray, hit: NDArray[np.bool_]) -> dict[str, Any]:
    """Said probability against the share that is right, in `BINS` bins, and the expected calibration error."""
    place = np.clip((probability * BINS).astype(int), 0, BINS - 1)
    count = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        said, right = (np.bincount(place, values, minlength=BINS) / count for values in (probability, hit))
    gap = np.nansum(np.abs(said - right) * count) / max(count.sum(), 1)
    return {"said": said, "right": right, "count": count, "ece": Estimate(float(gap), np.nan, len(hit))}


def mistakes(truth: Truth, filled: VoxelSet, beside: NDArray[np.bool_]) -> tuple[Estimate, Estimate]:
    """Share of empty gaps that got a voxel: of all (event, gap), and of those with hits beside them."""
    shape = (truth.n_events, len(truth.width))
    missing, got = np.zeros(shape, bool), np.zeros(shape, bool)
    missing[truth.voxels.event, truth.voxels.gap] = True
    got[filled.event, filled.gap] = True
    return fraction(got[~missing]), fraction(got[~missing & beside])


def coverage(m: Match, truth: Truth, error: NDArray) -> tuple[Estimate, NDArray[np.float64]]:
    """Share of rightly filled voxels whose true energy lies within one standard error, and all pulls."""
    right = m.exact >= 0
    pull = (m.filled.energy[right] - truth.voxels.energy[m.exact[right]]) / error[right]
    return fraction(np.abs(pull) < 1), pull


def summarise(
    truth: Truth,
    matches: Mapping[str, Match],
    single: NDArray[np.bool_],
    length: NDArray[np.float64],
    pitch: float,
) -> dict[str, Any]:
    """All numbers per method.

    Args:
        truth: what is missing.
        matches: by method.
        single: (n_events, G) whether exactly one pair of ends was joined there: crossings whose energy is compared.
        length: (n_events, G) length of that straight line [voxels].
        pitch: edge of a voxel [mm].
    """
    part, gap, _ = crossings(truth)
    normal = np.eye(3)[truth.axis[gap]]
    cosine = np.abs((truth.direction[part] * normal).sum(1)).clip(0, 1)
    angle = np.degrees(np.arccos(cosine))
    tracks = np.bincount(truth.part_event[np.unique(part)], minlength=truth.n_events)
    groups = {f"{n} tracks" if n != 1 else "1 track": tracks == n for n in (0, 1, 2, 3)}
    groups["4 tracks or more"] = tracks >= 4
    methods: dict[str, Any] = {}
    for name, m in matches.items():
        true, said = energies(truth, m.filled)
        used = single & (true > 0)
        bond = joined(truth, m)
        methods[name] = {
            **scores(truth, m),
            "chamfer": chamfer(truth, m, pitch),
            "joined": fraction(bond),
            "energy": energy_scores(true[used], said[used]),
            "by_angle": [
                {"low": low, "high": high, "joined": fraction(bond[(angle >= low) & (angle < high)])}
                for low, high in ((0, 15), (15, 30), (30, 45), (45, 60), (60, 75), (75, 90.1))
            ],
            "by_width": [
                {"width": int(w), "joined": fraction(bond[truth.width[gap] == w])} for w in np.unique(truth.width[gap])
            ],
            "by_particle": [
                {"pdg": int(code), "joined": fraction(bond[truth.pdg[part] == code])}
                for code in (13, -13, 211, -211, 2212, 11, -11)
                if (truth.pdg[part] == code).any()
            ],
            "by_tracks": [
                {"tracks": label, **scores(truth, m, chosen)} for label, chosen in groups.items() if chosen.any()
            ],
        }
    true, _ = energies(truth, truth.voxels)
    used = single & (true > 0) & (length > 0)
    loss = true[used] / length[used]
    own = quantile(np.abs(loss / np.median(loss) - 1), 0.6827) if used.any() else Estimate(np.nan, np.nan, 0)
    return {"methods": methods, "own_fluctuation": own, "crossings": int((single & (true > 0)).sum())}
