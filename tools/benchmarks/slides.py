"""The form of the LArDRIP slides trained for a short time, with its weights of the two errors plain, held and fixed."""

from __future__ import annotations

from typing import Any

import jsonargparse
import numpy as np
import torch

from sparsereco.commands.lar import read_detector
from sparsereco.infill import metrics
from sparsereco.infill.gaps import Gaps
from sparsereco.infill.metrics import Truth, VoxelSet
from sparsereco.infill.model import MIP
from sparsereco.infill.slides import BlockConfig, BlockFiller
from sparsereco.sim.lar_sample import Draw, GapSample, from_tracks
from sparsereco.sim.lartpc import COMPOSITIONS, SegmentBank, TrackSource

WEIGHTS = ("softmax", "barrier", "fixed")
BATCH = 8
SHOW = 100


def run(args: jsonargparse.Namespace) -> dict[str, Any]:
    """Trains each, finds its best threshold on one half of the held-out muons, and scores it on the other."""
    torch.set_num_threads(args.threads)
    gaps = Gaps(read_detector("gap10"))
    draw, held_out = (
        from_tracks(TrackSource(SegmentBank.load(bank)), COMPOSITIONS["muon"]) for bank in (args.bank, args.held_out)
    )
    rows = []
    for weights in WEIGHTS:
        model = train(weights, draw, gaps, args.steps)
        row = {"weights": weights, "final": model.loss.weights.tolist(), **score(model, held_out, gaps, args.events)}
        rows.append(row)
        print(
            f"{weights:8} weights {row['final'][0]:.3f}/{row['final'][1]:.3f}  on/off the track {row['on']:.2f}/"
            f"{row['off']:.3f} MIP  F1 {row['f1']:.3f}, within one voxel {row['f1_near']:.3f}  ({args.steps} steps)",
            flush=True,
        )
    return {"steps": args.steps, "events": args.events, "threads": args.threads, "rows": rows}


def train(weights: str, draw: Draw, gaps: Gaps, steps: int) -> BlockFiller:
    """A block filler after a number of steps on muons; the same events for all."""
    torch.manual_seed(0)
    model = BlockFiller(BlockConfig(weights=weights))  # type: ignore[arg-type]
    network = [*model.unet.parameters(), *model.head.parameters()]
    groups = [{"params": network, "lr": 3e-3}, {"params": list(model.loss.parameters()), "lr": 0.02}]
    optimiser = torch.optim.Adam(groups)
    for step in range(steps):
        sample = draw(gaps, BATCH, torch.Generator().manual_seed(step))
        event, cell, value = model(sample.hits, gaps)
        optimiser.zero_grad()
        loss = model.loss(value, target(sample, event, cell))
        loss.backward()
        optimiser.step()
        if step % SHOW == 0:
            print(f"  {weights}: step {step}, loss {float(loss.detach()):.3f}", flush=True)
    return model.eval()


def target(sample: GapSample, event: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
    """(C,) energy that is missing in voxels of the block [MIP], 0 where nothing is."""
    grid = sample.hits.grid

    def key(event: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
        return ((event * grid[0] + cell[:, 0]) * grid[1] + cell[:, 1]) * grid[2] + cell[:, 2]

    there, wanted = key(sample.missing.event, sample.missing.coords.long()), key(event, cell)
    place = torch.searchsorted(there, wanted).clamp(max=len(there) - 1)
    return torch.where(there[place] == wanted, sample.missing.signal[place], 0.0) / MIP


@torch.no_grad()
def score(model: BlockFiller, draw: Draw, gaps: Gaps, events: int) -> dict[str, float]:
    """Mean values on and off the track, and F1 above the threshold that is best on further events."""
    choice, test = (_answers(model, draw, gaps, events, seed) for seed in (10_001, 10_002))
    value, _, _ = choice
    levels = np.unique(np.quantile(value, 1 - np.geomspace(1e-4, 0.2, 30)))
    best = max(levels, key=lambda level: _f1(choice, float(level))["f1"])
    value, true, _ = test
    found = {"on": float(value[true > 0].mean()), "off": float(value[true == 0].mean()), "threshold": float(best)}
    return found | _f1(test, float(best))


Answers = tuple[np.ndarray, np.ndarray, tuple[VoxelSet, Truth]]
"""Value and truth of voxels of the blocks (C,) [MIP]; the same as voxels, and what is missing."""


def _answers(model: BlockFiller, draw: Draw, gaps: Gaps, events: int, seed: int) -> Answers:
    sample = draw(gaps, events, torch.Generator().manual_seed(seed))
    event, cell, value = model(sample.hits, gaps)
    block = VoxelSet(event.numpy(), cell.numpy(), value.numpy().astype(np.float64), gaps.of(cell.numpy()))
    missing, particles = sample.missing, sample.particles
    voxels = VoxelSet(
        missing.event.numpy(), missing.coords.numpy().astype(np.int64), missing.signal.numpy().astype(np.float64),
        sample.gap.numpy(),
    )  # fmt: skip
    truth = Truth(
        voxels, sample.owner.numpy(), particles.event.numpy(), particles.pdg.numpy(),
        particles.direction.numpy().astype(np.float64), events, gaps.width, np.zeros(gaps.n, int),
    )  # fmt: skip
    return block.energy, target(sample, event, cell).numpy(), (block, truth)


def _f1(answers: Answers, level: float) -> dict[str, float]:
    block, truth = answers[2]
    on = block.energy > level
    filled = VoxelSet(block.event[on], block.coords[on], MIP * block.energy[on], block.gap[on])
    scores = metrics.scores(truth, metrics.match(truth, filled))
    return {name: scores[name].value for name in ("f1", "f1_near")}
