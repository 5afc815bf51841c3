"""Fits of expected light to crops: the loss of F states at once, its derivatives, and steps that lower it.

What is minimised is the negative log posterior: the likelihood of every voxel's light (`likelihood`) and the prior
(`parameters`). Each fit is on its own: no result depends on what else is in the batch. Lengths are in voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sparsereco.geometry import across
from sparsereco.rows import choose, put_rows, rows_at
from sparsereco.vertex.expected import SOFT, STEPS, WIDE, ExpectedLight
from sparsereco.vertex.likelihood import variance, voxel_loss
from sparsereco.vertex.parameters import (
    COMMON,
    HADRON,
    Problem,
    State,
    flat,
    per_parameter,
    prior_derivatives,
    prior_loss,
)
from sparsereco.voxels import offsets_of

_WORTH = 0.05
"""A step that lowers the loss by less is idle, like one that does not lower it; after two in a row a fit has ended."""


@dataclass(frozen=True)
class Fits:
    """Where F fits ended."""

    state: State
    loss: Tensor  # (F,)
    curvature: Tensor  # (F, D, D) second derivatives of the loss


class Fitter:
    """Loss and steps of fits.

    Args:
        expected: gives the expected light.
        threshold: a voxel below it is not read out [p.e.].
    """

    def __init__(self, expected: ExpectedLight, threshold: float) -> None:
        self.expected, self.threshold = expected, threshold

    def descend(self, problem: Problem, state: State, steps: int) -> Fits:
        """Levenberg-Marquardt: a step that does not lower its loss is not taken, and a fit stops when steps are idle.

        Args:
            problem: what is fitted; state: where from.
            steps: at most so many.
        """
        n = len(problem.signal)
        damping, idle = torch.full((n,), 0.1), torch.zeros(n)
        scale = per_parameter(state, (0.1, 5.0), (4.0, 0.4, 0.4, 1.0, 1.0, 1.0)).pow(-2)
        limit = per_parameter(state, (0.15, 20.0), (8.0, 0.5, 0.5, 1.5, 1.5, 1.5))
        loss, _ = self.loss(problem, state)
        active = torch.arange(n)
        for _ in range(steps):
            now, here, before = rows_at(problem, active), rows_at(state, active), loss[active]
            _, slope, curvature = self.derivatives(now, here)
            damped = curvature + torch.diag_embed(
                damping[active, None] * (curvature.diagonal(dim1=1, dim2=2) + scale) + 1e-6
            )
            factor, info = torch.linalg.cholesky_ex(damped)
            by = -torch.cholesky_solve(slope[..., None], factor)[..., 0]
            by = torch.maximum(torch.minimum(by, limit), -limit)
            there = here.moved(by.nan_to_num(0.0))
            after, _ = self.loss(now, there)
            better = (after < before) & (info == 0)
            after = torch.where(better, after, before)
            state = put_rows(state, active, choose(better, there, here))
            loss = loss.index_copy(0, active, after)
            damping[active] = torch.where(better, damping[active] * 0.3, damping[active] * 4).clamp(1e-4, 1e3)
            idle[active] = torch.where(before - after > _WORTH, 0.0, idle[active] + 1)
            active = active[idle[active] < 2]
            if not len(active):
                break
        return Fits(state, loss, self.derivatives(problem, state)[2])

    def loss(self, problem: Problem, state: State) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(F,) negative log posterior; hadrons' light, core variance, tracks' light and path of each voxel."""
        position, charge = self.expected.deposits(*flat(problem, state))
        offsets = offsets_of(problem.on.sum(1)) * STEPS
        hadrons, wide = (self.expected.image(position, charge, offsets, softness) for softness in (SOFT, WIDE))
        path = self.expected.paths(state.vertex, problem.far) * problem.there[:, None]
        track = path * state.light[:, None] + problem.other
        core = variance(hadrons, wide, track, self.threshold)
        loss = voxel_loss(problem.signal, hadrons, core, track, path).sum(1) + prior_loss(problem, state)
        return loss, (hadrons, core, track, path)

    def derivatives(self, problem: Problem, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Loss (F,), its slope (F, D) and a positive curvature (F, D, D), by differences of the expected light."""
        loss, (hadrons, core, track, path) = self.loss(problem, state)
        light = hadrons.detach().requires_grad_()
        with torch.enable_grad():
            # The variance's own change counts as well: a brighter voxel is a wider one.
            each = voxel_loss(problem.signal, light, core - hadrons + light, track, path)
            (pull,) = torch.autograd.grad(each.sum(), light)
        rest = problem.signal - hadrons - track
        weight = 1 / core
        # Where a delta ray explains the light, a voxel pulls less than its distance says.
        explained = torch.where(rest > 0, (-pull / rest.clamp(min=1e-3)).clamp(min=0), weight)
        weight = explained.minimum(weight).maximum(0.05 * weight)

        change = self._changes(problem, state, hadrons + track, path)
        slope = torch.einsum("fdv,fv->fd", change, pull)
        curvature = torch.bmm(change * weight[:, None], change.mT)
        prior_slope, prior_curvature = prior_derivatives(problem, state)
        return loss, slope + prior_slope, curvature + prior_curvature

    def _changes(self, problem: Problem, state: State, expected: Tensor, path: Tensor) -> Tensor:
        """(F, D, voxels) derivatives of the expected light by the parameters."""
        vertex, species, ke, direction, latent = flat(problem, state)
        n, h, voxels = len(state.ke), len(ke), expected.shape[1]
        u, v = across(direction)
        reach = self.expected.range(species, ke).clamp(min=0.02)
        angle = (0.02 / reach).clamp(max=0.3)[:, None]  # turns that move a track's end by as much as the vertex
        step = torch.tensor([0.2, 0.5])
        kes = [ke, ke + step[0], ke, ke, ke, ke, ke]
        ways = [direction, direction, normalize(direction + angle * u, dim=1), normalize(direction + angle * v, dim=1)]
        ways += [direction] * 3
        latents = [latent] * 4 + [latent + step[1] * axis for axis in torch.eye(3)]
        position, charge = self.expected.deposits(
            vertex.repeat(7, 1), species.repeat(7), torch.cat(kes), torch.cat(ways), torch.cat(latents)
        )
        images = self.expected.image(position, charge, torch.arange(7 * h + 1) * STEPS, SOFT).view(7, h, voxels)
        by = torch.stack([step[0].expand(h), angle[:, 0], angle[:, 0], *step[1].expand(3, h)])
        own = (images[1:] - images[0]) / by[..., None]
        change = torch.zeros(n, COMMON + HADRON * state.ke.shape[1], voxels)
        hadrons = change[:, COMMON:].view(n, -1, HADRON, voxels)
        hadrons[problem.on] = own.transpose(0, 1)

        shift = 0.02
        moved = state.vertex + shift * torch.eye(3)[:, None]  # (3, F, 3)
        offsets = offsets_of(problem.on.sum(1)) * STEPS
        still, charge = position[:h], charge[:h]
        starts = torch.cat([offsets[:-1] + k * h * STEPS for k in range(3)] + [torch.tensor([3 * h * STEPS])])
        there = torch.cat([still + shift * axis for axis in torch.eye(3)])
        images = self.expected.image(there, charge.repeat(3, 1), starts, SOFT).view(3, n, voxels)
        paths = (
            self.expected.paths(moved.flatten(0, 1), problem.far.repeat(3, 1)).view(3, n, voxels)
            * problem.there[:, None]
        )
        images = images + paths * state.light[:, None] + problem.other
        change[:, :3] = ((images - expected) / shift).transpose(0, 1)
        change[:, 3] = path
        return change
