"""Clusters of selected macro-pixels, and what is measured on each.

The features are called as in the experiment's tree `Events`, without the prefix `sc_`. Pixels of a cluster are always
whole macro-pixels, in full resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import leastsq
from scipy.signal import find_peaks, peak_widths
from sklearn.cluster import DBSCAN

from sparsereco.camera.config import ClusterConfig
from sparsereco.camera.directional import extend
from sparsereco.camera.significance import BIN

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Clusters:
    """The clusters of a frame; cluster c owns macro-pixels where ``label`` is c."""

    macro: NDArray[np.int64]  # (M, 2) y, x of macro-pixels, by cluster
    label: NDArray[np.int64]  # (M,) ascending
    score: Floats  # (C,) of its points: the largest, or the sum
    order: NDArray[np.int64]  # (C,) order of the curve that it was grown along, 0 for none

    def __len__(self) -> int:
        return len(self.score)


def find_clusters(
    points: NDArray[np.int64],
    weight: Floats,
    score: Floats,
    settings: ClusterConfig,
    margin: int = 0,
    adds_up: bool = False,
) -> Clusters:
    """Weighted DBSCAN and, where that is enabled, its directional extension.

    Args:
        points: (N, 2) y, x [macro-pixel].
        weight: (N,).
        score: (N,) how far each is from noise.
        settings: reach and thresholds.
        margin: clusters grow by this much in the end [macro-pixel].
        adds_up: the score of a cluster is the sum over its points, not their maximum.
    """
    if not len(points):
        return Clusters(np.zeros((0, 2), np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64))
    labels = DBSCAN(eps=settings.eps, min_samples=settings.min_samples).fit(points, sample_weight=weight).labels_
    order = np.zeros(labels.max(initial=-1) + 1, np.int64)
    if settings.directional.enabled:
        labels, order = extend(points, weight, labels, settings.directional)
    size = np.bincount(labels[labels >= 0], minlength=len(order))
    kept = np.flatnonzero(size >= settings.min_size)
    number = np.full(len(order) + 1, -1)
    number[kept] = np.arange(len(kept))
    labels = number[labels]  # the last entry stands for label -1
    best = np.zeros(len(kept)) if adds_up else np.full(len(kept), -np.inf)
    (np.add if adds_up else np.maximum).at(best, labels[labels >= 0], score[labels >= 0])
    macro, label = _with_margin(points[labels >= 0], labels[labels >= 0], margin)
    return Clusters(macro, label, best, order[kept])


def _with_margin(
    points: NDArray[np.int64], labels: NDArray[np.int64], margin: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Macro-pixels within a distance of a cluster, each of its nearest; sorted by cluster."""
    reach = np.arange(-margin, margin + 1)
    offsets = np.stack(np.meshgrid(reach, reach, indexing="ij"), -1).reshape(-1, 2)
    distance = (offsets**2).sum(1)
    offsets, distance = offsets[distance <= margin**2], distance[distance <= margin**2]
    place = (points[:, None] + offsets).reshape(-1, 2)
    owner = np.repeat(labels, len(offsets))
    order = np.argsort(np.tile(distance, len(points)), kind="stable")
    _, first = np.unique(place[order], axis=0, return_index=True)
    rows = order[first]
    rows = rows[np.argsort(owner[rows], kind="stable")]
    return place[rows], owner[rows]


def pixels_of(macro: NDArray[np.int64]) -> NDArray[np.int64]:
    """(16 M, 2) y, x of the pixels of (M, 2) macro-pixels, row by row."""
    inner = np.stack(np.divmod(np.arange(BIN**2), BIN), 1)
    return (BIN * macro[:, None] + inner).reshape(-1, 2)


def features(x: Floats, y: Floats, value: Floats, pixel: float) -> dict[str, float]:
    """What is measured on a cluster.

    Args:
        x: (P,) of its pixels.
        y: (P,) of its pixels.
        value: (P,) light, negative where noise is [counts].
        pixel: size of a pixel [mm].

    Returns:
        Features by name; lengths in pixels, angles in rad.
    """
    light = np.maximum(value, 0)
    if light.sum() == 0:
        light = np.ones_like(light)
    xmean, ymean = np.average(x, weights=light), np.average(y, weights=light)
    dx, dy = x - xmean, y - ymean
    xx, yy, xy = (np.average(product, weights=light) for product in (dx * dx, dy * dy, dx * dy))
    theta = 0.5 * np.arctan2(2 * xy, xx - yy)
    along, across = dx * np.cos(theta) + dy * np.sin(theta), dy * np.cos(theta) - dx * np.sin(theta)
    length, width = np.ptp(along), np.ptp(across)
    found = {
        "rms": value.std(),
        "pathlength": length * pixel,
        "theta": theta,
        "length": length,
        "width": width,
        "longrms": np.sqrt(np.average(along**2, weights=light)),
        "latrms": np.sqrt(np.average(across**2, weights=light)),
        "lfullrms": along.std(),
        "tfullrms": across.std(),
        "xmean": xmean,
        "ymean": ymean,
        "xmin": x.min(),
        "xmax": x.max(),
        "ymin": y.min(),
        "ymax": y.max(),
        "pearson": xy / np.sqrt(xx * yy) if xx > 0 and yy > 0 else 0.0,
    }
    for axis, place in (("l", along), ("t", across)):
        found |= _profile(axis, place, value)
    return {name: float(number) for name, number in found.items()}


def _profile(axis: str, place: Floats, value: Floats) -> dict[str, float]:
    """Main peak and Gaussian of the profile along an axis, in bins of two pixels."""
    edges = np.arange(np.floor(place.min()), place.max() + 4, 2.0)
    profile, _ = np.histogram(place, edges, weights=value)
    centre = 0.5 * (edges[1:] + edges[:-1])
    padded = np.pad(profile, 1)  # so that a peak at the edge is one
    peaks, shape = find_peaks(padded, prominence=0)
    found = dict.fromkeys(("lp0amplitude", "lp0prominence", "lp0fwhm", "lp0mean"), 0.0)
    if len(peaks):
        main = int(np.argmax(padded[peaks]))
        peak, fwhm = peaks[main], 2 * peak_widths(padded, peaks[main : main + 1], 0.5)[0][0]
        found = {
            "lp0amplitude": padded[peak],
            "lp0prominence": shape["prominences"][main],
            "lp0fwhm": fwhm,
            "lp0mean": centre[peak - 1],
        }
    if axis == "t":
        found = {"tp0fwhm": found["lp0fwhm"]}
    return found | {f"{axis}{name}": number for name, number in _gaussian(centre, profile).items()}


def _gaussian(x: Floats, y: Floats) -> dict[str, float]:
    """Fit of a Gaussian to a profile."""

    def residual(p: Floats) -> Floats:
        return p[0] * np.exp(-0.5 * ((x - p[1]) / p[2]) ** 2) - y

    positive = np.maximum(y, 0)
    mean = np.average(x, weights=positive) if positive.any() else 0.0
    sigma = max(np.sqrt(np.average((x - mean) ** 2, weights=positive)), 1.0) if positive.any() else 1.0
    best, status = np.array([max(y.max(), 1.0), mean, sigma]), 1
    if len(x) > 3:
        # Told of all its output, it does not warn on stderr of fits that do not converge.
        fitted, *_, code = leastsq(residual, best, full_output=True, maxfev=100, xtol=1e-3, ftol=1e-3)
        if code in (1, 2, 3, 4) and fitted[2] != 0:  # MINPACK: converged
            best, status = fitted, 0
    chi2 = (residual(best) ** 2 / np.maximum(y, 1)).sum() / max(len(x) - 3, 1)
    return {"gaussamp": best[0], "gaussmean": best[1], "gausssigma": abs(best[2]), "chi2": chi2, "status": status}
