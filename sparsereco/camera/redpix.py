"""The pixels of clusters in files, ours and the experiment's: from `redpix_*` to clusters and to `Voxels`.

Old files keep a float index, and -1 for clusters whose pixels were not saved; a cluster ends where the next saved
one begins.
"""

from __future__ import annotations

import awkward as ak
import numpy as np
import torch
from numpy.typing import NDArray

from sparsereco.errors import InputError
from sparsereco.voxels import Voxels


def cluster_rows(event: ak.Record) -> list[NDArray[np.int64] | None]:
    """Rows of `redpix_*` of each cluster; None where its pixels were not saved.

    Args:
        event: a record of the tree ``Events``.

    Raises:
        InputError: the index does not increase, or points beyond the pixels.
    """
    index = np.asarray(event.sc_redpixIdx).astype(np.int64)
    saved = np.flatnonzero(index >= 0)
    edges = np.append(index[saved], len(event.redpix_ix))
    if (np.diff(edges) < 0).any():
        raise InputError(f"run {event.run}, event {event.event}: sc_redpixIdx is no increasing index: {index.tolist()}")
    rows: list[NDArray[np.int64] | None] = [None] * len(index)
    for cluster, start, stop in zip(saved, edges[:-1], edges[1:], strict=True):
        rows[cluster] = np.arange(start, stop)
    return rows


def cluster_voxels(event: ak.Record, shape: tuple[int, int]) -> Voxels:
    """The clusters of a frame as sparse images, one event per cluster; coordinates are y, x.

    Args:
        event: a record of the tree ``Events``.
        shape: rows and columns of the sensor.

    Returns:
        Voxels with the light of the pixels, which noise makes negative in places; clusters without pixels are empty.
    """
    rows = cluster_rows(event)
    x, y, z = (np.asarray(event[f"redpix_i{axis}"]) for axis in "xyz")
    ordered = [np.zeros(0, np.int64) if r is None else r[np.lexsort((x[r], y[r]))] for r in rows]
    every = np.concatenate([np.zeros(0, np.int64), *ordered])
    coords = torch.from_numpy(np.stack([y[every], x[every]], 1).astype(np.int32))
    offsets = torch.tensor([0, *(len(r) for r in ordered)]).cumsum(0)
    return Voxels(coords.contiguous(), torch.from_numpy(z[every].astype(np.float32))[:, None], offsets, shape)
