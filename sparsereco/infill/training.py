"""What the filler is trained on: an endless stream of tracks over random patterns of gaps; calibration on held-out ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsereco.infill.candidates import Problem, bend, make_problem
from sparsereco.infill.gaps import Gaps, LArDetector
from sparsereco.infill.model import Filler, answers, filler_loss
from sparsereco.infill.tracks import find_ends, find_lines
from sparsereco.sim.lartpc import (
    COMPOSITIONS,
    TrackSource,
    draw_tracks,
    mask,
    measure,
    random_points_in_gaps,
)
from sparsereco.voxels import Voxels

PITCH = 3.8
"""Edge of a voxel [mm]."""


@dataclass(frozen=True)
class TrackStream:
    """What the events of a training look like."""

    bank: str = "banks/lar.npz"
    """File of `tools/simulate.py lar-bank`."""
    mixed: float = 0.5
    """Share of batches with many short, scattered and stopping tracks; the others are single muons."""
    widest: int = 16
    """Widest gap between boxes [voxels]."""
    spread: float = 220.0
    """Vertices lie within this distance of a gap along each axis [mm]."""


def random_detector(stream: TrackStream, generator: torch.Generator) -> LArDetector:
    """Boxes with gaps of random number, place and width between them, in places further dead boxes."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    half = [draw(30, 60) for _ in range(3)]
    widths = [draw(1, stream.widest) if torch.rand((), generator=generator) < 0.45 else 0 for _ in range(3)]
    widths[draw(0, 2)] = draw(1, stream.widest)
    centres = [
        tuple(side * (h + w / 2) * PITCH for side, h, w in zip(corner, half, widths, strict=True))
        for corner in ((x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1))
    ]
    size = tuple(2 * h * PITCH for h in half)
    dead = []
    for _ in range(draw(0, 3) if torch.rand((), generator=generator) < 0.3 else 0):
        corner = [draw(-40, 40) * PITCH for _ in range(3)]
        dead.append((*corner, *(low + draw(1, 12) * PITCH for low in corner)))
    return LArDetector(size, tuple(dict.fromkeys(centres)), PITCH, tuple(dead))  # type: ignore[arg-type]


def draw_problem(
    stream: TrackStream, source: TrackSource, n: int, generator: torch.Generator
) -> tuple[Problem, Voxels]:
    """``n`` events over one pattern of gaps: what the filler sees, and the missing voxels."""
    detector = random_detector(stream, generator)
    gaps = Gaps(detector)
    centre, across = random_points_in_gaps(gaps, n, generator)
    mixed = bool(torch.rand((), generator=generator) < stream.mixed)
    kind = COMPOSITIONS["mixed"] if mixed else replace(COMPOSITIONS["muon"], cosine=0.1)
    tracks = draw_tracks(source, kind, centre, across, stream.spread, generator)
    segments, _ = source.segments(tracks, n)
    hits, missing, _ = mask(measure(segments, detector, generator), gaps)
    ends = find_ends(hits, gaps)
    lines = find_lines(ends, hits, gaps)
    return make_problem(hits, gaps, lines, bend(lines, ends.position, ends.direction), ends.hits), missing


def filler_step(
    model: Filler, stream: TrackStream, source: TrackSource, n: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Losses of the filler on a fresh batch."""
    problem, missing = draw_problem(stream, source, n, generator)
    return filler_loss(model(problem), problem, *answers(problem, missing))
