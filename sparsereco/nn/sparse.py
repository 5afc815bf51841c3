"""Sparse convolutional blocks and a U-Net in 2D and 3D; the only file that knows spconv.

On the CPU spconv works only with its native algorithm and without biases, and it checks nothing: `Voxels` are sorted,
unique, in range and contiguous by construction, and a batch without voxels never reaches it.
"""

from __future__ import annotations

import logging
import math
import warnings

import torch
from torch import Tensor, nn

from sparsereco.voxels import Voxels

with warnings.catch_warnings():  # spconv 2.3.6 uses names that torch and Python have deprecated since
    warnings.simplefilter("ignore")
    import spconv.pytorch as spconv
    from spconv.core import ConvAlgo

# torch warns once, on stderr, of a name that torch itself uses when spconv's layers are called.
logging.getLogger("torch.fx._symbolic_trace").addFilter(lambda record: "is_fx_tracing" not in str(record.msg))

_MAX_SITES = 2**32
"""spconv's kernel maps on the CPU hash with 32 bits: a batch whose grids hold more sites would alias."""


def _kinds(dims: int) -> tuple[type, type, type]:
    """Submanifold, strided and inverse convolution."""
    if dims == 2:
        return spconv.SubMConv2d, spconv.SparseConv2d, spconv.SparseInverseConv2d
    return spconv.SubMConv3d, spconv.SparseConv3d, spconv.SparseInverseConv3d


def _algorithm() -> ConvAlgo | None:
    return None if torch.cuda.is_available() else ConvAlgo.Native


def _apply(tensor: spconv.SparseConvTensor, function: nn.Module) -> spconv.SparseConvTensor:
    return tensor.replace_feature(function(tensor.features))


class SparseBlock(nn.Module):
    """Pre-activation residual block: x + conv3(relu(norm(x))) on the active voxels.

    The norm is per voxel, so events never mix.
    """

    def __init__(self, dims: int, channels: int, level: int) -> None:
        super().__init__()
        subm, _, _ = _kinds(dims)
        self.norm = nn.LayerNorm(channels)
        self.conv = subm(channels, channels, 3, bias=False, indice_key=f"subm{level}", algo=_algorithm())

    def forward(self, x: spconv.SparseConvTensor) -> spconv.SparseConvTensor:
        """The same voxels with other features."""
        out = self.conv(x.replace_feature(torch.relu(self.norm(x.features))))
        return out.replace_feature(out.features + x.features)


class SparseUNet(nn.Module):
    """U-Net over active voxels only. Level i halves the grid i times; its skips are added, not concatenated.

    Args:
        dims: 2 or 3.
        in_channels: features of the input voxels.
        channels: width of each level, from the full grid downwards.
        blocks: residual blocks per level, on the way down; one on the way up.
    """

    def __init__(self, dims: int, in_channels: int, channels: tuple[int, ...], blocks: int = 1) -> None:
        super().__init__()
        subm, down, up = _kinds(dims)
        algo = _algorithm()
        self.stem = subm(in_channels, channels[0], 3, bias=False, indice_key="subm0", algo=algo)
        self.encode = nn.ModuleList()
        self.down, self.up, self.decode = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(channels):
            # The stem already convolves at the full grid, the dearest level.
            self.encode.append(
                nn.ModuleList(SparseBlock(dims, width, level) for _ in range(blocks if level else blocks - 1))
            )
            if level:
                above = channels[level - 1]
                self.down.append(down(above, width, 2, 2, bias=False, indice_key=f"down{level}", algo=algo))
                self.up.append(up(width, above, 2, bias=False, indice_key=f"down{level}", algo=algo))
                self.decode.append(SparseBlock(dims, above, level - 1))
        self.norm = nn.LayerNorm(channels[0])

    def forward(self, voxels: Voxels) -> Tensor:
        """Features of every voxel, (N, channels[0]), in the order of ``voxels``."""
        if not len(voxels.coords):
            return voxels.feats.new_zeros(0, self.norm.normalized_shape[0])
        sites = len(voxels) * math.prod(voxels.grid)
        if sites > _MAX_SITES:
            raise ValueError(
                f"a batch of {len(voxels)} events on the grid {voxels.grid} has {sites:.3g} sites; "
                f"at most {_MAX_SITES:.3g} fit"
            )
        indices = torch.cat([voxels.event[:, None].int(), voxels.coords], 1).contiguous()
        x = self.stem(spconv.SparseConvTensor(voxels.feats, indices, list(voxels.grid), len(voxels)))
        skips = []
        for level, blocks in enumerate(self.encode):
            if level:
                skips.append(x)
                x = self.down[level - 1](x)
            if not len(x.features):  # all voxels lie in the last row of an odd grid, which has no cell here
                break
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                x = block(x)
        for level in reversed(range(len(skips))):
            x = self.up[level](x)
            x = self.decode[level](x.replace_feature(x.features + skips[level].features))
        return torch.relu(self.norm(x.features))
