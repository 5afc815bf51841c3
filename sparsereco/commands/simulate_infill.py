"""`tools/simulate.py infill` and `lar-bank`: events over the gaps of a liquid-argon detector, and their tracks."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING

import jsonargparse

from sparsereco import cli
from sparsereco.commands import common
from sparsereco.commands.lar import NAMES, read_detector
from sparsereco.errors import InputError

if TYPE_CHECKING:
    from sparsereco.sim.lar_sample import Draw

TEXT = f"""\
Events in liquid argon over the gaps of a detector, with the voxels that the gaps hide.

Writes the trees `hits` (the live voxels) and `truth` (the dead voxels that would be above threshold) into one ROOT
file. Every event is turned at random and moved over a gap. The tracks come from a bank (option --bank, made by
`tools/simulate.py lar-bank`; without one, fresh tracks are simulated first), or, with --segments, the events from an
HDF5 file of edep-sim segments. Lengths are in mm, energies in MeV.

presets:   muon (one muon of 0.3-3 GeV through a gap, up to 73 degrees from its normal),
           mixed (many short, scattered and stopping tracks)
detectors: {", ".join(NAMES)}, or a YAML file like configs/detectors/2x2.yaml

examples:
  tools/simulate.py infill -o muons.root -n 1000 --seed 7 --detector gap10
  tools/simulate.py infill -o mixed.root -n 1000 --seed 7 --detector 2x2 --preset mixed --bank banks/lar_test.npz
  tools/simulate.py infill -o edep.root -n 500 --seed 7 --detector gap10 --segments edepsim-output.h5

exit codes: 0 done, 1 failed while running, 2 wrong usage, file or setting, 130 interrupted
"""

BANK_TEXT = """\
A bank of tracks in liquid argon from Geant4: muons, pions, protons, electrons, with their delta rays.

example:
  tools/simulate.py lar-bank -o banks/lar.npz -n 16000 --seed 1

exit codes: 0 done, 1 failed while running, 2 wrong usage, 130 interrupted
"""

CHUNK = 100
"""Events composed at a time."""


def parser() -> jsonargparse.ArgumentParser:
    """Options of `simulate.py infill`."""
    parser = common.simulate_parser(TEXT, "events")
    parser.add_argument("--detector", type=str | None, metavar="NAME|FILE", help="geometry")
    parser.add_argument("--preset", default="muon", choices=["muon", "mixed"], help="what an event is made of")
    parser.add_argument("--bank", type=str | None, metavar="FILE", help="bank of tracks; fresh ones without it")
    parser.add_argument("--segments", type=str | None, metavar="FILE.h5", help="take events from edep-sim segments")
    return parser


def run(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Writes hits and truth."""
    log = cli.set_up_logging(args.quiet, args.verbose)
    common.check_number(args.number)
    detector = read_detector(args.detector)
    if args.segments and args.bank:
        raise InputError("--bank and --segments exclude each other")

    import torch

    from sparsereco.infill.gaps import Gaps
    from sparsereco.io import RootWriter
    from sparsereco.provenance import environment
    from sparsereco.schema import CHARGE_HITS, INFILL_TRUTH
    from sparsereco.sim.lar_sample import to_records

    gaps = Gaps(detector)
    if not gaps.n_regions:
        raise InputError(f"--detector {args.detector}: it has no gaps between or in its boxes to simulate")
    writer = RootWriter(args.output, force=args.force)
    draw = source(args)
    with writer, cli.progress("events", args.number, "events", args.quiet) as advance:
        for start in range(0, args.number, CHUNK):
            n = min(CHUNK, args.number - start)
            generator = torch.Generator().manual_seed(args.seed * 1_000_003 + start)
            hits, truth = to_records(draw(gaps, n, generator), gaps, start, common.run_of(args.seed))
            writer.extend("hits", CHARGE_HITS, hits)
            writer.extend("truth", INFILL_TRUTH, truth)
            advance(n)
        settings = {name: args[name] for name in ("preset", "bank", "segments")}
        settings["detector"] = dataclasses.asdict(detector)
        writer.provenance({**environment(["simulate.py", *argv]), "seed": args.seed, **settings})
    log.info("%s: %s events", args.output, f"{args.number:,}")


def source(args: jsonargparse.Namespace) -> Draw:
    """What draws the events."""
    from sparsereco.sim.lar_sample import from_segments, from_tracks
    from sparsereco.sim.lartpc import COMPOSITIONS, SegmentBank, TrackSource, make_segment_bank

    if args.segments:
        import numpy as np
        import torch

        from sparsereco.hdf5 import SegmentTable, read_hdf5
        from sparsereco.segments import Segments

        table = read_hdf5(args.segments)
        if not isinstance(table, SegmentTable) or not len(table.event):
            raise InputError(f"--segments {args.segments}: expected energy segments", file=args.segments)
        numbers, event = np.unique(table.event, return_inverse=True)
        start, end, energy = map(torch.from_numpy, (table.start, table.end, table.energy))
        segments = Segments(start, end, energy, torch.from_numpy(event), len(numbers))
        return from_segments(segments, torch.from_numpy(table.track), torch.from_numpy(table.pdg))
    if args.bank:
        bank = SegmentBank.load(args.bank)
    else:
        tracks = min(500 + 4 * args.number, 8_000)
        with cli.progress("tracks", tracks, "tracks", args.quiet) as advance:
            bank = make_segment_bank(tracks, args.seed, advance)
    return from_tracks(TrackSource(bank), COMPOSITIONS[args.preset])


def run_bank(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Writes a bank."""
    from sparsereco.sim.lartpc import make_segment_bank

    common.write_bank(args, make_segment_bank)


COMMAND = common.Command("events over the gaps of a liquid-argon detector with their truth", TEXT, parser, run)
BANK = common.Command(
    "Geant4 tracks in liquid argon for the infill",
    BANK_TEXT,
    partial(common.simulate_parser, BANK_TEXT, "tracks"),
    run_bank,
)
