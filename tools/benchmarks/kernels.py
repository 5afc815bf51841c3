"""The compiled operators: a table of `image_match` and of convolution."""

from __future__ import annotations

from typing import Any

import jsonargparse
import torch

from benchmarks import convolution, image_match
from benchmarks.roofs import roofs


def run(args: jsonargparse.Namespace) -> dict[str, Any]:
    """All rows that were asked for."""
    torch.set_num_threads(args.threads)
    peak, copy = roofs()
    print(f"roofs with {args.threads} threads: {peak / 1e9:.0f} GFLOP/s, copy {copy / 1e9:.1f} GB/s read + written")
    return {
        "threads": args.threads,
        "peak_flops": peak,
        "copy_bytes_per_s": copy,
        "image_match": [image_match.row(images, args.rounds, peak, copy) for images in args.images],
        "convolution": [
            row for voxels in args.voxels for row in convolution.rows(voxels, args.channels, args.rounds, peak)
        ],
        "scaling": convolution.scaling(args.voxels, args.sides, args.channels[0], args.rounds) if args.voxels else [],
    }
