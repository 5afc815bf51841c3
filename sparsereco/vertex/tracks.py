"""Leaving tracks: every track that leaves the 7x7x7 crop around a vertex, found from the hits around the crop alone.

Hits in a shell around the crop are joined to connected pieces; a piece that touches the crop is a leaving track. A
straight line through it is the start of a fit to the light in and around the crop (`lines`). All vertices of a batch
are treated at once.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sparsereco.vertex.crop import HALF, REACH, Tracks, distance
from sparsereco.vertex.lines import fit_lines
from sparsereco.voxels import Voxels, connected_pieces, rank_in_group


def find_tracks(around: Voxels, centre: Tensor, min_pe: float = 10.0, max_tracks: int = 4) -> Tracks:
    """Finds the leaving tracks of every crop.

    Args:
        around: one event per crop, from `crop.surroundings`; channel 0 is the signal [p.e.].
        centre: (V, 3) int64, central voxel of each crop.
        min_pe: weaker hits (crosstalk, noise) are not joined to tracks [p.e.].
        max_tracks: only so many per crop, those with most hits.
    """
    beyond = distance(around.coords, centre[around.event])
    keep = (beyond > HALF) & (beyond <= REACH) & (around.signal >= min_pe) & (around.signal > 0)
    shell, beyond = around.select(keep), beyond[keep].long()
    place = shell.coords.float() - centre[shell.event].float()  # (N, 3)
    piece, n_pieces = connected_pieces(shell)
    touches = torch.full((n_pieces,), REACH + 1).scatter_reduce_(0, piece, beyond, "amin") == HALF + 1

    keep = touches[piece]
    rank = torch.cumsum(touches, 0) - 1
    piece, place, owner, signal = rank[piece[keep]], place[keep], shell.event[keep], shell.signal[keep]
    n = int(touches.sum())
    crop = torch.zeros(n, dtype=torch.int64).index_copy_(0, piece, owner)
    tracks = _fit(crop, piece, place, signal, n)

    order = torch.argsort(tracks.crop * 100_000 - tracks.hits.long(), stable=True)
    order = order[rank_in_group(tracks.crop[order]) < max_tracks]
    found = Tracks(**{name: value[order] for name, value in vars(tracks).items()})
    if not len(found):
        return found
    start = found.point, found.direction, found.light
    point, direction, light, error = fit_lines(around, centre, found.crop, *start, min_pe)
    return replace(found, point=_leaving_point(point, direction), direction=direction, light=light, error=error)


def _fit(crop: Tensor, piece: Tensor, place: Tensor, signal: Tensor, n: int) -> Tracks:
    """Straight line through each piece: principal axis of the signal, refitted with less weight for hits off it."""
    weight = signal.clamp(max=400.0)  # the stopping end of a track must not pull the line
    for _ in range(3):
        mean = _mean(place, weight, piece, n)
        offset = place - mean[piece]
        # The width of a voxel keeps the axis of a single hit defined: it points away from the crop.
        outward = torch.nn.functional.normalize(mean, dim=1)
        spread = _mean((offset[:, :, None] * offset[:, None, :]).flatten(1), weight, piece, n).view(n, 3, 3)
        spread = spread + 0.02 * outward[:, :, None] * outward[:, None, :]
        direction = torch.linalg.eigh(spread).eigenvectors[:, :, 2] if n else mean
        along = (offset * direction[piece]).sum(1)
        off_line = (offset - along[:, None] * direction[piece]).square().sum(1)
        weight = signal.clamp(max=400.0) / (1 + off_line)
    direction = direction * torch.where((direction * mean).sum(1) < 0, -1.0, 1.0)[:, None]
    along = (offset * direction[piece]).sum(1)

    hits = torch.bincount(piece, minlength=n).float()
    ends = [
        along.new_full((n,), sign * -1e9).scatter_reduce_(0, piece, along, how)
        for sign, how in ((1, "amax"), (-1, "amin"))
    ]
    length = ends[0] - ends[1] + 1
    light = torch.zeros(n).index_add_(0, piece, signal) / length
    rms = _mean(off_line[:, None], torch.ones_like(signal), piece, n)[:, 0].sqrt()
    unknown = torch.ones(n, 3)  # until the line is fitted to the light
    return Tracks(crop, _leaving_point(mean, direction), direction, hits, length, light, rms, unknown)


def _mean(values: Tensor, weight: Tensor, piece: Tensor, n: int) -> Tensor:
    total = torch.zeros(n).index_add_(0, piece, weight)
    return torch.zeros(n, values.shape[1]).index_add_(0, piece, values * weight[:, None]) / total[:, None]


def _leaving_point(mean: Tensor, direction: Tensor) -> Tensor:
    """Where each line leaves the crop.

    For a line that misses the crop, its nearest approach to the centre, moved onto the crop.
    """
    half = HALF + 0.5
    planes = torch.stack(
        [(-half - mean) / direction, (half - mean) / direction]
    )  # (2, T, 3) path to either face, per axis
    planes = planes.nan_to_num(0.0, 1e9, -1e9)
    enter, leave = planes.amin(0).amax(1), planes.amax(0).amin(1)
    nearest = -(mean * direction).sum(1)
    path = torch.where(enter <= leave, leave, nearest)
    return (mean + path[:, None] * direction).clamp(-half, half)
