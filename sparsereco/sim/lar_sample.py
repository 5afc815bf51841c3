"""Samples over the gaps of a detector, with their truth: from the bank of tracks, or from edep-sim events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import awkward as ak
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsereco.infill.gaps import Gaps
from sparsereco.schema import CHARGE_HITS, INFILL_TRUTH, Schema
from sparsereco.segments import Segments, voxelize
from sparsereco.sim.compose import random_rotations
from sparsereco.sim.lartpc import Composition, TrackSource, draw_tracks, mask, measure, random_points_in_gaps
from sparsereco.voxels import Voxels, rows_of

SPREAD = 300.0
"""Vertices lie within this distance of a point in a gap, along each axis [mm]."""


@dataclass(frozen=True)
class Particles:
    """Particles of a batch of events, sorted by event."""

    event: Tensor  # (P,) int64
    pdg: Tensor  # (P,) int64
    ke: Tensor  # (P,) [MeV], 0 where unknown
    direction: Tensor  # (P, 3)


@dataclass(frozen=True)
class GapSample:
    """Events as a detector with gaps sees them, and what it misses."""

    hits: Voxels
    missing: Voxels
    gap: Tensor  # (M,) int64, gap of each missing voxel
    owner: Tensor  # (M,) int64, particle that left most in each missing voxel, as a row of ``particles``
    particles: Particles


Draw = Callable[[Gaps, int, torch.Generator], GapSample]
"""Draws a number of events."""


def from_tracks(source: TrackSource, composition: Composition) -> Draw:
    """Events composed of tracks of a bank."""

    def draw(gaps: Gaps, n: int, generator: torch.Generator) -> GapSample:
        centre, across = random_points_in_gaps(gaps, n, generator)
        tracks = draw_tracks(source, composition, centre, across, SPREAD, generator)
        segments, owner = source.segments(tracks, n)
        particles = Particles(tracks.event, source.pdg[tracks.track], source.ke[tracks.track], tracks.direction)
        return _look(segments, owner, particles, gaps, generator)

    return draw


def from_segments(segments: Segments, track: Tensor, pdg: Tensor) -> Draw:
    """Given events, drawn with repetition, each turned at random about a point of it that is moved into a gap.

    Args:
        segments: sorted by event.
        track: (N,) int64 number of the particle of each segment.
        pdg: (N,) int64 its species.
    """
    offsets = torch.searchsorted(segments.event, torch.arange(segments.n_events + 1))

    def draw(gaps: Gaps, n: int, generator: torch.Generator) -> GapSample:
        chosen = torch.randint(segments.n_events, (n,), generator=generator)
        event, row = rows_of(offsets, chosen)
        start, end = segments.start[row], segments.end[row]
        # Long tracks are as likely as they are long.
        weight = (end - start).norm(dim=1).double() + 1e-9
        sums = weight.cumsum(0)
        counts = torch.bincount(event, minlength=n)
        last = counts.cumsum(0) - 1
        before = torch.cat([sums.new_zeros(1), sums[last[:-1]]])
        u = before + torch.rand(n, generator=generator, dtype=torch.float64) * (sums[last] - before)
        pivot = torch.minimum(torch.searchsorted(sums, u), last)
        middle = (start + end)[pivot] / 2
        centre, _ = random_points_in_gaps(gaps, n, generator)
        turn = random_rotations(n, generator)
        start, end = (
            torch.einsum("nij,nj->ni", turn[event], point - middle[event]) + centre[event] for point in (start, end)
        )
        key, owner = torch.unique(event * (int(track.max()) + 1) + track[row], return_inverse=True)
        first = torch.full((len(key),), len(row)).scatter_reduce(0, owner, torch.arange(len(row)), "amin")
        direction = torch.nn.functional.normalize((end - start)[first], dim=1)
        particles = Particles(event[first], pdg[row][first], torch.zeros(len(key)), direction)
        return _look(Segments(start, end, segments.energy[row], event, n), owner, particles, gaps, generator)

    return draw


def _look(segments: Segments, owner: Tensor, particles: Particles, gaps: Gaps, generator: torch.Generator) -> GapSample:
    detector = gaps.detector
    hits, missing, gap = mask(measure(segments, detector, generator), gaps)
    # Every particle as an event of its own: its energy in every voxel.
    alone = Segments(segments.start, segments.end, segments.energy, owner, len(particles.pdg))
    shares = voxelize(alone, detector.origin, detector.pitch, detector.shape)
    shape = torch.tensor(detector.shape)
    key, wanted = (
        ((event * shape[0] + c[:, 0]) * shape[1] + c[:, 1]) * shape[2] + c[:, 2]
        for event, c in ((particles.event[shares.event], shares.coords.long()), (missing.event, missing.coords.long()))
    )
    order = torch.argsort(shares.signal, descending=True, stable=True)
    order = order[torch.argsort(key[order], stable=True)]
    found = torch.searchsorted(key[order], wanted)  # the first one of a voxel is the largest
    return GapSample(hits, missing, gap, shares.event[order][found], particles)


def to_records(sample: GapSample, gaps: Gaps, first_event: int = 0, run: int = 1) -> tuple[ak.Array, ak.Array]:
    """The trees ``hits`` and ``truth`` of a sample, numbered from ``first_event`` in a ``run``."""
    n = len(sample.hits)
    number = {"run": np.full(n, run), "subrun": np.zeros(n), "event": np.arange(first_event, first_event + n)}
    particles = sample.particles
    first = torch.searchsorted(particles.event, torch.arange(n))
    hits = _columns("hit_", gaps, sample.hits) | {"hit_e": sample.hits.signal.numpy()}
    missing = _columns("miss_", gaps, sample.missing) | {
        "miss_e": sample.missing.signal.numpy(),
        "miss_gap": sample.gap.numpy(),
        "miss_part": (sample.owner - first[sample.missing.event]).numpy(),
    }
    parts = {"part_pdg": particles.pdg.numpy(), "part_ke": particles.ke.numpy()}
    parts |= {f"part_d{axis}": particles.direction[:, i].numpy() for i, axis in enumerate("xyz")}
    return (
        _typed(CHARGE_HITS, number | _lists(hits, sample.hits.offsets.diff())),
        _typed(
            INFILL_TRUTH,
            number
            | _lists(missing, sample.missing.offsets.diff())
            | _lists(parts, torch.bincount(particles.event, minlength=n)),
        ),
    )


def _columns(prefix: str, gaps: Gaps, voxels: Voxels) -> dict[str, NDArray]:
    centre = gaps.detector.centre(voxels.coords.numpy())
    return {f"{prefix}{axis}": centre[:, i] for i, axis in enumerate("xyz")}


def _lists(columns: dict[str, NDArray], counts: Tensor) -> dict[str, ak.Array]:
    return {name: ak.unflatten(values, counts.numpy()) for name, values in columns.items()}


def _typed(schema: Schema, fields: dict[str, ak.Array]) -> ak.Array:
    return ak.zip({b.name: ak.values_astype(fields[b.name], b.dtype) for b in schema.branches}, depth_limit=1)
