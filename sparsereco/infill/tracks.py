"""Where tracks run into gaps, which of their ends belong together, and the lines that lead from one to the other.

All lengths are in voxels; voxel i spans i to i + 1. Everything is done for all events of a batch at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import normalize

from sparsereco.infill.gaps import Gaps
from sparsereco.voxels import Voxels, connected_pieces

FACE = 2
"""A hit this near to a dead voxel, along an axis, lies at the face of the gap."""

NEAR = 12.0
"""Hits this near to an end tell where the track goes."""

TUBE = 2.0
"""Hits further from the line do not belong to the track."""

ROUNDS = 3
"""So many tracks are told apart where their hits at a face hang together."""

BEHIND = 10
"""So far behind two ends their line is looked for hits [voxels],"""

BESIDE = 1.2
"""this near to it [voxels],"""

BACKED = 0.7
"""and so much of the way must have some."""

LONGEST = 60.0
"""An end without partner is followed no further than this."""


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
    left, fresh = gap >= 0, torch.ones(len(own), dtype=torch.bool)
    rounds = []
    for _ in range(ROUNDS):
        ends, at_face, piece = _ends_of(hits, gap, normal, left, fresh, own, short)
        rounds.append(ends)
        place = hits.coords[at_face].float() + 0.5
        away = torch.linalg.cross(place - ends.position[piece], ends.direction[piece]).norm(dim=1)
        nearest = torch.full((len(ends.event),), torch.inf).scatter_reduce(0, piece, away, "amin")
        left = left.clone()
        left[at_face[(away < TUBE) | (away == nearest[piece])]] = False
        fresh = fresh.clone()
        fresh[ends.row] = False
        if not left.any():
            break
    order = torch.argsort(torch.cat([ends.event for ends in rounds]), stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    first = np.cumsum([0, *(len(ends.event) for ends in rounds)])
    end = place[torch.cat([ends.end + int(k) for ends, k in zip(rounds, first, strict=False)])]
    row = torch.cat([ends.row for ends in rounds])
    by_end = torch.argsort(end, stable=True)
    names = ("event", "gap", "normal", "position", "direction", "hits")
    columns = [torch.cat([getattr(ends, name) for ends in rounds])[order] for name in names]
    return Ends(*columns, end[by_end], row[by_end])


def _ends_of(
    hits: Voxels, gap: Tensor, normal: Tensor, left: Tensor, fresh: Tensor, own: Tensor, short: Tensor
) -> tuple[Ends, Tensor, Tensor]:
    """One end per connected piece of the hits that are ``left`` at faces; rows of these hits, and their pieces."""
    at_face = left.nonzero()[:, 0]
    piece, n = connected_pieces(hits.select(left))
    # Pieces are numbered in the order of their first hits, so they are sorted by event.
    first = torch.full((n,), len(piece)).scatter_reduce(0, piece, torch.arange(len(piece)), "amin")
    event, gap = hits.event[at_face][first], gap[at_face][first]
    across = _sums(normal[at_face], piece, n)
    across = normalize(across, dim=1)
    energy = hits.signal[at_face]
    place = hits.coords[at_face].float() + 0.5
    centroid = _sums(place * energy[:, None], piece, n) / _sums(energy[:, None], piece, n)

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
        position, direction = _axis(end[kept], place[kept], energy[kept], n)
    loss = _loss(end[kept], place[kept], energy[kept], position, direction)
    position, direction = refined(position, direction, loss, end[kept], place[kept], energy[kept])
    # Into the gap: along the face's normal, or where the track runs along the face, away from its hits.
    kept = torch.linalg.cross(place - position[end], direction[end]).norm(dim=1) < TUBE
    forward = 2 * (direction * across).sum(1) - _mean((offset * direction[end]).sum(1), end, n) / NEAR
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
    return ends, at_face, piece


def _straightest(end: Tensor, place: Tensor, centre: Tensor) -> Tensor:
    """(E, 3) direction of the line through each end that most hits lie on, the nearer ones counting more.

    Through the centre of an end and each of its hits there is a line: unlike an axis of all hits, the best of them does
    not turn where a delta ray or another track leaves the same place.

    Args:
        end: (M,) int64, ascending: the end of each hit.
        place: (M, 3) centres of the hits.
        centre: (E, 3) of the ends.
    """
    n, counts = len(centre), torch.bincount(end, minlength=len(centre))
    first = counts.cumsum(0) - counts
    line = torch.arange(len(end)).repeat_interleave(counts[end])
    other = torch.arange(len(line)) - (counts[end].cumsum(0) - counts[end])[line] + first[end[line]]
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


def near_pairs(point: Tensor, event: Tensor, hits: Voxels, radius: float) -> tuple[Tensor, Tensor]:
    """All pairs of a point and a hit of the same event within a radius: (M,) point, ascending, and (M,) row."""
    if not len(point) or not len(hits.coords):
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    apart = 4.0 * (max(hits.grid) + radius)  # events lie side by side, further than anything reaches
    places = [
        np.concatenate([xyz.numpy().astype(np.float64) + np.array([apart, 0, 0]) * one.numpy()[:, None]], 1)
        for xyz, one in ((point, event), (hits.coords.float() + 0.5, hits.event))
    ]
    found = cKDTree(places[0]).sparse_distance_matrix(cKDTree(places[1]), radius, output_type="ndarray")
    a, b = torch.from_numpy(found["i"].astype(np.int64)), torch.from_numpy(found["j"].astype(np.int64))
    order = torch.argsort(a * (len(hits.coords) + 1) + b)
    return a[order], b[order]


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
    if backed.any():
        # Their ends pointed elsewhere: what counts are the hits on the line between them.
        through = torch.zeros(n + len(ray), dtype=torch.bool)
        through[:n] = backed
        chord = normalize(ends.position[second] - ends.position[first], dim=1)
        owner = torch.arange(n)[backed].repeat(2)
        start = torch.cat([ends.position[first[backed]], ends.position[second[backed]]])
        ahead = torch.cat([chord[backed], -chord[backed]])
        near, extra = near_pairs(start, ends.event[first[owner]], hits, NEAR)
        off = hits.coords[extra].float() + 0.5 - start[near]
        depth = (off * ahead[near]).sum(1)
        on = (depth < 1.5) & (torch.linalg.cross(off, ahead[near]).norm(dim=1) < TUBE)
        line = torch.cat([line[~through[line]], owner[near[on]]])
        row = torch.cat([row[~through[of_end[ends.end]]], extra[on]])
    order = torch.argsort(line, stable=True)
    line, row = line[order], row[order]
    place, energy = hits.coords[row].float() + 0.5, hits.signal[row]

    total = n + len(ray)
    start = torch.cat([ends.position[first], ends.position[ray]])
    toward = torch.cat([normalize(ends.position[second] - ends.position[first], dim=1), ends.direction[ray]])
    linked = line < n
    middle, axis = _axis(line[linked], place[linked], energy[linked], total)
    axis = torch.where((axis * toward).sum(1, keepdim=True) < 0, -axis, axis)
    loss = _loss(line[linked], place[linked], energy[linked], middle, axis)
    fitted = refined(middle, axis, loss, line[linked], place[linked], energy[linked])
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
    loss = _loss(line, place, energy, point, direction)
    joined = torch.cat([second, torch.full((len(ray),), -1)])
    return Lines(event, gap, torch.cat([first, ray]), joined, point, direction, length, loss, plain, line, row)


def refined(
    point: Tensor, direction: Tensor, loss: Tensor, line: Tensor, place: Tensor, energy: Tensor
) -> tuple[Tensor, Tensor]:
    """Lines fitted by path length: the energy of a voxel is in proportion to the line's path in it.

    A line through voxel centres knows where a track passes to a third of a voxel; where the track changes from one row
    of voxels to the next, and how it shares its energy there, tells it better. Gauss-Newton steps of two shifts and two
    tilts, with slopes over a finite step, so that a voxel beside the line has one, and weights that bound outliers.

    Args:
        point: (L, 3) the point that the line is moved and tilted about.
        direction: (L, 3) unit vectors.
        loss: (L,) energy per length [MeV/voxel].
        line: (M,) int64 line of each hit; place: (M, 3) centre of its voxel; energy: (M,) [MeV].

    Returns:
        Point and direction of each line.
    """
    n, unit = len(point), energy / loss[line]
    start_point, start_direction = point, direction
    for _ in range(_FIT_STEPS):
        first, second = _across(direction)
        reach = ((place - point[line]) * direction[line]).sum(1, keepdim=True)
        path = crossing(place, point[line], direction[line])
        residual = unit - path
        slopes = []
        for side in (first, second):
            shift = _SLOPE_STEP * side[line]
            up, down = (crossing(place, point[line] + s * shift, direction[line]) for s in (1, -1))
            slopes.append((up - down) / (2 * _SLOPE_STEP))
        slope = torch.stack([slopes[0], slopes[1], reach[:, 0] * slopes[0], reach[:, 0] * slopes[1]], 1)
        variance = _STRAGGLING[0] + _STRAGGLING[1] * path.clamp(min=0)
        weight = 1 / (variance + residual**2 / 9)  # Cauchy: what lies beyond 3 sigma counts less and less
        curvature = _sums((slope[:, :, None] * slope[:, None, :]).flatten(1) * weight[:, None], line, n).view(n, 4, 4)
        gradient = _sums(slope * (residual * weight)[:, None], line, n)
        # A prior of half a voxel and a tenth of a radian keeps what the hits say nothing about.
        damping = torch.diag(torch.tensor([4.0, 4.0, 100.0, 100.0]))
        step = torch.linalg.solve(curvature + damping, gradient).clamp(-0.5, 0.5)
        point = point + step[:, :1] * first + step[:, 1:2] * second
        direction = normalize(direction + step[:, 2:3] * first + step[:, 3:] * second, dim=1)
    good = ((point - start_point).norm(dim=1) < 1.5) & ((direction * start_direction).sum(1) > 0.9)
    return torch.where(good[:, None], point, start_point), torch.where(good[:, None], direction, start_direction)


_FIT_STEPS = 4
_SLOPE_STEP = 0.2
_STRAGGLING = 0.015, 0.08
"""Variance of a voxel's energy in units of the energy per length: constant, and per path."""


def _across(direction: Tensor) -> tuple[Tensor, Tensor]:
    """Two unit vectors across each of (L, 3) directions and each other."""
    helper = torch.nn.functional.one_hot(direction.abs().argmin(1), 3).to(direction.dtype)
    first = normalize(torch.linalg.cross(direction, helper), dim=1)
    return first, torch.linalg.cross(direction, first)


def crossing(centre: Tensor, point: Tensor, direction: Tensor) -> Tensor:
    """(N,) length of straight lines in the unit voxels around (N, 3) centres, by the slab method."""
    slope = torch.where(direction.abs() < 1e-4, torch.full_like(direction, 1e-4), direction)
    a, b = (centre - 0.5 - point) / slope, (centre + 0.5 - point) / slope
    return (torch.maximum(a, b).amin(1) - torch.minimum(a, b).amax(1)).clamp(min=0)


def _links(ends: Ends, hits: Voxels, gaps: Gaps) -> tuple[Tensor, Tensor]:
    """Pairs of ends that point at each other through dead voxels, the best ones first; each end in one pair at most.

    A delta ray at a face turns the direction of an end: two ends also point at each other where the line between them
    goes on through hits on both sides.
    """
    counts = torch.bincount(ends.event, minlength=1)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    others = counts[ends.event]
    a = torch.arange(len(ends.event)).repeat_interleave(others)
    b = torch.arange(len(a)) - (others.cumsum(0) - others)[a] + offsets[ends.event[a]]
    a, b = a[a < b], b[a < b]
    step = ends.position[b] - ends.position[a]
    length = step.norm(dim=1)
    # Wider gaps than `LONGEST` along a normal exist only as slanted ones.
    near = (length < 3 * LONGEST) & (length > 1e-3)
    a, b, step, length = a[near], b[near], step[near], length[near]
    middle = torch.floor((ends.position[a] + ends.position[b]) / 2).long().numpy()
    ahead = (step * ends.direction[a]).sum(1), -(step * ends.direction[b]).sum(1)
    aside = [torch.linalg.cross(step, ends.direction[one]).norm(dim=1) for one in (a, b)]
    known = [ends.hits[one] >= 3 for one in (a, b)]
    # The side step that scattering and the error of a direction can make.
    room = 1.5 + 0.35 * length
    cost = torch.zeros(len(a))
    fits = torch.from_numpy(gaps.of(middle) >= 0)
    for forward, side, sure in zip(ahead, aside, known, strict=True):
        fits &= ((forward > 0.3 * length) & (side < room)) | ~sure
        cost += torch.where(sure, side / room, torch.full_like(side, 0.7))
    backed = _backing(ends, hits, a, b)
    through = torch.from_numpy(gaps.of(middle) >= 0) & (backed >= BACKED) & ~fits
    cost = torch.where(through, 1.5 - backed, cost)
    fits |= through
    cost += length / LONGEST
    order = torch.argsort(cost)
    order = order[fits[order]]
    taken, pairs = set(), []
    for one, other in zip(a[order].tolist(), b[order].tolist(), strict=True):
        if one not in taken and other not in taken:
            taken |= {one, other}
            pairs.append((one, other))
    pairs.sort()
    joined = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    n = len(ends.event)
    known = torch.sort((a * n + b)[through])[0]
    wanted = joined[:, 0] * n + joined[:, 1]
    return joined[:, 0], joined[:, 1], torch.isin(wanted, known)


def _backing(ends: Ends, hits: Voxels, a: Tensor, b: Tensor) -> Tensor:
    """(P,) share of the way behind two ends, along the line through both, with hits on it; the lesser of the two."""
    near, row = near_pairs(ends.position, ends.event, hits, NEAR)
    counts = torch.bincount(near, minlength=len(ends.event))
    offsets = counts.cumsum(0) - counts
    shares = []
    for one, other in ((a, b), (b, a)):
        number = counts[one]
        pair = torch.arange(len(one)).repeat_interleave(number)
        of = torch.arange(len(pair)) - (number.cumsum(0) - number)[pair] + offsets[one[pair]]
        back = normalize(ends.position[one] - ends.position[other], dim=1)[pair]
        off = hits.coords[row[of]].float() + 0.5 - ends.position[one][pair]
        depth = (off * back).sum(1)
        on = ((off - depth[:, None] * back).norm(dim=1) < BESIDE) & (depth >= 0) & (depth < BEHIND)
        seen = torch.zeros(len(one), BEHIND)
        seen[pair[on], depth[on].long()] = 1.0
        shares.append(seen.mean(1))
    return torch.minimum(*shares)


def _loss(line: Tensor, place: Tensor, energy: Tensor, point: Tensor, direction: Tensor) -> Tensor:
    """(L,) energy per length of the hits on each line [MeV/voxel]."""
    path, n = crossing(place, point[line], direction[line]), len(point)
    return (_sums(energy[:, None], line, n) / _sums(path[:, None], line, n).clamp(min=0.5))[:, 0].clamp(min=0.05)


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


def _axis(group: Tensor, place: Tensor, weight: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Weighted mean and principal axis of each of ``n`` groups of points; (0, 0, 1) where there is no axis."""
    total = _sums(weight[:, None], group, n).clamp(min=1e-9)
    mean = _sums(place * weight[:, None], group, n) / total
    off = place - mean[group]
    spread = _sums((off[:, :, None] * off[:, None, :]).flatten(1) * weight[:, None], group, n) / total
    # A little roundness along z keeps the axes of single points defined.
    spread = spread.view(n, 3, 3) + torch.diag(torch.tensor([0.0, 0.0, 1e-5]))
    return mean, torch.linalg.eigh(spread)[1][:, :, 2]


def _sums(values: Tensor, group: Tensor, n: int) -> Tensor:
    return values.new_zeros(n, values.shape[1]).index_add_(0, group, values)


def _mean(values: Tensor, group: Tensor, n: int) -> Tensor:
    return _sums(values[:, None], group, n)[:, 0] / torch.bincount(group, minlength=n).clamp(min=1)
