"""What the subcommands of `tools/display.py` share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jsonargparse

from sparsereco import cli
from sparsereco.errors import InputError

if TYPE_CHECKING:
    import awkward as ak

    from sparsereco.display.page import Event


def display_parser(text: str, unit: str, number: int) -> jsonargparse.ArgumentParser:
    """A parser with the options of `tools/display.py` that every system has.

    Args:
        text: head of the help.
        unit: what is shown one at a time, in the plural.
        number: default of ``--number``.
    """
    parser = cli.new_parser(text)
    add = parser.add_argument
    add("-o", "--output", required=True, metavar="OUT.html", help="the page")
    add("-n", "--number", type=int, default=number, metavar="N", help=f"at most so many {unit} on the page")
    add("-f", "--force", action="store_true", help="replace a page that is there already")
    cli.add_verbosity(parser)
    return parser


def check_options(args: jsonargparse.Namespace, *further: str | None) -> None:
    """Refuses options before anything is read: a number that is none, an output that is no page or must stay.

    Args:
        args: the command line.
        further: other outputs than ``--output``.
    """
    from sparsereco.files import check_file

    if args.number < 1:
        raise InputError(f"-n: expected a positive number, got {args.number}")
    if Path(args.output).suffix != ".html":
        raise InputError(f"output {args.output}: expected a name that ends in .html", file=args.output)
    for output in (args.output, *further):
        if output is not None:
            check_file(Path(output), args.force)


def event_name(record: ak.Record, numbers: Sequence[str]) -> str:
    """An event by its numbers."""
    return ", ".join(f"{name} {record[name]}" for name in numbers)


def write_page(args: jsonargparse.Namespace, title: str, events: list[Event], unit: str) -> None:
    """Writes the page and says how large it is.

    Args:
        args: the command line.
        title: of the page.
        events: that it shows.
        unit: what they are, in the plural.
    """
    from sparsereco.display.page import to_page
    from sparsereco.files import write_files

    log = cli.set_up_logging(args.quiet, args.verbose)
    output, page = Path(args.output), to_page(title, events).encode()
    write_files(output.parent, {output.name: page})
    log.info("%s: %d %s, %.1f MB", output, len(events), unit, len(page) / 1e6)
