"""`tools/train.py selector`: the pixel selector of the camera chain."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jsonargparse
import torch

from sparsereco import checkpoint, cli
from sparsereco.camera.training import Patches, PatchStream, selector_step
from sparsereco.camera.unet import Selector, SelectorConfig
from sparsereco.commands import training
from sparsereco.commands.common import Command
from sparsereco.train import Schedule

TEXT = """\
Trains the pixel selector of the camera chain on simulated pieces of frames, made on the way. The folder of --output
gets last.pt (every two minutes; --resume goes on from it), log.csv, and at the end selector.safetensors.

example:
  tools/train.py selector -c configs/train/selector.yaml

exit codes: 0 done, 1 failed while running, 2 wrong usage, setting or file, 130 interrupted
"""


@dataclass(frozen=True)
class SelectorTraining:
    """How the selector is trained."""

    network: SelectorConfig = field(default_factory=SelectorConfig)
    """The network."""
    patches: PatchStream = field(default_factory=PatchStream)
    """The pieces of frames and the loss."""
    schedule: Schedule = field(default_factory=Schedule)
    """How long and how fast."""
    start: str | None = None
    """Checkpoint to start from, to adapt or improve what is there; null: random weights."""
    output: str = "runs/selector"
    """Folder of checkpoints, log and result."""
    processes: int = 1
    """Processes with one thread each that share every batch."""


def run(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Trains the selector."""
    settings = training.settings_of(SelectorTraining, args)
    cli.set_up_logging(args.quiet, args.verbose)
    training.check_training(settings, args.resume)
    training.in_processes(train_selector, settings, args.resume, args.quiet)


def train_selector(rank: int, settings: SelectorTraining, resume: bool, quiet: bool) -> None:
    """One process of it."""
    patches, n = Patches(settings.patches, settings.schedule.seed), settings.schedule.batch_size // settings.processes
    start = settings.start
    model = checkpoint.load(start, Selector, SelectorConfig) if start else Selector(settings.network)

    def losses(generator: torch.Generator) -> dict[str, torch.Tensor]:
        return selector_step(model, settings.patches, patches, n, generator)

    best = training.train("selector", rank, model, losses, settings, resume, quiet)
    if rank == 0:
        checkpoint.save(Path(settings.output) / "selector.safetensors", best, training=dataclasses.asdict(settings))


SELECTOR = Command(
    "the pixel selector of the camera chain", TEXT, partial(training.training_parser, TEXT, SelectorTraining), run
)
