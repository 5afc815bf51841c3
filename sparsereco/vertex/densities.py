"""The densities that the decomposer predicts, and what follows from them: losses and 68 % intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LAPLACE_68 = math.log(1 / 0.32)
"""68 % of a Laplace distribution lie within this many scales."""


@dataclass(frozen=True)
class Steps:
    """Densities of the decoder's steps, in the turned frame."""

    weight: Tensor  # (V, S, M) log weight of each mode
    direction: Tensor  # (V, S, M, 3) unit vectors
    kappa: Tensor  # (V, S, M) concentration of the direction
    ke: Tensor  # (V, S, M) [units of ENERGY]
    ke_scale: Tensor  # (V, S, M) Laplace scale [units of ENERGY]
    species: Tensor  # (V, S, len(SPECIES)) logits
    share: Tensor  # (V, S, L) logit that the light of a token comes from this hadron


def laplace(x: Tensor, centre: Tensor | float, scale: Tensor) -> Tensor:
    """Negative log density of a Laplace distribution."""
    return (x - centre).abs() / scale + (2 * scale).log()


def log_density(steps: Steps, direction: Tensor, ke: Tensor) -> Tensor:
    """(V, S) log density of the true hadrons: a mixture of von Mises-Fisher (direction) times Laplace (energy)."""
    kappa = steps.kappa
    cosine = (steps.direction * direction[:, :, None]).sum(-1)
    fisher = kappa.log() - math.log(2 * math.pi) - torch.log1p(-torch.exp(-2 * kappa)) + kappa * (cosine - 1)
    energy = -laplace(ke[:, :, None], steps.ke, steps.ke_scale)
    return torch.logsumexp(steps.weight + fisher + energy, -1)


def median(centre: Tensor, scale: Tensor) -> Tensor:
    """(...) medians of mixtures of M Laplace densities of equal weight (..., M).

    Where half of them lie far from the other half, all between is a median, and the middle of it is taken.
    """
    return (_quantile(0.5 - _MIDDLE, centre, scale) + _quantile(0.5 + _MIDDLE, centre, scale)) / 2


_MIDDLE = 0.02


def _quantile(share: float, centre: Tensor, scale: Tensor) -> Tensor:
    low, high = (centre - 10 * scale).amin(-1), (centre + 10 * scale).amax(-1)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        enough = _held(middle[..., None], centre, scale).mean(-1) > share
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return (low + high) / 2


def half_width(value: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
    """(...) half-widths of the intervals about values (...) that hold 68 % of mixtures of Laplace densities (..., M).

    Where the parts disagree, as they do about a hadron whose species is in doubt, each knows too little of its error.
    """
    low, high = torch.zeros_like(value), ((centre - value[..., None]).abs() + 5 * scale).amax(-1)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        ends = [_held((value + sign * middle)[..., None], centre, scale) for sign in (1, -1)]
        enough = (ends[0] - ends[1]).mean(-1) > 0.68
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return high


_BISECTIONS = 24


def _held(value: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
    """Share of Laplace densities below values."""
    off = (value - centre) / scale
    tail = 0.5 * torch.exp(-off.abs())
    return torch.where(off > 0, 1 - tail, tail)


def number_probability(seen: Tensor, most: int) -> Tensor:
    """(V, most + 1) probability of each number of hadrons; that of ``most`` stands for all above it, too.

    Args:
        seen: (V, MAX_HADRONS + 1) logits of the number.
        most: the most that may be named.
    """
    seen = seen.softmax(1)
    return torch.cat([seen[:, :most], seen[:, most:].sum(1, keepdim=True)], 1)
