"""Camera frames of an optical TPC, sparse until the last step: recoils, electrons, light, photo-electrons, noise.

A frame is an array [y, x]. Tracks stay lists of electrons and of lit pixels; only `Noise.expose` makes an image.
Figures are those of a He:CF4 60/40 chamber with triple GEM (arXiv 2007.00608, 2007.12508, 2305.06168) and of the data
sheets of the cameras.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from sparsereco.sim.geant4 import Medium, simulate

Floats = NDArray[np.floating]

ELECTRON, HELIUM, CARBON, FLUORINE = 11, 1000020040, 1000060120, 1000090190
"""PDG codes of what ionises: electron and nuclear recoils."""

GAS = Medium("HE_CF4_60_40", 1000.0, 0.5, (("He", 3), ("C", 2), ("F", 8)), 1.564e-3)
"""He:CF4 60/40 at one atmosphere."""

RANGES = {
    HELIUM: ((10.0, 30.0, 60.0, 100.0), (0.15, 0.42, 0.74, 1.04)),
    CARBON: ((10.0, 30.0, 60.0, 100.0), (0.05, 0.14, 0.26, 0.44)),
    FLUORINE: ((10.0, 30.0, 60.0, 100.0), (0.035, 0.10, 0.19, 0.32)),
}
"""Kinetic energies [keV] and projected ranges [mm], from SRIM's for pure gases: 1/R = 0.6/R(He) + 0.4/R(CF4)."""

LIT = 0.5
"""Truth: pixels with at least this much expected light [counts]."""

QUENCHING = {
    HELIUM: ((14.0,), (0.74,)),
    CARBON: ((8.0, 15.0, 40.0, 134.0), (0.33, 0.40, 0.51, 0.70)),
    FLUORINE: ((8.0, 15.0, 40.0, 134.0), (0.30, 0.37, 0.48, 0.67)),
}
"""Kinetic energies [keV] and the share that ionises (as Geant4 has it in this gas; carbon: a little above fluorine)."""


@dataclass(frozen=True)
class Chamber:
    """The gas volume and its amplification."""

    drift: float = 500.0
    """Length of the drift volume [mm]."""
    electron_energy: float = 46.2
    """Mean energy per ionisation electron [eV]."""
    attachment: float = 1350.0
    """Mean drift length before an electron is lost [mm]; 0: none is lost."""
    gem_spread: float = 0.35
    """Spread of the light of one electron in the GEMs, standard deviation [mm]."""
    diffusion: float = 0.116
    """Transverse diffusion per square root of the drift length [mm/sqrt(cm)]."""
    light: float = 1000.0
    """Light without losses [counts/keV]; a camera with other counts scales it."""
    saturation: float = 150.0
    """Light per pixel at which the GEMs give half of what they should [counts]; 0: no saturation."""
    edge_light: float = 0.22
    """Vignetting: the share of light that arrives from the corners, 1 in the centre."""


@dataclass(frozen=True)
class Sensor:
    """A camera."""

    shape: tuple[int, int] = (2304, 2304)
    """Rows and columns."""
    pixel: float = 0.152
    """Size of a pixel on the GEM [mm]."""
    offset: float = 99.0
    """Mean of a pixel without light [counts]."""
    noise: float = 3.6
    """Median standard deviation of a pixel [counts]."""
    electrons: float = 0.24
    """Photo-electrons per count."""
    light: float = 1.0
    """Counts for the same light, over those of the chamber."""
    noisy: float = 0.01
    """Share of pixels with more than twice the usual noise (a power law beyond: 0.03 % above 4 times)."""
    hot: float = 3e-4
    """Share of hot pixels, whose mean is raised by 300 counts on average."""
    blinking: float = 1e-4
    """Share of pixels that jump up by five standard deviations in every fifth frame (random telegraph noise)."""


SENSORS = {
    "fusion": Sensor(),
    "quest": Sensor((2304, 4096), offset=200.0, noise=2.7, electrons=0.107, light=2.2),
}
"""The two cameras: ORCA-Fusion and ORCA-Quest."""


@dataclass(frozen=True)
class Track:
    """Energy deposits of one particle, the first at the origin."""

    pdg: int
    energy: float
    """Kinetic energy [keV]."""
    position: Floats  # (N, 3) x, y along the frame and z towards the cathode [mm]
    deposit: Floats  # (N,) what ionises [keV]


@dataclass(frozen=True)
class Light:
    """Lit pixels of one track."""

    pixel: NDArray[np.int64]  # (P, 2) y, x
    expected: NDArray[np.float32]  # (P,) counts before photo-electron statistics
    counts: NDArray[np.float32]  # (P,) counts


def electron_tracks(energy: Floats, seed: int, rng: np.random.Generator) -> list[Track]:
    """Electrons from Geant4 in random directions.

    Args:
        energy: (T,) kinetic energies [keV].
        seed: of Geant4.
        rng: draws the directions.
    """
    tracks = []
    events = simulate([("e-", float(kev) / 1000) for kev in energy], seed, GAS)
    for kev, steps in zip(energy, events, strict=True):
        pieces = np.maximum(1, np.ceil(steps[:, 7] / 0.1)).astype(int)  # a step is spread along itself
        row = np.repeat(np.arange(len(steps)), pieces)
        where = (np.arange(len(row)) - np.repeat(pieces.cumsum() - pieces, pieces) + 0.5) / pieces[row]
        position = steps[row, :3] + (steps[:, 3:6] - steps[:, :3])[row] * where[:, None]
        deposit = 1000 * steps[row, 6] / pieces[row]
        tracks.append(Track(ELECTRON, float(kev), position @ _random_rotation(rng), deposit))
    return tracks


def recoil_track(pdg: int, energy: float, rng: np.random.Generator) -> Track:
    """A nuclear recoil: a straight line of its range, dense at the beginning, in a random direction.

    Args:
        pdg: of `RANGES`.
        energy: kinetic energy [keV].
        rng: draws the direction.
    """
    energies, ranges = (np.log(column) for column in RANGES[pdg])
    length = np.exp(np.interp(np.log(energy), energies, ranges))
    if energy < RANGES[pdg][0][0]:  # the range is about proportional to the energy
        length *= energy / RANGES[pdg][0][0]
    ionised = energy * float(np.interp(np.log(energy), np.log(QUENCHING[pdg][0]), QUENCHING[pdg][1]))
    where = (np.arange(20) + 0.5) / 20
    position = np.outer(where * length, [1.0, 0.0, 0.0]) @ _random_rotation(rng)
    profile = 1.5 - where  # electronic stopping falls as the nucleus slows down
    return Track(pdg, energy, position, ionised * profile / profile.sum())


def _random_rotation(rng: np.random.Generator) -> Floats:
    """(3, 3) uniform over all rotations (QR of a Gaussian matrix, with the signs of R's diagonal)."""
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    q *= np.sign(np.diag(r))
    q[:, 0] *= np.linalg.det(q)
    return q


def light_of(
    track: Track, place: Floats, z: float, chamber: Chamber, sensor: Sensor, rng: np.random.Generator
) -> Light:
    """The light of a track on the sensor.

    Args:
        track: its deposits.
        place: (2,) y and x of its first deposit [pixel].
        z: distance of its first deposit to the GEM [mm].
        chamber: gas and amplification.
        sensor: the camera.
        rng: draws the number of electrons, their losses, diffusion and gain, and the photo-electrons.
    """
    n = rng.poisson(1000 * track.deposit / chamber.electron_energy)
    depth = np.clip(z + track.position[:, 2], 0, chamber.drift)
    if chamber.attachment > 0:
        n = rng.binomial(n, np.exp(-depth / chamber.attachment))
    row = np.repeat(np.arange(len(n)), n)
    spread = chamber.diffusion * np.sqrt(depth[row] / 10)
    where = track.position[row][:, [1, 0]] + spread[:, None] * rng.standard_normal((len(row), 2))
    # A single-electron avalanche is exponential in the first GEM.
    gain = rng.exponential(chamber.electron_energy / 1000 * chamber.light * sensor.light, len(row))
    pixel, expected = _stamps(place + where / sensor.pixel, gain, chamber.gem_spread / sensor.pixel, sensor.shape)
    if chamber.saturation > 0:
        expected = expected / (1 + expected / (chamber.saturation * sensor.light))
    expected = expected * vignetting(pixel, sensor.shape, chamber.edge_light)
    counts = rng.poisson(expected * sensor.electrons) / sensor.electrons
    return Light(pixel, expected.astype(np.float32), counts.astype(np.float32))


def vignetting(pixel: NDArray, shape: tuple[int, int], edge: float) -> Floats:
    """(P,) share of light that arrives from (P, 2) pixels: a parabola from 1 in the centre to ``edge`` in corners."""
    centre = (np.array(shape) - 1) / 2
    return 1 - (1 - edge) * ((pixel - centre) ** 2).sum(1) / (centre**2).sum()


def _stamps(place: Floats, total: Floats, sigma: float, shape: tuple[int, int]) -> tuple[NDArray[np.int64], Floats]:
    """Sum of Gaussian spots, integrated over pixels; what falls beside the sensor is lost.

    Args:
        place: (E, 2) centres, y and x [pixel].
        total: (E,) integrals.
        sigma: standard deviation [pixel].
        shape: of the sensor.

    Returns:
        (P, 2) pixels and (P,) sums.
    """
    half = int(np.ceil(3.5 * sigma))
    first = np.floor(place).astype(np.int64) - half
    edges = first[:, :, None] + np.arange(2 * half + 2)  # (E, 2, K + 1)
    share = np.diff(0.5 * erf((edges - place[:, :, None]) / (np.sqrt(2) * sigma)), axis=2)
    share /= share.sum(2, keepdims=True)
    spot = total[:, None, None] * share[:, 0, :, None] * share[:, 1, None, :]
    y, x = (np.broadcast_to(edge, spot.shape) for edge in (edges[:, 0, :-1, None], edges[:, 1, None, :-1]))
    inside = (y >= 0) & (y < shape[0]) & (x >= 0) & (x < shape[1])
    key, inverse = np.unique((y * shape[1] + x)[inside], return_inverse=True)
    return np.stack(np.divmod(key, shape[1]), 1), np.bincount(inverse, spot[inside], len(key)).astype(np.float64)


def lit_pixels(lights: list[Light], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """(H, W): pixels whose expected light, of all tracks together, is at least `LIT`."""
    expected = np.zeros(shape, np.float32)
    for light in lights:
        np.add.at(expected, tuple(light.pixel.T), light.expected)
    return expected >= LIT


@dataclass(frozen=True)
class Noise:
    """The pixels of one sensor, or of a part of it."""

    mean: NDArray[np.float32]  # (H, W) [counts]
    sigma: NDArray[np.float32]  # (H, W) [counts]
    blinking: NDArray[np.bool_]  # (H, W)

    @classmethod
    def draw(cls, sensor: Sensor, shape: tuple[int, int], rng: np.random.Generator) -> Noise:
        """Means and widths of ``shape`` pixels like those of the sensor."""
        f32 = np.float32
        columns, rows = 0.1 * rng.standard_normal((1, shape[1])), 0.07 * rng.standard_normal((shape[0], 1))
        mean = sensor.offset + 0.25 * rng.standard_normal(shape, f32) + columns + rows
        sigma = sensor.noise * np.exp(0.1 * rng.standard_normal(shape, f32))
        n = mean.size
        tail = rng.integers(n, size=rng.poisson(sensor.noisy * n))
        sigma.ravel()[tail] = sensor.noise * 2 * (1 - rng.random(len(tail))) ** (-1 / 5.06)
        hot = rng.integers(n, size=rng.poisson(sensor.hot * n))
        extra = np.minimum(rng.exponential(300, len(hot)), 2600)
        mean.ravel()[hot] += extra
        sigma.ravel()[hot] = np.hypot(sigma.ravel()[hot], np.sqrt(extra / sensor.electrons))
        blinking = np.zeros(shape, bool)
        blinking.ravel()[rng.integers(n, size=rng.poisson(sensor.blinking * n))] = True
        return cls(mean.astype(f32), sigma.astype(f32), blinking)

    def expose(self, lights: list[Light], rng: np.random.Generator, scale: float = 1.0, drift: float = 0.0) -> NDArray:
        """An image [y, x] as unsigned 16-bit counts.

        Args:
            lights: what is to be seen.
            rng: draws the noise.
            scale: factor on the noise.
            drift: how far the means have gone up since the pedestal run, in the upper half twice as far [counts].
        """
        image = rng.standard_normal(self.mean.shape, np.float32)
        image *= self.sigma
        image[self.blinking] += 5 * self.sigma[self.blinking] * (rng.random(int(self.blinking.sum())) < 0.2)
        image *= np.float32(scale)
        image += self.mean
        if drift:
            image += drift * np.linspace(0.67, 1.33, len(image), dtype=np.float32)[:, None]
        for light in lights:
            np.add.at(image, tuple(light.pixel.T), light.counts)
        return np.clip(np.rint(image, out=image), 0, 65535).astype(np.uint16)
