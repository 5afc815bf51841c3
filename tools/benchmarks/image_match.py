"""`image_match` against plain torch, and against what the machine can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.clock import seconds
from sparsereco import ops, reference


def row(images: int, rounds: int, peak: float, copy: float) -> dict[str, Any]:
    """Forward and backward of a number of images; ``peak`` and ``copy`` are the machine's roofs."""
    ours, plain = time_image_match(images, rounds)
    deposits = images * 6 * 64
    # Additions and multiplications: 130 per deposit (kernels of csrc/deposits.h, twice its edges), 10 per voxel.
    flops = (130 * deposits + 10 * 343 * images) / ours
    # Four floats per deposit are read, position and charge, and four are written, their derivatives.
    bandwidth = 32 * deposits / ours
    result = {
        "images": images,
        "seconds": ours,
        "reference_seconds": plain,
        "ratio": plain / ours,
        "fraction_of_fma": flops / peak,
        "fraction_of_copy": bandwidth / copy,
    }
    print(
        f"image_match {images:6,} images  {ours * 1e3:8.2f} ms  reference {plain * 1e3:8.1f} ms  "
        f"ratio {result['ratio']:5.0f}  {result['fraction_of_fma']:.0%} of multiply-adds, "
        f"{result['fraction_of_copy']:.0%} of copy bandwidth",
        flush=True,
    )
    return result


def time_image_match(images: int, rounds: int) -> tuple[float, float]:
    """Shortest time [s] of forward and backward, ours and the reference's, measured in alternation.

    After the reference, which uses much more memory, the first of ours are slow. They are short: 20 of them each time.
    """
    generator = torch.Generator().manual_seed(1)
    direction = torch.nn.functional.normalize(torch.randn(images, 6, 1, 3, generator=generator), dim=-1)
    length = 0.5 + 3 * torch.rand(images, 6, 1, 1, generator=generator)
    position = (3.5 + direction * length * torch.linspace(0, 1, 64)[:, None]).reshape(-1, 3)
    charge = torch.rand(len(position), generator=generator)
    background = torch.full((images,), 0.1)
    offsets = torch.arange(images + 1) * 6 * 64
    expected, _ = ops.soft_voxelize(position, charge, offsets, softness=0.3)
    counts = torch.poisson(expected, generator=generator)
    image, *coords = counts.nonzero(as_tuple=True)
    starts = torch.zeros(images + 1, dtype=torch.int64)
    starts[1:] = torch.bincount(image, minlength=images).cumsum(0)
    measured = ops.MeasuredImages(torch.stack(coords, 1).int(), counts[counts > 0], starts)
    leaves = [x.requires_grad_() for x in (position, charge, background)]

    def step(match: Callable[..., Any]) -> None:
        loss, _ = match(position, charge, offsets, background, measured, softness=0.3)
        torch.autograd.grad(loss.sum(), leaves)

    step(ops.image_match)
    ours, plain = [], []
    for _ in range(rounds):
        ours += [seconds(lambda: step(ops.image_match)) for _ in range(20)]
        plain.append(seconds(lambda: step(reference.image_match)))
    return min(ours), min(plain)
