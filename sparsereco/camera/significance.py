"""From an image to its significance in macro-pixels of 4 x 4: what all selectors but `nsigma` look at.

Every macro-pixel is the sum of its pixels, each over its own noise, in units of the standard deviation of that sum. So
other cameras and noisier ones look alike, noisy pixels count little, and hot ones not at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

BIN = 4
"""Pixels along the edge of a macro-pixel."""

CLIP = 4.0
"""A pixel counts with at most this many standard deviations: noise has long tails, faint light has none."""

TILE = 64
"""Macro-pixels along the edge of the tiles whose medians follow a drift of the pedestal."""


PIECE = 64
"""Macro-pixels of a line that are smoothed at a time."""


@dataclass(frozen=True)
class Significance:
    """An image over its noise."""

    residual: Tensor  # (H, W) float32 counts above the pedestal, 0 in hot pixels
    macro: Tensor  # (H / 4, W / 4) float32, of unit variance where there is no light


class Normaliser:
    """Takes images of one camera to their significance.

    Args:
        mean: (H, W) of the pedestal [counts]; H and W are multiples of 4.
        sigma: (H, W) its standard deviation [counts], positive in pixels that are not hot.
        hot: (H, W) bool, pixels to leave out.
    """

    def __init__(self, mean: Tensor, sigma: Tensor, hot: Tensor) -> None:
        self.mean = mean.float()
        self.where_hot = hot.nonzero(as_tuple=True)  # few: faster than a mask over the image
        self.scale = torch.where(hot, 0.0, 1 / sigma.float())
        weight = _macro_sum(self.scale**2)
        self.norm = torch.where(weight > 0, weight.clamp(min=1e-12).rsqrt(), 0.0)

    def __call__(self, image: Tensor) -> Significance:
        """Significance of an image, (H, W) of any number type."""
        residual = image.float() - self.mean
        pull = (residual * self.scale).clamp_(-CLIP, CLIP).mul_(self.scale)
        macro = settle(_macro_sum(pull) * self.norm)
        residual[self.where_hot] = 0.0
        return Significance(residual, macro)


def settle(macro: Tensor) -> Tensor:
    """Takes away what has changed since the pedestal run: a slow drift of the mean, and a rise of the noise.

    Args:
        macro: (h, w) significance by the pedestal.

    Returns:
        (h, w) without the medians of `TILE` x `TILE` macro-pixels, over its own noise where that is above 1.
    """
    height, width = macro.shape
    tiles = [
        [macro[y : y + TILE, x : x + TILE].median() for x in range(0, width, TILE)] for y in range(0, height, TILE)
    ]
    medians = torch.stack([torch.stack(row) for row in tiles])[None, None]
    macro = macro - F.interpolate(medians, (height, width), mode="bilinear", align_corners=False)[0, 0]
    noise = 1.4826 * macro[::2, ::2].abs().median()  # of a Gaussian, by its median absolute deviation
    return macro / noise.clamp(min=1.0)


def _macro_sum(image: Tensor) -> Tensor:
    return F.avg_pool2d(image[None, None], BIN)[0, 0] * BIN**2


def smooth(macro: Tensor, sigma: float) -> Tensor:
    """Matched filter for a Gaussian spot in white noise: away from the edges the response has unit variance again.

    By products of pieces of lines with a small banded matrix, on a CPU much faster than a convolution of one channel.

    Args:
        macro: (..., h, w) significance.
        sigma: standard deviation of the spot [macro-pixel].
    """
    return _smooth_lines(_smooth_lines(macro, sigma).transpose(-1, -2), sigma).transpose(-1, -2)


def _smooth_lines(x: Tensor, sigma: float) -> Tensor:
    half, size = int(4 * sigma + 0.5), x.shape[-1]
    padded = F.pad(x, (half, half + -size % PIECE))
    pieces = padded.unfold(-1, PIECE + 2 * half, PIECE)  # (..., lines, pieces, PIECE + 2 half)
    return (pieces @ _band(half, sigma).to(x.device)).flatten(-2)[..., :size]


@cache
def _band(half: int, sigma: float) -> Tensor:
    """(PIECE + 2 half, PIECE) matrix that convolves with a Gaussian of unit norm."""
    with torch.inference_mode(False):  # it is kept, for training too
        distance = torch.arange(PIECE + 2 * half)[:, None] - half - torch.arange(PIECE)
        band = torch.exp(-0.5 * (distance / sigma) ** 2)
        band[distance.abs() > half] = 0.0
        return band / band[:, 0].square().sum().sqrt()
