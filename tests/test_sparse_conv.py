"""Sparse convolution and pooling on the CPU: against plain torch, dense torch and spconv."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sparse_cases import DIMS, KINDS, map_of, some_voxels
from torch import Tensor
from torch.nn import functional

from sparsereco import reference
from sparsereco.convolution import KernelMap, generative_map, sparse_conv, sparse_pool, strided_map, submanifold_map
from sparsereco.voxels import Voxels

OPS = torch.ops.sparsereco


def random_weight(kind: str, dims: int, c_in: int, c_out: int, dtype: torch.dtype = torch.float64) -> Tensor:
    size = 3 if kind == "submanifold" else 2
    return torch.randn(c_out, *[size] * dims, c_in, generator=torch.Generator().manual_seed(1), dtype=dtype)


def random_feats(rows: int, channels: int, dtype: torch.dtype = torch.float64, seed: int = 2) -> Tensor:
    return torch.randn(rows, channels, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def plain(feats: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
    flat, m = weight.flatten(1, -2), kernel_map
    return reference.sparse_conv(feats, flat, m.rows, m.splits, m.n_out, m.transposed)


def to_dense(feats: Tensor, coords: Tensor, offsets: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(B, C, *grid)."""
    event = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
    dense = feats.new_zeros(len(offsets) - 1, *grid, feats.shape[1])
    return dense.index_put((event, *coords.long().T), feats).movedim(-1, 1)


class TestConvolution:
    @DIMS
    @KINDS
    @pytest.mark.parametrize("channels", [(1, 1), (3, 16), (17, 5), (32, 48), (20, 80), (6, 150)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_agrees_with_the_reference(self, dims: int, kind: str, channels: tuple, dtype: torch.dtype) -> None:
        kernel_map = map_of(kind, some_voxels(dims, 120))
        feats = random_feats(kernel_map.n_in, channels[0], dtype).requires_grad_()
        weight = random_weight(kind, dims, *channels, dtype).requires_grad_()
        pull = random_feats(kernel_map.n_out, channels[1], dtype, seed=3)
        outputs = [conv(feats, weight, kernel_map) for conv in (sparse_conv, plain)]
        gradients = [torch.autograd.grad((output * pull).sum(), (feats, weight)) for output in outputs]
        tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-10}
        torch.testing.assert_close(*outputs, **tolerance)
        for first, second in zip(*gradients, strict=True):
            torch.testing.assert_close(first, second, **tolerance)

    @pytest.mark.parametrize("c_out", [32, 40])
    def test_agrees_with_the_reference_over_several_blocks(self, c_out: int) -> None:
        """Blocks of output rows that all have a centre, and blocks without any pair."""
        submanifold = map_of("submanifold", some_voxels(3, 5000, 3, (40, 30, 30)))
        parts = submanifold.rows[:, submanifold.splits[1] :], submanifold.splits[1:] - submanifold.splits[1]
        n = submanifold.n_in
        far = KernelMap(parts[0] + n, parts[1], 2 * n, 2 * n)  # the first n rows have no pair
        for kernel_map, volume in ((submanifold, 27), (far, 13)):
            feats = random_feats(kernel_map.n_in, 24).requires_grad_()
            weight = random_feats(c_out * volume, 24, seed=4).view(c_out, volume, 24).requires_grad_()
            pull = random_feats(kernel_map.n_out, c_out, seed=3)
            flat = OPS.sparse_conv(feats, weight, kernel_map.rows, kernel_map.splits, kernel_map.n_out, False)
            expected = reference.sparse_conv(feats, weight, kernel_map.rows, kernel_map.splits, kernel_map.n_out, False)
            torch.testing.assert_close(flat, expected, rtol=1e-10, atol=1e-10)
            gradients = [torch.autograd.grad((out * pull).sum(), (feats, weight)) for out in (flat, expected)]
            for first, second in zip(*gradients, strict=True):
                torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)

    @DIMS
    def test_agrees_with_dense_convolutions(self, dims: int) -> None:
        voxels, feats = some_voxels(dims), random_feats(len(some_voxels(dims).coords), 3)
        where = voxels.coords, voxels.offsets, voxels.grid
        dense = to_dense(feats, *where)
        conv = functional.conv2d if dims == 2 else functional.conv3d
        back = functional.conv_transpose2d if dims == 2 else functional.conv_transpose3d
        pool = functional.max_pool2d if dims == 2 else functional.max_pool3d

        weight = random_weight("submanifold", dims, 3, 4)
        mask = to_dense(torch.ones_like(feats[:, :1]), *where)
        out = to_dense(sparse_conv(feats, weight, submanifold_map(*where)), *where)
        torch.testing.assert_close(out, conv(dense, weight.movedim(-1, 1), padding=1) * mask)

        weight = random_weight("down", dims, 3, 4)
        down, coords, offsets = strided_map(*where)
        half = tuple(size // 2 for size in voxels.grid)
        out = to_dense(sparse_conv(feats, weight, down), coords, offsets, half)
        torch.testing.assert_close(out, conv(dense, weight.movedim(-1, 1), stride=2))
        out = to_dense(sparse_pool(feats.abs() + 1, down, "max"), coords, offsets, half)
        torch.testing.assert_close(out, pool(to_dense(feats.abs() + 1, *where), 2))

        up, coords, offsets = generative_map(*where)
        out = to_dense(sparse_conv(feats, weight, up), coords, offsets, tuple(2 * size for size in voxels.grid))
        torch.testing.assert_close(out, back(dense, weight.movedim(-1, 0), stride=2))

    def test_agrees_with_spconv(self) -> None:
        """The independent engine, on voxels that fill some neighbourhoods and not others, forward and backward."""
        from sparsereco.nn import sparse

        voxels = some_voxels(3, 3000, 2, (30, 25, 28))
        feats = random_feats(len(voxels.coords), 32, torch.float32)
        conv = sparse.Convolution(3, 32, 48, "submanifold", 0)
        outputs, gradients = [], []
        for make in (sparse.own_tensor, sparse.spconv_tensor):
            leaf = feats.clone().requires_grad_()
            outputs.append(conv(make(voxels.with_feats(leaf))).features)
            gradients.append(torch.autograd.grad(outputs[-1].square().sum(), (leaf, conv.weight)))
        torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
        for first, second in zip(*gradients, strict=True):
            torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4 * float(second.abs().max()))

    @KINDS
    def test_gradients_and_their_gradients_are_finite_differences(self, kind: str) -> None:
        kernel_map = map_of(kind, some_voxels(2, 14, 3, (6, 5)))
        feats = random_feats(kernel_map.n_in, 2).requires_grad_()
        weight = random_weight(kind, 2, 2, 3).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, w: sparse_conv(x, w, kernel_map), (feats, weight))
        assert torch.autograd.gradgradcheck(lambda x, w: sparse_conv(x, w, kernel_map), (feats, weight))

    @KINDS
    @pytest.mark.parametrize("rows", [0, 25])
    def test_opcheck(self, kind: str, rows: int) -> None:
        voxels = some_voxels(3, rows)
        m = map_of(kind, voxels)
        feats = random_feats(m.n_in, 3).requires_grad_()
        grad = random_feats(m.n_out, 2).requires_grad_()
        weight = random_weight(kind, 3, 3, 2).flatten(1, -2).requires_grad_()
        rest = m.rows, m.splits
        torch.library.opcheck(OPS.sparse_conv.default, (feats, weight, *rest, m.n_out, m.transposed))
        torch.library.opcheck(OPS.sparse_conv_weight.default, (feats, grad, *rest, weight.shape[1], m.transposed))
        for op in (OPS.submanifold_map, OPS.strided_map):
            torch.library.opcheck(op.default, (voxels.coords, voxels.offsets, list(voxels.grid)))

    def test_compiles(self) -> None:
        kernel_map = map_of("submanifold", some_voxels(3))
        feats, weight = random_feats(kernel_map.n_in, 3), random_weight("submanifold", 3, 3, 4)

        def block(x: Tensor, w: Tensor) -> Tensor:
            return torch.relu(sparse_conv(x, w, kernel_map))

        compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(feats, weight), block(feats, weight))

    @pytest.mark.parametrize("channels", [(3, 16), (32, 32)])
    def test_same_bits_for_any_number_of_threads(self, channels: tuple[int, int]) -> None:
        """Enough rows for several blocks and slabs."""
        kernel_map = map_of("submanifold", some_voxels(3, 30_000, 3, (60, 40, 30)))
        feats = random_feats(kernel_map.n_in, channels[0], torch.float32).requires_grad_()
        weight = random_weight("submanifold", 3, *channels, torch.float32).requires_grad_()
        threads, results = torch.get_num_threads(), []
        try:
            for n in (1, 2, 5):
                torch.set_num_threads(n)
                output = sparse_conv(feats, weight, kernel_map)
                results.append((output, *torch.autograd.grad(output.square().sum(), (feats, weight))))
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for result in results for a, b in zip(result, results[0], strict=True))
        torch.testing.assert_close(results[0][0], plain(feats, weight, kernel_map), rtol=1e-4, atol=1e-4)

    def test_permuted_axes_permute_the_result(self) -> None:
        voxels = some_voxels(3, 200)
        feats, weight = random_feats(len(voxels.coords), 3), random_weight("submanifold", 3, 3, 4)
        dense = to_dense(
            sparse_conv(feats, weight, map_of("submanifold", voxels)), voxels.coords, voxels.offsets, (8, 7, 9)
        )
        axes = [2, 0, 1]
        grid = tuple(voxels.grid[axis] for axis in axes)
        row = torch.arange(len(feats), dtype=torch.float64)
        turned = Voxels.make(voxels.coords[:, axes], row, voxels.event, len(voxels), grid)
        order = turned.feats[:, 0].long()
        out = sparse_conv(feats[order], weight.permute(0, 3, 1, 2, 4), map_of("submanifold", turned))
        back = to_dense(out, turned.coords, turned.offsets, grid).permute(0, 1, 3, 4, 2)
        torch.testing.assert_close(back, dense)

    @KINDS
    def test_of_inputs_that_are_not_contiguous(self, kind: str) -> None:
        voxels = some_voxels(3)
        turned = voxels.coords.T.contiguous().T
        assert not turned.is_contiguous()
        m = map_of(kind, Voxels(turned, voxels.feats, voxels.offsets, voxels.grid))
        feats, weight = random_feats(m.n_in, 12)[:, ::2], random_weight(kind, 3, 4, 6).transpose(0, -1)
        expected = sparse_conv(feats.contiguous(), weight.contiguous(), map_of(kind, voxels))
        assert torch.equal(sparse_conv(feats, weight, m), expected)
        grad = random_feats(6, m.n_out).T
        dense = OPS.sparse_conv_weight(
            feats.contiguous(), grad.contiguous(), m.rows, m.splits, 8 if kind != "submanifold" else 27, m.transposed
        )
        assert torch.equal(OPS.sparse_conv_weight(feats, grad, m.rows, m.splits, dense.shape[1], m.transposed), dense)

    @DIMS
    @KINDS
    def test_of_no_voxels_and_of_one(self, dims: int, kind: str) -> None:
        for rows in (0, 1):
            m = map_of(kind, some_voxels(dims, rows))
            feats = random_feats(m.n_in, 3).requires_grad_()
            weight = random_weight(kind, dims, 3, 4).requires_grad_()
            output = sparse_conv(feats, weight, m)
            assert output.shape == (m.n_out, 4)
            torch.testing.assert_close(output, plain(feats, weight, m))
            gradients = torch.autograd.grad(output.sum(), (feats, weight))
            assert [g.shape for g in gradients] == [feats.shape, weight.shape]
            assert sparse_conv(feats[:, :0], weight[..., :0], m).abs().sum() == 0
            assert sparse_conv(feats, weight[:0], m).shape == (m.n_out, 0)

    @pytest.mark.parametrize("capability", ["avx2", "default"])
    def test_every_instruction_set_agrees(self, capability: str) -> None:
        """In a process of its own: torch chooses once."""
        code = (
            "import torch; import test_sparse_conv as t\n"
            "case = t.TestConvolution()\n"
            "for channels in [(3, 16), (17, 5), (32, 48), (20, 80)]:\n"
            "    for dtype in (torch.float32, torch.float64):\n"
            "        case.test_agrees_with_the_reference(3, 'submanifold', channels, dtype)\n"
            "print(torch.backends.cpu.get_cpu_capability())"
        )
        environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
        run = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parent,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.split()[-1] == {"avx2": "AVX2", "default": "DEFAULT"}[capability]

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"feats": torch.ones(2, 3).int()}, TypeError, "input must be float32 or float64, got Int"),
            ({"feats": torch.ones(2, 3).double()}, TypeError, "weight must be Double as input is, got Float"),
            ({"feats": torch.ones(3, 3)}, ValueError, "feats must have 2 rows as the map has, got 3"),
            (
                {"weight": torch.ones(4, 9, 2)},
                ValueError,
                r"weight must have shape \(C_out, offsets, 3\), got \[4, 9, 2\]",
            ),
            ({"weight": torch.ones(4, 27, 3)}, ValueError, "5 lists serve a kernel of 5 or 9 offsets, got 27"),
            (
                {"rows": torch.tensor([[0, 1, 1], [0, 1, 2]]).int()},
                ValueError,
                "output rows of list 1 must lie in 0 to 1, got 2 to 2",
            ),
            (
                {"rows": torch.tensor([[0, 1, -1], [0, 1, 0]]).int()},
                ValueError,
                "input rows of list 1 must lie in 0 to 1, got -1",
            ),
            (
                {"rows": torch.tensor([[1, 0, 1], [0, 1, 0]]).int()},
                ValueError,
                "input rows of list 0 must ascend strictly",
            ),
            (
                {"rows": torch.tensor([[0, 1, 1], [0, 0, 0]]).int()},
                ValueError,
                "output rows of list 0 must ascend strictly",
            ),
            ({"rows": torch.zeros(3, 3).int()}, ValueError, r"rows must have shape \(2, P\)"),
            ({"rows": torch.zeros(2, 3)}, TypeError, "rows must be int32, got Float"),
            ({"splits": torch.tensor([0, 2, 3, 3, 3])}, ValueError, "4 lists serve a kernel of 4 or 7 offsets, got 9"),
            ({"splits": torch.tensor([0, 2, 3, 3, 3, 4])}, ValueError, "splits must rise from 0 to the 3 pairs"),
            ({"splits": torch.tensor([0, 4, 3, 3, 3, 3])}, ValueError, "splits must rise from 0 to the 3 pairs"),
            ({"n_out": -1}, ValueError, "n_out must not be negative, got -1"),
        ],
    )
    def test_refuses(self, change: dict, error: type[Exception], message: str) -> None:
        parts = {
            "feats": torch.ones(2, 3),
            "weight": torch.ones(4, 9, 3),
            "rows": torch.tensor([[0, 1, 1], [0, 1, 0]]).int(),
            "splits": torch.tensor([0, 2, 3, 3, 3, 3]),
            "n_out": 2,
        }
        sparse_conv(parts["feats"], parts["weight"], KernelMap(parts["rows"], parts["splits"], 2, 2))
        parts |= change
        with pytest.raises(error, match=message):
            sparse_conv(parts["feats"], parts["weight"], KernelMap(parts["rows"], parts["splits"], 2, parts["n_out"]))


class TestPooling:
    @pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
    def test_agrees_with_a_loop_and_has_its_gradient(self, reduce: str) -> None:
        voxels = some_voxels(3, 60)
        down = map_of("down", voxels)
        feats = random_feats(down.n_in, 2).requires_grad_()
        source, target = down.pairs()
        rows = []
        for parent in range(down.n_out):
            own = feats[source[target == parent]]
            rows.append(own.amax(0) if reduce == "max" else getattr(own, reduce)(0))
        torch.testing.assert_close(sparse_pool(feats, down, reduce), torch.stack(rows))
        assert torch.autograd.gradcheck(lambda x: sparse_pool(x, down, reduce), feats)

    def test_refuses_features_of_other_voxels(self) -> None:
        down = map_of("down", some_voxels(3))
        with pytest.raises(ValueError, match=f"feats must have {down.n_in} rows as the map has, got 2"):
            sparse_pool(torch.ones(2, 1), down, "sum")
