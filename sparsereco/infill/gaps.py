"""A liquid-argon detector as boxes of live argon on a grid of voxels, and the dead regions between them.

What is dead is derived: all that lies between the live boxes, further boxes, and the columns of dead channels. The grid
is never filled: the faces of all boxes cut it into a few cells, and a voxel is looked up by its cell, so the cost of a
look-up does not depend on the size of the detector. Lengths are in mm; neither torch nor a model is known here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sparsereco import bounds
from sparsereco.errors import InputError
from sparsereco.infill.channels import Channels, read_channels

Index = NDArray[np.int64]


@dataclass(frozen=True)
class ChargeResponse:
    """How energy deposits become the measured energy of a voxel."""

    recombination_a: float = 0.93
    """Constant of the modified box model (ArgoNeuT, JINST 8 (2013) P08005)."""
    recombination_b: float = 0.304
    """Its second constant over density and field, 0.212 / (1.396 * 0.5) for 0.5 kV/cm [cm/MeV]."""
    noise: float = 0.03
    """Gaussian noise of a voxel, some 900 electrons [MeV]."""
    threshold: float = 0.1
    """A voxel below is not read out [MeV]."""

    def __post_init__(self) -> None:
        bounds.positive(self, "response.", "recombination_a", "recombination_b")
        bounds.not_negative(self, "response.", "noise", "threshold")


@dataclass(frozen=True)
class LArDetector:
    """Equal boxes of live argon on a grid of cubic voxels that spans them all."""

    size: tuple[float, float, float]
    """Full lengths of each live box along x, y, z [mm]."""
    centres: tuple[tuple[float, float, float], ...]
    """Centre of each live box [mm]."""
    pitch: float = 3.8
    """Edge of a voxel [mm]."""
    dead: tuple[tuple[float, float, float, float, float, float], ...] = ()
    """Further dead boxes: x, y, z of the lower and of the upper corner of each [mm]."""
    channels: Channels = field(default_factory=Channels)
    response: ChargeResponse = field(default_factory=ChargeResponse)

    def __post_init__(self) -> None:
        # Settings may be anything, whatever their types say.
        if len(self.size) != 3 or not min(self.size) > 0:  # type: ignore[redundant-expr]
            raise ValueError(f"detector.size must be three positive lengths [mm], got {self.size}")
        if not self.centres or any(len(centre) != 3 for centre in self.centres):
            raise ValueError(f"detector.centres must be one or more points x, y, z [mm], got {self.centres}")
        bounds.positive(self, "detector.", "pitch")
        for box in self.dead:
            sides = zip(box[:3], box[3:], strict=True)
            if len(box) != 6 or any(low >= high for low, high in sides):  # type: ignore[redundant-expr]
                raise ValueError(f"detector.dead: expected x, y, z of a lower and of an upper corner [mm], got {box}")
        if any(size < self.pitch for size in self.size):
            raise ValueError(f"detector.size {self.size} is smaller than a voxel of {self.pitch} mm")

    @cached_property
    def origin(self) -> tuple[float, float, float]:
        """Lower corner of voxel (0, 0, 0) [mm]."""
        low = np.min(self.centres, 0) - np.array(self.size) / 2
        return float(low[0]), float(low[1]), float(low[2])

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along x, y, z."""
        length = np.ptp(self.centres, 0) + np.array(self.size)
        x, y, z = np.ceil(length / self.pitch - 1e-6).astype(int).tolist()
        return x, y, z

    def index(self, position: NDArray) -> Index:
        """Voxel index of (N, 3) positions [mm]; not clipped."""
        return np.floor((np.asarray(position, np.float64) - self.origin) / self.pitch).astype(np.int64)

    def centre(self, index: NDArray) -> NDArray:
        """Centres of voxels [mm], (N, 3), from their (N, 3) index."""
        return (np.asarray(index, np.float64) + 0.5) * self.pitch + self.origin


def detector_of(provenance: dict[str, Any], file: str) -> LArDetector | None:
    """The detector in the provenance of a simulation or an infill; None where it names none.

    Raises:
        InputError: what it names is no detector.
    """
    settings = provenance.get("chain", {}).get("detector", provenance.get("detector"))
    if settings is None:
        return None
    try:
        return LArDetector(
            tuple(settings["size"]),
            tuple(map(tuple, settings["centres"])),
            settings["pitch"],
            tuple(map(tuple, settings["dead"])),
            Channels(**settings["channels"]),
            ChargeResponse(**settings["response"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file}: its provenance describes no detector: {error}", file=file) from error


class Gaps:
    """The dead regions of a detector, numbered.

    First come the slabs that are dead across the whole detector (by axis and place), then what is left of the space
    between the boxes in connected pieces, the further dead boxes, and the dead channels. A voxel of several regions
    belongs to the first of them. A voxel is dead where its centre is.

    Args:
        detector: the boxes.

    Raises:
        InputError: the file of dead channels cannot be used.
    """

    def __init__(self, detector: LArDetector) -> None:
        self.detector = detector
        low, high = self._voxel_boxes(
            np.array(detector.centres) - np.array(detector.size) / 2,
            np.array(detector.centres) + np.array(detector.size) / 2,
        )
        dead = np.array(detector.dead, np.float64).reshape(-1, 6)
        dead_low, dead_high = self._voxel_boxes(dead[:, :3], dead[:, 3:])
        self._edges = [
            np.unique(np.concatenate([[0, n], low[:, a], high[:, a], dead_low[:, a], dead_high[:, a]]))
            for a, n in enumerate(detector.shape)
        ]
        live = np.zeros([len(edges) - 1 for edges in self._edges], bool)
        for one, other in zip(low, high, strict=True):
            live[self._cells(one, other)] = True
        self._label = self._number(live)
        n = int(self._label.max(initial=-1)) + 1
        for i, (one, other) in enumerate(zip(dead_low, dead_high, strict=True)):
            cells = self._label[self._cells(one, other)]
            cells[cells < 0] = n + i
        self.n_regions = n + len(dead)
        """Slabs, pieces and boxes; the dead channels have the numbers after them."""
        self._columns, self._column_boxes = self._dead_columns(low, high)
        self.n = self.n_regions + len(self._columns)
        """Number of gaps."""
        self.width = np.array([self._width(gap) for gap in range(self.n_regions)] + [1] * len(self._columns), np.int64)
        """(n,) smallest extent of each gap [voxels]."""

    def of(self, coords: NDArray) -> Index:
        """The gap of each voxel, (N, 3) index to (N,) number; -1 where it is live, -2 outside the grid."""
        coords = np.asarray(coords, np.int64)
        cell = [np.searchsorted(edges, coords[:, a], "right") - 1 for a, edges in enumerate(self._edges)]
        inside = ((coords >= 0) & (coords < self.detector.shape)).all(1)
        cell = [np.where(inside, one, 0) for one in cell]
        gap = np.where(inside, self._label[cell[0], cell[1], cell[2]], -2)
        if len(self._columns):
            gap = np.where(gap == -1, self._channel(coords), gap)
        return gap

    def _voxel_boxes(self, low: NDArray, high: NDArray) -> tuple[Index, Index]:
        """First voxel whose centre is inside, and first after it, clipped to the grid."""
        shape, origin, pitch = self.detector.shape, np.array(self.detector.origin), self.detector.pitch
        first, last = (np.ceil((edge - origin) / pitch - 0.5 - 1e-6).astype(np.int64) for edge in (low, high))
        # The grid's last voxels stick out of the detector, perhaps by more than half: they are as live as their box.
        outermost = high >= origin + np.array(shape) * pitch - pitch
        return np.clip(first, 0, shape), np.where(outermost, shape, np.clip(last, 0, shape))

    def _cells(self, low: Index, high: Index) -> tuple[slice, slice, slice]:
        x, y, z = (
            slice(*np.searchsorted(edges, [a, b]).tolist()) for edges, a, b in zip(self._edges, low, high, strict=True)
        )
        return x, y, z

    @staticmethod
    def _number(live: NDArray[np.bool_]) -> Index:
        """Numbers of the dead cells, -1 for live ones."""
        label, n = np.full(live.shape, -1, np.int64), 0
        for axis in range(3):
            across = ~live.any(tuple(other for other in range(3) if other != axis))
            runs, count = ndimage.label(across)
            for run in range(1, count + 1):
                slab = np.moveaxis(label, axis, 0)[runs == run]
                np.moveaxis(label, axis, 0)[runs == run] = np.where(slab < 0, n, slab)
                n += 1
        pieces, _ = ndimage.label(~live & (label < 0))
        return np.where(pieces > 0, n - 1 + pieces, label)

    def bounds(self, gap: int) -> tuple[Index, Index] | None:
        """First voxel of a gap between or inside boxes, and the first after it; None where others cover it."""
        cells = np.argwhere(self._label == gap)
        if not len(cells):
            return None
        low, high = cells.min(0), cells.max(0) + 1
        return (
            np.array([edges[i] for edges, i in zip(self._edges, low, strict=True)]),
            np.array([edges[i] for edges, i in zip(self._edges, high, strict=True)]),
        )

    def _width(self, gap: int) -> int:
        box = self.bounds(gap)
        return 0 if box is None else int((box[1] - box[0]).min())

    def _dead_columns(self, low: Index, high: Index) -> tuple[Index, Index]:
        """Per column of voxels that a dead channel darkens: box and the two indices as one sorted key; the boxes."""
        file, drift = self.detector.channels.file, "xyz".index(self.detector.channels.drift)
        if file is None:
            return np.zeros(0, np.int64), np.zeros((0, 2), np.int64)
        box, centre = read_channels(self.detector.channels, np.array(self.detector.centres))
        across = [a for a in range(3) if a != drift]
        origin = np.array(self.detector.origin)[across]
        half = self.detector.channels.pitch / 2
        first, last = (
            np.ceil((centre + side * half - origin) / self.detector.pitch - 0.5).astype(np.int64) for side in (-1, 1)
        )
        keys = [
            (number * self.detector.shape[across[0]] + u) * self.detector.shape[across[1]] + v
            for number, (u0, v0), (u1, v1) in zip(box.tolist(), first.tolist(), last.tolist(), strict=True)
            for u in range(u0, u1)
            for v in range(v0, v1)
        ]
        return np.unique(np.array(keys, np.int64)), np.stack([low[:, drift], high[:, drift]], 1)

    def _channel(self, coords: Index) -> Index:
        drift = "xyz".index(self.detector.channels.drift)
        u, v = (a for a in range(3) if a != drift)
        gap = np.full(len(coords), -1)
        for box, (low, high) in enumerate(self._column_boxes.tolist()):
            key = (box * self.detector.shape[u] + coords[:, u]) * self.detector.shape[v] + coords[:, v]
            place = np.searchsorted(self._columns, key).clip(max=len(self._columns) - 1)
            dark = (self._columns[place] == key) & (coords[:, drift] >= low) & (coords[:, drift] < high)
            gap = np.where(dark, self.n_regions + place, gap)
        return gap
