"""Sparse convolutional blocks and a U-Net in 2D and 3D: on the CPU by `sparsereco.convolution`, on CUDA by spconv.

Both use the same weights, in the layout of spconv: (out, *kernel, in). This is the only file that knows spconv, and it
loads spconv only where it is used. spconv checks nothing, and fails in a strided convolution of a batch without voxels:
`Voxels` are sorted, unique, in range and contiguous by construction, and an empty batch never reaches it.
"""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparsereco.convolution import KernelMap, sparse_conv, strided_map, submanifold_map
from sparsereco.voxels import Voxels


@dataclass(frozen=True)
class Sites:
    """The active sites of a level, and the kernel maps from them, which all layers of the level share."""

    coords: Tensor  # (N, D) int32, sorted by event and coordinate
    offsets: Tensor  # (B + 1,) int64
    grid: tuple[int, ...]  # (D,)
    finer: Sites | None = field(default=None, repr=False)
    """The level that this one was halved from."""

    @cached_property
    def submanifold(self) -> KernelMap:
        """Map of a kernel of 3 voxels per axis."""
        return submanifold_map(self.coords, self.offsets, self.grid)

    @cached_property
    def down(self) -> tuple[KernelMap, Sites]:
        """Map of a strided kernel of 2 voxels per axis, and the level that it leads to."""
        kernel_map, coords, offsets = strided_map(self.coords, self.offsets, self.grid)
        return kernel_map, Sites(coords, offsets, tuple(size // 2 for size in self.grid), self)


@dataclass(frozen=True)
class SparseTensor:
    """Features on active sites. Members that spconv's tensor has, too, are called as there."""

    features: Tensor  # (N, C)
    sites: Sites

    def replace_feature(self, features: Tensor) -> SparseTensor:
        """The same sites with other features."""
        return replace(self, features=features)


def own_tensor(voxels: Voxels) -> SparseTensor:
    """Voxels as the CPU's convolutions take them."""
    return SparseTensor(voxels.feats, Sites(voxels.coords, voxels.offsets, voxels.grid))


def spconv_tensor(voxels: Voxels) -> Any:
    """Voxels as spconv's convolutions take them."""
    indices = torch.cat([voxels.event[:, None].int(), voxels.coords], 1).contiguous()
    return _spconv().SparseConvTensor(voxels.feats, indices, list(voxels.grid), len(voxels))


def sparse_tensor(voxels: Voxels) -> Any:
    """Voxels as the convolutions of their device take them."""
    return own_tensor(voxels) if voxels.feats.device.type == "cpu" else spconv_tensor(voxels)


@cache
def _spconv() -> ModuleType:
    # torch warns once, on stderr, of a name that torch itself uses when spconv's layers are called.
    logging.getLogger("torch.fx._symbolic_trace").addFilter(lambda record: "is_fx_tracing" not in str(record.msg))
    with warnings.catch_warnings():  # spconv 2.3.6 uses names that torch and Python have deprecated since
        warnings.simplefilter("ignore")
        import spconv.pytorch
    return spconv.pytorch


class Convolution(nn.Module):
    """A convolution without bias: submanifold (3 voxels per axis), down or up by 2 (2 voxels per axis)."""

    def __init__(
        self, dims: int, in_channels: int, out_channels: int, kind: Literal["submanifold", "down", "up"], level: int
    ) -> None:
        super().__init__()
        self.dims, self.kind, self.level = dims, kind, level
        size = 3 if kind == "submanifold" else 2
        self.weight = nn.Parameter(torch.empty(out_channels, *[size] * dims, in_channels))
        bound = 1 / math.sqrt(in_channels * size**dims)
        nn.init.uniform_(self.weight, -bound, bound)
        self._layers: dict[str, nn.Module] = {}

    def forward(self, x: Any) -> Any:
        """A `SparseTensor` from a `SparseTensor`, spconv's from spconv's."""
        if not isinstance(x, SparseTensor):
            return self._layer(x.features.device)(x)
        if self.kind == "submanifold":
            return x.replace_feature(sparse_conv(x.features, self.weight, x.sites.submanifold))
        if self.kind == "down":
            kernel_map, sites = x.sites.down
            return SparseTensor(sparse_conv(x.features, self.weight, kernel_map), sites)
        if x.sites.finer is None:
            raise ValueError("a convolution up leads back to sites that were halved; these are the input's")
        kernel_map = x.sites.finer.down[0].transpose()
        return SparseTensor(sparse_conv(x.features, self.weight, kernel_map), x.sites.finer)

    def _layer(self, device: torch.device) -> nn.Module:
        """The same convolution as a layer of spconv; on the CPU only spconv's native algorithm works."""
        if device.type not in self._layers:
            spconv = _spconv()
            kinds = {"submanifold": "SubMConv", "down": "SparseConv", "up": "SparseInverseConv"}
            make = getattr(spconv, f"{kinds[self.kind]}{self.dims}d")
            key = f"{'subm' if self.kind == 'submanifold' else 'down'}{self.level}"
            stride = {"stride": 2} if self.kind == "down" else {}
            self._layers[device.type] = make(
                self.weight.shape[-1],
                self.weight.shape[0],
                self.weight.shape[1],
                bias=False,
                indice_key=key,
                algo=spconv.ConvAlgo.Native if device.type == "cpu" else None,
                **stride,
            )
        layer = self._layers[device.type]
        layer.weight = self.weight
        return layer.train(self.training)


class SparseBlock(nn.Module):
    """Pre-activation residual block: x + conv3(relu(norm(x))) on the active voxels.

    The norm is per voxel, so events never mix.
    """

    def __init__(self, dims: int, channels: int, level: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = Convolution(dims, channels, channels, "submanifold", level)

    def forward(self, x: Any) -> Any:
        """The same voxels with other features."""
        out = self.conv(x.replace_feature(torch.relu_(self.norm(x.features))))
        return out.replace_feature(out.features.add_(x.features))  # in place: no gradient needs what was there


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
        self.stem = Convolution(dims, in_channels, channels[0], "submanifold", 0)
        self.encode = nn.ModuleList()
        self.down, self.up, self.decode = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(channels):
            # The stem already convolves at the full grid, the dearest level.
            self.encode.append(
                nn.ModuleList(SparseBlock(dims, width, level) for _ in range(blocks if level else blocks - 1))
            )
            if level:
                above = channels[level - 1]
                self.down.append(Convolution(dims, above, width, "down", level))
                self.up.append(Convolution(dims, width, above, "up", level))
                self.decode.append(SparseBlock(dims, above, level - 1))
        self.norm = nn.LayerNorm(channels[0])

    def forward(self, voxels: Voxels) -> Tensor:
        """Features of every voxel, (N, channels[0]), in the order of ``voxels``."""
        if not len(voxels.coords):
            return voxels.feats.new_zeros(0, self.norm.normalized_shape[0])
        x = self.stem(sparse_tensor(voxels))
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
            x = self.decode[level](x.replace_feature(x.features.add_(skips[level].features)))
        return torch.relu_(self.norm(x.features))
