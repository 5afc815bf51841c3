"""Where tracks run into gaps: ends at the faces, with the direction of the hits behind them.

All lengths are in voxels; voxel i spans i to i + 1. Everything is done for all events of a batch at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sparsereco.infill.fits import BESIDE, loss_on, mean, near_pairs, principal_axis, refined, sums, with_empty
from sparsereco.infill.gaps import Gaps
from sparsereco.voxels import Voxels, connected_pieces, offsets_of, rows_of

FACE = 2
"""A hit this near to a dead voxel, along an axis, lies at the face of the gap."""

NEAR = 12.0
"""Hits this near to an end tell where the track goes."""

TUBE = 2.0
"""Hits further from the line do not belong to the track."""

ROUNDS = 3
"""So many tracks are told apart where their hits at a face hang together."""


@dataclass(frozen=True)
class Ends:
    """Ends of tracks at the faces of gaps, sorted by event."""

    event: Tensor  # (E,) int64
    gap: Tensor  # (E,) int64
    normal: Tensor  # (E, 3) across the face, into the gap
    position: Tensor  # (E, 3) where the track meets the face: on its line
    direction: Tensor  # (E, 3) unit vector into the gap
    hits: Tensor  # (E,) int64, number of hits that the line was fitted to
    end: Tensor  # (M,) int64: row ``row[m]`` of the hits belongs to end ``end[m]``
    row: Tensor  # (M,) int64


def faces(hits: Voxels, gaps: Gaps) -> tuple[Tensor, Tensor]:
    """The gap next to each hit, (N,) or -1, and the way to it: (N, 3) unit vector along an axis, or 0."""
    coords = hits.coords.numpy().astype(np.int64)
    gap = np.full(len(coords), -1)
    normal = np.zeros((len(coords), 3), np.float32)
    for step in range(FACE, 0, -1):  # what is nearer overwrites what is further
        for axis in range(3):
            for sign in (-1, 1):
                move = np.zeros(3, np.int64)
                move[axis] = sign * step
                there = gaps.of(coords + move)
                found = there >= 0
                gap[found] = there[found]
                normal[found] = np.sign(move)
    return torch.from_numpy(gap), torch.from_numpy(normal)


def find_ends(hits: Voxels, gaps: Gaps) -> Ends:
    """Ends of tracks: connected hits at the face of a gap, and the line through the hits of the track behind them.

    Tracks that meet at the face are told apart one by one: what lies off the line of the first is an end of another.
    """
    gap, normal = faces(hits, gaps)
    own, n_own = connected_pieces(hits)
    short = torch.bincount(own, minlength=n_own)[own] < 4
    # Hits at faces that no end explains yet, and hits that lie on the line of none.
    left, fresh = gap >= 0, torch.ones(len(own), dtype=torch.bool)
    rounds = []
    for _ in range(ROUNDS):
        ends, explained = _ends_of(hits, gaps, gap, normal, left, fresh, own, short)
        rounds.append(ends)
        left, fresh = left.clone(), fresh.clone()
        left[explained], fresh[ends.row] = False, False
    names = ("event", "gap", "normal", "position", "direction", "hits")
    columns = {name: torch.cat([getattr(ends, name) for ends in rounds]) for name in names}
    order = torch.argsort(columns["event"], stable=True)
    place = torch.argsort(order)
    before = np.cumsum([0, *(len(ends.event) for ends in rounds)]).tolist()
    end = place[torch.cat([ends.end + n for ends, n in zip(rounds, before[:-1], strict=True)])]
    row = torch.cat([ends.row for ends in rounds])
    by_end = torch.argsort(end, stable=True)
    return Ends(**{name: column[order] for name, column in columns.items()}, end=end[by_end], row=row[by_end])


def _ends_of(
    hits: Voxels, gaps: Gaps, gap: Tensor, normal: Tensor, left: Tensor, fresh: Tensor, own: Tensor, short: Tensor
) -> tuple[Ends, Tensor]:
    """One end per connected piece of hits at faces, and the rows of those of them that lie on its line.

    Args:
        hits: of which.
        gaps: the dead regions.
        gap: (N,) and normal: (N, 3) of the hits at faces.
        left: (N,) bool, the hits at faces to find ends of.
        fresh: (N,) bool, hits of no other end's line; with those that are left they tell the direction.
        own: (N,) connected piece of each hit.
        short: (N,) bool, whether that is of a few hits only.
    """
    at_face = left.nonzero()[:, 0]
    piece, n = connected_pieces(hits.select(left))
    # Pieces are numbered in the order of their first hits, so they are sorted by event.
    first = torch.full((n,), len(piece)).scatter_reduce(0, piece, torch.arange(len(piece)), "amin")
    event, gap = hits.event[at_face][first], gap[at_face][first]
    across = normalize(sums(normal[at_face], piece, n), dim=1)
    energy = hits.signal[at_face]
    place = hits.coords[at_face].float() + 0.5
    centroid = sums(place * energy[:, None], piece, n) / sums(energy[:, None], piece, n)

    end, row = near_pairs(centroid, event, hits, NEAR)
    usable = fresh | left
    end, row = end[usable[row]], row[usable[row]]
    place, energy = hits.coords[row].float() + 0.5, hits.signal[row]
    offset = place - centroid[end]
    behind = (offset * across[end]).sum(1) < 1.5
    end, row, place, energy, offset = (value[behind] for value in (end, row, place, energy, offset))
    # Another track may be as near: the first direction is that of the hits that hang together with the end.
    same = own[row] == own[at_face][first][end]
    close = (offset.norm(dim=1) < 0.6 * NEAR) & (same | short[at_face][first][end])
    position, direction = centroid, _straightest(end[close], place[close], centroid)
    for _ in range(2):
        away = torch.linalg.cross(place - position[end], direction[end]).norm(dim=1)
        kept = away < TUBE
        position, direction = principal_axis(end[kept], place[kept], energy[kept], n)
    loss = loss_on(end[kept], place[kept], energy[kept], position, direction)
    of, where, found = with_empty(end[kept], row[kept], hits, gaps)
    position, direction = refined(position, direction, loss, of, where, found, (where - centroid[of]).norm(dim=1))
    # Into the gap: along the face's normal, or where the track runs along the face, away from its hits.
    kept = torch.linalg.cross(place - position[end], direction[end]).norm(dim=1) < TUBE
    forward = 2 * (direction * across).sum(1) - mean((offset * direction[end]).sum(1), end, n) / NEAR
    direction = torch.where(forward[:, None] < 0, -direction, direction)
    # The foremost hit at the face: a track may run along it for long.
    place = hits.coords[at_face].float() + 0.5
    along = ((place - position[piece]) * direction[piece]).sum(1)
    away = torch.linalg.cross(place - position[piece], direction[piece]).norm(dim=1)
    nearest = torch.full((n,), torch.inf).scatter_reduce(0, piece, away, "amin")
    on = (away < TUBE) | (away == nearest[piece])
    front = torch.full((n,), -torch.inf).scatter_reduce(0, piece[on], along[on], "amax")
    counts = torch.bincount(end[kept], minlength=n)
    ends = Ends(event, gap, across, position + front[:, None] * direction, direction, counts, end[kept], row[kept])
    return ends, at_face[on]


def _straightest(end: Tensor, place: Tensor, centre: Tensor) -> Tensor:
    """(E, 3) direction of the line through each end that most hits lie on, the nearer ones counting more.

    Through the centre of an end and each of its hits there is a line: unlike an axis of all hits, the best of them does
    not turn where a delta ray or another track leaves the same place.

    Args:
        end: (M,) int64, ascending: the end of each hit.
        place: (M, 3) centres of the hits.
        centre: (E, 3) of the ends.
    """
    n = len(centre)
    line, other = rows_of(offsets_of(torch.bincount(end, minlength=n)), end)
    offset = place - centre[end]
    way = normalize(offset, dim=1)
    depth = (offset[other] * way[line]).sum(1)
    on = ((offset[other] - depth[:, None] * way[line]).norm(dim=1) < BESIDE) & (depth > -1)
    score = torch.zeros(len(end)).index_add(0, line, on * torch.exp(-depth.clamp(min=0) / _FADE))
    # Hits in and beside the centre say nothing of a direction, unless there are no others.
    score = torch.where(offset.norm(dim=1) > _SURE, score, 1e-3 * score)
    best = torch.zeros(n).scatter_reduce(0, end, score, "amax")
    chosen = torch.full((n,), len(end)).scatter_reduce(
        0, end, torch.where(score == best[end], torch.arange(len(end)), len(end)), "amin"
    )
    upwards = torch.tensor([[0.0, 0.0, 1.0]])
    return torch.cat([way, upwards])[chosen]


_FADE = 8.0
"""A hit this far from an end counts e times less for its first direction [voxels]."""

_SURE = 3.0
"""The first direction is the way to a hit at least this far from the end, where there is one [voxels]."""
