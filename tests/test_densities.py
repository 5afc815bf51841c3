"""The densities that the decomposer predicts: normalised, and with intervals that hold what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsereco.vertex.densities import LAPLACE_68, Steps, half_width, log_density, median, number_probability


@pytest.mark.parametrize("kappa", [0.05, 3.0, 30.0])
def test_the_density_of_a_step_integrates_to_one(kappa: float) -> None:
    """Over the sphere (Gauss-Legendre times uniform) and all energies (trapezoid), with four different modes."""
    random = torch.Generator().manual_seed(1)
    factor = torch.tensor([1.0, 0.5, 1.5, 1.0]).double().expand(1, 1, 4)
    steps = Steps(
        weight=torch.randn(1, 1, 4, generator=random).double().log_softmax(-1),
        direction=torch.nn.functional.normalize(torch.randn(1, 1, 4, 3, generator=random).double(), dim=-1),
        kappa=kappa * factor,
        ke=factor,
        ke_scale=0.3 * factor,
        species=torch.zeros(1, 1, 3),
        share=torch.zeros(1, 1, 0),
    )
    cosine, weight = map(torch.from_numpy, np.polynomial.legendre.leggauss(40))
    phi = torch.arange(64).double() * (2 * math.pi / 64)
    sine = (1 - cosine**2).sqrt()[:, None]
    sphere = torch.stack([sine * phi.cos(), sine * phi.sin(), cosine[:, None].expand(-1, 64)], -1).flatten(0, 1)
    area = (weight * (2 * math.pi / 64)).repeat_interleave(64)
    ke = torch.linspace(-7, 9, 1001, dtype=torch.float64)

    n = len(sphere)
    wide = Steps(**{name: value.expand(n, *value.shape[1:]) for name, value in vars(steps).items()})
    density = torch.stack([log_density(wide, sphere[:, None], e.expand(n, 1))[:, 0].exp() @ area for e in ke])
    assert torch.trapezoid(density, ke).item() == pytest.approx(1, abs=2e-3)


MODES = st.lists(st.tuples(st.floats(0, 5), st.floats(0.005, 2)), min_size=1, max_size=4)


def mixture(modes: list[tuple[float, float]]) -> tuple[torch.Tensor, torch.Tensor, torch.distributions.Distribution]:
    """Centres, scales, and torch's own distribution of them."""
    centre, scale = torch.tensor(modes, dtype=torch.float64).T
    even = torch.distributions.Categorical(torch.ones(len(modes), dtype=torch.float64))
    return (
        centre,
        scale,
        torch.distributions.MixtureSameFamily(even, torch.distributions.Laplace(centre, scale, validate_args=False)),
    )


@given(value=st.floats(0, 5), modes=MODES)
def test_an_interval_holds_68_percent(value: float, modes: list[tuple[float, float]]) -> None:
    centre, scale, density = mixture(modes)
    half = half_width(torch.tensor([value], dtype=torch.float64), centre[None], scale[None])
    # The end of a sharp interval is bisected to a part in 65,536 of the widest that may be.
    slack = (5 + 10 * float(scale.max())) / 2**15
    held, tight = (density.cdf(value + size) - density.cdf(value - size) for size in (half, half - slack))
    assert held >= 0.68 - 1e-6
    assert tight <= 0.68


@given(MODES)
def test_half_lies_below_the_median(modes: list[tuple[float, float]]) -> None:
    """Or as near to it as makes the median of two that are apart the middle between them."""
    centre, scale, density = mixture(modes)
    found = median(centre[None], scale[None])
    slack = (5 + 20 * float(scale.max())) / 2**15
    assert density.cdf(found - slack) <= 0.52
    assert density.cdf(found + slack) >= 0.48


def test_the_median_of_two_groups_is_the_middle_between_them() -> None:
    found = median(torch.tensor([[1.0, 5.0, 1.0, 5.0]]), torch.full((1, 4), 0.01))
    assert found.item() == pytest.approx(3, abs=1e-2)


def test_the_interval_of_one_mode_is_that_of_its_laplace_density() -> None:
    half = half_width(torch.tensor([2.0]), torch.tensor([[2.0]]), torch.tensor([[0.5]]))
    assert half.item() == pytest.approx(0.5 * LAPLACE_68, rel=2e-3)


def test_modes_that_disagree_widen_the_interval() -> None:
    """Half of the probability lies 6 units away: no interval that misses it holds 68 %."""
    half = half_width(torch.tensor([3.0]), torch.tensor([[3.0, 9.0]]), torch.tensor([[0.1, 0.1]]))
    assert 5.9 < half.item() < 6.1


def test_the_most_that_may_be_named_stands_for_more() -> None:
    seen = torch.tensor([[0.1, 0.45, 0.36, 0.04, 0.03, 0.01, 0.01]])
    torch.testing.assert_close(number_probability(seen.log(), 6), seen)
    torch.testing.assert_close(number_probability(seen.log(), 3), torch.tensor([[0.1, 0.45, 0.36, 0.09]]))


@given(most=st.integers(1, 6), seen=st.lists(st.floats(-20, 20), min_size=7, max_size=7))
def test_the_probabilities_of_all_numbers_add_up_to_one(most: int, seen: list[float]) -> None:
    number = number_probability(torch.tensor([seen]), most)
    assert number.shape == (1, most + 1)
    assert (number >= 0).all()
    assert number.sum().item() == pytest.approx(1, abs=1e-5)
