"""Submanifold convolution against spconv's native algorithm, against the machine's roof, and how its cost grows."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.clock import seconds
from sparsereco.convolution import sparse_conv, submanifold_map

with warnings.catch_warnings():  # spconv 2.3.6 uses names that torch and Python have deprecated since
    warnings.simplefilter("ignore")
    import spconv.pytorch as spconv
    from spconv.pytorch.ops import get_indice_pairs

SIDE = 512
"""Voxels per axis of the grid."""


def rows(voxels: int, channels: list[int], rounds: int, peak: float) -> list[dict[str, Any]]:
    """Kernel map, forward, and forward and backward, ours and spconv's in alternation; ``peak`` is the roof."""
    native, grid = spconv.ConvAlgo.Native, [SIDE] * 3
    coords = track_voxels(voxels, SIDE)
    offsets = torch.tensor([0, len(coords)])
    indices = torch.cat([torch.zeros_like(coords[:, :1]), coords], 1).contiguous()
    geometry = [[3] * 3, [1] * 3, [1] * 3, [1] * 3, [0] * 3]
    kernel_map = submanifold_map(coords, offsets, grid)
    pairs = 2 * kernel_map.rows.shape[1] - len(coords)  # the map lists half of the kernel, the centre once
    compare = partial(compared, voxels, rounds, peak)
    result = [
        compare(
            "kernel map",
            lambda: submanifold_map(coords, offsets, grid),
            lambda: get_indice_pairs(indices, 1, grid, native, *geometry, subm=True),
            0,
        )
    ]
    for width in channels:
        layer = spconv.SubMConv3d(width, width, 3, bias=False, indice_key="map", algo=native)
        feats, grad = torch.randn(len(coords), width), torch.randn(len(coords), width)
        known = layer(spconv.SparseConvTensor(feats, indices, grid, 1)).indice_dict
        leaves = [feats.requires_grad_(), layer.weight]

        def ours(layer: Any = layer, feats: Any = feats) -> Tensor:
            return sparse_conv(feats, layer.weight, kernel_map)

        def theirs(layer: Any = layer, feats: Any = feats, known: Any = known) -> Tensor:
            return layer(spconv.SparseConvTensor(feats, indices, grid, 1, indice_dict=known)).features

        def both(forward: Callable[[], Tensor], leaves: Any = leaves, grad: Any = grad) -> None:
            torch.autograd.grad(forward(), leaves, grad)

        flops = 2.0 * pairs * width**2
        forward = torch.no_grad()
        result.append(compare(f"forward, C = {width}", forward(ours), forward(theirs), flops))
        result.append(compare(f"forward+backward, C = {width}", partial(both, ours), partial(both, theirs), 3 * flops))
    return result


def compared(
    voxels: int, rounds: int, peak: float, what: str, ours: Callable[[], Any], theirs: Callable[[], Any], flops: float
) -> dict[str, Any]:
    """Shortest times of both; prints them, too."""
    ours(), theirs()
    times = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    own, peer = min(t for t, _ in times), min(t for _, t in times)
    row = {"what": what, "voxels": voxels, "seconds": own, "spconv_seconds": peer, "ratio": peer / own}
    row["fraction_of_fma"] = flops / own / peak
    share = f"  {row['fraction_of_fma']:.0%} of multiply-adds" if flops else ""
    print(
        f"{what:24} {voxels:7,} voxels {own * 1e3:8.2f} ms  spconv {peer * 1e3:8.1f} ms  "
        f"ratio {row['ratio']:5.1f}{share}",
        flush=True,
    )
    return row


def scaling(voxels: list[int], sides: list[int], width: int, rounds: int) -> list[dict[str, Any]]:
    """Our map, forward and backward: for growing numbers of voxels, then for as many in growing grids."""
    cases = [(n, SIDE) for n in sorted(voxels)] + [(max(voxels), side) for side in sorted(sides)]
    works = [step(n, side, width) for n, side in cases]
    for work in works:
        work()
    times = [min(column) for column in zip(*([seconds(work) for work in works] for _ in range(rounds)), strict=True)]
    result = []
    for i, ((n, side), time) in enumerate(zip(cases, times, strict=True)):
        first = 0 if i < len(voxels) else len(voxels)
        ratio = (time / n) / (times[first] / cases[first][0])
        result.append({"voxels": n, "side": side, "channels": width, "seconds": time, "per_voxel_ratio": ratio})
        print(
            f"scaling, C = {width:2}  {n:9,} voxels of {side:6,}^3  {time * 1e3:8.2f} ms  "
            f"per voxel {ratio:.2f} of {cases[first][0]:,} in {cases[first][1]:,}^3",
            flush=True,
        )
    return result


def step(voxels: int, side: int, width: int) -> Callable[[], None]:
    """Kernel map, forward and backward of a number of voxels in a grid of side^3."""
    coords = track_voxels(voxels, side)
    feats = torch.randn(voxels, width, requires_grad=True)
    weight = torch.randn(width, 3, 3, 3, width, requires_grad=True)
    grad, offsets = torch.randn(voxels, width), torch.tensor([0, voxels])

    def work() -> None:
        kernel_map = submanifold_map(coords, offsets, [side] * 3)
        torch.autograd.grad(sparse_conv(feats, weight, kernel_map), [feats, weight], grad)

    return work


def track_voxels(n: int, side: int) -> Tensor:
    """(n, 3) int32 voxels along straight tracks a few voxels thick, sorted."""
    random, found = np.random.default_rng(1), np.zeros((0, 3), np.int64)
    while len(found) < n:
        direction = random.normal(size=3)
        along = np.arange(0, random.uniform(50, 300), 0.5)[:, None]
        track = random.uniform(0, side, 3) + direction / np.linalg.norm(direction) * along
        track = np.floor(track + random.normal(0, 0.6, track.shape)).astype(np.int64)
        found = np.unique(np.concatenate([found, track[((track >= 0) & (track < side)).all(1)]]), axis=0)
    keep = np.sort(random.permutation(len(found))[:n])
    return torch.from_numpy(found[keep].astype(np.int32))
