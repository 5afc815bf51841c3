"""`tools/simulate.py camera`: frames of an optical TPC, and pedestal runs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jsonargparse

from sparsereco import cli
from sparsereco.commands import common
from sparsereco.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from sparsereco.sim.camera import Chamber, Light, Sensor, Track

TEXT = """\
Frames of an optical TPC: electron and nuclear recoils in He:CF4, seen by a camera through a triple GEM.

Writes TH2I frames `pic_run<R>_ev<E>` and the tree `event_info` with the truth into one ROOT file. Electrons come from
Geant4, nuclei from range tables. The pixels of a camera are drawn by --sensor-seed: the same ones in a pedestal run
(--tracks 0) and in the runs that it is for.

presets: fusion (2304 x 2304), quest (4096 x 2304)

examples:
  tools/simulate.py camera -o pedestal.root -n 100 --seed 1 --tracks 0
  tools/simulate.py camera -o run.root -n 50 --seed 2 --tracks 6 --energies "[0.25, 0.5, 1, 6]"

exit codes: 0 done, 1 failed while running, 2 wrong usage, file or setting, 130 interrupted
"""

PARTICLES = ("electron", "helium", "carbon", "fluorine")
ENERGIES = 0.25, 100.0
"""Of tracks [keV]: from the lowest that electrons are tested at, to the last of `sparsereco.sim.camera.RANGES`."""
SEPARATION = 200.0
"""Tracks of a frame start at least this far apart [pixel]."""


def parser() -> jsonargparse.ArgumentParser:
    """Options of `simulate.py camera`."""
    from sparsereco.sim.camera import Chamber

    parser = common.simulate_parser(TEXT, "frames")
    add = parser.add_argument
    add("--preset", default="fusion", choices=["fusion", "quest"], help="the camera")
    add("--run", type=int, default=1, metavar="R", help="run number")
    add("--tracks", type=int, default=1, metavar="T", help="tracks per frame; 0: a pedestal run")
    add(
        "--energies",
        type=list[float],
        default=[0.25, 0.5, 1.0, 6.0],
        help="kinetic energies, in turn, 0.25 to 100 [keV]",
    )
    add("--particles", type=list[str], default=["electron"], help=f"in turn: {', '.join(PARTICLES)}")
    add("--sensor-seed", type=int, default=1, metavar="N", help="seed of the camera's pixels")
    add("--noise-scale", type=float, default=1.0, help="factor on the noise, without a change of the pedestal")
    add("--pedestal-drift", type=float, default=0.0, help="how far the pedestal has gone up [counts]")
    parser.add_class_arguments(Chamber, "chamber")
    return parser


def run(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Writes frames and truth."""
    log = cli.set_up_logging(args.quiet, args.verbose)
    common.check_number(args.number)
    if args.tracks < 0:
        raise InputError(f"--tracks: expected a number that is not negative, got {args.tracks}")
    low, high = ENERGIES
    if not args.energies or not all(low <= energy <= high for energy in args.energies):
        raise InputError(f"--energies: expected some from {low:g} to {high:g} keV, got {args.energies}")
    if not 0 <= args.noise_scale < float("inf"):
        raise InputError(f"--noise-scale: expected a finite number that is not negative, got {args.noise_scale}")
    if not abs(args.pedestal_drift) < float("inf"):
        raise InputError(f"--pedestal-drift: expected a finite number, got {args.pedestal_drift}")
    if not args.particles or not set(args.particles) <= set(PARTICLES):
        raise InputError(f"--particles: expected some of {', '.join(PARTICLES)}, got {args.particles}")

    import awkward as ak
    import numpy as np

    from sparsereco.frames import histogram
    from sparsereco.provenance import environment
    from sparsereco.schema import FRAME_TRUTH
    from sparsereco.sim.camera import SENSORS, Chamber, Noise
    from sparsereco.writer import RootWriter

    chamber, sensor = cli.build(Chamber, args.chamber, "chamber."), SENSORS[args.preset]
    noise = Noise.draw(sensor, sensor.shape, np.random.default_rng([args.sensor_seed, 1]))
    writer = RootWriter(args.output, force=args.force)
    with writer, cli.progress("frames", args.number, "frames", args.quiet) as advance:
        for event in range(args.number):
            rng = np.random.default_rng([args.seed, event])
            first = event * args.tracks
            tracks = draw_tracks(args, range(first, first + args.tracks), rng)
            places = draw_places(len(tracks), sensor, rng)
            lights, record = shine(tracks, places, chamber, sensor, rng)
            image = noise.expose(lights, rng, args.noise_scale, args.pedestal_drift)
            name = f"pic_run{args.run}_ev{event}"
            writer.put(name, histogram(name, image.astype(np.int32)))
            scalars = {"run": [args.run], "eventnumber": [event]}
            fields = {key: ak.unflatten(value, [len(value)]) for key, value in record.items()}
            truth = ak.zip({**scalars, **fields}, depth_limit=1)
            writer.extend(FRAME_TRUTH.tree, FRAME_TRUTH, truth)
            advance(1)
        settings: dict[str, Any] = {"sensor": dataclasses.asdict(sensor), "chamber": dataclasses.asdict(chamber)}
        settings["noise_scale"] = args.noise_scale
        writer.provenance({**environment(["simulate.py", *argv]), "seed": args.seed, **settings})
    log.info("%s: %s frames", args.output, f"{args.number:,}")


def draw_tracks(args: jsonargparse.Namespace, numbers: range, rng: np.random.Generator) -> list[Track]:
    """Tracks by their numbers in the run: energies and particles take turns."""
    import numpy as np

    from sparsereco.sim.camera import CARBON, FLUORINE, HELIUM, electron_tracks, recoil_track

    nuclei = {"helium": HELIUM, "carbon": CARBON, "fluorine": FLUORINE}
    kinds = [args.particles[i // len(args.energies) % len(args.particles)] for i in numbers]
    energies = [args.energies[i % len(args.energies)] for i in numbers]
    wanted = np.array([energy for kind, energy in zip(kinds, energies, strict=True) if kind == "electron"])
    electrons = iter(electron_tracks(wanted, int(rng.integers(1, 2**31)), rng) if len(wanted) else [])
    return [
        next(electrons) if kind == "electron" else recoil_track(nuclei[kind], energy, rng)
        for kind, energy in zip(kinds, energies, strict=True)
    ]


def draw_places(n: int, sensor: Sensor, rng: np.random.Generator) -> np.ndarray:
    """(n, 2) y and x, apart from each other and from the edges [pixel].

    Raises:
        InputError: so many do not fit.
    """
    import numpy as np

    places, failed = np.zeros((0, 2)), 0
    while len(places) < n:
        place = rng.uniform(60, np.array(sensor.shape) - 60)
        if (np.hypot(*(places - place).T) > SEPARATION).all():
            places, failed = np.vstack([places, place]), 0
        elif (failed := failed + 1) > 1000:
            raise InputError(f"--tracks: {n} tracks do not fit on a frame, {SEPARATION:.0f} pixels apart")
    return places


def shine(
    tracks: list[Track], places: np.ndarray, chamber: Chamber, sensor: Sensor, rng: np.random.Generator
) -> tuple[list[Light], dict[str, Any]]:
    """The light of tracks at any depth, and the truth about them by branch."""
    import numpy as np

    from sparsereco.sim.camera import LIT, light_of

    depth = rng.uniform(0, chamber.drift, len(tracks))
    lights = [
        light_of(track, place, z, chamber, sensor, rng) for track, place, z in zip(tracks, places, depth, strict=True)
    ]
    lit = [light.expected >= LIT for light in lights]
    pixel = np.concatenate([np.zeros((0, 2), int), *(light.pixel[on] for light, on in zip(lights, lit, strict=True))])
    expected = [np.zeros(0, "f4"), *(light.expected[on] for light, on in zip(lights, lit, strict=True))]
    return lights, {
        "particle_type": np.array([track.pdg for track in tracks], int),
        "energy": np.array([track.energy for track in tracks]),
        "x_vertex": places[:, 1],
        "y_vertex": places[:, 0],
        "z_vertex": depth,
        "light": np.array([light.counts.sum() for light in lights]),
        "redpix_ix": pixel[:, 1],
        "redpix_iy": pixel[:, 0],
        "redpix_iz": np.concatenate(expected),
        "redpix_track": np.repeat(np.arange(len(lit)), [int(on.sum()) for on in lit]),
    }


COMMAND = common.Command("frames of an optical TPC with their truth", TEXT, parser, run)
