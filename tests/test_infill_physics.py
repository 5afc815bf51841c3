"""Terms of the loss that need no truth: what they are zero for, and their gradients against finite differences."""

from __future__ import annotations

import pytest
import torch

from sparsereco.infill import physics
from sparsereco.infill.physics import Physics

LINE = torch.tensor([0] * 8 + [1] * 6)
ALONG = torch.cat([torch.arange(8) + 0.5, torch.arange(6) + 0.5])
PATH = torch.ones(14, dtype=torch.float64)
USUAL = torch.tensor([0.7, 2.0], dtype=torch.float64)
LENGTH, LINKED = torch.tensor([8.0, 6.0]), torch.tensor([True, False])


def terms(expected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    slices = physics.cut(expected, LINE, ALONG, PATH)
    return physics.dedx(slices, USUAL), physics.continuity(slices, USUAL, LENGTH, LINKED)


def test_a_track_that_loses_what_its_hits_do_costs_nothing() -> None:
    assert [float(term) for term in terms(USUAL[LINE] * PATH)] == pytest.approx([0.0, 0.0])


def test_a_step_in_the_middle_is_no_matter_of_the_faces() -> None:
    expected = USUAL[LINE] * PATH
    expected[2:6] *= 2  # the inner slices of the first line
    smooth, faces = terms(expected)
    assert float(smooth) > 0.1
    assert float(faces) == pytest.approx(0.0)


def test_a_ray_may_stop_but_a_joined_track_may_not() -> None:
    stops = USUAL[LINE] * PATH
    stops[12:] = 0
    assert float(terms(stops)[1]) == pytest.approx(0.0)
    breaks = USUAL[LINE] * PATH
    breaks[6:8] = 0
    assert float(terms(breaks)[1]) > 0.1


def test_gradients_against_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    expected = (0.2 + torch.rand(14, generator=generator, dtype=torch.float64)).requires_grad_()
    for number in (0, 1):
        assert torch.autograd.gradcheck(lambda e, number=number: terms(e)[number], (expected,))


def test_slices_with_hardly_any_path_are_left_out() -> None:
    slices = physics.cut(
        torch.ones(3), torch.tensor([0, 0, 4]), torch.tensor([-1.0, 0.5, 0.5]), torch.tensor([0.2, 1.5, 0.9])
    )
    assert (slices.line.tolist(), slices.place.tolist()) == ([0], [0])


def test_without_candidates_there_is_nothing_to_pay() -> None:
    none = torch.zeros(0)
    slices = physics.cut(none, none.long(), none, none)
    assert float(physics.dedx(slices, none)) == float(physics.continuity(slices, none, none, none.bool())) == 0


def test_weights_are_checked() -> None:
    with pytest.raises(ValueError, match=r"physics\.dedx must not be negative"):
        Physics(dedx=-1)
