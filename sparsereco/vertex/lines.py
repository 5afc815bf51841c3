"""Straight lines through voxels, fitted by path length: the light of a voxel is proportional to the line's path in it.

A line through voxel centres knows where a track is to a third of a voxel. How the track shares its light between
neighbours tells where it passed from one to the next, several times better; so does the light inside the crop, where it
is not mixed with that of the hadrons.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sparsereco.geometry import across
from sparsereco.vertex.crop import HALF, distance
from sparsereco.voxels import Voxels, rows_of

_INNER = 2
"""Voxels nearer to the centre of the crop may hold the vertex and its hadrons: they take no part [voxels]."""

_WIDTH = 1.6
"""Voxels whose centres are further from the line take no part [voxels]."""

_PIVOT = 6.5
"""The fit moves and tilts the line about this distance from the centre, the middle of its hits [voxels]."""

_VARIANCE = 0.015, 0.08
"""Variance of the light of a voxel, in units of the light per length: constant, and per path length (straggling)."""


def crossing(centre: Tensor, point: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Where lines enter and leave unit voxels, by the slab method.

    Args:
        centre: (N, 3) centres of the voxels [voxels].
        point: (N, 3) a point of each line; direction: (N, 3) unit vectors, or zeros for no line.

    Returns:
        (N,) places on the line, from ``point`` along ``direction`` [voxels]. A line that misses its voxel leaves it
        before it enters it; where there is no line, both are 0.
    """
    slope = torch.where(direction.abs() < 1e-4, 1e-4, direction)
    a, b = (centre - 0.5 - point) / slope, (centre + 0.5 - point) / slope
    there = direction.any(1)
    return torch.minimum(a, b).amax(1) * there, torch.maximum(a, b).amin(1) * there


def fit_lines(
    around: Voxels, centre: Tensor, crop: Tensor, point: Tensor, direction: Tensor, light: Tensor, min_pe: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Refits lines to the light around their crops.

    Args:
        around: one event per crop, from `crop.surroundings`.
        centre: (V, 3) central voxel of each crop.
        crop: (T,) crop of each line.
        point: (T, 3) a point of the line relative to the centre of its crop [voxels].
        direction: (T, 3) unit vector, outward.
        light: (T,) first guess of the light per length [p.e. per voxel].
        min_pe: weaker hits take no part [p.e.].

    Returns:
        Point, direction and light per length after the fit.
    """
    line, row = rows_of(around.offsets, crop)
    place, signal = around.coords[row] - centre[crop[line]], around.signal[row]
    ring = distance(place, torch.zeros_like(place))
    place = place.float()
    far = (place * direction[line]).sum(1)
    light = light.clamp(min=30.0)
    # Much more light than a track leaves is a hadron's.
    clean = (ring > HALF) | (signal < 2.2 * light[line])
    keep = (signal >= min_pe) & (ring >= _INNER) & (far > 0) & clean
    hits = _Hits(line[keep], place[keep], signal[keep], len(crop))

    for _ in range(2):
        point, direction = _principal_axis(hits, point, direction)
    return _by_path_length(hits, point, direction, light)


class _Hits:
    """Hits that lines are fitted to: N pairs of a line and a voxel."""

    def __init__(self, line: Tensor, place: Tensor, signal: Tensor, n: int) -> None:
        self.line, self.place, self.signal, self.n = line, place, signal, n

    def sum(self, values: Tensor) -> Tensor:
        """(N, ...) values summed over the hits of each line."""
        return values.new_zeros(self.n, *values.shape[1:]).index_add_(0, self.line, values)

    def off_line(self, point: Tensor, direction: Tensor) -> Tensor:
        """(N,) distance of the centres from their lines [voxels]."""
        arm = self.place - point[self.line]
        along = (arm * direction[self.line]).sum(1, keepdim=True)
        return (arm - along * direction[self.line]).norm(dim=1)


def _principal_axis(hits: _Hits, point: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    off = hits.off_line(point, direction)
    weight = hits.signal.clamp(max=400.0) * (off < _WIDTH) / (1 + off.square())
    total = hits.sum(weight).clamp(min=1e-6)[:, None]
    mean = hits.sum(weight[:, None] * hits.place) / total
    arm = hits.place - mean[hits.line]
    spread = hits.sum(weight[:, None] * (arm[:, :, None] * arm[:, None, :]).flatten(1)) / total
    # A line with one hit, or none, keeps its direction.
    spread = spread.view(-1, 3, 3) + 1e-4 * direction[:, :, None] * direction[:, None, :]
    axis = torch.linalg.eigh(spread).eigenvectors[:, :, 2]
    axis = axis * torch.where((axis * direction).sum(1, keepdim=True) < 0, -1.0, 1.0)
    return torch.where(hits.sum(weight)[:, None] > 0, mean, point), axis


def _by_path_length(hits: _Hits, point: Tensor, direction: Tensor, light: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Four damped Gauss-Newton steps in two shifts and two slopes; the light per length is fitted along."""
    pivot = point + (_PIVOT - (point * direction).sum(1, keepdim=True)) * direction
    u, v = across(direction)

    def line(moved: Tensor) -> tuple[Tensor, Tensor]:
        tilted = direction + moved[:, 2:3] * u + moved[:, 3:] * v
        return pivot + moved[:, :1] * u + moved[:, 1:2] * v, normalize(tilted, dim=1)

    def path(moved: Tensor) -> Tensor:
        where, along = line(moved)
        enter, leave = crossing(hits.place, where[hits.line], along[hits.line])
        return (leave - enter).clamp(min=0)

    steps = torch.tensor([0.03, 0.03, 0.006, 0.006])  # of the numerical derivative, small against a voxel
    damping = torch.tensor([0.3, 0.3, 0.05, 0.05]).pow(-2).diag()
    moved = torch.zeros(hits.n, 4)
    for _ in range(4):
        near = hits.off_line(*line(moved)) < _WIDTH
        model = path(moved)
        data = (hits.signal / light[hits.line]).clamp(max=1.9)
        variance = _VARIANCE[0] + _VARIANCE[1] * torch.maximum(model, data)
        weight = near / (variance + (data - model).square() / 4)  # Cauchy: delta rays and hadrons must not pull
        scale = hits.sum(weight * model.square())
        fitted = hits.sum(weight * model * data) * light / scale.clamp(min=1e-6)
        light = torch.where(scale > 0, fitted, light).clamp(min=30.0)
        rest = (hits.signal / light[hits.line]).clamp(max=1.9) - model
        slopes = torch.stack([(path(moved + step) - path(moved - step)) / (2 * step.sum()) for step in steps.diag()], 1)
        curvature = hits.sum((weight[:, None, None] * slopes[:, :, None] * slopes[:, None, :]).flatten(1)).view(
            -1, 4, 4
        )
        pull = hits.sum((weight * rest)[:, None] * slopes)
        moved = moved + 0.7 * torch.linalg.solve(curvature + damping, pull).clamp(-0.2, 0.2)
    return *line(moved), light
