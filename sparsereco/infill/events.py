"""Events of HDF5 files as records of the tree ``hits``: segments are put into voxels, dead voxels left out."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import awkward as ak
import numpy as np
import torch
from numpy.typing import NDArray

from sparsereco.errors import InputError
from sparsereco.hdf5 import SegmentTable, VoxelTable, read_hdf5
from sparsereco.infill.gaps import Gaps
from sparsereco.io import Chunk
from sparsereco.schema import CHARGE_HITS
from sparsereco.segments import Segments, voxelize

log = logging.getLogger("sparsereco")


def from_hdf5(path: str, gaps: Gaps, step: int) -> Iterator[Chunk]:
    """Reads a file of segments or voxels.

    Args:
        path: the file.
        gaps: the detector; voxels whose centre is dead are left out, and those of segments below its threshold.
        step: events per chunk.

    Raises:
        InputError: what `read_hdf5` raises, a voxel outside the detector, or all segments of a file outside.
    """
    table = read_hdf5(path)
    if isinstance(table, SegmentTable):
        _check_segments(table, gaps, path)
    numbers, event = np.unique(table.event, return_inverse=True)
    kind = "segments" if isinstance(table, SegmentTable) else "voxels"
    edges = np.searchsorted(event, np.arange(0, len(numbers) + step, step))
    for start, low, high in zip(range(0, len(numbers), step), edges[:-1], edges[1:], strict=True):
        n = min(step, len(numbers) - start)
        own = event[low:high] - start
        make = _of_segments if isinstance(table, SegmentTable) else _of_voxels
        index, energy, own = make(table, slice(low, high), own, n, gaps, path)  # type: ignore[arg-type]
        live = gaps.of(index) == -1
        index, energy, own = index[live], energy[live], own[live]
        counts = np.bincount(own, minlength=n)
        centre = gaps.detector.centre(index)
        fields = {"run": np.zeros(n), "subrun": np.zeros(n), "event": numbers[start : start + n]}
        fields |= {f"hit_{axis}": ak.unflatten(centre[:, i], counts) for i, axis in enumerate("xyz")}
        fields["hit_e"] = ak.unflatten(energy, counts)
        events = ak.zip(
            {b.name: ak.values_astype(fields[b.name], b.dtype) for b in CHARGE_HITS.branches}, depth_limit=1
        )
        yield Chunk(path, kind, "", start, start + n, events)


def _check_segments(table: SegmentTable, gaps: Gaps, path: str) -> None:
    """Warns of segments that begin outside the detector, as some do in a larger simulation; refuses a file of them."""
    detector = gaps.detector
    low = np.array(detector.origin)
    high = low + np.array(detector.shape) * detector.pitch
    outside: NDArray[np.bool_] = np.any((table.start < low) | (table.start >= high), axis=1)
    where = f"outside the detector, {low.round().tolist()} to {high.round().tolist()} mm"
    if outside.all() and len(outside):
        begin, end = (edge.round().tolist() for edge in (table.start.min(0), table.start.max(0)))
        raise InputError(f"{path}: all segments lie {where}: they go from {begin} to {end} mm", file=path)
    if outside.any():
        share = f"{outside.sum():,} of {len(outside):,} segments, {table.energy[outside].sum():.4g} MeV"
        log.warning("%s: %s, lie %s: left out", path, share, where)


Rows = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Index (N, 3), energy (N,) [MeV] and event (N,) of voxels, sorted by event."""


def _of_segments(table: SegmentTable, rows: slice, event: np.ndarray, n: int, gaps: Gaps, path: str) -> Rows:
    start, end, energy = (torch.from_numpy(values[rows]) for values in (table.start, table.end, table.energy))
    detector = gaps.detector
    segments = Segments(start, end, energy, torch.from_numpy(event), n)
    voxels = voxelize(segments, detector.origin, detector.pitch, detector.shape)
    voxels = voxels.select((voxels.signal >= detector.response.threshold) & (voxels.signal > 0))
    return voxels.coords.numpy().astype(np.int64), voxels.signal.numpy(), voxels.event.numpy()


def _of_voxels(table: VoxelTable, rows: slice, event: np.ndarray, n: int, gaps: Gaps, path: str) -> Rows:
    index = table.index[rows]
    outside = gaps.of(index) == -2
    if outside.any():
        row = int(outside.argmax())
        raise InputError(
            f"{path}: row {rows.start + row} has the voxel {index[row].tolist()}, expected one of the "
            f"{gaps.detector.shape} of the detector",
            file=path,
            entry=rows.start + row,
        )
    return index, table.energy[rows], event
