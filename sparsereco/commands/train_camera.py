"""`tools/train.py selector`, `anomaly` and `embed`: the networks of the camera chain."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jsonargparse
import torch

from sparsereco import checkpoint, cli
from sparsereco.camera.anomaly import OBJECTIVES, Autoencoder, AutoencoderConfig
from sparsereco.camera.embed import Embedder, EmbedderConfig, best_number, choose_classes, cluster
from sparsereco.camera.significance import Significance
from sparsereco.camera.training import (
    EmbedSample,
    Patches,
    PatchStream,
    PedestalPieces,
    PedestalStream,
    anomaly_step,
    embed_patches,
    embed_step,
    selector_step,
)
from sparsereco.camera.unet import Selector, SelectorConfig
from sparsereco.commands import training
from sparsereco.commands.common import Command
from sparsereco.errors import InputError
from sparsereco.train import Schedule

SELECTOR_TEXT = """\
Trains the pixel selector of the camera chain on simulated pieces of frames, made on the way. The folder of --output
gets last.pt (every two minutes; --resume goes on from it), log.csv, and at the end selector.safetensors.

example:
  tools/train.py selector -c configs/train/selector.yaml

exit codes: 0 done, 1 failed while running, 2 wrong usage, setting or file, 130 interrupted
"""


ANOMALY_TEXT = """\
Trains the autoencoder of the anomaly regions on pedestal frames of simulated cameras, or those of a run
(--pieces.frames), by the objective network.objective. The folder of --output gets last.pt (every two minutes; --resume
goes on from it), log.csv, and at the end anomaly.safetensors.

examples:
  tools/train.py anomaly -c configs/train/anomaly.yaml
  tools/train.py anomaly -c configs/train/anomaly.yaml --pieces.frames run5.mid.gz --output runs/run5

exit codes: 0 done, 1 failed while running, 2 wrong usage, setting or file, 130 interrupted
"""


EMBED_TEXT = """\
Finds classes of patches of 100 x 100 pixels without labels (Deep Embedded Clustering): trains an autoencoder, starts by
k-means among its numbers, and moves encoder and centres together until fewer than 0.1 % of patches change their class.
With network.classes 0 the number of classes is the smallest whose mean silhouette no larger one raises by 5 %. The
folder of --output gets last.pt (--resume goes on from it), log.csv, and at the end embed.safetensors.

example:
  tools/train.py embed -c configs/train/embed.yaml

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


@dataclass(frozen=True)
class AnomalyTraining:
    """How the autoencoder is trained."""

    network: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """The network and its objective."""
    pieces: PedestalStream = field(default_factory=PedestalStream)
    """The pieces of frames."""
    schedule: Schedule = field(default_factory=Schedule)
    """How long and how fast."""
    start: str | None = None
    """Checkpoint to start from; null: random weights."""
    output: str = "runs/anomaly"
    """Folder of checkpoints, log and result."""
    processes: int = 1
    """Processes with one thread each that share every batch."""


@dataclass(frozen=True)
class EmbedTraining:
    """How classes are found."""

    network: EmbedderConfig = field(default_factory=EmbedderConfig)
    """The network; classes 0: as many as the silhouette says."""
    sample: EmbedSample = field(default_factory=EmbedSample)
    """The patches."""
    schedule: Schedule = field(default_factory=Schedule)
    """How long and how fast the autoencoder is trained."""
    start: str | None = None
    """Checkpoint to start from; null: random weights."""
    output: str = "runs/embed"
    """Folder of checkpoints, log and result."""
    processes: int = 1
    """Processes with one thread each; classes are found by the first."""


def run(
    settings_class: type[Any],
    work: Callable[..., None],
    args: jsonargparse.Namespace,
    argv: list[str],
    check: Callable[[Any], None] = lambda settings: None,
) -> None:
    """Trains a network, after ``check`` has found nothing wrong with the settings."""
    settings = training.settings_of(settings_class, args)
    cli.set_up_logging(args.quiet, args.verbose)
    training.check_training(settings, args.resume)
    check(settings)
    training.in_processes(work, settings, args.resume, args.quiet)


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


def train_anomaly(rank: int, settings: AnomalyTraining, resume: bool, quiet: bool) -> None:
    """One process of it."""
    start, n = settings.start, settings.schedule.batch_size // settings.processes
    model = checkpoint.load(start, Autoencoder, AutoencoderConfig) if start else Autoencoder(settings.network)
    run = None if settings.pieces.frames is None else seen_frames(settings.pieces)
    view = OBJECTIVES[settings.network.objective].view
    pieces = PedestalPieces(settings.pieces, view, settings.schedule.seed, run)

    def losses(generator: torch.Generator) -> dict[str, torch.Tensor]:
        return anomaly_step(model, pieces, n, generator)

    best = training.train("anomaly", rank, model, losses, settings, resume, quiet)
    if rank == 0:
        checkpoint.save(Path(settings.output) / "anomaly.safetensors", best, training=dataclasses.asdict(settings))


def check_run(settings: AnomalyTraining) -> None:
    """Finds a pedestal run that cannot be trained on.

    Raises:
        InputError: it cannot be read, has too few frames, or smaller ones than the pieces.
    """
    from sparsereco.frames import iterate_frames, survey_frames

    path, size = settings.pieces.frames, settings.pieces.size
    if size % 4 or size < 32:
        raise InputError(f"pieces.size: expected a multiple of 4, at least 32, got {size}")
    if path is None:
        return
    total = sum(file.entries for file in survey_frames([path]))
    if total < 6:
        raise InputError(f"pieces.frames: expected a run of at least 6 frames, {path} has {total}", file=path)
    rows, columns = next(iterate_frames([path])).image.shape
    if min(rows, columns) < size:
        raise InputError(f"pieces.size {size} is larger than the frames of {path}, {rows} x {columns}", file=path)


def seen_frames(settings: PedestalStream) -> Iterator[Significance]:
    """Frames of a pedestal run by the pedestal of its first third, which leaves the others their full noise."""
    from sparsereco.camera.pedestal import check_frame, measure_pedestal
    from sparsereco.camera.significance import Normaliser
    from sparsereco.frames import iterate_frames, survey_frames

    assert settings.frames is not None
    total = sum(file.entries for file in survey_frames([settings.frames]))
    first = total // 3
    pedestal = measure_pedestal(iterate_frames([settings.frames], 0, first))
    normaliser = Normaliser(*(torch.from_numpy(a) for a in (pedestal.mean, pedestal.sigma, pedestal.hot)))
    for frame in iterate_frames([settings.frames], first, min(total, first + settings.max_frames)):
        check_frame(frame, pedestal)
        yield normaliser(torch.from_numpy(frame.image.astype("f4")))


def train_embed(rank: int, settings: EmbedTraining, resume: bool, quiet: bool) -> None:
    """One process of it."""
    start, n, seed = settings.start, settings.schedule.batch_size // settings.processes, settings.schedule.seed
    model = checkpoint.load(start, Embedder, EmbedderConfig) if start else Embedder(settings.network)
    patches = embed_patches(settings.sample, seed)
    prepared = model.prepare(patches)

    def losses(generator: torch.Generator) -> dict[str, torch.Tensor]:
        return embed_step(model, prepared, n, generator)

    best = training.train("embed", rank, model, losses, settings, resume, quiet)
    if rank > 0:
        return
    log = cli.set_up_logging(quiet, False)
    best.requires_grad_(True)
    with torch.no_grad():
        silhouettes = choose_classes(best.encode(prepared).numpy(), seed)
    if settings.network.classes == 0:
        best = best.with_classes(best_number(silhouettes))
    changes: list[float] = []
    cluster(best, patches, seed, report=lambda epoch, share: changes.append(share))
    known = {"silhouettes": silhouettes, "changes": changes}
    log.info("silhouettes: %s", ", ".join(f"{k}: {value:.3f}" for k, value in silhouettes.items()))
    log.info("%d classes after %d passes", best.settings.classes, len(changes))
    path = Path(settings.output) / "embed.safetensors"
    checkpoint.save(path, best, training=dataclasses.asdict(settings), **known)


SELECTOR = Command(
    "the pixel selector of the camera chain",
    SELECTOR_TEXT,
    partial(training.training_parser, SELECTOR_TEXT, SelectorTraining),
    partial(run, SelectorTraining, train_selector),
)
ANOMALY = Command(
    "the autoencoder of the camera's anomaly regions",
    ANOMALY_TEXT,
    partial(training.training_parser, ANOMALY_TEXT, AnomalyTraining),
    partial(run, AnomalyTraining, train_anomaly, check=check_run),
)
EMBED = Command(
    "classes of camera patches without labels",
    EMBED_TEXT,
    partial(training.training_parser, EMBED_TEXT, EmbedTraining),
    partial(run, EmbedTraining, train_embed),
)
