"""Which ends of tracks belong together, and the lines that lead through gaps from one to the other.

All lengths are in voxels; voxel i spans i to i + 1. Everything is done for all events of a batch at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sparsereco.infill.ends import FACE, NEAR, TUBE, Ends
from sparsereco.infill.fits import BESIDE, loss_on, near_pairs, principal_axis, refined, with_empty
from sparsereco.infill.gaps import Gaps
from sparsereco.voxels import Voxels, offsets_of, rows_of

LONGEST = 60.0
"""An end without partner is followed no further than this."""

BEHIND = 10
"""So far behind two ends their line is looked for hits."""

BACKED = 0.7
"""Ends that point elsewhere are joined where at least this share of the way behind both has hits."""


@dataclass(frozen=True)
class Lines:
    """Ways through gaps: from one end to another (links), or from one end into the gap (rays)."""

    event: Tensor  # (L,) int64
    gap: Tensor  # (L,) int64
    first: Tensor  # (L,) int64, the end that it starts from
    second: Tensor  # (L,) int64, the end that it leads to; -1 for a ray
    point: Tensor  # (L, 3) where it starts
    direction: Tensor  # (L, 3) unit vector
    length: Tensor  # (L,) from the start to the other end, or out of the gap
    energy: Tensor  # (L,) energy per length of the hits on it [MeV/voxel]
    axis: tuple[Tensor, Tensor]  # (L, 3) point and (L, 3) direction of the charge-weighted axis, before the fit
    line: Tensor  # (M,) int64: hit ``row[m]`` was used for line ``line[m]``
    row: Tensor  # (M,) int64

    @property
    def linked(self) -> Tensor:
        """(L,) bool, whether it joins two ends."""
        return self.second >= 0

    def __len__(self) -> int:
        return len(self.event)


def find_lines(ends: Ends, hits: Voxels, gaps: Gaps) -> Lines:
    """Joins ends that point at each other, and follows the others into the gap."""
    first, second, backed = _links(ends, hits, gaps)
    n = len(first)
    lone = torch.ones(len(ends.event), dtype=torch.bool)
    lone[first], lone[second] = False, False
    # One or two hits have no direction: they are followed along the normal, not far.
    ray = lone.nonzero()[:, 0]
    of_end = torch.full((len(ends.event),), -1)
    of_end[first], of_end[second] = torch.arange(n), torch.arange(n)
    of_end[ray] = n + torch.arange(len(ray))
    line, row = of_end[ends.end], ends.row
    # Where the ends pointed elsewhere, what counts are the hits on the line between them.
    own = ~torch.isin(line, backed)
    between, more = _hits_between(ends, first[backed], second[backed], hits)
    line, row = torch.cat([line[own], backed[between]]), torch.cat([row[own], more])
    order = torch.argsort(line, stable=True)
    line, row = line[order], row[order]
    place, energy = hits.coords[row].float() + 0.5, hits.signal[row]

    total = n + len(ray)
    start = torch.cat([ends.position[first], ends.position[ray]])
    toward = torch.cat([normalize(ends.position[second] - ends.position[first], dim=1), ends.direction[ray]])
    linked = line < n
    middle, axis = principal_axis(line[linked], place[linked], energy[linked], total)
    axis = torch.where((axis * toward).sum(1, keepdim=True) < 0, -axis, axis)
    loss = loss_on(line[linked], place[linked], energy[linked], middle, axis)
    of, where, found = with_empty(line[linked], row[linked], hits, gaps)
    lever = torch.minimum(*((where - ends.position[end][of]).norm(dim=1) for end in (first, second)))
    fitted = refined(middle, axis, loss, of, where, found, lever)
    point, direction = (
        torch.where((torch.arange(total) < n)[:, None], *pair) for pair in zip(fitted, (start, toward), strict=True)
    )
    along = ((start - point) * direction).sum(1, keepdim=True)
    point = point + along * direction
    span = ((ends.position[second] - point[:n]) * direction[:n]).sum(1)
    plain = torch.cat([middle[:n], start[n:]]), torch.cat([axis[:n], toward[n:]])
    event, gap = torch.cat([ends.event[first], ends.event[ray]]), torch.cat([ends.gap[first], ends.gap[ray]])
    length = torch.cat([span, _way_out(point[n:], direction[n:], gaps)])
    length[n:][ends.hits[ray] < 3] = length[n:][ends.hits[ray] < 3].clamp(max=3.0)
    loss = loss_on(line, place, energy, point, direction)
    joined = torch.cat([second, torch.full((len(ray),), -1)])
    return Lines(event, gap, torch.cat([first, ray]), joined, point, direction, length, loss, plain, line, row)


def _links(ends: Ends, hits: Voxels, gaps: Gaps) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of ends that point at each other through dead voxels, the best ones first; each end in one pair at most.

    A delta ray at a face turns the direction of an end: two ends also belong together where the line between them goes
    on through hits on both sides.

    Returns:
        First (K,) and second (K,) end of each pair, and the numbers of the pairs that do not point at each other.
    """
    a, b = rows_of(offsets_of(torch.bincount(ends.event, minlength=1)), ends.event)
    a, b = a[a < b], b[a < b]
    step = ends.position[b] - ends.position[a]
    length = step.norm(dim=1)
    # Wider gaps than `LONGEST` along a normal exist only as slanted ones.
    near = (length < 3 * LONGEST) & (length > 1e-3)
    a, b, step, length = a[near], b[near], step[near], length[near]
    middle = torch.floor((ends.position[a] + ends.position[b]) / 2).long().numpy()
    dead = torch.from_numpy(gaps.of(middle) >= 0)
    a, b, step, length = a[dead], b[dead], step[dead], length[dead]
    ahead = (step * ends.direction[a]).sum(1), -(step * ends.direction[b]).sum(1)
    aside = [torch.linalg.cross(step, ends.direction[one]).norm(dim=1) for one in (a, b)]
    known = [ends.hits[one] >= 3 for one in (a, b)]
    # The side step that scattering and the error of a direction can make.
    room = 1.5 + 0.35 * length
    cost = torch.zeros(len(a))
    pointed = torch.ones(len(a), dtype=torch.bool)
    for forward, side, sure in zip(ahead, aside, known, strict=True):
        pointed &= ((forward > 0.3 * length) & (side < room)) | ~sure
        cost += torch.where(sure, side / room, torch.full_like(side, 0.7))
    other = ~pointed
    backing = _backing(ends, hits, a[other], b[other])
    cost[other] = torch.where(backing >= BACKED, 1.5 - backing, torch.inf)
    cost += length / LONGEST
    order = torch.argsort(cost)
    taken: set[int] = set()
    pairs = []
    for k, one, two in zip(*(value[order].tolist() for value in (torch.arange(len(a)), a, b)), strict=True):
        if one not in taken and two not in taken and cost[k] < torch.inf:
            taken |= {one, two}
            pairs.append(k)
    pair = torch.tensor(sorted(pairs, key=lambda k: int(a[k])), dtype=torch.int64)
    return a[pair], b[pair], other[pair].nonzero()[:, 0]


def _hits_between(ends: Ends, first: Tensor, second: Tensor, hits: Voxels) -> tuple[Tensor, Tensor]:
    """Hits behind two ends and near the line through both: number (M,) of the pair, and row (M,)."""
    start = ends.position[torch.cat([first, second])]
    ahead = normalize(ends.position[second] - ends.position[first], dim=1)
    ahead = torch.cat([ahead, -ahead])
    near, row = near_pairs(start, ends.event[torch.cat([first, second])], hits, NEAR)
    offset = hits.coords[row].float() + 0.5 - start[near]
    behind = (offset * ahead[near]).sum(1) < 1.5
    on = behind & (torch.linalg.cross(offset, ahead[near]).norm(dim=1) < TUBE)
    return near[on] % max(len(first), 1), row[on]


def _backing(ends: Ends, hits: Voxels, a: Tensor, b: Tensor) -> Tensor:
    """(P,) share of the way behind two ends, along the line through both, with hits on it; the lesser of the two."""
    near, row = near_pairs(ends.position, ends.event, hits, NEAR)
    offsets = offsets_of(torch.bincount(near, minlength=len(ends.event)))
    shares = []
    for one, other in ((a, b), (b, a)):
        pair, of = rows_of(offsets, one)
        back = normalize(ends.position[one] - ends.position[other], dim=1)[pair]
        off = hits.coords[row[of]].float() + 0.5 - ends.position[one][pair]
        depth = (off * back).sum(1)
        on = ((off - depth[:, None] * back).norm(dim=1) < BESIDE) & (depth >= 0) & (depth < BEHIND)
        seen = torch.zeros(len(one), BEHIND)
        seen[pair[on], depth[on].long()] = 1.0
        shares.append(seen.mean(1))
    return torch.minimum(*shares)


def _way_out(point: Tensor, direction: Tensor, gaps: Gaps) -> Tensor:
    """How far each ray (R, 3) goes until it has left the dead voxels, in steps of half a voxel.

    It starts at hits, and where a track runs along the face these lie up to `NEAR` before the first dead voxel.
    """
    steps = torch.arange(0, 2 * int(LONGEST)) / 2
    where = point[:, None] + steps[:, None] * direction[:, None]
    dead = torch.from_numpy(gaps.of(torch.floor(where).long().flatten(0, 1).numpy()) >= 0).view(len(point), len(steps))
    entry = torch.where((dead & (steps < NEAR)).any(1), dead.int().argmax(1), 0)
    inside = dead | (steps <= FACE + 1) | (torch.arange(len(steps)) < entry[:, None])
    left = torch.where(inside.all(1), len(steps), inside.int().argmin(1))
    return left / 2.0
