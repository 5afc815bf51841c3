"""Directional extension of DBSCAN: clusters that are straight or gently bent grow along their curve, across gaps.

A cluster is tested for a line by RANSAC. If it is one, points near its ends that lie along the curve through it join,
first along a line, then along a parabola, until a step brings too little.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from sklearn.linear_model import LinearRegression, RANSACRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures

from sparsereco.camera.config import DirectionalConfig

Points = NDArray[np.int64]


def extend(
    points: Points, weight: NDArray[np.float64], labels: Points, settings: DirectionalConfig
) -> tuple[Points, Points]:
    """Grows clusters, the heaviest first; grown ones take what they reach, other clusters too.

    Args:
        points: (N, 2) y, x [macro-pixel].
        weight: (N,).
        labels: (N,) of DBSCAN, -1 for none.
        settings: thresholds.

    Returns:
        (N,) labels, and (clusters,) order of the curve that each was grown along, 0 for none.
    """
    labels = labels.copy()
    order = np.zeros(labels.max(initial=-1) + 1, np.int64)
    heaviest = np.argsort(-np.bincount(labels[labels >= 0], weight[labels >= 0], len(order)), kind="stable")
    grown: list[int] = []
    for cluster in heaviest:
        mine = labels == cluster
        if mine.sum() <= settings.min_points or not _is_line(points[mine], settings):
            continue
        free = ~np.isin(labels, grown)
        for degree in (1, 2):
            while True:
                added = _reached(points, mine, free & ~mine, degree, settings)
                if weight[added].sum() < settings.min_samples:
                    break
                mine = mine | added
        labels[mine] = cluster
        order[cluster] = _best_degree(points[mine])
        grown.append(int(cluster))
    return labels, order


def _is_line(points: Points, settings: DirectionalConfig) -> bool:
    axis, across = _along(points, points)
    fit = _fit(axis, across, 1, settings.thickness)
    residual = np.abs(across - fit.predict(axis[:, None]))
    long = np.ptp(axis) > 2 * max(settings.thickness, np.ptp(across))  # a round spot lies along any line
    return bool(long and (residual < settings.thickness).mean() >= settings.accuracy)


def _reached(
    points: Points, mine: NDArray[np.bool_], free: NDArray[np.bool_], degree: int, settings: DirectionalConfig
) -> NDArray[np.bool_]:
    """(N,) free points within reach of a cluster and of the curve through it."""
    near = np.zeros(len(points), bool)
    if free.any():
        distance, _ = cKDTree(points[mine]).query(points[free], distance_upper_bound=settings.radius)
        near[np.flatnonzero(free)[np.isfinite(distance)]] = True
    if near.any():
        axis, across = _along(points[mine], points[mine])
        fit = _fit(axis, across, degree, settings.thickness)
        place, off = _along(points[near], points[mine])
        near[np.flatnonzero(near)] = np.abs(off - fit.predict(place[:, None])) < settings.thickness
    return near


def _best_degree(points: Points) -> int:
    """2 where a parabola follows the points clearly better than a line, else 1."""
    axis, across = _along(points, points)
    line, parabola = (np.polynomial.Polynomial.fit(axis, across, degree)(axis) for degree in (1, 2))
    return 2 if ((across - parabola) ** 2).mean() < 0.7 * ((across - line) ** 2).mean() else 1


def _along(points: Points, reference: Points) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates of points along and across the main axis of the reference."""
    centre = reference.mean(0)
    _, vectors = np.linalg.eigh(np.cov((reference - centre).T))
    rotated = (points - centre) @ vectors
    return rotated[:, 1], rotated[:, 0]


def _fit(axis: NDArray[np.float64], across: NDArray[np.float64], degree: int, tolerance: float) -> RANSACRegressor:
    """A robust polynomial."""
    model = make_pipeline(PolynomialFeatures(degree), LinearRegression())
    samples = max(degree + 1, int(0.7 * len(axis)))
    ransac = RANSACRegressor(
        model, min_samples=samples, residual_threshold=tolerance, max_trials=20, random_state=0, stop_probability=0.999
    )
    try:
        return ransac.fit(axis[:, None], across)
    except ValueError:  # no sample had an inlier: then the plain fit is as good as any
        return model.fit(axis[:, None], across)
