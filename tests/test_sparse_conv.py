"""Sparse convolution on the CPU: against plain torch, dense torch and spconv, and what must hold for every map."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sparsereco import reference
from sparsereco.convolution import (
    KernelMap,
    generative_map,
    sparse_conv,
    sparse_pool,
    strided_map,
    submanifold_map,
)
from sparsereco.voxels import Voxels

GRIDS = {2: (12, 11), 3: (8, 7, 9)}
DIMS = pytest.mark.parametrize("dims", [2, 3])
KINDS = pytest.mark.parametrize("kind", ["submanifold", "down", "up", "generative"])
OPS = torch.ops.sparsereco


def some_voxels(dims: int, rows: int = 90, events: int = 4, grid: tuple[int, ...] = (), seed: int = 0) -> Voxels:
    """Scattered voxels; the last event but one is empty."""
    grid = grid or GRIDS[dims]
    random = torch.Generator().manual_seed(seed)
    coords = torch.stack([torch.randint(size, (rows,), generator=random) for size in grid], 1)
    event = torch.randint(events, (rows,), generator=random)
    event[event == events - 2] = 0
    return Voxels.make(coords, torch.ones(rows), event, events, grid)


def map_of(kind: str, voxels: Voxels) -> KernelMap:
    where = voxels.coords, voxels.offsets, voxels.grid
    if kind == "submanifold":
        return submanifold_map(*where)
    if kind == "generative":
        return generative_map(*where)[0]
    down = strided_map(*where)[0]
    return down if kind == "down" else down.transpose()


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


class TestMaps:
    @DIMS
    @pytest.mark.parametrize("rows", [0, 1, 40, 600])
    def test_agree_with_the_reference(self, dims: int, rows: int) -> None:
        voxels = some_voxels(dims, rows)
        where = voxels.coords, voxels.offsets, list(voxels.grid)
        for op, expected in (
            (OPS.submanifold_map, reference.submanifold_map),
            (OPS.strided_map, reference.strided_map),
        ):
            for got, other in zip(op(*where), expected(*where), strict=True):
                assert torch.equal(got, other)

    def test_of_many_voxels_do_not_depend_on_the_number_of_threads(self) -> None:
        """More than one chunk of rows, on a grid with lines of one voxel and of many."""
        voxels = some_voxels(3, 60_000, 3, (90, 40, 30))
        results = []
        threads = torch.get_num_threads()
        try:
            for n in (1, 2, 5):
                torch.set_num_threads(n)
                results.append(OPS.submanifold_map(voxels.coords, voxels.offsets, list(voxels.grid)))
        finally:
            torch.set_num_threads(threads)
        expected = reference.submanifold_map(voxels.coords, voxels.offsets, voxels.grid)
        for result in results:
            assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))

    def test_tell_sites_apart_whose_number_agrees_in_32_bits(self) -> None:
        """Voxels 2^32 sites and a step apart: keys of 32 bits would take them for neighbours."""
        grid = (1 << 20, 1 << 20, 1 << 10)
        coords = torch.tensor([[5, 5, 5], [5, 5, 6], [5, 5 + (1 << 19), 6], [9, 5 + (1 << 19), 7], [9 + 4096, 5, 7]])
        voxels = Voxels.make(coords, torch.ones(5), torch.zeros(5).long(), 1, grid)
        submanifold = submanifold_map(voxels.coords, voxels.offsets, grid)
        assert submanifold.rows[:, 5:].tolist() == [[1], [0]]
        down, parents, _ = strided_map(voxels.coords, voxels.offsets, grid)
        assert parents.tolist() == (voxels.coords // 2).unique(dim=0).tolist()
        assert down.rows.shape == (2, 5)

    def test_reach_the_largest_keys_that_fit(self) -> None:
        grid = (2**31 - 1, 2**30 - 1)
        coords = torch.tensor([[0, 0], [2**31 - 3, 2**30 - 3], [2**31 - 2, 2**30 - 2]], dtype=torch.int32)
        rows = submanifold_map(coords, torch.tensor([0, 3]), grid).rows
        assert rows[:, 3:].tolist() == [[2], [1]]
        with pytest.raises(ValueError, match=r"3 events on the grid \[2147483647, 1073741823\] have more than 2\^62"):
            submanifold_map(coords, torch.tensor([0, 3, 3, 3]), grid)

    @DIMS
    def test_down_of_generated_children_leads_back(self, dims: int) -> None:
        voxels = some_voxels(dims)
        up, fine, offsets = generative_map(voxels.coords, voxels.offsets, voxels.grid)
        down, parents, parent_offsets = strided_map(fine, offsets, [2 * size for size in voxels.grid])
        assert torch.equal(parents, voxels.coords)
        assert torch.equal(parent_offsets, voxels.offsets)
        assert torch.equal(torch.stack(up.transpose().pairs()), torch.stack(down.pairs()))

    @pytest.mark.parametrize(
        ("coords", "offsets", "grid", "error", "message"),
        [
            ([[1, 2], [1, 2]], [0, 2], (3, 3), ValueError, r"sorted and unique in each event; row 1 is \[1, 2\]"),
            ([[1, 2], [0, 2]], [0, 2], (3, 3), ValueError, r"row 1 is \[0, 2\]"),
            ([[1, 3]], [0, 1], (3, 3), ValueError, r"lie in the grid \[3, 3\] .* row 0 is \[1, 3\]"),
            ([[-1, 2]], [0, 1], (3, 3), ValueError, r"row 0 is \[-1, 2\]"),
            ([[1, 2]], [0, 2], (3, 3), ValueError, "rise from 0 to the 1 rows of coords"),
            ([[1, 2], [1, 2]], [0, 2, 1, 2], (3, 3), ValueError, "rise from 0 to the 2 rows of coords"),
            ([[1, 2]], [0, 1], (3, 3, 3), ValueError, r"shape \(N, 3\) for the grid \[3, 3, 3\], got \[1, 2\]"),
            ([[1, 2]], [0, 1], (3,), ValueError, r"grid must be 2 or 3 numbers of voxels, got \[3\]"),
            ([[1, 2]], [0, 1], (3, -3), ValueError, r"int32 numbers of voxels, got \[3, -3\]"),
            ([[1.0, 2.0]], [0, 1], (3, 3), TypeError, "coords must be int32, got Float"),
            ([[1, 2]], [0.0, 1.0], (3, 3), TypeError, "offsets must be int64, got Float"),
            ([[1, 2]], [[0, 1]], (3, 3), ValueError, r"offsets must have shape \(B \+ 1,\)"),
        ],
    )
    @pytest.mark.parametrize("make", [submanifold_map, strided_map])
    def test_refuse(self, make, coords: list, offsets: list, grid: tuple, error: type[Exception], message: str) -> None:
        where = torch.tensor(coords)
        where = where.int() if where.dtype == torch.int64 else where
        with pytest.raises(error, match=message):
            make(where, torch.tensor(offsets), grid)


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


@DIMS
def test_pairs_of_a_map_ascend_in_every_list(dims: int) -> None:
    voxels = some_voxels(dims, 200)
    for kind in ("submanifold", "down", "up", "generative"):
        m = map_of(kind, voxels)
        for first, last in pairwise(m.splits.tolist()):
            assert bool((m.rows[:, first:last].diff(dim=1) > 0).all()), kind
