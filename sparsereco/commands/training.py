"""What the trainings share: checks before the start, processes, the log."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

from sparsereco import checkpoint, cli
from sparsereco.commands.common import check_banks
from sparsereco.errors import InputError
from sparsereco.scale import environment_kept
from sparsereco.train import fit

Model = TypeVar("Model", bound=nn.Module)
Settings = TypeVar("Settings")


def training_parser(text: str, settings: type[Any]) -> jsonargparse.ArgumentParser:
    """A parser with the options of `tools/train.py` that every stage has, and those of its settings."""
    parser = cli.new_parser(text)
    parser.add_argument("-c", "--config", action=cli.ConfigFile, metavar="FILE", help="settings as YAML")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_class_arguments(settings, nested_key=None)
    cli.add_verbosity(parser)
    return parser


def settings_of(kind: type[Settings], args: jsonargparse.Namespace) -> Settings:
    """The settings of a training; under torchrun, the number of processes is what that has started."""
    settings = cli.build(kind, args)
    started = os.environ.get("WORLD_SIZE") if dist.is_torchelastic_launched() else None
    return settings if started is None else dataclasses.replace(settings, processes=int(started))  # type: ignore[type-var]


def check_training(settings: Any, resume: bool, banks: Iterable[str] = ()) -> None:
    """Finds what would stop a training before it starts.

    Args:
        settings: of the training: network, schedule, start, output, processes.
        resume: go on from the last checkpoint.
        banks: files of tracks that it needs.

    Raises:
        InputError: a bank or the last checkpoint is missing, the network to start from is another one, or a batch
            cannot be shared by the processes.
    """
    check_banks(banks)
    if settings.start and checkpoint.metadata(settings.start)["config"] != json.loads(
        json.dumps(dataclasses.asdict(settings.network))
    ):
        raise InputError(f"start: the network of {settings.start} is not the one of this training")
    if resume and not (Path(settings.output) / "last.pt").is_file():
        raise InputError(f"--resume: there is no {settings.output}/last.pt to go on from")
    if settings.processes < 1:
        raise InputError(f"processes must be at least 1, got {settings.processes}")
    if settings.schedule.batch_size % settings.processes:
        raise InputError(
            f"schedule.batch_size {settings.schedule.batch_size} is no multiple of {settings.processes} processes"
        )


def in_processes(work: Callable[..., None], settings: Any, *arguments: Any) -> None:
    """Runs ``work(rank, settings, *arguments)`` in the processes of a training, which know each other.

    They are started here, or were by torchrun, on several machines perhaps.

    Args:
        work: a function of a module, so that other processes can find it.
        settings: of the training.
        arguments: further ones.
    """
    if dist.is_torchelastic_launched():
        _join_in(int(os.environ["RANK"]), work, "env://", settings, arguments)
        return
    with environment_kept(), tempfile.TemporaryDirectory() as meeting:
        # glibc would give the large tensors of every step back to the system, which zeroes them anew for the next: a
        # tenth of the time.
        os.environ.setdefault("MALLOC_MMAP_MAX_", "0")
        os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**40))
        passed = (work, f"file://{meeting}/store", settings, arguments)
        torch.multiprocessing.spawn(_join_in, passed, nprocs=settings.processes)  # type: ignore[attr-defined]


def _join_in(rank: int, work: Callable[..., None], meeting: str, settings: Any, arguments: tuple[Any, ...]) -> None:
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=settings.processes)
    torch.set_num_threads(max(1, torch.get_num_threads() // settings.processes))
    torch.manual_seed(settings.schedule.seed)
    work(rank, settings, *arguments)
    dist.barrier()
    dist.destroy_process_group()


def train(
    stage: str,
    rank: int,
    model: Model,
    losses: Callable[[torch.Generator], dict[str, torch.Tensor]],
    settings: Any,
    resume: bool,
    quiet: bool,
    **options: Any,
) -> Model:
    """`sparsereco.train.fit` with its ``options``, a progress bar and ``log.csv``, both by the first process."""
    folder = Path(settings.output)
    with cli.progress(f"train {stage}", settings.schedule.steps, "steps", quiet or rank > 0) as advance:
        log = Log(folder / "log.csv", advance) if rank == 0 else lambda step, values: None
        return fit(model, losses, settings.schedule, folder, resume, log, **options)


class Log:
    """Losses to a CSV file, steps to the progress bar."""

    def __init__(self, path: Path, advance: Callable[[int], None]) -> None:
        self.path, self.advance, self.last = path, advance, 0

    def __call__(self, step: int, values: dict[str, float]) -> None:
        """Adds a line.

        Args:
            step: steps done.
            values: the columns by name.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", *values])
            writer.writerow([step, *(f"{value:.5g}" for value in values.values())])
        self.advance(step - self.last)
        self.last = step
