"""The region around a vertex that the decomposer takes apart: its voxels and the tracks that leave it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsereco.voxels import Voxels

HALF = 3
"""A crop reaches this many voxels from its central one: 7 x 7 x 7."""


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


def neighbours(hits: Voxels, event: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All hits of the event of each crop.

    Args:
        hits: events.
        event: (V,) int64, event of each crop.
        centre: (V, 3) int64, central voxel of each crop.

    Returns:
        (N,) row of ``hits``, (N,) crop, and (N,) Chebyshev distance to the centre of the crop [voxels].
    """
    counts = hits.offsets.diff()[event]
    crop = torch.repeat_interleave(torch.arange(len(centre)), counts)
    row = torch.arange(len(crop)) + (hits.offsets[event] - (counts.cumsum(0) - counts))[crop]
    return row, crop, (hits.coords[row] - centre[crop]).abs().amax(1)


def cut_crops(hits: Voxels, context: Tensor, event: Tensor, centre: Tensor, tracks: Tracks, max_voxels: int) -> Crops:
    """Cuts the crop around each centre out of its event.

    Args:
        hits: events; context: (N, E) the finder's embedding of each hit.
        event: (V,) event of each crop; centre: (V, 3) its central voxel.
        tracks: the leaving tracks of the crops.
        max_voxels: only the brightest so many are kept; what is left out is mostly crosstalk.
    """
    row, crop, distance = neighbours(hits, event, centre)
    inside = distance <= HALF
    row, crop = row[inside], crop[inside]
    order = torch.argsort(hits.signal[row], descending=True, stable=True)
    order = order[torch.argsort(crop[order], stable=True)]
    row, crop = row[order], crop[order]
    rank = torch.arange(len(crop)) - torch.searchsorted(crop, crop)
    row, crop = row[rank < max_voxels], crop[rank < max_voxels]
    return Crops(hits.coords[row].long() - centre[crop], hits.signal[row], context[row], crop, centre, tracks)
