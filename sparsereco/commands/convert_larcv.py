"""`tools/convert.py larcv`: sparse tensors and clusters of LArCV to the tree `hits`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import jsonargparse

from sparsereco import cli
from sparsereco.commands import common
from sparsereco.commands.lar import NAMES, read_detector, write_hits
from sparsereco.schema import CHARGE_HITS

if TYPE_CHECKING:
    from sparsereco.infill.gaps import Gaps
    from sparsereco.io import Chunk

TEXT = f"""\
Sparse tensors and clusters of LArCV 2, in three dimensions, to a ROOT file with a tree `hits` that tools/reco.py infill
reads.

FILE:TREE names the product, sparse3d_NAME_tree or cluster3d_NAME_tree; by default it is sparse3d_pcluster_tree. Values
of voxels are taken for energies in MeV, and added up where clusters share a voxel; positions are those of the file's
own grid. Images (image2d) are not read. With --detector, voxels whose centre is not in live argon are left out.

detectors: {", ".join(NAMES)}, or a YAML file like configs/detectors/2x2.yaml

examples:
  tools/convert.py larcv larcv.root -o hits.root
  tools/convert.py larcv 'larcv*.root:cluster3d_pcluster_tree' -o hits.root --detector 2x2

exit codes: 0 done, 1 failed while running, 2 wrong usage, file, tree or geometry, 130 interrupted
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
    add("--detector", type=str | None, metavar="NAME|FILE", help="geometry, to leave out what is not in live argon")
    cli.add_verbosity(one)
    return one


def run(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Reads and writes chunk by chunk."""
    log = cli.set_up_logging(args.quiet, args.verbose)

    detector = None if args.detector is None else read_detector(args.detector)

    from sparsereco.infill.gaps import Gaps
    from sparsereco.larcv import from_larcv

    chunks, left_out = from_larcv(args.files, STEP), list[int]()
    if detector is not None:
        chunks = live(chunks, Gaps(detector), left_out)
    events, voxels = write_hits(args, args.files, chunks, argv)
    log.info(
        "%s: %s events, %s voxels%s",
        args.output,
        f"{events:,}",
        f"{voxels:,}",
        "" if detector is None else f"; {sum(left_out):,} not in live argon were left out",
    )


def live(chunks: Iterable[Chunk], gaps: Gaps, left_out: list[int]) -> Iterator[Chunk]:
    """The same events without the voxels whose centre is dead or outside of the detector; adds how many these are."""
    import awkward as ak
    import numpy as np

    for chunk in chunks:
        events, counts = chunk.events, ak.num(chunk.events.hit_e)
        centre = np.stack([ak.to_numpy(ak.flatten(events[f"hit_{axis}"])) for axis in "xyz"], 1)
        alive = gaps.of(gaps.detector.index(centre)) == -1
        left_out.append(int((~alive).sum()))
        mask = ak.unflatten(alive, counts)
        fields = {
            b.name: events[b.name][mask] if b.name in CHARGE_HITS.counters else events[b.name]
            for b in CHARGE_HITS.branches
        }
        yield dataclasses.replace(chunk, events=ak.zip(fields, depth_limit=1))


COMMAND = common.Command("sparse tensors and clusters of LArCV", TEXT, parser, run)
