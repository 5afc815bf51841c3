#!/usr/bin/env python3
"""Trains a stage on composed events. `tools/train.py finder --help` lists the options."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonargparse
import torch
import torch.distributed as dist
from torch import nn

from sparsereco import checkpoint, cli
from sparsereco.errors import InputError
from sparsereco.sim.compose import TrackBank
from sparsereco.sim.geant4 import Bank
from sparsereco.train import Schedule, fit
from sparsereco.vertex.decomposer import Decomposer, DecomposerConfig
from sparsereco.vertex.finder import Finder, FinderConfig
from sparsereco.vertex.training import EventStream, calibrate, decomposer_step, finder_step, measure_track_light

TEXT = """\
Trains the {stage} of the vertex chain. The folder of --output gets last.pt (every two minutes; --resume goes on from
it, with the same events as if nothing had happened), log.csv, and at the end {stage}.safetensors.

example:
  tools/simulate.py bank -o banks/vertex.npz -n 200000 --seed 1
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


TRAININGS: dict[str, type[Any]] = {"finder": FinderTraining, "decomposer": DecomposerTraining}


def parsers() -> jsonargparse.ArgumentParser:
    """The command line: one subcommand per stage."""
    parser = cli.new_parser(__doc__)
    cli.add_verbosity(parser)
    stages = parser.add_subcommands(dest="stage")
    for stage, settings in TRAININGS.items():
        one = cli.new_parser(TEXT.format(stage=stage))
        one.add_argument("-c", "--config", action="config", metavar="FILE", help="settings as YAML")
        one.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
        one.add_class_arguments(settings, nested_key=None)
        cli.add_verbosity(one)
        stages.add_subcommand(stage, one, help=f"the {stage} of the vertex chain")
    return parser


def run(argv: list[str]) -> None:
    """Parses the command line and trains."""
    args = parsers().parse_args(argv)
    stage, args = args.stage, args[args.stage]
    settings = cli.build(TRAININGS[stage], args)
    cli.set_up_logging(args.quiet, args.verbose)
    banks = [settings.events.bank] + ([settings.held_out] if stage == "decomposer" else [])
    for bank in banks:
        if not Path(bank).is_file():
            raise InputError(f"there is no bank {bank}; make it with: tools/simulate.py bank -o {bank} -n N --seed N")
    if settings.start and checkpoint.metadata(settings.start)["config"] != json.loads(
        json.dumps(dataclasses.asdict(settings.network))
    ):
        raise InputError(f"start: the network of {settings.start} is not the one of this training")
    if args.resume and not (Path(settings.output) / "last.pt").is_file():
        raise InputError(f"--resume: there is no {settings.output}/last.pt to go on from")
    if settings.schedule.batch_size % settings.processes:
        raise InputError(
            f"schedule.batch_size {settings.schedule.batch_size} is no multiple of {settings.processes} processes"
        )
    with tempfile.TemporaryDirectory() as meeting:
        arguments = (stage, settings, args.resume, args.quiet, f"file://{meeting}/store")
        torch.multiprocessing.spawn(work, arguments, nprocs=settings.processes)  # type: ignore[no-untyped-call]


def work(rank: int, stage: str, settings: Any, resume: bool, quiet: bool, meeting: str) -> None:
    """One process of a training."""
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=settings.processes)
    torch.set_num_threads(max(1, torch.get_num_threads() // settings.processes))
    torch.manual_seed(settings.schedule.seed)
    bank, n = TrackBank(Bank.load(settings.events.bank)), settings.schedule.batch_size // settings.processes
    folder = Path(settings.output)
    model: nn.Module
    if stage == "finder":
        model = checkpoint.load(settings.start, Finder, FinderConfig) if settings.start else Finder(settings.network)

        def losses(generator: torch.Generator) -> dict[str, torch.Tensor]:
            return finder_step(model, settings.events, bank, n, generator)
    else:
        weights = Path(settings.finder_weights or checkpoint.WEIGHTS / "finder.safetensors")
        finder = checkpoint.load(weights, Finder, FinderConfig)
        start = settings.start
        model = checkpoint.load(start, Decomposer, DecomposerConfig) if start else Decomposer(settings.network)

        def losses(generator: torch.Generator) -> dict[str, torch.Tensor]:
            return decomposer_step(model, finder, settings.events, bank, n, generator)

    with cli.progress(f"train {stage}", settings.schedule.steps, "steps", quiet or rank > 0) as advance:
        log = Log(folder / "log.csv", advance)
        best = fit(model, losses, settings.schedule, folder, resume, log if rank == 0 else lambda step, values: None)
    if rank == 0:
        info: dict[str, Any] = {
            "training": dataclasses.asdict(settings),
            "bank_sha256": checkpoint.sha256(settings.events.bank),
        }
        if stage == "decomposer":
            held_out = TrackBank(Bank.load(settings.held_out))
            measure_track_light(best, finder, settings.events, held_out, 4, 1)
            info["metrics"] = {
                preset: calibrate(best, finder, dataclasses.replace(settings.events, conf2=conf2), held_out, 10, 1)
                for preset, conf2 in (("conf1", 0.0), ("conf2", 1.0))
            }
        checkpoint.save(folder / f"{stage}.safetensors", best, **info)
    dist.barrier()
    dist.destroy_process_group()


class Log:
    """Losses to a CSV file, steps to the progress bar."""

    def __init__(self, path: Path, advance: Any) -> None:
        self.path, self.advance, self.last = path, advance, 0

    def __call__(self, step: int, values: dict[str, float]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", *values])
            writer.writerow([step, *(f"{value:.5g}" for value in values.values())])
        self.advance(step - self.last)
        self.last = step


if __name__ == "__main__":
    sys.exit(cli.main(run))
