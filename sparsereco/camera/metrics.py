"""How well a camera reconstruction does against the truth: events found at a fixed rate of fakes, light, pixels, time.

A track is found by the clusters that hold a tenth of its expected light; of several the one with the best score counts.
A cluster is a fake where it holds no lit pixel at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import awkward as ak
import numpy as np
from numpy.typing import NDArray

from sparsereco.errors import InputError
from sparsereco.stats import Estimate, fraction, median

SHARE = 0.1
"""Share of a track's expected light that a cluster must hold to have found it."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Tracks:
    """All tracks of a sample, and the cluster that found each."""

    energy: Floats  # (T,) true kinetic energy [keV]
    light: Floats  # (T,) true light [counts]
    depth: Floats  # (T,) distance to the GEM [mm]
    score: Floats  # (T,) best score of a cluster that found it, -inf where none did
    integral: Floats  # (T,) sc_integral of that cluster [counts], 0 where none did
    corrected: Floats  # (T,) its sc_corrintegral [counts]
    lit: NDArray[np.int64]  # (T,) true pixels
    hits: NDArray[np.int64]  # (T,) pixels that the selector chose in that cluster
    shared: NDArray[np.int64]  # (T,) pixels that are both


@dataclass(frozen=True)
class Comparison:
    """A reconstruction against the truth."""

    tracks: Tracks
    fakes: Floats  # (F,) scores of fake clusters
    frames: int
    seconds: dict[str, float]
    """Mean time per frame of each stage."""
    points: float
    """Mean number of macro-pixels given to DBSCAN."""


def compare(reco: ak.Array, truth: ak.Array) -> Comparison:
    """Finds which cluster found which track.

    Args:
        reco: records of the tree ``Events``.
        truth: records of the tree ``event_info`` for the same frames in the same order.

    Raises:
        InputError: the frames are not the same.
    """
    if len(reco) != len(truth):
        raise InputError(f"the reconstruction has {len(reco):,} frames, the truth {len(truth):,}")
    different = np.flatnonzero(
        (np.asarray(reco.run) != np.asarray(truth.run)) | (np.asarray(reco.event) != np.asarray(truth.eventnumber))
    )
    if len(different):
        i = int(different[0])
        raise InputError(
            f"entry {i} is run {reco.run[i]}, event {reco.event[i]} in the reconstruction, but run {truth.run[i]}, "
            f"event {truth.eventnumber[i]} in the truth"
        )
    parts = [_compare_frame(one, true) for one, true in zip(reco, truth, strict=True)]
    columns = [np.concatenate([np.zeros(0), *column]) for column in zip(*(part[0] for part in parts), strict=True)]
    tracks = Tracks(*columns[:6], *(column.astype(np.int64) for column in columns[6:]))
    stages = [name for name in ak.fields(reco) if name.startswith("t_")]
    return Comparison(
        tracks,
        np.concatenate([np.zeros(0), *(part[1] for part in parts)]),
        len(reco),
        {name: float(np.mean(np.asarray(reco[name]))) for name in stages},
        float(np.mean(np.asarray(reco.lp_len))),
    )


def _compare_frame(reco: ak.Record, truth: ak.Record) -> tuple[list[Floats], Floats]:
    """Columns of `Tracks` of a frame, and the scores of its fakes."""
    n, clusters = len(truth.energy), len(reco.sc_size)
    size, score = np.asarray(reco.sc_size).astype(int), np.asarray(reco.sc_score, float)
    owner = np.repeat(np.arange(clusters), size)
    key, hit = _key(reco), np.asarray(reco.redpix_hit).astype(bool)
    order = np.argsort(key, kind="stable")
    true_key, track = _key(truth), np.asarray(truth.redpix_track)
    lit, light = np.bincount(track, minlength=n), np.asarray(truth.redpix_iz, float)

    place = np.searchsorted(key, true_key, sorter=order)
    row = order[np.minimum(place, max(len(order) - 1, 0))] if len(order) else np.zeros(len(true_key), int)
    held = (key[row] == true_key) if len(order) else np.zeros(len(true_key), bool)
    shape = (n, max(clusters, 1))
    pairs = track[held] * shape[1] + owner[row[held]]
    inside = np.bincount(pairs, light[held], n * shape[1]).reshape(shape)
    common = np.bincount(pairs[hit[row[held]]], minlength=n * shape[1]).reshape(shape)
    found = inside > SHARE * np.bincount(track, light, n)[:, None]

    scores = np.where(found, score if clusters else -np.inf, -np.inf)
    best = scores.argmax(1)
    some = found.any(1)
    hits = np.bincount(owner, hit, shape[1])
    integral, corrected = (
        np.where(some, np.append(np.asarray(reco[f"sc_{name}"], float), 0.0)[best], 0.0)
        for name in ("integral", "corrintegral")
    )
    return [
        np.asarray(truth.energy, float),
        np.asarray(truth.light, float),
        np.asarray(truth.z_vertex, float),
        scores.max(1),
        integral,
        corrected,
        lit,
        np.where(some, hits[best], 0),
        np.where(some, common[np.arange(n), best], 0),
    ], score[inside.sum(0)[:clusters] == 0]


def _key(record: ak.Record) -> NDArray[np.int64]:
    return np.asarray(record.redpix_iy).astype(np.int64) * 65536 + np.asarray(record.redpix_ix)


def threshold_at(comparison: Comparison, fakes_per_frame: float) -> float:
    """The score that so many fakes per frame exceed; -inf where there are fewer at all."""
    return score_at_rate(comparison.fakes, fakes_per_frame, comparison.frames)


def score_at_rate(scores: Floats, per_frame: float, frames: int) -> float:
    """The score that so many of ``scores`` per frame exceed; -inf where there are fewer at all."""
    allowed = int(per_frame * frames)
    ordered = np.sort(scores)[::-1]
    return float(ordered[allowed]) if allowed < len(ordered) else -np.inf


def summarise(comparison: Comparison, threshold: float) -> dict:
    """All numbers at one threshold.

    Args:
        comparison: of a sample.
        threshold: on the score; clusters above count.

    Returns:
        The rate of fakes, times, points, and by energy: efficiency, bias of the light with its correction for the
        threshold and without, F1 and recall of the pixels.
    """
    tracks = comparison.tracks
    fakes = int((comparison.fakes > threshold).sum())
    rate = Estimate(fakes / comparison.frames, max(fakes, 1) ** 0.5 / comparison.frames, comparison.frames)
    energies = {}
    for energy in np.unique(tracks.energy):
        mine = np.abs(tracks.energy - energy) < 1e-3 * energy
        found = mine & (tracks.score > threshold)
        energies[f"{energy:g}"] = {
            "found": fraction(tracks.score[mine] > threshold),
            "bias": ratio_of_means(tracks.corrected[found], tracks.light[found]),
            "bias_of_integral": ratio_of_means(tracks.integral[found], tracks.light[found]),
            "median_light": median(tracks.corrected[found]),
            "f1": f1_score(tracks, mine, found),
            "recall": pixel_recall(tracks, mine, found),
        }
    total = sum(comparison.seconds.values())
    return {
        "threshold": threshold,
        "frames": comparison.frames,
        "fakes_per_frame": rate,
        "seconds": comparison.seconds | {"all": total},
        "points": comparison.points,
        "energies": energies,
    }


def found_more(one: Comparison, threshold: float, other: Comparison, other_threshold: float) -> dict[str, Estimate]:
    """By energy, the share of tracks that the first finds less the share that the second finds.

    Both see the same tracks: the error, of thresholds as they are, is smaller than that of either share.

    Raises:
        InputError: the tracks are not the same.
    """
    energies = one.tracks.energy
    if not np.array_equal(energies, other.tracks.energy) or not np.array_equal(one.tracks.light, other.tracks.light):
        raise InputError("two reconstructions can be compared track by track only on the same sample")
    gain = (one.tracks.score > threshold).astype(float) - (other.tracks.score > other_threshold)
    gains = {f"{energy:g}": gain[energies == energy] for energy in np.unique(energies)}
    return {
        energy: Estimate(float(some.mean()), float(some.std() / np.sqrt(len(some))), len(some))
        for energy, some in gains.items()
    }


def ratio_of_means(reco: Floats, true: Floats) -> Estimate:
    """Relative bias of a sum: sum(reco) / sum(true) - 1, with the error of the mean difference."""
    if len(true) < 2 or true.sum() == 0:
        return Estimate(np.nan, np.nan, len(true))
    value = reco.sum() / true.sum() - 1
    error = (reco - (1 + value) * true).std(ddof=1) / np.sqrt(len(true)) / true.mean()
    return Estimate(float(value), float(error), len(true))


def f1_score(tracks: Tracks, mine: NDArray[np.bool_], found: NDArray[np.bool_]) -> Estimate:
    """F1 of the chosen pixels of some tracks; all lit pixels of a track that was not found are missed."""
    right = tracks.shared[found].sum()
    total = tracks.hits[found].sum() + tracks.lit[mine].sum()
    if total == 0:
        return Estimate(np.nan, np.nan, 0)
    value = float(2 * right / total)
    per_track = np.where(found, 2 * tracks.shared - value * (tracks.hits + tracks.lit), -value * tracks.lit)[mine]
    error = per_track.std() * np.sqrt(len(per_track)) / total
    return Estimate(value, float(error), int(mine.sum()))


def pixel_recall(tracks: Tracks, mine: NDArray[np.bool_], found: NDArray[np.bool_]) -> Estimate:
    """Share of the lit pixels of some tracks that were chosen; all of a track that was not found are missed."""
    total = tracks.lit[mine].sum()
    if total == 0:
        return Estimate(np.nan, np.nan, 0)
    value = float(tracks.shared[found].sum() / total)
    per_track = (np.where(found, tracks.shared, 0) - value * tracks.lit)[mine]
    return Estimate(value, float(per_track.std() * np.sqrt(len(per_track)) / total), int(mine.sum()))
