"""Straight lines through hits: which hits are near, the axis of a group of them, and the fit by path length.

All lengths are in voxels; voxel i spans i to i + 1. Everything is done for all events of a batch at once.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import normalize

from sparsereco.infill.gaps import Gaps
from sparsereco.voxels import Voxels

BESIDE = 1.2
"""A hit this near to a straight line is on it [voxels]."""


def near_pairs(point: Tensor, event: Tensor, hits: Voxels, radius: float) -> tuple[Tensor, Tensor]:
    """All pairs of a point and a hit of the same event within a radius: (M,) point, ascending, and (M,) row."""
    if not len(point) or not len(hits.coords):
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    apart = 4.0 * (max(hits.grid) + radius)  # events lie side by side, further than anything reaches
    places = [
        np.concatenate([xyz.numpy().astype(np.float64) + np.array([apart, 0, 0]) * one.numpy()[:, None]], 1)
        for xyz, one in ((point, event), (hits.coords.float() + 0.5, hits.event))
    ]
    found = cKDTree(places[0]).sparse_distance_matrix(cKDTree(places[1]), radius, output_type="ndarray")
    a, b = torch.from_numpy(found["i"].astype(np.int64)), torch.from_numpy(found["j"].astype(np.int64))
    order = torch.argsort(a * (len(hits.coords) + 1) + b)
    return a[order], b[order]


def principal_axis(group: Tensor, place: Tensor, weight: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Weighted mean and principal axis of each of ``n`` groups of points; (0, 0, 1) where there is no axis."""
    total = sums(weight[:, None], group, n).clamp(min=1e-9)
    mean = sums(place * weight[:, None], group, n) / total
    off = place - mean[group]
    spread = sums((off[:, :, None] * off[:, None, :]).flatten(1) * weight[:, None], group, n) / total
    # A little roundness along z keeps the axes of single points defined.
    spread = spread.view(n, 3, 3) + torch.diag(torch.tensor([0.0, 0.0, 1e-5]))
    return mean, torch.linalg.eigh(spread)[1][:, :, 2]


def with_empty(line: Tensor, row: Tensor, hits: Voxels, gaps: Gaps) -> tuple[Tensor, Tensor, Tensor]:
    """Hits of lines and, with energy 0, the live voxels beside them that are none.

    Args:
        line: (M,) int64 line of each hit.
        row: (M,) int64 which hit.
        hits: one feature, the energy [MeV].
        gaps: the dead regions, which say nothing.

    Returns:
        Line (K,), centre (K, 3) and energy (K,) of each.
    """
    shape = torch.tensor(hits.grid)
    cell = hits.coords[row].long()[:, None] + _STEPS
    inside = ((cell >= 0) & (cell < shape)).all(2)
    key = torch.unique(cell_key(line[:, None].expand(inside.shape)[inside], cell[inside], shape))
    owner, cell = cell_of(key, shape)
    event = torch.zeros(int(line.max()) + 1 if len(line) else 0, dtype=torch.int64).index_copy(0, line, hits.event[row])
    lit, wanted = cell_key(hits.event, hits.coords.long(), shape), cell_key(event[owner], cell, shape)
    found = torch.searchsorted(lit, wanted).clamp(max=max(len(lit) - 1, 0))
    empty = torch.from_numpy(gaps.of(cell.numpy()) == -1) & (lit[found] != wanted)
    place = torch.cat([hits.coords[row], cell[empty]]).float() + 0.5
    return torch.cat([line, owner[empty]]), place, torch.cat([hits.signal[row], torch.zeros(int(empty.sum()))])


_STEPS = torch.cat([torch.eye(3), -torch.eye(3)]).long()
"""To the voxels that share a face with one."""


def refined(
    point: Tensor, direction: Tensor, loss: Tensor, line: Tensor, place: Tensor, energy: Tensor, lever: Tensor
) -> tuple[Tensor, Tensor]:
    """Lines fitted by path length: the energy of a voxel is in proportion to the line's path in it.

    A line through voxel centres knows where a track passes to a third of a voxel; where the track changes from one row
    of voxels to the next, and how it shares its energy there, tells it better, and so do the voxels that it leaves
    empty. Gauss-Newton steps of two shifts and two tilts, with slopes over a finite step, so that a voxel beside the
    line has one, and weights that bound outliers. What lies far from the gap counts less: the track has scattered on
    its way.

    Args:
        point: (L, 3) the point that the line is moved and tilted about.
        direction: (L, 3) unit vectors.
        loss: (L,) energy per length [MeV/voxel].
        line: (M,) int64 line of each voxel; place: (M, 3) its centre; energy: (M,) of hits, 0 of empty ones [MeV].
        lever: (M,) how far each is from where the line is to be known best.

    Returns:
        Point and direction of each line.
    """
    n, unit = len(point), energy / loss[line]
    start_point, start_direction = point, direction
    for _ in range(_FIT_STEPS):
        first, second = _across(direction)
        reach = ((place - point[line]) * direction[line]).sum(1, keepdim=True)
        path = crossing(place, point[line], direction[line])
        residual = unit - path
        slopes = []
        for side in (first, second):
            shift = _SLOPE_STEP * side[line]
            up, down = (crossing(place, point[line] + s * shift, direction[line]) for s in (1, -1))
            slopes.append((up - down) / (2 * _SLOPE_STEP))
        slope = torch.stack([slopes[0], slopes[1], reach[:, 0] * slopes[0], reach[:, 0] * slopes[1]], 1)
        steepness = slopes[0] ** 2 + slopes[1] ** 2
        variance = _STRAGGLING[0] + _STRAGGLING[1] * path + _SCATTERING**2 * lever**3 * steepness
        weight = 1 / (variance + residual**2 / 9)  # Cauchy: what lies beyond 3 sigma counts less and less
        curvature = sums((slope[:, :, None] * slope[:, None, :]).flatten(1) * weight[:, None], line, n).view(n, 4, 4)
        gradient = sums(slope * (residual * weight)[:, None], line, n)
        # A prior of half a voxel and a tenth of a radian keeps what the hits say nothing about.
        damping = torch.diag(torch.tensor([4.0, 4.0, 100.0, 100.0]))
        step = torch.linalg.solve(curvature + damping, gradient).clamp(-0.5, 0.5)
        point = point + step[:, :1] * first + step[:, 1:2] * second
        direction = normalize(direction + step[:, 2:3] * first + step[:, 3:] * second, dim=1)
    good = ((point - start_point).norm(dim=1) < 1.5) & ((direction * start_direction).sum(1) > 0.9)
    return torch.where(good[:, None], point, start_point), torch.where(good[:, None], direction, start_direction)


_FIT_STEPS = 5
_SLOPE_STEP = 0.2
_STRAGGLING = 0.015, 0.08
"""Variance of a voxel's energy in units of the energy per length: constant, and per path."""
_SCATTERING = 0.01
"""Side step by scattering after one voxel; it grows with the length to the power of 3/2 [voxels]."""


def _across(direction: Tensor) -> tuple[Tensor, Tensor]:
    """Two unit vectors across each of (L, 3) directions and each other."""
    helper = torch.nn.functional.one_hot(direction.abs().argmin(1), 3).to(direction.dtype)
    first = normalize(torch.linalg.cross(direction, helper), dim=1)
    return first, torch.linalg.cross(direction, first)


def crossing(centre: Tensor, point: Tensor, direction: Tensor) -> Tensor:
    """(N,) length of straight lines in the unit voxels around (N, 3) centres, by the slab method."""
    slope = torch.where(direction.abs() < 1e-4, torch.full_like(direction, 1e-4), direction)
    a, b = (centre - 0.5 - point) / slope, (centre + 0.5 - point) / slope
    return (torch.maximum(a, b).amin(1) - torch.minimum(a, b).amax(1)).clamp(min=0)


def loss_on(line: Tensor, place: Tensor, energy: Tensor, point: Tensor, direction: Tensor) -> Tensor:
    """(L,) energy per length of the hits on each line [MeV/voxel]."""
    path, n = crossing(place, point[line], direction[line]), len(point)
    return (sums(energy[:, None], line, n) / sums(path[:, None], line, n).clamp(min=0.5))[:, 0].clamp(min=0.05)


def cell_key(group: Tensor, cell: Tensor, shape: Tensor) -> Tensor:
    """(N,) one number for (N,) group and (N, 3) index of a voxel, in the order of both."""
    return ((group * shape[0] + cell[:, 0]) * shape[1] + cell[:, 1]) * shape[2] + cell[:, 2]


def cell_of(key: Tensor, shape: Tensor) -> tuple[Tensor, Tensor]:
    """Group (N,) and index (N, 3) of what `cell_key` made one number of."""
    x, y, z = shape.tolist()
    return key // (x * y * z), torch.stack([key // (y * z) % x, key // z % y, key % z], 1)


def sums(values: Tensor, group: Tensor, n: int) -> Tensor:
    """(n, C) sums of (N, C) values by group."""
    return values.new_zeros(n, values.shape[1]).index_add_(0, group, values)


def mean(values: Tensor, group: Tensor, n: int) -> Tensor:
    """(n,) means of (N,) values by group, 0 for an empty one."""
    return sums(values[:, None], group, n)[:, 0] / torch.bincount(group, minlength=n).clamp(min=1)
