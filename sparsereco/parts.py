"""A long run in parts: what a unit of work is, the part files that units leave, and how they become one output.

Beside the output ``OUT`` stands a folder ``OUT.parts`` with a manifest, which says what the run is about, and one file
per finished unit. A part file appears when its unit is done, and tells what became of it. So whatever happens to a run,
those parts that are there count, and a later run goes on from them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import socket
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import awkward as ak
import uproot

from sparsereco.errors import InputError, OutputError
from sparsereco.schema import Schema
from sparsereco.writer import RootWriter

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Input:
    """One file to reconstruct, opened and checked before."""

    file: str
    tree: str | None
    entries: int
    uuid: str = ""
    """UUID that ROOT gave the file, where it is one."""

    def identity(self) -> dict[str, Any]:
        """What tells this file from another one of the same name."""
        local = not self.uuid and Path(self.file).exists()
        changed = Path(self.file).stat().st_mtime_ns if local else None
        return {**dataclasses.asdict(self), "changed": changed}


@dataclass(frozen=True)
class Unit:
    """Consecutive entries of one file: what a worker does at a time."""

    number: int
    file: str
    tree: str | None
    entry_start: int
    entry_stop: int
    """First entry after it; 0 only for a file that has none."""

    @property
    def name(self) -> str:
        """How errors call it."""
        return f"{self.file}, entries {self.entry_start} to {max(self.entry_stop - 1, 0)} (unit {self.number})"


@dataclass
class Tally:
    """What became of entries."""

    events: int = 0
    found: dict[str, float] = field(default_factory=lambda: defaultdict(int))
    """Sums of what, as the system counts."""
    inputs: dict[tuple[str, str | None], dict[str, Any]] = field(default_factory=dict)
    """Entries that were read, by file and tree, for the provenance."""
    skipped: list[InputError] = field(default_factory=list)
    """What did not stop the run."""

    def read(self, file: str, tree: str | None, entry_start: int, entry_stop: int, **more: Any) -> None:
        """Notes which entries of which file were read."""
        named = {} if tree is None else {"tree": tree}
        first = {"file": file, **named, **more, "entry_start": entry_start}
        self.inputs.setdefault((file, tree), first)["entry_stop"] = entry_stop

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "events": self.events,
            "found": dict(self.found),
            "inputs": list(self.inputs.values()),
            "skipped": [str(error) for error in self.skipped],
        }

    def add(self, record: Mapping[str, Any]) -> None:
        """Adds a `record` of entries that come after those already here."""
        self.events += record["events"]
        for what, number in record["found"].items():
            self.found[what] += number
        for one in record["inputs"]:
            known = self.inputs.setdefault((one["file"], one.get("tree")), dict(one))
            known["entry_stop"] = one["entry_stop"]
        self.skipped += [InputError(text) for text in record["skipped"]]


def divide(inputs: Iterable[Input], start: int, stop: int | None, size: int) -> list[Unit]:
    """Cuts an entry range into units.

    Args:
        inputs: the files in order.
        start: first entry, counted over all files together.
        stop: first entry not to read, counted likewise.
        size: entries per unit; the last one of a file may have fewer.

    Raises:
        InputError: the range is none.
    """
    if not 0 <= start <= (start if stop is None else stop):
        raise InputError(f"entries {start} to {stop} are no range: expected 0 <= start <= stop")
    units: list[Unit] = []
    before = 0
    for one in inputs:
        low = min(max(start - before, 0), one.entries)
        high = one.entries if stop is None else min(max(stop - before, 0), one.entries)
        edges = range(low, high, size) if one.entries else [0]
        units += [Unit(len(units) + i, one.file, one.tree, e, min(e + size, high)) for i, e in enumerate(edges)]
        before += one.entries
    return units


class Parts:
    """The folder of part files of one run.

    Args:
        output: what they will become.
        about: all that the result depends on, as JSON values; written as manifest.
    """

    def __init__(self, output: str | Path, about: Mapping[str, Any]) -> None:
        self.folder = Path(f"{output}.parts")
        self.about = json.loads(json.dumps(about))
        self.digest = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()

    def open(self, resume: bool, force: bool) -> None:
        """Makes the folder, or goes on with the one that is there.

        Args:
            resume: keep parts of the same run that are there.
            force: remove those of any other.

        Raises:
            InputError: parts are there and neither is wanted, or they are of another run; it says what is different.
            OutputError: the folder cannot be made.
        """
        there = self.folder.exists()
        if there and resume:
            self._check_manifest()
            return
        if there and not force:
            raise InputError(
                f"{self.folder} holds parts of an earlier run: --resume goes on with them, -f starts again",
                file=str(self.folder),
            )
        try:
            if there:
                self.remove()
            self.folder.mkdir()
            part = self.folder / f"{MANIFEST}.part"
            part.write_text(json.dumps(self.about, indent=1))
            part.replace(self.folder / MANIFEST)
        except OSError as error:
            raise OutputError(f"{self.folder} cannot be made: {error.strerror}", file=str(self.folder)) from error

    def path(self, unit: Unit) -> Path:
        """The part file of a unit."""
        return part_path(self.folder, unit)

    def record(self, unit: Unit) -> dict[str, Any] | None:
        """What became of a unit; None where it has no part file that can be used."""
        path = self.path(unit)
        if not path.exists():
            return None
        try:
            with _opened(path) as file:
                return self._record(file, path)
        except Exception:  # whatever is wrong with a part, its unit is done again
            return None

    def merge(self, unit: Unit, schemas: Iterable[Schema], writer: RootWriter, tally: Tally) -> None:
        """Puts the part of a unit behind what is in the output, and adds what became of it to ``tally``.

        Raises:
            InputError: the part is gone or damaged.
        """
        for schema, events in self._read(unit, schemas, tally):
            writer.extend(schema.tree, schema, events)

    def _read(self, unit: Unit, schemas: Iterable[Schema], tally: Tally) -> Iterator[tuple[Schema, ak.Array]]:
        """The events of a part, basket by basket."""
        path = self.path(unit)
        try:
            with _opened(path) as file:
                record = self._record(file, path)
                if record is None:
                    raise ValueError("of another run, or cut off")
                for schema in schemas:
                    tree = file[schema.tree]
                    names = [branch.name for branch in schema.branches]
                    first = tree[names[0]]
                    for basket in range(first.num_baskets):
                        start, stop = first.basket_entry_start_stop(basket)
                        yield schema, tree.arrays(names, entry_start=start, entry_stop=stop)
        except Exception as error:  # as in `record`
            raise InputError(f"part {path} is gone or damaged; --resume makes it again") from error
        tally.add(record)

    def _record(self, file: uproot.ReadOnlyDirectory, path: Path) -> dict[str, Any] | None:
        """What a part file tells, if it is whole and of this run."""
        whole = path.stat().st_size >= file.file.fEND
        record = json.loads(str(file["provenance"]))
        return record if whole and record.get("run") == self.digest else None

    def remove(self) -> None:
        """Removes the folder.

        Raises:
            InputError: it is none of ours.
        """
        if not (self.folder / MANIFEST).is_file() and any(self.folder.iterdir()):
            raise InputError(f"{self.folder} is no folder of parts: move it away", file=str(self.folder))
        shutil.rmtree(self.folder)

    def _check_manifest(self) -> None:
        try:
            there = json.loads((self.folder / MANIFEST).read_text())
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.folder} has no manifest that can be read: -f starts again", file=str(self.folder)
            ) from error
        if there == self.about:
            return
        where, was, now = next(_differences(there, self.about))
        raise InputError(
            f"{self.folder} holds parts of another run: {where} was {was}, is {now}; go on with what it was, or start "
            "again with -f and without --resume",
            file=str(self.folder),
        )


def _opened(path: Path) -> uproot.ReadOnlyDirectory:
    """A part file; without caches nothing of it outlives it."""
    return uproot.open({path: None}, object_cache=None, array_cache=None)


def part_path(folder: Path, unit: Unit) -> Path:
    """The part file of a unit."""
    return folder / f"{unit.number:07d}.root"


def write_part(folder: Path, unit: Unit, run: str, fill: Callable[[RootWriter], Tally]) -> int:
    """Writes the part file of a unit, under a name of its own until it is whole: the same unit may run twice.

    Args:
        folder: of the parts.
        unit: what is done.
        run: digest of the manifest.
        fill: does it.

    Returns:
        The number of events.

    Raises:
        OutputError: the file cannot be written.
    """
    own = folder / f"{unit.number:07d}-{socket.gethostname()}-{os.getpid()}.root"
    try:
        with RootWriter(own, force=True) as writer:
            tally = fill(writer)
            writer.provenance({"run": run, "unit": dataclasses.asdict(unit), **tally.record()})
        own.replace(part_path(folder, unit))
    except InputError as error:
        if isinstance(error, OutputError) or folder.is_dir():
            raise
        raise OutputError(f"{folder} is gone", file=str(folder)) from error
    except OSError as error:
        raise OutputError(f"{folder} cannot be written to: {error.strerror}", file=str(folder)) from error
    finally:
        with contextlib.suppress(OSError):
            own.unlink()
    return tally.events


def _differences(was: Any, now: Any, where: str = "") -> Iterator[tuple[str, str, str]]:
    """Where two JSON values differ, and what stands there, as text."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in [*was, *(key for key in now if key not in was)]:
            yield from _differences(was.get(key), now.get(key), f"{where}.{key}" if where else key)
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for i, pair in enumerate(zip(was, now, strict=True)):
            yield from _differences(*pair, f"{where}[{i}]")
    elif was != now:
        yield where, json.dumps(was)[:80], json.dumps(now)[:80]
