#!/usr/bin/env python3
"""Simulates events with their truth. `tools/simulate.py vertex --help` lists the options."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import jsonargparse
import yaml

from sparsereco import cli
from sparsereco.detector import Detector
from sparsereco.errors import InputError

VERTEX = """\
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

BANK = """\
A bank of single-particle tracks from Geant4: what trainings and large samples are composed of.

A bank of 200,000 tracks takes some minutes and 0.5 GB; the same seed gives the same bank.

example:
  tools/simulate.py bank -o banks/vertex.npz -n 200000 --seed 1
"""

CHUNK = 500
"""Events composed at a time."""

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "detectors"


def parsers() -> jsonargparse.ArgumentParser:
    """The command line: one subcommand per kind of sample."""
    parser = cli.new_parser(__doc__)
    cli.add_verbosity(parser)
    commands = parser.add_subcommands(dest="kind")
    for kind, text, what in (("vertex", VERTEX, "events"), ("bank", BANK, "tracks")):
        one = cli.new_parser(text)
        one.add_argument("-o", "--output", required=True, metavar="OUT", help="output; appears when all is done")
        one.add_argument("-n", "--number", type=int, required=True, metavar="N", help=f"number of {what}")
        one.add_argument("--seed", type=int, required=True, metavar="N", help="seed; the same one gives the same file")
        one.add_argument("-f", "--force", action="store_true", help="replace an output that is there already")
        if kind == "vertex":
            one.add_argument(
                "--preset", default="conf1", choices=["conf1", "conf2"], help="particles of an interaction"
            )
            one.add_argument("--response", default="ideal", metavar="NAME|FILE", help="ideal, superfgd, or a YAML file")
            one.add_argument("--bank", type=str | None, metavar="FILE", help="bank of tracks; fresh ones without it")
        cli.add_verbosity(one)
        commands.add_subcommand(kind, one, help=f"{what} with their truth" if kind == "vertex" else "Geant4 tracks")
    return parser


def run(argv: list[str]) -> None:
    """Parses the command line and simulates."""
    args = parsers().parse_args(argv)
    kind = args.kind
    args = args[kind]
    log = cli.set_up_logging(args.quiet, args.verbose)
    if args.number < 1:
        raise InputError(f"-n: expected a positive number, got {args.number}")
    if kind == "vertex":
        simulate_vertex(args, argv)
    else:
        simulate_bank(args)
    log.info("%s: %s %s", args.output, f"{args.number:,}", "events" if kind == "vertex" else "tracks")


def simulate_bank(args: jsonargparse.Namespace) -> None:
    """Writes a bank."""
    if Path(args.output).exists() and not args.force:
        raise InputError(f"output {args.output} exists already; -f replaces it", file=args.output)
    if Path(args.output).suffix != ".npz":
        raise InputError(f"output {args.output}: expected a name that ends in .npz", file=args.output)
    from sparsereco.sim.geant4 import make_bank

    with cli.progress("tracks", args.number, "tracks", args.quiet) as advance:
        make_bank(args.number, args.seed, advance).save(args.output)


def simulate_vertex(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Writes hits and truth."""
    detector = read_detector(args.response)

    import torch

    from sparsereco.io import RootWriter
    from sparsereco.provenance import environment
    from sparsereco.schema import HITS, TRUTH
    from sparsereco.sim.compose import PRESETS, TrackBank
    from sparsereco.sim.geant4 import Bank, make_bank
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
            hits, truth = to_records(draw_sample(bank, PRESETS[args.preset], detector, n, generator), detector, start)
            writer.extend("hits", HITS, hits)
            writer.extend("truth", TRUTH, truth)
            advance(n)
        settings = {"preset": args.preset, "bank": args.bank, "detector": dataclasses.asdict(detector)}
        writer.provenance({**environment(["simulate.py", *argv]), "seed": args.seed, **settings})


def read_detector(name: str) -> Detector:
    """A detector by the name of a shipped YAML file, or from one of the user's."""
    file = CONFIGS / f"{name}.yaml" if name in ("ideal", "superfgd") else Path(name)
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
    return cli.build(Detector, parser.parse_object(values))


if __name__ == "__main__":
    sys.exit(cli.main(run))
