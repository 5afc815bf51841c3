"""Which reconstructed hadron is which true one.

Two conventions. `optimal_partners` pairs the hadrons of an event so that the summed disagreement is smallest and never
looks at the species. `rank_partners` pairs the i-th in energy with the i-th, as arXiv:2310.19695 does: two hadrons of
near-equal energy that swap places then count as two errors. Both pair as many hadrons as they can; what is left over
on the true side is a false negative, on the reconstructed side a false positive.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import awkward as ak
import numpy as np
from scipy.optimize import linear_sum_assignment

from sparsereco.kinematics import MUON, angle

ENERGY_UNIT = 5.0
"""Difference in kinetic energy that costs 1 in the optimal matching [MeV]."""
ANGLE_UNIT = np.radians(30.0)
"""Angle that costs 1 in the optimal matching [rad]."""
NO_PARTNER_DIRECTION = np.array([-1.0, 0.0, 0.0])
"""What stands for a missing hadron's direction: theta 90, phi 180 degrees (its energy is 0), as in arXiv:2310.19695."""


@dataclass(frozen=True)
class Hadrons:
    """The hadrons of E events in descending energy, padded with zeros to the largest number P."""

    count: np.ndarray
    """(E,) hadrons of the event."""
    pdg: np.ndarray
    """(E, P) PDG codes."""
    ke: np.ndarray
    """(E, P) kinetic energy [MeV]."""
    direction: np.ndarray
    """(E, P, 3) unit vectors."""
    ke_err: np.ndarray
    """(E, P) standard error of the energy [MeV]; NaN for true hadrons."""
    dir_err: np.ndarray
    """(E, P) standard error of the direction per transverse axis [rad]; NaN for true hadrons."""


@dataclass(frozen=True)
class Pairs:
    """M rows of a true and a reconstructed hadron; a missing one has energy 0, PDG 0 and `NO_PARTNER_DIRECTION`."""

    event: np.ndarray
    """(M,) entry of the event."""
    multiplicity: np.ndarray
    """(M,) true hadrons in that event."""
    has_true: np.ndarray
    """(M,) bool; False for a false positive."""
    has_reco: np.ndarray
    """(M,) bool; False for a false negative."""
    true_pdg: np.ndarray
    reco_pdg: np.ndarray
    true_ke: np.ndarray
    """(M,) [MeV]."""
    reco_ke: np.ndarray
    """(M,) [MeV]."""
    true_direction: np.ndarray
    reco_direction: np.ndarray
    ke_err: np.ndarray
    """(M,) [MeV], NaN without a reconstructed hadron."""
    dir_err: np.ndarray
    """(M,) [rad], NaN without a reconstructed hadron."""

    @property
    def matched(self) -> np.ndarray:
        """(M,) bool, both hadrons are there."""
        return self.has_true & self.has_reco

    @property
    def has_errors(self) -> np.ndarray:
        """(M,) bool, matched and with positive standard errors."""
        return self.matched & (self.ke_err > 0) & (self.dir_err > 0)

    @property
    def angle(self) -> np.ndarray:
        """(M,) angle between the two directions [rad]."""
        return angle(self.true_direction, self.reco_direction)


def best_vertex(reco: ak.Array) -> np.ndarray:
    """(E,) index of the vertex with the highest score, -1 where the event has none."""
    return ak.to_numpy(ak.fill_none(ak.argmax(reco.vtx_score, axis=1), -1)).astype(np.int64)


def true_hadrons(truth: ak.Array) -> Hadrons:
    """All true particles but muons."""
    return _hadrons(truth, np.abs(truth.part_pdg) != MUON)


def reco_hadrons(reco: ak.Array) -> Hadrons:
    """The particles of each event's best vertex; none where it has no vertex."""
    return _hadrons(reco, reco.part_vtx == best_vertex(reco))


def _hadrons(events: ak.Array, chosen: ak.Array) -> Hadrons:
    order = ak.argsort(events.part_ke[chosen], axis=1, ascending=False, stable=True)
    count = ak.to_numpy(ak.num(order, axis=1))
    width = int(count.max(initial=1))

    def padded(field: str) -> np.ndarray:
        if field not in events.fields:
            return np.full((len(events), width), np.nan)
        column = ak.pad_none(events[field][chosen][order], width, axis=1, clip=True)
        return ak.to_numpy(ak.fill_none(column, 0, axis=1)).astype(np.float64).reshape(-1, width)

    direction = np.stack([padded(f"part_d{axis}") for axis in "xyz"], axis=-1)
    return Hadrons(
        count,
        padded("part_pdg").astype(np.int64),
        padded("part_ke"),
        direction,
        padded("part_ke_err"),
        padded("part_dir_err"),
    )


def cost(true: Hadrons, reco: Hadrons) -> np.ndarray:
    """(E, P_true, P_reco) disagreement of every pair: energy difference / `ENERGY_UNIT` + angle / `ANGLE_UNIT`."""
    energy = np.abs(true.ke[:, :, None] - reco.ke[:, None, :])
    turn = np.nan_to_num(angle(true.direction[:, :, None], reco.direction[:, None, :]))  # NaN only in the padding
    return energy / ENERGY_UNIT + turn / ANGLE_UNIT


def optimal_partners(true: Hadrons, reco: Hadrons) -> np.ndarray:
    """(E, P_true) index of each true hadron's partner, -1 for none, with the smallest summed `cost` of each event."""
    partner = np.full(true.pdg.shape, -1)
    costs = cost(true, reco)
    for entry in np.flatnonzero((true.count > 0) & (reco.count > 0)):
        rows, columns = linear_sum_assignment(costs[entry, : true.count[entry], : reco.count[entry]])
        partner[entry, rows] = columns
    return partner


def rank_partners(true: Hadrons, reco: Hadrons) -> np.ndarray:
    """(E, P_true) index of each true hadron's partner, -1 for none: the i-th in energy goes with the i-th."""
    rank = np.broadcast_to(np.arange(true.pdg.shape[1]), true.pdg.shape)
    return np.where(rank < np.minimum(true.count, reco.count)[:, None], rank, -1)


def pair(true: Hadrons, reco: Hadrons, partners: Callable[[Hadrons, Hadrons], np.ndarray]) -> Pairs:
    """All hadrons of a sample as rows of pairs: first every true hadron, then the false positives.

    Args:
        true: of E events.
        reco: of the same events.
        partners: `optimal_partners` or `rank_partners`.
    """
    partner = partners(true, reco)
    true_event, true_slot = np.nonzero(np.arange(true.pdg.shape[1]) < true.count[:, None])
    partner = partner[true_event, true_slot]
    taken = np.zeros(reco.pdg.shape, bool)
    taken[true_event[partner >= 0], partner[partner >= 0]] = True
    false_event, false_slot = np.nonzero((np.arange(reco.pdg.shape[1]) < reco.count[:, None]) & ~taken)

    event = np.concatenate([true_event, false_event])
    true_slot = np.concatenate([true_slot, np.full(len(false_event), -1)])
    reco_slot = np.concatenate([partner, false_slot])

    def column(hadrons: Hadrons, field: str, slot: np.ndarray, missing: float | np.ndarray) -> np.ndarray:
        values = getattr(hadrons, field)[event, slot]
        there = (slot >= 0).reshape((-1,) + (1,) * (values.ndim - 1))
        return np.where(there, values, missing)

    return Pairs(
        event,
        true.count[event],
        true_slot >= 0,
        reco_slot >= 0,
        column(true, "pdg", true_slot, 0),
        column(reco, "pdg", reco_slot, 0),
        column(true, "ke", true_slot, 0),
        column(reco, "ke", reco_slot, 0),
        column(true, "direction", true_slot, NO_PARTNER_DIRECTION),
        column(reco, "direction", reco_slot, NO_PARTNER_DIRECTION),
        column(reco, "ke_err", reco_slot, np.nan),
        column(reco, "dir_err", reco_slot, np.nan),
    )
