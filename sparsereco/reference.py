"""The compiled operators once more, in plain torch: the oracle of the tests, never a silent fallback.

Written for plainness, by another method than the kernels where there is one; time and memory do not matter here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["path_lengths"]


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
