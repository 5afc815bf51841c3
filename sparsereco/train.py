"""Training: one loop for every stage.

The batch of a step depends on the seed and the step alone, so a resumed training sees the same events as one that
never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sparsereco import bounds, checkpoint
from sparsereco.nn.muon import Muon

Model = TypeVar("Model", bound=nn.Module)


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

    def __post_init__(self) -> None:
        bounds.at_least(1, self, "schedule.", "steps", "batch_size")
        bounds.positive(self, "schedule.", "learning_rate")
        bounds.not_negative(self, "schedule.", "warmup", "weight_decay", "save_every")
        bounds.share(self, "schedule.", "average")


def fit(
    model: Model,
    losses: Callable[[torch.Generator], dict[str, Tensor]],
    schedule: Schedule,
    folder: Path,
    resume: bool = False,
    report: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    pace: Mapping[str, float] = MappingProxyType({}),
) -> Model:
    """Trains a model and returns its running average.

    Args:
        model: trained in place.
        losses: named losses of one step from a seeded generator; their sum is minimised.
        schedule: steps, learning rate, seed.
        folder: where ``last.pt`` is kept for ``resume``.
        resume: go on from ``folder/last.pt``.
        report: called every 50 steps with the mean losses since the last call, and ``events/s``.
        pace: factors on the learning rate of parts of the model, by their names.
    """
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(schedule.average))
    optimisers = _optimisers(model, schedule, pace)
    rates = [torch.optim.lr_scheduler.LambdaLR(one, lambda step: _rate(step, schedule)) for one in optimisers]
    parts: dict[str, Any] = {"model": model, "average": average}
    for i, (optimiser, rate) in enumerate(zip(optimisers, rates, strict=True)):
        parts |= {f"optimiser{i}": optimiser, f"rate{i}": rate}
    step, last = 0, folder / "last.pt"
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if resume:
        state = checkpoint.load_training(last)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        step = state["step"]

    def keep() -> None:
        checkpoint.save_training(last, step=step, **{name: part.state_dict() for name, part in parts.items()})

    model.train()
    saved = reported = time.monotonic()
    sums: dict[str, float] = {}
    last_report = step
    while step < schedule.steps:
        generator = torch.Generator().manual_seed((schedule.seed * 1_000_003 + step) * world + rank)
        terms = losses(generator)
        model.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        _average_gradients(model, world)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser, rate in zip(optimisers, rates, strict=True):
            optimiser.step()
            rate.step()
        average.update_parameters(model)
        step += 1
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        if step % 50 == 0 or step == schedule.steps:
            now, done = time.monotonic(), step - last_report
            speed = done * schedule.batch_size / (now - reported)
            report(step, {**{name: value / done for name, value in sums.items()}, "events/s": speed})
            sums, reported, last_report = {}, now, step
        if rank == 0 and (time.monotonic() - saved > schedule.save_every or step == schedule.steps):
            keep()
            saved = time.monotonic()
    best: Any = average.module  # a copy of the model, which its type does not say
    return best


def _optimisers(model: nn.Module, schedule: Schedule, pace: Mapping[str, float]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of linear layers, AdamW for the rest.

    Muon moves all directions of a matrix alike: on the decomposer, 500 steps of it were worth more than twice as many
    of AdamW. Its steps are scaled to those of AdamW, so one learning rate serves both (arXiv 2502.16982).
    """
    matrices = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Linear)}
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        decay = schedule.weight_decay if weight.ndim > 1 else 0.0
        rate = schedule.learning_rate * pace.get(name.split(".")[0], 1.0)
        groups.setdefault((id(weight) in matrices, decay, rate), []).append(weight)
    muon, rest = (
        [{"params": weights, "weight_decay": decay, "lr": rate} for (is_matrix, decay, rate), weights in groups.items()
         if is_matrix == wanted] for wanted in (True, False)
    )  # fmt: skip
    optimisers: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, betas=(0.9, 0.98), fused=True)] if rest else []
    if muon:
        optimisers.append(Muon(muon))
    return optimisers


def _average_gradients(model: nn.Module, world: int) -> None:
    """The mean over processes, in one message."""
    if world == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, mean in zip(gradients, (flat / world).split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def _rate(step: int, schedule: Schedule) -> float:
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup))))
