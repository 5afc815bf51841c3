#!/usr/bin/env python3
"""Measures speed and memory of whole runs. `tools/benchmark.py chain --help` lists the options."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
    parser = cli.new_parser(__doc__)
    cli.add_verbosity(parser)
    parser.add_subcommands(dest="what").add_subcommand("chain", chain, help="the vertex chain, file to file")
    return parser


def run(argv: list[str]) -> None:
    """Parses the command line and measures."""
    args = parsers().parse_args(argv).chain
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


if __name__ == "__main__":
    sys.exit(cli.main(run))
