"""The likelihood of a voxel's light, given what hadrons and a leaving track are expected to leave there.

A hadron's light hardly fluctuates: what is uncertain is which side of a voxel's border it falls on. A muon's does, and
now and then a delta ray adds as much as the muon itself; a model that does not know it would make hadrons of them. So
the density is that of a normal core, and of the same core with an exponential excess.

The numbers were measured on Geant4 tracks at the nominal response (85.8 p.e. per MeV, voxels of 10 mm).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TRACK_LIGHT = 147.0, 4.0
"""Mean and spread of the light that a fast muon leaves per length, without its delta rays [p.e. per voxel]."""

DELTA_LIGHT = 54.0
"""Mean light of a delta ray in a voxel [p.e.]."""

DELTA_RATE = 0.335
"""Probability of a delta ray, per path of the muon in a voxel [1 / voxel]."""

_STRAY = 0.0033  # probability that one reaches a voxel that the muon does not touch
_STRAGGLING = 1.2  # variance of the muon's core beyond that of Poisson, over its mean [p.e.]
_FLUCTUATION = 0.01  # relative, of a hadron's light


def variance(hadrons: Tensor, wide: Tensor, track: Tensor, threshold: float) -> Tensor:
    """Variance of the core [p.e.^2], all arguments (..., voxels).

    Args:
        hadrons: expected light of the hadrons [p.e.].
        wide: the same with softer edges: the difference is what a small move across a border changes.
        track: expected light of leaving tracks, without delta rays [p.e.].
        threshold: below it a voxel is not read out [p.e.].
    """
    mismatch = (wide - hadrons).square() + (_FLUCTUATION * hadrons).square()
    return hadrons + (1 + _STRAGGLING) * track + mismatch + 0.5 * threshold**2


def voxel_loss(signal: Tensor, hadrons: Tensor, core: Tensor, track: Tensor, path: Tensor) -> Tensor:
    """Negative log density of signals, all arguments (..., voxels).

    Args:
        signal: measured light [p.e.].
        hadrons, track: as in `variance`, which gives ``core``.
        path: of the leaving track in each voxel [voxels].
    """
    width = core.sqrt()
    rest = signal - hadrons - track
    delta = (_STRAY + DELTA_RATE * path).clamp(max=0.7)
    gauss = -0.5 * rest.square() / core
    normal = gauss - 0.5 * (2 * math.pi * core).log() + torch.log1p(-delta)
    # A normal core and an exponential excess, folded; the scaled function keeps the far side from underflow.
    arm = (width / DELTA_LIGHT - rest / width) / math.sqrt(2)
    far = torch.special.erfcx(arm.clamp(min=0)).log() + gauss
    near = torch.erfc(arm.clamp(-25, 0)).log() + (0.5 * core / DELTA_LIGHT**2 - rest / DELTA_LIGHT).clamp(max=80)
    excess = torch.where(arm > 0, far, near) + (delta / (2 * DELTA_LIGHT)).log()
    return -torch.logaddexp(normal, excess)


def with_delta_rays(expected: Tensor, core: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the delta rays' light and variance with it, for a comparison by squares, all (..., voxels).

    Where light is measured and none is expected, it is taken for a delta ray from elsewhere.
    """
    delta = (DELTA_RATE * path).clamp(max=0.7)
    stray = torch.where(expected < 1, 2.0, delta * (2 - delta))
    return delta * DELTA_LIGHT, core + stray * DELTA_LIGHT**2
