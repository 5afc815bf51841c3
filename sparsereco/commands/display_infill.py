"""`tools/display.py infill`: events of a liquid-argon detector before and after the infill, as one page."""

from __future__ import annotations

import jsonargparse

from sparsereco import cli
from sparsereco.commands import common, displays
from sparsereco.commands.lar import read_detector
from sparsereco.schema import CHARGE_HITS, INFILL, INFILL_TRUTH

TEXT = """\
Draws events of a liquid-argon detector before and after the infill as one self-contained HTML page.

Shows input, filled voxels and truth, as far as the given files have them: in one picture, and as target, input and
prediction side by side. FILE may be what tools/reco.py or tools/simulate.py writes, --hits adds the file that was
filled in. The geometry is that of the file's provenance, unless --detector names another.

examples:
  tools/display.py infill filled.root --hits muons.root -o events.html
  tools/display.py infill muons.root --event 17 -n 1 -o event17.html

exit codes: 0 done, 1 failed while running, 2 wrong usage, file or branch, 130 interrupted
"""


def parser() -> jsonargparse.ArgumentParser:
    """Options of `display.py infill`."""
    result = displays.display_parser(TEXT, "events", 10)
    add = result.add_argument
    add("file", metavar="FILE", help="result of the infill or simulated sample (trees infill, truth, hits)")
    add("--event", type=str | None, metavar="N", help="number of the first event, or RUN:SUBRUN:NUMBER")
    add("--hits", type=str | None, metavar="HITS.root", help="file with the hits, and the truth if it has it")
    add("--detector", type=str | None, metavar="NAME|FILE", help="geometry, where the file does not say")
    return result


def run(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Collects what the files have of the events, and draws it."""
    log = cli.set_up_logging(args.quiet, args.verbose)
    displays.check_options(args)

    from sparsereco.display.infill import infill_event
    from sparsereco.events import EVENT_ID, find_events, read_provenance
    from sparsereco.infill.gaps import Gaps, detector_of

    files = [args.file] if args.hits is None else [args.file, args.hits]
    events = find_events(files, (INFILL, INFILL_TRUTH, CHARGE_HITS), args.event, args.number)
    known = [] if args.detector else [detector_of(read_provenance(file), file) for file in files]
    gaps = Gaps(next(filter(None, known), None) or read_detector(args.detector))
    drawn = [
        infill_event(
            event.get("hits"),
            event.get("truth"),
            event.get("infill"),
            gaps,
            displays.event_name(next(iter(event.values())), EVENT_ID),
        )
        for event in events
    ]
    missing = [name for name in ("hits", "infill", "truth") if name not in events[0]]
    if missing:
        log.info("not in the files: %s", ", ".join(missing))
    displays.write_page(args, args.file, drawn, "events")


COMMAND = common.Command("events in liquid argon before and after the infill", TEXT, parser, run)
