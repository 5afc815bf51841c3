"""The voxels that an infill decides on: dead ones along the lines through a gap, with the hits around as context.

Lengths are in voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sparsereco.infill.ends import NEAR
from sparsereco.infill.fits import cell_key, cell_of, crossing, near_pairs
from sparsereco.infill.gaps import Gaps
from sparsereco.infill.tracks import Lines
from sparsereco.voxels import Voxels, offsets_of

RADIUS = 2.3
"""Candidates lie this near to a line or its bent form."""

WIDEN = 0.12
"""A ray, which only one end holds, gets wider by this per length."""

WIDEST = 3.0
"""But no wider than this."""

MIP = 0.75
"""What a muon leaves per voxel of 3.8 mm: unit of the network's energies [MeV]."""

SLICES = (0.0, 3.0, 6.0, 9.0, NEAR)
"""Between these depths behind an end it is asked what the track loses [voxels]."""

FEATURES = 32


@dataclass(frozen=True)
class Problem:
    """Hits near gaps and candidates in them, as one set of voxels; rows that are candidates are to be decided on."""

    voxels: Voxels  # feats (N, FEATURES)
    candidate: Tensor  # (C,) int64, rows of the candidates
    gap: Tensor  # (C,) int64, gap of each candidate
    line: Tensor  # (C,) int64, line that each candidate lies nearest to
    path: Tensor  # (C,) length of that line in the voxel
    along: Tensor  # (C,) distance of the candidate from the start of that line, along it
    lines: Lines

    @property
    def event(self) -> Tensor:
        """(C,) int64, event of each candidate."""
        return self.voxels.event[self.candidate]

    def to(self, device: torch.device | str) -> Problem:
        """A copy on another device."""
        moved = (value.to(device) for value in (self.candidate, self.gap, self.line, self.path, self.along))
        candidate, gap, line, path, along = moved
        return Problem(self.voxels.to(device), candidate, gap, line, path, along, self.lines)

    @property
    def coords(self) -> Tensor:
        """(C, 3) int32, index of each candidate."""
        return self.voxels.coords[self.candidate]


@dataclass(frozen=True)
class Bend:
    """The smooth curve through both ends of a line along their own directions; for a ray the ray itself."""

    start: Tensor  # (L, 3)
    end: Tensor  # (L, 3)
    leave: Tensor  # (L, 3) tangent at the start, times the length
    arrive: Tensor  # (L, 3) tangent at the end, times the length

    def at(self, line: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Place and unit tangent (N, 3) on curves at (N,) fractions of their length; straight beyond the ends."""
        inside = u.clamp(0, 1)[:, None]
        p, q, a, b = self.start[line], self.end[line], self.leave[line], self.arrive[line]
        # Cubic Hermite basis and its derivative.
        u2, u3 = inside**2, inside**3
        place = (2 * u3 - 3 * u2 + 1) * p + (u3 - 2 * u2 + inside) * a + (3 * u2 - 2 * u3) * q + (u3 - u2) * b
        slope = 6 * (u2 - inside) * (p - q) + (3 * u2 - 4 * inside + 1) * a + (3 * u2 - 2 * inside) * b
        return place + (u[:, None] - inside) * slope, normalize(slope, dim=1)


def bend(lines: Lines, position: Tensor, direction: Tensor) -> Bend:
    """The curves of lines between ends at (E, 3) positions with (E, 3) directions into the gap."""
    first, second = lines.first, lines.second.clamp(min=0)
    linked, length = lines.linked[:, None], lines.length[:, None]
    start = torch.where(linked, position[first], lines.point)
    end = torch.where(linked, position[second], lines.point + length * lines.direction)
    chord = (end - start).norm(dim=1, keepdim=True)
    leave = torch.where(linked, direction[first] * chord, lines.direction * length)
    arrive = torch.where(linked, -direction[second] * chord, lines.direction * length)
    # A direction that does not lead across is worth less than the chord: one of few hits, or of another track.
    straight = end - start
    for tangent in (leave, arrive):
        odd = (tangent * straight).sum(1) < 0.7 * chord[:, 0] ** 2
        tangent[odd] = straight[odd]
    return Bend(start, end, leave, arrive)


def follow_tracks(hits: Voxels, gaps: Gaps, lines: Lines, curve: Bend) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Dead voxels along lines and curves.

    Returns:
        Event (C,), index (C, 3), gap (C,) and line (C,) of each, one row per voxel and line.
    """
    counts = (2 * lines.length.clamp(min=0)).ceil().long() + 3
    line = torch.arange(len(lines)).repeat_interleave(counts)
    along = (torch.arange(len(line)) - (counts.cumsum(0) - counts)[line] - 1) / 2.0
    straight = lines.point[line] + along[:, None] * lines.direction[line]
    bent, _ = curve.at(line, along / lines.length.clamp(min=1e-3)[line])
    radius = RADIUS + torch.where(
        lines.linked[line], torch.zeros_like(along), (WIDEN * along).clamp(0, WIDEST - RADIUS)
    )
    line, along, radius, place = line.repeat(2), along.repeat(2), radius.repeat(2), torch.cat([straight, bent])
    cell = torch.floor(place).long()
    # The same voxel comes up several times; once, with the largest radius, is enough.
    shape = torch.tensor(hits.grid)
    inside = ((cell >= 0) & (cell < shape)).all(1)
    line, cell, radius = line[inside], cell[inside], radius[inside]
    key, group = torch.unique(cell_key(line, cell, shape), return_inverse=True)
    widest = torch.zeros(len(key)).scatter_reduce(0, group, radius, "amax")
    reach = int(np.ceil(WIDEST))
    steps = torch.cartesian_prod(*[torch.arange(-reach, reach + 1)] * 3)
    size = steps.float().norm(dim=1)
    steps, size = steps[size < WIDEST], size[size < WIDEST]
    order = torch.argsort(size)
    steps, size = steps[order], size[order]
    number = torch.searchsorted(size, widest)
    owner = torch.arange(len(key)).repeat_interleave(number)
    step = torch.arange(len(owner)) - (number.cumsum(0) - number)[owner]
    line, cell = cell_of(key, shape)
    line, cell = line[owner], cell[owner] + steps[step]
    inside = ((cell >= 0) & (cell < shape)).all(1)
    line, cell = cell_of(torch.unique(cell_key(line[inside], cell[inside], shape)), shape)
    gap = torch.from_numpy(gaps.of(cell.numpy()))
    dead = gap >= 0
    return lines.event[line[dead]], cell[dead], gap[dead], line[dead]


def make_problem(hits: Voxels, gaps: Gaps, lines: Lines, curve: Bend, hits_of_end: Tensor) -> Problem:
    """Candidates that follow the tracks, and the hits within `NEAR` of an end, with their features.

    Args:
        hits: one feature, the energy [MeV].
        gaps: the dead regions.
        lines: ways through them.
        curve: their bent form.
        hits_of_end: (E,) number of hits behind each end.
    """
    event, cell, gap, line = follow_tracks(hits, gaps, lines, curve)
    shape = torch.tensor(hits.grid)
    place = cell.float() + 0.5
    away = _distance(place, line, lines, curve)
    # Each voxel belongs to the line that passes nearest.
    key = cell_key(event, cell, shape)
    order = torch.argsort(away)
    order = order[torch.argsort(key[order], stable=True)]
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = key[order][1:] != key[order][:-1]
    best = order[first]
    event, cell, gap, line = event[best], cell[best], gap[best], line[best]
    crowd = torch.bincount(torch.cumsum(first, 0) - 1, minlength=len(best)).float() if len(order) else torch.zeros(0)

    near, hit_line = _context(hits, lines, curve)
    hit_event, hit_cell, energy = hits.event[near], hits.coords[near].long(), hits.signal[near]
    event, cell = torch.cat([event, hit_event]), torch.cat([cell, hit_cell])
    owner = torch.cat([line, hit_line])
    energy = torch.cat([torch.zeros(len(line)), energy])
    crowd = torch.cat([crowd, torch.ones(len(near))])
    order = torch.argsort(cell_key(event, cell, shape))  # no voxel is both: candidates are dead, hits are not
    feats = _features(cell, energy, owner, crowd, lines, curve, gaps, hits_of_end, loss_behind(hits, lines))
    offsets = offsets_of(torch.bincount(event, minlength=len(hits)))
    voxels = Voxels(cell[order].int().contiguous(), feats[order].contiguous(), offsets, hits.grid)
    row = torch.empty_like(order)
    row[order] = torch.arange(len(order))
    candidate, by_row = torch.sort(row[: len(line)])
    place = cell[: len(line)].float() + 0.5
    path = crossing(place, lines.point[line], lines.direction[line])
    along = ((place - lines.point[line]) * lines.direction[line]).sum(1)
    return Problem(voxels, candidate, gap[by_row], line[by_row], path[by_row], along[by_row], lines)


def loss_behind(hits: Voxels, lines: Lines) -> Tensor:
    """(L, 4) energy per length in slices of the way to the start of each line, the nearest first [MeV/voxel].

    A track that is about to stop loses more and more; where it has only just started, the far slices are empty.
    """
    place, energy = hits.coords[lines.row].float() + 0.5, hits.signal[lines.row]
    depth = -((place - lines.point[lines.line]) * lines.direction[lines.line]).sum(1)
    # The foremost hit may lie a little before the start; what is further ahead belongs to the other end.
    here = depth > -1.5
    edges = torch.tensor(SLICES)
    n = len(edges) - 1
    slot = n * lines.line + torch.bucketize(depth, edges[1:-1], right=True)
    total = torch.zeros(n * len(lines)).index_add(0, slot[here], energy[here])
    return total.view(len(lines), n) / edges.diff()


def _context(hits: Voxels, lines: Lines, curve: Bend) -> tuple[Tensor, Tensor]:
    """Hits within `NEAR` of where lines start or end: row (H,), ascending, and the line that passes nearest (H,)."""
    linked = lines.linked.nonzero()[:, 0]
    owner = torch.cat([torch.arange(len(lines)), linked])
    point = torch.cat([curve.start, curve.end[linked]])
    pair, row = near_pairs(point, lines.event[owner], hits, NEAR)
    line = owner[pair]
    away = _distance(hits.coords[row].float() + 0.5, line, lines, curve)
    order = torch.argsort(away)
    order = order[torch.argsort(row[order], stable=True)]
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = row[order][1:] != row[order][:-1]
    return row[order][first], line[order][first]


def _distance(place: Tensor, line: Tensor, lines: Lines, curve: Bend) -> Tensor:
    """(N,) distance of points from the nearer of a line and its curve."""
    off = place - lines.point[line]
    along = (off * lines.direction[line]).sum(1)
    straight = (off - along[:, None] * lines.direction[line]).norm(dim=1)
    bent, _ = curve.at(line, along / lines.length.clamp(min=1e-3)[line])
    return torch.minimum(straight, (place - bent).norm(dim=1))


def _features(
    cell: Tensor,
    energy: Tensor,
    line: Tensor,
    crowd: Tensor,
    lines: Lines,
    curve: Bend,
    gaps: Gaps,
    hits_of_end: Tensor,
    behind: Tensor,
) -> Tensor:
    """(N, FEATURES): what was measured in a voxel, and what its line says about it."""
    place = cell.float() + 0.5
    point, direction = lines.point[line], lines.direction[line]
    off = place - point
    along = (off * direction).sum(1)
    aside = off - along[:, None] * direction
    fraction = along / lines.length.clamp(min=1e-3)[line]
    bent, tangent = curve.at(line, fraction)
    off_curve = place - bent
    off_curve = off_curve - (off_curve * tangent).sum(1, keepdim=True) * tangent
    on_line, on_curve = crossing(place, point, direction), crossing(place, bent, tangent)
    on_axis = crossing(place, lines.axis[0][line], lines.axis[1][line])
    shift = (lines.axis[0] - lines.point)[line]
    loss = (lines.energy[line] / MIP).clamp(max=20.0)
    gap_width = torch.from_numpy(gaps.width[lines.gap.numpy()].astype(np.float32))[line]
    kink = normalize(curve.leave, dim=1), normalize(curve.arrive, dim=1)
    second = torch.where(lines.linked, hits_of_end[lines.second.clamp(min=0)], 0)
    dead = (energy == 0).float()
    unit = energy / MIP
    columns = [
        dead,
        torch.log1p(unit),
        unit.clamp(max=8),
        (1 - dead) * (unit - on_line * loss).clamp(-4, 8),
        (1 - dead) * (unit - on_curve * loss).clamp(-4, 8),
        on_line,
        on_line * loss,
        on_curve,
        on_curve * loss,
        on_axis,
        (shift - (shift * direction).sum(1, keepdim=True) * direction).norm(dim=1).clamp(max=2),
        *(aside / 2).clamp(-4, 4).unbind(1),
        *(off_curve / 2).clamp(-4, 4).unbind(1),
        aside.norm(dim=1).clamp(max=8) / 2,
        off_curve.norm(dim=1).clamp(max=8) / 2,
        torch.log(loss.clamp(min=0.05)),
        lines.linked.float()[line],
        (along / 10).clamp(-3, 4),
        torch.where(lines.linked[line], (along - lines.length[line]) / 10, -torch.ones_like(along)).clamp(-4, 3),
        1 - (kink[0] * kink[1]).sum(1)[line],
        gap_width / 10,
        hits_of_end[lines.first][line].clamp(max=30) / 20,
        second[line].clamp(max=30) / 20,
        torch.log(crowd),
        *torch.log1p(behind / MIP)[line].unbind(1),
    ]
    return torch.stack(columns, 1)
