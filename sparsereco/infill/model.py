"""The filler: a sparse U-Net over hits and candidates, which gives each candidate a probability and an energy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, huber_loss, softplus

from sparsereco import bounds
from sparsereco.infill import physics
from sparsereco.infill.candidates import FEATURES, MIP, Problem
from sparsereco.infill.physics import Physics
from sparsereco.nn.sparse import SparseUNet
from sparsereco.voxels import Voxels

SMALLEST_ERROR = 0.03
"""Error of an energy below which the fit cannot go, the noise of a voxel [MIP]."""


@dataclass(frozen=True)
class FillerConfig:
    """What the filler's network looks like."""

    channels: tuple[int, ...] = (32, 36, 40, 40)
    """Width of each level of the U-Net, from full resolution downwards."""
    blocks: int = 2
    """Residual blocks per level."""
    widest: int = 16
    """Widest gap of the training; wider ones are filled and flagged [voxels]."""

    def __post_init__(self) -> None:
        bounds.at_least(1, self, "network.", "channels", "blocks", "widest")


@dataclass(frozen=True)
class Filling:
    """What the network says about every candidate."""

    logit: Tensor  # (C,) of the probability that the voxel is above threshold
    energy: Tensor  # (C,) mean energy if it is [MeV]
    error: Tensor  # (C,) its standard error [MeV]

    @property
    def probability(self) -> Tensor:
        """(C,)."""
        return torch.sigmoid(self.logit)


class Filler(nn.Module):
    """Occupancy and energy of the candidates of a `Problem`."""

    def __init__(self, settings: FillerConfig) -> None:
        super().__init__()
        self.settings = settings
        self.unet = SparseUNet(3, FEATURES, settings.channels, settings.blocks)
        self.head = nn.Linear(settings.channels[0], 3)
        nn.init.constant_(self.head.bias[:1], -2.0)
        self.register_buffer("logit_scale", torch.tensor(1.0))
        self.register_buffer("logit_shift", torch.tensor(0.0))
        self.register_buffer("error_scale", torch.tensor(1.0))

    logit_scale: Tensor
    logit_shift: Tensor
    error_scale: Tensor

    def forward(self, problem: Problem) -> Filling:
        """What is in the candidates; calibrated by the three buffers."""
        out = self.head(self.unet(problem.voxels)[problem.candidate])
        logit = self.logit_scale * out[:, 0] + self.logit_shift
        energy = MIP * softplus(out[:, 1])
        error = MIP * (SMALLEST_ERROR + softplus(out[:, 2])) * self.error_scale
        return Filling(logit, energy, error)


def answers(problem: Problem, missing: Voxels) -> tuple[Tensor, Tensor]:
    """The truth about each candidate: whether it is a missing voxel (C,) bool, and its energy (C,) [MeV] or 0."""
    sizes = missing.grid

    def key(event: Tensor, coords: Tensor) -> Tensor:
        c = coords.long()
        return ((event * sizes[0] + c[:, 0]) * sizes[1] + c[:, 1]) * sizes[2] + c[:, 2]

    there, wanted = key(missing.event, missing.coords), key(problem.event, problem.coords)
    if not len(there):
        return torch.zeros(len(wanted), dtype=torch.bool), torch.zeros(len(wanted))
    place = torch.searchsorted(there, wanted).clamp(max=len(there) - 1)
    hit = there[place] == wanted
    return hit, torch.where(hit, missing.signal[place], 0.0)


def filler_loss(
    filling: Filling, problem: Problem, hit: Tensor, energy: Tensor, terms: Physics | None = None
) -> dict[str, Tensor]:
    """Occupancy, energy of what is occupied, charge along each line, and the terms of physics that have a weight."""
    terms = terms or Physics()
    if not len(hit):
        nothing = filling.logit.sum()
        return {"occupancy": nothing, "energy": nothing, "charge": nothing}
    pull = (energy - filling.energy) / filling.error
    likelihood = 0.5 * pull.clamp(-10, 10) ** 2 + torch.log(filling.error / MIP)
    expected, lines = filling.probability * filling.energy, problem.lines
    losses = {
        "occupancy": 3 * binary_cross_entropy_with_logits(filling.logit, hit.float()),
        "energy": 0.3 * (likelihood * hit).sum() / hit.sum().clamp(min=1),
        "charge": 0.1 * line_charge(expected, energy, problem.line),
    }
    if terms.dedx or terms.continuity:
        slices = physics.cut(expected, problem.line, problem.along, problem.path)
        losses["dedx"] = terms.dedx * physics.dedx(slices, lines.energy)
        losses["continuity"] = terms.continuity * physics.continuity(slices, lines.energy, lines.length, lines.linked)
    return losses


def line_charge(expected: Tensor, energy: Tensor, line: Tensor) -> Tensor:
    """Charge along tracks: the expected energies of a line's candidates should add up to what they hold.

    Args:
        expected: (C,) probability times energy [MeV].
        energy: (C,) true energy, 0 where there is none [MeV].
        line: (C,) line of each candidate.

    Returns:
        Mean Huber loss of the relative residuals, lines of little energy counting less.
    """
    _, group = torch.unique(line, return_inverse=True)
    n = int(group.max()) + 1
    said, true = (values.new_zeros(n).index_add(0, group, values) for values in (expected, energy))
    residual = (said - true) / (true + 2 * MIP)
    return huber_loss(residual, torch.zeros_like(residual), delta=0.2) / 0.2
