"""Deposits to images: against plain torch, against the defining properties, and on what a user can get wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsereco import ops, reference

SHAPE = (5, 3, 4)
DTYPES = [torch.float32, torch.float64]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def random_deposits(counts: list[int], dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, ...]:
    """Deposits in and around the grid, every fifth on planes between voxels; as many per image as told."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(counts)
    position = torch.rand((n, 3), generator=generator, dtype=dtype) * 7 - 1
    position[::5] = position[::5].round()
    charge = torch.rand(n, generator=generator, dtype=dtype) * 5
    return position, charge, torch.tensor([0, *counts]).cumsum(0)


def arguments() -> dict[str, Any]:
    """Those of a sound call."""
    return {
        "position": torch.ones(4, 3),
        "charge": torch.ones(4),
        "offsets": torch.tensor([0, 4]),
        "softness": 0.3,
        "shape": (7, 7, 7),
    }


both = pytest.mark.parametrize("operator", ["soft_voxelize", "soft_voxelize_sparse"])
softnesses = st.floats(0.01, 0.5)
points = st.lists(
    st.tuples(*[st.one_of(st.floats(-2, 8), st.integers(-4, 16).map(lambda n: n / 2))] * 3, st.floats(0, 10)),
    min_size=1,
    max_size=90,
).map(lambda rows: torch.tensor(rows, dtype=torch.float64).split([3, 1], dim=1))


class TestValues:
    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("softness", [0.5, 0.2])
    def test_agrees_with_reference(self, device: str, dtype: torch.dtype, softness: float) -> None:
        deposits = random_deposits([70, 0, 1, 200], dtype)
        image, dropped = ops.soft_voxelize(*(x.to(device) for x in deposits), softness=softness, shape=SHAPE)
        expected, lost = reference.soft_voxelize(*deposits, softness=softness, shape=SHAPE)
        assert image.dtype == dtype
        torch.testing.assert_close(image.cpu(), expected)
        assert torch.equal(dropped.cpu(), lost)
        assert lost.sum() > 50

    def test_by_hand(self) -> None:
        image, _ = ops.soft_voxelize(
            torch.tensor([[1.5, 1.0, 2.9]]), torch.tensor([8.0]), torch.tensor([0, 1]), softness=0.2, shape=SHAPE
        )
        upper = 0.25**2 * (3 - 2 * 0.25)  # z is 0.1 below a plane, a quarter of the way through its edge
        lit = {tuple(at.tolist()): image[tuple(at)].item() for at in image.nonzero()}
        assert lit == pytest.approx(
            {(0, 1, y, z): 4 * share for y in (0, 1) for z, share in ((2, 1 - upper), (3, upper))}, rel=1e-5
        )

    @given(points, softnesses)
    def test_light_well_inside_is_conserved(self, rows: tuple[Tensor, Tensor], softness: float) -> None:
        size = torch.tensor(SHAPE, dtype=torch.float64)
        position = (rows[0].clamp(min=0.0) / 8).clamp(max=1.0) * (size - 2 * softness) + softness
        charge = rows[1][:, 0]
        image, dropped = ops.soft_voxelize(
            position, charge, torch.tensor([0, len(charge)]), softness=softness, shape=SHAPE
        )
        torch.testing.assert_close(image.sum(), charge.sum(), rtol=1e-13, atol=0)
        assert (image >= 0).all()
        assert dropped == 0

    @given(points, softnesses)
    def test_dropped_are_those_that_light_nothing(self, rows: tuple[Tensor, Tensor], softness: float) -> None:
        position = rows[0]
        n = len(position)
        one_each = torch.arange(n + 1)
        image, dropped = ops.soft_voxelize(
            position, torch.ones(n, dtype=torch.float64), one_each, softness=softness, shape=SHAPE
        )
        outside = ((position <= -softness) | (position >= torch.tensor(SHAPE) + softness)).any(1)
        assert torch.equal(dropped.bool(), outside)
        assert not image[outside].any()

    def test_moves_with_the_deposits(self) -> None:
        position, charge, offsets = random_deposits([40])
        position = position.abs().clamp(0.6, 2.4)
        move = torch.tensor([2, 0, 1])
        here, _ = ops.soft_voxelize(position, charge, offsets, softness=0.4, shape=(6, 3, 5))
        there, _ = ops.soft_voxelize(position + move, charge, offsets, softness=0.4, shape=(6, 3, 5))
        torch.testing.assert_close(there, here.roll((2, 0, 1), (1, 2, 3)), rtol=1e-12, atol=1e-12)

    def test_hard_voxelisation_is_the_limit(self) -> None:
        position, charge, offsets = random_deposits([300])
        off_planes = ((position - position.round()).abs() > 1e-3).all(1)
        position, charge = position[off_planes], charge[off_planes]
        offsets = torch.tensor([0, len(charge)])
        image, _ = ops.soft_voxelize(position, charge, offsets, softness=1e-3, shape=SHAPE)
        hard, _ = torch.histogramdd(position, list(SHAPE), range=[0, 5, 0, 3, 0, 4], weight=charge)
        torch.testing.assert_close(image[0], hard, rtol=1e-13, atol=1e-13)
        sharpest, _ = ops.soft_voxelize(position, charge, offsets, softness=5e-324, shape=SHAPE)
        torch.testing.assert_close(sharpest, image, rtol=1e-13, atol=1e-13)

    def test_permuted_deposits_give_the_same_image(self) -> None:
        position, charge, offsets = random_deposits([150])
        order = torch.randperm(150, generator=torch.Generator().manual_seed(2))
        image, _ = ops.soft_voxelize(position, charge, offsets, softness=0.3, shape=SHAPE)
        again, _ = ops.soft_voxelize(position[order], charge[order], offsets, softness=0.3, shape=SHAPE)
        torch.testing.assert_close(again, image, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("counts", [[], [0], [0, 0]])
    def test_nothing_gives_nothing(self, counts: list[int]) -> None:
        image, dropped = ops.soft_voxelize(*random_deposits(counts), softness=0.3, shape=SHAPE)
        assert image.shape == (len(counts), *SHAPE)
        assert not image.any()
        assert dropped.tolist() == [0] * len(counts)

    def test_non_contiguous_input(self) -> None:
        position, charge, offsets = random_deposits([30, 20])
        expected, _ = ops.soft_voxelize(position, charge, offsets, softness=0.3, shape=SHAPE)
        strided = (position.T.contiguous().T, torch.stack([charge, charge], 1)[:, 0], offsets.repeat_interleave(2)[::2])
        assert torch.equal(ops.soft_voxelize(*strided, softness=0.3, shape=SHAPE)[0], expected)


class TestGradient:
    @pytest.mark.parametrize("softness", [0.5, 0.17])
    def test_gradcheck(self, softness: float) -> None:
        position, charge, offsets = random_deposits([30, 0, 12])
        position += 0.0137  # off the ends of the edges, where the second derivative jumps
        assert torch.autograd.gradcheck(
            lambda r, q: ops.soft_voxelize(r, q, offsets, softness=softness, shape=SHAPE)[0],
            (position.requires_grad_(), charge.requires_grad_()),
        )

    def test_across_a_border_between_voxels(self) -> None:
        weight = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        places = torch.linspace(-0.6, 5.6, 6201, dtype=torch.float64)
        position = torch.stack([places, torch.full_like(places, 1.1), torch.full_like(places, 2.4)], 1)
        n = len(places)
        position.requires_grad_()
        image, _ = ops.soft_voxelize(
            position, torch.ones(n, dtype=torch.float64), torch.arange(n + 1), softness=0.35, shape=SHAPE
        )
        loss = (image * weight).sum((1, 2, 3))
        loss.sum().backward()
        assert position.grad is not None
        slope = position.grad[:, 0]
        step = places[1] - places[0]
        central = (loss[2:] - loss[:-2]).detach() / (2 * step)
        torch.testing.assert_close(slope[1:-1], central, rtol=0, atol=0.02)
        assert slope.diff().abs().max() < 0.2  # no jump anywhere, the outer faces of the grid included
        assert slope.abs().max() > 1

    def test_is_zero_for_what_is_dropped(self) -> None:
        position, charge, offsets = random_deposits([60])
        position.requires_grad_()
        charge.requires_grad_()
        image, dropped = ops.soft_voxelize(position, charge, offsets, softness=0.3, shape=SHAPE)
        assert not dropped.requires_grad
        (image**2).sum().backward()
        outside = ((position <= -0.3) | (position >= torch.tensor(SHAPE) + 0.3)).any(1)
        assert outside.sum() == dropped
        assert not position.grad[outside].any()
        assert not charge.grad[outside].any()
        assert charge.grad[~outside].all()


class TestBothOperators:
    """What the dense and the sparse operator have in common; the sparse one lists voxels before their light."""

    @both
    def test_same_bits_for_any_number_of_threads(self, operator: str) -> None:
        position, charge, offsets = random_deposits([17] * 70, torch.float32)
        position.requires_grad_()
        threads = torch.get_num_threads()
        results = []
        try:
            for n in (1, 2, 5):
                torch.set_num_threads(n)
                found = getattr(ops, operator)(position, charge, offsets, softness=0.4, shape=SHAPE)
                light = next(value for value in found if value.requires_grad)
                results.append((*found, *torch.autograd.grad((light**3).sum(), position)))
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for result in results for a, b in zip(result, results[0], strict=True))

    @both
    @pytest.mark.parametrize("counts", [[], [0], [9, 0, 4]])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_opcheck(self, operator: str, counts: list[int], dtype: torch.dtype) -> None:
        position, charge, offsets = random_deposits(counts, dtype)
        arguments = (position.requires_grad_(), charge.requires_grad_(), offsets, list(SHAPE), 0.3)
        torch.library.opcheck(getattr(torch.ops.sparsereco, operator).default, arguments)


class TestRefuses:
    @both
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"position": torch.ones(4, 2)}, ValueError, r"position must have shape \(N, 3\), got \[4, 2\]"),
            ({"position": torch.ones(4, 3).int()}, TypeError, "position must be float32 or float64, got Int"),
            ({"charge": torch.ones(5)}, ValueError, r"charge must have shape \(N,\) .*, got \[5\]"),
            ({"charge": torch.ones(4).double()}, TypeError, "charge must be Float as position is, got Double"),
            ({"offsets": torch.tensor([0, 4]).int()}, TypeError, "offsets must be Long, got Int"),
            ({"offsets": torch.empty(0).long()}, ValueError, r"offsets must have shape \(I \+ 1,\) .*, got \[0\]"),
            ({"offsets": torch.tensor([0])}, ValueError, "offsets names no image for 4 deposits"),
            ({"offsets": torch.tensor([0, 5])}, ValueError, "rise from 0 to the 4 rows .* got 0 and then 5 at image 0"),
            ({"offsets": torch.tensor([1, 4])}, ValueError, "got 1 and then 4 at image 0 of 1"),
            ({"offsets": torch.tensor([0, 3, 2, 4])}, ValueError, "got 3 and then 2 at image 1 of 3"),
            ({"offsets": torch.tensor([0, 2, 3])}, ValueError, "got 2 and then 3 at image 1 of 2"),
            ({"charge": torch.tensor([1, 2, -0.5, 1])}, ValueError, r"charge\[2\] must be .* not negative, got -0.5"),
            ({"charge": torch.tensor([1, 2, 1, torch.nan])}, ValueError, r"charge\[3\] must be finite .* got nan"),
            ({"softness": 0.0}, ValueError, r"softness must lie in \(0, 0.5\], got 0"),
            ({"softness": 0.51}, ValueError, "got 0.51"),
            ({"softness": float("nan")}, ValueError, "got nan"),
            ({"shape": (7, 7)}, ValueError, r"three numbers of voxels, got \(7, 7\)"),
        ],
    )
    def test_names_the_argument_and_the_value(
        self, operator: str, change: dict, error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=f"{operator}: .*{message}" if error is ValueError else message):
            getattr(ops, operator)(**arguments() | change)

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ((7, 0, 7), r"three positive numbers of voxels, got \[7, 0, 7\]"),
            ((30, 30, 30), r"at most 2744 voxels .* got \[30, 30, 30\]"),
            ((2**40, 2**40, 2**40), "three positive numbers of voxels, got"),
        ],
    )
    def test_grids_that_are_none(self, shape: tuple[int, ...], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ops.soft_voxelize(**arguments() | {"shape": shape})

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_positions_that_are_not_finite(self, value: float) -> None:
        position, charge, offsets = random_deposits([70, 80])
        position[131, 1] = value
        with pytest.raises(ValueError, match=rf"position\[131\] must be finite, got \(.*, {value}, .*\)"):
            ops.soft_voxelize(position, charge, offsets, softness=0.3)

    def test_positions_far_away_are_dropped(self) -> None:
        position = torch.tensor([[1e30, 1, 1], [-3e38, 2, 2], [1, 1, 4.1e9]])
        image, dropped = ops.soft_voxelize(position, torch.ones(3), torch.tensor([0, 3]), softness=0.5)
        assert dropped == 3
        assert not image.any()
