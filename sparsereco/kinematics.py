"""Ranges, angles and path lengths: the few formulas that evaluation and displays share."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

MUON = 13
NAMES = {
    2212: "p", 1000010020: "d", 1000010030: "t", 1000020040: "alpha", 211: "pi+", -211: "pi-", 13: "mu-", -13: "mu+",
    11: "e-", -11: "e+",
}  # fmt: skip
"""How a PDG code is written in tables and figures."""
MASSES = {
    2212: 938.272, 1000010020: 1875.613, 1000010030: 2808.921, 1000020040: 3727.379, 211: 139.570, 13: 105.658
}  # fmt: skip
"""Masses by abs(PDG code) [MeV], from the Review of Particle Physics and CODATA."""

# Polystyrene, from the atomic and nuclear properties of the Review of Particle Physics.
_DENSITY = 1.060  # [g/cm3]
_Z_OVER_A = 0.53768
_MEAN_EXCITATION = 68.7e-6  # [MeV]
_ELECTRON_MASS = 0.510999  # [MeV]
_BETHE_CONSTANT = 0.307075  # 4 pi N_A r_e^2 m_e c^2 [MeV cm2/mol]
_STERNHEIMER = 3.2999, 0.1647, 2.5031, 0.16454, 3.2224  # density effect: C, x0, x1, a, k (At. Data 30 (1984) 261)


def particle_name(pdg: int) -> str:
    """Short name of a PDG code; the code itself where it has none here."""
    return NAMES.get(int(pdg), str(int(pdg)))


def stopping_power(ke: np.ndarray, pdg: int) -> np.ndarray:
    """Mean ionisation loss in polystyrene [MeV/mm].

    The Bethe equation with the density effect (Review of Particle Physics, "Passage of particles through matter") but
    without shell corrections: 1 % for protons of 5 to 100 MeV, not to be used below 0.25 MeV per nucleon.

    Args:
        ke: kinetic energies [MeV], any shape.
        pdg: a key of `MASSES`, of either sign.
    """
    mass = MASSES[abs(pdg)]
    charge = 2 if abs(pdg) == 1000020040 else 1
    gamma = 1 + np.asarray(ke, np.float64) / mass
    beta2 = 1 - gamma**-2
    kick = 2 * _ELECTRON_MASS * beta2 * gamma**2
    ratio = _ELECTRON_MASS / mass
    largest_transfer = kick / (1 + 2 * gamma * ratio + ratio**2)
    logarithm = 0.5 * np.log(kick * largest_transfer / _MEAN_EXCITATION**2) - beta2 - _density_effect(gamma) / 2
    return 0.1 * _DENSITY * _BETHE_CONSTANT * charge**2 * _Z_OVER_A / beta2 * logarithm


def _density_effect(gamma: np.ndarray) -> np.ndarray:
    """Sternheimer's delta, of an insulator."""
    offset, low, high, strength, power = _STERNHEIMER
    x = 0.5 * np.log10(np.maximum(gamma**2 - 1, 1e-12))
    bend = strength * np.maximum(high - x, 0) ** power
    return np.where(x < low, 0.0, 2 * math.log(10) * x - offset + bend)


@cache
def _range_table(pdg: int) -> tuple[np.ndarray, np.ndarray]:
    """Kinetic energies [MeV] and their ranges [mm]; the first 0.25 MeV per nucleon (3 um) are taken as linear."""
    ke = np.geomspace(0.25 * MASSES[pdg] / MASSES[2212], 4000, 3000)
    inverse = 1 / stopping_power(ke, pdg)
    steps = 0.5 * (inverse[1:] + inverse[:-1]) * np.diff(ke)
    return np.append(0, ke), np.cumsum(np.concatenate([[0], ke[:1] * inverse[:1], steps]))


def track_range(ke: np.ndarray, pdg: np.ndarray) -> np.ndarray:
    """Range in polystyrene in the continuous slowing-down approximation [mm], the integral of 1 / `stopping_power`.

    A proton of 50 MeV goes 21.4 mm. A particle whose mass is not in `MASSES` has the range NaN.

    Args:
        ke: (N,) kinetic energies [MeV].
        pdg: (N,) PDG codes.
    """
    ke, pdg = np.broadcast_arrays(np.asarray(ke, np.float64), np.abs(np.asarray(pdg)))
    result = np.full(ke.shape, np.nan)
    for code in np.unique(pdg):
        if int(code) in MASSES:
            result[pdg == code] = np.interp(ke[pdg == code], *_range_table(int(code)))
    return result


def energy_of_range(length: np.ndarray, pdg: int) -> np.ndarray:
    """Kinetic energy of a particle that stops after ``length`` in polystyrene [MeV], the inverse of `track_range`.

    Args:
        length: (N,) ranges [mm].
        pdg: a key of `MASSES`, of either sign.
    """
    ke, ranges = _range_table(abs(pdg))
    return np.interp(length, ranges, ke)


def angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angle between directions [rad], exact for tiny and for nearly opposite ones; NaN where one has no length.

    Args:
        a: (..., 3), of any length.
        b: (..., 3), of any length.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    length = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    sine, cosine = np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(-1)
    return np.where(length > 0, np.arctan2(sine, cosine), np.nan)


def path_in_box(start: np.ndarray, direction: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Length of each ray inside its box [mm], 0 where it misses; the slab method.

    Args:
        start: (N, 3) first point of the ray [mm], inside the box or not.
        direction: (N, 3) unit vectors.
        lower: (N, 3) lower corner [mm].
        upper: (N, 3) upper corner [mm].
    """
    direction = np.where(np.abs(direction) < 1e-12, 1e-12, direction)  # parallel to a face: the crossing is far away
    first, second = (lower - start) / direction, (upper - start) / direction
    enters = np.maximum(np.minimum(first, second).max(-1), 0)
    leaves = np.maximum(first, second).min(-1)
    return np.maximum(leaves - enters, 0)
