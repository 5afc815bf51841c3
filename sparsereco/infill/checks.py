"""Events that no infill can take: found all at once, reported one by one."""

from __future__ import annotations

import awkward as ak
import numpy as np

from sparsereco.checks import BadEvent, check_lists
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
    detector = gaps.detector
    low, sides = np.asarray(detector.origin), np.asarray(detector.shape) * detector.pitch
    hits = check_lists(events, CHARGE_HITS, "energy", low, low + sides)
    position = np.stack([hits.values[f"hit_{axis}"] for axis in "xyz"], 1)
    inside = np.isfinite(position).all(1)
    gap = gaps.of(detector.index(np.where(inside[:, None], position, 0)))
    dead = inside & (gap >= 0)
    if dead.any():
        expected = f"live argon: the hit lies in gap {gap[dead.argmax()]} of this geometry"
        hits.found.check("hit_x", hits.values["hit_x"], hits.owner, ~dead, expected)
    return hits.found.in_order()
