"""Which candidates are filled, given the probability of each."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsereco.infill.candidates import Problem
from sparsereco.infill.config import InfillConfig
from sparsereco.voxels import touching

FAINTEST = 0.02
"""Candidates less likely than this are left out of the sums over neighbours."""

ROUNDS = 6
"""Voxels that are filled for their neighbours are found in so many rounds, each out of reach of those before."""


def choose(problem: Problem, probability: Tensor, gaps: int, settings: InfillConfig) -> Tensor:
    """The candidates to fill, (C,) bool: the likely ones, and one in each place where missing ones are likely.

    Where a ray has wandered from its line, no voxel across it is likely, though one of them is missing: the one with
    the most missing voxels to be expected in and beside it is filled, if no filled one touches those yet.

    Args:
        problem: the candidates.
        probability: (C,) of each.
        gaps: number of gaps of the detector.
        settings: thresholds.
    """
    _, place = torch.unique(problem.event * gaps + problem.gap, return_inverse=True)
    peak = torch.zeros(len(place)).scatter_reduce(0, place, probability, "amax")
    able = peak[place] >= settings.min_peak
    chosen = able & (probability >= settings.min_prob)
    row = (able & (chosen | (probability >= FAINTEST))).nonzero()[:, 0]
    keep = torch.zeros(len(problem.voxels.coords), dtype=torch.bool)
    keep[problem.candidate[row]] = True
    a, b = touching(problem.voxels.select(keep))
    itself = torch.arange(len(row))
    a, b = torch.cat([a, b, itself]), torch.cat([b, a, itself])
    filled, likely = chosen[row], probability[row]
    for _ in range(ROUNDS):
        covered = torch.zeros_like(filled)
        covered[b[filled[a]]] = True
        expected = torch.zeros_like(likely).index_add(0, a, torch.where(covered, 0.0, likely)[b])
        expected += 1e-3 * likely  # of equal ones the likelier
        best = torch.zeros_like(likely).scatter_reduce(0, a, expected[b], "amax")
        more = (expected >= settings.min_expected) & (expected == best) & ~filled
        if not more.any():
            break
        filled = filled | more
    chosen[row] = filled
    return chosen
