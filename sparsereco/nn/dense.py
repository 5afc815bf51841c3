"""A dense U-Net in 2D, small enough for whole camera frames on a CPU."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseBlock(nn.Module):
    """x + conv(relu(conv(x))), on a grid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """The same grid with other features."""
        return x + self.second(F.relu_(self.first(F.relu(x))))


class DenseUNet(nn.Module):
    """U-Net over a whole image. Level i halves the image i times; its skips are added, not concatenated.

    Args:
        in_channels: features of the input.
        channels: width of each level, from the full image downwards.
    """

    def __init__(self, in_channels: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        pairs = list(pairwise(channels))
        self.down = nn.ModuleList(nn.Conv2d(above, width, 2, stride=2) for above, width in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(width, above, 2, stride=2) for above, width in pairs)
        self.encode = nn.ModuleList(DenseBlock(width) for width in channels[1:])
        self.decode = nn.ModuleList(DenseBlock(width) for width in channels[:-1])

    def forward(self, image: Tensor) -> Tensor:
        """Features of every pixel.

        Args:
            image: (B, in_channels, H, W); sides of any length.

        Returns:
            (B, channels[0], H, W).
        """
        height, width = image.shape[-2:]
        coarse = 2 ** len(self.down)
        image = F.pad(image, (0, -width % coarse, 0, -height % coarse))
        x = self.stem(image)
        skips = []
        for down, encode in zip(self.down, self.encode, strict=True):
            skips.append(x)
            x = encode(down(F.relu(x)))
        for up, decode, skip in zip(reversed(self.up), reversed(self.decode), reversed(skips), strict=True):
            x = decode(skip + up(F.relu(x)))
        return torch.relu_(x[..., :height, :width])
