"""What is known of a track without its truth, as terms of a loss: energy per length that is smooth and continuous.

Both terms compare sums over slices of a track: the candidates of one line, cut every `SLICE` voxels along it. They
pull to the mean of what Landau fluctuations spread, so they are off unless a training asks for them (docs/infill.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from sparsereco import bounds

SLICE = 2.0
"""Length of a slice [voxels]."""

LEAST = 1.0
"""Slices that the line crosses for less are not compared [voxels]."""

ROOM = 0.3
"""Relative difference up to which the penalty is quadratic: about what straggling makes of two slices."""


@dataclass(frozen=True)
class Physics:
    """Weights of the optional terms; 0: left out."""

    dedx: float = 0.0
    """Of energy per length that is smooth along the track."""
    continuity: float = 0.0
    """Of energy per length that is the same on both sides of the faces of a gap."""

    def __post_init__(self) -> None:
        bounds.not_negative(self, "physics.", "dedx", "continuity")


@dataclass(frozen=True)
class Slices:
    """Slices of lines, sorted by line and place, those with too short a path left out."""

    line: Tensor  # (S,) int64
    place: Tensor  # (S,) int64, number of the slice along its line
    loss: Tensor  # (S,) expected energy per length [MeV/voxel]


def cut(expected: Tensor, line: Tensor, along: Tensor, path: Tensor) -> Slices:
    """Sums over slices.

    Args:
        expected: (C,) probability times energy of candidates [MeV].
        line: (C,) int64, line of each.
        along: (C,) distance from the start of the line [voxels].
        path: (C,) length of the line in the voxel.
    """
    place = torch.floor(along / SLICE).long()
    low = int(place.min()) if len(place) else 0
    span = int(place.max()) - low + 1 if len(place) else 1
    key, group = torch.unique(line * span + place - low, return_inverse=True)
    energy, length = (x.new_zeros(len(key)).index_add(0, group, x) for x in (expected, path.to(expected.dtype)))
    kept = length >= LEAST
    return Slices((key // span)[kept], (key % span + low)[kept], energy[kept] / length[kept])


def dedx(slices: Slices, usual: Tensor) -> Tensor:
    """Difference of energy per length between neighbouring slices, relative to that of the hits around.

    Args:
        slices: of the lines.
        usual: (L,) energy per length of each line's hits [MeV/voxel].

    Returns:
        Mean Huber loss; 0 without neighbours.
    """
    pair = (slices.line[1:] == slices.line[:-1]) & (slices.place[1:] == slices.place[:-1] + 1)
    change = (slices.loss.diff() / usual[slices.line[1:]].to(slices.loss.dtype))[pair]
    return _mean_huber(change)


def continuity(slices: Slices, usual: Tensor, length: Tensor, linked: Tensor) -> Tensor:
    """Difference of energy per length between the slices at the faces and the hits outside, relative to the latter.

    Args:
        slices: of the lines.
        usual: (L,) energy per length of each line's hits [MeV/voxel].
        length: (L,) of each line [voxels].
        linked: (L,) bool: it leads to a second face; a ray has the first one only, since it may stop.

    Returns:
        Mean Huber loss; 0 without slices at a face.
    """
    last = torch.floor(length / SLICE).long() - 1
    face = (slices.place == 0) | ((slices.place == last[slices.line]) & linked[slices.line])
    outside = usual[slices.line].to(slices.loss.dtype)
    return _mean_huber((slices.loss / outside - 1)[face])


def _mean_huber(values: Tensor) -> Tensor:
    if not len(values):
        return values.sum()
    return huber_loss(values, torch.zeros_like(values), delta=ROOM) / ROOM
