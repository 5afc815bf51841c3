"""Events composed from a bank of tracks: every particle a random track, turned at random, started at a random vertex.

400,000 tracks give unlimited distinct events, so training needs no event files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from sparsereco.detector import Detector
from sparsereco.sim.bank import Bank
from sparsereco.sim.geant4 import DEUTERON, MUON, PROTON, TRITON
from sparsereco.sim.response import Deposits

MARGIN = 60.0
"""A vertex lies at least this far inside the detector [mm]."""


@dataclass(frozen=True)
class Preset:
    """One leaving muon and a uniform number of each hadron, at least one in all (arXiv 2310.19695)."""

    hadrons: Mapping[int, tuple[int, int]]
    """Smallest and largest number of each species, by PDG code."""


PRESETS = MappingProxyType(
    {
        "conf1": Preset({PROTON: (1, 5)}),
        "conf2": Preset({PROTON: (0, 4), DEUTERON: (0, 1), TRITON: (0, 1)}),
    }
)


class TrackBank:
    """A `Bank` as tensors, with the tracks of each species at hand."""

    def __init__(self, bank: Bank) -> None:
        self.position = torch.from_numpy(bank.position)  # (N, 3) [mm]
        self.energy = torch.from_numpy(bank.energy)  # (N,) [MeV]
        self.dedx = torch.from_numpy(bank.dedx)  # (N,) [MeV/mm]
        self.offsets = torch.from_numpy(bank.offsets)  # (T + 1,)
        self.pdg = torch.from_numpy(bank.pdg.astype(np.int64))  # (T,)
        self.ke = torch.from_numpy(bank.ke)  # (T,) [MeV]
        self.species = {int(code): torch.from_numpy(np.flatnonzero(bank.pdg == code)) for code in np.unique(bank.pdg)}
        self._within: dict[float, Tensor] = {}

    def lengths(self, reach: float) -> Tensor:
        """(T,) number of deposits of each track within ``reach`` [mm] of its start; they are its first ones."""
        if reach not in self._within:
            near = torch.linalg.vector_norm(self.position, dim=1) < reach
            count = torch.cat([near.new_zeros(1, dtype=torch.int64), near.cumsum(0)])
            self._within[reach] = count[self.offsets[1:]] - count[self.offsets[:-1]]
        return self._within[reach]

    def sample(self, pdg: Tensor, generator: torch.Generator | None) -> Tensor:
        """A random track of each species asked for, (P,) PDG codes to (P,) track index."""
        tracks = torch.empty_like(pdg)
        for code in pdg.unique().tolist():
            if code not in self.species:
                raise ValueError(f"the bank holds no track of PDG code {code}; it has {sorted(self.species)}")
            of_code = pdg == code
            pool = self.species[code]
            tracks[of_code] = pool[torch.randint(len(pool), (int(of_code.sum()),), generator=generator)]
        return tracks


@dataclass(frozen=True)
class Particles:
    """Particles of a batch of interactions, sorted by interaction."""

    interaction: Tensor  # (P,) int64
    track: Tensor  # (P,) int64, index in the bank
    pdg: Tensor  # (P,) int64
    ke: Tensor  # (P,) [MeV]
    rotation: Tensor  # (P, 3, 3) from the bank's frame to the detector's
    start: Tensor  # (P, 3) [mm]

    @property
    def direction(self) -> Tensor:
        """(P, 3) unit vectors: the bank's +z, turned."""
        return self.rotation[:, :, 2]


def draw_interactions(
    bank: TrackBank, preset: Preset, detector: Detector, n: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Particles]:
    """Vertices and particles of ``n`` interactions.

    Returns:
        (n, 3) vertices [mm], uniform at least `MARGIN` inside the detector, and the particles, the muon of each
        interaction first.
    """
    low = torch.tensor(detector.origin) + MARGIN
    high = torch.tensor(detector.origin) + torch.tensor(detector.size) - MARGIN
    vertex = low + (high - low) * torch.rand(n, 3, generator=generator)

    codes = torch.tensor([MUON, *preset.hadrons])
    limits = torch.tensor([(1, 1), *preset.hadrons.values()])
    spread = torch.rand(n, len(codes), generator=generator) * (limits[:, 1] - limits[:, 0] + 1)
    counts = limits[:, 0] + spread.long()
    empty = counts[:, 1:].sum(1) == 0
    lone = 1 + torch.randint(len(preset.hadrons), (n,), generator=generator)
    counts[empty, lone[empty]] = 1

    pdg = torch.repeat_interleave(codes.repeat(n), counts.flatten())
    interaction = torch.repeat_interleave(torch.arange(n), counts.sum(1))
    track = bank.sample(pdg, generator)
    rotation = random_rotations(len(pdg), generator)
    return vertex, Particles(interaction, track, pdg, bank.ke[track], rotation, vertex[interaction])


def draw_crossing_muons(
    bank: TrackBank, detector: Detector, n_events: int, probability: float, generator: torch.Generator | None = None
) -> Particles:
    """Unrelated muons that enter the detector at its surface, at most one per event.

    They pass through a random point of it in a random direction.
    """
    event = torch.nonzero(torch.rand(n_events, generator=generator) < probability)[:, 0]
    pdg = torch.full_like(event, MUON)
    track = bank.sample(pdg, generator)
    rotation = random_rotations(len(event), generator)
    low, size = torch.tensor(detector.origin), torch.tensor(detector.size)
    inside = low + size * torch.rand(len(event), 3, generator=generator)
    direction = rotation[:, :, 2]
    back = (
        torch.where(direction > 0, inside - low, inside - low - size) / direction
    )  # (P, 3) to the plane behind, per axis
    start = inside - back.min(1, keepdim=True).values * direction
    return Particles(event, track, pdg, bank.ke[track], rotation, start)


def deposits(
    bank: TrackBank, particles: Particles, n_events: int, reach: float = float("inf")
) -> tuple[Deposits, Tensor]:
    """What the particles leave in the medium.

    Args:
        reach: only deposits this close to the particle's start [mm].

    Returns:
        The deposits, with the interaction as event, and (N,) the particle that made each.
    """
    lengths = bank.lengths(reach)[particles.track]
    owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    first = bank.offsets[particles.track] - (lengths.cumsum(0) - lengths)
    row = first[owner] + torch.arange(len(owner))
    position = torch.bmm(particles.rotation[owner], bank.position[row][:, :, None])[:, :, 0] + particles.start[owner]
    return Deposits(position, bank.energy[row], bank.dedx[row], particles.interaction[owner], n_events), owner


def merge(first: Deposits, second: Deposits) -> Deposits:
    """Two sets of deposits in the same events."""
    return Deposits(
        position=torch.cat([first.position, second.position]),
        energy=torch.cat([first.energy, second.energy]),
        dedx=torch.cat([first.dedx, second.dedx]),
        event=torch.cat([first.event, second.event]),
        n_events=first.n_events,
    )


def random_rotations(n: int, generator: torch.Generator | None = None) -> Tensor:
    """(n, 3, 3) rotations, uniform over SO(3).

    Unit quaternions from four normal numbers (K. Shoemake, Graphics Gems III, 1992).
    """
    w, x, y, z = torch.nn.functional.normalize(torch.randn(n, 4, generator=generator), dim=1).unbind(1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, 1).view(n, 3, 3)
