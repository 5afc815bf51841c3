"""`Voxels`: the one data type. A batch of sparse events on a grid, sorted, unique and checked once, when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor


class VoxelError(ValueError):
    """Voxels that no sparse tensor can be made of; the message names the row, the event and the offending value."""


@dataclass(frozen=True)
class Voxels:
    """Active voxels of B events, sorted by event and then by coordinate; no voxel occurs twice in an event.

    Make one with `Voxels.make`, which checks its input; the constructor itself trusts the caller.
    """

    coords: Tensor  # (N, D) int32 contiguous, voxel index
    feats: Tensor  # (N, C) float; channel 0 is the signal [p.e.] where not said otherwise
    offsets: Tensor  # (B + 1,) int64; event b owns rows offsets[b] to offsets[b + 1]
    grid: tuple[int, ...]  # (D,) number of voxels per axis

    @classmethod
    def make(cls, coords: Tensor, feats: Tensor, event: Tensor, n_events: int, grid: tuple[int, ...]) -> Voxels:
        """Checks, sorts and merges: voxels given more than once are summed.

        Args:
            coords: (N, D) integer voxel index; D is 2 or 3.
            feats: (N, C) or (N,) float, finite and not negative [p.e.].
            event: (N,) integer, which event a row belongs to, 0 to n_events - 1.
            n_events: number of events; events without a row stay as empty ones.
            grid: (D,) number of voxels per axis.

        Raises:
            VoxelError: rows that do not match, a coordinate outside the grid, an event outside the batch, a value that
                is NaN, infinite or negative, or a batch of 2^63 voxels or more, empty ones included.
        """
        feats = feats[:, None] if feats.ndim == 1 else feats
        _check(coords, feats, event, n_events, grid)
        coords, event = coords.long(), event.long()
        key = event
        for axis, size in enumerate(grid):
            key = key * size + coords[:, axis]
        key, order = torch.sort(key, stable=True)
        first = torch.ones_like(key, dtype=torch.bool)
        first[1:] = key[1:] != key[:-1]
        coords, event = coords[order][first], event[order][first]
        if bool(first.all()):
            feats = feats[order]
        else:
            feats = feats.new_zeros(len(coords), feats.shape[1]).index_add_(0, first.cumsum(0) - 1, feats[order])
        offsets = offsets_of(torch.bincount(event, minlength=n_events))
        return cls(coords.int().contiguous(), feats.contiguous(), offsets, grid)

    def __len__(self) -> int:
        """Number of events."""
        return len(self.offsets) - 1

    @property
    def event(self) -> Tensor:
        """(N,) int64, the event of each row."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.offsets.device), self.offsets.diff())

    @property
    def signal(self) -> Tensor:
        """(N,) channel 0 of the features [p.e.]."""
        return self.feats[:, 0]

    def select(self, keep: Tensor) -> Voxels:
        """The voxels where ``keep`` ((N,) bool) holds; every event stays, if only as an empty one."""
        offsets = offsets_of(torch.bincount(self.event[keep], minlength=len(self)))
        return Voxels(self.coords[keep].contiguous(), self.feats[keep].contiguous(), offsets, self.grid)

    def with_feats(self, feats: Tensor) -> Voxels:
        """The same voxels with other features, (N, C)."""
        if len(feats) != len(self.coords):
            raise VoxelError(f"expected {len(self.coords)} rows of features, one per voxel; got {len(feats)}")
        return replace(self, feats=feats)

    def to(self, device: torch.device | str) -> Voxels:
        """A copy on another device."""
        return Voxels(self.coords.to(device), self.feats.to(device), self.offsets.to(device), self.grid)


def offsets_of(counts: Tensor) -> Tensor:
    """(N + 1,) where each of N groups of rows starts, from their sizes."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _check(coords: Tensor, feats: Tensor, event: Tensor, n_events: int, grid: tuple[int, ...]) -> None:
    if coords.ndim != 2 or coords.shape[1] != len(grid) or len(grid) not in (2, 3):
        raise VoxelError(f"expected coords of shape (N, {len(grid)}) for the grid {grid}, got {tuple(coords.shape)}")
    if coords.is_floating_point() or coords.is_complex():
        raise VoxelError(f"expected integer coords (voxel index), got {coords.dtype}")
    if not len(coords) == len(feats) == len(event):
        raise VoxelError(
            f"expected as many rows in coords, feats and event; got {len(coords)}, {len(feats)} and {len(event)}"
        )
    if not len(coords):
        return
    if n_events * math.prod(grid) >= 2**63:
        raise VoxelError(f"{n_events} events of a grid {grid} have more voxels than 2^63, too many to number them")
    sizes = torch.tensor(grid, device=coords.device)
    _refuse(((coords < 0) | (coords >= sizes)).any(1), coords, event, f"lies outside the grid {grid}")
    _refuse((event < 0) | (event >= n_events), event, event, f"is no event of a batch of {n_events}")
    _refuse(~torch.isfinite(feats).all(1), feats, event, "is not finite")
    _refuse((feats < 0).any(1), feats, event, "is negative")


def rank_in_group(group: Tensor) -> Tensor:
    """Place of each row in its group, (N,) int64 from 0, for an ascending (N,) group index."""
    return torch.arange(len(group), device=group.device) - torch.searchsorted(group, group)


def rows_of(offsets: Tensor, events: Tensor) -> tuple[Tensor, Tensor]:
    """All rows of some events, one after the other; an event may be named several times.

    Args:
        offsets: (B + 1,) int64, as of `Voxels`.
        events: (E,) int64, which events.

    Returns:
        (R,) int64 place in ``events``, ascending, and (R,) int64 row.
    """
    counts = offsets.diff()[events]
    owner = torch.repeat_interleave(torch.arange(len(events), device=events.device), counts)
    first = offsets[events] - (counts.cumsum(0) - counts)
    return owner, torch.arange(len(owner), device=events.device) + first[owner]


def touching(voxels: Voxels) -> tuple[Tensor, Tensor]:
    """Pairs of 3D voxels of an event that touch, by a corner at least: (M,) row and (M,) later row, each pair once."""
    n = len(voxels.coords)
    coords = voxels.coords.long() + 1  # a guard row on each side, so that a step never wraps into the next line
    sizes = [size + 2 for size in voxels.grid]
    key = ((voxels.event * sizes[0] + coords[:, 0]) * sizes[1] + coords[:, 1]) * sizes[2] + coords[:, 2]
    steps = [(x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1) if (x, y, z) > (0, 0, 0)]
    offsets = torch.tensor([(x * sizes[1] + y) * sizes[2] + z for x, y, z in steps], device=key.device)
    wanted = key + offsets[:, None]  # (13, N)
    found = torch.searchsorted(key, wanted).clamp(max=max(n - 1, 0))
    near = key[found] == wanted
    return near.nonzero()[:, 1], found[near]


def connected_pieces(voxels: Voxels) -> tuple[Tensor, int]:
    """Connected pieces of 3D events over the 26 neighbours: (N,) piece of each voxel, and how many there are."""
    n = len(voxels.coords)
    a, b = (row.cpu().numpy() for row in touching(voxels))
    n_pieces, piece = (
        connected_components(coo_array(([True] * len(a), (a, b)), shape=(n, n)), directed=False) if n else (0, [])
    )
    return torch.as_tensor(piece, dtype=torch.int64, device=voxels.coords.device), n_pieces


def _refuse(bad: Tensor, values: Tensor, event: Tensor, why: str) -> None:
    if bool(bad.any()):
        row = int(bad.int().argmax())
        raise VoxelError(f"voxel {values[row].tolist()} in row {row} (event {int(event[row])}) {why}")
