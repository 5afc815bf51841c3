"""Events in liquid argon: tracks from Geant4 or edep-sim, turned and moved at random, and what a charge readout sees.

Argon is the same everywhere, dead or live: the energy of every voxel is simulated, and what lies in a dead region is
the truth that an infill has to find. To move tracks over a fixed pattern of gaps, at any angle, is to move the pattern.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsereco.infill.gaps import ChargeResponse, Gaps, LArDetector
from sparsereco.segments import Segments, voxelize
from sparsereco.sim.bank import load_arrays, save_arrays
from sparsereco.sim.compose import random_rotations
from sparsereco.sim.geant4 import Medium, simulate
from sparsereco.voxels import Voxels, rank_in_group, rows_of

ARGON = Medium("G4_lAr", reach=700.0, max_step=2.0)
"""Steps below a voxel of 3.8 mm, as the energy loss does not fluctuate within a step."""

MUON, PION, PROTON, ELECTRON = 13, 211, 2212, 11

NAMES = {MUON: "mu-", PION: "pi+", PROTON: "proton", ELECTRON: "e-"}
"""Geant4's particle name of each PDG code."""

ENERGIES = {MUON: (300, 3000), PION: (30, 600), PROTON: (20, 400), ELECTRON: (1, 100)}
"""Kinetic energies of the bank [MeV]; muons uniform, the others uniform in the logarithm."""

FRACTIONS = {MUON: 0.35, PION: 0.2, PROTON: 0.2, ELECTRON: 0.25}
"""Share of each species in a bank."""

MIP = 0.21
"""Energy loss for which the recombination is calibrated: a muon near the minimum [MeV/mm]."""


@dataclass(frozen=True)
class SegmentBank:
    """Tracks as ragged segments: track t owns rows offsets[t] to offsets[t + 1]; each starts at 0 along +z."""

    start: NDArray[np.float32]  # (N, 3) [mm]
    end: NDArray[np.float32]  # (N, 3) [mm]
    energy: NDArray[np.float32]  # (N,) [MeV]
    offsets: NDArray[np.int64]  # (T + 1,)
    pdg: NDArray[np.int32]  # (T,)
    ke: NDArray[np.float32]  # (T,) kinetic energy at the start [MeV]

    def __len__(self) -> int:
        return len(self.pdg)

    def save(self, path: str | Path) -> None:
        """Writes the bank as an uncompressed npz file; the file appears only when it is complete."""
        save_arrays(path, self)

    @classmethod
    def load(cls, path: str | Path) -> SegmentBank:
        """Reads a bank.

        Raises:
            InputError: No such file, or not one that `save` wrote.
        """
        return load_arrays(path, cls, "bank of tracks in liquid argon", "tools/simulate.py lar-bank")


def make_segment_bank(n: int, seed: int, on_progress: Callable[[int], None] = lambda done: None) -> SegmentBank:
    """Simulates about ``n`` tracks in liquid argon, with at least one of each species of `FRACTIONS`."""
    random = np.random.default_rng(seed)
    pdg = np.repeat(list(FRACTIONS), [max(1, round(n * share)) for share in FRACTIONS.values()])
    low, high = np.array([ENERGIES[code] for code in pdg], np.float64).T
    u = random.uniform(size=len(pdg))
    ke = np.where(pdg == MUON, low + u * (high - low), low * (high / low) ** u)
    tracks: list[NDArray[np.float32]] = []
    for first in range(0, len(pdg), 500):
        jobs = [(NAMES[code], energy) for code, energy in zip(pdg[first : first + 500], ke[first : first + 500])]  # noqa: B905
        tracks += [steps[:, :7].astype(np.float32) for steps in simulate(jobs, seed + 1 + first, ARGON)]
        on_progress(len(jobs))
    offsets = np.append(0, np.cumsum([len(track) for track in tracks]))
    rows = np.concatenate(tracks)
    f32 = np.float32
    return SegmentBank(rows[:, :3], rows[:, 3:6], rows[:, 6], offsets, pdg.astype(np.int32), ke.astype(f32))


@dataclass(frozen=True)
class Tracks:
    """Tracks of a batch of events, sorted by event."""

    event: Tensor  # (P,) int64
    track: Tensor  # (P,) int64, index in the bank
    rotation: Tensor  # (P, 3, 3) from the bank's frame to the detector's
    start: Tensor  # (P, 3) [mm]
    reach: Tensor  # (P,) what lies further from its start is cut off [mm]

    @property
    def direction(self) -> Tensor:
        """(P, 3) unit vectors at the start: the bank's +z, turned."""
        return self.rotation[:, :, 2]


@dataclass(frozen=True)
class Composition:
    """What an event is made of."""

    muons: tuple[int, int]
    """Fewest and most through-going muons."""
    vertices: tuple[int, int]
    """Fewest and most points that tracks start from."""
    prongs: tuple[int, int]
    """Fewest and most tracks from each: pions, protons, electrons or muons."""
    blips: tuple[int, int]
    """Fewest and most electrons below `BLIP` anywhere near."""
    cosine: float
    """Smallest cosine of the angle between a muon and the normal of its gap."""
    interaction: float | None = None
    """Hadrons interact after this distance on average: they are cut, and others start there, which Geant4 is not asked
    for in a bank; the prongs are then no muons. None: they all stop by ionisation [mm]."""


BLIP = 15.0
"""Blips are electrons below this kinetic energy, as photons make them [MeV]."""

COMPOSITIONS = {
    "muon": Composition((1, 1), (0, 0), (1, 1), (0, 0), 0.3),
    "mixed": Composition((0, 2), (1, 4), (1, 5), (0, 40), 0.05),
    "hadrons": Composition((0, 1), (1, 3), (2, 6), (0, 40), 0.05, 600.0),
}
"""Single muons that cross a gap up to 73 degrees from its normal; events of many short, scattered, stopping tracks; the
same of hadrons that interact, shorter than by their cross section, as they scatter by small angles as well."""


class TrackSource:
    """A `SegmentBank` as tensors, with the tracks of each species at hand."""

    def __init__(self, bank: SegmentBank) -> None:
        self.start, self.end = torch.from_numpy(bank.start), torch.from_numpy(bank.end)
        self.energy, self.offsets = torch.from_numpy(bank.energy), torch.from_numpy(bank.offsets)
        self.pdg, self.ke = torch.from_numpy(bank.pdg.astype(np.int64)), torch.from_numpy(bank.ke)
        blips = (bank.pdg == ELECTRON) & (bank.ke < BLIP)
        self.muons = torch.from_numpy(np.flatnonzero(bank.pdg == MUON))
        self.prongs = torch.from_numpy(np.flatnonzero(~blips))
        self.light = torch.from_numpy(np.flatnonzero(~blips & (bank.pdg != MUON)))
        self.hadrons = torch.from_numpy(np.flatnonzero((bank.pdg == PION) | (bank.pdg == PROTON)))
        self.blips = torch.from_numpy(np.flatnonzero(blips))

    def segments(self, tracks: Tracks, n_events: int) -> tuple[Segments, Tensor]:
        """The segments of tracks where they lie, and (N,) the track of each."""
        owner, row = rows_of(self.offsets, tracks.track)
        near = self.start[row].norm(dim=1) < tracks.reach[owner]
        owner, row = owner[near], row[near]
        turn = tracks.rotation[owner]
        start, end = (
            torch.einsum("nij,nj->ni", turn, point[row]) + tracks.start[owner] for point in (self.start, self.end)
        )
        return Segments(start, end, self.energy[row], tracks.event[owner], n_events), owner

    def tips(self, tracks: Tracks) -> tuple[Tensor, Tensor]:
        """Where tracks are cut, (P, 3) [mm], and (P,) whether they are."""
        owner, row = rows_of(self.offsets, tracks.track)
        near = self.start[row].norm(dim=1) < tracks.reach[owner]
        cut = torch.zeros(len(tracks.track), dtype=torch.bool)
        cut[owner[~near]] = True
        owner, row = owner[near], row[near]
        # Of what is left the furthest end, of a later row than all nearer ones or of a short delta ray there.
        order = torch.argsort(self.end[row].norm(dim=1))
        tip = torch.zeros(len(tracks.track), dtype=torch.int64)
        tip[owner[order]] = row[order]
        return torch.einsum("nij,nj->ni", tracks.rotation, self.end[tip]) + tracks.start, cut


def draw_tracks(
    source: TrackSource,
    composition: Composition,
    centre: Tensor,
    normal: Tensor,
    spread: float,
    generator: torch.Generator,
) -> Tracks:
    """Tracks of one event per row of ``centre``.

    Args:
        source: the tracks.
        composition: how many of which.
        centre: (B, 3) a point in a gap that the events lie around [mm]. A muon passes through it.
        normal: (B, 3) unit vector across that gap. The muons are those of an isotropic flux through it: uniform in the
            square of the cosine.
        spread: vertices and blips lie within this distance of it along each axis [mm].
        generator: of all that is random.
    """
    n = len(centre)

    def count(limits: tuple[int, int], size: int = n) -> Tensor:
        return torch.randint(limits[0], limits[1] + 1, (size,), generator=generator)

    def draw(pool: Tensor, size: int) -> Tensor:
        return pool[torch.randint(len(pool), (size,), generator=generator)]

    def around(size: int) -> Tensor:
        return spread * (2 * torch.rand(size, 3, generator=generator) - 1)

    events = torch.arange(n)
    vertex_event = events.repeat_interleave(count(composition.vertices))
    vertex = centre[vertex_event] + around(len(vertex_event))
    prongs = torch.arange(len(vertex_event)).repeat_interleave(count(composition.prongs, len(vertex_event)))
    muon, blip = events.repeat_interleave(count(composition.muons)), events.repeat_interleave(count(composition.blips))
    pool = source.prongs if composition.interaction is None else source.light
    track = torch.cat([draw(source.muons, len(muon)), draw(pool, len(prongs)), draw(source.blips, len(blip))])
    rotation = random_rotations(len(track), generator)
    rotation[: len(muon)] = _crossing(normal[muon], composition.cosine, generator)
    before = ARGON.reach * (0.3 + 0.4 * torch.rand(len(muon), 1, generator=generator))
    # Only the first muon need cross the point; further ones pass nearby.
    off = around(len(muon)) * (rank_in_group(muon) > 0)[:, None]
    start = torch.cat(
        [centre[muon] + off - before * rotation[: len(muon), :, 2], vertex[prongs], centre[blip] + around(len(blip))]
    )
    tracks = _sorted(torch.cat([muon, vertex_event[prongs], blip]), track, rotation, start)
    return tracks if composition.interaction is None else _interacting(source, tracks, composition, generator)


def _sorted(event: Tensor, track: Tensor, rotation: Tensor, start: Tensor, reach: Tensor | None = None) -> Tracks:
    order = torch.argsort(event, stable=True)
    reach = torch.full((len(event),), torch.inf) if reach is None else reach
    return Tracks(event[order], track[order], rotation[order], start[order], reach[order])


def _interacting(source: TrackSource, tracks: Tracks, composition: Composition, generator: torch.Generator) -> Tracks:
    """The same tracks with hadrons cut after an exponential length, and one to three others from where they end."""
    n = len(tracks.track)
    length = -torch.log1p(-torch.rand(n, generator=generator)) * (composition.interaction or torch.inf)
    hadron = torch.isin(tracks.track, source.hadrons)
    tracks = replace(tracks, reach=torch.where(hadron, length.clamp(min=2 * ARGON.max_step), torch.inf))
    tip, cut = source.tips(tracks)
    parent = cut.nonzero()[:, 0]
    parent = parent.repeat_interleave(torch.randint(1, 4, (len(parent),), generator=generator))
    pool = source.hadrons
    track = pool[torch.randint(len(pool), (len(parent),), generator=generator)]
    rotation = random_rotations(len(parent), generator)
    return _sorted(
        torch.cat([tracks.event, tracks.event[parent]]),
        torch.cat([tracks.track, track]),
        torch.cat([tracks.rotation, rotation]),
        torch.cat([tracks.start, tip[parent]]),
        torch.cat([tracks.reach, torch.full((len(parent),), torch.inf)]),
    )


def _crossing(normal: Tensor, least: float, generator: torch.Generator) -> Tensor:
    """(N, 3, 3) rotations that turn z to directions of an isotropic flux through planes with (N, 3) normals."""
    cosine = (least**2 + (1 - least**2) * torch.rand(len(normal), 1, generator=generator)).sqrt()
    cosine = cosine * (2 * torch.randint(2, cosine.shape, generator=generator) - 1)
    flat = torch.randn(normal.shape, generator=generator)
    across = torch.nn.functional.normalize(torch.linalg.cross(normal, flat), dim=1)
    z = cosine * normal + (1 - cosine**2).sqrt() * across
    x = torch.nn.functional.normalize(torch.linalg.cross(z, torch.randn(z.shape, generator=generator)), dim=1)
    return torch.stack([x, torch.linalg.cross(z, x), z], 2)


def recombined(segments: Segments, response: ChargeResponse) -> Segments:
    """The same segments with the energy that their charge stands for, calibrated at `MIP` [MeV].

    Modified box model: the share of the charge that survives is log(A + x) / x, with x = B dE/dx.
    """

    def survival(dedx: Tensor) -> Tensor:
        x = response.recombination_b * 10 * dedx  # cm to mm
        return torch.log((response.recombination_a + x).clamp(min=1.0 + 1e-6)) / x.clamp(min=1e-9)

    # Below 1 MeV/cm the model has no meaning; nothing in argon loses less over a voxel.
    share = survival(segments.dedx.clamp(min=0.1)) / survival(torch.tensor(MIP))
    return Segments(segments.start, segments.end, segments.energy * share, segments.event, segments.n_events)


def measure(segments: Segments, detector: LArDetector, generator: torch.Generator) -> Voxels:
    """What a detector without gaps would read out [MeV]."""
    response = detector.response
    full = voxelize(recombined(segments, response), detector.origin, detector.pitch, detector.shape)
    noisy = full.feats + response.noise * torch.randn(full.feats.shape, generator=generator)
    # Clamped before the threshold, which may be 0.
    measured = full.with_feats(noisy.clamp(min=0.0))
    return measured.select((noisy[:, 0] >= response.threshold) & (noisy[:, 0] > 0))


def mask(measured: Voxels, gaps: Gaps) -> tuple[Voxels, Voxels, Tensor]:
    """Splits what a perfect detector reads out into hits and missing voxels; the gap of each missing voxel."""
    gap = torch.from_numpy(gaps.of(measured.coords.numpy()))
    return measured.select(gap == -1), measured.select(gap >= 0), gap[gap >= 0]


def random_points_in_gaps(gaps: Gaps, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points in dead voxels (n, 3) [mm], every gap as often as every other, and unit vectors across the gaps (n, 3)."""
    detector = gaps.detector
    boxes = [box for box in (gaps.bounds(gap) for gap in range(gaps.n_regions)) if box is not None]
    low, high = (torch.from_numpy(np.stack(side)).double() for side in zip(*boxes, strict=True))
    chosen = torch.randint(len(boxes), (n,), generator=generator)
    inside = torch.rand(n, 3, generator=generator, dtype=torch.float64)
    point = low[chosen] + (high - low)[chosen] * inside
    across = torch.nn.functional.one_hot((high - low)[chosen].argmin(1), 3).float()
    return (point * detector.pitch + torch.tensor(detector.origin, dtype=torch.float64)).float(), across
