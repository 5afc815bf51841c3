"""The generator of arXiv 2310.19695, as the baseline that ours is held against: a dense image from a transformer.

Every voxel of 5 x 5 x 5 is a token: kinematics, 512 normal numbers that are the same for all voxels, and a learned
place, through two transformer blocks to one number between -1 and 1, which is scaled to the light. A critic of the same
blocks, WGAN-GP. As published, but for what was wrong there: the critic's score is not squashed, its gradients are
cleared before each of its steps, directions are unit vectors, not angles that wrap around. And one network knows the
species instead of one network for each, which leaves each more of a short training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparsereco.vertex.adversary import Singles
from sparsereco.vertex.crop import HALF
from sparsereco.vertex.generator import GENERATED

MARGIN = 1
"""The images are the 5 x 5 x 5 voxels in the middle of a crop: without so many on each side."""

_SIDE = 2 * (HALF - MARGIN) + 1
_VOXELS = _SIDE**3
_LABELS = 7 + len(GENERATED)


@dataclass(frozen=True)
class DenseGeneratorConfig:
    """What the dense generator looks like; the defaults are the published values."""

    width: int = 64
    """Of a token."""
    heads: int = 8
    blocks: int = 2
    noise: int = 512
    """Normal numbers for an image."""
    dropout: float = 0.1
    brightest: float = 3000.0
    """The light of a voxel at the upper end of the scale [p.e.]."""


class DenseGenerator(nn.Module):
    """Kinematics and noise to a dense image."""

    def __init__(self, settings: DenseGeneratorConfig) -> None:
        super().__init__()
        self.settings = settings
        self.labels = nn.Linear(_LABELS, settings.width)
        self.spread = nn.Linear(settings.noise, settings.width)
        self.place = nn.Parameter(0.02 * torch.randn(_VOXELS, settings.width))
        self.body = _blocks(settings)
        self.light = nn.Linear(settings.width, 1)

    def forward(self, labels: Tensor, noise: Tensor) -> Tensor:
        """(P, 125) scaled light from `labels_of` (P, L) and noise (P, N)."""
        tokens = (self.labels(labels) + self.spread(noise))[:, None] + self.place
        return torch.tanh(self.light(self.body(tokens))[..., 0])

    def images(self, like: Singles, generator: torch.Generator | None = None) -> Tensor:
        """Measured images (P, 5, 5, 5) of the same particles, whole photo-electrons [p.e.]."""
        noise = torch.randn(len(like.ke), self.settings.noise, generator=generator)
        with torch.no_grad():
            parts = [self(*some) for some in zip(labels_of(like).split(500), noise.split(500), strict=True)]
        light = 0.5 * (torch.cat(parts) + 1) * self.settings.brightest
        return light.round().view(-1, _SIDE, _SIDE, _SIDE)

    def scaled(self, measured: Tensor) -> Tensor:
        """(P, 125) what `forward` should give for measured images (P, 5, 5, 5) [p.e.]."""
        return (2 * measured.flatten(1) / self.settings.brightest - 1).clamp(max=1.0)


class DenseCritic(nn.Module):
    """Scores dense images."""

    def __init__(self, settings: DenseGeneratorConfig) -> None:
        super().__init__()
        self.labels = nn.Linear(_LABELS, settings.width)
        self.voxel = nn.Linear(1, settings.width)
        self.whole = nn.Parameter(0.02 * torch.randn(1, 1, settings.width))
        self.place = nn.Parameter(0.02 * torch.randn(1 + _VOXELS, settings.width))
        self.body = _blocks(settings)
        self.score = nn.Linear(settings.width, 1)

    def forward(self, scaled: Tensor, labels: Tensor) -> Tensor:
        """(P,) scores of scaled images (P, 125) of particles with labels (P, L)."""
        tokens = torch.cat([self.whole.expand(len(scaled), -1, -1), self.voxel(scaled[..., None])], 1)
        return self.score(self.body(tokens + self.labels(labels)[:, None] + self.place)[:, 0])[:, 0]


def labels_of(particles: Singles) -> Tensor:
    """(P, L) start, energy, direction and species, each of the order of 1."""
    kind = torch.eye(len(GENERATED))[particles.species]
    muon = particles.species == len(GENERATED) - 1
    energy = torch.where(muon, (particles.ke - 650) / 350, (particles.ke - 30) / 30)
    start = 2 * (particles.start - HALF - 0.5)
    return torch.cat([start, energy[:, None], particles.direction, kind], 1)


def critic_loss(
    critic: DenseCritic, real: Tensor, made: Tensor, labels: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """What the critic descends: Wasserstein distance with gradient penalty 10 (arXiv 1704.00028).

    Args:
        critic: of the images.
        real: (P, 125) scaled images; made: likewise, without gradient.
        labels: (P, L) of both.
        generator: of the places between them where the slope is taken.
    """
    few = len(real) // 4 + 1  # the slope is dear: it goes through the network four times
    mixed = torch.rand(few, 1, generator=generator)
    between = (mixed * real[:few] + (1 - mixed) * made[:few]).requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        (slope,) = torch.autograd.grad(critic(between, labels[:few]).sum(), between, create_graph=True)
    penalty = (slope.norm(dim=1) - 1).square().mean()
    false, true = critic(torch.cat([made, real]), labels.repeat(2, 1)).view(2, -1).mean(1)
    return false - true + 10 * penalty


def _blocks(settings: DenseGeneratorConfig) -> nn.TransformerEncoder:
    block = nn.TransformerEncoderLayer(
        settings.width, settings.heads, 4 * settings.width, settings.dropout, "gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(block, settings.blocks, enable_nested_tensor=False)
