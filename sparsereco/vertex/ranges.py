"""The kinetic energy of leaving tracks that stop in the detector, from their range.

A muon of 300 MeV goes 1.3 m in plastic: most leave the detector, and nothing tells their energy. One that stops is
known by its length, better than by anything else. It is followed from where it leaves the crop to the end of its
hits; that it stopped there, and did not leave, decay or pass a gap, shows in the light of its last voxels, which a
stopping particle leaves twice as much of.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsereco.kinematics import MUON, energy_of_range
from sparsereco.vertex.crop import HALF, Tracks, distance, surroundings
from sparsereco.voxels import Voxels, connected_pieces, rank_in_group, rows_of

UNKNOWN = -1.0
"""Energy of a track that does not stop in the detector, or cannot be followed to its end [MeV]."""

_START = 2.5
"""A track begins at most this far from where its line leaves the crop [voxels]."""

_STEP = 4.0
"""A track is followed in steps of this length: straight but for scattering, longer than its hits are wide [voxels]."""

_WALL = 2
"""A track that ends in this many voxels from a wall may have left."""

_END = 3.0
"""The light of the last part of a track, of this length, is looked at [voxels]."""

_RISE = 1.4
"""The last part of a stopping track is at least this many times as bright as its beginning."""

_WIDTH = 2.5
"""Hits per length of a single track at most: with more it is a shower, or two tracks [1/voxel]."""


def stopping_energy(hits: Voxels, event: Tensor, centre: Tensor, tracks: Tracks, pitch: float, min_pe: float) -> Tensor:
    """Kinetic energy of leaving tracks where they leave their crops, taken for muons.

    Args:
        hits: events; channel 0 is the signal [p.e.].
        event: (V,) int64, event of each crop; centre: (V, 3) int64, its central voxel.
        tracks: the leaving tracks of the crops.
        pitch: edge of a voxel [mm].
        min_pe: weaker hits (crosstalk, noise) are not joined to tracks [p.e.].

    Returns:
        (T,) energies [MeV], `UNKNOWN` for tracks that do not stop in the detector.
    """
    energy = torch.full((len(tracks),), UNKNOWN)
    if not len(tracks):
        return energy
    around = surroundings(hits, event, centre, reach=max(hits.grid))
    outside = (distance(around.coords, centre[around.event]) > HALF) & (around.signal >= min_pe)
    shell = around.select(outside & (around.signal > 0))
    piece, n_pieces = connected_pieces(shell)

    # Every track with all hits of its crop; then only those of the piece that begins where the track does.
    track, row = rows_of(shell.offsets, tracks.crop)
    place = shell.coords[row].float() - centre[tracks.crop[track]].float()
    far = (place - tracks.point[track]).norm(dim=1)
    nearest = torch.full((len(tracks),), torch.inf).scatter_reduce_(0, track, far, "amin")
    first = torch.full((len(tracks),), -1).scatter_reduce_(
        0, track, torch.where(far == nearest[track], row, -1), "amax", include_self=False
    )
    begins = (nearest < _START) & (first >= 0)
    own = torch.where(begins, piece[first], -1)
    claims = torch.bincount(own[begins], minlength=n_pieces)
    alone = begins & (claims[own] == 1)  # a piece that two tracks begin with has no end of its own
    keep = alone[track] & (piece[row] == own[track])
    track, row, place, far = track[keep], row[keep], place[keep], far[keep]

    length, last = _followed(tracks, track, place, far)
    hits_of = torch.bincount(track, minlength=len(tracks))
    at_end = far > last[track] - _END
    light = torch.zeros(len(tracks)).index_add_(0, track[at_end], shell.signal[row[at_end]])
    is_last = far == last[track]
    end = torch.zeros(len(tracks), 3).index_copy_(0, track[is_last], shell.coords[row[is_last]].float())
    inside = ((end >= _WALL) & (end < torch.tensor(hits.grid) - _WALL)).all(1)
    stops = alone & inside & (light > _RISE * _END * tracks.light) & (hits_of < _WIDTH * length)
    known = energy_of_range((length * pitch).double().cpu().numpy(), MUON)
    return torch.where(stops, torch.as_tensor(known, dtype=energy.dtype, device=energy.device), energy)


def _followed(tracks: Tracks, track: Tensor, place: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
    """Length of each track along the middle of its hits, and the distance of its last hit from its beginning (T,).

    Args:
        tracks: the tracks; track: (P,) track of each hit, ascending.
        place: (P, 3) the hit's place relative to the centre of the crop; far: (P,) its distance from the track's point.
    """
    n = len(tracks)
    last = torch.zeros(n).scatter_reduce_(0, track, far, "amax")
    # The last step may be a short one: it is cut where the hits end.
    steps = int((last / _STEP).max()) + 1 if n else 1
    cell = track * steps + (far / _STEP).long()
    count = torch.bincount(cell, minlength=n * steps).float()
    middle = torch.zeros(n * steps, 3).index_add_(0, cell, place) / count.clamp(min=1)[:, None]
    there = count.nonzero()[:, 0]
    owner, node = there // steps, middle[there]
    before = torch.where((rank_in_group(owner) == 0)[:, None], tracks.point[owner], node.roll(1, 0))
    length = torch.zeros(n).index_add_(0, owner, (node - before).norm(dim=1))
    final = torch.ones(len(owner), dtype=torch.bool)
    final[:-1] = owner[1:] != owner[:-1]
    reached = torch.zeros(n).index_copy_(0, owner[final], (node[final] - tracks.point[owner[final]]).norm(dim=1))
    return length + (last - reached), last
