#!/usr/bin/env python3
"""Draws one event as one self-contained HTML page.

Shows the hits, the reconstruction and the truth of an event, as far as the given files have them: FILE may be what
tools/reco.py or tools/simulate.py writes, --hits adds the file that a reconstruction was made from.

examples:
  tools/display.py reco.root --hits sample.root --event 17 -o event17.html
  tools/display.py sample.root --event 1:0:17 -o event17.html

exit codes: 0 done, 1 failed while running, 2 wrong usage, file or branch, 130 interrupted
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import jsonargparse

from sparsereco import cli
from sparsereco.errors import InputError
from sparsereco.schema import HITS, RECO, TRUTH

if TYPE_CHECKING:
    import awkward as ak


def parser() -> jsonargparse.ArgumentParser:
    """The command line."""
    result = cli.new_parser(__doc__)
    add = result.add_argument
    add("file", metavar="FILE", help="reconstruction or simulated sample (trees reco, truth, hits)")
    add("--event", required=True, type=str, metavar="N", help="event number, or RUN:SUBRUN:NUMBER")
    add("-o", "--output", required=True, metavar="EVENT.html", help="the page")
    add("--hits", type=str | None, metavar="HITS.root", help="file with the hits, and the truth if it has it")
    add("-f", "--force", action="store_true", help="replace a page that is there already")
    cli.add_verbosity(result)
    return result


def run(argv: list[str]) -> None:
    """Parses the command line, collects what the files have of the event, and draws it."""
    args = parser().parse_args(argv)
    log = cli.set_up_logging(args.quiet, args.verbose)
    output = Path(args.output)

    from sparsereco.display import event_figure, to_page
    from sparsereco.events import EVENT_ID, detector_of, find_event, has_tree, read_provenance
    from sparsereco.files import check_file, write_files

    check_file(output, args.force)
    files = [args.file] if args.hits is None else [args.file, args.hits]
    found: dict[str, ak.Record] = {}
    where: dict[str, str] = {}
    for schema in (RECO, TRUTH, HITS):
        for file in files:
            if schema.tree not in found and has_tree(file, schema):
                key = args.event if not found else ":".join(str(next(iter(found.values()))[name]) for name in EVENT_ID)
                found[schema.tree], where[schema.tree] = find_event(file, schema, key), file
    if not found:
        raise InputError(f"none of the trees reco, truth, hits in {' and '.join(files)}")

    detector = detector_of(read_provenance(where["reco"])) if "reco" in where else detector_of({})
    event = next(iter(found.values()))
    title = ", ".join([args.file, *(f"{name} {event[name]}" for name in EVENT_ID)])
    figure = event_figure(found.get("hits"), found.get("truth"), found.get("reco"), detector, title)
    write_files(output.parent, {output.name: to_page(figure, title).encode()})
    missing = [name for name in ("hits", "reco", "truth") if name not in found]
    log.info("%s: %s%s", output, ", ".join(found), f" (not in the files: {', '.join(missing)})" if missing else "")


if __name__ == "__main__":
    sys.exit(cli.main(run))
