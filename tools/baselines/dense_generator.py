#!/usr/bin/env python3
"""Trains the published generator's design, the baseline of `tools/evaluate.py generator`, for a given time.

Images are drawn once: 200,000 by default, with photo-statistics, as the published network saw them. For a third of the
time the network learns the mean image by least squares, as the published one's forerunner did; then come rounds of
critic and generator, with Adam and shorter rounds than published (2 steps of the critic, not 5), which gets further in
so little time. The output is written every minute, with the number of steps taken.

example:
  tools/baselines/dense_generator.py --bank banks/vertex.npz -o runs/dense_generator.safetensors --minutes 30
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch

from sparsereco import checkpoint, cli
from sparsereco.errors import InputError
from sparsereco.sim.bank import Bank
from sparsereco.sim.compose import TrackBank
from sparsereco.vertex.adversary import ImageStream, draw_singles
from sparsereco.vertex.dense_generator import (
    MARGIN,
    DenseCritic,
    DenseGenerator,
    DenseGeneratorConfig,
    critic_loss,
    labels_of,
)
from sparsereco.vertex.fidelity import middle
from sparsereco.vertex.generator import GENERATED

BATCH = 32
CRITIC_STEPS = 2
CHUNK = 5000


def run(argv: list[str]) -> None:
    """Parses the command line and trains."""
    parser = cli.new_parser(__doc__)
    parser.add_argument("--bank", required=True, metavar="FILE", help="bank of tracks to train on")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="checkpoint")
    parser.add_argument("--minutes", type=float, default=30.0, help="time to train, on one thread")
    parser.add_argument("-n", "--number", type=int, default=200_000, help="images to train on")
    parser.add_argument("--seed", type=int, default=1)
    cli.add_verbosity(parser)
    args = parser.parse_args(argv)
    log = cli.set_up_logging(args.quiet, args.verbose)
    if args.number < BATCH or args.minutes <= 0:
        raise InputError(f"expected at least {BATCH} images and a positive time, got {args.number}, {args.minutes}")
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    bank, stream = TrackBank(Bank.load(args.bank)), ImageStream(args.bank)
    labels, light = draw_images(bank, stream, args.number, torch.Generator().manual_seed(args.seed))
    made, critic = DenseGenerator(DenseGeneratorConfig()), DenseCritic(DenseGeneratorConfig())
    optimisers = [torch.optim.Adam(net.parameters(), 5e-4, betas=(0.0, 0.9)) for net in (made, critic)]

    def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows = torch.randint(len(labels), (BATCH,))
        return made.scaled(light[rows].float()), labels[rows], torch.randn(BATCH, made.settings.noise)

    warm, step, loss = 0, 0, torch.zeros(())
    start = saved = time.monotonic()
    while (passed := (time.monotonic() - start) / 60) < args.minutes:
        if passed < args.minutes / 3:
            real, about, noise = batch()
            loss = (made(about, noise) - real).square().sum(1).mean()
            descend(optimisers[0], loss)
            warm += 1
        else:
            for _ in range(CRITIC_STEPS):
                real, about, noise = batch()
                with torch.no_grad():
                    image = made(about, noise)
                loss = critic_loss(critic, real, image, about)
                descend(optimisers[1], loss)
            _, about, noise = batch()
            descend(optimisers[0], -critic(made(about, noise), about).mean())
            step += 1
        if (warm + step) % 50 == 0:
            log.info("%.1f min, %d and %d steps, loss %.3f", passed, warm, step, loss.item())
        if time.monotonic() - saved > 60:
            save(args, made, warm, step)
            saved = time.monotonic()
    save(args, made, warm, step)


def descend(optimiser: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """One step."""
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def draw_images(
    bank: TrackBank, stream: ImageStream, n: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels (n, L) and measured images (n, 5, 5, 5) int16, as many of each species."""
    labels, images = [], []
    for start in range(0, n, CHUNK):
        species = torch.arange(min(CHUNK, n - start)) % len(GENERATED)
        singles = draw_singles(stream, bank, species, generator)
        labels.append(labels_of(singles))
        images.append(torch.poisson(middle(singles.image, MARGIN), generator=generator).to(torch.int16))
    return torch.cat(labels), torch.cat(images)


def save(args: Any, model: DenseGenerator, warm: int, step: int) -> None:
    """The checkpoint so far."""
    checkpoint.save(args.output, model, warm_steps=warm, steps=step, processor_minutes=time.process_time() / 60,
                    images=args.number, bank_sha256=checkpoint.sha256(args.bank))  # fmt: skip


if __name__ == "__main__":
    sys.exit(cli.main(run))
