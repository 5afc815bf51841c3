"""`tools/convert.py edepsim`: energy segments to voxels of a liquid-argon detector."""

from __future__ import annotations

import jsonargparse

from sparsereco import cli
from sparsereco.commands import common
from sparsereco.commands.lar import NAMES, read_detector, write_hits
from sparsereco.errors import InputError

TEXT = f"""\
Energy segments of edep-sim in HDF5 (data set `segments`), or a table of voxels in HDF5, to a ROOT file with a tree
`hits` that tools/reco.py infill reads. Segments are put into voxels by exact path length; what is dead is left out.

detectors: {", ".join(NAMES)}, or a YAML file like configs/detectors/2x2.yaml

example:
  tools/convert.py edepsim edepsim-output.h5 -o hits.root --detector 2x2

exit codes: 0 done, 1 failed while running, 2 wrong usage, file or geometry, 130 interrupted
"""

STEP = 500
"""Events at a time."""


def parser() -> jsonargparse.ArgumentParser:
    """Options of `convert.py edepsim`."""
    one = cli.new_parser(TEXT)
    add = one.add_argument
    add("file", metavar="FILE.h5", help="segments or voxels")
    add("-o", "--output", required=True, metavar="OUT.root", help="output; appears when all is done")
    add("-f", "--force", action="store_true", help="replace an output that is there already")
    add("--detector", type=str | None, metavar="NAME|FILE", help="geometry")
    cli.add_verbosity(one)
    return one


def run(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Reads and writes chunk by chunk."""
    log = cli.set_up_logging(args.quiet, args.verbose)
    detector = read_detector(args.detector)

    from sparsereco.hdf5 import is_hdf5
    from sparsereco.infill.events import from_hdf5
    from sparsereco.infill.gaps import Gaps

    if not is_hdf5(args.file):
        raise InputError(f"{args.file}: expected an HDF5 file (.h5, .hdf5)", file=args.file)
    events, _ = write_hits(args, args.file, from_hdf5(args.file, Gaps(detector), STEP), argv)
    log.info("%s: %s events", args.output, f"{events:,}")


COMMAND = common.Command("edep-sim segments or voxels in HDF5", TEXT, parser, run)
