"""Events that no infill can take: found all at once, reported one by one."""

from __future__ import annotations

import awkward as ak
import numpy as np

from sparsereco.checks import LARGEST, BadEvent, BadEvents
from sparsereco.infill.gaps import Gaps
from sparsereco.schema import CHARGE_HITS


def check_charge_hits(events: ak.Array, gaps: Gaps) -> list[BadEvent]:
    """Finds events with hits outside the detector or inside a dead region, energies that are none, or unequal lists.

    Args:
        events: records with the fields of ``hits``. No hits at all are fine.
        gaps: the dead regions of the detector.

    Returns:
        One entry per bad event, in order: the first thing that is wrong with it.
    """
    found = BadEvents()
    lengths = {branch: np.asarray(ak.num(events[branch])) for branch in CHARGE_HITS.counters}
    equal = np.ones(len(events), bool)
    for branch, length in lengths.items():
        same = length == lengths["hit_e"]
        found.check(branch, length, np.arange(len(events)), same, "as many values as 'hit_e'")
        equal &= same
    sound = events[equal]
    owner = np.repeat(np.flatnonzero(equal), lengths["hit_e"][equal])
    flat = {branch: np.asarray(ak.flatten(sound[branch])) for branch in CHARGE_HITS.counters}
    energy = flat["hit_e"]  # NaN fails every comparison
    found.check("hit_e", energy, owner, (energy >= 0) & np.isfinite(energy), "a finite energy of at least 0 MeV")
    found.check("hit_e", energy, owner, energy <= LARGEST, f"an energy of at most {LARGEST:g} MeV")
    detector = gaps.detector
    for axis, name in enumerate("xyz"):
        low, high = detector.origin[axis], detector.origin[axis] + detector.shape[axis] * detector.pitch
        values = flat[f"hit_{name}"]
        found.check(
            f"hit_{name}", values, owner, (values >= low) & (values < high), f"a position in [{low:g}, {high:g}) mm"
        )
    position = np.stack([flat[f"hit_{axis}"] for axis in "xyz"], 1)
    inside = np.isfinite(position).all(1)
    gap = gaps.of(detector.index(np.where(inside[:, None], position, 0)))
    dead = inside & (gap >= 0)
    if dead.any():
        expected = f"live argon: the hit lies in gap {gap[dead.argmax()]} of this geometry"
        found.check("hit_x", flat["hit_x"], owner, ~dead, expected)
    return found.in_order()
