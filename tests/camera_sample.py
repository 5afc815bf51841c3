"""Small camera frames with tracks, and the pedestal that goes with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from sparsereco.camera.pedestal import Pedestal, measure_pedestal
from sparsereco.frames import Frame
from sparsereco.sim.camera import HELIUM, SENSORS, Chamber, Light, Noise, Track, light_of, recoil_track

SHAPE = (384, 512)
SENSOR = dataclasses.replace(SENSORS["fusion"], shape=SHAPE)
CHAMBER = Chamber(attachment=0.0, saturation=0.0, edge_light=1.0)


def noise() -> Noise:
    return Noise.draw(SENSOR, SHAPE, np.random.default_rng(5))


def pedestal(maps: Noise, frames: int = 60) -> Pedestal:
    rng = np.random.default_rng(6)
    return measure_pedestal(Frame(3, i, maps.expose([], rng), "pedestal", i) for i in range(frames))


def spots(places: list[tuple[float, float]], kev: float, rng: np.random.Generator, z: float = 250.0) -> list[Light]:
    """Light of compact tracks that leave ``kev`` at the given y, x."""
    track = recoil_track(HELIUM, kev / 0.74, rng)
    return [light_of(track, np.array(place), z, CHAMBER, SENSOR, rng) for place in places]


def line(start: tuple[float, float], length: float, kev: float, gap: Callable[[np.ndarray], np.ndarray]) -> Track:
    """A straight track along x; ``gap`` says where it leaves nothing."""
    where = (np.arange(400) + 0.5) / 400
    kept = ~gap(where)
    position = np.outer(where[kept] * length, [1.0, 0.0, 0.0])
    return Track(11, kev, position, np.full(kept.sum(), kev / kept.sum()))
