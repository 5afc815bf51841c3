"""What the filler is trained on: an endless stream of tracks over random patterns of gaps; and its calibration."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsereco import bounds
from sparsereco.infill.candidates import Problem, bend, make_problem
from sparsereco.infill.ends import find_ends
from sparsereco.infill.gaps import Gaps, LArDetector
from sparsereco.infill.model import Filler, answers, filler_loss
from sparsereco.infill.physics import Physics
from sparsereco.infill.tracks import find_lines
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

THIN = 0.35
"""This share of the gaps is one or two voxels wide, as cathodes are."""


@dataclass(frozen=True)
class TrackStream:
    """What the events of a training look like."""

    bank: str = "banks/lar.npz"
    """File of `tools/simulate.py lar-bank`."""
    mixed: float = 0.5
    """Share of batches with many short, scattered and stopping tracks; the others are single muons."""
    hadrons: float = 0.5
    """Share of those whose tracks are mostly hadrons that interact on their way."""
    widest: int = 16
    """Widest gap between boxes [voxels]."""
    spread: float = 220.0
    """Vertices lie within this distance of a gap along each axis [mm]."""

    def __post_init__(self) -> None:
        bounds.share(self, "tracks.", "mixed", "hadrons")
        bounds.at_least(1, self, "tracks.", "widest")
        bounds.not_negative(self, "tracks.", "spread")


def random_detector(stream: TrackStream, generator: torch.Generator) -> LArDetector:
    """Boxes with gaps of random number, place and width between them, in places further dead boxes."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    def width() -> int:
        return draw(1, min(2, stream.widest) if torch.rand((), generator=generator) < THIN else stream.widest)

    half = [draw(30, 60) for _ in range(3)]
    widths = [width() if torch.rand((), generator=generator) < 0.45 else 0 for _ in range(3)]
    widths[draw(0, 2)] = width()
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
    hadrons = bool(torch.rand((), generator=generator) < stream.hadrons)
    kind = COMPOSITIONS["hadrons" if hadrons else "mixed"] if mixed else replace(COMPOSITIONS["muon"], cosine=0.1)
    tracks = draw_tracks(source, kind, centre, across, stream.spread, generator)
    segments, _ = source.segments(tracks, n)
    hits, missing, _ = mask(measure(segments, detector, generator), gaps)
    ends = find_ends(hits, gaps)
    lines = find_lines(ends, hits, gaps)
    return make_problem(hits, gaps, lines, bend(lines, ends.position, ends.direction), ends.hits), missing


def filler_step(
    model: Filler,
    stream: TrackStream,
    source: TrackSource,
    n: int,
    generator: torch.Generator,
    terms: Physics | None = None,
) -> dict[str, Tensor]:
    """Losses of the filler on a fresh batch."""
    problem, missing = draw_problem(stream, source, n, generator)
    return filler_loss(model(problem), problem, *answers(problem, missing), terms)


@torch.no_grad()
def calibrate(
    model: Filler, stream: TrackStream, source: TrackSource, batches: int, seed: int
) -> dict[str, dict[str, float]]:
    """Sets the model's calibration on held-out tracks: probabilities by logistic regression, errors by their coverage.

    Args:
        model: its buffers are set.
        stream: what to calibrate on; half of the batches are muons, half mixed events.
        source: tracks that were not trained on.
        batches: of 100 events, of either kind.
        seed: of the events.

    Returns:
        Per kind, after calibration and on further events: F1 of the candidates at the best threshold, that threshold,
        the share of the missing voxels that are candidates, and the coverage of the errors.
    """
    model.logit_scale.fill_(1.0)
    model.logit_shift.fill_(0.0)
    model.error_scale.fill_(1.0)
    logit, hit, pull, mixed, _ = _held_out(model, stream, source, batches, seed)
    scale, shift = _logistic(logit, hit)
    model.logit_scale.copy_(scale)
    model.logit_shift.copy_(shift)
    # As good for either kind: the mean of their quantiles.
    kept = (torch.sigmoid(scale * logit + shift) > 0.4) & hit
    groups = [pull[kept & (mixed == kind)].abs() for kind in (False, True)]
    quantiles = [group.quantile(0.6827) for group in groups if len(group)]
    if quantiles:  # a network that has learnt nothing keeps no voxel
        model.error_scale.copy_(torch.stack(quantiles).mean())

    logit, hit, pull, mixed, missing = _held_out(model, stream, source, batches, seed + 1000)
    results = {}
    for kind, name in ((False, "muon"), (True, "mixed")):
        own = mixed == kind
        said, right = torch.sigmoid(logit[own]), hit[own]
        order = torch.argsort(said, descending=True)
        found = right[order].cumsum(0)
        f1 = 2 * found / (torch.arange(len(order)) + 1 + missing[int(kind)])
        best = int(f1.argmax())
        covered = (pull[own & hit & (torch.sigmoid(logit) > 0.4)].abs() < 1).float().mean()
        results[name] = {
            "f1": float(f1[best]),
            "threshold": float(said[order[best]]),
            "candidates": float(right.sum() / missing[int(kind)]),
            "coverage": float(covered),
        }
    return results


def _held_out(
    model: Filler, stream: TrackStream, source: TrackSource, batches: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:
    """Of candidates: logit, whether missing, pull of the energy, whether of a mixed event; missing voxels per kind."""
    columns, missing = [], [0, 0]
    for k in range(batches):
        for kind in (False, True):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + 2 * k + kind)
            problem, truth = draw_problem(replace(stream, mixed=float(kind)), source, 100, generator)
            filling = model(problem)
            hit, energy = answers(problem, truth)
            pull = (energy - filling.energy) / filling.error
            columns.append((filling.logit, hit, pull, torch.full_like(hit, kind)))
            missing[int(kind)] += len(truth.coords)
    logit, hit, pull, mixed = (torch.cat(column) for column in zip(*columns, strict=True))
    return logit, hit, pull, mixed, missing


def _logistic(logit: Tensor, hit: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift of logits that make their probabilities right, by Newton's method."""
    x = torch.stack([logit, torch.ones_like(logit)], 1).double()
    weights = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for _ in range(20):
        said = torch.sigmoid(x @ weights)
        slope = x.T @ (hit.double() - said)
        curvature = x.T @ (x * (said * (1 - said))[:, None]) + 1e-6 * torch.eye(2, dtype=torch.float64)
        weights = weights + torch.linalg.solve(curvature, slope)
    return weights[0].float(), weights[1].float()
