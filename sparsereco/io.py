"""ROOT files in: chunks of events from TTrees and RNTuples, checked against a schema; the door to all input and output.

A file is checked before its first event is read (uproot answers an unknown branch of an RNTuple with nothing at all),
and whatever is wrong with it is an `InputError` of one line. The step size bounds the memory, however many events come.
"""

from __future__ import annotations

import difflib
import glob
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import awkward as ak
import numpy as np
import uproot

from sparsereco import remote
from sparsereco.checks import BadEvent, check_hits, drop_hits
from sparsereco.errors import BranchError, InputError, reason
from sparsereco.schema import CHARGE_HITS, HITS, RECO, TRUTH, Branch, BranchNames, ChargeBranchNames, Schema
from sparsereco.writer import RootWriter

__all__ = [
    "HITS",
    "RECO",
    "TRUTH",
    "BadEvent",
    "BranchError",
    "BranchNames",
    "Chunk",
    "InputError",
    "RootWriter",
    "Schema",
    "Source",
    "check_hits",
    "drop_hits",
    "iterate",
    "open_source",
    "read",
    "regroup",
    "survey",
]

_NUMBER = re.compile(r"u?int\d+|float\d+")
_LIST = re.compile(r"(var|\d+) \* (u?int\d+|float\d+)")


@dataclass(frozen=True)
class Source:
    """One tree of one file, opened and checked."""

    file: str
    tree: str
    uuid: str
    """UUID that ROOT gave the file."""
    entries: int
    names: dict[str, str | None]
    """The file's own name of each branch of the schema; None where it has none."""
    handle: uproot.TTree | uproot.behaviors.RNTuple.RNTuple


@dataclass(frozen=True)
class Chunk:
    """Consecutive events of one file."""

    file: str
    tree: str
    uuid: str
    entry_start: int
    """First entry of the tree in this chunk."""
    entry_stop: int
    """First entry after it."""
    events: ak.Array
    """One record per entry, fields as in the schema."""


def iterate(
    files: Iterable[str],
    schema: Schema,
    tree: str | None = None,
    names: BranchNames | ChargeBranchNames | None = None,
    step_size: str | int = "100 MB",
    entry_start: int | None = None,
    entry_stop: int | None = None,
    on_bad_file: Callable[[InputError], None] | None = None,
) -> Iterator[Chunk]:
    """Reads events chunk by chunk, in the order of the files.

    Args:
        files: ``FILE[:TREE]``, local paths, globs or URLs.
        schema: the branches to read.
        tree: the tree of files given without one; by default the schema's, or a file's only tree.
        names: what the files call the branches of ``hits``.
        step_size: size of a chunk, as memory ("100 MB") or as a number of events.
        entry_start: first entry, counted over all files together.
        entry_stop: first entry not read any more, counted likewise.
        on_bad_file: called with the error of a file that cannot be read (further); reading goes on with the next file.

    Yields:
        Chunks of at least one event, and one empty chunk for a file without entries.

    Raises:
        InputError: A file cannot be used and ``on_bad_file`` is not given, or the entry range is none.
    """
    first, last = _entry_range(entry_start, entry_stop)
    before = 0  # entries in the files before this one
    for path, own_tree in expand(files):
        if before >= last:
            return
        try:
            with open_source(path, schema, own_tree or tree, names) as source:
                start, stop = (int(min(max(edge - before, 0), source.entries)) for edge in (first, last))
                before += source.entries
                if start < stop or source.entries == 0:
                    yield from _chunks(source, schema, step_size, start, stop)
        except InputError as error:
            if on_bad_file is None:
                raise
            on_bad_file(error)


def regroup(chunks: Iterable[Chunk], size: int) -> Iterator[Chunk]:
    """The same events in chunks of the same size, whatever the step size was that they were read with.

    Networks round a little differently when other events share a batch: what is put together the same way comes out the
    same to the last bit.

    Args:
        chunks: consecutive ones, file by file.
        size: events per chunk; the last one of a file may have fewer.
    """
    held: Chunk | None = None
    for chunk in chunks:
        if held is not None and (chunk.file, chunk.tree, chunk.entry_start) == (held.file, held.tree, held.entry_stop):
            chunk = replace(chunk, entry_start=held.entry_start, events=ak.concatenate([held.events, chunk.events]))
        elif held is not None:
            yield held
        whole = len(chunk.events) // size * size
        for start in range(0, whole, size):
            yield _part(chunk, start, start + size)
        held = None if whole == len(chunk.events) > 0 else _part(chunk, whole, len(chunk.events))
        if held is not None:  # a slice holds the whole, and what is put together from slices holds all of it for ever
            held = replace(held, events=ak.to_packed(held.events))
    if held is not None:
        yield held


def _part(chunk: Chunk, start: int, stop: int) -> Chunk:
    first = chunk.entry_start
    return replace(chunk, entry_start=first + start, entry_stop=first + stop, events=chunk.events[start:stop])


def read(file: str | Path, schema: Schema, tree: str | None = None) -> ak.Array:
    """All events of a small file (see `iterate` for the arguments)."""
    return ak.concatenate([chunk.events for chunk in iterate([str(file)], schema, tree)])


def survey(
    files: Iterable[str],
    schema: Schema,
    names: BranchNames | ChargeBranchNames | None = None,
    on_bad_file: Callable[[InputError], None] | None = None,
) -> list[Source]:
    """Opens and checks every file without reading events (arguments as in `iterate`); the handles come back closed."""
    sources = []
    for path, tree in expand(files):
        try:
            with open_source(path, schema, tree, names) as source:
                sources.append(source)
        except InputError as error:
            if on_bad_file is None:
                raise
            on_bad_file(error)
    return sources


@contextmanager
def open_source(
    path: str, schema: Schema, tree: str | None = None, names: BranchNames | ChargeBranchNames | None = None
) -> Iterator[Source]:
    """Opens one file and checks its tree and branches.

    Raises:
        InputError: The file cannot be read as a ROOT file, or has no such tree.
        BranchError: A branch is missing or holds something else than the schema says.
    """
    if not remote.is_remote(path):
        _check_local(path)
    with ExitStack() as stack:
        stack.enter_context(remote.connection(path))
        try:
            # A dict keeps uproot from splitting the path at a colon; without the cache no array outlives its chunk.
            file = stack.enter_context(uproot.open({path: None}, array_cache=None, object_cache=None))
            size = file.file.source.num_bytes
            if size is not None and size < file.file.fEND:
                raise InputError(f"{path} is truncated: {size} bytes of {file.file.fEND}", file=path)
            name = _find_tree(path, file, schema, tree)
            handle = file[name]
            wanted = {branch.name: getattr(names, branch.name, branch.name) for branch in schema.branches}
            source = Source(path, name, str(file.file.uuid), handle.num_entries, wanted, handle)
            _check_branches(source, schema)
        except InputError:
            raise
        except Exception as error:  # uproot's exceptions on damaged files are many and of no common class
            kind = "" if remote.is_remote(path) else " as a ROOT file"
            raise InputError(f"{path} cannot be read{kind}: {reason(error)}", file=path) from error
        yield source


def expand(files: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """Splits ``FILE:TREE`` and expands globs that the shell has not."""
    for given in files:
        path, colon, tree = given.rpartition(":")
        # The colons of a URL's scheme and port, and of a file name, are no separators.
        if not colon or Path(given).exists() or re.match(r"\d*/", tree):
            path, tree = given, ""
        if remote.is_remote(path):
            yield from ((one, tree or None) for one in remote.expand(path))
            continue
        if Path(path).exists() or not glob.has_magic(path):
            yield path, tree or None
            continue
        matches = sorted(glob.glob(path, recursive=True))
        if not matches:
            raise InputError(f"no file matches '{path}'", file=path)
        for match in matches:
            yield match, tree or None


def _entry_range(entry_start: int | None, entry_stop: int | None) -> tuple[float, float]:
    first, last = entry_start or 0, math.inf if entry_stop is None else entry_stop
    if not 0 <= first <= last:
        raise InputError(f"entries {entry_start} to {entry_stop} are no range: expected 0 <= start <= stop")
    return first, last


def _check_local(path: str) -> None:
    """Says what is wrong with a path before uproot has to guess."""
    with remote.opened(path) as file:
        magic = file.read(4)
    if not magic:
        raise InputError(f"{path} is empty (0 bytes), expected a ROOT file", file=path)
    if magic != b"root":
        raise InputError(f"{path} is no ROOT file: it does not begin with 'root'", file=path)


def _find_tree(path: str, file: uproot.ReadOnlyDirectory, schema: Schema, tree: str | None) -> str:
    """Name of the tree to read: the one asked for, else the schema's, else the only one."""
    classes = file.classnames(recursive=True, cycle=False)
    trees = [name for name, kind in classes.items() if kind in ("TTree", "TNtuple", "TNtupleD", "ROOT::RNTuple")]
    name = tree or schema.tree
    if name in trees:
        return name
    if tree is None and len(trees) == 1:
        return trees[0]
    there = f"it has: {', '.join(trees)}; choose one with FILE:TREE" if trees else "it has no tree at all"
    raise InputError(f"no tree '{name}' in {path}; {there}", file=path, tree=name)


def _check_branches(source: Source, schema: Schema) -> None:
    """Every wanted branch is there and holds numbers of the right shape."""
    there = set(source.handle.keys(full_paths=False))
    for branch in schema.branches:
        name = source.names[branch.name]
        if name is None:
            continue
        option = f"; set it with --branches.{branch.name} NAME" if schema in (HITS, CHARGE_HITS) else ""
        if name not in there:
            near = difflib.get_close_matches(name, there, n=3, cutoff=0.5)
            known = "nearest" if near else "it has" if len(there) <= 20 else "the first of many"
            names = ", ".join(f"'{one}'" for one in near or sorted(there)[:20])
            raise BranchError(
                f"branch '{name}' not in tree '{source.tree}' of {source.file}; {known}: {names}{option}",
                file=source.file,
                tree=source.tree,
                branch=name,
            )
        jagged = branch.name in schema.counters
        try:
            kind = str(source.handle.arrays([name], entry_start=0, entry_stop=0)[name].type.content)
        except Exception as error:  # as many classes as there are types that uproot cannot read
            if remote.is_remote(source.file) and isinstance(error, OSError):  # it is not the branch
                raise
            kind = f"unreadable ({reason(error)})"
        if not (_LIST if jagged else _NUMBER).fullmatch(kind):
            expected = "a list of numbers" if jagged else "one number"
            raise BranchError(
                f"branch '{name}' in tree '{source.tree}' of {source.file} is {kind}, "
                f"expected {expected} per event{option}",
                file=source.file,
                tree=source.tree,
                branch=name,
            )


def _chunks(source: Source, schema: Schema, step_size: str | int, start: int, stop: int) -> Iterator[Chunk]:
    """Entries ``start`` to ``stop`` of an opened file."""
    wanted = sorted({name for name in source.names.values() if name is not None})
    step = step_size if isinstance(step_size, int) else _entries_for(source, wanted, step_size)
    if start < stop:
        steps = source.handle.iterate(wanted, step_size=step, entry_start=start, entry_stop=stop)
    else:
        steps = iter([source.handle.arrays(wanted, entry_stop=0)])
    while True:
        try:
            arrays = next(steps, None)
        except Exception as error:  # as in `open_source`
            raise InputError(
                f"{source.file}: entries {start} to {min(start + step, stop)} of tree '{source.tree}' cannot be read: "
                f"{reason(error)}",
                file=source.file,
                tree=source.tree,
                entry=start,
            ) from error
        if arrays is None:
            return
        events = ak.zip(
            {branch.name: _column(source, branch, arrays, start) for branch in schema.branches}, depth_limit=1
        )
        yield Chunk(source.file, source.tree, source.uuid, start, start + len(events), events)
        start += len(events)


def _entries_for(source: Source, wanted: list[str], memory: str) -> int:
    """How many entries fill a memory. Of a TTree by its own account: uproot would read something of every basket."""
    tree = source.handle
    if not isinstance(tree, uproot.TTree):
        return max(tree.num_entries_for(memory, wanted), 1)
    size = re.fullmatch(r"(\d+(?:\.\d+)?) *([kMGT])(i?)B", memory)
    if size is None:
        raise InputError(f'step size: expected a number of events or memory like "100 MB", got {memory!r}')
    target = float(size[1]) * (1024 if size[3] else 1000) ** (1 + "kMGT".index(size[2]))
    total = sum(tree[name].uncompressed_bytes for name in wanted)
    return max(round(target * source.entries / total), 1) if total > 0 else 1


def _column(source: Source, branch: Branch, arrays: ak.Array, start: int) -> ak.Array:
    """One branch in the type of the schema."""
    name = source.names[branch.name]
    if name is None:
        numbers = np.arange(start, start + len(arrays)) if branch.name == "event" else np.zeros(len(arrays))
        return ak.Array(numbers.astype(branch.dtype))
    given = ak.from_regular(arrays[name], axis=None)
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit is found below, or by `check_hits`
        column = ak.values_astype(given, branch.dtype)
    if branch.dtype.startswith("int"):
        changed = np.asarray(ak.any(column != given, axis=-1) if given.ndim > 1 else column != given)
        if changed.any():
            entry = int(changed.argmax())
            raise InputError(
                f"{source.file}: entry {start + entry} of tree '{source.tree}': branch '{name}' has "
                f"{given[entry].tolist() if given.ndim > 1 else given[entry]}, expected {branch.dtype}",
                file=source.file,
                tree=source.tree,
                branch=name,
                entry=start + entry,
            )
    return column
