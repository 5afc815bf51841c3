"""Typed face of the compiled operators ``torch.ops.sparsereco.*``, and reductions over the segments of a batch.

An operator is declared in ``csrc/bindings.cpp``, computed in ``csrc/cpu`` and ``csrc/cuda``, and described here:
shapes, conventions, and the fake kernel that `torch.compile` asks for shapes. `sparsereco.reference` has
it in plain torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

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

__all__ = [
    "MeasuredImages",
    "image_match",
    "path_lengths",
    "segment_max",
    "segment_mean",
    "segment_sum",
    "soft_voxelize",
    "soft_voxelize_sparse",
]


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


@dataclass(frozen=True)
class MeasuredImages:
    """K measured images on a small grid, made once for the many comparisons of a fit; no voxel is listed twice."""

    coords: Tensor  # (M, 3) int32, voxel index inside the image
    signal: Tensor  # (M,) float, finite and not negative
    offsets: Tensor  # (K + 1,) int64: image k is rows offsets[k]:offsets[k + 1]
    variance: Tensor | None = None  # (M,) float, positive: of the loss "gaussian"


def image_match(
    position: Tensor,  # (N, 3) float32 or float64, voxel units; differentiable
    charge: Tensor,  # (N,) not negative; differentiable
    offsets: Tensor,  # (I + 1,) int64: the deposits of image i are rows offsets[i]:offsets[i + 1]
    background: Tensor,  # (I,) not negative, in every voxel; above 0 for "poisson"; differentiable
    measured: MeasuredImages,
    index: Tensor | None = None,  # (I,) int64, the measured image that image i is compared with; None for image i
    *,
    softness: float,
    shape: Sequence[int] = (7, 7, 7),
    loss: Literal["poisson", "gaussian", "squared"] = "poisson",
    crosstalk: float = 0.0,
    threshold: float | None = None,
    empty_variance: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Compares images of deposits with measured ones, one loss per image.

    The prediction for a voxel is the background plus what `soft_voxelize` gives it, after crosstalk: a share of a
    voxel's light leaks to each face neighbour, and what leaks out of the image is lost. The losses, summed over all
    voxels of the image, measured or not (signal 0):

    - ``"poisson"``: the deviance 2 (prediction - signal + signal log(signal / prediction)) of Baker and Cousins,
      NIM 221 (1984) 437;
    - ``"gaussian"``: (prediction - signal)^2 / variance, with ``empty_variance`` for voxels that are not measured;
    - ``"squared"``: (prediction - signal)^2.

    With a threshold, a voxel measured below it, or not at all, contributes -2 log of the probability of staying below:
    of a Poisson count that is at most ceil(threshold) - 1, or of a Gaussian signal.

    The derivatives are computed together with the loss, if an argument requires them, and the backward pass only scales
    them: they are those of first order. The result does not depend on the number of threads; on CUDA it is the same in
    every run under `torch.use_deterministic_algorithms`.

    Returns:
        loss: (I,), differentiable.
        dropped: (I,) int64, number of deposits that light no voxel of the image; their gradient is zero.

    Raises:
        ValueError: for a wrong shape, or a value outside its range; it is named.
        TypeError: for a wrong dtype.
    """
    if index is None:
        if len(measured.offsets) != len(offsets):
            raise ValueError(
                "image_match: without index there must be one measured image per image, got "
                f"{len(measured.offsets) - 1} for {len(offsets) - 1}"
            )
        index = torch.arange(len(offsets) - 1, device=offsets.device)
    if len(shape) != 3:
        raise ValueError(f"image_match: shape must be three numbers of voxels, got {tuple(shape)}")
    losses, dropped, *_ = torch.ops.sparsereco.image_match(
        position,
        charge,
        offsets,
        background,
        index,
        measured.coords,
        measured.signal,
        measured.variance,
        measured.offsets,
        list(shape),
        loss,
        softness,
        crosstalk,
        threshold,
        empty_variance,
        torch.is_grad_enabled() and (position.requires_grad or charge.requires_grad or background.requires_grad),
    )
    return losses, dropped


@torch.library.register_fake("sparsereco::image_match")
def _(position: Tensor, charge: Tensor, offsets: Tensor, background: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    derivatives = [x.new_empty(x.shape if rest[-1] else (0, *x.shape[1:])) for x in (position, charge, background)]
    return background.new_empty(background.shape), offsets.new_empty(len(background)), *derivatives


@torch.library.register_fake("sparsereco::image_match_backward")
def _(grad_loss: Tensor, offsets: Tensor, position: Tensor, charge: Tensor, background: Tensor) -> tuple[Tensor, ...]:
    return torch.empty_like(position), torch.empty_like(charge), torch.empty_like(background)


def soft_voxelize(
    position: Tensor,  # (N, 3) float32 or float64, voxel units; differentiable
    charge: Tensor,  # (N,) not negative; differentiable
    offsets: Tensor,  # (I + 1,) int64: the deposits of image i are rows offsets[i]:offsets[i + 1]
    *,
    softness: float,
    shape: Sequence[int] = (7, 7, 7),
) -> tuple[Tensor, Tensor]:
    """Images of point-like deposits, differentiable with respect to where they are.

    Voxel (i, j, k) is the unit cube whose lower corner is (i, j, k). A deposit spreads over a unit box whose edges are
    cubic smoothsteps of half-width ``softness``, in (0, 0.5]: it lights at most two voxels per axis, its shares add up
    to 1 exactly, and they change smoothly where it crosses a border. Towards 0 this is hard voxelisation. What falls
    outside the image is lost.

    Returns:
        image: (I, X, Y, Z), differentiable.
        dropped: (I,) int64, number of deposits that light no voxel of the image; their gradient is zero.

    Raises:
        ValueError: for a wrong shape, or a value outside its range; it is named.
        TypeError: for a wrong dtype.
    """
    if len(shape) != 3:
        raise ValueError(f"soft_voxelize: shape must be three numbers of voxels, got {tuple(shape)}")
    image, dropped = torch.ops.sparsereco.soft_voxelize(position, charge, offsets, list(shape), softness)
    return image, dropped


@torch.library.register_fake("sparsereco::soft_voxelize")
def _(
    position: Tensor, charge: Tensor, offsets: Tensor, shape: Sequence[int], softness: float
) -> tuple[Tensor, Tensor]:
    return position.new_empty((len(offsets) - 1, *shape)), offsets.new_empty(len(offsets) - 1)


@torch.library.register_fake("sparsereco::soft_voxelize_backward")
def _(grad_image: Tensor, position: Tensor, charge: Tensor, offsets: Tensor, softness: float) -> tuple[Tensor, Tensor]:
    return position.new_empty(position.shape), charge.new_empty(charge.shape)


def _keep_deposits(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    position, charge, offsets, _, ctx.softness = inputs
    ctx.save_for_backward(position, charge, offsets)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _pull_deposits(ctx: Any, grad_image: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_image is None:
        return (None,) * 5
    position, charge = torch.ops.sparsereco.soft_voxelize_backward(grad_image, *ctx.saved_tensors, ctx.softness)
    return position, charge, None, None, None


torch.library.register_autograd("sparsereco::soft_voxelize", _pull_deposits, setup_context=_keep_deposits)


def soft_voxelize_sparse(
    position: Tensor,  # (N, 3) float32 or float64, voxel units; differentiable
    charge: Tensor,  # (N,) not negative; differentiable
    offsets: Tensor,  # (I + 1,) int64: the deposits of image i are rows offsets[i]:offsets[i + 1]
    *,
    softness: float,
    shape: Sequence[int],  # up to 2^24 voxels along each axis
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `soft_voxelize`, but only the voxels that get light, of images of any size: the cost does not depend on it.

    A voxel is listed if a deposit's share of it is positive, whatever the charge. The first three results are what
    `MeasuredImages` is made of, and with the shape as the grid, `Voxels`. They do not depend on the number of threads;
    on CUDA the light is the same in every run under `torch.use_deterministic_algorithms`.

    Returns:
        coords: (M, 3) int32, voxel index, sorted by image and then by coordinate, each once.
        light: (M,), differentiable.
        image_offsets: (I + 1,) int64: image i is rows image_offsets[i]:image_offsets[i + 1].
        dropped: (I,) int64, number of deposits that light no voxel of the image; their gradient is zero.

    Raises:
        ValueError: for a wrong shape, or a value outside its range; it is named.
        TypeError: for a wrong dtype.
    """
    if len(shape) != 3:
        raise ValueError(f"soft_voxelize_sparse: shape must be three numbers of voxels, got {tuple(shape)}")
    light, coords, image_offsets, dropped = torch.ops.sparsereco.soft_voxelize_sparse(
        position, charge, offsets, list(shape), softness
    )
    return coords, light, image_offsets, dropped


@torch.library.register_fake("sparsereco::soft_voxelize_sparse")
def _(
    position: Tensor, charge: Tensor, offsets: Tensor, shape: Sequence[int], softness: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    lit = torch.library.get_ctx().new_dynamic_size()
    return (
        position.new_empty(lit),
        position.new_empty((lit, 3), dtype=torch.int32),
        offsets.new_empty(len(offsets)),
        offsets.new_empty(len(offsets) - 1),
    )


@torch.library.register_fake("sparsereco::soft_voxelize_sparse_backward")
def _(
    grad_light: Tensor, coords: Tensor, image_offsets: Tensor, position: Tensor, charge: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return position.new_empty(position.shape), charge.new_empty(charge.shape)


def _keep_voxels(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    position, charge, offsets, ctx.shape, ctx.softness = inputs
    _, coords, image_offsets, dropped = output
    ctx.save_for_backward(coords, image_offsets, position, charge, offsets)
    ctx.mark_non_differentiable(coords, image_offsets, dropped)
    ctx.set_materialize_grads(False)


def _pull_voxels(ctx: Any, grad_light: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad_light is None:
        return (None,) * 5
    position, charge = torch.ops.sparsereco.soft_voxelize_sparse_backward(
        grad_light, *ctx.saved_tensors, ctx.shape, ctx.softness
    )
    return position, charge, None, None, None


torch.library.register_autograd("sparsereco::soft_voxelize_sparse", _pull_voxels, setup_context=_keep_voxels)


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
