#!/usr/bin/env python3
"""Measures whole runs (`chain`) and the compiled operators (`kernels`); `--help` after either lists the options."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jsonargparse

from sparsereco import cli
from sparsereco.errors import InputError

CHAIN = """\
Events per second and peak memory of `tools/reco.py vertex`, ROOT file to ROOT file, start of the process included.

Simulates one sample of at most 5,000 events and reconstructs it in runs of growing length; the longer ones read it over
and over again. The speed of the chain alone is the slope between the shortest and the longest run. Absolute times are
those of this machine as loaded as it is.

examples:
  tools/benchmark.py chain -n 1000 5000 --response superfgd --bank banks/test.npz
  tools/benchmark.py chain -n 1000 100000 --bank banks/test.npz --json memory.json
"""

DISTINCT = 5000
"""Events of the sample; a longer run reads them again, since what it shows does not depend on which events it reads."""

KERNELS = """\
The compiled operators against their peers, in alternation, and against what the machine can do.

`image_match`: forward and backward on images of 6 x 64 deposits along straight tracks, 7 x 7 x 7 voxels, float32,
Poisson, against plain torch. Convolution: kernel map, forward, and forward and backward of a submanifold convolution of
3 x 3 x 3 on voxels along tracks in a grid of 512^3, float32, against spconv's native algorithm, its map made before.
The roofs are measured in the same run: multiply-adds by a compiled loop on registers, bandwidth by a copy. Times are
the shortest of all rounds: processor time with one thread, so that a busy machine does no harm, else wall time.

examples:
  tools/benchmark.py kernels
  tools/benchmark.py kernels --images 64 1024 16384 --threads 2 --json kernels.json
  tools/benchmark.py kernels --images --voxels 5000 20000 100000 --channels 16 32 64 --threads 2
"""

TOOLS = Path(__file__).resolve().parent


def parsers() -> jsonargparse.ArgumentParser:
    """The command line: one subcommand per kind of measurement."""
    chain = cli.new_parser(CHAIN)
    chain.add_argument("-n", "--numbers", type=int, nargs="+", default=[1000, 5000], help="events of each run")
    chain.add_argument("--response", default="superfgd", metavar="NAME|FILE", help="response of the sample")
    chain.add_argument("--preset", default="conf1", choices=["conf1", "conf2"], help="particles of an interaction")
    chain.add_argument("--bank", type=str | None, metavar="FILE", help="bank of tracks; fresh ones without it")
    chain.add_argument("--batch-size", type=int, default=256, help="events per forward pass")
    chain.add_argument("--json", type=str | None, metavar="OUT", help="write the numbers to this file, too")
    cli.add_verbosity(chain)
    kernels = cli.new_parser(KERNELS)
    kernels.add_argument("--images", type=int, nargs="*", default=[64, 1024], help="images of each row of image_match")
    kernels.add_argument("--voxels", type=int, nargs="*", default=[20000], help="voxels of each row of convolution")
    kernels.add_argument("--channels", type=int, nargs="+", default=[32], help="channels of each row of convolution")
    kernels.add_argument("--threads", type=int, default=1, help="threads of torch and of the operators")
    kernels.add_argument("--rounds", type=int, default=5, help="rounds of each row; ours runs five times in each")
    kernels.add_argument("--json", type=str | None, metavar="OUT", help="write the numbers to this file, too")
    cli.add_verbosity(kernels)
    parser = cli.new_parser(__doc__)
    cli.add_verbosity(parser)
    commands = parser.add_subcommands(dest="what")
    commands.add_subcommand("chain", chain, help="the vertex chain, file to file")
    commands.add_subcommand("kernels", kernels, help="the compiled operators")
    return parser


def run(argv: list[str]) -> None:
    """Parses the command line and measures."""
    args = parsers().parse_args(argv)
    if args.what == "chain":
        run_chain(args.chain)
    else:
        run_kernels(args.kernels)


def run_chain(args: jsonargparse.Namespace) -> None:
    """Whole runs of growing length."""
    numbers = sorted(args.numbers)
    if numbers[0] < 1:
        raise InputError(f"-n: expected positive numbers, got {numbers[0]}")
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder) / "sample.root"
        distinct = min(numbers[-1], DISTINCT)
        made = ["vertex", "-o", sample, "-n", distinct, "--seed", 1]
        made += ["--preset", args.preset, "--response", args.response]
        measure("simulate.py", [*made, "-q", *(["--bank", args.bank] if args.bank else [])])
        rows = []
        for number in numbers:
            options = ["-n", number, "-o", Path(folder) / f"{number}.root", "--batch_size", args.batch_size, "-q"]
            files = [sample] * -(-number // distinct)
            seconds, memory = measure("reco.py", ["vertex", *files, *options])
            rows.append({"events": number, "seconds": seconds, "events_per_s": number / seconds, "peak_mb": memory})
            print(
                f"{number:8,} events  {seconds:7.1f} s  {number / seconds:7.0f} events/s  peak {memory:6.0f} MB",
                flush=True,
            )
    result = {
        "runs": rows,
        "response": args.response,
        "preset": args.preset,
        "batch_size": args.batch_size,
        "cores": os.cpu_count(),
    }
    if len(rows) > 1:
        first, last = rows[0], rows[-1]
        result["slope_events_per_s"] = (last["events"] - first["events"]) / (last["seconds"] - first["seconds"])
        result["memory_ratio"] = last["peak_mb"] / first["peak_mb"]
        print(f"slope {result['slope_events_per_s']:.0f} events/s, memory ratio {result['memory_ratio']:.2f}")
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2))


def measure(tool: str, arguments: list[object]) -> tuple[float, float]:
    """Wall time [s] and peak resident memory [MB] of one of the tools in a process of its own."""
    clock = time.perf_counter()
    process = subprocess.Popen([sys.executable, str(TOOLS / tool), *map(str, arguments)])
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise RuntimeError(f"{tool} failed with exit code {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - clock, usage.ru_maxrss / 1024


def run_kernels(args: jsonargparse.Namespace) -> None:
    """Rows of `image_match` and of convolution."""
    import torch

    from benchmarks.roofs import roofs

    torch.set_num_threads(args.threads)
    peak, copy = roofs()
    print(f"roofs with {args.threads} threads: {peak / 1e9:.0f} GFLOP/s, copy {copy / 1e9:.1f} GB/s read + written")
    rows = []
    for images in args.images:
        ours, plain = time_image_match(images, args.rounds)
        deposits = images * 6 * 64
        # Additions and multiplications: 130 per deposit (kernels of csrc/deposits.h, twice its edges), 10 per voxel.
        flops = (130 * deposits + 10 * 343 * images) / ours
        # Each pass reads and writes four floats per deposit: position and charge, or derivatives.
        bandwidth = 64 * deposits / ours
        row = {
            "images": images,
            "seconds": ours,
            "reference_seconds": plain,
            "ratio": plain / ours,
            "fraction_of_fma": flops / peak,
            "fraction_of_copy": bandwidth / copy,
        }
        rows.append(row)
        print(
            f"image_match {images:6,} images  {ours * 1e3:8.2f} ms  reference {plain * 1e3:8.1f} ms  "
            f"ratio {row['ratio']:5.0f}  {row['fraction_of_fma']:.0%} of multiply-adds, "
            f"{row['fraction_of_copy']:.0%} of copy bandwidth",
            flush=True,
        )
    convolutions = [row for voxels in args.voxels for row in convolution_rows(voxels, args.channels, args.rounds, peak)]
    result = {"image_match": rows, "convolution": convolutions, "threads": args.threads}
    result |= {"peak_flops": peak, "copy_bytes_per_s": copy}
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2))


def time_image_match(images: int, rounds: int) -> tuple[float, float]:
    """Shortest time [s] of forward and backward, ours and the reference's, measured in alternation."""
    import torch

    from benchmarks.clock import seconds
    from sparsereco import ops, reference

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
        ours += [seconds(lambda: step(ops.image_match)) for _ in range(5)]
        plain.append(seconds(lambda: step(reference.image_match)))
    return min(ours), min(plain)


def convolution_rows(voxels: int, channels: list[int], rounds: int, peak: float) -> list[dict[str, Any]]:
    """Kernel map, forward, and forward and backward, ours and spconv's in alternation; prints them, too."""
    import warnings

    import torch

    from benchmarks.clock import seconds
    from sparsereco.convolution import sparse_conv, submanifold_map

    with warnings.catch_warnings():  # spconv 2.3.6 uses names that torch and Python have deprecated since
        warnings.simplefilter("ignore")
        import spconv.pytorch as spconv
        from spconv.pytorch.ops import get_indice_pairs

    native, grid = spconv.ConvAlgo.Native, [512] * 3
    coords = track_voxels(voxels, grid[0])
    offsets = torch.tensor([0, len(coords)])
    indices = torch.cat([torch.zeros_like(coords[:, :1]), coords], 1).contiguous()
    geometry = [[3] * 3, [1] * 3, [1] * 3, [1] * 3, [0] * 3]
    kernel_map = submanifold_map(coords, offsets, grid)
    pairs = 2 * kernel_map.rows.shape[1] - len(coords)  # the map lists half of the kernel, the centre once
    rows: list[dict[str, Any]] = []

    def compare(what: str, ours: Callable[[], Any], theirs: Callable[[], Any], flops: float) -> None:
        ours(), theirs()
        times = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
        own, peer = min(t for t, _ in times), min(t for _, t in times)
        row = {"what": what, "voxels": voxels, "seconds": own, "spconv_seconds": peer, "ratio": peer / own}
        row["fraction_of_fma"] = flops / own / peak
        rows.append(row)
        share = f"  {row['fraction_of_fma']:.0%} of multiply-adds" if flops else ""
        print(
            f"{what:24} {voxels:7,} voxels {own * 1e3:8.2f} ms  spconv {peer * 1e3:8.1f} ms  "
            f"ratio {row['ratio']:5.1f}{share}",
            flush=True,
        )

    compare(
        "kernel map",
        lambda: submanifold_map(coords, offsets, grid),
        lambda: get_indice_pairs(indices, 1, grid, native, *geometry, subm=True),
        0,
    )
    for width in channels:
        layer = spconv.SubMConv3d(width, width, 3, bias=False, indice_key="map", algo=native)
        feats, grad = torch.randn(len(coords), width), torch.randn(len(coords), width)
        known = layer(spconv.SparseConvTensor(feats, indices, grid, 1)).indice_dict
        leaves = [feats.requires_grad_(), layer.weight]

        def ours(layer: Any = layer, feats: Any = feats) -> Any:
            return sparse_conv(feats, layer.weight, kernel_map)

        def theirs(layer: Any = layer, feats: Any = feats, known: Any = known) -> Any:
            return layer(spconv.SparseConvTensor(feats, indices, grid, 1, indice_dict=known)).features

        def both(forward: Callable[[], Any], leaves: Any = leaves, grad: Any = grad) -> None:
            torch.autograd.grad(forward(), leaves, grad)

        def silent(forward: Callable[[], Any]) -> None:
            with torch.no_grad():
                forward()

        flops = 2.0 * pairs * width**2
        compare(f"forward, C = {width}", partial(silent, ours), partial(silent, theirs), flops)
        compare(f"forward+backward, C = {width}", partial(both, ours), partial(both, theirs), 3 * flops)
    return rows


def track_voxels(n: int, side: int) -> Any:
    """(n, 3) int32 voxels along straight tracks a few voxels thick, sorted."""
    import numpy as np
    import torch

    random, found = np.random.default_rng(1), np.zeros((0, 3), np.int64)
    while len(found) < n:
        direction = random.normal(size=3)
        along = np.arange(0, random.uniform(50, 300), 0.5)[:, None]
        track = random.uniform(0, side, 3) + direction / np.linalg.norm(direction) * along
        track = np.floor(track + random.normal(0, 0.6, track.shape)).astype(np.int64)
        found = np.unique(np.concatenate([found, track[((track >= 0) & (track < side)).all(1)]]), axis=0)
    keep = np.sort(random.permutation(len(found))[:n])
    return torch.from_numpy(found[keep].astype(np.int32))


if __name__ == "__main__":
    sys.exit(cli.main(run))
