"""Naming hadrons: draws follow the densities, pairs are the best ones, medians have the least summed distance."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from sparsereco.vertex.densities import Steps, log_density
from sparsereco.vertex.hadrons import ENERGY, MAX_HADRONS
from sparsereco.vertex.naming import DRAWS, Named, best_order, medians, next_hadron, uniform_numbers


def one_step(n: int, weight: list[float], directions: Tensor, kappa: float, ke: list[float], scale: float) -> Steps:
    """The same mixture for n sequences."""
    modes = len(weight)
    one = Steps(
        weight=torch.tensor(weight).log(),
        direction=directions,
        kappa=torch.full((modes,), kappa),
        ke=torch.tensor(ke),
        ke_scale=torch.full((modes,), scale),
        species=torch.tensor([0.6, 0.3, 0.1]).log(),
        share=torch.zeros(0),
    )
    return Steps(**{key: value.expand(n, 1, *value.shape) for key, value in vars(one).items()})


AXES = normalize(torch.tensor([[1.0, 2.0, -1.0], [-1.0, 0.5, 0.2]]), dim=1)


def test_the_numbers_are_even_and_always_the_same() -> None:
    numbers = uniform_numbers()
    assert numbers.shape == (MAX_HADRONS, DRAWS, 5)
    assert torch.equal(numbers, uniform_numbers())
    # Quasi-random: of each, one lies in each sixteenth.
    assert torch.equal((numbers * DRAWS).long().sort(1).values, torch.arange(DRAWS)[:, None].expand(6, DRAWS, 5))


def test_the_first_sequence_is_the_likeliest() -> None:
    steps = one_step(2 * (1 + DRAWS), [0.3, 0.7], AXES, 5.0, [1.0, 2.0], 0.1)
    found = next_hadron(steps, uniform_numbers()[0])
    assert found.ke.shape == (2, 1 + DRAWS)
    torch.testing.assert_close(found.ke[:, 0], torch.tensor([2.0, 2.0]))
    torch.testing.assert_close(found.direction[:, 0], AXES[1].expand(2, 3))
    assert found.species[:, 0].tolist() == [0, 0]
    assert torch.equal(found.ke[0], found.ke[1])  # the same draws for every crop


@pytest.mark.parametrize("kappa", [0.5, 30.0])
def test_draws_follow_the_density(kappa: float) -> None:
    many = 20_000
    steps = one_step(1 + many, [0.3, 0.7], AXES, kappa, [1.0, 2.0], 0.1)
    found = next_hadron(steps, torch.rand(many, 5, generator=torch.Generator().manual_seed(1)))
    draws = Named(**{key: value[0, 1:] for key, value in vars(found).items()})
    assert (draws.mode_ke == 2).float().mean().item() == pytest.approx(0.7, abs=0.015)
    shares = torch.bincount(draws.species, minlength=3) / many
    torch.testing.assert_close(shares, torch.tensor([0.6, 0.3, 0.1]), rtol=0, atol=0.015)
    torch.testing.assert_close(draws.direction.norm(dim=1), torch.ones(many))
    # The mean of what is drawn is that of its mode.
    for mode, ke in enumerate((1.0, 2.0)):
        own = draws.mode_ke == ke
        torch.testing.assert_close(draws.direction[own].mean(0), draws.mode_direction[own][0], rtol=0, atol=0.03)
        torch.testing.assert_close(normalize(draws.mode_direction[own][0], dim=0), AXES[mode])
        assert (draws.ke[own] - ke).abs().mean().item() == pytest.approx(0.1, rel=0.05)
    # Mean log density of the draws: that of modes whose energies do not overlap.
    wide = Steps(**{key: value[1:] for key, value in vars(steps).items()})
    mean = log_density(wide, draws.direction[:, None], draws.ke[:, None]).mean().item()
    fisher = math.log(kappa / (2 * math.pi * -math.expm1(-2 * kappa))) + kappa * (1 / math.tanh(kappa) - 1 / kappa - 1)
    modes = 0.3 * math.log(0.3) + 0.7 * math.log(0.7)
    assert mean == pytest.approx(modes + fisher - 1 - math.log(2 * 0.1), abs=0.03)


def test_each_number_of_hadrons_is_ordered_as_by_the_hungarian_method() -> None:
    count = torch.tensor([0, 1, 2, 3, 5, 3])
    cost = torch.rand(6, 7, 5, 5, generator=torch.Generator().manual_seed(3))
    order = best_order(cost, count)
    for crop, sequence in itertools.product(range(6), range(7)):
        n = int(count[crop])
        _, expected = linear_sum_assignment(cost[crop, sequence, :n, :n])
        assert order[crop, sequence].tolist() == [*expected, *range(n, 5)]


def test_medians_of_hadrons_in_any_order() -> None:
    """Two hadrons that every other sequence names the other way round, and one sequence that is far off."""
    near, far = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])
    random = torch.Generator().manual_seed(4)
    ke = torch.tensor([[2.0, 1.0]] * 6 + [[3.0, 0.1]]) + 0.01 * torch.randn(7, 2, generator=random)
    axis = normalize(torch.stack([near, far]) + 0.01 * torch.randn(7, 2, 3, generator=random), dim=2)
    axis[6, 0] = -near
    swapped = torch.tensor([0, 1, 0, 1, 0, 1, 0], dtype=torch.bool)
    ke = torch.where(swapped[:, None], ke.flip(1), ke)
    axis = torch.where(swapped[:, None, None], axis.flip(1), axis)
    likely = torch.tensor([0.2, 0.5, 0.3]).expand(1, 7, 3)
    steps = [
        Named(axis[None, :, s], ke[None, :, s], torch.ones(1, 7).long(), likely, 0.99 * axis[None, :, s],
              ke[None, :, s], torch.full((1, 7), 0.05))
        for s in range(2)
    ]  # fmt: skip
    found = medians(steps, torch.tensor([2]))
    torch.testing.assert_close(found.ke, torch.tensor([[2.0, 1.0]]), rtol=0, atol=0.05)
    torch.testing.assert_close(found.direction[0], torch.stack([near, far]), rtol=0, atol=0.05)
    assert found.species.tolist() == [[1, 1]]
    # That one is off widens the error of the direction, and not of the other hadron's.
    assert found.dir_err[0, 0] > 2 * found.dir_err[0, 1]
    assert ((found.ke_err > 0.05) & (found.ke_err < 1)).all()


def test_one_hadron_that_all_sequences_agree_on() -> None:
    axis = AXES[:1].expand(1, 4, 3)
    kappa = 50.0
    step = Named(axis, torch.full((1, 4), 1.5), torch.zeros(1, 4).long(), torch.full((1, 4, 3), 1 / 3),
                 (1 - 1 / kappa) * axis, torch.full((1, 4), 1.5), torch.full((1, 4), 2 / ENERGY))  # fmt: skip
    found = medians([step], torch.tensor([1]))
    torch.testing.assert_close(found.ke, torch.tensor([[1.5]]), rtol=0, atol=1e-3)
    torch.testing.assert_close(found.direction[0], AXES[:1])
    # As of the density itself: 1 / sqrt(kappa), and the scale times ln(1 / 0.32).
    assert found.dir_err.item() == pytest.approx(kappa**-0.5, rel=0.01)
    assert found.ke_err.item() == pytest.approx(0.1139, rel=0.01)
