"""`tools/train.py response`: light yield and crosstalk of a detector from its events, without truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import jsonargparse
import yaml

from sparsereco import cli, files
from sparsereco.commands import simulate_vertex
from sparsereco.commands.common import Command, check_banks
from sparsereco.errors import InputError
from sparsereco.schema import HITS, BranchNames

if TYPE_CHECKING:
    from sparsereco.detector import Detector, Response
    from sparsereco.sim.compose import TrackBank
    from sparsereco.vertex.chain import VertexChain
    from sparsereco.vertex.halo import TrackLight

TEXT = """\
Fits the response of a detector, light yield and crosstalk, to measured events, by the light on and beside the tracks
that leave their vertices: simulated events with the fitted response look like the measured ones. No truth is needed.
The result is a YAML file like configs/detectors/*.yaml, for `tools/simulate.py --response FILE` and for trainings.

Threshold, noise, crossing muons and Birks' constant are taken from the file of --response, and should be those of the
detector. 2,000 events give both numbers to better than 1 %.

example:
  tools/train.py response run7.root -o detector7.yaml --response superfgd --bank banks/vertex.npz

exit codes: 0 done, 1 failed while running, 2 wrong usage, setting or file, 130 interrupted
"""

CHUNK = 500
"""Events simulated or read at a time."""

MIN_TRACKS = 200
"""With fewer leaving tracks nothing is fitted; so many give 1 % of the light yield and 3 % of the crosstalk."""


def parser() -> jsonargparse.ArgumentParser:
    """Options of `train.py response`."""
    one = cli.new_parser(TEXT)
    add = one.add_argument
    add("files", nargs="+", metavar="FILE[:TREE]", help="measured events; tree `hits` unless named")
    add("-o", "--output", required=True, metavar="OUT.yaml", help="the detector with the fitted response")
    add("-f", "--force", action="store_true", help="replace an output that is there already")
    add("--response", default="superfgd", metavar="NAME|FILE", help="to start from: ideal, superfgd, or a YAML file")
    add("--bank", default="banks/vertex.npz", metavar="FILE", help="bank of tracks (tools/simulate.py bank)")
    add("--preset", default="conf1", choices=["conf1", "conf2"], help="particles of a simulated interaction")
    add("-n", "--max-events", type=int, default=2000, metavar="N", help="at most so many measured events")
    add("--simulated", type=int, default=6000, metavar="N", help="events of each simulation; there are nine")
    add("--seed", type=int, default=1, metavar="N", help="seed of the simulations")
    one.add_class_arguments(BranchNames, "branches")
    cli.add_verbosity(one)
    return one


def run(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Fits a response and writes it."""
    names = cli.build(BranchNames, args.branches, "branches.")
    log = cli.set_up_logging(args.quiet, args.verbose)
    output = Path(args.output)
    files.check_file(output, args.force)
    for name in ("max_events", "simulated"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')}: expected a positive number, got {getattr(args, name)}")
    check_banks([args.bank])
    detector = simulate_vertex.read_detector(args.response)

    import torch

    from sparsereco.io import check_hits, iterate
    from sparsereco.sim.bank import Bank
    from sparsereco.sim.compose import TrackBank
    from sparsereco.vertex.chain import VertexChain
    from sparsereco.vertex.config import VertexConfig
    from sparsereco.vertex.halo import TrackLight, fit_response

    torch.manual_seed(args.seed)
    chain = VertexChain(VertexConfig(detector=detector))
    parts = []
    for chunk in iterate(args.files, HITS, None, names, CHUNK, 0, args.max_events):
        for event in check_hits(chunk.events, detector):
            raise event.error(chunk, names)
        parts.append(chunk.events)
    measured = TrackLight.joined(chain.track_light(part) for part in parts)
    if len(measured.on) < MIN_TRACKS:
        raise InputError(f"{len(measured.on)} leaving tracks in the events, expected at least {MIN_TRACKS} to fit to")
    bank = TrackBank(Bank.load(args.bank))
    with cli.progress("simulated", 9 * args.simulated, "events", args.quiet) as advance:
        simulated = partial(simulate, chain, bank, detector, args.preset, args.simulated, args.seed, advance)
        fitted = fit_response(measured, simulated, detector.response)
    text = yaml.safe_dump(dataclasses.asdict(dataclasses.replace(detector, response=fitted.response)), sort_keys=False)
    head = (
        f"# Fitted to {fitted.tracks:,} leaving tracks: light yield +- {fitted.light_yield_err:.2f} p.e./MeV, "
        f"crosstalk +- {fitted.crosstalk_err:.5f}.\n"
    )
    files.write_files(output.parent, {output.name: (head + text).encode()})
    log.info(
        "%s: light yield %.2f +- %.2f p.e./MeV, crosstalk %.4f +- %.4f, from %s leaving tracks",
        *(output, fitted.response.light_yield, fitted.light_yield_err),
        *(fitted.response.crosstalk, fitted.crosstalk_err, f"{fitted.tracks:,}"),
    )


def simulate(
    chain: VertexChain,
    bank: TrackBank,
    detector: Detector,
    preset: str,
    n: int,
    seed: int,
    advance: Callable[[int], None],
    response: Response,
) -> TrackLight:
    """Track light of n simulated events with a response; the same events, whatever the response."""
    import torch

    from sparsereco.sim.compose import PRESETS
    from sparsereco.sim.sample import draw_sample, to_records
    from sparsereco.vertex.halo import TrackLight

    detector = dataclasses.replace(detector, response=response)
    parts = []
    for start in range(0, n, CHUNK):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + start)
        count = min(CHUNK, n - start)
        events, _ = to_records(draw_sample(bank, PRESETS[preset], detector, count, generator), detector)
        parts.append(chain.track_light(events))
        advance(count)
    return TrackLight.joined(parts)


COMMAND = Command("light yield and crosstalk of a detector, from events without truth", TEXT, parser, run)
