"""The compiled operators once more, in plain torch: the oracle of the tests, never a silent fallback.

Written for plainness, by another method than the kernels where there is one; time and memory do not matter here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv3d

from sparsereco.ops import MeasuredImages

__all__ = [
    "image_match",
    "path_lengths",
    "soft_voxelize",
    "soft_voxelize_sparse",
    "sparse_conv",
    "strided_map",
    "submanifold_map",
]


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


def soft_voxelize(
    position: Tensor,  # (N, 3)
    charge: Tensor,  # (N,)
    offsets: Tensor,  # (I + 1,)
    *,
    softness: float,
    shape: Sequence[int] = (7, 7, 7),
) -> tuple[Tensor, Tensor]:
    """As `sparsereco.ops.soft_voxelize`: every deposit is weighed in every voxel, one axis at a time."""
    counts = offsets.diff().tolist()
    axes = [_box(position[:, axis, None] - torch.arange(size), softness) for axis, size in enumerate(shape)]
    lost = ~torch.stack([(weight > 0).any(1) for weight in axes]).all(0)
    if not counts:
        return position.new_zeros((0, *shape)), offsets.new_zeros(0)
    parts = zip(charge.split(counts), *(weight.split(counts) for weight in axes), strict=True)
    image = torch.stack([torch.einsum("n,nx,ny,nz->xyz", *part) for part in parts])
    return image, torch.stack([part.sum() for part in lost.split(counts)])


def soft_voxelize_sparse(
    position: Tensor,  # (N, 3)
    charge: Tensor,  # (N,)
    offsets: Tensor,  # (I + 1,)
    *,
    softness: float,
    shape: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `sparsereco.ops.soft_voxelize_sparse`: the dense image, and a dense one of what unit charges light."""
    image, dropped = soft_voxelize(position, charge, offsets, softness=softness, shape=shape)
    touched, _ = soft_voxelize(position.detach(), torch.ones_like(charge), offsets, softness=softness, shape=shape)
    lit = touched.nonzero()
    counts = torch.bincount(lit[:, 0], minlength=len(offsets) - 1)
    image_offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return lit[:, 1:].int(), image[tuple(lit.T)], image_offsets, dropped


def image_match(
    position: Tensor,  # (N, 3)
    charge: Tensor,  # (N,)
    offsets: Tensor,  # (I + 1,)
    background: Tensor,  # (I,)
    measured: MeasuredImages,
    index: Tensor | None = None,  # (I,)
    *,
    softness: float,
    shape: Sequence[int] = (7, 7, 7),
    loss: str = "poisson",
    crosstalk: float = 0.0,
    threshold: float | None = None,
    empty_variance: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """As `sparsereco.ops.image_match`, on dense images."""
    light, dropped = soft_voxelize(position, charge, offsets, softness=softness, shape=shape)
    leak = torch.zeros((3, 3, 3), dtype=light.dtype)
    leak[1, 1, 0] = leak[1, 1, 2] = leak[1, 0, 1] = leak[1, 2, 1] = leak[0, 1, 1] = leak[2, 1, 1] = crosstalk
    leak[1, 1, 1] = 1 - 6 * crosstalk
    mean = background[:, None, None, None] + conv3d(light[:, None], leak[None, None], padding=1)[:, 0]

    event = torch.repeat_interleave(torch.arange(len(measured.offsets) - 1), measured.offsets.diff())
    places = (event, *measured.coords.long().T)
    empty = light.new_zeros((len(measured.offsets) - 1, *shape))
    signal = empty.index_put(places, measured.signal)
    variance = empty + (empty_variance if loss == "gaussian" else 1.0)
    if measured.variance is not None:
        variance = variance.index_put(places, measured.variance)
    if index is not None:
        signal, variance = signal[index], variance[index]

    if loss == "poisson":
        term = 2 * (mean - signal + torch.special.xlogy(signal, signal) - signal * mean.log())
    else:
        term = (mean - signal) ** 2 / variance
    if threshold is not None:
        poisson = loss == "poisson"
        below = _log_poisson_below(mean, threshold) if poisson else _log_normal_below(mean, threshold, variance)
        term = torch.where(signal < threshold, -2 * below, term)
    return term.sum((1, 2, 3)), dropped


def _box(x: Tensor, softness: float) -> Tensor:
    """Unit box over [0, 1] with smooth edges."""
    return _smoothstep(x, softness) - _smoothstep(x - 1, softness)


def _smoothstep(x: Tensor, softness: float) -> Tensor:
    t = (x / (2 * softness) + 0.5).clamp(0, 1)
    return t * t * (3 - 2 * t)


def _log_poisson_below(mean: Tensor, threshold: float) -> Tensor:
    """Log of the probability of at most ceil(threshold) - 1 counts."""
    counts = torch.arange(math.ceil(threshold), dtype=mean.dtype)
    return torch.logsumexp(torch.special.xlogy(counts, mean[..., None]) - torch.lgamma(counts + 1), -1) - mean


def _log_normal_below(mean: Tensor, threshold: float, variance: Tensor) -> Tensor:
    return torch.special.log_ndtr((threshold - mean) / variance.sqrt())
