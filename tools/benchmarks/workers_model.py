"""A run on workers simulated: one client, workers of different speeds, units that take what they take, and losses."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsereco.scale import RETRIES

ATTEMPTS = RETRIES + 1
"""Workers that a unit may take with it."""


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
