"""Parameters of the refinement's fits, and their prior: the decomposer's densities.

A hadron has six parameters: energy, two angles, and three latent numbers of unit variance that say how its track
departs from the straight, mean one: two of curvature and one of range.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sparsereco.geometry import across
from sparsereco.vertex.crop import Crops
from sparsereco.vertex.expected import LEAST, MOST, ExpectedLight
from sparsereco.vertex.hadrons import MAX_HADRONS, Decomposition
from sparsereco.vertex.likelihood import TRACK_LIGHT
from sparsereco.voxels import rank_in_group

HADRON = 6
"""Parameters of a hadron: energy, two angles, two of curvature, range."""

COMMON = 4
"""Parameters of a crop: vertex, light of the leaving track."""

_FAR = 6.1  # a point of a line this far from the centre is outside the crop


@dataclass(frozen=True)
class State:
    """Parameters of F fits with up to P hadrons each."""

    vertex: Tensor  # (F, 3) relative to the centre of the crop
    light: Tensor  # (F,) of the leaving track [p.e. per voxel]
    ke: Tensor  # (F, P) [MeV]
    direction: Tensor  # (F, P, 3)
    latent: Tensor  # (F, P, 3) curvature along both vectors of `across`, range

    def moved(self, by: Tensor) -> State:
        """Parameters after steps (F, 4 + 6 P)."""
        own = by[:, COMMON:].view(*self.ke.shape, HADRON)
        u, v = across(self.direction)
        return State(
            self.vertex + by[:, :3],
            self.light + by[:, 3],
            (self.ke + own[..., 0]).clamp(LEAST, MOST),
            normalize(self.direction + own[..., 1:2] * u + own[..., 2:3] * v, dim=-1),
            self.latent + own[..., 3:],
        )


@dataclass(frozen=True)
class Problem:
    """What F fits are made to, and their priors."""

    signal: Tensor  # (F, voxels) [p.e.]
    far: Tensor  # (F, 3) a point of the leaving track outside the crop
    there: Tensor  # (F,) 1 where there is a leaving track, 0 where not
    other: Tensor  # (F, voxels) light of further leaving tracks [p.e.]
    on: Tensor  # (F, P) bool
    species: Tensor  # (F, P) int64, index in SPECIES
    species_prob: Tensor  # (F, P, len(SPECIES)) of each, where there is a hadron
    number_prob: Tensor  # (F,) probability that there are so many hadrons
    mean: State
    vertex_weight: Tensor  # (F, 3, 3) inverse covariance
    ke_weight: Tensor  # (F, P) inverse variance
    total: Tensor  # (F,) energy of all hadrons together [MeV]
    total_weight: Tensor  # (F,) inverse variance
    dir_weight: Tensor  # (F, P) inverse variance of each angle


def to_problem(crops: Crops, signal: Tensor, found: Decomposition, most: int, expected: ExpectedLight) -> Problem:
    """What the fits of crops (V of them) are made to.

    Args:
        crops: for their leaving tracks; signal: (V, voxels) light of all their voxels [p.e.].
        found: the decomposer's answer, its values and errors are the prior.
        most: P, the largest number of hadrons in a crop.
        expected: gives the light of further leaving tracks.
    """
    n, tracks = len(crops), crops.tracks
    at = found.crop, found.step

    def padded(value: Tensor, fill: float) -> Tensor:
        return torch.full((n, most, *value.shape[1:]), fill, dtype=value.dtype).index_put(at, value)

    nearest = tracks.point - (tracks.point * tracks.direction).sum(1, keepdim=True) * tracks.direction
    beyond = nearest + _FAR * tracks.direction
    lead = rank_in_group(tracks.crop) == 0
    far = torch.zeros(n, 3).index_copy(0, tracks.crop[lead], beyond[lead])
    there = torch.zeros(n).index_fill(0, tracks.crop[lead], 1.0)
    further = tracks.crop[~lead]
    light = expected.paths(found.vertex[further], beyond[~lead]) * tracks.light[~lead, None]
    other = torch.zeros_like(signal).index_add(0, further, light)
    on = padded(torch.ones_like(found.crop, dtype=torch.bool), False)
    direction = torch.where(on[..., None], padded(found.direction, 0.0), torch.tensor([0.0, 0.0, 1.0]))
    ke = padded(found.ke, 1.0).clamp(LEAST, MOST)
    mean = State(found.vertex, torch.full((n,), TRACK_LIGHT[0]), ke, direction, torch.zeros(n, most, 3))
    weight = torch.linalg.inv(found.vertex_cov)
    ke_weight, dir_weight = padded(found.ke_err.clamp(min=0.2).pow(-2), 0.0), padded(found.dir_err.pow(-2), 0.0)
    species = padded(found.species, 0)
    return Problem(
        signal,
        far,
        there,
        other,
        on,
        species,
        padded(found.species_prob, 1.0),
        found.number_prob.gather(1, on.sum(1, keepdim=True))[:, 0],
        mean,
        weight,
        ke_weight,
        found.total,
        found.total_err.pow(-2),
        dir_weight,
    )


def flat(problem: Problem, state: State) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The hadrons that there are, sorted by fit: vertex, species, energy, direction, latent numbers."""
    on = problem.on
    fit = on.nonzero(as_tuple=True)[0]
    return state.vertex[fit], problem.species[on], state.ke[on], state.direction[on], state.latent[on]


def prior_loss(problem: Problem, state: State) -> Tensor:
    """(F,) negative log density of parameters, up to a constant."""
    mean, on = problem.mean, problem.on
    off = state.vertex - mean.vertex
    light = ((state.light - TRACK_LIGHT[0]) / TRACK_LIGHT[1]).square()
    energy = (state.ke - mean.ke).square() * problem.ke_weight
    angle = 2 * (1 - (state.direction * mean.direction).sum(2)) * problem.dir_weight
    latent = state.latent.square().sum(2) * on
    total = ((state.ke * on).sum(1) - problem.total).square() * problem.total_weight
    return 0.5 * (
        torch.einsum("fi,fij,fj->f", off, problem.vertex_weight, off) + light + total + (energy + angle + latent).sum(1)
    )


def prior_derivatives(problem: Problem, state: State) -> tuple[Tensor, Tensor]:
    """Slope (F, D) and curvature (F, D, D) of `prior_loss`; parameters of hadrons that there are not get 1."""
    mean, on = problem.mean, problem.on.float()
    u, v = across(state.direction)
    off = state.vertex - mean.vertex
    angles = [-(mean.direction * side).sum(2) * problem.dir_weight for side in (u, v)]
    excess = ((state.ke * on).sum(1) - problem.total) * problem.total_weight
    own = torch.stack([(state.ke - mean.ke) * problem.ke_weight + on * excess[:, None], *angles], 2)
    own = torch.cat([own, state.latent * on[..., None]], 2)
    light = (state.light - TRACK_LIGHT[0]) / TRACK_LIGHT[1] ** 2
    slope = torch.cat([torch.einsum("fij,fj->fi", problem.vertex_weight, off), light[:, None], own.flatten(1)], 1)
    weight = torch.stack([problem.ke_weight, problem.dir_weight, problem.dir_weight, on, on, on], 2)
    weight = torch.where(problem.on[..., None], weight, 1.0)
    common = torch.cat([torch.zeros(len(off), 3), torch.full((len(off), 1), TRACK_LIGHT[1] ** -2)], 1)
    curvature = torch.diag_embed(torch.cat([common, weight.flatten(1)], 1))
    curvature[:, :3, :3] = problem.vertex_weight
    energies = slice(COMMON, None, HADRON)
    curvature[:, energies, energies] += on[:, :, None] * on[:, None] * problem.total_weight[:, None, None]
    return slope, curvature


def draws(problem: Problem, centre: State, starts: int) -> tuple[Tensor, State]:
    """Species (F, P) and a start for each of F fits: of each crop the centre, as named, then draws about it.

    They are as wide as the prior, whose mean is the centre of a decomposition. The standardised draws are the same for
    all crops, so that no event depends on what else is in its batch.
    """
    n = len(problem.signal)
    sobol = torch.quasirandom.SobolEngine(3 + 4 * MAX_HADRONS, scramble=True, seed=5)
    uniform = sobol.draw(starts).clamp(1e-4, 1 - 1e-4).to(centre.vertex.device)
    normal = torch.special.ndtri(uniform[:, : 3 + 3 * MAX_HADRONS])
    normal[0] = 0
    normal, kind = normal.repeat(n // starts, 1), uniform[:, 3 + 3 * MAX_HADRONS :].repeat(n // starts, 1)
    own = normal[:, 3:].view(n, MAX_HADRONS, 3)[:, : centre.ke.shape[1]]
    factor = torch.linalg.cholesky(torch.linalg.inv(problem.vertex_weight))
    vertex = torch.einsum("fij,fj->fi", factor, normal[:, :3])
    width = torch.where(problem.on, torch.stack([problem.ke_weight, problem.dir_weight]), torch.inf).rsqrt()
    moves = torch.stack([width[0] * own[..., 0], width[1] * own[..., 1], width[1] * own[..., 2]], 2)
    moves = torch.nn.functional.pad(moves, (0, 3)).flatten(1)
    below = problem.species_prob.cumsum(2)[..., :-1]
    species = (kind[:, : below.shape[1], None] > below).sum(2)
    species = torch.where(problem.on & (torch.arange(n) % starts > 0)[:, None], species, problem.species)
    return species, centre.moved(torch.cat([vertex, torch.zeros(n, 1), moves], 1))


def per_parameter(state: State, common: tuple[float, float], hadron: tuple[float, ...]) -> Tensor:
    """(D,) one number per parameter: of the vertex and the track's light, and of each hadron's."""
    return torch.tensor([common[0]] * 3 + [common[1]] + list(hadron) * state.ke.shape[1])
