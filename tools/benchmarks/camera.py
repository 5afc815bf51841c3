"""The camera chain with each of its selectors on the same simulated frames, selection to features."""

from __future__ import annotations

from functools import partial
from typing import Any

import jsonargparse
import numpy as np
import torch

from benchmarks.clock import seconds
from sparsereco.camera.chain import CameraChain
from sparsereco.camera.config import CameraConfig, NsigmaConfig
from sparsereco.camera.pedestal import Pedestal, measure_pedestal
from sparsereco.commands.simulate_camera import draw_places, draw_tracks, shine
from sparsereco.frames import Frame
from sparsereco.sim.camera import SENSORS, Chamber, Noise

CHAINS = {
    "unet": CameraConfig(selector="unet"),
    "gaussian": CameraConfig(selector="gaussian"),
    "anomaly": CameraConfig(selector="anomaly"),
    "nsigma": CameraConfig(selector="nsigma"),
    "nsigma, loose": CameraConfig(selector="nsigma", nsigma=NsigmaConfig(nsigma=0.6, neighbours=1.2)),
}
"""The classical chain also so loose that it leaves DBSCAN much of the noise."""

PEDESTAL = 40
"""Frames of the pedestal run."""


def run(args: jsonargparse.Namespace) -> dict[str, Any]:
    """The selectors take turns at each frame; the shortest round of each frame counts, and the mean of all frames."""
    torch.set_num_threads(args.threads)
    pedestal, frames = make_sample(args.frames, args.tracks, args.energies)
    chains = {name: CameraChain(pedestal, config) for name, config in CHAINS.items()}
    points = {name: float(np.mean([chain(frame).lp_len for frame in frames])) for name, chain in chains.items()}
    best = {name: np.full(len(frames), np.inf) for name in chains}
    for _ in range(args.rounds):
        for number, frame in enumerate(frames):
            for name, chain in chains.items():  # in turns, so that a busy machine is busy for all
                best[name][number] = min(best[name][number], seconds(partial(chain, frame)))
    ms = {name: 1e3 * float(times.mean()) for name, times in best.items()}
    rows = []
    for name in chains:
        rows.append({"selector": name, "ms": ms[name], "ratio": ms["nsigma"] / ms[name], "points": points[name]})
        print(
            "{selector:14} {ms:8.1f} ms per frame, nsigma takes {ratio:.2f} x, {points:,.0f} points".format(**rows[-1])
        )
    size = list(pedestal.mean.shape)
    return {"frames": args.frames, "tracks": args.tracks, "size": size, "threads": args.threads, "rows": rows}


def make_sample(frames: int, tracks: int, energies: list[float]) -> tuple[Pedestal, list[Frame]]:
    """A pedestal, and frames with electrons, as `tools/simulate.py camera` makes them.

    Args:
        frames: how many with tracks.
        tracks: of each frame.
        energies: of the tracks, in turn [keV].
    """
    sensor, chamber = SENSORS["fusion"], Chamber()
    noise = Noise.draw(sensor, sensor.shape, np.random.default_rng([1, 1]))
    dark = np.random.default_rng(2)
    empty = (Frame(1, i, noise.expose([], dark).astype(np.int32), "pedestal", i) for i in range(PEDESTAL))
    pedestal = measure_pedestal(empty)
    kinds = jsonargparse.Namespace(particles=["electron"], energies=energies)
    made = []
    for event in range(frames):
        rng = np.random.default_rng([3, event])
        drawn = draw_tracks(kinds, range(event * tracks, (event + 1) * tracks), rng)
        lights, _ = shine(drawn, draw_places(tracks, sensor, rng), chamber, sensor, rng)
        made.append(Frame(2, event, noise.expose(lights, rng).astype(np.int32), "simulated", event))
    return pedestal, made
