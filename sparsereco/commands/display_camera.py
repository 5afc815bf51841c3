"""`tools/display.py camera`: frames with their clusters as one page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import jsonargparse

from sparsereco.commands import common, displays, reco_camera
from sparsereco.errors import InputError
from sparsereco.schema import FRAME_TRUTH, FRAMES, ROIS, Schema

if TYPE_CHECKING:
    import awkward as ak
    import numpy as np

TEXT = """\
Draws frames of a camera with their clusters and regions as one self-contained HTML page.

FILE is what tools/reco.py camera writes, or the experiment's own reconstruction (tree Events); without --frames the
pixels of clusters are shown that it has. --frames adds the images, and the truth where that file has it; they are shown
without the pedestal of --pedestal, or without their median. A frame takes half a megabyte.

examples:
  tools/display.py camera reco7.root --frames run7.root --pedestal pedmap.root -o frames.html
  tools/display.py camera reco7.root --frames run7.root --event 17 -n 1 -o frame17.html

exit codes: 0 done, 1 failed while running, 2 wrong usage, file or branch, 130 interrupted
"""


BOTH = FRAMES.part(
    *("run", "event", "sc_size", "sc_nhits", "sc_integral", "sc_energy", "sc_length", "sc_width", "sc_xmax", "sc_ymax"),
    *("sc_redpixIdx", "redpix_ix", "redpix_iy", "redpix_iz"),
)
"""What is drawn that the files of the experiment have, too."""
OURS = FRAMES.part("sc_score", "redpix_hit")


def parser() -> jsonargparse.ArgumentParser:
    """Options of `display.py camera`."""
    result = displays.display_parser(TEXT, "frames", 2)
    add = result.add_argument
    add("file", metavar="FILE", help="reconstruction (tree Events, and roi where it has one)")
    add("--event", type=int | None, metavar="N", help="number of the first event")
    add("--frames", type=str | None, metavar="RUN", help="file with the frames")
    add("--pedestal", type=str | None, metavar="FILE", help="pedmap file, or frames of a pedestal run")
    return result


def run(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Collects what the files have of the frames, and draws it."""
    displays.check_options(args)
    if args.pedestal is not None and args.frames is None:
        raise InputError("--pedestal is taken off the frames of --frames, which are not given")

    import awkward as ak

    from sparsereco.display.camera import camera_event

    events = read_events(args.file)
    numbers = ak.to_numpy(events.event).tolist()
    if args.event is not None and args.event not in numbers:
        known = f"its numbers go from {min(numbers)} to {max(numbers)}" if numbers else "it is empty"
        raise InputError(f"no event {args.event} in tree 'Events' of {args.file}; {known}", file=args.file)
    if not numbers:
        raise InputError(f"tree 'Events' of {args.file} is empty", file=args.file)
    first = 0 if args.event is None else numbers.index(args.event)
    events = events[first : first + args.number]
    wanted = [(event.run, event.event) for event in events]
    images = dict(read_images(args, wanted)) if args.frames is not None else {}
    regions = read_by_number(args.file, ROIS, "event")
    truth = read_by_number(args.frames, FRAME_TRUTH, "eventnumber") if args.frames is not None else {}
    drawn = [
        camera_event(
            images.get(key), event, regions.get(key), truth.get(key), displays.event_name(event, ("run", "event"))
        )
        for key, event in zip(wanted, events, strict=True)
    ]
    displays.write_page(args, args.file, drawn, "frames")


def read_events(file: str) -> ak.Array:
    """What is drawn of the tree `Events`, as far as the file has it."""
    import awkward as ak

    from sparsereco.errors import BranchError
    from sparsereco.io import read

    events = read(file, BOTH, BOTH.tree)
    try:
        ours = read(file, OURS, OURS.tree)
    except BranchError:
        return events
    return ak.zip({name: part[name] for part in (events, ours) for name in part.fields}, depth_limit=1)


def read_images(
    args: jsonargparse.Namespace, wanted: list[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """The light of frames by run and event number, NaN in pixels that cannot be used.

    Raises:
        InputError: a frame is missing, or of another size than the pedestal.
    """
    import numpy as np

    from sparsereco.camera.pedestal import check_frame
    from sparsereco.frames import iterate_frames

    pedestal = None if args.pedestal is None else reco_camera.read_or_measure(args.pedestal, args.quiet)
    missing = set(wanted)
    for frame in iterate_frames([args.frames]):
        key = frame.run, frame.event
        if key not in missing:
            continue
        missing.remove(key)
        check_frame(frame, pedestal)
        if pedestal is None:
            yield key, (frame.image - np.median(frame.image)).astype(np.float32)
        else:
            yield key, np.where(pedestal.hot, np.nan, frame.image - pedestal.mean).astype(np.float32)
        if not missing:
            return
    run, event = min(missing)
    raise InputError(f"{args.frames} has no frame of run {run}, event {event}", file=args.frames)


def read_by_number(file: str, schema: Schema, number: str) -> dict[tuple[int, int], ak.Record]:
    """Frames of a tree by their run and the branch ``number``; none where the file has no such tree."""
    from sparsereco import remote
    from sparsereco.events import has_tree
    from sparsereco.io import read

    if not remote.name(file).endswith(".root") or not has_tree(file, schema):
        return {}
    return {(event.run, event[number]): event for event in read(file, schema)}


COMMAND = common.Command("camera frames with clusters and regions", TEXT, parser, run)
