#!/usr/bin/env python3
"""Measures whole runs (`chain`, `infill`), selectors (`camera`), networks (`finder`, `generator`, `slides`), operators
(`kernels`), limits, pages.

`tools/benchmark.py NAME --help` says more.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import jsonargparse

from sparsereco import cli
from sparsereco.errors import InputError

CHAIN = """\
Events per second and peak memory of `tools/reco.py vertex`, ROOT file to ROOT file, start of the process included.

Simulates one sample of at most 5,000 events and reconstructs it in runs of growing length; the longer ones read it over
and over again. The speed of the chain alone is the slope between the shortest and the longest run. Absolute times are
those of this machine as loaded as it is.

examples:
  tools/benchmark.py chain -n 1000 5000 --response superfgd --bank banks/test.npz
  tools/benchmark.py chain -n 1000 100000 --bank banks/test.npz --json memory.json
"""

FINDER = """\
The finder's network on one batch of simulated events: our convolutions against spconv's native ones in alternation,
with the shipped weights, kernel maps included. Times are the shortest of all rounds: processor time with one thread, so
that a busy machine does no harm, else wall time.

examples:
  tools/benchmark.py finder
  tools/benchmark.py finder --events 64 --threads 2 --bank banks/test.npz --json finder.json
"""

KERNELS = """\
The compiled operators against their peers, in alternation, and against what the machine can do.

`image_match`: forward and backward on images of 6 x 64 deposits along straight tracks, 7 x 7 x 7 voxels, float32,
Poisson, against plain torch. Convolution: kernel map, forward, and forward and backward of a submanifold convolution of
3 x 3 x 3 on voxels along tracks in a grid of 512^3, float32, against spconv's native algorithm, its map made before;
and how the cost of all three grows with the number of voxels and with the volume of the grid.
The roofs are measured in the same run: multiply-adds by a compiled loop on registers, bandwidth by a copy. Times are
the shortest of all rounds: processor time with one thread, so that a busy machine does no harm, else wall time.

examples:
  tools/benchmark.py kernels
  tools/benchmark.py kernels --images 64 1024 16384 --threads 2 --json kernels.json
  tools/benchmark.py kernels --images --voxels 5000 20000 100000 --channels 16 32 64 --threads 2
  tools/benchmark.py kernels --images --voxels 20000 --sides 256 1024 4096 16384
"""


GENERATOR = """\
Time per image of a single particle on one core, by species: the generator, from kinematics to the 7 x 7 x 7 image, in
batches of 256, and Geant4, from kinematics to the deposits. In alternation; the fastest round counts.

example:
  tools/benchmark.py generator
"""

INFILL = """\
Events per second of `tools/reco.py infill`, ROOT file to ROOT file, start of the process included, on a gap of ten
voxels; and the processor time of the chain alone where the same hits lie in ever larger detectors (of two copies of the
boxes at least: then the same gaps lie around the hits).

example:
  tools/benchmark.py infill --events 2000 --bank banks/lar_test.npz
"""

CAMERA = """\
Time per frame of the camera chain with each of its selectors, from the frame in memory to regions and clusters with
their features, on the same simulated frames of 2304 x 2304 pixels; how many times as long the classical chain
(`nsigma`) takes; and how many points DBSCAN gets. `nsigma, loose` is the classical chain with --nsigma.nsigma 0.6
--nsigma.neighbours 1.2. The selectors take turns at each frame, the shortest round of a frame counts, then the mean of
all frames: processor time with one thread, so that a busy machine does no harm, else wall time.

examples:
  tools/benchmark.py camera
  tools/benchmark.py camera --frames 10 --tracks 6 --energies "[0.25, 0.5, 1, 6]" --threads 2 --json camera.json
"""


SLIDES = """\
The form of the LArDRIP slides trained for a short time on muons through a gap of ten voxels: with plain softmax weights
of its two errors, with weights held by a barrier, and with fixed ones. Each is scored above the threshold that is best
on held-out muons, on further ones.

example:
  tools/benchmark.py slides --bank banks/lar.npz --held-out banks/lar_test.npz
"""

LIMIT = """\
How well the missing voxels of muons are told by whoever knows the path of each muon exactly, and which voxels on it are
above threshold, but not its delta rays: a limit for the infill, on the sample of muons that `tools/simulate.py infill
--detector gap10 --preset muon` makes with the same bank, number and seed.

example:
  tools/benchmark.py limit --bank banks/lar_test.npz --events 2000 --seed 41
"""

SCALE = """\
`tools/reco.py vertex` without workers and on ever more local ones, in turns, start of the processes included: whether
the values are equal to the last bit, events per second, processor time and peak memory of `reco.py` and of its workers.
Reads one sample of at most 5,000 events over and over. Set OMP_NUM_THREADS=1 for a comparison thread by thread.

examples:
  OMP_NUM_THREADS=1 tools/benchmark.py scale --workers 1 2 4 --events 10000 --bank banks/test.npz
  OMP_NUM_THREADS=1 tools/benchmark.py scale --workers 1 2 --events 20000 --rounds 3 --bank banks/test.npz
"""

FAULTS = """\
What goes wrong in production, done on purpose to `tools/reco.py vertex`.

Spoilt input files (flipped bits, cuts, absurd counts, odd values and types) each have to give a result or one line,
within bounds of time and memory; runs killed at random moments leave no output or a whole one, and --resume completes
them with equal values; killed workers lose and double nothing; a full disk gives one line and leaves the old output.

examples:
  tools/benchmark.py faults
  tools/benchmark.py faults --files 80 --kills 0 --worker-kills 0
"""

DISPLAY = """\
The page of one event with hits all over the detector, in Chromium without a window: size of the file, and time from
navigation to the first drawn plot, median of several rounds, each with nothing cached. Says what draws WebGL, and how
much processor time that took in all processes of the browser, which others on the machine do not lengthen.

example:
  tools/benchmark.py display --hits 5000
"""

PLAN = """\
What a production is planned from (docs/planning.md): processor time, memory and bytes per event of every system, file
to file; what a run of the vertex chain on workers is made of; and, with these costs, simulated runs with ever more
workers, of different speeds, some of which are lost.

example:
  OMP_NUM_THREADS=1 tools/benchmark.py plan --bank banks/test.npz --lar-bank banks/lar_test.npz
"""


def parsers() -> jsonargparse.ArgumentParser:
    """The command line: one subcommand per kind of measurement, each a module of `benchmarks`."""
    chain = cli.new_parser(CHAIN)
    chain.add_argument("-n", "--numbers", type=int, nargs="+", default=[1000, 5000], help="events of each run")
    chain.add_argument("--batch-size", type=int, default=256, help="events per forward pass")
    finder = cli.new_parser(FINDER)
    finder.add_argument("--events", type=int, default=64, help="events of the batch")
    for one in (chain, finder):
        one.add_argument("--response", default="superfgd", metavar="NAME|FILE", help="response of the sample")
        one.add_argument("--preset", default="conf1", choices=["conf1", "conf2"], help="particles of an interaction")
        one.add_argument("--bank", type=str | None, metavar="FILE", help="bank of tracks; fresh ones without it")
    kernels = cli.new_parser(KERNELS)
    kernels.add_argument("--images", type=int, nargs="*", default=[64, 1024], help="images of each row of image_match")
    kernels.add_argument("--voxels", type=int, nargs="*", default=[20000], help="voxels of each row of convolution")
    kernels.add_argument("--channels", type=int, nargs="+", default=[32], help="channels of each row of convolution")
    kernels.add_argument("--sides", type=int, nargs="*", default=[512, 4096], help="voxels per axis of growing grids")
    for one in (finder, kernels):
        one.add_argument("--threads", type=int, default=1, help="threads of torch and of the operators")
        one.add_argument("--rounds", type=int, default=5, help="rounds in which ours and the peers take turns")
    generator = cli.new_parser(GENERATOR)
    generator.add_argument("--images", type=int, default=512, help="images of each species and round")
    generator.add_argument("--rounds", type=int, default=3, help="rounds in which the two take turns")
    infill = cli.new_parser(INFILL)
    infill.add_argument("--events", type=int, default=2000, help="events of the sample")
    infill.add_argument("--preset", default="muon", choices=["muon", "mixed"], help="what an event is made of")
    infill.add_argument("--bank", type=str | None, metavar="FILE", help="bank of tracks; fresh ones without it")
    infill.add_argument("--copies", type=int, nargs="+", default=[2, 6, 18], help="copies of the boxes, along x and z")
    infill.add_argument("--threads", type=int, default=1, help="threads of torch in the chain alone")
    infill.add_argument("--rounds", type=int, default=3, help="rounds in which the detectors take turns")
    camera = cli.new_parser(CAMERA)
    camera.add_argument("--frames", type=int, default=5, help="frames of the sample")
    camera.add_argument("--tracks", type=int, default=12, help="electrons per frame")
    camera.add_argument("--energies", type=list[float], default=[0.25, 0.5, 1.0], help="theirs, in turn [keV]")
    camera.add_argument("--threads", type=int, default=1, help="threads of torch")
    camera.add_argument("--rounds", type=int, default=5, help="rounds in which the selectors take turns")
    slides = cli.new_parser(SLIDES)
    slides.add_argument("--bank", type=str, metavar="FILE", required=True, help="bank of tracks to train on")
    slides.add_argument("--held-out", type=str, metavar="FILE", required=True, help="bank of tracks to score on")
    slides.add_argument("--steps", type=int, default=250, help="steps of 8 muons each")
    slides.add_argument("--events", type=int, default=120, help="muons to score on, and as many for the threshold")
    slides.add_argument("--threads", type=int, default=1, help="threads of torch")
    limit = cli.new_parser(LIMIT)
    limit.add_argument("--bank", type=str, metavar="FILE", required=True, help="bank of tracks")
    limit.add_argument("--events", type=int, default=2000, help="muons")
    limit.add_argument("--seed", type=int, default=41, help="of the sample")
    faults = cli.new_parser(FAULTS)
    faults.add_argument("--files", type=int, default=1000, help="spoilt files; 0: none")
    faults.add_argument("--kills", type=int, default=50, help="killed runs; 0: none")
    faults.add_argument("--worker-kills", type=int, default=20, help="killed workers, at least; 0: none")
    faults.add_argument("--seed", type=int, default=1, help="of the random numbers")
    scale = cli.new_parser(SCALE)
    scale.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="numbers of workers")
    scale.add_argument("--events", type=int, default=10000, help="events of the sample")
    scale.add_argument("--rounds", type=int, default=1, help="rounds in which the numbers of workers take turns")
    scale.add_argument("--unit-size", type=int, default=2048, help="events of a unit")
    scale.add_argument("--bank", type=str | None, metavar="FILE", help="bank of tracks; fresh ones without it")
    display = cli.new_parser(DISPLAY)
    display.add_argument("--hits", type=int, default=5000, help="hits of the event")
    display.add_argument("--rounds", type=int, default=7, help="how often the page is opened")
    plan = cli.new_parser(PLAN)
    plan.add_argument("--events", type=int, default=4000, help="events of the vertex sample; the others have fewer")
    plan.add_argument("--bank", type=str | None, metavar="FILE", help="bank of tracks; fresh ones without it")
    plan.add_argument("--lar-bank", type=str | None, metavar="FILE", help="bank of tracks in liquid argon, likewise")
    plan.add_argument("--total", type=float, nargs="+", default=[1e9, 1e8], help="events of the simulated runs")
    plan.add_argument("--workers", type=int, nargs="+", default=[16, 40, 128, 1000], help="their workers")
    plan.add_argument("--unit-size", type=int, default=50000, help="events of a unit")
    plan.add_argument("--spread", type=float, default=0.1, help="deviation of the logarithm of the workers' speeds")
    plan.add_argument("--losses", type=float, default=0.01, help="lost workers per worker and hour")
    plan.add_argument("--seed", type=int, default=1, help="of the simulated runs")
    parser = cli.new_parser(__doc__)
    cli.add_verbosity(parser)
    commands = parser.add_subcommands(dest="what")
    for name, one, text in (
        ("chain", chain, "the vertex chain, file to file"),
        ("finder", finder, "the finder's network"),
        ("generator", generator, "images of single particles"),
        ("kernels", kernels, "the compiled operators"),
        ("infill", infill, "the infill, file to file and against the volume"),
        ("camera", camera, "the camera chain with each of its selectors"),
        ("slides", slides, "the form of the LArDRIP slides, trained for a short time"),
        ("limit", limit, "what is told of muons by their exact paths"),
        ("scale", scale, "the vertex chain on ever more workers"),
        ("plan", plan, "what a production costs, and simulated runs of it"),
        ("faults", faults, "spoilt files, kills, full disks"),
        ("display", display, "a page with an event in a browser"),
    ):
        one.add_argument("--json", type=str | None, metavar="OUT", help="write the numbers to this file, too")
        cli.add_verbosity(one)
        commands.add_subcommand(name, one, help=text)
    return parser


def run(argv: list[str]) -> None:
    """Parses the command line and measures."""
    args = parsers().parse_args(argv)
    chosen = args[args.what]
    for name in (
        "numbers",
        "events",
        "frames",
        "tracks",
        "batch_size",
        "images",
        "voxels",
        "channels",
        "sides",
        "copies",
        "steps",
        "workers",
        "unit_size",
        "threads",
        "rounds",
        "hits",
    ):
        values = chosen.get(name, [])
        if any(value < 1 for value in (values if isinstance(values, list) else [values])):
            raise InputError(f"--{name.replace('_', '-')}: expected positive numbers, got {values}")
    result = importlib.import_module(f"benchmarks.{args.what}").run(chosen)  # torch is not imported before
    if chosen.json:
        Path(chosen.json).write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    sys.exit(cli.main(run))
