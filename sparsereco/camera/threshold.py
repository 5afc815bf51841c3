"""Light that a threshold adds: of equal tracks those are found that noise made brighter.

Noise moves the score S of a cluster and the light Q in its pixels together. Where it is Gaussian, it adds
E[delta(S - t) Cov(S, Q)] to the light of all that is found above a threshold t (Stein's lemma, Ann. Statist. 9, 1135):
the density of scores there times the light that goes with one standard deviation of the score, whatever the energies.
`excess` takes as much from the clusters just above. Sums and means over found clusters are right then; one cluster is
not known better.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from sparsereco.camera.config import GaussianConfig

Floats = NDArray[np.float64]

FILTER = 2 * np.sqrt(np.pi) * GaussianConfig.sigma
"""Light that goes with one standard deviation of a matched filter, the sum of a Gaussian of unit norm [pixel sigma]."""

NETWORK = 13.8
"""The same of the U-Net: gradient of its score, summed over clusters just above the threshold, over its norm (0.1)."""


def excess(above: Floats, light: float) -> Floats:
    """What the threshold adds to the light of clusters.

    Args:
        above: (C,) significance of clusters less that of the threshold [standard deviations of a matched filter].
        light: that goes with one of those [counts].

    Returns:
        (C,) [counts]: a half-Gaussian whose integral is 1, so that all that was added is taken within about a standard
        deviation of the threshold.
    """
    return np.where(above >= 0, light * 2 * norm.pdf(above), 0.0)
