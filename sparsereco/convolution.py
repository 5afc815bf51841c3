"""Sparse convolution on the CPU: kernel maps, and the typed face of the compiled operators that use them.

Letters: N input voxels, M output voxels, B events, D dimensions (2 or 3), K offsets of the kernel, P pairs of a map.
Results do not depend on the number of threads. `sparsereco.reference` has the operators in plain torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sparsereco import ops  # noqa: F401  (loads the compiled operators)

__all__ = ["KernelMap", "generative_map", "sparse_conv", "sparse_pool", "strided_map", "submanifold_map"]

_MAX_SITES = 2**62


@dataclass(frozen=True)
class KernelMap:
    """Which input voxel meets which output voxel under which offset of the kernel."""

    rows: Tensor  # (2, P) int32, input and output row of each pair; both ascend strictly within a list
    splits: Tensor  # (lists + 1,) int64; list l is rows[:, splits[l]:splits[l + 1]]
    n_in: int
    n_out: int
    transposed: bool = False
    """Whether the first of ``rows`` is the output."""

    def transpose(self) -> KernelMap:
        """The map back, from the outputs to the inputs: that of the inverse convolution."""
        return replace(self, n_in=self.n_out, n_out=self.n_in, transposed=not self.transposed)

    def pairs(self) -> tuple[Tensor, Tensor]:
        """(P,) int64 input and output row of each pair, list after list."""
        first, second = self.rows.long()
        return (second, first) if self.transposed else (first, second)


def submanifold_map(
    coords: Tensor,  # (N, D) int32, voxel index
    offsets: Tensor,  # (B + 1,) int64; event b owns rows offsets[b] to offsets[b + 1]
    grid: Sequence[int],  # (D,) number of voxels per axis
) -> KernelMap:
    """Map of a kernel of 3 voxels per axis whose output voxels are its input voxels.

    Voxels are sorted by event and coordinate and unique, like those of `Voxels`. The map lists half of the kernel: the
    centre and the offsets after it. An offset and its opposite share a list, with input and output exchanged.

    Raises:
        ValueError: for voxels outside the grid or out of order, or more than 2^62 sites in the batch.
        TypeError: for another dtype.
    """
    rows, splits = torch.ops.sparsereco.submanifold_map(coords, offsets, list(grid))
    return KernelMap(rows, splits, len(coords), len(coords))


def strided_map(coords: Tensor, offsets: Tensor, grid: Sequence[int]) -> tuple[KernelMap, Tensor, Tensor]:
    """Map of a kernel of 2 voxels per axis at stride 2, which halves the grid, rounding down.

    A voxel in the last row of an odd grid has no output voxel, as in a dense convolution without padding. Arguments and
    errors are those of `submanifold_map`.

    Returns:
        The map; the output voxels, (M, D) int32; and their offsets, (B + 1,) int64.
    """
    rows, splits, parents, parent_offsets = torch.ops.sparsereco.strided_map(coords, offsets, list(grid))
    return KernelMap(rows, splits, len(coords), len(parents)), parents, parent_offsets


def generative_map(coords: Tensor, offsets: Tensor, grid: Sequence[int]) -> tuple[KernelMap, Tensor, Tensor]:
    """Map of a transposed kernel of 2 voxels per axis at stride 2: every voxel makes all its 2^D children.

    Arguments, results and errors are those of `strided_map`; the grid doubles.
    """
    n, dims = coords.shape
    if len(grid) != dims or dims not in (2, 3):
        raise ValueError(f"generative_map: grid must be {dims} numbers of voxels (2 or 3), got {tuple(grid)}")
    sites = math.prod(2 * size for size in grid) * (len(offsets) - 1)
    if sites > _MAX_SITES:
        raise ValueError(f"generative_map: {len(offsets) - 1} events on the grid {tuple(grid)} make {sites:.3g} sites")
    child = torch.cartesian_prod(*[torch.arange(2, dtype=torch.int32, device=coords.device)] * dims)
    fine = (2 * coords + child[:, None]).flatten(0, 1)
    event = torch.repeat_interleave(torch.arange(len(offsets) - 1, device=coords.device), offsets.diff())
    key = event.repeat(len(child))
    for axis, size in enumerate(grid):
        key = key * (2 * size) + fine[:, axis]
    order = torch.argsort(key)
    rank = torch.empty_like(order).index_put_((order,), torch.arange(len(order), device=coords.device))
    rows = torch.stack([torch.arange(n, device=coords.device).repeat(len(child)), rank]).int()
    splits = torch.arange(len(child) + 1, device=coords.device) * n
    return KernelMap(rows, splits, n, len(order)), fine[order], offsets * len(child)


def sparse_conv(
    feats: Tensor,  # (N, C_in) float32 or float64
    weight: Tensor,  # (C_out, *kernel, C_in) same dtype
    kernel_map: KernelMap,
) -> Tensor:
    """Sparse convolution, (M, C_out): sum over offsets of the features they meet times their weights.

    As in a dense convolution of torch, offset d of a kernel of 3 reaches the voxel at x + d - 1. Differentiable any
    number of times with respect to features and weight.

    Raises:
        ValueError: for shapes that do not match each other or the map.
        TypeError: for a dtype other than float32 or float64, or two different ones.
    """
    if len(feats) != kernel_map.n_in:
        raise ValueError(f"sparse_conv: feats must have {kernel_map.n_in} rows as the map has, got {len(feats)}")
    flat = weight.flatten(1, -2) if weight.ndim > 3 else weight
    return torch.ops.sparsereco.sparse_conv(
        feats, flat, kernel_map.rows, kernel_map.splits, kernel_map.n_out, kernel_map.transposed
    )


def sparse_pool(
    feats: Tensor,  # (N, C) float
    kernel_map: KernelMap,  # of a strided kernel: each input voxel has one output voxel at most
    reduce: Literal["sum", "mean", "max"],
) -> Tensor:
    """Sum, mean or maximum of the input voxels of each output voxel, (M, C); 0 where it has none."""
    if len(feats) != kernel_map.n_in:
        raise ValueError(f"sparse_pool: feats must have {kernel_map.n_in} rows as the map has, got {len(feats)}")
    source, target = kernel_map.pairs()
    pooled = feats.new_zeros(kernel_map.n_out, feats.shape[1])
    if reduce == "max":
        index = target[:, None].expand(-1, feats.shape[1])
        return pooled.scatter_reduce(0, index, feats[source], "amax", include_self=False)
    pooled = pooled.index_add(0, target, feats[source])
    if reduce == "mean":
        return pooled / torch.bincount(target, minlength=kernel_map.n_out).clamp(min=1)[:, None]
    return pooled


@torch.library.register_fake("sparsereco::submanifold_map")
def _(coords: Tensor, offsets: Tensor, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
    pairs = torch.library.get_ctx().new_dynamic_size()
    return coords.new_empty((2, pairs)), offsets.new_empty(((3 ** len(grid) + 1) // 2 + 1,))


@torch.library.register_fake("sparsereco::strided_map")
def _(coords: Tensor, offsets: Tensor, grid: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    context = torch.library.get_ctx()
    pairs, parents = context.new_dynamic_size(), context.new_dynamic_size()
    return (
        coords.new_empty((2, pairs)),
        offsets.new_empty((2 ** len(grid) + 1,)),
        coords.new_empty((parents, len(grid))),
        torch.empty_like(offsets),
    )


@torch.library.register_fake("sparsereco::sparse_conv")
def _(feats: Tensor, weight: Tensor, rows: Tensor, splits: Tensor, n_out: int, transposed: bool) -> Tensor:
    return feats.new_empty((n_out, weight.shape[0]))


@torch.library.register_fake("sparsereco::sparse_conv_weight")
def _(feats: Tensor, grad: Tensor, rows: Tensor, splits: Tensor, volume: int, transposed: bool) -> Tensor:
    return feats.new_empty((grad.shape[1], volume, feats.shape[1]))


# The convolution is linear in features and weight. Its gradient to the features is the convolution along the map back
# with the weight's matrices transposed; that to the weight is an operator of its own, linear in features and gradient.


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Of either operator: features, its other factor (weight or gradient), and the map."""
    feats, other, rows, splits, _, ctx.transposed = inputs
    ctx.save_for_backward(feats, other, rows, splits)


def _to_feats(ctx: Any, grad: Tensor, weight: Tensor) -> Tensor:
    feats, _, rows, splits = ctx.saved_tensors
    back = weight.permute(2, 1, 0)
    return torch.ops.sparsereco.sparse_conv(grad, back, rows, splits, feats.shape[0], not ctx.transposed)


def _conv_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    feats, weight, rows, splits = ctx.saved_tensors
    of_feats = _to_feats(ctx, grad, weight) if ctx.needs_input_grad[0] else None
    of_weight = None
    if ctx.needs_input_grad[1]:
        volume = weight.shape[1]
        of_weight = torch.ops.sparsereco.sparse_conv_weight(feats, grad, rows, splits, volume, ctx.transposed)
    return of_feats, of_weight, None, None, None, None


def _weight_backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    feats, grad, rows, splits = ctx.saved_tensors
    of_feats = _to_feats(ctx, grad, cotangent) if ctx.needs_input_grad[0] else None
    of_grad = None
    if ctx.needs_input_grad[1]:
        of_grad = torch.ops.sparsereco.sparse_conv(feats, cotangent, rows, splits, grad.shape[0], ctx.transposed)
    return of_feats, of_grad, None, None, None, None


torch.library.register_autograd("sparsereco::sparse_conv", _conv_backward, setup_context=_save)
torch.library.register_autograd("sparsereco::sparse_conv_weight", _weight_backward, setup_context=_save)
