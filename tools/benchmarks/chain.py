"""Events per second and peak memory of the vertex chain, file to file, each run in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jsonargparse

DISTINCT = 5000
"""Events of the sample; a longer run reads them again, since what it shows does not depend on which events it reads."""

TOOLS = Path(__file__).resolve().parent.parent


def run(args: jsonargparse.Namespace) -> dict[str, Any]:
    """Whole runs of growing length."""
    numbers = sorted(args.numbers)
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
    result: dict[str, Any] = {
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
    return result


def measure(tool: str, arguments: list[object]) -> tuple[float, float]:
    """Wall time [s] and peak resident memory [MB] of one of the tools in a process of its own."""
    clock = time.perf_counter()
    process = subprocess.Popen([sys.executable, str(TOOLS / tool), *map(str, arguments)])
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise RuntimeError(f"{tool} failed with exit code {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - clock, usage.ru_maxrss / 1024
