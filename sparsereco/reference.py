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

__all__ = ["image_match", "path_lengths", "soft_voxelize"]


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
