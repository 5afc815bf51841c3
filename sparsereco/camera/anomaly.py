"""What is not noise: an autoencoder that has only seen pedestal frames, and the map of what it cannot explain.

Light of a few hundred counts is below the noise in every macro-pixel, so the error of one says nothing: it is smoothed
over the size of a spot with its sign, and held against the spread of the smoothed error. What the network must not
learn is to copy faint light, which is decided by the objective that it is trained with, more than by its layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsereco import bounds
from sparsereco.camera.significance import BIN, Significance, smooth

MACRO_NOISE = 0.9
"""Usual noise of the mean of a macro-pixel [counts], which gives `counts` the size of a significance."""

HIDDEN = 0.15
"""Share of macro-pixels that `denoising` hides."""

STATISTIC_TILE = 4
"""Macro-pixels along the edge of the tiles whose statistics `tiles` compares."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """The network."""

    objective: Literal["squared", "normalised", "denoising", "tiles"] = "denoising"
    """What it is trained for, one of `OBJECTIVES`."""
    channels: tuple[int, int] = (16, 32)
    """Width in cells of 4 x 4 and of 8 x 8 macro-pixels."""
    latent: int = 4
    """Numbers that are kept of a cell of 8 x 8 macro-pixels."""

    def __post_init__(self) -> None:
        bounds.at_least(1, self, "network.", "channels", "latent")


class Autoencoder(nn.Module):
    """From a map to cells of a few numbers, and back."""

    def __init__(self, settings: AutoencoderConfig) -> None:
        super().__init__()
        self.settings = settings
        fine, coarse = settings.channels
        self.encoder = nn.Sequential(
            nn.Conv2d(1, fine, 4, stride=4),
            nn.ReLU(),
            nn.Conv2d(fine, coarse, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(coarse, settings.latent, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(settings.latent, coarse, 3, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(coarse, fine, 2, stride=2),
            nn.ReLU(),
            nn.ConvTranspose2d(fine, 1, 4, stride=4),
        )

    def forward(self, image: Tensor) -> Tensor:
        """What it makes of a map.

        Args:
            image: (B, h, w); sides of any length.

        Returns:
            (B, h, w).
        """
        height, width = image.shape[-2:]
        padded = F.pad(image[:, None], (0, -width % 8, 0, -height % 8))
        return self.decoder(self.encoder(padded))[:, 0, :height, :width]


@dataclass(frozen=True)
class Objective:
    """What an autoencoder looks at, and what it is trained to do."""

    view: Callable[[Significance], Tensor]
    """From a frame to the map (h, w) that the network sees."""
    loss: Callable[[nn.Module, Tensor, torch.Generator], Tensor]
    """Loss of a network on maps (B, h, w); the generator is for what is drawn on the way."""


def counts(seen: Significance) -> Tensor:
    """(h, w) means of macro-pixels, nearly raw."""
    return F.avg_pool2d(seen.residual[None, None], BIN)[0, 0] / MACRO_NOISE


def significance(seen: Significance) -> Tensor:
    """(h, w) over the noise of each pixel."""
    return seen.macro


def squared_error(model: nn.Module, image: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error of the map."""
    return F.mse_loss(model(image), image)


def hidden_error(model: nn.Module, image: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error in macro-pixels whose value the network was not shown (arXiv 1811.10980).

    Their values are replaced by others of the same map: what it cannot see it cannot copy, only infer.
    """
    hidden = torch.rand(image.shape, generator=generator) < HIDDEN
    others = image.flatten()[torch.randint(image.numel(), image.shape, generator=generator)]
    answer = model(torch.where(hidden, others, image))
    return F.mse_loss(answer[hidden], image[hidden])


def tile_error(model: nn.Module, image: Tensor, generator: torch.Generator) -> Tensor:
    """Squared error of the mean and the mean square of tiles, each over what noise makes of it."""
    answer, n = model(image), STATISTIC_TILE**2

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values[:, None], STATISTIC_TILE)

    means = n * (mean(answer) - mean(image)).square().mean()
    squares = n / 2 * (mean(answer**2) - mean(image**2)).square().mean()
    return means + squares


OBJECTIVES = {
    "squared": Objective(counts, squared_error),
    "normalised": Objective(significance, squared_error),
    "denoising": Objective(significance, hidden_error),
    "tiles": Objective(significance, tile_error),
}
"""The objectives by the name that `AutoencoderConfig.objective` takes."""


def error_map(model: Autoencoder, seen: Significance, sigma: float) -> Tensor:
    """What the network cannot explain.

    Args:
        model: trained on pedestal frames.
        seen: a frame.
        sigma: standard deviation of a spot [macro-pixel].

    Returns:
        (h, w) smoothed error, signed, in units of its own spread.
    """
    image = OBJECTIVES[model.settings.objective].view(seen)
    with torch.inference_mode():
        error = image - model(image[None])[0]
    smoothed = smooth(error, sigma)
    spread = 1.4826 * smoothed[::2, ::2].abs().median()  # of a Gaussian, by its median absolute deviation
    return smoothed / spread.clamp(min=1e-6)
