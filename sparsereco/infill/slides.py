"""The form of the LArDRIP slides: a dense block of voxels in the gap, one value per voxel, two squared errors.

Kept for comparison (docs/infill.md): the block costs with the volume of the gap, and plain softmax weights of the two
errors run away to one trivial answer. `TwoPartLoss` shows that, and what cures it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from sparsereco.infill.candidates import MIP
from sparsereco.infill.gaps import Gaps
from sparsereco.nn.sparse import SparseUNet
from sparsereco.voxels import Voxels, offsets_of

MARGIN = 12
"""Hits further than this from a gap do not stretch its block [voxels]."""


@dataclass(frozen=True)
class BlockConfig:
    """What the network and its loss look like."""

    channels: tuple[int, ...] = (16, 32, 48)
    """Width of each level of the U-Net, from full resolution downwards."""
    start: Literal["zero", "random", "minus one"] = "zero"
    """What the voxels of the block start with."""
    weights: Literal["softmax", "barrier", "fixed"] = "barrier"
    """Of the two errors: softmax as in the slides, softmax held by a barrier, or a half each."""
    barrier: float = 0.5
    """Strength of the barrier."""


class BlockFiller(nn.Module):
    """Energy of every voxel of a dense block [MIP]."""

    def __init__(self, settings: BlockConfig) -> None:
        super().__init__()
        self.settings = settings
        self.unet = SparseUNet(3, 2, settings.channels)
        self.head = nn.Linear(settings.channels[0], 1)
        self.loss = TwoPartLoss(settings.weights, settings.barrier)

    def forward(
        self, hits: Voxels, gaps: Gaps, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Event (C,), index (C, 3) and value (C,) [MIP] of every voxel of the blocks.

        Args:
            hits: one feature, the energy [MeV].
            gaps: the dead regions.
            generator: of random start values.
        """
        event, cell = dense_block(hits, gaps)
        n = len(event)
        if self.settings.start == "random":
            value = torch.rand(n, generator=generator)
        else:
            value = torch.full((n,), 0.0 if self.settings.start == "zero" else -1.0)
        block = torch.stack([value, torch.ones(n)], 1)
        seen = torch.stack([hits.signal / MIP, torch.zeros(len(hits.coords))], 1)
        # Start values may be negative, which `Voxels.make` refuses for energies.
        key = [_key(e, c.long(), hits.grid) for e, c in ((event, cell), (hits.event, hits.coords))]
        order = torch.argsort(torch.cat(key))
        voxels = Voxels(
            torch.cat([cell.int(), hits.coords])[order].contiguous(),
            torch.cat([block, seen])[order].contiguous(),
            offsets_of(torch.bincount(torch.cat([event, hits.event]), minlength=len(hits))),
            hits.grid,
        )
        out = self.head(self.unet(voxels))[:, 0]
        row = torch.empty_like(order)
        row[order] = torch.arange(len(order))
        return event, cell, out[row[:n]]


class TwoPartLoss(nn.Module):
    """Squared error on track voxels and on the others, each a mean over its own voxels, with learnable weights.

    The gradient of sum w_i L_i with w = softmax(theta) is w_i (L_i - mean L): descent takes weight from the larger
    error. As a constant answer can make either error vanish, weights and answer run away together: to all 0, or all
    track. ``barrier`` adds -strength * sum log w_i, which keeps both; ``fixed`` learns no weights.

    The slides divide both sums by the number of *all* voxels, which makes the track's error weaker by its rarity; here
    each is divided by its own number.

    Args:
        weights: how the errors are weighted.
        strength: of the barrier.
    """

    def __init__(self, weights: Literal["softmax", "barrier", "fixed"], strength: float = 0.5) -> None:
        super().__init__()
        self.kind, self.strength = weights, strength
        self.theta = nn.Parameter(torch.zeros(2), requires_grad=weights != "fixed")

    @property
    def weights(self) -> Tensor:
        """(2,) of the track's error and of the other."""
        return torch.softmax(self.theta, 0)

    def forward(self, value: Tensor, target: Tensor) -> Tensor:
        """The loss of (N,) values against (N,) targets, 0 off the track."""
        track = target != 0
        squared = (value - target) ** 2
        errors = torch.stack(
            [(squared * part).sum() / part.sum().clamp(min=1) for part in (track.float(), (~track).float())]
        )
        loss = (self.weights * errors).sum()
        return loss - self.strength * torch.log(self.weights).sum() if self.kind == "barrier" else loss


def dense_block(hits: Voxels, gaps: Gaps) -> tuple[Tensor, Tensor]:
    """Every dead voxel in the box around the hits near each gap between boxes, event by event.

    Returns:
        Event (C,) and index (C, 3), each voxel once.
    """
    events, cells = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, 3, dtype=torch.int64)]
    regions = [(gap, bounds) for gap in range(gaps.n_regions) if (bounds := gaps.bounds(gap)) is not None]
    for number in range(len(hits)):
        coords = hits.coords[hits.offsets[number] : hits.offsets[number + 1]].numpy().astype(np.int64)
        for gap, (first, last) in regions:
            near = coords[((coords >= first - MARGIN) & (coords < last + MARGIN)).all(1)]
            if not len(near):
                continue
            low, high = np.maximum(near.min(0), first), np.minimum(near.max(0) + 1, last)
            axes = [torch.arange(int(a), max(int(a), int(b))) for a, b in zip(low, high, strict=True)]
            cell = torch.cartesian_prod(*axes)
            cell = cell[torch.from_numpy(gaps.of(cell.numpy()) == gap)]
            events.append(torch.full((len(cell),), number))
            cells.append(cell)
    return torch.cat(events), torch.cat(cells)


def _key(event: Tensor, cell: Tensor, grid: tuple[int, ...]) -> Tensor:
    return ((event * grid[0] + cell[:, 0]) * grid[1] + cell[:, 1]) * grid[2] + cell[:, 2]
