"""Other numbers of hadrons than the decomposer named: hypotheses with one more and with one fewer.

One more is a hadron towards one of the voxels that are brightest beyond what is expected, either beside the others or
split off one of them. One fewer is without one of the hadrons, or with two of them merged. Of all these moves, the one
with the likeliest start is fitted. What is fitted is judged by its evidence, with the decomposer's probability of its
number; a further hadron's own prior is flat in direction and energy. Lengths are in voxels.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sparsereco.rows import choose
from sparsereco.vertex.expected import LEAST, MOST, SIDE
from sparsereco.vertex.fits import Fitter
from sparsereco.vertex.hadrons import SPECIES, Decomposition
from sparsereco.vertex.parameters import Problem, State

_VOXELS = 3  # brightest ones beyond what is expected that a further hadron may point to
_WIDTH = 8.0, 0.4  # of a further hadron about where it is looked for: energy [MeV], each angle [rad]
_FLAT = 60.0 * 4 * math.pi  # what its energy and direction may be [MeV sr]


@dataclass(frozen=True)
class Hypothesis:
    """What F fits are made to, where they start, and how likely that is before their light is seen."""

    problem: Problem
    start: State
    log_prior: Tensor  # (F,) beside the prior of the parameters; -inf where there is no such hypothesis


def hypotheses(fitter: Fitter, problem: Problem, fitted: State, number_prob: Tensor) -> list[Hypothesis]:
    """The number of hadrons as it was named, one more and one fewer.

    Args:
        fitter: of the detector's response.
        problem: as named; its last slot is free wherever there may be one more.
        fitted: where its fits ended.
        number_prob: (F, S + 1) probability of each number.
    """
    named = problem.on.sum(1)
    probable = torch.nn.functional.pad(number_prob, (1, 1)).clamp(min=1e-6).log()
    certain = torch.ones_like(problem.number_prob)  # what is told of another number holds if it is the right one
    as_named = Hypothesis(problem, fitted, torch.zeros_like(certain))
    sure = replace(as_named, problem=replace(problem, number_prob=certain))
    ways = [as_named, *(_likeliest(fitter, moves(fitter, sure)) for moves in (_more, _fewer))]
    return [
        replace(way, log_prior=way.log_prior + probable.gather(1, (named + 1 + by)[:, None])[:, 0])
        for way, by in zip(ways, (0, 1, -1), strict=True)
    ]


def _likeliest(fitter: Fitter, moves: list[Hypothesis]) -> Hypothesis:
    """Of each fit the move that starts best."""
    best, least = moves[0], torch.full_like(moves[0].log_prior, torch.inf)
    for move in moves:
        loss = (fitter.loss(move.problem, move.start)[0] - move.log_prior).nan_to_num(torch.inf)
        best, least = choose(loss < least, move, best), torch.minimum(loss, least)
    return best


def _more(fitter: Fitter, named: Hypothesis) -> list[Hypothesis]:
    """A hadron towards each of some voxels, alone or with half the energy of each of the others."""
    problem, fitted = named.problem, named.start
    on, hadrons = problem.on, problem.on.shape[1]
    _, (light, _, track, _) = fitter.loss(problem, fitted)
    voxel = torch.arange(SIDE**3)
    place = torch.stack([voxel // SIDE**2, voxel // SIDE % SIDE, voxel % SIDE], 1) - SIDE // 2
    arm = place - fitted.vertex[:, None]
    # The further away, the better a voxel tells the direction.
    excess = (problem.signal - light - track) * arm.norm(dim=2)
    arm = arm.gather(1, excess.topk(_VOXELS, 1).indices[..., None].expand(-1, -1, 3))
    slot = (torch.arange(hadrons) == on.sum(1, keepdim=True)) & ~on
    # The share of the flat prior that its own prior, about where it is looked for, cuts out.
    share = math.log((2 * math.pi) ** 1.5 * _WIDTH[0] * _WIDTH[1] ** 2 / _FLAT)
    room = torch.where(slot.any(1), share, -torch.inf)
    energies = torch.arange(LEAST, MOST)
    ranges = fitter.expected.range(torch.zeros(len(energies), dtype=torch.int64), energies).contiguous()
    reaching = energies[torch.searchsorted(ranges, arm.norm(dim=2)).clamp(max=len(energies) - 1)].clamp(min=5.0)
    moves = []
    for towards, giver in itertools.product(range(_VOXELS), range(-1, hadrons - 1)):
        ke, gives, log_prior = reaching[:, towards], torch.zeros_like(on), room
        if giver >= 0:
            ke, gives[:, giver] = fitted.ke[:, giver] / 2, on[:, giver]
            # Its energy is known less well than the decomposer said.
            wider = (problem.ke_weight[:, giver] * _WIDTH[0] ** 2).clamp(min=1.0).log() / 2
            log_prior = torch.where(on[:, giver], room - wider, -torch.inf)
        direction = normalize(arm[:, towards], dim=1)[:, None]
        start = replace(
            fitted,
            ke=torch.where(slot, ke[:, None], torch.where(gives, fitted.ke / 2, fitted.ke)),
            direction=torch.where(slot[..., None], direction, fitted.direction),
        )
        mean = replace(
            problem.mean,
            ke=torch.where(slot | gives, start.ke, problem.mean.ke),
            direction=torch.where(slot[..., None], direction, problem.mean.direction),
        )
        ke_weight = torch.where(gives, problem.ke_weight.clamp(max=_WIDTH[0] ** -2), problem.ke_weight)
        moved = replace(
            problem,
            on=on | slot,
            species=torch.where(slot, 0, problem.species),
            species_prob=torch.where(slot[..., None], torch.eye(len(SPECIES))[0], problem.species_prob),
            mean=mean,
            ke_weight=torch.where(slot, _WIDTH[0] ** -2, ke_weight),
            dir_weight=torch.where(slot, _WIDTH[1] ** -2, problem.dir_weight),
        )
        moves.append(Hypothesis(moved, start, log_prior))
    return moves


def _fewer(_: Fitter, named: Hypothesis) -> list[Hypothesis]:
    """Without each of the hadrons, and with each two of them merged."""
    on = named.problem.on
    moves = []
    for gone in range(on.shape[1]):
        there = on[:, gone] & (on.sum(1) > 1)
        able = replace(named, log_prior=torch.where(there, 0.0, -torch.inf))
        moves += [_without(able, gone), *(_without(_merged(able, gone, into), gone) for into in range(gone))]
    return moves


def _without(way: Hypothesis, gone: int) -> Hypothesis:
    """Without the hadron of a slot; those after it move up."""
    problem, hadrons = way.problem, way.problem.on.shape[1]
    order = torch.tensor([slot for slot in range(hadrons) if slot != gone] + [gone])
    last = torch.arange(hadrons) == hadrons - 1

    def moved(state: State) -> State:
        return replace(state, ke=state.ke[:, order], direction=state.direction[:, order], latent=state.latent[:, order])

    fewer = replace(
        problem,
        on=problem.on[:, order] & ~last,
        species=problem.species[:, order],
        species_prob=torch.where(last[:, None], 1.0, problem.species_prob[:, order]),
        mean=moved(problem.mean),
        ke_weight=torch.where(last, 0.0, problem.ke_weight[:, order]),
        dir_weight=torch.where(last, 0.0, problem.dir_weight[:, order]),
    )
    return replace(way, problem=fewer, start=moved(way.start))


def _merged(way: Hypothesis, one: int, into: int) -> Hypothesis:
    """With the energy of one hadron given to another."""
    problem, both = way.problem, [one, into]

    def moved(state: State) -> State:
        ke, direction = state.ke.clone(), state.direction.clone()
        ke[:, into] = state.ke[:, both].sum(1).clamp(max=MOST)
        direction[:, into] = normalize((state.ke[:, both, None] * state.direction[:, both]).sum(1), dim=1)
        return replace(state, ke=ke, direction=direction)

    ke_weight, dir_weight = problem.ke_weight.clone(), problem.dir_weight.clone()
    ke_weight[:, into] = 1 / problem.ke_weight[:, both].clamp(min=1e-6).reciprocal().sum(1)
    dir_weight[:, into] = problem.dir_weight[:, both].amin(1)
    merged = replace(problem, mean=moved(problem.mean), ke_weight=ke_weight, dir_weight=dir_weight)
    return replace(way, problem=merged, start=moved(way.start))


def posterior_number(number_prob: Tensor, named: Tensor, evidence: Tensor) -> Tensor:
    """(F, S + 1) probability of each number of hadrons after the fits.

    Args:
        number_prob: (F, S + 1) before; named: (F,) number.
        evidence: (3, F) log of it, in the order of `hypotheses`, with their prior.
    """
    number = (named[:, None] + torch.tensor([0, 1, -1])).clamp(0, number_prob.shape[1] - 1)
    before = number_prob.gather(1, number) * evidence.T.isfinite()
    after = evidence.T.softmax(1).nan_to_num(0.0) * before.sum(1, keepdim=True)
    return number_prob.scatter_add(1, number, after - before)


def renamed(found: Decomposition, use: Tensor, problem: Problem, changed: Tensor, number_prob: Tensor) -> Decomposition:
    """A decomposition with the hadrons of another hypothesis in some crops.

    Args:
        found: as named.
        use: (F,) crops of the problems.
        problem: the hypotheses; changed: (F,) where they are other ones than were named.
        number_prob: (F, S + 1) of them.
    """
    fit, step = (problem.on & changed[:, None]).nonzero(as_tuple=True)
    new = {
        "crop": use[fit],
        "step": step,
        "species": problem.species[fit, step],
        "species_prob": problem.species_prob[fit, step],
        "score": torch.ones(len(fit)),
        "ke": problem.mean.ke[fit, step],
        "ke_err": problem.ke_weight[fit, step].rsqrt(),
        "direction": problem.mean.direction[fit, step],
        "dir_err": problem.dir_weight[fit, step].rsqrt(),
    }
    same = ~torch.isin(found.crop, use[changed])
    columns = {name: torch.cat([getattr(found, name)[same], value]) for name, value in new.items()}
    order = torch.argsort(columns["crop"], stable=True)
    columns = {name: value[order] for name, value in columns.items()}
    number_prob = found.number_prob.index_copy(0, use, number_prob)
    at_least = number_prob.flip(1).cumsum(1).flip(1)
    columns["score"] = at_least[columns["crop"], columns["step"] + 1]
    return replace(found, number_prob=number_prob, **columns)
