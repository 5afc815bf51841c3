"""ROOT files out: TTrees whose jagged branches share a counter per group, and how the file was made."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import awkward as ak
import numpy as np
import uproot

from sparsereco.errors import OutputError
from sparsereco.files import check_file
from sparsereco.schema import Schema

BASKETS = 4 << 20
"""Events are written once their columns, those of all branches of a tree, take so much memory [bytes]."""


class RootWriter:
    """Writes TTrees to ``path``, which appears only when all went well.

    Everything goes to ``<path>.part`` first; leaving the ``with`` block renames it, an exception there removes it.
    Where several outputs are to appear together, `close` all of them inside: what can fail is done then.
    Events are held until there are enough for a basket: many small ones make files slow to write and to read, and what
    is known of each takes memory to the end.

    Args:
        path: the output file.
        force: replace a file that is there already.

    Raises:
        InputError: The file is there already and ``force`` is not set, or it is no file.
        OutputError: It cannot be created, and from all methods: it cannot be written to (a full disk, a folder that is
            gone).
    """

    def __init__(self, path: str | Path, force: bool = False) -> None:
        self.path = Path(path)
        self.part = Path(f"{path}.part")
        check_file(self.path, force)
        if not self.path.parent.is_dir():  # uproot would make the folder
            raise OutputError(f"output {path}: there is no folder {self.path.parent}", file=str(path))
        self._trees: dict[str, uproot.WritableTree] = {}
        self._schemas: dict[str, Schema] = {}
        self._held: dict[str, list[ak.Array]] = defaultdict(list)
        self._bytes: Counter[str] = Counter()

    def __enter__(self) -> RootWriter:
        try:
            self._file = uproot.recreate(self.part)
        except OSError as error:
            with suppress(OSError):
                self.part.unlink(missing_ok=True)
            raise OutputError(f"output {self.path} cannot be created: {error}", file=str(self.path)) from error
        return self

    def create(self, tree: str, schema: Schema) -> None:
        """Creates a tree without entries.

        Args:
            tree: its name in the file.
            schema: names and types of its branches.
        """
        counters = schema.counters
        # As types, not as text: to parse that takes longer than all the rest.
        number = {b.name: ak.types.NumpyType(b.dtype) for b in schema.branches}
        types = {name: ak.types.ListType(one) if name in counters else one for name, one in number.items()}
        with self._writing():
            self._trees[tree] = self._file.mktree(tree, types, counter_name=counters.__getitem__)
        self._schemas[tree] = schema

    def extend(self, tree: str, schema: Schema, events: ak.Array) -> None:
        """Appends events to a tree, which is created where it is not there yet.

        Args:
            tree: its name in the file.
            schema: names and types of its branches.
            events: records with the fields of the schema; other fields are left out.

        Raises:
            ValueError: The lists of a group differ in length; here, or when they are written.
        """
        if tree not in self._trees:
            self.create(tree, schema)
        if len(events) > 0:
            held = events[[branch.name for branch in schema.branches]]
            self._held[tree].append(held)
            self._bytes[tree] += held.nbytes
        if self._bytes[tree] >= BASKETS:
            self.flush(tree)

    def flush(self, tree: str) -> None:
        """Writes the events of a tree that are held; a basket of each branch ends here.

        Raises:
            ValueError: The lists of a group differ in length.
        """
        if not self._held[tree]:
            return
        schema, events = self._schemas[tree], ak.concatenate(self._held.pop(tree))
        self._bytes[tree] = 0
        for counter, group in schema.groups.items():
            lengths = [np.asarray(ak.num(events[branch.name])) for branch in group]
            if any(not np.array_equal(one, lengths[0]) for one in lengths):
                raise ValueError(f"branches of '{counter}' in tree '{tree}' differ in length within an event")
        columns = {branch.name: ak.values_astype(events[branch.name], branch.dtype) for branch in schema.branches}
        with self._writing():
            self._trees[tree].extend(columns)

    def put(self, name: str, content: object) -> None:
        """Stores a histogram or a string.

        Args:
            name: in the file.
            content: what uproot can write, but no columns of a tree: those go through `extend`.
        """
        with self._writing():
            self._file[name] = content

    def provenance(self, record: Mapping[str, object]) -> None:
        """Stores how the file was made, as a `TObjString` ``provenance`` with JSON."""
        self.put("provenance", json.dumps(record))

    def close(self) -> None:
        """Writes the events that are held and completes the file, which has its name only after the ``with`` block.

        Raises:
            ValueError: as `flush`.
        """
        for tree in list(self._held):
            self.flush(tree)
        with self._writing():
            self._file.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.close()
                with self._writing():
                    self.part.replace(self.path)
        finally:
            with suppress(OSError):  # what went wrong is on its way already
                self._file.close()
            with suppress(OSError):
                self.part.unlink(missing_ok=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Says which output it is that cannot be written."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(f"output {self.path} cannot be written: {reason}", file=str(self.path)) from error
