"""`tools/simulate.py vertex` and `bank`: events of a scintillator-cube detector, and the tracks they are made of."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import jsonargparse
import yaml

from sparsereco import cli
from sparsereco.commands import common
from sparsereco.detector import Detector
from sparsereco.errors import InputError

TEXT = """\
Full-detector events of a scintillator-cube detector: one interaction per event, its muon and its hadrons from Geant4.

Writes the trees `hits` and `truth` into one ROOT file. The tracks come from a bank (option --bank, made by
`tools/simulate.py bank`); without one, fresh tracks are simulated first. Lengths are in mm, energies in MeV, signals
in p.e.

presets:   conf1 (muon + 1-5 protons), conf2 (muon + 0-4 p, 0-1 d, 0-1 t, at least one)
responses: ideal, superfgd (crosstalk, threshold, noise, crossing muons), or a YAML file like configs/detectors/*.yaml

examples:
  tools/simulate.py vertex -o sample.root -n 1000 --seed 7
  tools/simulate.py vertex -o sample.root -n 1000 --seed 7 --preset conf2 --response superfgd

exit codes: 0 done, 1 failed while running, 2 wrong usage, file or setting, 130 interrupted
"""

BANK_TEXT = """\
A bank of single-particle tracks from Geant4: what trainings and large samples are composed of.

A bank of 400,000 tracks takes some minutes and 1 GB; the same seed gives the same bank.

example:
  tools/simulate.py bank -o banks/vertex.npz -n 400000 --seed 2

exit codes: 0 done, 1 failed while running, 2 wrong usage, 130 interrupted
"""

CHUNK = 500
"""Events composed at a time."""


def parser() -> jsonargparse.ArgumentParser:
    """Options of `simulate.py vertex`."""
    parser = common.simulate_parser(TEXT, "events")
    parser.add_argument("--preset", default="conf1", choices=["conf1", "conf2"], help="particles of an interaction")
    parser.add_argument("--response", default="ideal", metavar="NAME|FILE", help="ideal, superfgd, or a YAML file")
    parser.add_argument("--bank", type=str | None, metavar="FILE", help="bank of tracks; fresh ones without it")
    return parser


def run(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Writes hits and truth."""
    log = cli.set_up_logging(args.quiet, args.verbose)
    common.check_number(args.number)
    detector = read_detector(args.response)

    import torch

    from sparsereco.io import RootWriter
    from sparsereco.provenance import environment
    from sparsereco.schema import HITS, TRUTH
    from sparsereco.sim.bank import Bank, make_bank
    from sparsereco.sim.compose import PRESETS, TrackBank
    from sparsereco.sim.sample import draw_sample, to_records

    writer = RootWriter(args.output, force=args.force)
    if args.bank is None:
        tracks = min(1000 + 8 * args.number, 40_000)
        with cli.progress("tracks", tracks, "tracks", args.quiet) as advance:
            bank = TrackBank(make_bank(tracks, args.seed, advance))
    else:
        bank = TrackBank(Bank.load(args.bank))
    with writer, cli.progress("events", args.number, "events", args.quiet) as advance:
        for start in range(0, args.number, CHUNK):
            n = min(CHUNK, args.number - start)
            generator = torch.Generator().manual_seed(args.seed * 1_000_003 + start)
            sample = draw_sample(bank, PRESETS[args.preset], detector, n, generator)
            hits, truth = to_records(sample, detector, start, common.run_of(args.seed))
            writer.extend("hits", HITS, hits)
            writer.extend("truth", TRUTH, truth)
            advance(n)
        settings = {"preset": args.preset, "bank": args.bank, "detector": dataclasses.asdict(detector)}
        writer.provenance({**environment(["simulate.py", *argv]), "seed": args.seed, **settings})
    log.info("%s: %s events", args.output, f"{args.number:,}")


def read_detector(name: str) -> Detector:
    """A detector by the name of a shipped YAML file, or from one of the user's."""
    file = common.CONFIGS / "detectors" / f"{name}.yaml" if name in ("ideal", "superfgd") else Path(name)
    if not file.is_file():
        raise InputError(f"--response: expected ideal, superfgd or a YAML file, got {name!r}")
    try:
        values = yaml.safe_load(file.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--response: {file} is no YAML file: {error}", file=str(file)) from error
    if not isinstance(values, dict):
        raise InputError(f"--response: {file}: expected keys like those of configs/detectors/*.yaml", file=str(file))
    parser = cli.new_parser("")
    parser.add_class_arguments(Detector, nested_key=None)
    cli.check_keys(parser, values, str(file))
    return cli.build(Detector, parser.parse_object(values))


def run_bank(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Writes a bank."""
    from sparsereco.sim.bank import make_bank

    common.write_bank(args, make_bank)


COMMAND = common.Command("events of a scintillator-cube detector with their truth", TEXT, parser, run)
BANK = common.Command(
    "Geant4 tracks for the vertex system", BANK_TEXT, partial(common.simulate_parser, BANK_TEXT, "tracks"), run_bank
)
