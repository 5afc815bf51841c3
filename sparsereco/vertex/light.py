"""The light yield of a run, measured on the tracks that leave its vertices.

Nobody knows the light yield of a detector to better than some per cent until it is measured, and every energy is as
wrong as it is. Muons of some hundred MeV leave nearly the same light per length, whatever their energy: 7 % around
its median from track to track, so that a few hundred tracks give the yield to half a per cent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_TRACKS = 100
"""With fewer tracks nothing is measured; so many give the light yield to 1 %."""

PLAUSIBLE = 0.5, 2.0
"""A yield outside is no yield that is off, but another detector or other particles."""


@dataclass(frozen=True)
class LightYield:
    """Measured light yield of a run, divided by the nominal one."""

    scale: float
    error: float
    """Statistical, of ``scale``."""
    tracks: int
    """Leaving tracks that it was measured on."""

    @property
    def usable(self) -> bool:
        """Whether there were tracks enough, and the result is a plausible one."""
        return self.tracks >= MIN_TRACKS and PLAUSIBLE[0] < self.scale < PLAUSIBLE[1]


def light_yield(light: Tensor, nominal: float) -> LightYield:
    """Median of the light per length of tracks (T,), over what they leave at the nominal light yield.

    The error is that of the median of a normal distribution as wide as the middle 68 % of the tracks.
    """
    if not len(light):
        return nothing_seen()
    low, middle, high = (light / nominal).quantile(torch.tensor([0.1587, 0.5, 0.8413])).tolist()
    return LightYield(middle, math.sqrt(math.pi / 2 / len(light)) * (high - low) / 2, len(light))


def nothing_seen() -> LightYield:
    """What is known without any track."""
    return LightYield(1.0, math.inf, 0)
