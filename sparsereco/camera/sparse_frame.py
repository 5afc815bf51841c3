"""Frames reduced to their regions: what is kept of a frame where disk or bandwidth is short, and the way back."""

from __future__ import annotations

import awkward as ak
import numpy as np
import torch
from numpy.typing import NDArray

from sparsereco.camera.regions import label_pixels, polygons_of
from sparsereco.errors import InputError
from sparsereco.frames import Frame
from sparsereco.schema import SPARSE_FRAMES
from sparsereco.voxels import Voxels


def reduce_frame(frame: Frame, event: ak.Record) -> ak.Record:
    """Keeps what lies in regions.

    Args:
        frame: as it was read.
        event: its regions, with the fields of the tree ``roi``.

    Returns:
        A record of the tree ``sparse_frames``.

    Raises:
        InputError: the regions are of another frame.
    """
    rows, columns = frame.image.shape
    theirs = (event.run, event.event, event.rows, event.columns)
    if theirs != (frame.run, frame.event, rows, columns):
        raise InputError(
            f"{frame.name} has {rows} x {columns} pixels, but the regions are of run {event.run}, event {event.event} "
            f"with {event.rows} x {event.columns}",
            file=frame.file,
        )
    y, x = np.nonzero(label_pixels(polygons_of(event), (rows, columns)))
    known = {"run": [frame.run], "event": [frame.event], "rows": [rows], "columns": [columns]}
    lists = {"pixel_x": x, "pixel_y": y, "pixel_value": frame.image[y, x]}
    fields = {name: ak.unflatten(column, [len(column)]) for name, column in lists.items()}
    record = ak.zip({**{name: np.array(value) for name, value in known.items()}, **fields}, depth_limit=1)
    return ak.zip({b.name: ak.values_astype(record[b.name], b.dtype) for b in SPARSE_FRAMES.branches}, depth_limit=1)[0]


def restore_frame(record: ak.Record, fill: NDArray, file: str = "sparse frame", entry: int = 0) -> Frame:
    """A whole frame again.

    Args:
        record: of the tree ``sparse_frames``.
        fill: (H, W) what the other pixels show, such as the mean of the pedestal [counts].
        file: where the record is from, for errors.
        entry: its place there.

    Raises:
        InputError: ``fill`` has another size, or a pixel lies outside.
    """
    shape = (record.rows, record.columns)
    if fill.shape != shape:
        raise InputError(
            f"{file}: entry {entry} has {shape[0]} x {shape[1]} pixels, the fill {fill.shape[0]} x {fill.shape[1]}"
        )
    y, x = (np.asarray(record[f"pixel_{axis}"]) for axis in "yx")
    if ((y < 0) | (y >= shape[0]) | (x < 0) | (x >= shape[1])).any():
        raise InputError(f"{file}: entry {entry} has pixels outside of its {shape[0]} x {shape[1]}", file=file)
    image = fill.astype(np.float32)
    image[y, x] = np.asarray(record.pixel_value)
    return Frame(int(record.run), int(record.event), image, file, entry)


def frame_voxels(records: ak.Array) -> Voxels:
    """Sparse frames as sparse images, one event per frame; coordinates are y, x.

    Args:
        records: of the tree ``sparse_frames``, of one camera.

    Raises:
        InputError: no frame, or frames of different sizes.
    """
    sizes = set(zip(records.rows.tolist(), records.columns.tolist(), strict=True))
    if len(sizes) != 1:
        raise InputError(f"expected sparse frames of one size, got {sorted(sizes) or 'none'}")
    y, x, value = (ak.to_numpy(ak.flatten(records[f"pixel_{name}"])) for name in ("y", "x", "value"))
    offsets = torch.tensor([0, *ak.num(records.pixel_x).tolist()]).cumsum(0)
    coords = torch.from_numpy(np.stack([y, x], 1).astype(np.int32))
    return Voxels(coords, torch.from_numpy(value.astype(np.float32))[:, None], offsets, sizes.pop())
