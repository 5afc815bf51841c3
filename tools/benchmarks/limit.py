"""What is reached where the path of each muon through its gap is known exactly, and its delta rays are not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jsonargparse
import numpy as np
import torch

from sparsereco.commands.lar import read_detector
from sparsereco.infill import metrics
from sparsereco.infill.gaps import Gaps
from sparsereco.infill.metrics import Truth, VoxelSet
from sparsereco.segments import Segments, voxelize
from sparsereco.sim.lar_sample import SPREAD, from_tracks
from sparsereco.sim.lartpc import COMPOSITIONS, SegmentBank, TrackSource, draw_tracks, random_points_in_gaps

CHUNK = 100
"""Events drawn at a time, as `tools/simulate.py infill` does."""


def run(args: jsonargparse.Namespace) -> dict[str, Any]:
    """Draws the muons of a sample again and scores the voxels that they crossed themselves."""
    gaps, source = Gaps(read_detector("gap10")), TrackSource(SegmentBank.load(args.bank))
    draw, muon = from_tracks(source, COMPOSITIONS["muon"]), COMPOSITIONS["muon"]
    parts: dict[str, list[np.ndarray]] = {"missing": [], "own": []}
    for start in range(0, args.events, CHUNK):
        seed, n = args.seed * 1_000_003 + start, min(CHUNK, args.events - start)
        sample = draw(gaps, n, torch.Generator().manual_seed(seed))
        generator = torch.Generator().manual_seed(seed)
        segments, owner = source.segments(
            draw_tracks(source, muon, *random_points_in_gaps(gaps, n, generator), SPREAD, generator), n
        )
        own = voxelize(primary(segments, owner), gaps.detector.origin, gaps.detector.pitch, gaps.detector.shape)
        for name, voxels in (("missing", sample.missing), ("own", own)):
            parts[name].append(np.column_stack([voxels.event.numpy() + start, voxels.coords.numpy()]))
    missing, own = (_voxels(np.concatenate(rows), gaps) for rows in parts.values())
    none = np.zeros(len(missing.event), np.int64)
    truth = Truth(missing, none, none, none, np.zeros((1, 3)), args.events, gaps.width, np.zeros(gaps.n, int))
    exact = metrics.match(truth, own).exact >= 0
    seen = replace(own, **{name: getattr(own, name)[exact] for name in vars(own)})
    found = metrics.scores(truth, metrics.match(truth, seen))
    near = "precision_near", "recall_near", "f1_near"
    print("within one voxel: " + ", ".join(f"{name[:-5]} {found[name].value:.4f}" for name in near), end="")
    print(f" ± {found['f1_near'].error:.4f}  ({args.events} muons)")
    return {name: {"value": one.value, "error": one.error} for name, one in found.items()}


def primary(segments: Segments, owner: torch.Tensor) -> Segments:
    """The steps of the particles themselves: those before the first that does not start where the last one ended."""
    new = torch.ones(len(owner), dtype=torch.bool)
    new[1:] = owner[1:] != owner[:-1]
    jump = torch.zeros_like(new)
    jump[1:] = ((segments.start[1:] - segments.end[:-1]).abs().amax(1) > _JUMP) & ~new[1:]
    jumps = jump.long().cumsum(0)
    kept = jumps == jumps[new].repeat_interleave(torch.unique_consecutive(owner, return_counts=True)[1])
    return Segments(
        *(v[kept] for v in (segments.start, segments.end, segments.energy, segments.event)), segments.n_events
    )


_JUMP = 0.02
"""Steps of one particle meet to this precision [mm]."""


def _voxels(rows: np.ndarray, gaps: Gaps) -> VoxelSet:
    gap = gaps.of(rows[:, 1:])
    rows, gap = rows[gap >= 0].astype(np.int64), gap[gap >= 0]
    return VoxelSet(rows[:, 0], rows[:, 1:], np.ones(len(rows)), gap)
