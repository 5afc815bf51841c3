"""Events that no reconstruction can take: found all at once, reported one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import awkward as ak
import numpy as np

from sparsereco.detector import Detector
from sparsereco.errors import InputError
from sparsereco.schema import HITS, BranchNames, ChargeBranchNames, Schema

if TYPE_CHECKING:
    from sparsereco.io import Chunk


LARGEST = 1e12
"""A larger signal or energy is none: sums and squares of such have to stay within single precision."""


@dataclass(frozen=True)
class BadEvent:
    """An event that cannot be reconstructed, and the first reason for it."""

    offset: int
    """Its place in the array that was checked."""
    branch: str
    value: float
    expected: str

    def error(self, chunk: Chunk, names: BranchNames | ChargeBranchNames | None = None) -> InputError:
        """This event of ``chunk`` as an error that names file, entry, branch and value."""
        branch = getattr(names, self.branch, self.branch)
        entry = chunk.entry_start + self.offset
        return InputError(
            f"{chunk.file}: entry {entry} of tree '{chunk.tree}': branch '{branch}' has {self.value:g}, "
            f"expected {self.expected}",
            file=chunk.file,
            tree=chunk.tree,
            branch=branch,
            entry=entry,
            value=self.value,
        )


class BadEvents:
    """Collects what is wrong with events: of each the first thing."""

    def __init__(self) -> None:
        self._found: dict[int, BadEvent] = {}

    def check(self, branch: str, values: np.ndarray, owner: np.ndarray, valid: np.ndarray, expected: str) -> None:
        """Notes the events that own an invalid value.

        Args:
            branch: of the values.
            values: (N,).
            owner: (N,) place of the event of each.
            valid: (N,) bool.
            expected: what a valid value is.
        """
        wrong = np.flatnonzero(~valid)
        for offset, first in zip(*np.unique(owner[wrong], return_index=True), strict=True):
            self._found.setdefault(int(offset), BadEvent(int(offset), branch, float(values[wrong[first]]), expected))

    def in_order(self) -> list[BadEvent]:
        """What was found, by place."""
        return [self._found[offset] for offset in sorted(self._found)]


def check_hits(events: ak.Array, detector: Detector) -> list[BadEvent]:
    """Finds events that cannot be reconstructed: hits outside the detector, signals that are none, unequal lists.

    Args:
        events: records with the fields of ``hits``. No hits at all are fine.
        detector: the box that the hits must lie in.

    Returns:
        One entry per bad event, in order: the first thing that is wrong with it.
    """
    found = BadEvents()
    lengths = {branch: np.asarray(ak.num(events[branch])) for branch in HITS.counters}
    for branch, length in lengths.items():
        equal = length == lengths["hit_pe"]
        found.check(branch, length, np.arange(len(events)), equal, "as many values as 'hit_pe'")
    for branch, length in lengths.items():
        values = np.asarray(ak.flatten(events[branch]))
        owner = np.repeat(np.arange(len(events)), length)
        if branch == "hit_pe":  # NaN fails every comparison, here and below
            found.check(
                branch, values, owner, (values >= 0) & np.isfinite(values), "a finite signal of at least 0 p.e."
            )
            found.check(branch, values, owner, values <= LARGEST, f"a signal of at most {LARGEST:g} p.e.")
        else:
            axis = "xyz".index(branch[-1])
            low, high = detector.origin[axis], detector.origin[axis] + detector.size[axis]
            expected = f"a position in [{low:g}, {high:g}) mm"
            found.check(branch, values, owner, (values >= low) & (values < high), expected)
    return found.in_order()


def drop_hits(events: ak.Array, offsets: list[int], schema: Schema = HITS) -> ak.Array:
    """The same events, without any hits in those at ``offsets``; the schema names the lists of hits."""
    keep = np.ones(len(events), bool)
    keep[offsets] = False
    for name in schema.counters:
        events = ak.with_field(events, events[name][ak.broadcast_arrays(keep, events[name])[0]], name)
    return events
