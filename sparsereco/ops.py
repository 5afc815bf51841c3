"""Typed face of the compiled operators ``torch.ops.sparsereco.*``, and reductions over the segments of a batch.

An operator is declared in ``csrc/bindings.cpp``, computed in ``csrc/cpu`` and ``csrc/cuda``, and described here:
shapes, conventions, and the fake kernel that `torch.compile` asks for shapes. `sparsereco.reference` has
it in plain torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch_scatter import segment_csr

try:
    import sparsereco._C  # noqa: F401  (loading it registers the operators)
except ImportError as error:
    raise ImportError(
        f"the compiled extension sparsereco._C cannot be loaded ({error}); build it in the environment that has torch: "
        "pip install --no-build-isolation -e ."
    ) from error

__all__ = ["path_lengths", "segment_max", "segment_mean", "segment_sum"]


def path_lengths(
    start: Tensor,  # (N, 3) float32 or float64, voxel units
    end: Tensor,  # (N, 3) same dtype and device
    shape: Sequence[int],  # number of voxels along x, y, z
) -> tuple[Tensor, Tensor, Tensor]:
    """Exact path lengths of straight segments through a grid of voxels.

    Positions are in units of a voxel's edge and the grid spans [0, shape), so that voxel (i, j, k) is the unit cube
    whose lower corner is (i, j, k). What lies outside the grid is cut off: the lengths of a segment add up to its
    clipped length. A segment inside the face between two voxels belongs to the upper one, one inside an upper face of
    the grid to none. A segment of zero length crosses nothing, and a voxel touched only at an edge or a corner is not
    listed.

    The result does not depend on the number of threads. Crossings are computed in float64 whatever the input, accurate
    to about 1e-16 of the uncut segment's length.

    Method: Siddon, Med. Phys. 12 (1985) 252; Amanatides and Woo, Eurographics (1987) 3.

    Returns:
        segment: (M,) int64, row of the segment, ascending.
        coords: (M, 3) int32, the voxels it crosses, in order from start to end.
        length: (M,) the path in that voxel, in voxel units, positive.

    Raises:
        ValueError: for a wrong shape, a position that is not finite or beyond 2^31 voxels, or inputs that require a
            gradient: this version does not differentiate the lengths.
        TypeError: for a dtype other than float32 or float64, or two different ones.
    """
    if torch.is_grad_enabled() and (start.requires_grad or end.requires_grad):
        raise ValueError("path_lengths has no gradient with respect to start and end: pass them detached")
    if len(shape) != 3:
        raise ValueError(f"path_lengths: shape must be three numbers of voxels, got {tuple(shape)}")
    segment, coords, length = torch.ops.sparsereco.path_lengths(start, end, list(shape))
    return segment, coords, length


@torch.library.register_fake("sparsereco::path_lengths")
def _(start: Tensor, end: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    crossed = torch.library.get_ctx().new_dynamic_size()
    return (
        start.new_empty(crossed, dtype=torch.int64),
        start.new_empty((crossed, 3), dtype=torch.int32),
        start.new_empty(crossed),
    )


def segment_sum(
    values: Tensor,  # (N, ...)
    offsets: Tensor,  # (S + 1,) int64: segment s is values[offsets[s]:offsets[s + 1]]
) -> Tensor:
    """Sum over each segment of rows, (S, ...); differentiable. An empty segment gives 0.

    Raises:
        ValueError: where `offsets` does not rise from 0 to N.
    """
    return segment_csr(values, _checked(offsets, values), reduce="sum")


def segment_mean(values: Tensor, offsets: Tensor) -> Tensor:
    """Mean over each segment of rows, as `segment_sum`. An empty segment gives 0."""
    return segment_csr(values, _checked(offsets, values), reduce="mean")


def segment_max(values: Tensor, offsets: Tensor) -> Tensor:
    """Maximum over each segment of rows, as `segment_sum`; the gradient goes to the first row that attains it.

    An empty segment gives 0, not the lowest number: where values may be negative, tell it by ``offsets.diff() == 0``.
    """
    return segment_csr(values, _checked(offsets, values), reduce="max")


def _checked(offsets: Tensor, values: Tensor) -> Tensor:
    """The offsets, once they cannot make the kernel read outside `values`."""
    if offsets.dim() != 1 or offsets.dtype != torch.int64 or len(offsets) == 0:
        raise ValueError(f"offsets must be (S + 1,) int64, got {tuple(offsets.shape)} {offsets.dtype}")
    if offsets[0] != 0 or offsets[-1] != len(values) or (offsets.diff() < 0).any():
        raise ValueError(f"offsets must rise from 0 to the {len(values)} rows of values, got {offsets.tolist()[:8]}...")
    return offsets
