"""Units that misbehave on demand: a module that workers can import."""

from __future__ import annotations

import os
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import awkward as ak
import numpy as np

import sparsereco.scale
from sparsereco.errors import InputError
from sparsereco.io import HITS, RootWriter
from sparsereco.parts import Tally, Unit
from sparsereco.provenance import git_revision


@dataclass(frozen=True)
class Job:
    """What befalls which unit."""

    notes: str
    """Folder where every attempt leaves its mark."""
    dies_once: tuple[int, ...] = ()
    dies: tuple[int, ...] = ()
    fails_once: tuple[int, ...] = ()
    fails: tuple[int, ...] = ()
    bad: tuple[int, ...] = ()
    vanishes: tuple[int, ...] = ()
    hangs_once: tuple[int, ...] = ()
    hangs: tuple[int, ...] = ()
    more: dict[str, int] = field(default_factory=dict, hash=False)


def attempts(job: Job, number: int) -> int:
    """How often a unit was begun."""
    return len(list(Path(job.notes).glob(f"{number}-*")))


def write_numbers(job: Job, unit: Unit, writer: RootWriter) -> Tally:
    """One event without hits per entry, its number that of the entry."""
    n = unit.entry_stop - unit.entry_start
    attempt = attempts(job, unit.number)
    (Path(job.notes) / f"{unit.number}-{attempt}").touch()
    zero = np.zeros(n, "i4")
    fields = {"run": zero, "subrun": zero, "event": np.arange(unit.entry_start, unit.entry_stop)}
    fields |= {name: ak.unflatten(np.zeros(0, "f4"), zero) for name in HITS.counters}
    writer.extend("hits", HITS, ak.zip(fields, depth_limit=1))
    if unit.number in job.dies or (unit.number in job.dies_once and attempt == 0):
        os.kill(os.getpid(), signal.SIGKILL)
    if unit.number in job.fails or (unit.number in job.fails_once and attempt == 0):
        raise RuntimeError("no luck\ntoday")
    if unit.number in job.bad:
        raise InputError(f"{unit.file}: entry {unit.entry_start} is bad")
    if unit.number in job.hangs or (unit.number in job.hangs_once and attempt == 0):
        hang()
    if unit.number in job.vanishes:
        shutil.rmtree(writer.path.parent)
    tally = Tally(events=n)
    tally.read(unit.file, unit.tree, unit.entry_start, unit.entry_stop)
    return tally


def hang() -> None:
    """As a file system does that is gone."""
    time.sleep(600)


def pretend(version: str | None) -> None:
    """Has a worker take itself for one with another version, or for what it is again."""
    sparsereco.scale.software.cache_clear()
    sparsereco.scale.__version__ = version or sparsereco.__version__
    sparsereco.scale.git_revision = git_revision if version is None else lambda: None
