"""Banks of single-particle energy deposits: made once by Geant4 and kept on disk.

A uniform block is isotropic, so one bank of tracks that start at the origin along +z serves every vertex and every
direction: `sparsereco.sim.compose` rotates and moves them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from sparsereco.errors import InputError
from sparsereco.sim.geant4 import ALPHA, DEUTERON, MUON, NAMES, PION, PROTON, TRITON, simulate

ENERGIES = {PROTON: (0, 60), DEUTERON: (0, 60), TRITON: (0, 60), ALPHA: (0, 60), MUON: (300, 1000), PION: (0, 60)}
"""Kinetic energies of the bank, uniform [MeV] (arXiv 2310.19695: hadrons 0-60, leaving muon 300-1000)."""

FRACTIONS = {PROTON: 0.53, DEUTERON: 0.14, TRITON: 0.14, MUON: 0.12, PION: 0.04, ALPHA: 0.03}
"""Share of each species in a bank."""

BIRKS = 0.126
"""Birks constant with which merged deposits keep their quenching exactly [mm/MeV]."""

NEAR, FINE, COARSE = 90.0, 0.5, 3.0
"""Deposits are merged within 0.5 mm up to 90 mm from the start, within 3 mm beyond: little against a voxel [mm]."""

Arrays = TypeVar("Arrays")
"""A dataclass whose fields are all arrays."""


@dataclass(frozen=True)
class Bank:
    """Tracks as ragged deposits: track t owns rows offsets[t] to offsets[t + 1], by distance from its start."""

    position: NDArray[np.float32]  # (N, 3)
    """Relative to the start of the track, which leaves along +z [mm]."""
    energy: NDArray[np.float32]  # (N,)
    """Deposited energy [MeV]."""
    dedx: NDArray[np.float32]  # (N,)
    """Energy loss per length that gives the deposit its quenching [MeV/mm]."""
    offsets: NDArray[np.int64]  # (T + 1,)
    pdg: NDArray[np.int32]  # (T,)
    ke: NDArray[np.float32]  # (T,)
    """Kinetic energy at the start [MeV]."""

    def __len__(self) -> int:
        return len(self.pdg)

    def save(self, path: str | Path) -> None:
        """Writes the bank as an uncompressed npz file; the file appears only when it is complete."""
        save_arrays(path, self)

    @classmethod
    def load(cls, path: str | Path) -> Bank:
        """Reads a bank.

        Raises:
            InputError: No such file, or not one that `save` wrote.
        """
        return load_arrays(path, cls, "bank of vertex tracks", "tools/simulate.py bank")


def save_arrays(path: str | Path, bank: Any) -> None:
    """Writes a dataclass of arrays as an uncompressed npz file; the file appears only when it is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez(part, **{f.name: getattr(bank, f.name) for f in fields(bank)})
    part.replace(path)


def load_arrays(path: str | Path, kind: type[Arrays], what: str, make: str) -> Arrays:
    """Reads what `save_arrays` wrote.

    Args:
        path: the file.
        kind: the dataclass.
        what: it is, for errors.
        make: the command that makes one, likewise.

    Raises:
        InputError: No such file, or not one of this kind.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return kind(**{f.name: arrays[f.name] for f in fields(kind)})  # type: ignore[arg-type]
    except OSError as error:
        raise InputError(f"bank {path} cannot be read: {error.strerror or error}", file=str(path)) from error
    except (ValueError, KeyError, TypeError, BadZipFile) as error:  # numpy takes other files for pickles, or one array
        raise InputError(f"{path} is no {what}; make one with {make}", file=str(path)) from error


def make_bank(n: int, seed: int, on_progress: Callable[[int], None] = lambda done: None) -> Bank:
    """Simulates a bank of about ``n`` tracks, with at least one of each species of `FRACTIONS`.

    Args:
        n: number of tracks.
        seed: of the energies and of Geant4.
        on_progress: called with the number of tracks finished since the last call.
    """
    random = np.random.default_rng(seed)
    pdg = np.repeat(list(FRACTIONS), [max(1, round(n * share)) for share in FRACTIONS.values()])
    low, high = np.array([ENERGIES[code] for code in pdg]).T
    ke = random.uniform(low, high)
    parts, chunk = [], 500
    for start in range(0, len(pdg), chunk):
        jobs = [
            (NAMES[code], energy)
            for code, energy in zip(pdg[start : start + chunk], ke[start : start + chunk], strict=True)
        ]
        parts.append(_merge(list(simulate(jobs, seed=seed + 1 + start))))
        on_progress(len(jobs))
    lengths = np.concatenate([part[3] for part in parts])
    position, energy, dedx = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return Bank(position, energy, dedx, np.append(0, lengths.cumsum()), pdg.astype(np.int32), ke.astype(np.float32))


def _merge(events: list[NDArray[np.float64]]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Merges steps within small cells, keeping deposited and quenched energy and the charge-weighted position."""
    lengths = np.array([len(e) for e in events])
    steps = np.concatenate(events)
    owner = np.repeat(np.arange(len(events)), lengths)
    before, after, energy, length = steps[:, :3], steps[:, 3:6], steps[:, 6], np.maximum(steps[:, 7], 1e-4)
    visible = energy / (1 + BIRKS * energy / length)

    # A step longer than 1 mm is spread evenly along itself, so that it can cross a voxel boundary.
    pieces = np.maximum(1, np.ceil(np.linalg.norm(after - before, axis=1))).astype(int)
    row = np.repeat(np.arange(len(steps)), pieces)
    where = (np.arange(len(row)) - np.repeat(pieces.cumsum() - pieces, pieces) + 0.5) / pieces[row]
    position = before[row] + (after - before)[row] * where[:, None]
    energy, visible, owner = (energy / pieces)[row], (visible / pieces)[row], owner[row]

    near = np.abs(position).max(1) < NEAR
    cell = np.floor(position / np.where(near, FINE, COARSE)[:, None]).astype(np.int64) + 2**14
    key = (((owner * 2 + near) * 2**15 + cell[:, 0]) * 2**15 + cell[:, 1]) * 2**15 + cell[:, 2]
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    total = np.bincount(inverse, energy)
    light = np.bincount(inverse, visible)
    merged = np.stack([np.bincount(inverse, visible * position[:, i]) / light for i in range(3)], 1)
    dedx = (total / light - 1) / BIRKS
    order = np.lexsort((np.linalg.norm(merged, axis=1), owner[first]))
    counts = np.bincount(owner[first], minlength=len(events))
    f32 = np.float32
    return merged[order].astype(f32), total[order].astype(f32), dedx[order].astype(f32), counts
