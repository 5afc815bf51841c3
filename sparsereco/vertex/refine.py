"""The refinement: vertex, energies and directions fitted to the light of the crop, from what the decomposer found.

The expected light of a crop is that of its hadrons (the generator's, without noise) and of its leaving track. It is
compared with the measured one by a likelihood that knows how each fluctuates (`likelihood`). The likelihood alone has
many equally good optima, so the decomposer's densities are the prior, and the fit starts from several draws from them.
What is returned is the mean over all ends, each weighted by the square root of its evidence.

Parameters and prior are in `parameters`, the expected light in `expected`. Lengths are in voxels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sparsereco import ops
from sparsereco.detector import Response
from sparsereco.vertex.config import RefineSettings
from sparsereco.vertex.crop import HALF, Crops
from sparsereco.vertex.expected import (
    SHAPE,
    SIDE,
    SOFT,
    STEPS,
    TRACK_STEPS,
    WIDE,
    ExpectedLight,
    track_deposits,
)
from sparsereco.vertex.generator import Generator, across
from sparsereco.vertex.hadrons import Decomposition
from sparsereco.vertex.likelihood import DELTA_LIGHT, DELTA_RATE, variance, voxel_loss, with_delta_rays
from sparsereco.vertex.parameters import (
    COMMON,
    HADRON,
    Problem,
    State,
    choose,
    draws,
    flat,
    mapped,
    per_parameter,
    plain,
    prior_derivatives,
    prior_loss,
    rows_at,
    to_problem,
)

_CHUNK = 512  # fits at a time: their derivatives stay in the cache

_CALIBRATION = 2.22, 1.80, 1.32
"""Errors of vertex, energy and direction are multiplied by these, so that 68 % intervals hold 68 %.

Each is the spread of the pull, times the factor before, on conf1, ideal: 2,000 events of `tools/simulate.py vertex
--seed 32 --bank banks/vertex.npz`, `tools/evaluate.py vertex`. The fits' own errors are too small because the true
posterior has more optima than the starts find.
"""


@dataclass(frozen=True)
class Refined:
    """What the refinement makes of a decomposition."""

    found: Decomposition
    deviance: Tensor  # (V,) nan where nothing was fitted
    ndf: Tensor  # (V,)
    dropped: int  # number of starts whose loss or derivatives were not finite
    loss: Tensor  # (V,) negative log posterior of the result
    start_loss: Tensor  # (V,) of the decomposition


@dataclass(frozen=True)
class Fits:
    """Where F fits ended."""

    state: State
    loss: Tensor  # (F,)
    curvature: Tensor  # (F, D, D) second derivatives of the loss


class Refiner:
    """Fits of the expected light of particles to crops.

    Args:
        generator: gives the expected deposits.
        response: light yield, Birks' constant and crosstalk of the detector. With crosstalk, signals are taken to be
            scaled to what leaving tracks show, as `VertexChain.measure_light` does.
        pitch: edge of a voxel [mm].
        settings: the budget.
    """

    def __init__(
        self, generator: Generator, response: Response, pitch: float, settings: RefineSettings, device: str = "cpu"
    ) -> None:
        self.settings, self.response = settings, response
        self.expected = ExpectedLight(generator, response, pitch, device)

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, crops: Crops, signal: Tensor, found: Decomposition) -> Refined:
        """Refines a decomposition; crops without hadrons or light stay as they are.

        Args:
            crops: what was taken apart.
            signal: (V, voxels) light of all voxels of the crops [p.e.].
            found: the decomposer's answer.
        """
        crops, found = plain(crops), plain(found)
        signal, n = signal.clone(), len(crops)
        count = torch.bincount(found.crop, minlength=n)
        use = ((count > 0) & (signal > 0).any(1)).nonzero()[:, 0]
        nothing = Refined(found, torch.full((n,), torch.nan), torch.zeros(n), 0, torch.zeros(n), torch.zeros(n))
        if not len(use):
            return nothing
        problem = to_problem(crops, signal, found, int(count.max()), self.expected)
        problem = rows_at(problem, use)
        starts = self.settings.starts
        ends = [
            self._fit(rows_at(problem, part), starts) for part in torch.arange(len(use)).split(_CHUNK // starts + 1)
        ]
        states, *rest = zip(*ends, strict=True)
        state = State(*(torch.cat(parts) for parts in zip(*(vars(end).values() for end in states), strict=True)))
        loss, first, error, free, dropped = (torch.cat(parts) for parts in rest)
        return self._refined(nothing, crops, use, problem, state, error, loss, first, free, int(dropped.sum()))

    def _fit(self, problem: Problem, starts: int) -> tuple[State, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The mean over fits, its loss, that of the start, errors (F, D), and two numbers.

        Those are how many parameters the light fixes, and how many starts were dropped (F,).
        """
        n = len(problem.signal)
        repeated = rows_at(problem, torch.arange(n).repeat_interleave(starts))
        first, _ = self._loss(problem, problem.mean)
        fits = self._descend(repeated, draws(repeated, starts))
        factor, info = torch.linalg.cholesky_ex(fits.curvature)
        sound = fits.loss.isfinite() & (info == 0) & factor.isfinite().all(2).all(1)
        logdet = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
        evidence = torch.where(sound, -fits.loss - 0.5 * logdet, -torch.inf).view(n, starts)
        weight = torch.where(sound.view(n, starts).any(1, keepdim=True), (evidence / 2).softmax(1), 0.0)
        weight = weight.nan_to_num(0.0)
        ends = mapped(lambda value: value.view(n, starts, *value.shape[1:]).nan_to_num(0.0), fits.state)
        mean = mapped(lambda value: torch.einsum("fs,fs...->f...", weight, value), ends)
        mean = replace(mean, direction=normalize(mean.direction, dim=-1))

        # Curvature at the ends, and their spread about the mean.
        inverse = torch.cholesky_inverse(torch.where(sound[:, None, None], factor, torch.eye(factor.shape[1])))
        within = inverse.diagonal(dim1=1, dim2=2).view(n, starts, -1)
        own = torch.zeros(n, starts, *ends.ke.shape[2:], HADRON)
        own[..., 0] = ends.ke - mean.ke[:, None]
        own[..., 1] = (ends.direction - mean.direction[:, None]).norm(dim=-1) / 2**0.5
        own[..., 2] = own[..., 1]
        between = torch.cat([ends.vertex - mean.vertex[:, None], torch.zeros(n, starts, 1), own.flatten(2)], 2)
        error = torch.einsum("fs,fsd->fd", weight, within + between.square()).sqrt()

        # Where the prior holds a parameter, the light has not fixed it.
        held = prior_derivatives(repeated, fits.state)[1]
        fixed = factor.shape[1] - torch.einsum("fij,fij->f", inverse, held).view(n, starts)
        free = (weight * fixed).sum(1)

        # A mean of several optima may lie between them; it must not be worse than the start.
        loss, _ = self._loss(problem, mean)
        best = torch.where(sound, fits.loss, torch.inf).view(n, starts).argmin(1)
        rows = torch.arange(n)
        single = mapped(lambda value: value[rows, best], ends)
        keep = loss <= first
        state = choose(keep, mean, single)
        loss = torch.where(keep, loss, fits.loss.view(n, starts)[rows, best])
        none = ~sound.view(n, starts).any(1) | ~(loss <= first)
        state, loss = choose(none, problem.mean, state), torch.where(none, first, loss)
        error = torch.where(none[:, None], torch.nan, error)
        return state, loss, first, error, free, (~sound).view(n, starts).sum(1)

    def _descend(self, problem: Problem, state: State) -> Fits:
        """Levenberg-Marquardt steps; one that does not lower its loss is not taken."""
        n = len(problem.signal)
        damping = torch.full((n,), 0.1)
        scale = per_parameter(state, (0.1, 5.0), (4.0, 0.4, 0.4, 1.0, 1.0, 1.0)).pow(-2)
        limit = per_parameter(state, (0.15, 20.0), (8.0, 0.5, 0.5, 1.5, 1.5, 1.5))
        loss, slope, curvature = self._derivatives(problem, state)
        for step in range(self.settings.steps):
            if step:
                _, slope, curvature = self._derivatives(problem, state)
            damped = curvature + torch.diag_embed(
                damping[:, None] * (curvature.diagonal(dim1=1, dim2=2) + scale) + 1e-6
            )
            factor, info = torch.linalg.cholesky_ex(damped)
            by = -torch.cholesky_solve(slope[..., None], factor)[..., 0]
            by = torch.maximum(torch.minimum(by, limit), -limit)
            there = state.moved(by.nan_to_num(0.0))
            after, _ = self._loss(problem, there)
            better = (after < loss) & (info == 0)
            state, loss = choose(better, there, state), torch.where(better, after, loss)
            damping = torch.where(better, damping * 0.3, damping * 4).clamp(1e-4, 1e3)
        return Fits(state, loss, self._derivatives(problem, state)[2])

    def _loss(self, problem: Problem, state: State) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(F,) negative log posterior; hadrons' light, core variance, tracks' light and path of each voxel."""
        position, charge = self.expected.deposits(*flat(problem, state))
        offsets = _offsets(problem.on.sum(1)) * STEPS
        hadrons, wide = (self.expected.image(position, charge, offsets, softness) for softness in (SOFT, WIDE))
        path = self.expected.paths(state.vertex, problem.far) * problem.there[:, None]
        track = path * state.light[:, None] + problem.other
        core = variance(hadrons, wide, track, self.response.threshold)
        loss = voxel_loss(problem.signal, hadrons, core, track, path).sum(1) + prior_loss(problem, state)
        return loss, (hadrons, core, track, path)

    def _derivatives(self, problem: Problem, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Loss (F,), its slope (F, D) and a positive curvature (F, D, D), by differences of the expected light."""
        loss, (hadrons, core, track, path) = self._loss(problem, state)
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
        offsets = _offsets(problem.on.sum(1)) * STEPS
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

    def _refined(
        self, nothing: Refined, crops: Crops, use: Tensor, problem: Problem, state: State, error: Tensor, loss: Tensor,
        first: Tensor, free: Tensor, dropped: int,
    ) -> Refined:  # fmt: skip
        """The fits of the crops ``use`` as a decomposition, with their images and deviance."""
        found, fitted = nothing.found, error.isfinite().all(1)
        row = torch.full((len(crops),), -1).index_copy(0, use, torch.arange(len(use)))
        slot = row[found.crop].clamp(min=0), found.step
        mine = (row[found.crop] >= 0) & fitted[slot[0]]
        own = error[:, COMMON:].view(*state.ke.shape, HADRON)[slot]
        scale = torch.tensor(_CALIBRATION)

        def taken(value: Tensor, old: Tensor) -> Tensor:
            return torch.where(mine.view(-1, *[1] * (old.ndim - 1)), value, old)

        some = use[fitted]
        result = replace(
            found,
            vertex=found.vertex.index_copy(0, some, state.vertex[fitted]),
            vertex_err=found.vertex_err.index_copy(0, some, scale[0] * error[fitted, :3]),
            ke=taken(state.ke[slot], found.ke),
            ke_err=taken(scale[1] * own[:, 0], found.ke_err),
            direction=taken(state.direction[slot], found.direction),
            dir_err=taken(scale[2] * (own[:, 1] * own[:, 2]).sqrt(), found.dir_err),
            share=self._shares(crops, found, row, fitted, problem, state),
        )
        deviance, measured = self._deviance(problem, state)
        put = {"deviance": deviance, "ndf": (measured - free).clamp(min=1.0), "loss": loss, "start_loss": first}
        columns = {name: getattr(nothing, name).index_copy(0, some, value[fitted]) for name, value in put.items()}
        return Refined(result, dropped=dropped, **columns)

    def _shares(
        self, crops: Crops, found: Decomposition, row: Tensor, fitted: Tensor, problem: Problem, state: State
    ) -> Tensor:
        """(N, S) share of each hadron in the light of each voxel, as far as the fit expects light there."""
        position, charge = self.expected.deposits(*flat(problem, state))
        images = self.expected.image(position, charge, torch.arange(len(position) + 1) * STEPS, SOFT)
        own = torch.zeros(*problem.on.shape, images.shape[1])
        own[problem.on] = images
        _, (hadrons, _, track, _) = self._loss(problem, state)
        total = (hadrons + track).maximum(problem.signal * problem.there[:, None]).clamp(min=1.0)
        place = crops.place + HALF
        voxel = (place[:, 0] * SIDE + place[:, 1]) * SIDE + place[:, 2]
        mine = row[crops.crop].clamp(min=0)
        share = own[mine, :, voxel] / total[mine, None, voxel]
        share = torch.nn.functional.pad(share, (0, found.share.shape[1] - share.shape[1]))
        use = (row[crops.crop] >= 0) & fitted[mine]
        return torch.where(use[:, None], share / share.sum(1, keepdim=True).clamp(min=1.0), found.share)

    def _deviance(self, problem: Problem, state: State) -> tuple[Tensor, Tensor]:
        """Squared differences over variances of each fit, and their number."""
        n = len(state.ke)
        _, (hadrons, core, track, path) = self._loss(problem, state)
        rays, spread = with_delta_rays(hadrons + track, core, path)
        listed = (problem.signal > 0) | (hadrons + track + rays > 1)
        voxel = listed.nonzero(as_tuple=True)[1]
        coords = torch.stack([voxel // SIDE**2, voxel // SIDE % SIDE, voxel % SIDE], 1).int()
        offsets = _offsets(listed.sum(1))
        # What further tracks leave is not fitted: it is taken off the signal.
        signal = (problem.signal - problem.other).clamp(min=0)[listed]
        measured = ops.MeasuredImages(coords, signal, offsets, spread[listed])

        owner, _ = problem.on.nonzero(as_tuple=True)
        position, charge = self.expected.deposits(*flat(problem, state))
        track_position, length = track_deposits(state.vertex, problem.far)
        per_length = (state.light + DELTA_RATE * DELTA_LIGHT) * problem.there * self.expected.gain
        owner = torch.cat([owner.repeat_interleave(STEPS), torch.arange(n).repeat_interleave(TRACK_STEPS)])
        order = torch.argsort(owner, stable=True)
        position = torch.cat([position.reshape(-1, 3), track_position.reshape(-1, 3)])[order] + SIDE / 2
        charge = torch.cat([charge.reshape(-1), (length * per_length[:, None]).reshape(-1)])[order]
        offsets = _offsets(torch.bincount(owner, minlength=n))
        deviance, _ = ops.image_match(
            position.contiguous(), charge.contiguous(), offsets, torch.zeros(n), measured, softness=SOFT,
            shape=SHAPE, loss="gaussian", crosstalk=self.response.crosstalk,
        )  # fmt: skip
        return deviance, listed.sum(1).float()


def _offsets(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
