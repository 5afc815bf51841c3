"""A production planned: what its parts cost, and a simulation of client, workers and losses with these costs."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import asdict, dataclass
from typing import Any

import jsonargparse
import numpy as np
from numpy.typing import NDArray

from benchmarks.costs import Costs, System, all_costs

ATTEMPTS = 4
"""Workers that a unit may take with it."""
LAUNCH, SUSTAINED, GPU_BATCH = 5e-6, 3.35e12, 4096
"""Assumed of a GPU: time to start an operator [s], a tenth of the 33.5 T multiply-adds/s that an H100 has in float32,
and events of a forward pass."""


@dataclass(frozen=True)
class Site:
    """Where it runs."""

    workers: int
    spread: float
    """Standard deviation of the logarithm of the workers' speeds."""
    losses: float
    """Lost workers per worker and hour."""
    back: float = 600.0
    """Time until another one takes the place of a lost one [s]."""


@dataclass(frozen=True)
class Simulated:
    """What a run took."""

    hours: float
    useful: float
    """Share of the workers' time that went into units which were finished."""
    handing: float
    """Share of the time in which the client was busy with handing out units."""
    merging: float
    """And with merging them."""
    behind: int
    """Units that were done and not yet in the output when the last one was."""
    lost: int
    """Workers."""
    given_up: int
    """Units that took too many workers with them."""


def simulate(units: NDArray[np.float64], merge: float, hand: float, site: Site, seed: int) -> Simulated:
    """A run, one happening after the other, with each worker at one unit at a time.

    The client has two threads: one hands out units and one merges them in order, each one by one.

    Args:
        units: (U,) time of each on a worker of mean speed [s].
        merge: time to merge a unit [s].
        hand: time of the client to hand one out and to take it back [s].
        site: workers and losses.
        seed: of the random numbers.
    """
    draw = np.random.default_rng(seed)
    speed = np.exp(draw.normal(0, site.spread, site.workers))
    waiting = list(range(len(units)))[::-1]
    attempts, ended = np.zeros(len(units), np.int64), np.full(len(units), np.inf)
    free = worked = 0.0
    lost = given_up = 0
    # What comes next: when, which worker, the unit that it is at (-1: none), and whether it is lost.
    coming = [(0.0, worker, -1, False) for worker in range(site.workers)]
    while np.isinf(ended[-1]) or waiting or any(unit >= 0 for _, _, unit, _ in coming):
        now, worker, unit, dies = heapq.heappop(coming)
        if dies:
            lost += 1
            if attempts[unit] < ATTEMPTS:
                waiting.append(unit)
            else:
                ended[unit], given_up = now, given_up + 1
            heapq.heappush(coming, (now + site.back, worker, -1, False))
            continue
        if unit >= 0:
            ended[unit] = now
            worked += units[unit] / speed[worker]
        if not waiting:
            if unit < 0 and not coming:
                break
            # It looks again: a unit may come back from a lost worker.
            if any(other >= 0 for _, _, other, _ in coming):
                heapq.heappush(coming, (coming[0][0] + 1.0, worker, -1, False))
            continue
        free = max(now, free) + hand
        unit = waiting.pop()
        attempts[unit] += 1
        takes = units[unit] / speed[worker]
        dies_after = draw.exponential(3600 / site.losses) if site.losses else np.inf
        heapq.heappush(coming, (free + min(takes, dies_after), worker, unit, dies_after < takes))
    last = float(ended.max())
    merged = 0.0
    behind = 0
    for end in np.maximum.accumulate(ended):  # a part is merged when all before it are
        merged = max(merged, end) + merge
        behind += merged > last
    wall = max(merged, last)
    return Simulated(
        hours=wall / 3600,
        useful=worked / (last * site.workers),
        handing=hand * len(units) / wall,
        merging=merge * len(units) / wall,
        behind=int(behind),
        lost=lost,
        given_up=given_up,
    )


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
