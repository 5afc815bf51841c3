"""What the infill has to beat: nothing, straight lines between the faces of a gap, and the track mirrored into it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsereco.infill.ends import Ends
from sparsereco.infill.fits import crossing
from sparsereco.infill.gaps import Gaps
from sparsereco.infill.tracks import Lines
from sparsereco.ops import path_lengths
from sparsereco.voxels import Voxels

SHORTEST = 0.1
"""A line fills a voxel that it crosses for at least this length, what a muon needs for the threshold [voxels]."""


@dataclass(frozen=True)
class Filled:
    """Filled voxels of a batch of events; none is listed twice."""

    event: Tensor  # (N,) int64
    coords: Tensor  # (N, 3) int64
    energy: Tensor  # (N,) [MeV]
    gap: Tensor  # (N,) int64


def straight_lines(ends: Ends, lines: Lines, hits: Voxels, gaps: Gaps, lone: bool) -> Filled:
    """Charge-weighted straight lines through the hits within 12 voxels on either side of a gap.

    Args:
        ends: of tracks.
        lines: through the gaps; the lines are their charge-weighted axes, not the fitted ones.
        hits: one feature, the energy [MeV].
        gaps: the dead regions.
        lone: also follow ends that have no partner, as far as the gap goes.
    """
    point, direction = lines.axis
    place, energy = hits.coords[lines.row].float() + 0.5, hits.signal[lines.row]
    path = crossing(place, point[lines.line], direction[lines.line])
    sums = torch.zeros(len(lines), 2).index_add_(0, lines.line, torch.stack([energy, path], 1))
    loss = sums[:, 0] / sums[:, 1].clamp(min=0.5)
    used = torch.ones_like(lines.linked) if lone else lines.linked
    line = used.nonzero()[:, 0]
    # From face to face: the ends' places on the axis.
    other = torch.where(
        lines.linked[:, None],
        ends.position[lines.second.clamp(min=0)],
        ends.position[lines.first] + lines.length[:, None] * direction,
    )
    span = [((end - point) * direction).sum(1, keepdim=True) for end in (ends.position[lines.first], other)]
    start, end = (point + one * direction for one in span)
    row, coords, length = path_lengths(start[line].double(), end[line].double(), hits.grid)
    kept = length >= SHORTEST
    line, coords, length = line[row[kept]], coords[kept].long(), length[kept].float()
    return _merged(lines.event[line], coords, length * loss[line], gaps, hits)


def reflection(ends: Ends, lines: Lines, hits: Voxels, gaps: Gaps) -> Filled:
    """The hits of a track within 12 voxels of its end, mirrored through it; where two ends meet, each fills half."""
    place = 2 * ends.position[ends.end] - (hits.coords[ends.row].float() + 0.5)
    along = ((place - ends.position[ends.end]) * ends.direction[ends.end]).sum(1)
    reach = torch.full((len(ends.event),), float("inf"))
    half = lines.length[lines.linked] / 2
    reach[lines.first[lines.linked]], reach[lines.second[lines.linked]] = half, half
    kept = along <= reach[ends.end]
    return _merged(ends.event[ends.end][kept], torch.floor(place[kept]).long(), hits.signal[ends.row][kept], gaps, hits)


def nothing() -> Filled:
    """Gaps left as they are."""
    none = torch.zeros(0, dtype=torch.int64)
    return Filled(none, none.reshape(0, 3), torch.zeros(0), none)


def _merged(event: Tensor, coords: Tensor, energy: Tensor, gaps: Gaps, hits: Voxels) -> Filled:
    """Keeps the dead voxels; of several in one place, the one with the most energy."""
    gap = torch.from_numpy(gaps.of(coords.numpy()))
    event, coords, energy, gap = (value[gap >= 0] for value in (event, coords, energy, gap))
    sizes = hits.grid
    key = ((event * sizes[0] + coords[:, 0]) * sizes[1] + coords[:, 1]) * sizes[2] + coords[:, 2]
    order = torch.argsort(energy, descending=True, stable=True)
    order = order[torch.argsort(key[order], stable=True)]
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = key[order][1:] != key[order][:-1]
    best = order[first]
    return Filled(event[best], coords[best], energy[best], gap[best])
