"""Deposits to sparse images: against plain torch, against the dense operator, and in grids that no dense image fits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_soft_voxelize import DEVICES, DTYPES, SHAPE, arguments, points, random_deposits, softnesses
from torch import Tensor

from sparsereco import ops, reference
from sparsereco.voxels import Voxels

DETECTOR = (192, 56, 184)


def track(n: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Deposits of two events in a whole detector, along a straight track each."""
    generator = torch.Generator().manual_seed(seed)
    start, end = torch.rand((2, 2, 1, 3), generator=generator, dtype=dtype) * torch.tensor(DETECTOR)
    position = start + (end - start) * torch.linspace(0, 1, n, dtype=dtype)[:, None]
    charge = torch.rand(2 * n, generator=generator, dtype=dtype)
    return position.reshape(-1, 3), charge, torch.tensor([0, n, 2 * n])


class TestValues:
    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("softness", [0.5, 0.2, 1e-3])
    def test_agrees_with_reference(self, device: str, dtype: torch.dtype, softness: float) -> None:
        deposits = random_deposits([70, 0, 1, 200], dtype)
        got = ops.soft_voxelize_sparse(*(x.to(device) for x in deposits), softness=softness, shape=SHAPE)
        expected = reference.soft_voxelize_sparse(*deposits, softness=softness, shape=SHAPE)
        for ours, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(ours.cpu(), theirs)
        assert got[3].sum() > 50

    @given(points, softnesses)
    def test_is_the_dense_image_without_its_zeros(self, rows: tuple[Tensor, Tensor], softness: float) -> None:
        position, charge = rows[0], rows[1][:, 0] + 0.1
        offsets = torch.tensor([0, len(charge) // 3, len(charge)])
        dense, lost = ops.soft_voxelize(position, charge, offsets, softness=softness, shape=SHAPE)
        coords, light, starts, dropped = ops.soft_voxelize_sparse(
            position, charge, offsets, softness=softness, shape=SHAPE
        )
        image = torch.repeat_interleave(torch.arange(2), starts.diff())
        again = torch.zeros_like(dense).index_put((image, *coords.long().T), light)
        torch.testing.assert_close(again, dense, rtol=1e-12, atol=1e-12)
        assert torch.equal(dropped, lost)

    @given(st.integers(0, 100), softnesses)
    def test_light_in_a_whole_detector_is_conserved(self, seed: int, softness: float) -> None:
        position, charge, offsets = track(300, torch.float64, seed)
        position = position.clamp(min=softness).minimum(torch.tensor(DETECTOR) - softness)
        coords, light, starts, dropped = ops.soft_voxelize_sparse(
            position, charge, offsets, softness=softness, shape=DETECTOR
        )
        torch.testing.assert_close(ops.segment_sum(light, starts), ops.segment_sum(charge, offsets))
        assert not dropped.any()
        made = Voxels.make(coords, light, torch.repeat_interleave(torch.arange(2), starts.diff()), 2, DETECTOR)
        assert torch.equal(made.coords, coords)  # sorted, each once
        assert torch.equal(made.feats[:, 0], light)
        assert torch.equal(made.offsets, starts)

    def test_one_deposit(self) -> None:
        position = torch.tensor([[2**23 + 1.5, 1.0, 2**24 - 0.5]], dtype=torch.float64)
        coords, light, starts, dropped = ops.soft_voxelize_sparse(
            position, torch.tensor([8.0]).double(), torch.tensor([0, 1]), softness=0.3, shape=(2**24, 2, 2**24)
        )
        assert coords.tolist() == [[2**23 + 1, 0, 2**24 - 1], [2**23 + 1, 1, 2**24 - 1]]
        assert light.tolist() == [4.0, 4.0]
        assert starts.tolist() == [0, 2]
        assert dropped.tolist() == [0]

    def test_a_voxel_is_listed_whatever_the_charge(self) -> None:
        charge = torch.zeros(1, requires_grad=True)
        coords, light, *_ = ops.soft_voxelize_sparse(
            torch.tensor([[0.5, 0.5, 1.0]]), charge, torch.tensor([0, 1]), softness=0.3, shape=SHAPE
        )
        assert coords.tolist() == [[0, 0, 0], [0, 0, 1]]
        assert light.tolist() == [0.0, 0.0]
        assert torch.autograd.grad(light[1], charge)[0].tolist() == [0.5]

    @pytest.mark.parametrize("counts", [[], [0], [0, 0]])
    def test_nothing_gives_nothing(self, counts: list[int]) -> None:
        position, charge, offsets = random_deposits(counts)
        coords, light, starts, dropped = ops.soft_voxelize_sparse(
            position.requires_grad_(), charge, offsets, softness=0.3, shape=DETECTOR
        )
        assert coords.shape == (0, 3)
        assert starts.tolist() == [0] * (len(counts) + 1)
        assert dropped.tolist() == [0] * len(counts)
        assert torch.autograd.grad(light.sum(), position)[0].shape == (0, 3)

    def test_permuted_deposits_give_the_same(self) -> None:
        position, charge, offsets = random_deposits([150])
        order = torch.randperm(150, generator=torch.Generator().manual_seed(2))
        one = ops.soft_voxelize_sparse(position, charge, offsets, softness=0.3, shape=SHAPE)
        other = ops.soft_voxelize_sparse(position[order], charge[order], offsets, softness=0.3, shape=SHAPE)
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    def test_non_contiguous_input(self) -> None:
        position, charge, offsets = random_deposits([30, 20])
        expected = ops.soft_voxelize_sparse(position, charge, offsets, softness=0.3, shape=SHAPE)
        strided = (position.T.contiguous().T, torch.stack([charge, charge], 1)[:, 0], offsets.repeat_interleave(2)[::2])
        got = ops.soft_voxelize_sparse(*strided, softness=0.3, shape=SHAPE)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


class TestGradient:
    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_agrees_with_reference(self, device: str, dtype: torch.dtype) -> None:
        position, charge, offsets = random_deposits([70, 0, 1, 200], dtype)
        gradients = []
        for voxelize, where in ((ops.soft_voxelize_sparse, device), (reference.soft_voxelize_sparse, "cpu")):
            leaves = [x.detach().to(where).requires_grad_() for x in (position, charge)]
            _, light, *_ = voxelize(*leaves, offsets.to(where), softness=0.4, shape=SHAPE)
            weight = torch.linspace(-1, 2, len(light), dtype=dtype, device=where)
            gradients.append([x.cpu() for x in torch.autograd.grad((light * weight).sum(), leaves)])
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4 if dtype == torch.float32 else 1e-9, atol=1e-5)

    @pytest.mark.parametrize("softness", [0.5, 0.17])
    def test_gradcheck(self, softness: float) -> None:
        position, charge, offsets = random_deposits([30, 0, 12])
        position += 0.0137  # off the ends of the edges, where the second derivative jumps
        assert torch.autograd.gradcheck(
            lambda r, q: ops.soft_voxelize_sparse(r, q, offsets, softness=softness, shape=SHAPE)[1],
            (position.requires_grad_(), charge.requires_grad_()),
        )


class TestRefuses:
    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ((7, 0, 7), r"from 1 to 2\^24, got \[7, 0, 7\]"),
            ((7, 2**24 + 1, 7), r"from 1 to 2\^24, got"),
            ((2**24, 2**24, 2**24), r"at most 2\^62 voxels, got 1 images of"),
        ],
    )
    def test_grids_that_are_none(self, shape: tuple[int, ...], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ops.soft_voxelize_sparse(**arguments() | {"shape": shape})

    @pytest.mark.parametrize("rows", [[0, 3], [1, 2], [0, 10**9]])
    def test_offsets_of_the_voxels_that_do_not_fit(self, rows: list[int]) -> None:
        deposits = (torch.ones(4, 3), torch.ones(4), torch.tensor([0, 4]))
        with pytest.raises(ValueError, match="image_offsets must rise from 0 to the 2 rows of coords"):
            torch.ops.sparsereco.soft_voxelize_sparse_backward(
                torch.ones(2), torch.zeros(2, 3).int(), torch.tensor(rows), *deposits, [7, 7, 7], 0.3
            )
