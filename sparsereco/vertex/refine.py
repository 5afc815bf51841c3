"""The refinement: vertex, energies and directions fitted to the light of the crop, from what the decomposer found.

The expected light of a crop is that of its hadrons (the generator's, without noise) and of its leaving track. It is
compared with the measured one by a likelihood that knows how each fluctuates (`likelihood`). The likelihood alone has
many equally good optima, so the decomposer's densities are the prior, and the fit starts from several draws from them,
each with a species of its own for every hadron. The fit is the mean over all ends, each weighted by the square root of
its evidence; what is returned is a mean of it and of the decomposer's answer (`combination`).

Parameters and prior are in `parameters`, the expected light in `expected`. Lengths are in voxels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sparsereco import ops
from sparsereco.detector import Response
from sparsereco.rows import choose, joined, mapped, plain, rows_at
from sparsereco.vertex.combination import combined
from sparsereco.vertex.config import RefinementSettings
from sparsereco.vertex.crop import HALF, Crops
from sparsereco.vertex.expected import (
    SHAPE,
    SIDE,
    SOFT,
    STEPS,
    TRACK_STEPS,
    ExpectedLight,
    track_deposits,
)
from sparsereco.vertex.fits import Fitter
from sparsereco.vertex.generator import Generator
from sparsereco.vertex.hadrons import Decomposition
from sparsereco.vertex.hypotheses import hypotheses, posterior_number, renamed
from sparsereco.vertex.likelihood import DELTA_LIGHT, DELTA_RATE, with_delta_rays
from sparsereco.vertex.parameters import COMMON, HADRON, Problem, State, draws, flat, prior_derivatives, to_problem
from sparsereco.voxels import offsets_of

_CHUNK = 512  # fits at a time: their derivatives stay in the cache


@dataclass(frozen=True)
class Refined:
    """What the refinement makes of a decomposition."""

    found: Decomposition
    track_share: (
        Tensor  # (N,) light of leaving tracks over the measured one, of each voxel; nan where nothing was fitted
    )
    deviance: Tensor  # (V,) nan where nothing was fitted
    ndf: Tensor  # (V,)
    loss: Tensor  # (V,) negative log posterior of the fit
    start_loss: Tensor  # (V,) of what it started from
    dropped: int = 0  # number of starts whose loss or derivatives were not finite
    more: int = 0  # number of crops that got a hadron more than were named
    fewer: int = 0  # and one fewer


@dataclass(frozen=True)
class Outcome:
    """What became of F problems: the mean over the fits of each."""

    problem: Problem
    state: State
    error: Tensor  # (F, D) standard errors; nan where nothing is better than the start
    total_error: Tensor  # (F,) of the energy of all hadrons together [MeV]
    loss: Tensor  # (F,)
    start_loss: Tensor  # (F,)
    free: Tensor  # (F,) number of parameters that the light fixes
    dropped: Tensor  # (F,) number of starts that were dropped
    evidence: Tensor  # (F,) log of it, of the best fit; -inf where nothing is better than the start


class Refiner:
    """Fits of the expected light of particles to crops.

    Args:
        generator: gives the expected deposits.
        response: light yield, Birks' constant and crosstalk of the detector. With crosstalk, signals are taken to be
            scaled to what leaving tracks show, as `VertexChain.measure_light` does.
        pitch: edge of a voxel [mm].
        settings: the budget.
        device: of the fits.
    """

    def __init__(
        self,
        generator: Generator,
        response: Response,
        pitch: float,
        settings: RefinementSettings,
        device: str = "cpu",
    ) -> None:
        self.settings, self.response = settings, response
        self.expected = ExpectedLight(generator, response, pitch, device)
        self.fitter = Fitter(self.expected, response.threshold)

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
        unknown, zero = torch.full((n,), torch.nan), torch.zeros(n)
        nothing = Refined(found, torch.full_like(crops.signal, torch.nan), unknown, zero, zero, zero)
        if not len(use):
            return nothing
        most = min(int(count.max()) + self.settings.number, found.share.shape[1])
        problem = rows_at(to_problem(crops, signal, found, most, self.expected), use)
        ends = self._fits(problem, problem.mean)
        if not self.settings.number:
            return self._refined(nothing, crops, use, ends)
        number_prob = found.number_prob[use]
        ways = hypotheses(self.fitter, problem, ends.state, number_prob)
        others = self._fits(joined([way.problem for way in ways[1:]]), joined([way.start for way in ways[1:]]))
        ends = joined([ends, others])
        every = torch.arange(len(use))
        evidence = ends.evidence.view(len(ways), -1) + torch.stack([way.log_prior for way in ways])
        choice = evidence.argmax(0)  # the first, as named, where there is none
        picked = rows_at(ends, choice * len(use) + every)
        found = renamed(
            found, use, picked.problem, choice > 0, posterior_number(number_prob, problem.on.sum(1), evidence)
        )
        nothing = replace(nothing, found=found, more=int((choice == 1).sum()), fewer=int((choice == 2).sum()))
        refined = self._refined(nothing, crops, use, picked)
        return replace(refined, dropped=int(ends.dropped.sum()))

    def _fits(self, problem: Problem, centre: State) -> Outcome:
        """All problems, some at a time."""
        rows = torch.arange(len(problem.signal)).split(_CHUNK // self.settings.starts + 1)
        return joined([self._fit(rows_at(problem, part), rows_at(centre, part)) for part in rows])

    def _fit(self, problem: Problem, centre: State) -> Outcome:
        """The mean over fits from several starts about the centre of each problem."""
        n, starts = len(problem.signal), self.settings.starts
        first, _ = self.fitter.loss(problem, centre)
        owner = torch.arange(n).repeat_interleave(starts)
        repeated = rows_at(problem, owner)
        species, start = draws(repeated, rows_at(centre, owner), starts)
        repeated = replace(repeated, species=species)
        fits = self.fitter.descend(repeated, start, self.settings.steps)
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
        on, energies = problem.on.float(), slice(COMMON, None, HADRON)
        together = torch.einsum("fi,fij,fj->f", on[owner], inverse[:, energies, energies], on[owner])
        apart = torch.einsum("fsp,fp->fs", own[..., 0], on)
        total_error = torch.einsum("fs,fs->f", weight, together.view(n, starts) + apart.square()).sqrt()

        # Where the prior holds a parameter, the light has not fixed it.
        held = prior_derivatives(repeated, fits.state)[1]
        fixed = factor.shape[1] - torch.einsum("fij,fij->f", inverse, held).view(n, starts)
        free = (weight * fixed).sum(1)

        # A mean of several optima may lie between them; it must not be worse than the start.
        loss, _ = self.fitter.loss(problem, mean)
        as_named = sound & (species == problem.species.repeat_interleave(starts, 0)).all(1)
        best = torch.where(as_named, fits.loss, torch.inf).view(n, starts).argmin(1)
        rows = torch.arange(n)
        single = mapped(lambda value: value[rows, best], ends)
        keep = loss <= first
        state = choose(keep, mean, single)
        loss = torch.where(keep, loss, fits.loss.view(n, starts)[rows, best])
        none = ~as_named.view(n, starts).any(1) | ~(loss <= first)
        state, loss = choose(none, centre, state), torch.where(none, first, loss)
        error = torch.where(none[:, None], torch.nan, error)
        within_prior = torch.linalg.slogdet(prior_derivatives(problem, problem.mean)[1]).logabsdet
        evidence = torch.where(none, -torch.inf, evidence.amax(1) + 0.5 * within_prior)
        return Outcome(problem, state, error, total_error, loss, first, free, (~sound).view(n, starts).sum(1), evidence)

    def _refined(self, nothing: Refined, crops: Crops, use: Tensor, ends: Outcome) -> Refined:
        """The fits of the crops ``use`` as a decomposition, with their images and deviance."""
        found, fitted = nothing.found, ends.error.isfinite().all(1)
        problem, state = ends.problem, ends.state
        row = torch.full((len(crops),), -1).index_copy(0, use, torch.arange(len(use)))
        slot = row[found.crop].clamp(min=0), found.step
        mine = (row[found.crop] >= 0) & fitted[slot[0]]
        values = combined(problem, state, ends.error, ends.total_error)

        def taken(value: Tensor, old: Tensor) -> Tensor:
            return torch.where(mine.view(-1, *[1] * (old.ndim - 1)), value, old)

        some = use[fitted]
        share, track_share = self._shares(crops, found, row, fitted, problem, state)
        result = replace(
            found,
            vertex=found.vertex.index_copy(0, some, values.vertex[fitted]),
            vertex_err=found.vertex_err.index_copy(0, some, values.vertex_err[fitted]),
            total=found.total.index_copy(0, some, values.total[fitted]),
            total_err=found.total_err.index_copy(0, some, values.total_err[fitted]),
            ke=taken(values.ke[slot], found.ke),
            ke_err=taken(values.ke_err[slot], found.ke_err),
            direction=taken(values.direction[slot], found.direction),
            dir_err=taken(values.dir_err[slot], found.dir_err),
            share=share,
        )
        deviance, measured = self._deviance(problem, state)
        ndf = (measured - ends.free).clamp(min=1.0)
        put = {"deviance": deviance, "ndf": ndf, "loss": ends.loss, "start_loss": ends.start_loss}
        columns = {name: getattr(nothing, name).index_copy(0, some, value[fitted]) for name, value in put.items()}
        dropped = int(ends.dropped.sum())
        return replace(nothing, found=result, track_share=track_share, dropped=dropped, **columns)

    def _shares(
        self, crops: Crops, found: Decomposition, row: Tensor, fitted: Tensor, problem: Problem, state: State
    ) -> tuple[Tensor, Tensor]:
        """Expected light of each hadron (N, S) and of the leaving tracks (N,) over the measured one of each voxel.

        They need not add up to 1: what the fit does not explain is left, or too much. Where nothing was fitted the
        first is as it was, and the second NaN.
        """
        position, charge = self.expected.deposits(*flat(problem, state))
        images = self.expected.image(position, charge, torch.arange(len(position) + 1) * STEPS, SOFT)
        own = torch.zeros(*problem.on.shape, images.shape[1])
        own[problem.on] = images
        _, (hadrons, core, track, path) = self.fitter.loss(problem, state)
        rays, _ = with_delta_rays(hadrons + track, core, path)
        place = crops.place + HALF
        voxel = (place[:, 0] * SIDE + place[:, 1]) * SIDE + place[:, 2]
        mine = row[crops.crop].clamp(min=0)
        measured = crops.signal.clamp(min=1e-3)
        share = own[mine, :, voxel] / measured[:, None]
        share = torch.nn.functional.pad(share, (0, found.share.shape[1] - share.shape[1]))
        use = (row[crops.crop] >= 0) & fitted[mine]
        of_track = (track + rays)[mine, voxel] / measured
        return torch.where(use[:, None], share, found.share), torch.where(use, of_track, torch.nan)

    def _deviance(self, problem: Problem, state: State) -> tuple[Tensor, Tensor]:
        """Squared differences over variances of each fit, and their number."""
        n = len(state.ke)
        _, (hadrons, core, track, path) = self.fitter.loss(problem, state)
        rays, spread = with_delta_rays(hadrons + track, core, path)
        listed = (problem.signal > 0) | (hadrons + track + rays > 1)
        voxel = listed.nonzero(as_tuple=True)[1]
        coords = torch.stack([voxel // SIDE**2, voxel // SIDE % SIDE, voxel % SIDE], 1).int()
        offsets = offsets_of(listed.sum(1))
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
        offsets = offsets_of(torch.bincount(owner, minlength=n))
        deviance, _ = ops.image_match(
            position.contiguous(), charge.contiguous(), offsets, torch.zeros(n), measured, softness=SOFT,
            shape=SHAPE, loss="gaussian", crosstalk=self.response.crosstalk,
        )  # fmt: skip
        return deviance, listed.sum(1).float()
