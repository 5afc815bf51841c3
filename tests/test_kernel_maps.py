"""Kernel maps: against plain torch, on huge grids, and what must hold for every map."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from sparse_cases import DIMS, map_of, some_voxels

from sparsereco import reference
from sparsereco.convolution import generative_map, strided_map, submanifold_map
from sparsereco.voxels import Voxels

OPS = torch.ops.sparsereco


@DIMS
@pytest.mark.parametrize("rows", [0, 1, 40, 600])
def test_maps_agree_with_the_reference(dims: int, rows: int) -> None:
    voxels = some_voxels(dims, rows)
    where = voxels.coords, voxels.offsets, list(voxels.grid)
    for op, expected in (
        (OPS.submanifold_map, reference.submanifold_map),
        (OPS.strided_map, reference.strided_map),
    ):
        for got, other in zip(op(*where), expected(*where), strict=True):
            assert torch.equal(got, other)


def test_maps_of_many_voxels_do_not_depend_on_the_number_of_threads() -> None:
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


def test_maps_tell_sites_apart_whose_number_agrees_in_32_bits() -> None:
    """Voxels 2^32 sites and a step apart: keys of 32 bits would take them for neighbours."""
    grid = (1 << 20, 1 << 20, 1 << 10)
    coords = torch.tensor([[5, 5, 5], [5, 5, 6], [5, 5 + (1 << 19), 6], [9, 5 + (1 << 19), 7], [9 + 4096, 5, 7]])
    voxels = Voxels.make(coords, torch.ones(5), torch.zeros(5).long(), 1, grid)
    submanifold = submanifold_map(voxels.coords, voxels.offsets, grid)
    assert submanifold.rows[:, 5:].tolist() == [[1], [0]]
    down, parents, _ = strided_map(voxels.coords, voxels.offsets, grid)
    assert parents.tolist() == (voxels.coords // 2).unique(dim=0).tolist()
    assert down.rows.shape == (2, 5)


def test_maps_reach_the_largest_keys_that_fit() -> None:
    grid = (2**31 - 1, 2**30 - 1)
    coords = torch.tensor([[0, 0], [2**31 - 3, 2**30 - 3], [2**31 - 2, 2**30 - 2]], dtype=torch.int32)
    rows = submanifold_map(coords, torch.tensor([0, 3]), grid).rows
    assert rows[:, 3:].tolist() == [[2], [1]]
    with pytest.raises(ValueError, match=r"3 events on the grid \[2147483647, 1073741823\] have more than 2\^62"):
        submanifold_map(coords, torch.tensor([0, 3, 3, 3]), grid)


@DIMS
def test_down_of_generated_children_leads_back(dims: int) -> None:
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
def test_maps_refuse(make, coords: list, offsets: list, grid: tuple, error: type[Exception], message: str) -> None:
    where = torch.tensor(coords)
    where = where.int() if where.dtype == torch.int64 else where
    with pytest.raises(error, match=message):
        make(where, torch.tensor(offsets), grid)


@DIMS
def test_pairs_of_a_map_ascend_in_every_list(dims: int) -> None:
    voxels = some_voxels(dims, 200)
    for kind in ("submanifold", "down", "up", "generative"):
        m = map_of(kind, voxels)
        for first, last in pairwise(m.splits.tolist()):
            assert bool((m.rows[:, first:last].diff(dim=1) > 0).all()), kind
