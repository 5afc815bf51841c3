"""Robust estimates with statistical errors: quantiles, fractions, and both in bins of a variable.

"Spread" is the 68.27 % quantile of the absolute residual: one standard deviation for a Gaussian, and tails and bias
count where a fit would leave them out. A quantile's error comes from the order statistics that bracket it, a fraction's
from the Wilson interval, both at 68.27 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ONE_SIGMA = 0.6827


@dataclass(frozen=True)
class Estimate:
    """A number with its statistical error and the number of entries behind it; NaN where there are none."""

    value: float
    error: float
    count: int


@dataclass(frozen=True)
class Profile:
    """Residuals in bins of a variable. The arrays are (bins,), NaN where a bin is empty."""

    edges: np.ndarray
    """(bins + 1,) edges of the bins."""
    count: np.ndarray
    median: np.ndarray
    median_error: np.ndarray
    low: np.ndarray
    """15.87 % quantile; with `high` it bounds the central 68.27 %."""
    high: np.ndarray
    spread: np.ndarray
    """68.27 % quantile of the absolute residual."""
    spread_error: np.ndarray


@dataclass(frozen=True)
class Rate:
    """A fraction in bins of a variable. The arrays are (bins,)."""

    edges: np.ndarray
    count: np.ndarray
    """Entries that count."""
    total: np.ndarray
    """All entries."""
    fraction: np.ndarray
    error: np.ndarray


def format_estimate(estimate: Estimate, unit: str = "") -> str:
    """Value and error with two significant digits of the error, like ``1.516 ± 0.014 mm``; a dash where unknown."""
    if not np.isfinite(estimate.value):
        return "-"
    if not 0 < estimate.error < np.inf:
        return f"{estimate.value:.4g} {unit}".rstrip()
    digits = max(0, 1 - int(np.floor(np.log10(estimate.error))))
    value = round(estimate.value, digits) + 0.0  # never -0.0
    return f"{value:,.{digits}f} ± {estimate.error:,.{digits}f} {unit}".rstrip()


def percent(share: Estimate) -> Estimate:
    """A share in per cent."""
    return Estimate(100 * share.value, 100 * share.error, share.count)


def quantile(values: np.ndarray, q: float) -> Estimate:
    """Quantile; its error is half the distance of the order statistics one standard deviation of their rank away."""
    values = np.sort(np.asarray(values, np.float64))
    n = len(values)
    if n == 0:
        return Estimate(np.nan, np.nan, 0)
    reach = np.sqrt(q * (1 - q) / n)
    low, value, high = np.quantile(values, np.clip([q - reach, q, q + reach], 0, 1))
    return Estimate(float(value), float(high - low) / 2, n)


def median(values: np.ndarray) -> Estimate:
    """Median with its error."""
    return quantile(values, 0.5)


def spread(residuals: np.ndarray) -> Estimate:
    """68.27 % quantile of the absolute residuals with its error."""
    return quantile(np.abs(residuals), ONE_SIGMA)


def fraction(chosen: np.ndarray) -> Estimate:
    """Share of True; its error is half the 68.27 % Wilson interval, which is not 0 at a share of 0 or 1."""
    n = len(chosen)
    if n == 0:
        return Estimate(np.nan, np.nan, 0)
    p = float(np.mean(chosen))
    return Estimate(p, float(np.sqrt(p * (1 - p) / n + 0.25 / n**2) / (1 + 1 / n)), n)


def profile(x: np.ndarray, residuals: np.ndarray, edges: np.ndarray) -> Profile:
    """Residuals in bins of `x`, each bin [low edge, high edge) but the last, which holds its upper edge too.

    Args:
        x: (N,).
        residuals: (N,).
        edges: (bins + 1,) increasing.
    """
    bins = _bin(x, edges)
    groups = [residuals[bins == i] for i in range(len(edges) - 1)]
    medians, spreads = [median(g) for g in groups], [spread(g) for g in groups]
    tail = (1 - ONE_SIGMA) / 2
    return Profile(
        np.asarray(edges, np.float64),
        np.array([len(g) for g in groups]),
        np.array([m.value for m in medians]),
        np.array([m.error for m in medians]),
        np.array([quantile(g, tail).value for g in groups]),
        np.array([quantile(g, 1 - tail).value for g in groups]),
        np.array([s.value for s in spreads]),
        np.array([s.error for s in spreads]),
    )


def rate(x: np.ndarray, chosen: np.ndarray, edges: np.ndarray) -> Rate:
    """Share of True in bins of `x`, with the bins of `profile`."""
    bins = _bin(x, edges)
    shares = [fraction(chosen[bins == i]) for i in range(len(edges) - 1)]
    return Rate(
        np.asarray(edges, np.float64),
        np.array([chosen[bins == i].sum() for i in range(len(edges) - 1)]),
        np.array([s.count for s in shares]),
        np.array([s.value for s in shares]),
        np.array([s.error for s in shares]),
    )


def _bin(x: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.where(x == edges[-1], len(edges) - 2, np.digitize(x, edges) - 1)


def confusion(reco_class: np.ndarray, true_class: np.ndarray, classes: int = 0) -> np.ndarray:
    """(R, T) counts of [reconstructed, true] class numbers; R and T are `classes`, or where that is 0 as needed."""
    counts = np.zeros((classes or reco_class.max(initial=0) + 1, classes or true_class.max(initial=0) + 1), np.int64)
    np.add.at(counts, (reco_class, true_class), 1)
    return counts


def recall(counts: np.ndarray) -> np.ndarray:
    """Counts [reconstructed, true] as shares of each true class (column), NaN where it is empty."""
    with np.errstate(invalid="ignore"):
        return counts / counts.sum(0, keepdims=True)


def precision(counts: np.ndarray) -> np.ndarray:
    """Counts [reconstructed, true] as shares of each reconstructed class (row), NaN where it is empty."""
    with np.errstate(invalid="ignore"):
        return counts / counts.sum(1, keepdims=True)
