"""Events per second of the infill, file to file; and its cost against the volume of the detector at the same hits."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonargparse

from benchmarks.chain import measure

STRIDE = 2000.0
"""Copies of the two boxes stand at this distance from each other [mm]."""


def run(args: jsonargparse.Namespace) -> dict[str, Any]:
    """Whole runs, then the chain alone in ever larger detectors."""
    with tempfile.TemporaryDirectory() as folder:
        sample, filled = Path(folder) / "sample.root", Path(folder) / "filled.root"
        made: list[object] = ["infill", "-o", sample, "-n", args.events, "--seed", 1, "--preset", args.preset, "-q"]
        measure("simulate.py", [*made, "--detector", "gap10", *(["--bank", args.bank] if args.bank else [])])
        seconds, memory = measure("reco.py", ["infill", sample, "-o", filled, "--detector", "gap10", "-q"])
        print(f"{args.events:,} events in {seconds:.1f} s: {args.events / seconds:.0f} events/s, peak {memory:.0f} MB")
        rows = grow(sample, args.copies, args.rounds, args.threads)
    runs = {"events": args.events, "seconds": seconds, "events_per_s": args.events / seconds, "peak_mb": memory}
    return {"run": runs, "volume": rows, "preset": args.preset, "threads": args.threads, "cores": os.cpu_count()}


def grow(sample: Path, copies: list[int], rounds: int, threads: int) -> list[dict[str, Any]]:
    """Processor time per event of the chain where the same hits lie in detectors of more and more boxes."""
    import numpy as np
    import torch

    from sparsereco.commands.lar import read_detector
    from sparsereco.infill.chain import InfillChain
    from sparsereco.infill.checks import check_charge_hits
    from sparsereco.io import drop_hits, read
    from sparsereco.schema import CHARGE_HITS

    torch.set_num_threads(threads)
    events, base = read(sample, CHARGE_HITS)[:200], read_detector("gap10")
    chains = []
    for n in copies:
        centres = tuple(
            (x + STRIDE * i, y, z + STRIDE * j) for i in range(n) for j in range(n) for x, y, z in base.centres
        )
        chains.append(InfillChain(replace(base, centres=centres)))
    # Voxels that stick out of the boxes are live only where no other box follows.
    bad = check_charge_hits(events, chains[-1].gaps) if len(chains) > 1 else []
    events = drop_hits(events, [event.offset for event in bad], CHARGE_HITS)
    best = [float("inf")] * len(chains)
    for _ in range(rounds):
        for i, chain in enumerate(chains):  # in turns, so that a busy machine is busy for all
            clock = time.process_time()
            chain(events)
            best[i] = min(best[i], time.process_time() - clock)
    rows = []
    for chain, seconds in zip(chains, best, strict=True):
        sites = int(np.prod(chain.gaps.detector.shape, dtype=np.int64))
        rows.append(
            {"boxes": len(chain.gaps.detector.centres), "sites": sites, "ms_per_event": 1e3 * seconds / len(events)}
        )
        print(f"{rows[-1]['boxes']:6} boxes, {sites:16,} voxels of volume: {rows[-1]['ms_per_event']:.2f} ms per event")
    return rows
