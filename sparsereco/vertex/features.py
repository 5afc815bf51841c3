"""What the decomposer sees of a crop: voxels and leaving tracks as numbers, in a frame that the longest track decides.

Each crop is turned by one of the 48 symmetries of the voxel grid so that its longest leaving track points into one
wedge of the sphere. Places are in voxels, relative to the centre of the crop.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sparsereco.vertex.crop import HALF, Crops, Tracks
from sparsereco.vertex.lines import crossing
from sparsereco.voxels import rank_in_group

VOXEL_FEATURES, RELATIVE_FEATURES, TRACK_FEATURES = 20, 15, 16


@dataclass(frozen=True)
class Line:
    """The longest leaving track of each crop, in the turned frame; zeros where there is none."""

    point: Tensor  # (V, 3) [voxels]
    direction: Tensor  # (V, 3)
    light: Tensor  # (V,) [p.e. per voxel]

    @property
    def nearest(self) -> Tensor:
        """(V, 3) the point of the line nearest to the centre of the crop: a first guess at the vertex."""
        return (self.point - _dot(self.point, self.direction) * self.direction).clamp(-1.5, 1.5)

    @property
    def frame(self) -> Tensor:
        """(V, 3, 3) unit vectors along the line and across it, one a row; the axes of the grid where there is none.

        The light tells where a line is far better than where on the line it begins: errors belong in this frame.
        """
        along, z = self.direction, torch.tensor([0.0, 0.0, 1.0])
        across = normalize(torch.linalg.cross(z.expand_as(along), along), dim=1)
        frame = torch.stack([along, across, torch.linalg.cross(along, across)], 1)
        return torch.where(along.any(1)[:, None, None], frame, torch.eye(3))


def leading_line(crops: Crops) -> tuple[Tensor, Line]:
    """The turn of each crop and its line."""
    tracks, n = crops.tracks, len(crops)
    lead = rank_in_group(tracks.crop) == 0
    owner = tracks.crop[lead]
    point, direction = (
        torch.zeros(n, 3).index_copy(0, owner, value[lead]) for value in (tracks.point, tracks.direction)
    )
    light = torch.zeros(n).index_copy(0, owner, tracks.light[lead])
    # Without a track the light itself gives the axis.
    dipole = torch.zeros(n, 3).index_add(0, crops.crop, crops.place * crops.signal[:, None])
    turn = canonical_turn(torch.where(direction.any(1, keepdim=True), direction, dipole))
    return turn, Line(turned(point, turn), turned(direction, turn), light)


def canonical_turn(axis: Tensor) -> Tensor:
    """The symmetry of the cube that turns each axis (V, 3) into x >= y >= z >= 0, (V, 3, 3) signed permutations."""
    order = axis.abs().argsort(dim=1, descending=True, stable=True)
    sign = torch.where(axis < 0, -1.0, 1.0).gather(1, order)
    return torch.zeros(len(axis), 3, 3).scatter(2, order[:, :, None], sign[:, :, None])


def turned(vectors: Tensor, turn: Tensor) -> Tensor:
    """(N, 3) vectors, each by its own (N, 3, 3) matrix."""
    return (turn * vectors[:, None, :]).sum(2)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def voxel_features(crops: Crops, place: Tensor, line: Line) -> Tensor:
    """(N, VOXEL_FEATURES): place, light, and where the longest leaving track passes."""
    point, direction = line.point[crops.crop], line.direction[crops.crop]
    light = crops.signal[:, None]
    along = _dot(place - point, direction)
    aside = place - point - along * direction
    # Where on the line its voxel is entered and left, and where a track would begin that made all of the voxel's light.
    foot = point - _dot(point, direction) * direction
    enter, leave = (x[:, None] for x in crossing(place, foot, direction))
    chord = (leave - enter).clamp(min=0)
    expected = chord * line.light[crops.crop, None]
    begin = leave - light / line.light[crops.crop, None].clamp(min=30)
    on_line = torch.cat([enter, leave, begin], 1).clamp(-5, 5) / 3 * (chord > 0)
    off_line = aside.norm(dim=1, keepdim=True)
    excess = (light + 20).log() - (expected + 20).log()
    return torch.cat([place / HALF, *_light(light), along / 5, aside.clamp(-4, 4) / 2, off_line.clamp(max=4) / 2,
                      chord, *_light(expected), (light - expected) / 300, excess, on_line], 1)  # fmt: skip


def relative_features(crops: Crops, place: Tensor, vertex: Tensor, scale: Tensor, line: Line) -> Tensor:
    """(N, RELATIVE_FEATURES): the voxel seen from the estimated vertex, and the light beyond the leaving track's."""
    vertex, scale, direction = vertex[crops.crop], scale[crops.crop], line.direction[crops.crop]
    arm = place - vertex
    distance = arm.norm(dim=1, keepdim=True)
    unit = arm / distance.clamp(min=0.1)
    enter, leave = crossing(place, vertex, direction)
    chord = (leave - enter.clamp(min=0)).clamp(min=0)[:, None]
    light = crops.signal[:, None]
    rest = light - chord * line.light[crops.crop, None]
    return torch.cat([arm / 2, unit, distance / 3, 1 / (0.3 + distance), _dot(unit, direction), chord, rest / 300,
                      rest.clamp(min=0).sqrt() / 20, 3 * scale.clamp(max=1)], 1)  # fmt: skip


def track_features(tracks: Tracks, turn: Tensor) -> Tensor:
    """(T, TRACK_FEATURES)."""
    point, direction = turned(tracks.point, turn[tracks.crop]), turned(tracks.direction, turn[tracks.crop])
    nearest = point - _dot(point, direction) * direction
    scalars = torch.stack([tracks.hits.log() / 2, tracks.length / 8, (tracks.light + 10).log() - 5, tracks.spread], 1)
    error = turned(tracks.error, turn[tracks.crop].abs())
    return torch.cat([point / HALF, direction, nearest.clamp(-4, 4), scalars, 3 * error.clamp(max=1)], 1)


def _light(pe: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (pe + 5).log() / 2 - 2, pe.clamp(min=0).sqrt() / 20, pe / 1000
