"""`tools/display.py vertex`: events of the vertex chain as one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import jsonargparse

from sparsereco import cli
from sparsereco.commands import common, displays
from sparsereco.errors import InputError
from sparsereco.schema import HITS, RECO, TRUTH

if TYPE_CHECKING:
    import awkward as ak

    from sparsereco.detector import Detector

TEXT = """\
Draws events of the vertex chain as one self-contained HTML page.

Shows hits, reconstruction and truth, as far as the given files have them, and the decomposition of the light around
each vertex: FILE may be what tools/reco.py or tools/simulate.py writes, --hits adds the file that a reconstruction was
made from. The page has the event asked for and those after it.

examples:
  tools/display.py vertex reco.root --hits sample.root -o events.html
  tools/display.py vertex reco.root --hits sample.root --event 17 -n 1 -o event17.html --figure event17.pdf
  tools/display.py vertex sample.root --event 1:0:17 -o sample.html

exit codes: 0 done, 1 failed while running, 2 wrong usage, file or branch, 130 interrupted
"""


def parser() -> jsonargparse.ArgumentParser:
    """Options of `display.py vertex`."""
    result = displays.display_parser(TEXT, "events", 10)
    add = result.add_argument
    add("file", metavar="FILE", help="reconstruction or simulated sample (trees reco, truth, hits)")
    add("--event", type=str | None, metavar="N", help="number of the first event, or RUN:SUBRUN:NUMBER")
    add("--hits", type=str | None, metavar="HITS.root", help="file with the hits, and the truth if it has it")
    add("--figure", type=str | None, metavar="OUT.pdf|png", help="the first event's decomposition, for print")
    return result


def run(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Collects what the files have of the events, and draws it."""
    log = cli.set_up_logging(args.quiet, args.verbose)
    displays.check_options(args, args.figure)

    from sparsereco.display.vertex import vertex_event
    from sparsereco.events import EVENT_ID, detector_of, find_events, has_tree, read_provenance

    files = [args.file] if args.hits is None else [args.file, args.hits]
    events = find_events(files, (RECO, TRUTH, HITS), args.event, args.number)
    made_by = next((read_provenance(file) for file in files if has_tree(file, RECO)), {})
    detector = detector_of(made_by)
    names = [displays.event_name(next(iter(event.values())), EVENT_ID) for event in events]
    drawn = [
        vertex_event(event.get("hits"), event.get("truth"), event.get("reco"), detector, name)
        for event, name in zip(events, names, strict=True)
    ]
    if args.figure is not None:
        write_figure(Path(args.figure), events[0], detector, f"{args.file}, {names[0]}")
    missing = [name for name in ("hits", "reco", "truth") if name not in events[0]]
    if missing:
        log.info("not in the files: %s", ", ".join(missing))
    displays.write_page(args, args.file, drawn, "events")


def write_figure(path: Path, event: dict[str, ak.Record], detector: Detector, title: str) -> None:
    """Writes the decomposition of the event's best vertex.

    Raises:
        InputError: another kind of file is asked for, or the event has no images.
    """
    from sparsereco.display.decomposition import decompose, static_figure
    from sparsereco.files import write_files
    from sparsereco.report import render

    kind = path.suffix.removeprefix(".")
    if kind not in ("pdf", "png"):
        raise InputError(f"--figure {path}: expected a name that ends in .pdf or .png", file=str(path))
    reco = event.get("reco")
    decompositions = [] if reco is None else decompose(event.get("hits"), reco, detector)
    if reco is None or not decompositions:
        raise InputError(f"--figure: {title} has no images of particles")
    best = max(decompositions, key=lambda one: reco.vtx_score[one.vertex])
    write_files(path.parent, {path.name: render(static_figure(best, title), kind)})


COMMAND = common.Command("events of the vertex chain", TEXT, parser, run)
