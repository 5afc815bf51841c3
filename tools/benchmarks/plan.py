"""A production planned: what its parts cost, and simulated runs on workers with these costs."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from typing import Any

import jsonargparse
import numpy as np
from numpy.typing import NDArray

from benchmarks.costs import Costs, System, all_costs
from benchmarks.workers_model import Simulated, Site, simulate

LAUNCH, SUSTAINED, GPU_BATCH = 5e-6, 3.35e12, 4096
"""Assumed of a GPU: time to start an operator [s], a tenth of the 33.5 T multiply-adds/s that an H100 has in float32,
and events of a forward pass."""


def unit_times(costs: Costs, number: int, size: int, seed: int) -> NDArray[np.float64]:
    """(number,) times of units of so many events [s]: as many batches as it takes, drawn from those measured."""
    draw = np.random.default_rng(seed)
    batches = max(round(size / costs.batch), 1)
    return np.array([costs.unit + draw.choice(costs.batches, batches).sum() for _ in range(number)])


def run(args: jsonargparse.Namespace) -> dict[str, Any]:
    """Measures, tells the costs, and simulates runs of more and more workers."""
    rows, costs = all_costs(args)
    for row in rows:
        print(told(row))
    print(told_costs(costs))
    print(
        f"\nsimulated runs of the vertex chain, units of {args.unit_size:,} events: speeds of workers vary by "
        f"{args.spread:.0%}, {args.losses:g} are lost per worker and hour"
    )
    simulated = []
    for total, workers in itertools.product(args.total, args.workers):
        units = unit_times(costs, max(round(total / args.unit_size), 1), args.unit_size, args.seed)
        site = Site(workers, args.spread, args.losses)
        one = simulate(units, costs.merge * args.unit_size, costs.hand, site, args.seed)
        simulated.append({"events": total, "workers": workers, **asdict(one)})
        print(told_run(total, workers, one))
    measured = asdict(costs) | {"batches": costs.batches.tolist()}
    return {"systems": [asdict(row) for row in rows], "costs": measured, "simulated": simulated}


def told(row: System) -> str:
    """A system in a line."""
    return (
        f"{row.name:16} {1 / row.seconds:7.1f} {row.unit}/s and core after {row.start:4.1f} s of start, peak "
        f"{row.peak_mb:5.0f} MB; bytes per {row.unit[:-1]}: {row.read:10,.0f} read, {row.written:9,.0f} written"
    )


def told_costs(costs: Costs) -> str:
    """What a run on workers is made of, and what a GPU would do."""
    mean, spread = costs.batches.mean(), costs.batches.std()
    gpu = costs.operations / SUSTAINED + costs.calls * LAUNCH / GPU_BATCH
    rest = (1 - costs.networks) * mean / costs.batch
    return (
        f"vertex on a worker: {1e3 * mean:.0f} +- {1e3 * spread:.0f} ms for a batch of {costs.batch}, "
        f"{1e3 * costs.unit:.0f} ms for a unit besides\n"
        f"client: {1e3 * costs.hand:.1f} ms to hand out a unit, {1e6 * costs.merge:.0f} us to merge an event, so "
        f"{1 / costs.merge:,.0f} events/s at most\n"
        f"networks: {costs.operations / 1e6:.1f} million multiply-adds per event, {costs.calls:.0f} operators per "
        f"batch, {costs.networks:.0%} of the time\n"
        f"a GPU as assumed: {1e6 * gpu:.0f} us per event for the networks, while {1e6 * rest:.0f} us of the rest stay "
        f"with the processor, so {1 / max(gpu, rest):,.0f} events/s with one core, "
        f"{1 / max(gpu, rest / 16):,.0f} with sixteen"
    )


def told_run(total: float, workers: int, one: Simulated) -> str:
    """A simulated run in a line."""
    return (
        f"{total:14,.0f} events, {workers:5} workers: {one.hours:8.2f} h, workers useful {one.useful:4.0%}, client "
        f"handing {one.handing:4.0%} and merging {one.merging:4.0%} of it, {one.behind:6} parts merged after the last "
        f"unit, {one.lost} workers lost, {one.given_up} units given up"
    )
