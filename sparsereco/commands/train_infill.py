"""`tools/train.py filler`: the network of the infill."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jsonargparse
import torch

from sparsereco import checkpoint, cli
from sparsereco.commands import training
from sparsereco.commands.common import Command, check_banks
from sparsereco.infill.model import Filler, FillerConfig
from sparsereco.infill.physics import Physics
from sparsereco.infill.training import TrackStream, calibrate, filler_step
from sparsereco.sim.lartpc import SegmentBank, TrackSource
from sparsereco.train import Schedule

TEXT = """\
Trains the filler of the infill chain on tracks over random patterns of gaps. The folder of --output gets last.pt (every
two minutes; --resume goes on from it, with the same events as if nothing had happened), log.csv, and at the end
filler.safetensors, its probabilities and errors calibrated on tracks that were not trained on.

example:
  tools/simulate.py lar-bank -o banks/lar.npz -n 16000 --seed 1
  tools/simulate.py lar-bank -o banks/lar_test.npz -n 4000 --seed 900001
  tools/train.py filler -c configs/train/filler.yaml

exit codes: 0 done, 1 failed while running, 2 wrong usage, setting or file, 130 interrupted
"""


@dataclass(frozen=True)
class FillerTraining:
    """How the filler is trained."""

    network: FillerConfig = field(default_factory=FillerConfig)
    """The network."""
    tracks: TrackStream = field(default_factory=TrackStream)
    """The events."""
    physics: Physics = field(default_factory=Physics)
    """Optional terms of the loss."""
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=6500, batch_size=32, warmup=100, average=0.998))
    """How long and how fast."""
    start: str | None = None
    """Checkpoint to start from, to adapt or improve what is there; null: random weights."""
    output: str = "runs/filler"
    """Folder of checkpoints, log and result."""
    processes: int = 1
    """Processes with one thread each that share every batch."""
    held_out: str = "banks/lar_test.npz"
    """Bank of tracks that are not trained on: probabilities and errors are calibrated on them."""
    held_out_batches: int = 8
    """Batches for that, of 100 muons and 100 mixed events each; twice."""


def run(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Trains the filler."""
    settings = training.settings_of(FillerTraining, args)
    cli.set_up_logging(args.quiet, args.verbose)
    check_banks([settings.tracks.bank, settings.held_out], "lar-bank")
    training.check_training(settings, args.resume)
    training.in_processes(train_filler, settings, args.resume, args.quiet)


def train_filler(rank: int, settings: FillerTraining, resume: bool, quiet: bool) -> None:
    """One process of it; the first one calibrates at the end."""
    source = TrackSource(SegmentBank.load(settings.tracks.bank))
    n = settings.schedule.batch_size // settings.processes
    start = settings.start
    model = checkpoint.load(start, Filler, FillerConfig) if start else Filler(settings.network)

    def losses(generator: torch.Generator) -> dict[str, torch.Tensor]:
        return filler_step(model, settings.tracks, source, n, generator, settings.physics)

    best = training.train("filler", rank, model, losses, settings, resume, quiet)
    if rank == 0:
        held_out = TrackSource(SegmentBank.load(settings.held_out))
        metrics = calibrate(best.eval(), settings.tracks, held_out, settings.held_out_batches, 1)
        checkpoint.save(
            Path(settings.output) / "filler.safetensors",
            best,
            training=dataclasses.asdict(settings),
            bank_sha256=checkpoint.sha256(settings.tracks.bank),
            metrics=metrics,
        )


COMMAND = Command("the filler of the infill chain", TEXT, partial(training.training_parser, TEXT, FillerTraining), run)
