"""Energy calibration: the peak of a line, such as 5.9 keV of 55Fe, to keV per count.

An unbinned fit of a Gaussian and a tail towards less light: the same Gaussian smeared by an exponential, for clusters
that have lost some. The scale may depend on the distance to the GEM or the light density: fit it in bins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import erfcx, expit
from scipy.stats import norm

from sparsereco.errors import InputError
from sparsereco.stats import Estimate

Floats = NDArray[np.float64]

MIN_ENTRIES = 50
"""Fewer clusters are no peak."""


@dataclass(frozen=True)
class Peak:
    """A fitted peak."""

    mean: Estimate
    """Of the Gaussian [counts]."""
    sigma: Estimate
    """Its standard deviation [counts]."""
    tail: float
    """Share of clusters in the tail."""
    slope: float
    """Mean loss of those [counts]."""

    def kev_per_count(self, energy: float) -> Estimate:
        """The scale, for a line of this energy [keV]."""
        scale = energy / self.mean.value
        return Estimate(scale, scale * self.mean.error / self.mean.value, self.mean.count)

    @property
    def resolution(self) -> Estimate:
        """Standard deviation over mean."""
        value = self.sigma.value / self.mean.value
        error = value * np.hypot(self.sigma.error / self.sigma.value, self.mean.error / self.mean.value)
        return Estimate(value, float(error), self.mean.count)

    def density(self, x: Floats) -> Floats:
        """Probability density at (N,) integrals [1/count]."""
        return _density(x, self.mean.value, self.sigma.value, self.tail, self.slope)


def fit_peak(integral: Floats) -> Peak:
    """Fits the highest peak of a distribution.

    Args:
        integral: (N,) light of clusters [counts]; those further than four standard deviations off are left out.

    Raises:
        InputError: fewer than `MIN_ENTRIES` clusters in the peak.
    """
    integral = np.asarray(integral, float)
    mean, sigma = _coarse(integral)
    window = integral[np.abs(integral - mean) < 4 * sigma]
    if len(window) < MIN_ENTRIES:
        raise InputError(f"a peak needs at least {MIN_ENTRIES} clusters, found {len(window)} around {mean:.0f} counts")

    def cost(p: Floats) -> float:
        values = _density(window, mean + sigma * p[0], sigma * np.exp(p[1]), 0.5 * expit(p[2]), sigma * np.exp(p[3]))
        # A weak pull towards a small tail of ordinary length, where the data do not tell.
        return float(-np.log(np.maximum(values, 1e-300)).sum() + 0.5 * ((p[2] + 3) / 2) ** 2 + 0.5 * (p[3] - 0.7) ** 2)

    best = minimize(cost, np.array([0.0, 0.0, -3.0, 0.7]), method="Nelder-Mead", options={"maxiter": 4000}).x
    covariance = np.linalg.pinv(_hessian(cost, best))
    errors = np.sqrt(np.maximum(np.diag(covariance), 0))
    n, width = len(window), sigma * float(np.exp(best[1]))
    return Peak(
        Estimate(float(mean + sigma * best[0]), float(sigma * errors[0]), n),
        Estimate(width, float(width * errors[1]), n),
        float(0.5 * expit(best[2])),
        float(sigma * np.exp(best[3])),
    )


def fit_in_bins(integral: Floats, variable: Floats, edges: Floats) -> list[Peak | None]:
    """The peak in bins of another quantity; None where there are too few clusters.

    Args:
        integral: (N,) light of clusters [counts].
        variable: (N,) such as the distance to the GEM or the light per pixel.
        edges: (bins + 1,) increasing.
    """
    peaks: list[Peak | None] = []
    for low, high in pairwise(edges):
        try:
            peaks.append(fit_peak(integral[(variable >= low) & (variable < high)]))
        except InputError:
            peaks.append(None)
    return peaks


def _coarse(integral: Floats) -> tuple[float, float]:
    """Centre and width of the densest part: median and robust width, repeated within two widths."""
    if not len(integral):
        return 0.0, 1.0
    mean, sigma = float(np.median(integral)), float(max(np.percentile(integral, 84) - np.median(integral), 1e-9))
    for _ in range(10):
        near = integral[np.abs(integral - mean) < 2 * sigma]
        if len(near) < 2:
            break
        mean, sigma = (
            float(near.mean()),
            float(max(near.std() / 0.88, 1e-9)),
        )  # a Gaussian cut at 2 has 0.88 of its width
    return mean, sigma


def _density(x: Floats, mean: float, sigma: float, tail: float, slope: float) -> Floats:
    z = (x - mean) / sigma
    # Exponentially modified Gaussian, mirrored; erfcx keeps it finite far from the peak.
    smeared = np.exp(-0.5 * z**2) * erfcx((sigma / slope + z) / np.sqrt(2)) / (2 * slope)
    return (1 - tail) * norm.pdf(z) / sigma + tail * smeared


def _hessian(cost: Callable[[Floats], float], at: Floats, step: float = 0.02) -> Floats:
    """Second derivatives by central differences."""
    moves = step * np.eye(len(at))
    return np.array(
        [
            [(cost(at + a + b) - cost(at + a - b) - cost(at - a + b) + cost(at - a - b)) / (4 * step**2) for b in moves]
            for a in moves
        ]
    )
