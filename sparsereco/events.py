"""The files of one sample side by side: what was reconstructed, what was true, and the hits of both."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence

import awkward as ak
import numpy as np
import uproot

from sparsereco import remote
from sparsereco.detector import Detector, Response
from sparsereco.errors import InputError
from sparsereco.io import HITS, Source, iterate, open_source, read
from sparsereco.schema import Schema

EVENT_ID = ("run", "subrun", "event")


def check_same_events(first: ak.Array, second: ak.Array, first_name: str, second_name: str) -> None:
    """Two lists of events have the same run, subrun and event numbers in the same order.

    Args:
        first: events.
        second: events.
        first_name: where they come from, for the error.
        second_name: likewise.

    Raises:
        InputError: they differ; says where first.
    """
    if len(first) != len(second):
        raise InputError(
            f"{first_name} has {len(first):,} events, {second_name} has {len(second):,}: expected the same events"
        )
    ids = [np.stack([ak.to_numpy(events[name]) for name in EVENT_ID], axis=1) for events in (first, second)]
    differ = (ids[0] != ids[1]).any(1)
    if differ.any():
        entry = int(differ.argmax())
        one, other = (" ".join(f"{name} {n}" for name, n in zip(EVENT_ID, i[entry], strict=True)) for i in ids)
        raise InputError(
            f"{first_name} and {second_name} hold different events, first at entry {entry}: {one} against {other} "
            f"({int(differ.sum()):,} of {len(differ):,} entries differ)",
            entry=entry,
        )


def check_finite(events: ak.Array, schema: Schema, file: str, but: Collection[str] = ()) -> None:
    """No number of the events is NaN or infinite.

    Args:
        events: of the schema.
        schema: names the branches.
        file: where they come from, for the error.
        but: branches that may hold anything.

    Raises:
        InputError: names the first entry and branch that is.
    """
    for branch in schema.branches:
        if branch.name in but:
            continue
        values = events[branch.name]
        bad = ~np.isfinite(values)
        bad = ak.to_numpy(ak.any(bad, axis=1) if bad.ndim > 1 else bad)
        if bad.any():
            entry = int(bad.argmax())
            raise InputError(
                f"{file}: entry {entry} of tree '{schema.tree}': branch '{branch.name}' has {values[entry]}, "
                "expected finite numbers",
                file=file,
                tree=schema.tree,
                branch=branch.name,
                entry=entry,
            )


def has_tree(file: str, schema: Schema) -> bool:
    """Whether a readable file has the schema's tree.

    Raises:
        BranchError: the tree is there and lacks a branch.
    """
    try:
        with open_source(file, schema, schema.tree):
            return True
    except InputError as error:
        if error.tree is None or error.branch is not None:
            raise
        return False


def hits_of(sources: list[Source], events: ak.Array) -> Iterator[ak.Array]:
    """The hits in the files of other trees, chunk by chunk.

    Args:
        sources: the files.
        events: what the hits belong to.

    Raises:
        InputError: the hits are of other events.
    """
    start = 0
    names = ", ".join(source.file for source in sources)
    for chunk in iterate([f"{source.file}:{HITS.tree}" for source in sources], HITS):
        expected = events[start : start + len(chunk.events)]
        check_same_events(chunk.events, expected, f"tree 'hits' of {names} from entry {start}", "the truth")
        start += len(chunk.events)
        yield chunk.events
    if start < len(events):
        raise InputError(f"tree 'hits' of {names} has {start:,} events, expected {len(events):,} as in the truth")


def find_events(files: Sequence[str], schemas: Sequence[Schema], key: str | None, n: int) -> list[dict[str, ak.Record]]:
    """Events with all that some files know of them, without reading the others.

    Args:
        files: paths.
        schemas: of the trees to look for; a tree is taken from the first file that has it.
        key: the number of the first event, or ``RUN:SUBRUN:EVENT`` where the number alone is not unique; None for the
            first one of the first tree that is there.
        n: at most so many events, consecutive in that tree.

    Returns:
        For each event its record in each tree, by the name of the tree.

    Raises:
        InputError: a file has none of the trees, the key is no event or more than one, or a tree lacks an event.
    """
    where: dict[str, str] = {}
    for file in files:
        own = [schema.tree for schema in schemas if has_tree(file, schema)]
        if not own:
            trees = ", ".join(schema.tree for schema in schemas)
            raise InputError(f"none of the trees {trees} in {file}", file=file)
        where = dict.fromkeys(own, file) | where
    there = [schema for schema in schemas if schema.tree in where]
    events: list[dict[str, ak.Record]] = []
    for schema in there:
        file = where[schema.tree]
        ids = _read_ids(file, schema)
        if events:
            entries = [
                _entry(ids, [int(event[name]) for name in EVENT_ID], file, schema) for event in map(_any, events)
            ]
        else:
            first = 0 if key is None else _entry(ids, _parse(key), file, schema)
            entries = list(range(first, min(first + n, len(ids))))
            if not entries:
                raise InputError(f"tree '{schema.tree}' of {file} is empty", file=file, tree=schema.tree)
            events = [{} for _ in entries]
        for event, entry in zip(events, entries, strict=True):
            chunk = next(iterate([f"{file}:{schema.tree}"], schema, entry_start=entry, entry_stop=entry + 1))
            event[schema.tree] = chunk.events[0]
    return events


def _any(event: dict[str, ak.Record]) -> ak.Record:
    return next(iter(event.values()))


def _read_ids(file: str, schema: Schema) -> np.ndarray:
    """(N, 3) run, subrun and event numbers of a tree."""
    ids = read(file, Schema(schema.tree, HITS.scalars, {}), schema.tree)
    return np.stack([ak.to_numpy(ids[name]) for name in EVENT_ID], axis=1)


def _parse(key: str) -> list[int]:
    """The numbers of ``EVENT`` or ``RUN:SUBRUN:EVENT``."""
    parts = key.split(":")
    if len(parts) not in (1, 3) or not all(part.lstrip("-").isdecimal() for part in parts):
        raise InputError(f"expected an event as NUMBER or RUN:SUBRUN:NUMBER, got '{key}'", value=key)
    return [int(part) for part in parts]


def _entry(ids: np.ndarray, wanted: list[int], file: str, schema: Schema) -> int:
    """The one entry with the event number, or with all three numbers, that are wanted."""
    entries = np.flatnonzero((ids[:, -len(wanted) :] == wanted).all(1))
    key = ":".join(map(str, wanted))
    if len(entries) == 0:
        known = f"its numbers go from {ids[:, 2].min()} to {ids[:, 2].max()}" if len(ids) else "it is empty"
        raise InputError(f"no event {key} in tree '{schema.tree}' of {file}; {known}", file=file, value=key)
    if len(entries) > 1:
        known = ", ".join(":".join(map(str, row)) for row in ids[entries[:3]].tolist())
        raise InputError(
            f"event {key} occurs {len(entries)} times in tree '{schema.tree}' of {file}, first as {known}; "
            "give RUN:SUBRUN:NUMBER",
            file=file,
            value=key,
        )
    return int(entries[0])


def read_provenance(file: str) -> dict:
    """How a file was made; empty where it does not say.

    Raises:
        InputError: the file has a `provenance` that is no JSON object.
    """
    with remote.connection(file), uproot.open({file: None}) as root:
        if "provenance" not in root:
            return {}
        try:
            record = json.loads(str(root["provenance"]))
        except ValueError as error:
            raise InputError(f"{file}: 'provenance' is no JSON: {error}", file=file) from error
    if not isinstance(record, dict):
        raise InputError(f"{file}: 'provenance' is {type(record).__name__}, expected a JSON object", file=file)
    return record


def detector_of(provenance: dict) -> Detector:
    """The detector in the config of a provenance; the default detector where there is none.

    Raises:
        InputError: the config describes no detector.
    """
    settings = provenance.get("config", {}).get("detector")
    if settings is None:
        return Detector()
    try:
        response = Response(**settings["response"])
        return Detector(tuple(settings["shape"]), settings["pitch"], tuple(settings["origin"]), response)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the provenance describes no detector: {error}; it has {settings}", value=settings) from error
