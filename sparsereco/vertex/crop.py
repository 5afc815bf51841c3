"""The region around a vertex that the decomposer takes apart: its voxels and the tracks that leave it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsereco.voxels import Voxels, offsets_of, rank_in_group, rows_of

HALF = 3
"""A crop reaches this many voxels from its central one: 7 x 7 x 7."""

REACH = 11
"""Hits up to this many voxels from the centre are joined to leaving tracks, and seen by the finder once more."""

FAR = 36
"""Hits up to this many voxels from the centre tell where a leaving track passes."""

MAX_VOXELS = 28
"""Brightest voxels of a crop that the decomposer sees; what is left out is mostly crosstalk."""


@dataclass(frozen=True)
class Tracks:
    """Leaving tracks of V crops, sorted by crop and then by descending number of hits; lengths in voxels."""

    crop: Tensor  # (T,) int64
    point: Tensor  # (T, 3) where the line leaves the crop, relative to the centre of the crop
    direction: Tensor  # (T, 3) unit vector, outward
    hits: Tensor  # (T,) number of hits
    length: Tensor  # (T,) extent of the hits along the line
    light: Tensor  # (T,) summed signal per length [p.e. per voxel]
    spread: Tensor  # (T,) root mean square distance of the hits from the line
    error: Tensor  # (T, 3) standard deviation of the line at the centre of the crop, along each axis of the grid

    def __len__(self) -> int:
        return len(self.crop)


@dataclass(frozen=True)
class Crops:
    """Voxels of V crops, sorted by crop and then by descending signal; places are relative to the central voxel."""

    place: Tensor  # (N, 3) int64, -HALF to HALF
    signal: Tensor  # (N,) [p.e.]
    context: Tensor  # (N, E) the finder's embedding, zero where the finder did not look
    crop: Tensor  # (N,) int64, ascending
    centre: Tensor  # (V, 3) int64, central voxel in the detector
    tracks: Tracks

    def __len__(self) -> int:
        return len(self.centre)


def surroundings(hits: Voxels, event: Tensor, centre: Tensor, reach: int = FAR) -> Voxels:
    """The hits around each crop, as one event per crop.

    Args:
        hits: events.
        event: (V,) int64, event of each crop.
        centre: (V, 3) int64, central voxel of each crop.
        reach: hits up to this many voxels from the centre.
    """
    crop, row = rows_of(hits.offsets, event)
    near = distance(hits.coords[row], centre[crop]) <= reach
    row, crop = row[near], crop[near]
    offsets = offsets_of(torch.bincount(crop, minlength=len(centre)))
    return Voxels(hits.coords[row].contiguous(), hits.feats[row].contiguous(), offsets, hits.grid)


def within(around: Voxels, centre: Tensor, reach: int) -> Voxels:
    """Those of the hits around each crop that are up to ``reach`` voxels from its centre."""
    return around.select(distance(around.coords, centre[around.event]) <= reach)


def distance(coords: Tensor, centre: Tensor) -> Tensor:
    """Chebyshev distance (N,) between voxels (N, 3) [voxels]."""
    return (coords - centre).abs().amax(1)


def cut_crops(around: Voxels, context: Tensor, centre: Tensor, tracks: Tracks, max_voxels: int) -> Crops:
    """Cuts the crops out of their surroundings.

    Args:
        around: one event per crop, from `surroundings`.
        context: (N, E) the finder's embedding of each of its voxels.
        centre: (V, 3) central voxel of each crop.
        tracks: the leaving tracks of the crops.
        max_voxels: only the brightest so many are kept; what is left out is mostly crosstalk.
    """
    row = (distance(around.coords, centre[around.event]) <= HALF).nonzero()[:, 0]
    row = row[torch.argsort(around.signal[row], descending=True, stable=True)]
    row = row[torch.argsort(around.event[row], stable=True)]
    crop = around.event[row]
    keep = rank_in_group(crop) < max_voxels
    row, crop = row[keep], crop[keep]
    return Crops(around.coords[row].long() - centre[crop], around.signal[row], context[row], crop, centre, tracks)
