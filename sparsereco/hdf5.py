"""HDF5 files in: energy segments as edep-sim and larnd-sim write them, and tables of voxels.

A file of segments has a dataset ``segments`` with the fields dE [MeV], x_start to z_end [cm], and three numbers that
newer files call event_id, traj_id and pdg_id, older ones eventID, trackID and pdgId.
A file of voxels has a dataset with the fields imageInd, voxx, voxy, voxz (voxel index) and voxdE [MeV].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from sparsereco import remote
from sparsereco.errors import BranchError, InputError

FAR = 1e8
"""No position [mm] or energy [MeV] is as large."""

EVENT, TRACK, PDG = ("event_id", "eventID"), ("traj_id", "trackID"), ("pdg_id", "pdgId")
"""Names of a number in newer and older files of segments; a file may do without those of track and species."""
SEGMENT_FIELDS = ("dE", *(f"{axis}_{side}" for side in ("start", "end") for axis in "xyz"))
VOXEL_FIELDS = ("imageInd", "voxx", "voxy", "voxz", "voxdE")

CM = 10.0
"""Millimetres in the files' unit of length."""


@dataclass(frozen=True)
class SegmentTable:
    """Energy segments, sorted by event."""

    event: NDArray[np.int64]  # (N,) number of the event
    start: NDArray[np.float32]  # (N, 3) [mm]
    end: NDArray[np.float32]  # (N, 3) [mm]
    energy: NDArray[np.float32]  # (N,) [MeV]
    track: NDArray[np.int64]  # (N,) 0 where the file does not say
    pdg: NDArray[np.int64]  # (N,) 0 where the file does not say


@dataclass(frozen=True)
class VoxelTable:
    """Voxels, sorted by event."""

    event: NDArray[np.int64]  # (N,) number of the event
    index: NDArray[np.int64]  # (N, 3)
    energy: NDArray[np.float32]  # (N,) [MeV]


def is_hdf5(path: str) -> bool:
    """Whether a name is that of an HDF5 file."""
    return PurePath(remote.name(path)).suffix.lower() in (".h5", ".hdf5")


def read_hdf5(path: str) -> SegmentTable | VoxelTable:
    """Reads a file of segments or of voxels.

    Raises:
        InputError: what `remote.opened` raises, no HDF5, neither kind of dataset, or numbers that are none.
        BranchError: a field is missing.
    """
    try:
        with remote.opened(path) as opened, h5py.File(opened) as file:
            tables = {name: data.dtype.names or () for name, data in file.items() if isinstance(data, h5py.Dataset)}
            name = next(
                (n for n, fields in tables.items() if n == "segments" or set(VOXEL_FIELDS) <= set(fields)), None
            )
            if name is None:
                raise InputError(
                    f"{path}: expected a dataset 'segments', or one with the fields {', '.join(VOXEL_FIELDS)}; "
                    f"it has: {', '.join(tables) or 'none'}",
                    file=path,
                )
            needed = [EVENT, *((field,) for field in SEGMENT_FIELDS)] if name == "segments" else []
            missing = [names for names in needed if not set(names) & set(tables[name])]
            if missing:
                field = "' or '".join(missing[0])
                raise BranchError(
                    f"{path}: dataset 'segments' lacks the field '{field}'; it has: {', '.join(tables[name])}",
                    file=path,
                    branch=missing[0][0],
                )
            rows = file[name][:]
    except OSError as error:
        raise InputError(f"{path} cannot be read as an HDF5 file: {error}", file=path) from error
    return _segments(rows, path) if name == "segments" else _voxels(rows, path)


def count_events(path: str) -> int:
    """Number of events in a file. Raises what `read_hdf5` raises."""
    return len(np.unique(read_hdf5(path).event))


def _segments(rows: Any, path: str) -> SegmentTable:
    event = _numbers(rows, EVENT)
    order = np.argsort(event, kind="stable")
    rows, event = rows[order], event[order]
    start, end = (
        np.stack([rows[f"{axis}_{side}"] for axis in "xyz"], 1).astype(np.float32) * np.float32(CM)
        for side in ("start", "end")
    )
    for what, values in (("position", start), ("position", end), ("dE", rows["dE"])):
        good = (np.isfinite(values) & (abs(values) < FAR)).all(tuple(range(1, values.ndim)))
        _check(good, values, what, f"finite numbers below {FAR:g}", path)
    _check(rows["dE"] >= 0, rows["dE"], "dE", "at least 0 MeV", path)
    track, pdg = (_numbers(rows, names) for names in (TRACK, PDG))
    return SegmentTable(event, start, end, rows["dE"].astype(np.float32), track, pdg)


def _numbers(rows: Any, names: tuple[str, ...]) -> NDArray[np.int64]:
    """The column with the first of some names that there is, zeros where there is none."""
    name = next((name for name in names if name in rows.dtype.names), None)
    return np.zeros(len(rows), np.int64) if name is None else rows[name].astype(np.int64)


def _voxels(rows: Any, path: str) -> VoxelTable:
    rows = rows[np.argsort(rows["imageInd"], kind="stable")]
    _check(np.isfinite(rows["voxdE"]) & (rows["voxdE"] >= 0), rows["voxdE"], "voxdE", "finite, at least 0 MeV", path)
    index = np.stack([rows[f"vox{axis}"] for axis in "xyz"], 1).astype(np.int64)
    return VoxelTable(rows["imageInd"].astype(np.int64), index, rows["voxdE"].astype(np.float32))


def _check(good: NDArray[np.bool_], values: NDArray, what: str, expected: str, path: str) -> None:
    if not good.all():
        row = int(np.argmin(good))
        raise InputError(f"{path}: row {row} has {what} {values[row]}, expected {expected}", file=path, entry=row)
