"""`tools/convert.py larcv`: sparse tensors of LArCV to the tree `hits`."""

from __future__ import annotations

import jsonargparse

from sparsereco import cli
from sparsereco.commands import common
from sparsereco.commands.lar import write_hits

TEXT = """\
Sparse tensors of LArCV 2, in three dimensions, to a ROOT file with a tree `hits` that tools/reco.py infill reads.

FILE:TREE names the product, sparse3d_NAME_tree; by default it is sparse3d_pcluster_tree. Values of voxels are taken for
energies in MeV, positions are those of the file's own grid. Images (image2d) and clusters (cluster3d) are not read.

examples:
  tools/convert.py larcv larcv.root -o hits.root
  tools/convert.py larcv 'larcv*.root:sparse3d_reco_tree' -o hits.root

exit codes: 0 done, 1 failed while running, 2 wrong usage, file or tree, 130 interrupted
"""

STEP = 500
"""Events at a time."""


def parser() -> jsonargparse.ArgumentParser:
    """Options of `convert.py larcv`."""
    one = cli.new_parser(TEXT)
    add = one.add_argument
    add("files", nargs="+", metavar="FILE[:TREE]", help="files of LArCV: local ones, globs or URLs")
    add("-o", "--output", required=True, metavar="OUT.root", help="output; appears when all is done")
    add("-f", "--force", action="store_true", help="replace an output that is there already")
    cli.add_verbosity(one)
    return one


def run(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Reads and writes chunk by chunk."""
    log = cli.set_up_logging(args.quiet, args.verbose)

    from sparsereco.larcv import from_larcv

    events, voxels = write_hits(args, args.files, from_larcv(args.files, STEP), argv)
    log.info("%s: %s events, %s voxels", args.output, f"{events:,}", f"{voxels:,}")


COMMAND = common.Command("sparse tensors of LArCV", TEXT, parser, run)
