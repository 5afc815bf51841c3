"""The compiled operators once more, in plain torch: the oracle of the tests, never a silent fallback.

Written for plainness, by another method than the kernels where there is one; time and memory do not matter here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["path_lengths", "sparse_conv", "strided_map", "submanifold_map"]


def path_lengths(
    start: Tensor,  # (N, 3) float, voxel units
    end: Tensor,  # (N, 3)
    shape: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """As `sparsereco.ops.path_lengths`: sorts a segment's crossings with every plane of the grid.

    Between two successive crossings lies one voxel, and the midpoint tells which.
    """
    origin, delta = start.double(), end.double() - start.double()
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(len(start), 2)
    crossings = [ends]
    for axis, size in enumerate(shape):
        planes = torch.arange(size + 1, dtype=torch.float64)
        t = (planes - origin[:, axis, None]) / delta[:, axis, None]
        parallel = (delta[:, axis] == 0)[:, None]
        crossings.append(torch.where(parallel, 0.0, t).clamp(0.0, 1.0))
    t = torch.cat(crossings, 1).sort(1).values

    middle = (t[:, 1:] + t[:, :-1]) / 2
    voxel = (origin[:, None] + middle[..., None] * delta[:, None]).floor()  # (N, T, 3)
    length = t.diff(dim=1) * delta.norm(dim=1, keepdim=True)
    inside = (voxel >= 0).all(-1) & (voxel < torch.tensor(shape)).all(-1)
    segment, piece = torch.nonzero((length > 0) & inside, as_tuple=True)
    return segment, voxel[segment, piece].int(), length[segment, piece].to(start.dtype)


def submanifold_map(
    coords: Tensor,  # (N, D) int32
    offsets: Tensor,  # (B + 1,) int64
    grid: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """As the operator: looks every neighbour up in a dense table of rows, so only for small grids."""
    dims, n = len(grid), len(coords)
    event = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
    table = torch.full((len(offsets) - 1, *[size + 2 for size in grid]), -1)
    table[(event, *(coords.long() + 1).T)] = torch.arange(n)
    steps = torch.cartesian_prod(*[torch.arange(-1, 2)] * dims)[3**dims // 2 :]
    lists = []
    for step in steps:
        neighbour = table[(event, *(coords + 1 + step).T)]
        out = (neighbour >= 0).nonzero()[:, 0]
        lists.append(torch.stack([neighbour[out], out]))
    return _join(lists)


def strided_map(coords: Tensor, offsets: Tensor, grid: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As the operator: the parents are the unique rows of (event, halved coordinates)."""
    event = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
    kept = (coords // 2 < torch.tensor([size // 2 for size in grid])).all(1).nonzero()[:, 0]
    parents, owner = torch.cat([event[kept, None], coords[kept].long() // 2], 1).unique(dim=0, return_inverse=True)
    lists = []
    for child in torch.cartesian_prod(*[torch.arange(2)] * len(grid)):
        at = (coords[kept] % 2 == child).all(1)
        lists.append(torch.stack([kept[at], owner[at]]))
    counts = torch.bincount(parents[:, 0], minlength=len(offsets) - 1)
    return (*_join(lists), parents[:, 1:].int(), torch.cat([counts.new_zeros(1), counts.cumsum(0)]))


def _join(lists: list[Tensor]) -> tuple[Tensor, Tensor]:
    sizes = torch.tensor([0, *[pairs.shape[1] for pairs in lists]])
    return torch.cat(lists, 1).int(), sizes.cumsum(0)


def sparse_conv(
    feats: Tensor,  # (N, C_in)
    weight: Tensor,  # (C_out, K, C_in)
    rows: Tensor,  # (2, P) int32
    splits: Tensor,  # (lists + 1,) int64
    n_out: int,
    transposed: bool,
) -> Tensor:
    """As the operator: per offset of the kernel one gather, one matrix product, one scatter."""
    lists = [tuple(pairs.long()) for pairs in rows.tensor_split(splits[1:-1], dim=1)]
    if weight.shape[1] == 2 * len(lists) - 1:
        lists = [(out, into) for into, out in lists[:0:-1]] + lists
    result = feats.new_zeros(n_out, len(weight))
    for k, (into, out) in enumerate(lists):
        source, target = (out, into) if transposed else (into, out)
        result = result.index_add(0, target, feats[source] @ weight[:, k].T)
    return result
