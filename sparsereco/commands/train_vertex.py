"""`tools/train.py finder`, `decomposer` and `generator`: the stages of the vertex chain."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jsonargparse
import torch
from torch import nn

from sparsereco import checkpoint, cli
from sparsereco.commands import training
from sparsereco.commands.common import Command
from sparsereco.sim.bank import Bank
from sparsereco.sim.compose import TrackBank
from sparsereco.train import Schedule
from sparsereco.vertex.adversary import Adversaries, ImageStream
from sparsereco.vertex.decomposer import Decomposer, DecomposerConfig
from sparsereco.vertex.finder import Finder, FinderConfig
from sparsereco.vertex.generator import Generator, GeneratorConfig
from sparsereco.vertex.training import EventStream, calibrate, decomposer_step, finder_step, measure_track_light

TEXT = """\
Trains the {stage} of the vertex chain. The folder of --output gets last.pt (every two minutes; --resume goes on from
it, with the same events as if nothing had happened), log.csv, and at the end {stage}.safetensors.

example:
  tools/simulate.py bank -o banks/vertex.npz -n 400000 --seed 2
  tools/train.py {stage} -c configs/train/{stage}.yaml
  tools/train.py {stage} -c configs/train/{stage}.yaml --resume

exit codes: 0 done, 1 failed while running, 2 wrong usage, setting or file, 130 interrupted
"""


@dataclass(frozen=True)
class FinderTraining:
    """How the finder is trained."""

    network: FinderConfig = field(default_factory=FinderConfig)
    """The network."""
    events: EventStream = field(default_factory=EventStream)
    """The events."""
    schedule: Schedule = field(default_factory=Schedule)
    """How long and how fast."""
    start: str | None = None
    """Checkpoint to start from, to adapt or improve what is there; null: random weights."""
    output: str = "runs/finder"
    """Folder of checkpoints, log and result."""
    processes: int = 2
    """Processes with one thread each that share every batch: on a CPU faster than one with several threads."""


@dataclass(frozen=True)
class DecomposerTraining:
    """How the decomposer is trained."""

    network: DecomposerConfig = field(default_factory=DecomposerConfig)
    """The network."""
    events: EventStream = field(default_factory=EventStream)
    """The events."""
    schedule: Schedule = field(default_factory=Schedule)
    """How long and how fast."""
    start: str | None = None
    """Checkpoint to start from, to adapt or improve what is there; null: random weights."""
    output: str = "runs/decomposer"
    """Folder of checkpoints, log and result."""
    processes: int = 2
    """Processes with one thread each that share every batch: on a CPU faster than one with several threads."""
    finder_weights: str | None = None
    """Checkpoint of the finder; null: the shipped one."""
    held_out: str = "banks/test.npz"
    """Bank of tracks that are not trained on: the predicted errors are calibrated on them."""


@dataclass(frozen=True)
class GeneratorTraining:
    """How the generator is trained."""

    network: GeneratorConfig = field(default_factory=GeneratorConfig)
    """The generator."""
    critic_width: int = 96
    """Features of a voxel in the critic."""
    penalty: float = 10.0
    """Weight of the critic's gradient penalty."""
    pace: float = 0.03
    """Learning rate of the generator, over that of the critic, which has to keep up."""
    images: ImageStream = field(default_factory=ImageStream)
    """The images."""
    schedule: Schedule = field(default_factory=Schedule)
    """How long and how fast."""
    start: str | None = None
    """Checkpoint of a generator to start from; null: the formulas alone."""
    output: str = "runs/generator"
    """Folder of checkpoints, log and result."""
    processes: int = 2
    """Processes with one thread each that share every batch: on a CPU faster than one with several threads."""


def run_finder(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Trains the finder."""
    settings = training.settings_of(FinderTraining, args)
    cli.set_up_logging(args.quiet, args.verbose)
    training.check_training(settings, args.resume, [settings.events.bank])
    training.in_processes(train_finder, settings, args.resume, args.quiet)


def train_finder(rank: int, settings: FinderTraining, resume: bool, quiet: bool) -> None:
    """One process of it."""
    bank, n = TrackBank(Bank.load(settings.events.bank)), settings.schedule.batch_size // settings.processes
    start = settings.start
    model = checkpoint.load(start, Finder, FinderConfig) if start else Finder(settings.network)

    def losses(generator: torch.Generator) -> dict[str, torch.Tensor]:
        return finder_step(model, settings.events, bank, n, generator)

    best = training.train("finder", rank, model, losses, settings, resume, quiet)
    if rank == 0:
        save(best, "finder", settings)


def run_decomposer(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Trains the decomposer."""
    settings = training.settings_of(DecomposerTraining, args)
    cli.set_up_logging(args.quiet, args.verbose)
    training.check_training(settings, args.resume, [settings.events.bank, settings.held_out])
    training.in_processes(train_decomposer, settings, args.resume, args.quiet)


def train_decomposer(rank: int, settings: DecomposerTraining, resume: bool, quiet: bool) -> None:
    """One process of it; the first one calibrates the predicted errors at the end."""
    bank, n = TrackBank(Bank.load(settings.events.bank)), settings.schedule.batch_size // settings.processes
    weights = Path(settings.finder_weights or checkpoint.WEIGHTS / "finder.safetensors")
    finder = checkpoint.load(weights, Finder, FinderConfig)
    start = settings.start
    model = checkpoint.load(start, Decomposer, DecomposerConfig) if start else Decomposer(settings.network)

    def losses(generator: torch.Generator) -> dict[str, torch.Tensor]:
        return decomposer_step(model, finder, settings.events, bank, n, generator)

    best = training.train("decomposer", rank, model, losses, settings, resume, quiet)
    if rank == 0:
        held_out = TrackBank(Bank.load(settings.held_out))
        measure_track_light(best, finder, settings.events, held_out, 4, 1)
        metrics = {
            preset: calibrate(best, finder, dataclasses.replace(settings.events, conf2=conf2), held_out, 10, 1)
            for preset, conf2 in (("conf1", 0.0), ("conf2", 1.0))
        }
        save(best, "decomposer", settings, metrics=metrics)


def run_generator(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Trains the generator against its critic."""
    settings = training.settings_of(GeneratorTraining, args)
    cli.set_up_logging(args.quiet, args.verbose)
    training.check_training(settings, args.resume, [settings.images.bank])
    training.in_processes(train_generator, settings, args.resume, args.quiet)


def train_generator(rank: int, settings: GeneratorTraining, resume: bool, quiet: bool) -> None:
    """One process of it."""
    bank, n = TrackBank(Bank.load(settings.images.bank)), settings.schedule.batch_size // settings.processes
    model = Adversaries(settings.network, settings.critic_width)
    if settings.start:
        model.generator = checkpoint.load(settings.start, Generator, GeneratorConfig)

    def losses(generator: torch.Generator) -> dict[str, torch.Tensor]:
        return model.losses(settings.images, bank, n, settings.penalty, generator)

    pace = {"generator": settings.pace}
    best = training.train("generator", rank, model, losses, settings, resume, quiet, pace=pace)
    if rank == 0:
        save(best.generator, "generator", settings)


def save(
    model: nn.Module, stage: str, settings: FinderTraining | DecomposerTraining | GeneratorTraining, **info: Any
) -> None:
    """Writes the checkpoint that the training is for."""
    bank = settings.images.bank if isinstance(settings, GeneratorTraining) else settings.events.bank
    checkpoint.save(
        Path(settings.output) / f"{stage}.safetensors",
        model,
        training=dataclasses.asdict(settings),
        bank_sha256=checkpoint.sha256(bank),
        **info,
    )


FINDER_TEXT, DECOMPOSER_TEXT, GENERATOR_TEXT = (
    TEXT.format(stage=stage) for stage in ("finder", "decomposer", "generator")
)

FINDER = Command(
    "the finder of the vertex chain",
    FINDER_TEXT,
    partial(training.training_parser, FINDER_TEXT, FinderTraining),
    run_finder,
)
DECOMPOSER = Command(
    "the decomposer of the vertex chain",
    DECOMPOSER_TEXT,
    partial(training.training_parser, DECOMPOSER_TEXT, DecomposerTraining),
    run_decomposer,
)
GENERATOR = Command(
    "the generator of single-particle images of the vertex chain",
    GENERATOR_TEXT,
    partial(training.training_parser, GENERATOR_TEXT, GeneratorTraining),
    run_generator,
)
