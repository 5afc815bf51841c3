"""What the refinement reports: a fit's values as far as its hypothesis holds, else the decomposer's.

A fit takes the number of hadrons and their species for given. Where one of them is wrong, which is often, it moves
vertex and energies to explain light that they do not have; the decomposer's values are medians over all numbers and
species. So each value is the mean of the two, weighted by the probability that number and species are right.

The variance is that of the same mixture. Lengths are in voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sparsereco.vertex.parameters import COMMON, HADRON, Problem, State

_CALIBRATION = 1.93, 1.5, 1.18, 1.25
"""Factors on fits' errors of vertex, energy, direction and total energy, which make 68 % intervals hold 68 %.

Fitted to the pulls of conf1, of conf2 and of conf1 with the superfgd response: 2,000 events each of `tools/simulate.py
vertex --seed 32 --bank banks/test.npz`, `tools/evaluate.py vertex`. The fits' own errors are too small because the true
posterior has more optima than the starts find.
"""


@dataclass(frozen=True)
class Values:
    """Values and calibrated errors of F fits with up to P hadrons each."""

    vertex: Tensor  # (F, 3) relative to the centre of the crop
    vertex_err: Tensor  # (F, 3)
    ke: Tensor  # (F, P) [MeV]
    ke_err: Tensor  # (F, P) [MeV]
    direction: Tensor  # (F, P, 3)
    dir_err: Tensor  # (F, P) per transverse axis [rad]
    total: Tensor  # (F,) energy of all hadrons together [MeV]
    total_err: Tensor  # (F,) [MeV]


def combined(problem: Problem, fit: State, error: Tensor, total_error: Tensor) -> Values:
    """The mean of fits and of what they started from.

    Args:
        problem: what was fitted; its prior is the decomposer's answer.
        fit: the fits' values; error: (F, D) their standard errors, as the parameters are laid out.
        total_error: (F,) standard error of the energy of all hadrons together [MeV].
    """
    prior = problem.mean
    sure = (problem.number_prob * problem.species_prob.amax(2).prod(1))[:, None]
    own = error[:, COMMON:].view(*fit.ke.shape, HADRON)
    sizes = error[:, :3], own[..., 0], (own[..., 1] * own[..., 2]).sqrt(), total_error
    vertex_err, ke_err, dir_err, total_err = (factor * size for factor, size in zip(_CALIBRATION, sizes, strict=True))
    vertex_var = torch.linalg.inv(problem.vertex_weight).diagonal(dim1=1, dim2=2)
    ke_var, dir_var = (
        torch.where(problem.on, weight, 1.0).reciprocal() for weight in (problem.ke_weight, problem.dir_weight)
    )
    turn = (fit.direction - prior.direction).square().sum(2) / 2  # per transverse axis
    total = (fit.ke * problem.on).sum(1)
    return Values(
        torch.lerp(prior.vertex, fit.vertex, sure),
        _spread(sure, vertex_err, vertex_var, (fit.vertex - prior.vertex).square()),
        torch.lerp(prior.ke, fit.ke, sure),
        _spread(sure, ke_err, ke_var, (fit.ke - prior.ke).square()),
        normalize(torch.lerp(prior.direction, fit.direction, sure[..., None]), dim=-1),
        _spread(sure, dir_err, dir_var, turn),
        torch.lerp(problem.total, total, sure[:, 0]),
        _spread(sure[:, 0], total_err, problem.total_weight.reciprocal(), (total - problem.total).square()),
    )


def _spread(share: Tensor, error: Tensor, prior_var: Tensor, distance: Tensor) -> Tensor:
    """Standard error of a mixture of fits and of what they started from, that squared distance away."""
    return (torch.lerp(prior_var, error.square(), share) + share * (1 - share) * distance).sqrt()
