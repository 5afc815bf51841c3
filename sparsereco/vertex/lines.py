"""Tracks around voxels, fitted by path length: the light of a voxel is proportional to the track's path in it.

A line through voxel centres knows where a track is to a third of a voxel. How the track shares its light between
neighbours tells where it passed from one to the next, several times better; so does the light inside the crop, where it
is not mixed with that of the hadrons. Every fourth isotropic track stays in one layer of voxels for more than ten of
them, and only where it passes to the next tells where in the layer it is. So the fit looks far, where scattering has
bent the track: it has bends, which are as small as multiple scattering allows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sparsereco.geometry import across
from sparsereco.vertex.crop import FAR, HALF, distance
from sparsereco.voxels import Voxels, rows_of

_INNER = 2
"""Voxels nearer to the centre of the crop may hold the vertex and its hadrons: they take no part [voxels]."""

_WIDTH = 1.6
"""Voxels whose centres are further from the track take no part [voxels]."""

_SPREAD = 0.06
"""So much wider per voxel behind the pivot is the band about the straight line in which hits are looked for."""

_CENTRES = 3.0
"""Weight of the centre of a voxel with the light of a track through all of it [1 / voxel^2]."""

_NEAR = 11.0
"""The first, straight line is through hits up to this far from the centre [voxels]."""

_PIVOT = 6.5
"""The fit moves and tilts the near part of the track about this distance from the centre [voxels]."""

_BENDS = (4.0, 10.0, 20.0)
"""Where the track may bend: paths from the centre of the crop [voxels]."""

_BEND = (0.013, 0.017, 0.027)
"""Standard deviation of each bend: multiple scattering in 5, 8 and 21 voxels of plastic, at 6 mrad in one. That is a
quarter more than a muon of 300 MeV has (PDG, Passage of particles through matter, equation 34.16, radiation length
413 mm): with less, the lines of simulated muons are worse."""

_LOOSE = 0.3, 0.05
"""How far the near part of the track may be from where it starts: shift [voxels] and slope."""

_STEPS = (0.3, 0.15, 0.07, 0.03)
"""Of the numerical derivatives, one for each step of the fit [voxels]. The first are wide, as a track well inside a
layer would not notice that the light goes on in the next."""

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
    # By columns: reductions over three values are slow.
    (x, y, z), (u, v, w) = torch.minimum(a, b).unbind(1), torch.maximum(a, b).unbind(1)
    enter, leave = torch.maximum(torch.maximum(x, y), z), torch.minimum(torch.minimum(u, v), w)
    return enter * there, leave * there


def fit_lines(
    around: Voxels, centre: Tensor, crop: Tensor, point: Tensor, direction: Tensor, light: Tensor, min_pe: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Refits lines to the light around their crops.

    Args:
        around: one event per crop, from `crop.surroundings`, up to `crop.FAR`.
        centre: (V, 3) central voxel of each crop.
        crop: (T,) crop of each line.
        point: (T, 3) a point of the line relative to the centre of its crop [voxels].
        direction: (T, 3) unit vector, outward.
        light: (T,) first guess of the light per length [p.e. per voxel].
        min_pe: weaker hits take no part [p.e.].

    Returns:
        Point and direction of the track where it leaves its crop, light per length after the fit, and (T, 3) standard
        deviation of the line at the centre of the crop, along each axis of the grid [voxels].
    """
    line, row = rows_of(around.offsets, crop)
    place, signal = around.coords[row] - centre[crop[line]], around.signal[row]
    ring = distance(place, torch.zeros_like(place))
    place = place.float()
    far = (place * direction[line]).sum(1)
    light = light.clamp(min=30.0)
    # Much more light than a track leaves is a hadron's.
    clean = (ring > HALF) | (signal < 2.2 * light[line])
    keep = (signal >= min_pe) & (ring >= _INNER) & (far > 0) & (far < FAR) & clean
    hits = _Hits(line[keep], place[keep], signal[keep], len(crop))

    near = hits.where(far[keep] < _NEAR)
    for _ in range(2):
        point, direction = _principal_axis(near, point, direction)
    return _by_path_length(hits, point, direction, light)


class _Hits:
    """Hits that lines are fitted to: N pairs of a line and a voxel."""

    def __init__(self, line: Tensor, place: Tensor, signal: Tensor, n: int) -> None:
        self.line, self.place, self.signal, self.n = line, place, signal, n

    def where(self, keep: Tensor) -> _Hits:
        return _Hits(self.line[keep], self.place[keep], self.signal[keep], self.n)

    def sum(self, values: Tensor) -> Tensor:
        """(N, ...) values summed over the hits of each line."""
        return values.new_zeros(self.n, *values.shape[1:]).index_add_(0, self.line, values)

    def products(self, weight: Tensor, values: Tensor) -> Tensor:
        """(N, K) values to (n, K, K): weighted products of each pair, summed over the hits of each line."""
        product = weight[:, None, None] * values[:, :, None] * values[:, None]
        return self.sum(product.flatten(1)).view(-1, *product.shape[1:])

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
    # A line with one hit, or none, keeps its direction.
    spread = hits.products(weight, arm) / total[:, :, None] + 1e-4 * direction[:, :, None] * direction[:, None, :]
    axis = torch.linalg.eigh(spread).eigenvectors[:, :, 2]
    axis = axis * torch.where((axis * direction).sum(1, keepdim=True) < 0, -1.0, 1.0)
    return torch.where(hits.sum(weight)[:, None] > 0, mean, point), axis


class _Bent:
    """Tracks that are straight but for bends, and the hits beside them.

    Parameters (T, P, 2) are shift, slope and each bend, across the track in two directions.
    """

    def __init__(self, hits: _Hits, point: Tensor, direction: Tensor) -> None:
        self.direction = direction
        self.pivot = point + (_PIVOT - (point * direction).sum(1, keepdim=True)) * direction
        self.sides = torch.stack(across(direction), 1)  # (T, 2, 3)
        far = ((hits.place - self.pivot[hits.line]) * direction[hits.line]).sum(1)
        keep = hits.off_line(self.pivot, direction) < _WIDTH + _SPREAD * far.clamp(min=0)
        self.hits, far = hits.where(keep), far[keep]
        behind = far[:, None] + _PIVOT - torch.tensor(_BENDS)
        one = torch.ones_like(far)[:, None]
        # Derivatives of the place and the slope of the track beside each hit by its parameters.
        self.shift = torch.cat([one, far[:, None], behind.clamp(min=0)], 1)  # (N, P)
        self.slope = torch.cat([0 * one, one, (behind > 0).float()], 1)
        line = self.hits.line
        self._along, self._across = direction[line], self.sides[line]
        self._foot = self.pivot[line] + far[:, None] * self._along
        self.aside = torch.bmm(self._across, (self.hits.place - self._foot)[:, :, None])[:, :, 0]
        """(N, 2) the centres of the voxels, seen from the straight line."""

    def beside(self, moved: Tensor) -> tuple[Tensor, Tensor]:
        """Place and slope (N, 2) of the track beside each hit."""
        own = moved[self.hits.line]
        return torch.einsum("np,npi->ni", self.shift, own), torch.einsum("np,npi->ni", self.slope, own)

    def path(self, place: Tensor, slope: Tensor, step: float) -> tuple[Tensor, Tensor]:
        """(N,) path of the track in each voxel, and its derivatives (N, P, 2) by the parameters.

        Only where it passes counts for the derivatives, how it is tilted there hardly matters.
        """
        where = self._foot + (place[:, :1] * self._across[:, 0] + place[:, 1:] * self._across[:, 1])
        along = self._along + (slope[:, :1] * self._across[:, 0] + slope[:, 1:] * self._across[:, 1])
        along = normalize(along, dim=1)

        def chord(where: Tensor) -> Tensor:
            enter, leave = crossing(self.hits.place, where, along)
            return (leave - enter).clamp(min=0)

        aside = [
            (chord(where + step * side) - chord(where - step * side)) / (2 * step) for side in self._across.unbind(1)
        ]
        return chord(where), self.shift[:, :, None] * torch.stack(aside, 1)[:, None]

    def near_line(self, moved: Tensor) -> tuple[Tensor, Tensor]:
        """Point and direction of the part before the first bend."""
        off = torch.einsum("tki,tij->tkj", moved[:, :2], self.sides)
        return self.pivot + off[:, 0], normalize(self.direction + off[:, 1], dim=1)


def _by_path_length(
    hits: _Hits, point: Tensor, direction: Tensor, light: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bent tracks, first through the centres of the voxels, then by damped Gauss-Newton steps to the light in them.

    The light per length is fitted along.
    """
    track = _Bent(hits, point, direction)
    hits, n = track.hits, hits.n
    # Shift and slope are only damped, bends have a prior.
    prior = torch.tensor((*_LOOSE, *_BEND)).pow(-2)
    held = prior * (torch.arange(len(prior)) >= len(_LOOSE))
    p = len(prior)

    moved = torch.zeros(n, p, 2)
    for _ in range(2):
        rest = track.aside - track.beside(moved)[0]
        off = rest.norm(dim=1)
        weight = _CENTRES * hits.signal.clamp(max=400.0) / light[hits.line] * (off < _WIDTH) / (1 + off.square())
        curvature = hits.products(weight, track.shift) + prior.diag()
        pull = hits.sum((weight[:, None] * track.shift)[:, :, None] * rest[:, None]) - held[:, None] * moved
        moved = moved + torch.linalg.solve(curvature, pull)

    both, held = prior.repeat_interleave(2).diag(), held.repeat_interleave(2)
    for step in _STEPS:
        place, slope = track.beside(moved)
        near = (track.aside - place).norm(dim=1) < _WIDTH
        model, slopes = track.path(place, slope, step)
        slopes = slopes.flatten(1)
        data = (hits.signal / light[hits.line]).clamp(max=1.9)
        variance = _VARIANCE[0] + _VARIANCE[1] * torch.maximum(model, data)
        weight = near / (variance + (data - model).square() / 4)  # Cauchy: delta rays and hadrons must not pull
        scale = hits.sum(weight * model.square())
        fitted = hits.sum(weight * model * data) * light / scale.clamp(min=1e-6)
        light = torch.where(scale > 0, fitted, light).clamp(min=30.0)
        rest = (hits.signal / light[hits.line]).clamp(max=1.9) - model
        curvature = hits.products(weight, slopes) + both
        pull = hits.sum((weight * rest)[:, None] * slopes) - held * moved.flatten(1)
        moved = moved + 0.7 * torch.linalg.solve(curvature, pull).clamp(-0.2, 0.2).view(n, p, 2)

    # Shift and slope, extrapolated to the centre of the crop, in the axes of the grid.
    lever = torch.tensor([1.0, -_PIVOT])
    covariance = torch.linalg.inv(curvature).view(n, p, 2, p, 2)[:, :2, :, :2]
    across_track = torch.einsum("a,taibj,b->tij", lever, covariance, lever)
    variance = torch.einsum("tia,tij,tja->ta", track.sides, across_track, track.sides)
    return *track.near_line(moved), light, variance.clamp(min=0).sqrt()
