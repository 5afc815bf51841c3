"""Training: one loop for every stage, and the endless streams of composed events that feed it.

The batch of a step depends on the seed and the step alone, so a resumed training sees the same events as one that never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sparsereco import checkpoint
from sparsereco.detector import Detector, Response
from sparsereco.sim.compose import PRESETS, TrackBank
from sparsereco.sim.geant4 import MUON
from sparsereco.sim.response import quenched
from sparsereco.sim.sample import Sample, draw_sample
from sparsereco.vertex.crop import HALF, Crops, cut_crops
from sparsereco.vertex.decomposer import MAX_HADRONS, SPECIES, Decomposer, Hadrons
from sparsereco.vertex.finder import Finder, finder_loss
from sparsereco.vertex.tracks import find_tracks
from sparsereco.voxels import Voxels


@dataclass(frozen=True)
class Schedule:
    """How long and how fast."""

    steps: int = 4000
    """Optimiser steps in all."""
    batch_size: int = 128
    """Events per step."""
    learning_rate: float = 2e-3
    """Peak; linear warm-up before it, cosine to zero after it."""
    warmup: int = 200
    """Steps of warm-up."""
    weight_decay: float = 0.01
    average: float = 0.999
    """Decay of the running average of the weights, which is what gets saved and used."""
    seed: int = 1
    save_every: int = 120
    """Seconds between checkpoints."""


@dataclass(frozen=True)
class EventStream:
    """What the events of a training look like: both presets, both responses, and a light yield that is never quite known."""

    bank: str = "banks/vertex.npz"
    """File of `tools/simulate.py bank`."""
    conf2: float = 0.4
    """Share of batches of preset conf2; the others are conf1."""
    superfgd: float = 0.4
    """Share of batches with the superfgd response; the others are ideal."""
    light_spread: float = 0.04
    """Relative spread of the light yield from event to event."""
    crosstalk_loss: tuple[float, float] = (1.0, 1.22)
    """Range of a further factor where there is crosstalk: experiments quote the light yield before or after the loss."""
    detector: Detector = field(default_factory=Detector)


MAX_VOXELS = 48
"""Brightest voxels of a crop that the decomposer sees."""

NEIGHBOURHOOD = 230.0
"""The decomposer is trained on tracks cut at this distance, for speed; the finder sees such events too [mm]."""

SUPERFGD = Response(crosstalk=0.03, threshold=3.0, noise_hits=20.0, crossing_muons=0.3)


def draw_batch(stream: EventStream, bank: TrackBank, n: int, generator: torch.Generator, reach: float = float("inf"), pile_up: float = 0.0) -> Sample:
    """Composes ``n`` events of a random preset and response; ``reach`` and ``pile_up`` as in `draw_sample`."""
    detector, preset = stream.detector, PRESETS["conf2" if _chance(stream.conf2, generator) else "conf1"]
    light = 1 + stream.light_spread * torch.randn(n, generator=generator)
    if _chance(stream.superfgd, generator):
        detector = replace(detector, response=SUPERFGD)
        low, high = stream.crosstalk_loss
        light = light * (low + (high - low) * torch.rand(n, generator=generator))
    return draw_sample(bank, preset, detector, n, generator, light.clamp(min=0.5), reach, pile_up)


def _in_voxels(position: Tensor, detector: Detector) -> Tensor:
    return (position - torch.tensor(detector.origin)) / detector.pitch


def _chance(probability: float, generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator) < probability)


def finder_step(model: Finder, stream: EventStream, bank: TrackBank, n: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Losses of the finder on a fresh batch."""
    reach = NEIGHBOURHOOD if _chance(0.3, generator) else float("inf")
    batch = draw_batch(stream, bank, n, generator, reach, pile_up=0.06)
    visible, _ = model.visible(batch.hits)
    logit, offset, _ = model(visible)
    return finder_loss(logit, offset, visible, _in_voxels(batch.vertex, stream.detector), batch.event)


def decomposer_batch(finder: Finder, stream: EventStream, bank: TrackBank, n: int, generator: torch.Generator) -> tuple[Crops, Tensor, Hadrons]:
    """Crops as the chain will cut them, with reconstructed tracks and the finder's embedding; true vertices and hadrons."""
    batch = draw_batch(stream, bank, n, generator, NEIGHBOURHOOD)
    vertex = _in_voxels(batch.vertex, stream.detector)
    own = torch.floor(vertex)
    # The finder is right to a few mm; now and then it is off by a voxel.
    wide = torch.rand(n, 1, generator=generator) < 0.15
    guess = vertex + torch.where(wide, 0.7, 0.2) * torch.randn(n, 3, generator=generator)
    centre = torch.minimum(torch.maximum(torch.floor(guess), own - 1), own + 1).long()
    event = torch.arange(n)

    near = batch.hits.select((batch.hits.coords - centre[batch.hits.event]).abs().amax(1) <= 23)
    context = embed(finder, near)
    forget = torch.rand(n, generator=generator) < 0.1
    context = context * ~forget[near.event, None]
    tracks = find_tracks(near, event, centre)
    crops = cut_crops(near, context, event, centre, tracks, MAX_VOXELS)
    return crops, vertex - centre - 0.5, _true_hadrons(batch, crops, stream.detector)


@torch.no_grad()
def embed(finder: Finder, hits: Voxels) -> Tensor:
    """(N, C) embedding of every hit, zero where the finder does not look."""
    visible, rows = finder.visible(hits)
    embedding = finder(visible)[2]
    return embedding.new_zeros(len(hits.coords), embedding.shape[1]).index_put((rows,), embedding)


def _true_hadrons(batch: Sample, crops: Crops, detector: Detector) -> Hadrons:
    """The hadrons of each interaction, padded, and their shares in the light of the voxels of the crops."""
    particles, n = batch.particles, len(crops)
    rows = (particles.pdg != MUON).nonzero()[:, 0]
    interaction = particles.interaction[rows]
    count = torch.bincount(interaction, minlength=n)
    slot = torch.arange(len(rows)) - (count.cumsum(0) - count)[interaction]
    species = torch.zeros(n, MAX_HADRONS, dtype=torch.int64)
    for index, code in enumerate(SPECIES):
        of_code = particles.pdg[rows] == code
        species[interaction[of_code], slot[of_code]] = index
    ke = torch.zeros(n, MAX_HADRONS).index_put((interaction, slot), particles.ke[rows])
    direction = torch.zeros(n, MAX_HADRONS, 3).index_put((interaction, slot), particles.direction[rows])

    # Light of every particle in every voxel of its 7 x 7 x 7 crop; column 0 of a crop is the muon, column 1 + s hadron s.
    side = 2 * HALF + 1
    column = torch.zeros(len(particles.pdg), dtype=torch.int64).index_put((rows,), 1 + slot)
    made = batch.deposits
    place = torch.floor(_in_voxels(made.position, detector)).long() - crops.centre[made.event] + HALF
    inside = ((place >= 0) & (place < side)).all(1)
    cell = ((made.event * side + place[:, 0]) * side + place[:, 1]) * side + place[:, 2]
    light = torch.zeros(n * side**3, 1 + MAX_HADRONS)
    visible = quenched(made.energy, made.dedx, detector.response.birks)
    light.view(-1).index_add_(0, (cell * (1 + MAX_HADRONS) + column[batch.owner])[inside], visible[inside])
    place = crops.place + HALF
    seen = light[((crops.crop * side + place[:, 0]) * side + place[:, 1]) * side + place[:, 2]]
    return Hadrons(ke, direction, species, count, seen[:, 1:] / seen.sum(1, keepdim=True).clamp(min=1e-6))


def decomposer_step(model: Decomposer, finder: Finder, stream: EventStream, bank: TrackBank, n: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Losses of the decomposer on a fresh batch."""
    crops, vertex, hadrons = decomposer_batch(finder, stream, bank, n, generator)
    return model.loss(crops, vertex, hadrons, generator)


def fit(
    model: nn.Module,
    losses: Callable[[torch.Generator], dict[str, Tensor]],
    schedule: Schedule,
    folder: Path,
    resume: bool = False,
    report: Callable[[int, dict[str, float]], None] = lambda step, values: None,
) -> nn.Module:
    """Trains a model and returns its running average.

    Args:
        model: trained in place.
        losses: named losses of one step from a seeded generator; their sum is minimised.
        schedule: steps, learning rate, seed.
        folder: where ``last.pt`` is kept for ``resume``.
        resume: go on from ``folder/last.pt``.
        report: called every 50 steps with the mean losses since the last call, and ``events/s``.
    """
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(schedule.average))
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.98), fused=True)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, schedule))
    step, last = 0, folder / "last.pt"
    if resume:
        state = checkpoint.load_training(last)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        rate.load_state_dict(state["rate"])
        step = state["step"]

    def keep() -> None:
        parts = {"model": model, "average": average, "optimiser": optimiser, "rate": rate}
        checkpoint.save_training(last, step=step, **{name: part.state_dict() for name, part in parts.items()})

    model.train()
    saved = reported = time.monotonic()
    sums: dict[str, float] = {}
    while step < schedule.steps:
        generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + step)
        parts = losses(generator)
        total = torch.stack(list(parts.values())).sum()
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        rate.step()
        average.update_parameters(model)
        step += 1
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        if step % 50 == 0 or step == schedule.steps:
            now, done = time.monotonic(), step % 50 or 50
            report(step, {**{name: value / done for name, value in sums.items()}, "events/s": done * schedule.batch_size / (now - reported)})
            sums, reported = {}, now
        if time.monotonic() - saved > schedule.save_every or step == schedule.steps:
            keep()
            saved = time.monotonic()
    return average.module


def _rate(step: int, schedule: Schedule) -> float:
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup))))
