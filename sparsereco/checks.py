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


@dataclass(frozen=True)
class Lists:
    """Hits of events, flat, and what is wrong with them so far."""

    found: BadEvents
    owner: np.ndarray  # (N,) place of the event of each hit; events with lists of unequal length have none here
    values: dict[str, np.ndarray]  # (N,) by branch


def check_lists(events: ak.Array, schema: Schema, what: str, low: np.ndarray, high: np.ndarray) -> Lists:
    """Finds what may be wrong with the hits of any detector: unequal lists, no signal, a place outside a box.

    Args:
        events: records with the fields of ``schema``.
        schema: of hits; the last of its lists is the signal.
        what: the signal is.
        low, high: (3,) corners of the box [mm].
    """
    found, (*places, signal) = BadEvents(), schema.counters
    lengths = {branch: np.asarray(ak.num(events[branch])) for branch in schema.counters}
    equal = np.ones(len(events), bool)
    for branch, length in lengths.items():
        same = length == lengths[signal]
        found.check(branch, length, np.arange(len(events)), same, f"as many values as '{signal}'")
        equal &= same
    owner = np.repeat(np.flatnonzero(equal), lengths[signal][equal])
    values = {branch: np.asarray(ak.flatten(events[equal][branch])) for branch in schema.counters}
    # NaN fails every comparison.
    inside = (values[signal] >= 0) & (values[signal] <= LARGEST)
    unit = schema.units[signal]
    found.check(signal, values[signal], owner, inside, f"a finite {what} of at least 0 {unit} and at most {LARGEST:g}")
    for axis, branch in enumerate(places):
        inside = (values[branch] >= low[axis]) & (values[branch] < high[axis])
        found.check(branch, values[branch], owner, inside, f"a position in [{low[axis]:g}, {high[axis]:g}) mm")
    return Lists(found, owner, values)


def check_hits(events: ak.Array, detector: Detector) -> list[BadEvent]:
    """Finds events that cannot be reconstructed: hits outside the detector, signals that are none, unequal lists.

    Args:
        events: records with the fields of ``hits``. No hits at all are fine.
        detector: the box that the hits must lie in.

    Returns:
        One entry per bad event, in order: the first thing that is wrong with it.
    """
    low = np.asarray(detector.origin)
    return check_lists(events, HITS, "signal", low, low + detector.size).found.in_order()


def drop_hits(events: ak.Array, offsets: list[int], schema: Schema = HITS) -> ak.Array:
    """The same events, without any hits in those at ``offsets``; the schema names the lists of hits."""
    keep = np.ones(len(events), bool)
    keep[offsets] = False
    for name in schema.counters:
        events = ak.with_field(events, events[name][ak.broadcast_arrays(keep, events[name])[0]], name)
    return events
