"""`tools/convert.py csv`: a table of hits to the tree `hits`."""

from __future__ import annotations

import csv
import difflib
from pathlib import Path
from typing import TYPE_CHECKING

import jsonargparse

from sparsereco import cli
from sparsereco.commands import common
from sparsereco.errors import InputError
from sparsereco.schema import CHARGE_HITS, HITS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TEXT = """\
A table of hits as text, one line per hit and a first line with the names of the columns, to a ROOT file with a tree
`hits` that tools/reco.py reads.

Lines of one event need not stand together; events come in the order in which they first appear. Positions are in mm
(--unit cm or m for others), centres of voxels.

examples:
  tools/convert.py csv hits.csv -o hits.root
  tools/convert.py csv charge.csv -o hits.root --signal hit_e --columns.event id --columns.signal dE --unit cm

exit codes: 0 done, 1 failed while running, 2 wrong usage, file or column, 130 interrupted
"""

UNITS = {"mm": 1.0, "cm": 10.0, "m": 1000.0}
LARGEST_EVENT = 2.0**53
"""Floats hold whole numbers up to here."""


def parser() -> jsonargparse.ArgumentParser:
    """Options of `convert.py csv`."""
    one = cli.new_parser(TEXT)
    add = one.add_argument
    add("file", metavar="FILE.csv", help="table of hits")
    add("-o", "--output", required=True, metavar="OUT.root", help="output; appears when all is done")
    add("-f", "--force", action="store_true", help="replace an output that is there already")
    add("--signal", default="hit_pe", choices=["hit_pe", "hit_e"], help="light [p.e.], or energy in liquid argon [MeV]")
    add("--unit", default="mm", choices=list(UNITS), help="of the positions")
    for name in ("event", "x", "y", "z", "signal"):
        add(f"--columns.{name}", default=name, metavar="NAME", help=f"column with the {name}")
    cli.add_verbosity(one)
    return one


def run(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Reads all, writes all."""
    log = cli.set_up_logging(args.quiet, args.verbose)

    import awkward as ak
    import numpy as np

    from sparsereco.io import RootWriter
    from sparsereco.provenance import environment

    names = {name: args.columns[name] for name in ("event", "x", "y", "z", "signal")}
    columns = read_columns(args.file, list(names.values()))
    number, first, event = np.unique(columns[names["event"]], return_index=True, return_inverse=True)
    order = np.argsort(first[event], kind="stable")
    counts = np.bincount(event, minlength=len(number))[np.argsort(first)]
    hits = {f"hit_{axis}": columns[names[axis]] * UNITS[args.unit] for axis in "xyz"}
    hits[args.signal] = columns[names["signal"]]
    fields = {name: ak.unflatten(values[order], counts) for name, values in hits.items()}
    scalars = {"run": np.zeros(len(number)), "subrun": np.zeros(len(number)), "event": number[np.argsort(first)]}
    schema = HITS if args.signal == "hit_pe" else CHARGE_HITS
    events = ak.zip(
        {b.name: ak.values_astype((scalars | fields)[b.name], b.dtype) for b in schema.branches}, depth_limit=1
    )
    with RootWriter(args.output, force=args.force) as writer:
        writer.extend("hits", schema, events)
        writer.provenance({**environment(["convert.py", *argv]), "input": args.file, "units": schema.units})
    log.info("%s: %s events, %s hits", args.output, f"{len(events):,}", f"{len(event):,}")


def read_columns(path: str, wanted: list[str]) -> dict[str, NDArray[np.float64]]:
    """Columns of a text file by their names.

    Raises:
        InputError: there is no such file or column, or a line has no number where one is expected, or one that no
            32-bit float holds.
    """
    import numpy as np

    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:  # spreadsheets may begin it with a mark
            lines = csv.reader(file)
            header = [name.strip() for name in next(lines, [])]
            places = find_columns(path, header, wanted)
            rows = []
            for line in lines:
                if line:
                    try:
                        rows.append((lines.line_num, *(float(line[place]) for place in places)))
                    except (ValueError, IndexError):
                        raise bad_line(
                            path, lines.line_num, f"numbers in the columns {', '.join(wanted)}", line
                        ) from None
    except FileNotFoundError:
        raise InputError(f"no such file: {path}", file=path) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no table of text: {error}", file=path) from error
    table = np.array(rows, np.float64).reshape(-1, 1 + len(wanted))
    number, event, values = table[:, 0].astype(int), table[:, 1], table[:, 2:]
    whole = (event == np.floor(event)) & (np.abs(event) < LARGEST_EVENT)  # NaN is none
    if not whole.all():
        row = int(whole.argmin())
        raise bad_line(path, number[row], f"a whole number in the column '{wanted[0]}'", f"{event[row]:g}")
    real = np.abs(values) < np.finfo(np.float32).max / max(UNITS.values())
    if not real.all():
        row, column = np.argwhere(~real)[0]
        expected = f"a finite number in the column '{wanted[1 + column]}'"
        raise bad_line(path, number[row], expected, f"{values[row, column]:g}")
    return dict(zip(wanted, table[:, 1:].T, strict=True))


def find_columns(path: str, header: list[str], wanted: list[str]) -> list[int]:
    """Where the columns stand.

    Raises:
        InputError: one is missing, or there twice.
    """
    for name in wanted:
        if header.count(name) > 1:
            raise InputError(f"{path}: {header.count(name)} columns have the name '{name}'", file=path)
        if name not in header:
            near = difflib.get_close_matches(name, header, 3, 0.3) or header
            hint = "; names and numbers are separated by commas" if len(header) == 1 else ""
            raise InputError(f"{path}: no column '{name}'; there are {', '.join(near) or 'none'}{hint}", file=path)
    return [header.index(name) for name in wanted]


def bad_line(path: str, number: int, expected: str, got: object) -> InputError:
    """The error for a line of a table."""
    return InputError(f"{path}: line {number}: expected {expected}, got {got}", file=path, entry=int(number))


COMMAND = common.Command("a table of hits as text", TEXT, parser, run)
