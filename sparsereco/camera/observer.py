"""The ideal observer: how often light can be told from noise at all, its true shape and place being known.

In white Gaussian noise no test finds more events at a rate of fakes than the matched filter of the true shape (Neyman
and Pearson); its fakes are the maxima of its response to noise, whose number is known (Adler, The Geometry of Random
Fields, 1981). Any real selector also pays for not knowing the shape, and for noise that is not Gaussian.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.signal import fftconvolve

Floats = NDArray[np.floating]

REACH = 3
"""How far from its place the maximum of an event's response may be [pixel]."""


def maxima_per_pixel(threshold: float, template: Floats) -> float:
    """Density of maxima of filtered white noise above a threshold, where that is high.

    Args:
        threshold: in standard deviations of the response.
        template: (H, W) the filter.

    Returns:
        sqrt(det L) (2 pi)^(-3/2) u exp(-u^2 / 2) [1/pixel], L being the covariance of the response's gradient.
    """
    dy, dx = np.gradient(template)
    power = (template**2).sum()
    yy, xx, xy = ((a * b).sum() / power for a, b in ((dy, dy), (dx, dx), (dy, dx)))
    return float(np.sqrt(yy * xx - xy**2) * (2 * np.pi) ** -1.5 * threshold * np.exp(-0.5 * threshold**2))


def threshold_for(template: Floats, fakes: float, pixels: int) -> float:
    """The threshold that noise exceeds so many times per frame [standard deviations].

    Args:
        template: (H, W) the filter.
        fakes: per frame.
        pixels: of a frame.
    """
    return float(brentq(lambda u: np.log(maxima_per_pixel(u, template) * pixels / fakes), 1.2, 20))


def is_found(
    pixel: NDArray[np.int64],
    template: Floats,
    counts: Floats,
    noise: float,
    fakes: float,
    pixels: int,
    rng: np.random.Generator,
) -> bool:
    """Whether the observer finds an event.

    Args:
        pixel: (P, 2) y, x of its lit pixels.
        template: (P,) the shape that is looked for there.
        counts: (P,) what arrives [counts].
        noise: standard deviation of a pixel [counts].
        fakes: per frame.
        pixels: of a frame.
        rng: draws the noise.
    """
    if not len(pixel) or template.sum() <= 0:
        return False
    low = pixel.min(0) - REACH - 1
    shape = tuple(np.ptp(pixel, axis=0) + 2 * REACH + 3)
    shaped, image = np.zeros(shape), noise * rng.standard_normal(shape)
    np.add.at(shaped, tuple((pixel - low).T), template)
    np.add.at(image, tuple((pixel - low).T), counts)
    shaped /= np.sqrt((shaped**2).sum())
    response = fftconvolve(image / noise, shaped[REACH:-REACH, REACH:-REACH][::-1, ::-1], mode="valid")
    return bool(response.max() > threshold_for(shaped, fakes, pixels))


def spot(pixel: NDArray[np.int64], centre: Floats, width: float) -> Floats:
    """(P,) a Gaussian spot: the mean shape of a point-like event whose electrons are not known one by one.

    Args:
        pixel: (P, 2) y, x.
        centre: (2,) y, x.
        width: standard deviation [pixel].
    """
    return np.exp(-((pixel - centre) ** 2).sum(1) / (2 * width**2))
