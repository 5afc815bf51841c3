"""Lists of dead channels: by the place of their pixels, or by the electronics' numbers and a pixel layout of larnd-sim.

larnd-sim (https://github.com/DUNE/larnd-sim) describes the anode of a module as tiles of pixels in a YAML file, and
names a channel by io_group, io_channel, chip and channel. Lists of bad channels are JSON, ``"group-io-chip": [channel,
...]``, where the key ``All`` is of every chip; lists of disabled ones npz with 64-bit keys.
"""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from sparsereco import bounds
from sparsereco.errors import InputError

Index = NDArray[np.int64]
Place = NDArray[np.float64]

PER_TILE = 4
"""Consecutive io_channels that read one tile. Which of them reads which chip changes with the wiring, the tile not."""


@dataclass(frozen=True)
class Channels:
    """Dead channels: each darkens the argon above its pixel along the whole drift of its box."""

    file: str | None = None
    """CSV file with the columns ``box`` (number of the live box) and ``u``, ``v`` (centre of the pixel along the two
    axes that are not the drift's, in mm); with a layout a JSON or npz file of larnd-sim; null: no dead channels."""
    drift: str = "x"
    """Axis of the drift."""
    pitch: float = 4.434
    """Edge of a pixel [mm]."""
    layout: str | None = None
    """Pixel layout of larnd-sim (YAML) of one module with its anodes at both ends of x and its centre at 0."""

    def __post_init__(self) -> None:
        if self.drift not in ("x", "y", "z"):
            raise ValueError(f"channels.drift must be x, y or z, got {self.drift!r}")
        bounds.positive(self, "channels.", "pitch")
        if self.layout and self.drift != "x":
            raise ValueError(f"channels.layout is of a drift along x, got channels.drift {self.drift}")


def read_channels(channels: Channels, centres: Place) -> tuple[Index, Place]:
    """Box (C,) and centre (C, 2) [mm] of each dead channel's pixel.

    Args:
        channels: with a file.
        centres: (B, 3) centre of each live box [mm].

    Raises:
        InputError: a file that cannot be read or is none of these kinds.
    """
    if channels.layout is None:
        return _read_places(str(channels.file), len(centres))
    listed, layout = _read_list(str(channels.file)), _read_layout(channels.layout)
    chips: dict[tuple[int, int, int], list[int]] = {}
    for tile, of_chip in layout["tile_chip_to_io"].items():
        for chip, io in of_chip.items():
            chips.setdefault(_chip(io // 1000, io % 1000, chip), []).append(tile)
    unknown = sorted({name[:3] for name in listed if name[0] >= 0 and _chip(*name[:3]) not in chips})
    if unknown:
        raise InputError(
            f"channels.file {channels.file}: io_group, io_channel, chip {unknown[0]} is not in the layout "
            f"{channels.layout}, nor are {len(unknown) - 1} more",
            file=channels.file,
        )
    pixels = layout["chip_channel_to_position"]
    half = layout["pixel_pitch"] * (np.array(list(pixels.values())).max(0) + 1) / 2
    box, centre = [], []
    for group, io, chip, channel in listed:
        for tile, number in _tiles(chips, group, io, chip):
            pixel = pixels.get(1000 * number + channel)
            if pixel is None:  # an input of the chip that no pixel is wired to
                continue
            orientation, place = layout["tile_orientations"][tile], layout["tile_positions"][tile]
            across = layout["pixel_pitch"] * (np.array(pixel) + 0.5) - half
            # A tile's first index runs along z, its second one along y.
            centre.append((place[1] + orientation[1] * across[1], place[2] + orientation[2] * across[0]))
            box.append(int(np.abs(centres[:, 0] - place[0]).argmin()))
    return np.array(box, np.int64), np.array(centre, np.float64).reshape(-1, 2)


def _chip(group: int, io: int, chip: int) -> tuple[int, int, int]:
    """What names a chip for good: its group, the tile by its io_channel, its number on the tile."""
    return group, (io - 1) // PER_TILE, chip


def _tiles(chips: dict[tuple[int, int, int], list[int]], group: int, io: int, chip: int) -> Iterator[tuple[int, int]]:
    """Tile and chip of a name, or of all of them."""
    names = [_chip(group, io, chip)] if group >= 0 else list(chips)
    return ((tile, name[2]) for name in names for tile in chips[name])


def _read_list(file: str) -> list[tuple[int, int, int, int]]:
    """io_group, io_channel, chip, channel of each entry; io_group -1: of every chip."""
    try:
        if Path(file).suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                keys = arrays["keys"].astype(np.int64)
            parts = [keys >> 22, keys >> 14 & 255, keys >> 6 & 255, keys & 63]
            return [(int(a), int(b), int(c), int(d)) for a, b, c, d in zip(*parts, strict=True)]
        listed = []
        for name, numbers in json.loads(Path(file).read_text()).items():
            group, io, chip = (-1, -1, -1) if name == "All" else map(int, name.split("-"))
            listed += [(group, io, chip, int(number)) for number in numbers]
        return listed
    except OSError as error:
        raise InputError(f"channels.file {file} cannot be read: {error.strerror}", file=file) from error
    except (KeyError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"channels.file {file}: expected a list of larnd-sim, as there is a channels.layout: JSON with lists of "
            f"channels by group-io-chip, or npz with keys: {error}",
            file=file,
        ) from error


def _read_layout(file: str) -> dict[str, Any]:
    wanted = {
        "chip_channel_to_position", "pixel_pitch", "tile_chip_to_io", "tile_orientations", "tile_positions",
    }  # fmt: skip
    try:
        layout = yaml.load(Path(file).read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except OSError as error:
        raise InputError(f"channels.layout {file} cannot be read: {error.strerror}", file=file) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"channels.layout {file} is no YAML file: {error}", file=file) from error
    if not isinstance(layout, dict) or not wanted <= set(layout):
        raise InputError(f"channels.layout {file}: expected a pixel layout with {', '.join(sorted(wanted))}", file=file)
    return layout


def _read_places(file: str, boxes: int) -> tuple[Index, Place]:
    """Box and centre from a CSV file."""
    try:
        with Path(file).open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        box = np.array([int(row["box"]) for row in rows], np.int64)
        centre = np.array([(float(row["u"]), float(row["v"])) for row in rows], np.float64).reshape(-1, 2)
    except OSError as error:
        raise InputError(f"channels.file {file} cannot be read: {error.strerror}", file=file) from error
    except (KeyError, ValueError, TypeError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"channels.file {file}: expected numbers in columns box, u, v: {error}", file=file) from error
    if len(box) and not (box.min() >= 0 and box.max() < boxes):
        raise InputError(f"channels.file {file}: box {box.max()}, expected 0 to {boxes - 1}", file=file)
    return box, centre
