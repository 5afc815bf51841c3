"""Straight segments of deposited energy, as Geant4 and edep-sim make them, and their voxels by exact path length."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsereco.ops import path_lengths
from sparsereco.voxels import Voxels


@dataclass(frozen=True)
class Segments:
    """Segments of a batch of events."""

    start: Tensor  # (N, 3) [mm]
    end: Tensor  # (N, 3) [mm]
    energy: Tensor  # (N,) [MeV]
    event: Tensor  # (N,) int64
    n_events: int

    @property
    def dedx(self) -> Tensor:
        """(N,) energy per length [MeV/mm]; a segment shorter than 10 um counts as one of 10 um."""
        return self.energy / (self.end - self.start).norm(dim=1).clamp(min=0.01)


def voxelize(
    segments: Segments, origin: tuple[float, float, float], pitch: float, shape: tuple[int, int, int]
) -> Voxels:
    """The energy of every voxel [MeV]: each segment gives in proportion to its path in the voxel.

    What lies outside the grid is lost. A segment of zero length gives all to the voxel that it lies in.
    """
    shift = torch.tensor(origin, dtype=torch.float64)
    start, end = ((point.double() - shift) / pitch for point in (segments.start, segments.end))
    full = (end - start).norm(dim=1)
    row, coords, length = path_lengths(start, end, shape)
    share = length / full[row]
    point = (full == 0).nonzero()[:, 0]
    place = torch.floor(start[point]).long()
    inside = ((place >= 0) & (place < torch.tensor(shape))).all(1)
    point, place = point[inside], place[inside]
    row, coords = torch.cat([row, point]), torch.cat([coords.long(), place])
    energy = segments.energy[row].double() * torch.cat([share, share.new_ones(len(point))])
    return Voxels.make(coords, energy.float(), segments.event[row], segments.n_events, shape)
