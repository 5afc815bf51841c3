"""The light beside leaving tracks, and the light yield and crosstalk of a detector that follow from it.

A track that leaves its vertex lights the voxels on its line; what leaks from them into their neighbours is crosstalk.
How much light stands on the line and how much beside it tells both light yield and crosstalk, without any truth: the
response is looked for that gives simulated events, which are reconstructed alike, the same light on and beside their
tracks. What delta rays, thresholds and errors of the lines do to either is the same on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsereco import ops
from sparsereco.detector import Response
from sparsereco.vertex.crop import HALF, REACH, Tracks, distance
from sparsereco.voxels import Voxels

_ON = 0.4
"""A voxel with at least this path of the line is on the track [voxels]."""

_BESIDE = 0.85
"""A neighbour whose centre is at least this far from the line is not touched by it, even if the line is a bit off."""

_CLIP = 0.15
"""Light beside a track counts up to this share of the light per length: delta rays leave more."""

_STEP = 0.1, 0.01
"""Steps of the numerical derivatives: of the light yield, relative, and of the crosstalk."""


@dataclass(frozen=True)
class TrackLight:
    """Light of T leaving tracks."""

    on: Tensor  # (T,) per length [p.e. per voxel]
    beside: Tensor  # (T,) in a voxel next to the track, mean [p.e.]; NaN where there is none to look at

    @classmethod
    def joined(cls, parts: Iterable[TrackLight]) -> TrackLight:
        """All tracks of several sets."""
        parts = [cls(torch.zeros(0), torch.zeros(0)), *parts]
        return cls(torch.cat([part.on for part in parts]), torch.cat([part.beside for part in parts]))

    def medians(self) -> Tensor:
        """(2,) over the tracks: on the line, and beside it."""
        return torch.stack([self.on.nanmedian(), self.beside.nanmedian()])

    def errors(self) -> Tensor:
        """(2,) statistical errors of `medians`, as of normal distributions as wide as the middle 68 %."""
        found = []
        for values in (self.on, self.beside):
            values = values[values.isfinite()]
            low, high = values.quantile(torch.tensor([0.1587, 0.8413])).tolist()
            found.append(math.sqrt(math.pi / 2 / len(values)) * (high - low) / 2)
        return torch.tensor(found)


@dataclass(frozen=True)
class ResponseFit:
    """Light yield and crosstalk that explain what was measured."""

    response: Response
    light_yield_err: float
    """[p.e./MeV]"""
    crosstalk_err: float
    tracks: int
    """Leaving tracks that were measured."""


def track_light(around: Voxels, centre: Tensor, tracks: Tracks) -> TrackLight:
    """Light on and beside leaving tracks outside their crops.

    Args:
        around: one event per crop, hits `crop.within` ``REACH``; channel 0 is the signal [p.e.].
        centre: (V, 3) int64, central voxel of each crop.
        tracks: the leaving tracks.
    """
    side = 2 * REACH + 1
    start = tracks.point.double() + REACH + 0.5
    track, coords, path = ops.path_lengths(start, start + side * tracks.direction.double(), (side,) * 3)
    place = coords.long() - REACH
    outside = distance(place, torch.zeros_like(place)) > HALF
    on = outside & (path > _ON)
    steps = torch.cat([torch.eye(3), -torch.eye(3)]).long()
    beside = (place[on][:, None] + steps).flatten(0, 1)
    owner = track[on].repeat_interleave(6)
    arm = beside - tracks.point[owner]
    along = (arm * tracks.direction[owner]).sum(1, keepdim=True)
    far = (arm - along * tracks.direction[owner]).norm(dim=1)
    ring = distance(beside, torch.zeros_like(beside))
    keep = (far > _BESIDE) & (ring > HALF) & (ring <= REACH)
    owner, beside = torch.cat([owner[keep, None], beside[keep]], 1).unique(dim=0).split([1, 3], 1)
    owner = owner[:, 0]
    signal = _signal(around, centre, tracks.crop[owner], beside)
    signal = torch.minimum(signal, _CLIP * tracks.light[owner])
    n = len(tracks)
    total, count = torch.zeros(n).index_add_(0, owner, signal), torch.bincount(owner, minlength=n)
    return TrackLight(tracks.light, total / count)


def _signal(around: Voxels, centre: Tensor, crop: Tensor, place: Tensor) -> Tensor:
    """(N,) light of voxels at ``place`` (N, 3) in their crops; 0 where nothing was read out."""

    def key(crop: Tensor, place: Tensor) -> Tensor:
        x, y, z = (place + REACH).unbind(1)
        side = 2 * REACH + 1
        return ((crop * side + x) * side + y) * side + z

    known, order = key(around.event, around.coords.long() - centre[around.event]).sort()
    if not len(known):
        return torch.zeros(len(place))
    wanted = key(crop, place)
    row = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
    return torch.where(known[row] == wanted, around.signal[order[row]], 0.0)


def fit_response(
    measured: TrackLight, simulate: Callable[[Response], TrackLight], start: Response, rounds: int = 3
) -> ResponseFit:
    """Light yield and crosstalk for which simulated tracks look like measured ones.

    Newton's method with numerical derivatives.

    Args:
        measured: of the events in question.
        simulate: makes and reconstructs events with a response; with the same random numbers in every call.
        start: what is changed; threshold, Birks' constant and noise stay as they are.
        rounds: of three simulations each.
    """
    wanted, response = measured.medians(), start
    for _ in range(rounds):
        now = simulate(response)
        more = replace(response, light_yield=response.light_yield * (1 + _STEP[0]))
        leaking = replace(response, crosstalk=min(response.crosstalk + _STEP[1], 1 / 6))
        step = torch.tensor([more.light_yield - response.light_yield, leaking.crosstalk - response.crosstalk])
        slopes = torch.stack([simulate(one).medians() - now.medians() for one in (more, leaking)], 1) / step
        move = torch.linalg.solve(slopes, wanted - now.medians())
        response = replace(
            response,
            light_yield=max(response.light_yield + float(move[0]), 0.2 * start.light_yield),
            crosstalk=min(max(response.crosstalk + float(move[1]), 0.0), 0.16),
        )
    spread = torch.linalg.inv(slopes) @ torch.hypot(measured.errors(), now.errors()).diag()
    light_yield_err, crosstalk_err = spread.norm(dim=1).tolist()
    return ResponseFit(response, light_yield_err, crosstalk_err, len(measured.on))
