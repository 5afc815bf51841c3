"""Voxels and kernel maps of every kind, for the tests of sparse convolution."""

from __future__ import annotations

import pytest
import torch

from sparsereco.convolution import KernelMap, generative_map, strided_map, submanifold_map
from sparsereco.voxels import Voxels

GRIDS = {2: (12, 11), 3: (8, 7, 9)}
DIMS = pytest.mark.parametrize("dims", [2, 3])
KINDS = pytest.mark.parametrize("kind", ["submanifold", "down", "up", "generative"])


def some_voxels(dims: int, rows: int = 90, events: int = 4, grid: tuple[int, ...] = (), seed: int = 0) -> Voxels:
    """Scattered voxels; the last event but one is empty."""
    grid = grid or GRIDS[dims]
    random = torch.Generator().manual_seed(seed)
    coords = torch.stack([torch.randint(size, (rows,), generator=random) for size in grid], 1)
    event = torch.randint(events, (rows,), generator=random)
    event[event == events - 2] = 0
    return Voxels.make(coords, torch.ones(rows), event, events, grid)


def map_of(kind: str, voxels: Voxels) -> KernelMap:
    where = voxels.coords, voxels.offsets, voxels.grid
    if kind == "submanifold":
        return submanifold_map(*where)
    if kind == "generative":
        return generative_map(*where)[0]
    down = strided_map(*where)[0]
    return down if kind == "down" else down.transpose()
