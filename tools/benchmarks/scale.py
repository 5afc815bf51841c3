"""The vertex chain on ever more local workers: equal values, and how speed, processor time and memory grow."""

from __future__ import annotations

import ctypes
import hashlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jsonargparse

from benchmarks.chain import DISTINCT, TOOLS, measure
from sparsereco.io import RECO, iterate


@dataclass(frozen=True)
class Run:
    """What a run took."""

    workers: int
    seconds: float
    """Wall time [s]."""
    client: float
    """Processor time of `reco.py` itself [s]."""
    others: float
    """Processor time of the processes that it started, all together [s]."""
    client_mb: float
    """Peak resident memory of `reco.py` [MB]."""
    worker_mb: float
    """Peak resident memory of the largest of the others [MB]."""


def run(args: jsonargparse.Namespace) -> dict[str, Any]:
    """One sample, reconstructed without workers and with each number of them, in turns."""
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1)  # workers that outlive their run become ours, with their accounts
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder) / "sample.root"
        bank = ["--bank", args.bank] if args.bank else []
        distinct = min(args.events, DISTINCT)
        measure("simulate.py", ["vertex", "-o", sample, "-n", distinct, "--seed", 1, "-q", *bank])
        files = [sample] * -(-args.events // distinct)
        runs: list[Run] = []
        expected, equal = "", True
        for _ in range(args.rounds):
            for workers in [0, *args.workers]:
                output = Path(folder) / "reco.root"
                options = ["--workers", workers, "--unit-size", args.unit_size] if workers else []
                given = ["vertex", *files, "-n", args.events, "-o", output, "-f", "-q", "--device", "cpu", *options]
                runs.append(account(workers, given))
                values = digest(output)
                expected = expected or values
                equal &= values == expected
                print(told(runs[-1], args.events) + ("" if values == expected else "  OTHER values"), flush=True)
    result = {"events": args.events, "unit_size": args.unit_size, "cores": os.cpu_count(), "equal": equal}
    print(f"values {'equal to the last bit' if equal else 'DIFFER'}")
    for workers in args.workers[1:]:
        ratios = [
            one.seconds / many.seconds for one, many in zip(of(runs, args.workers[0]), of(runs, workers), strict=True)
        ]
        result[f"ratio_{workers}"] = statistics.median(ratios)
        print(
            f"{workers} workers against {args.workers[0]}: {statistics.median(ratios):.2f} x, the median of "
            + ", ".join(f"{ratio:.2f}" for ratio in ratios)
        )
    return result | {"runs": [asdict(one) for one in runs], "load": os.getloadavg()[0]}


def digest(output: Path) -> str:
    """Hash of all values, NaN like NaN; some events at a time, because a new process starts with our own peak."""
    sha = hashlib.sha256()
    for chunk in iterate([str(output)], RECO, step_size=2000):
        sha.update(str(chunk.events.tolist()).encode())
    return sha.hexdigest()


def of(runs: list[Run], workers: int) -> list[Run]:
    """The runs with so many workers."""
    return [one for one in runs if one.workers == workers]


def told(one: Run, events: int) -> str:
    """A run in a line."""
    return (
        f"{one.workers or 'no':>4} workers  {one.seconds:7.1f} s  {events / one.seconds:6.0f} events/s  processor time "
        f"{one.client:6.1f} s + {one.others:6.1f} s of workers, peak {one.client_mb:4.0f} MB"
        + (f", workers {one.worker_mb:4.0f} MB" if one.workers else "")
    )


def account(workers: int, arguments: list[object]) -> Run:
    """Runs `reco.py` and waits for it and for all that it has started."""
    clock = time.perf_counter()
    process = subprocess.Popen([sys.executable, str(TOOLS / "reco.py"), *map(str, arguments)])
    _, status, own = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - clock
    if status != 0:
        raise RuntimeError(f"reco.py failed with exit code {os.waitstatus_to_exitcode(status)}")
    others: list[resource.struct_rusage] = []
    while True:
        try:
            others.append(os.wait4(-1, 0)[2])
        except ChildProcessError:
            break
    time_of_others = sum(map(processor_time, others))
    peak = max((one.ru_maxrss for one in others), default=0)
    return Run(workers, seconds, processor_time(own), time_of_others, own.ru_maxrss / 1024, peak / 1024)


def processor_time(usage: resource.struct_rusage) -> float:
    """In the program and in the system [s]."""
    return usage.ru_utime + usage.ru_stime


_SET_CHILD_SUBREAPER = 36  # of <linux/prctl.h>
