"""How hadrons are named: one by one, each given those before, in the likeliest way and in many others.

Where several answers are possible, the likeliest one is seldom the best: what its first hadron takes is missing in the
others. So beside it, sequences are drawn from the decoder's densities, each of their steps given those before. The
hadrons of each are paired with those of the likeliest one, and what is reported are medians over the drawn ones, of
energies and of directions: a mean would follow the few that are far off.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sparsereco.geometry import across
from sparsereco.matching import ANGLE_UNIT, ENERGY_UNIT
from sparsereco.rows import mapped, zipped
from sparsereco.vertex.densities import Steps, half_width, median
from sparsereco.vertex.hadrons import ENERGY, MAX_HADRONS

DRAWS = 16
"""Sequences that are drawn for each crop."""

_NUMBERS = 5
"""Random numbers of a step: mode, angle to its direction, angle about it, energy, species."""


def uniform_numbers() -> Tensor:
    """(MAX_HADRONS, DRAWS, 5) what each step of each sequence is drawn by.

    They are quasi-random, and the same for every crop: no event depends on what else is in its batch.
    """
    sobol = torch.quasirandom.SobolEngine(MAX_HADRONS * _NUMBERS, scramble=True, seed=5)
    numbers = sobol.draw(DRAWS).clamp(1e-4, 1 - 1e-4)
    return numbers.view(DRAWS, MAX_HADRONS, _NUMBERS).transpose(0, 1).contiguous()


@dataclass(frozen=True)
class Named:
    """A hadron in each of K sequences of V crops, or S of them where there is a dimension more, (V, K, S).

    The first sequence is the likeliest one.
    """

    direction: Tensor  # (V, K, 3) as drawn
    ke: Tensor  # (V, K) as drawn [units of ENERGY]
    species: Tensor  # (V, K) int64, index in SPECIES
    species_prob: Tensor  # (V, K, len(SPECIES))
    mode_direction: Tensor  # (V, K, 3) mean of the mode that was drawn from: the shorter, the less is known
    mode_ke: Tensor  # (V, K) of the same [units of ENERGY]
    mode_scale: Tensor  # (V, K) Laplace scale of the same [units of ENERGY]


def next_hadron(steps: Steps, uniform: Tensor) -> Named:
    """The next hadron of each sequence.

    The modes that were drawn from say more than the draws themselves, so both are kept.

    Args:
        steps: their densities, (V * K, S, ...), of which the last one counts.
        uniform: (K - 1, 5) of `uniform_numbers`.
    """
    many = 1 + len(uniform)
    n = len(steps.weight) // many
    first = torch.zeros(1, _NUMBERS)
    mode_u, polar_u, azimuth_u, ke_u, species_u = torch.cat([first, uniform]).repeat(n, 1).unbind(1)
    drawn = (torch.arange(many) > 0).repeat(n)

    def one_of(log_weight: Tensor, number: Tensor) -> Tensor:
        below = log_weight.softmax(-1).cumsum(-1)[:, :-1]
        return torch.where(drawn, (number[:, None] > below).sum(1), log_weight.argmax(-1))

    row, mode = torch.arange(len(drawn)), one_of(steps.weight[:, -1], mode_u)
    axis, kappa, centre, scale = (
        value[row, -1, mode] for value in (steps.direction, steps.kappa, steps.ke, steps.ke_scale)
    )
    species = one_of(steps.species[:, -1], species_u)
    off = torch.where(drawn, _laplace(ke_u), 0.0)
    direction = torch.where(drawn[:, None], _fisher(axis, kappa, polar_u, azimuth_u), axis)
    # The mean of a von Mises-Fisher density is this much shorter than 1.
    length = 1 / torch.tanh(kappa) - 1 / kappa
    found = Named(
        direction,
        (centre + off * scale).clamp(min=0),
        species,
        steps.species[:, -1].softmax(-1),
        length[:, None] * axis,
        centre.clamp(min=0),
        scale,
    )
    return mapped(lambda value: value.view(n, many, *value.shape[1:]), found)


def _laplace(number: Tensor) -> Tensor:
    """Laplace deviates of unit scale from uniform numbers."""
    off = number - 0.5
    return -off.sign() * torch.log1p(-2 * off.abs())


def _fisher(axis: Tensor, kappa: Tensor, polar: Tensor, azimuth: Tensor) -> Tensor:
    """(N, 3) unit vectors of von Mises-Fisher densities from uniform numbers, whose cosine has a closed inverse."""
    cosine = 1 + (polar + (1 - polar) * torch.exp(-2 * kappa)).log() / kappa
    sine = (1 - cosine.square()).clamp(min=0).sqrt()
    u, v = across(axis)
    turn = 2 * math.pi * azimuth
    return cosine[:, None] * axis + (sine * turn.cos())[:, None] * u + (sine * turn.sin())[:, None] * v


@dataclass(frozen=True)
class Medians:
    """What S steps of V crops are taken for."""

    ke: Tensor  # (V, S) [units of ENERGY]
    ke_err: Tensor  # (V, S) half-width of the interval that holds 68 % [units of ENERGY]
    direction: Tensor  # (V, S, 3) unit vectors
    dir_err: Tensor  # (V, S) standard deviation per transverse axis [rad]
    species: Tensor  # (V, S) int64, index in SPECIES
    species_prob: Tensor  # (V, S, len(SPECIES))


def medians(steps: list[Named], count: Tensor) -> Medians:
    """Medians over the drawn sequences.

    Args:
        steps: S of them.
        count: (V,) int64, so many of them are hadrons.
    """
    every = zipped(lambda parts: torch.stack(parts, 2), steps)
    drawn = mapped(lambda value: value[:, 1:], every)
    energy = (every.ke[:, :1, :, None] - drawn.mode_ke[:, :, None]).abs() * (ENERGY / ENERGY_UNIT)
    # Chords, not angles: those between like directions are lost in rounding.
    unit = normalize(drawn.mode_direction, dim=-1)
    chord = (every.direction[:, :1, :, None] - unit[:, :, None]).norm(dim=-1)
    order = best_order(energy + chord / float(ANGLE_UNIT), count)

    centre, scale = (ordered(value, order).movedim(1, -1) for value in (drawn.mode_ke, drawn.mode_scale))
    ke, modes = median(centre, scale).clamp(min=0), ordered(drawn.mode_direction, order)
    # Concentration from the length of the mean (A. Banerjee et al., J. Mach. Learn. Res. 6 (2005) 1345, equation 4.4).
    square = modes.mean(1).square().sum(-1).clamp(1e-4, 1 - 1e-6)
    concentration = square.sqrt() * (3 - square) / (1 - square)
    likely = ordered(drawn.species_prob, order).mean(1)
    return Medians(
        ke,
        half_width(ke, centre, scale),
        _spherical_median(modes),
        concentration.rsqrt(),
        likely.argmax(-1),
        likely,
    )


def _spherical_median(modes: Tensor) -> Tensor:
    """(V, S, 3) directions with the least summed angle to (V, K, S, 3) modes, by Weiszfeld's steps.

    The shorter a mode is, the wider, and the further away are those directions that are not its own.
    """
    spread = 2 * (1 - modes.norm(dim=-1))
    unit, found = normalize(modes, dim=-1), normalize(modes.mean(1), dim=-1)
    for _ in range(_WEISZFELD):
        angle = torch.acos(torch.einsum("vksx,vsx->vks", unit, found).clamp(-1, 1))
        weight = (angle.square() + spread + 1e-4).rsqrt()
        found = normalize(torch.einsum("vks,vksx->vsx", weight, modes), dim=-1)
    return found


_WEISZFELD = 5


def best_order(cost: Tensor, count: Tensor) -> Tensor:
    """(V, K, P) int64, which j of each sequence goes best with each i; those beyond the number keep their place.

    Args:
        cost: (V, K, P, P) of taking j for i.
        count: (V,) int64, number of i, and of j, that there are.
    """
    n, many, most, _ = cost.shape
    order = torch.arange(most).expand(n, many, most).clone()
    for number in range(2, most + 1):
        rows = (count == number).nonzero()[:, 0]
        orders = torch.tensor(list(itertools.permutations(range(number))))
        summed = cost[rows][:, :, torch.arange(number), orders].sum(3)  # (rows, K, orders)
        # Of orders as good as each other the first: differences of energies often cost the same, crossed or not, and
        # rounding must not decide.
        best = summed <= summed.amin(2, keepdim=True) + 1e-4
        order[rows, :, :number] = orders[best.int().argmax(2)]
    return order


def ordered(value: Tensor, order: Tensor) -> Tensor:
    """Values (..., P, ...) of hadrons in the order (..., P) that `best_order` found."""
    return value.gather(order.ndim - 1, order.view(*order.shape, *[1] * (value.ndim - order.ndim)).expand_as(value))
