"""The limits of events whose truth is known: `limit` applied to a detector's files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import awkward as ak
import numpy as np
import torch

from sparsereco.matching import true_hadrons
from sparsereco.metrics import FAST_HADRON, Comparison
from sparsereco.rows import plain
from sparsereco.stats import Estimate, median, spread
from sparsereco.vertex.chain import VertexChain
from sparsereco.vertex.crop import HALF
from sparsereco.vertex.hadrons import MAX_HADRONS, SPECIES
from sparsereco.vertex.limit import Found, Limits, as_named, limits


@dataclass(frozen=True)
class Oracle:
    """Limits of the events that have any."""

    event: np.ndarray
    """(V,) index among the events given."""
    limits: Limits
    """Lengths in voxels."""


def oracle(
    chain: VertexChain, hits: ak.Array, truth: ak.Array, done: Callable[[int], None] = lambda events: None
) -> Oracle:
    """Limits of the events whose best vertex has the true one in its crop, and that have hadrons of known species.

    Args:
        chain: with the detector's response, with the settings of the reconstruction, and with ``refine`` true.
        hits, truth: the same events.
        done: told how many events more are done.

    Raises:
        ValueError: the chain does not refine, or there is no such event.
    """
    if chain.refiner is None:
        raise ValueError("expected a chain that refines, got one with refine false")
    with torch.no_grad():
        prepared = chain.prepare(hits)
        crops, light = plain(prepared.crops), prepared.light().clone()
        event, score = (value.clone() for value in (prepared.near.vertices.event, prepared.near.vertices.score))
        best = torch.zeros(len(hits)).scatter_reduce(0, event, score, "amax")
        detector, hadrons = chain.config.detector, true_hadrons(truth)
        true = np.stack([ak.to_numpy(truth[f"vtx_{axis}"]) for axis in "xyz"], 1)
        place = torch.from_numpy((true - np.array(detector.origin)) / detector.pitch).float()[event]
        place = place - (crops.centre + 0.5)
        known = np.isin(hadrons.pdg, SPECIES) | (np.arange(hadrons.pdg.shape[1]) >= hadrons.count[:, None])
        usable = torch.from_numpy((hadrons.count > 0) & (hadrons.count <= MAX_HADRONS) & known.all(1))[event]
        rows = (usable & (score == best[event]) & (place.abs() < HALF).all(1)).nonzero()[:, 0]
        if not len(rows):
            raise ValueError(f"none of {len(hits)} events has a vertex whose crop holds the true one, and p, d or t")
        species = np.searchsorted(SPECIES, hadrons.pdg).clip(0, len(SPECIES) - 1)
        named = as_named(
            place,
            torch.from_numpy(hadrons.ke).float()[event, :MAX_HADRONS],
            torch.from_numpy(hadrons.direction).float()[event, :MAX_HADRONS],
            torch.from_numpy(species)[event, :MAX_HADRONS],
            torch.from_numpy(hadrons.count)[event].clamp(max=MAX_HADRONS),
            len(crops.place),
        )
        answer = plain(chain.decompose(crops))
        found = limits(chain.refiner.fitter, crops, light, named, answer, rows, done)
    return Oracle(event[rows].numpy(), found)


@dataclass(frozen=True)
class LimitRow:
    """One method on the events of an `Oracle`."""

    method: str
    events: int
    vertex: Estimate
    """Distance in 3D, median [mm]."""
    ke: Estimate
    """Energy of matched hadrons, spread [MeV]."""
    total: Estimate
    """Energy of all hadrons, spread [MeV]."""
    angle: Estimate
    """Direction of fast hadrons, median [deg]."""


def limit_rows(found: Oracle, reached: Comparison, pitch: float) -> list[LimitRow]:
    """The limits beside what a reconstruction reached, and beside the information's for one and two hadrons.

    Args:
        found: the limits.
        reached: of the same V events, in the same order.
        pitch: edge of a voxel [mm].
    """
    pairs, limit = reached.optimal, found.limits
    fast = pairs.matched & (pairs.true_ke > FAST_HADRON)
    rows = [
        LimitRow(
            "this reconstruction",
            len(found.event),
            median(reached.distance[np.isfinite(reached.distance)]),
            spread((pairs.reco_ke - pairs.true_ke)[pairs.matched]),
            spread(reached.reco_total - reached.true_total),
            median(np.degrees(pairs.angle[fast])),
        )
    ]
    every = np.ones(len(found.event), bool)
    number = limit.on.sum(1).numpy()
    for method, errors, events in (
        ("fit from the truth", limit.with_prior, every),
        ("fit to light alone", limit.from_truth, every),
        ("mean near the truth", limit.sampled, every),
        ("information, 1 hadron", limit.fisher, number == 1),
        ("information, 2 hadrons", limit.fisher, number == 2),
    ):
        rows.append(_row(method, limit, errors, events, pitch))
    return rows


def _row(method: str, limit: Limits, errors: Found, events: np.ndarray, pitch: float) -> LimitRow:
    on = limit.on.numpy()[events]
    ke, angle = errors.ke.numpy()[events], errors.angle.numpy()[events]
    fast = on & (limit.true_ke.numpy()[events] > FAST_HADRON)
    return LimitRow(
        method,
        int(events.sum()),
        median(errors.distance.numpy()[events] * pitch),
        spread(ke[on]),
        spread((ke * on).sum(1)),
        median(np.degrees(angle[fast])),
    )
