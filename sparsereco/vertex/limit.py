"""What the light of a crop can tell at most, of events whose truth is known.

Four answers to the same question, each with the true number and species of the hadrons given:

- the fit of the refinement, with the decomposer's densities as prior, started from the truth: what a reconstruction
  loses by wrong numbers, species and pairings, and by optima far from the truth, this one does not;
- the same without that prior. Where the likelihood is flat it stays where it starts, so it is optimistic;
- the mean of samples about the truth. They go along ridges of the likelihood and to optima nearby, but hardly ever to
  those far away: the mean of the whole posterior is worse, so this is optimistic, too;
- the Fisher information at the truth: the bound for errors so small that the likelihood is quadratic.

The last three know the leaving track's line as it is found and how well, and nothing else but that energies lie between
0 and 60 MeV. Lengths are in voxels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from sparsereco.matching import ANGLE_UNIT, ENERGY_UNIT
from sparsereco.rows import choose, joined, mapped, rows_at, zipped
from sparsereco.vertex.crop import Crops
from sparsereco.vertex.expected import LEAST
from sparsereco.vertex.fits import Fitter
from sparsereco.vertex.hadrons import SPECIES, Decomposition
from sparsereco.vertex.naming import best_order, ordered
from sparsereco.vertex.parameters import COMMON, HADRON, Problem, State, to_problem
from sparsereco.voxels import rank_in_group

_MOST = 60.0  # energy of a hadron of the simulated presets [MeV]
_LINE = 0.02  # least error of a leaving track's line, along any axis [voxels]
_WIDE = 1.5, 60.0, 3.0  # errors of a prior that says next to nothing: vertex [voxels], energy [MeV], angle [rad]
_START = 0.15, 0.2, 0.4  # spread of the first population: vertex [voxels], energy (relative), angle [rad]
_STEPS = 40

CHAINS, SAMPLINGS = 64, 1200
"""States that are followed together, and their steps; the second half is kept."""
_EVENTS = 8  # that are sampled at a time


@dataclass(frozen=True)
class Found:
    """What one of the methods makes of V crops with up to P hadrons; errors of those that there are."""

    distance: Tensor  # (V,) of the vertex from the true one
    ke: Tensor  # (V, P) energy less the true one [MeV]
    angle: Tensor  # (V, P) between the true and the found direction [rad]


@dataclass(frozen=True)
class Limits:
    """Of V crops; hadrons that there are not have ``on`` False."""

    on: Tensor  # (V, P) bool
    true_ke: Tensor  # (V, P) [MeV]
    with_prior: Found  # fit from the truth, the decomposer's densities as prior
    from_truth: Found  # fit from the truth to the light alone
    sampled: Found
    fisher: Found  # random errors of the size that the information allows


def limits(
    fitter: Fitter,
    crops: Crops,
    signal: Tensor,
    truth: Decomposition,
    found: Decomposition,
    rows: Tensor,
    done: Callable[[int], None] = lambda crops: None,
) -> Limits:
    """The limits for some of the crops, which have at least one hadron each.

    Args:
        fitter: of the detector's response.
        crops, signal: as in `refine.Refiner`.
        truth: the true hadrons, in the form of the decomposer's answer (`as_named`).
        found: the decomposer's answer.
        rows: (V,) int64, the crops that are looked at.
        done: told how many crops are done.
    """
    random = torch.Generator().manual_seed(1)
    hadrons = truth.share.shape[1]
    problem = to_problem(crops, signal, truth, hadrons, fitter.expected)
    problem = rows_at(_without_prior(crops, problem), rows)
    true = replace(problem.mean, vertex=truth.vertex[rows])
    with_prior = rows_at(to_problem(crops, signal, believed(truth, found), hadrons, fitter.expected), rows)
    same_fit = fitter.descend(with_prior, true, _STEPS).state
    fit = fitter.descend(problem, true, _STEPS).state
    parts = []
    for few in torch.arange(len(rows)).split(_EVENTS):
        parts.append(_mean_about(fitter, rows_at(problem, few), rows_at(true, few), random))
        done(len(few))
    mean = joined(parts)
    return Limits(
        problem.on,
        true.ke,
        _compared(problem, same_fit, true),
        _compared(problem, fit, true),
        _compared(problem, mean, true),
        _compared(problem, _blurred(fitter, problem, true, random), true),
    )


def as_named(
    vertex: Tensor, ke: Tensor, direction: Tensor, species: Tensor, count: Tensor, voxels: int
) -> Decomposition:
    """True hadrons as a decomposition.

    Args:
        vertex: (V, 3) relative to the centre of the crop.
        ke: (V, P) [MeV]; direction: (V, P, 3); species: (V, P) index in `hadrons.SPECIES`.
        count: (V,) number of hadrons, the first ones of P.
        voxels: of all crops, whose shares are not known.
    """
    on = torch.arange(ke.shape[1]) < count[:, None]
    crop, step = on.nonzero(as_tuple=True)
    hadrons, n = torch.ones(len(crop)), len(vertex)
    wide = torch.full((n, 3), _WIDE[0])
    return Decomposition(
        vertex=vertex,
        vertex_err=wide,
        vertex_cov=torch.diag_embed(wide.square()),
        total=(ke * on).sum(1),
        total_err=torch.full((n,), _WIDE[1] * 6**0.5),
        number_prob=torch.nn.functional.one_hot(count, ke.shape[1] + 1).float(),
        crop=crop,
        step=step,
        species=species[on],
        species_prob=torch.nn.functional.one_hot(species[on], len(SPECIES)).float(),
        score=hadrons,
        ke=ke[on],
        ke_err=_WIDE[1] * hadrons,
        direction=direction[on],
        dir_err=_WIDE[2] * hadrons,
        share=torch.zeros(voxels, ke.shape[1]),
    )


def believed(truth: Decomposition, found: Decomposition) -> Decomposition:
    """The true hadrons of each crop as the decomposer knows them: where it missed one, next to nothing is known."""
    ke, ke_err, direction, dir_err = (getattr(truth, name).clone() for name in ("ke", "ke_err", "direction", "dir_err"))
    for crop in range(len(truth.vertex)):
        true, near = (truth.crop == crop).nonzero()[:, 0], (found.crop == crop).nonzero()[:, 0]
        cost = disagreement(truth.ke[true, None], found.ke[near], truth.direction[true, None], found.direction[near])
        row, column = linear_sum_assignment(cost.numpy())
        true, near = true[row], near[column]
        ke[true], ke_err[true] = found.ke[near], found.ke_err[near]
        direction[true], dir_err[true] = found.direction[near], found.dir_err[near]
    return replace(
        truth,
        vertex=found.vertex,
        vertex_err=found.vertex_err,
        vertex_cov=found.vertex_cov,
        total=found.total,
        total_err=found.total_err,
        ke=ke,
        ke_err=ke_err,
        direction=direction,
        dir_err=dir_err,
    )


def _without_prior(crops: Crops, problem: Problem) -> Problem:
    """The vertex lies on the leaving track, as far as that is known; else only the light counts."""
    tracks = crops.tracks
    direction = torch.zeros(len(crops), 3)
    has = problem.there > 0
    lead = rank_in_group(tracks.crop) == 0
    direction = direction.index_copy(0, tracks.crop[lead], tracks.direction[lead])
    error = torch.full((len(crops), 3), _WIDE[0])
    error = error.index_copy(0, tracks.crop[lead], tracks.error[lead].clamp(_LINE, _WIDE[0]))
    off = problem.mean.vertex - problem.far
    nearest = problem.far + (off * direction).sum(1, keepdim=True) * direction
    vertex = torch.where(has[:, None], nearest, problem.mean.vertex)
    along = direction[:, :, None] * direction[:, None]
    across = torch.eye(3) - along
    weight = torch.linalg.inv(across @ torch.diag_embed(error.square()) @ across + _WIDE[0] ** 2 * along)
    return replace(problem, mean=replace(problem.mean, vertex=vertex), vertex_weight=weight)


def _mean_about(fitter: Fitter, problem: Problem, true: State, random: torch.Generator) -> State:
    """Mean of samples by a Metropolis walk of a population per event.

    The population starts at the ends of fits from about the truth. A state moves either by its own end's covariance or,
    by differential evolution (C. J. F. ter Braak, Stat. Comput. 16 (2006) 239), along the difference of two others of
    its event, which knows the way from optimum to optimum.
    """
    n, hadrons = true.ke.shape
    owner = torch.arange(n).repeat_interleave(CHAINS)
    every, first = rows_at(problem, owner), owner * CHAINS
    state, factor = _ends(fitter, every, _population(rows_at(true, owner), random), random)
    loss, _ = fitter.loss(every, state)
    best = loss.view(n, CHAINS).argmin(1) + torch.arange(n) * CHAINS
    reference = rows_at(state, best[owner])  # which of two like hadrons comes first is decided once per event
    parameters = COMMON + HADRON * every.on.sum(1)
    kept: list[State] = []

    def uniform(*shape: int) -> Tensor:
        return torch.rand(len(owner), *shape, generator=random)

    for step in range(SAMPLINGS):
        size = 2.38 / parameters.sqrt() * (0.1 + 0.9 * uniform())
        noise = torch.randn(factor.shape[:2], generator=random)
        local = state.moved(
            size[:, None] * torch.linalg.solve_triangular(factor.mT, noise[..., None], upper=True)[..., 0]
        )
        one, other = (first + torch.randint(CHAINS, (len(owner),), generator=random) for _ in range(2))
        # Now and then a whole step from optimum to optimum.
        size = torch.where(uniform() < 0.2, 1.0, size / 2**0.5)
        common, own = size * (uniform() < 0.6), size[:, None] * (uniform(hadrons) < 0.6)
        evolved = _evolved(state, rows_at(state, one), rows_at(state, other), common, own)
        there = choose(uniform() < 0.5, local, evolved)
        after, _ = fitter.loss(every, there)
        inside = ((there.ke > LEAST) & (there.ke < _MOST) | ~every.on).all(1)
        accept = (uniform().log() < loss - after) & inside & after.isfinite()
        state, loss = choose(accept, there, state), torch.where(accept, after, loss)
        if step >= SAMPLINGS // 2 and step % 5 == 0:
            same = _relabelled(state, reference, every.on)
            kept.append(mapped(lambda value: value.view(n, CHAINS, *value.shape[1:]).mean(1), same))
    mean = zipped(lambda parts: torch.stack(parts).mean(0), kept)
    return replace(mean, direction=normalize(mean.direction, dim=-1))


def _ends(fitter: Fitter, problem: Problem, start: State, random: torch.Generator) -> tuple[State, Tensor]:
    """States at the ends of fits and the factors (F, D, D) of their curvature.

    Those that ended in a shallow optimum, which a walk would need long to leave, are replaced by others of their event.
    """
    fits = fitter.descend(problem, start, _STEPS)
    factor, info = torch.linalg.cholesky_ex(fits.curvature)
    logdet = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
    evidence = torch.where((info == 0) & logdet.isfinite(), -fits.loss - logdet / 2, -1e9).view(-1, CHAINS)
    # Flattened: the walk itself finds the weights.
    share = (evidence / 4).softmax(1)
    place = torch.arange(len(evidence))[:, None] * CHAINS
    rows = (place + torch.multinomial(share, CHAINS, replacement=True, generator=random)).flatten()
    return rows_at(fits.state, rows), factor[rows]


def _population(state: State, random: torch.Generator) -> State:
    """States spread about those of the truth."""

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=random)

    return State(
        state.vertex + _START[0] * noise(state.vertex),
        state.light + 2 * noise(state.light),
        (state.ke * (1 + _START[1] * noise(state.ke))).clamp(LEAST, _MOST),
        normalize(state.direction + _START[2] * noise(state.direction), dim=-1),
        noise(state.latent),
    )


def _evolved(state: State, one: State, other: State, common: Tensor, own: Tensor) -> State:
    """States moved by a share of the difference of two others."""

    def step(name: str, share: Tensor) -> Tensor:
        value: Tensor = getattr(state, name)
        by: Tensor = getattr(one, name) - getattr(other, name)
        return value + share.view(*share.shape, *[1] * (value.ndim - share.ndim)) * by

    ke = step("ke", own)
    direction = normalize(step("direction", own), dim=-1)
    return State(step("vertex", common), step("light", common), ke, direction, step("latent", own))


def disagreement(ke: Tensor, other_ke: Tensor, direction: Tensor, other_direction: Tensor) -> Tensor:
    """What it costs to take one hadron for another, as in `matching`; shapes broadcast."""
    cosine = (direction * other_direction).sum(-1).clamp(-1, 1)
    return (ke - other_ke).abs() / ENERGY_UNIT + torch.acos(cosine) / ANGLE_UNIT


def _relabelled(state: State, reference: State, on: Tensor) -> State:
    """States with their hadrons in the order that fits best to those of a reference."""
    cost = disagreement(
        reference.ke[:, :, None], state.ke[:, None], reference.direction[:, :, None], state.direction[:, None]
    )
    order = best_order(cost[:, None], on.sum(1))[:, 0]

    return replace(
        state,
        ke=ordered(state.ke, order),
        direction=ordered(state.direction, order),
        latent=ordered(state.latent, order),
    )


def _blurred(fitter: Fitter, problem: Problem, true: State, random: torch.Generator) -> State:
    """The truth, off by errors that have the inverse of the information as covariance."""
    _, _, information = fitter.derivatives(problem, true)
    covariance = torch.linalg.inv(information + 1e-6 * torch.eye(information.shape[1]))
    factor = torch.linalg.cholesky((covariance + covariance.mT) / 2 + 1e-9 * torch.eye(information.shape[1]))
    noise = torch.randn(len(factor), factor.shape[1], generator=random)
    return true.moved(torch.einsum("fij,fj->fi", factor, noise))


def _compared(problem: Problem, state: State, true: State) -> Found:
    """Errors of states, each hadron compared with that which fits it best."""
    state = _relabelled(state, true, problem.on)
    cosine = (state.direction * true.direction).sum(-1).clamp(-1, 1)
    return Found(
        (state.vertex - true.vertex).norm(dim=1), (state.ke - true.ke) * problem.on, torch.acos(cosine) * problem.on
    )
