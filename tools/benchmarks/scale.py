"""The vertex chain on ever more local workers: equal values, and how the speed grows."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import jsonargparse

from benchmarks.chain import measure
from sparsereco.io import RECO, read


def run(args: jsonargparse.Namespace) -> dict[str, Any]:
    """One sample, reconstructed without workers and with each number of them."""
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder) / "sample.root"
        bank = ["--bank", args.bank] if args.bank else []
        measure("simulate.py", ["vertex", "-o", sample, "-n", args.events, "--seed", 1, "-q", *bank])
        rows: list[dict[str, Any]] = []
        expected = ""
        for workers in [0, *args.workers]:
            output = Path(folder) / f"{workers}.root"
            options = ["--workers", workers, "--unit-size", args.unit_size] if workers else []
            seconds, _ = measure("reco.py", ["vertex", sample, "-o", output, "-q", "--device", "cpu", *options])
            values = str(read(output, RECO).tolist())  # NaN is like NaN
            expected = expected or values
            rows.append({"workers": workers, "seconds": seconds, "equal": values == expected})
            print(
                f"{workers or 'no':>4} workers  {seconds:7.1f} s  {args.events / seconds:7.0f} events/s  "
                f"{'equal' if rows[-1]['equal'] else 'OTHER'} values",
                flush=True,
            )
    result = {"events": args.events, "unit_size": args.unit_size, "cores": os.cpu_count(), "runs": rows}
    return result | {"load": os.getloadavg()[0]}
