"""The generator: kinematics and noise in, a sparse set of deposits out; `ops.soft_voxelize` makes images of them.

A particle is followed in steps along its range. What is known is put in: the range and the energy of each step from the
Bethe equation, multiple scattering from Highland's formula, the spectrum of delta rays from the cross-section of free
electrons. Noise makes the steps scatter and straggle, and throws delta rays. A small network corrects what the formulas
leave out, as a function of species, energy and place on the track; it is trained against a critic that compares images
with those of Geant4 (`adversary`). Everything is differentiable in vertex, direction, energy, noise and response.

Lengths are in mm, energies in MeV. A particle's own frame has its start at the origin and its direction along +z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from sparsereco import bounds
from sparsereco.geometry import across
from sparsereco.kinematics import MASSES, MUON, energy_of_range, stopping_power, track_range
from sparsereco.vertex.hadrons import SPECIES

GENERATED = (*SPECIES, MUON)
"""PDG codes that there are images of: p, d, t, and the leaving muon."""

_RADIATION_LENGTH = 413.1  # of polystyrene [mm] (Review of Particle Physics)
_ELECTRON_MASS = 0.510999  # [MeV]
_DELTA_RATE = 0.00875  # delta rays of a fast particle above E, times E: K/2 Z/A density [MeV/mm]
_ELECTRON_RANGE = 3.89  # of an electron of 1 MeV (L. Katz, A. S. Penfold, Rev. Mod. Phys. 24 (1952) 28) [mm]

_HADRON_ENERGIES = np.arange(0, 80.5, 0.5)
_COARSE_ENERGIES = np.array([0, 1, 2, 4, 7, 11, 16, 22, 30, 40, 55, 80])  # corrections are smooth
_COARSE_PLACES = (np.arange(16) + 0.5) / 16
_MUON_ENERGIES = np.geomspace(200, 2000, 24)
_DELTA_ENERGIES = np.geomspace(0.02, 10, 24)


@dataclass(frozen=True)
class GeneratorConfig:
    """What the generator looks like."""

    hadron_steps: int = 64
    """Deposits of a hadron, at equal lengths along its range."""
    muon_steps: int = 80
    """Deposits of a muon, apart from its delta rays."""
    muon_length: float = 88.0
    """A muon is followed so far: across a crop [mm]."""
    delta_rays: int = 16
    """Delta rays of a muon, most of them too soft to leave it."""
    delta_deposits: int = 4
    """Deposits of a delta ray."""
    width: int = 32
    """Of the networks that correct the formulas."""

    def __post_init__(self) -> None:
        steps = "hadron_steps", "muon_steps", "delta_rays", "delta_deposits", "width"
        bounds.at_least(1, self, "network.", *steps)
        bounds.positive(self, "network.", "muon_length")


@dataclass(frozen=True)
class Shower:
    """Deposits of P particles of one kind, D of each."""

    position: Tensor  # (P, D, 3) [mm]
    energy: Tensor  # (P, D) [MeV]
    dedx: Tensor  # (P, D) energy loss per length, for the quenching [MeV/mm]

    def placed(self, direction: Tensor, start: Tensor) -> Shower:
        """Turned from the particles' own frame along ``direction`` (P, 3), moved to ``start`` (P, 3) [mm]."""
        u, v = across(direction)
        turned = self.position @ torch.stack([u, v, direction], 1)
        return Shower(turned + start[:, None], self.energy, self.dedx)

    def light(self, light_yield: Tensor | float, birks: Tensor | float) -> Tensor:
        """(P, D) photo-electrons, by Birks' law; units as in `detector.Response`."""
        return light_yield * self.energy / (1 + birks * self.dedx)


class Generator(nn.Module):
    """Particles to deposits."""

    def __init__(self, settings: GeneratorConfig) -> None:
        super().__init__()
        self.settings = settings
        self.hadrons = HadronSteps(settings)
        self.muons = MuonSteps(settings)

    def noise(self, species: int, n: int, generator: torch.Generator | None = None) -> Tensor:
        """(n, ...) normal noise of n particles of one species."""
        kind = self.muons if GENERATED[species] == MUON else self.hadrons
        return torch.randn(n, *kind.noise_shape, generator=generator)

    def forward(self, species: int, ke: Tensor, noise: Tensor | None = None) -> Shower:
        """Deposits of particles of one species, in their own frame.

        Args:
            species: index in `GENERATED`.
            ke: (P,) kinetic energies [MeV].
            noise: (P, ...) from `noise`; None for none: a straight track that loses what it loses on average, without
                delta rays.
        """
        if GENERATED[species] == MUON:
            return self.muons(ke, noise)
        return self.hadrons(torch.full_like(ke, species, dtype=torch.int64), ke, noise)


class HadronSteps(nn.Module):
    """Stopping hadrons: K steps of equal length."""

    depth: Tensor
    loss: Tensor
    rate: Tensor
    angle: Tensor
    to_energies: Tensor  # from the values at a few nodes
    to_places: Tensor

    def __init__(self, settings: GeneratorConfig) -> None:
        super().__init__()
        self.steps = settings.hadron_steps
        self.noise_shape = (3, self.steps)
        tables = [_hadron_table(code, self.steps) for code in SPECIES]
        for name, values in zip(("depth", "loss", "rate", "angle"), zip(*tables, strict=True), strict=True):
            self.register_buffer(name, torch.from_numpy(np.stack(values)).float(), persistent=False)
        places = (np.arange(self.steps) + 0.5) / self.steps
        for name, fine, nodes in (
            ("to_energies", _HADRON_ENERGIES, _COARSE_ENERGIES),
            ("to_places", places, _COARSE_PLACES),
        ):
            hats = np.stack([np.interp(fine, nodes, peak) for peak in np.eye(len(nodes))], 1)
            self.register_buffer(name, torch.from_numpy(hats).float(), persistent=False)
        self.correct = _Correction(len(SPECIES) + 3, 5, settings.width)

    def table(self) -> Tensor:
        """(species, energies, 6, K): depth, energy, dE/dx, scattering angle, straggling, tail of each step."""
        place = (torch.arange(self.steps) + 0.5) / self.steps
        energy, along = (torch.from_numpy(nodes).float() for nodes in (_COARSE_ENERGIES, _COARSE_PLACES))
        kind = torch.eye(len(SPECIES))[:, None, None].expand(-1, len(energy), len(along), -1)
        scalars = torch.stack(torch.broadcast_tensors((energy[:, None] + 3).log() - 3, 2 * along - 1, along**4), -1)
        coarse = self.correct(torch.cat([kind, scalars.expand(len(SPECIES), -1, -1, -1)], -1))
        out = torch.einsum("ea,sakc->sekc", self.to_energies, torch.einsum("kp,sapc->sakc", self.to_places, coarse))
        depth = self.depth * (1 + 0.05 * out[..., 0])
        rate = self.rate * (0.2 * out[..., 1]).exp()
        angle = self.angle * (0.5 * out[..., 2]).exp()
        # The variance of the end is some per cent of the range, and grows fastest where the particle is fast.
        growth = (1 - place).sqrt() * (0.5 * out[..., 3]).exp()
        straggling = 0.012 * self.depth[..., -1:] * growth * (1.5 / self.steps**0.5)
        tail = 0.1 * softplus(out[..., 4] - 1)
        return torch.stack([depth, self.loss, rate, angle, straggling, tail], -2)

    def forward(self, species: Tensor, ke: Tensor, noise: Tensor | None = None, table: Tensor | None = None) -> Shower:
        """Deposits in the particles' own frame.

        Args:
            species: (P,) index in `SPECIES`; ke: (P,) [MeV].
            noise: (P, 3, K): scattering in two planes and straggling of each step; None for none.
            table: what `table` returned, where it does not change between calls.
        """
        table = self.table() if table is None else table
        depth, loss, rate, angle, straggling, tail = _interpolated(table, species, ke, _HADRON_ENERGIES).unbind(1)
        if noise is None:
            zero = torch.zeros_like(depth)
            return Shower(torch.stack([zero, zero, depth], -1), loss, rate)
        # Single scatterings by large angles make the tails of the distribution.
        kick = angle[:, None] * _heavy(noise[:, :2], tail[:, None])
        slope = kick.cumsum(-1)
        length = depth[:, -1:, None] / self.steps
        aside = (slope - kick / 2).cumsum(-1) * length
        along = depth + (straggling * noise[:, 2]).cumsum(-1)
        # A slanted step gets less far.
        along = along - (slope.square().sum(1).clamp(max=1.0) / 2).cumsum(-1) * length[:, 0]
        return Shower(torch.stack([aside[:, 0], aside[:, 1], along], -1), loss, rate)


class MuonSteps(nn.Module):
    """Fast muons: K steps of fixed length, and delta rays."""

    rate: Tensor
    angle: Tensor

    def __init__(self, settings: GeneratorConfig) -> None:
        super().__init__()
        self.steps, self.length = settings.muon_steps, settings.muon_length / settings.muon_steps
        self.rays, self.deposits = settings.delta_rays, settings.delta_deposits
        self.noise_shape = (3 * self.steps + self.rays * (3 + 3 * self.deposits),)
        momentum, beta = _motion(_MUON_ENERGIES, MUON)
        self.register_buffer("rate", torch.from_numpy(stopping_power(_MUON_ENERGIES, MUON)).float(), persistent=False)
        angle = _highland(momentum, beta, np.array(self.length))
        self.register_buffer("angle", torch.from_numpy(angle).float(), persistent=False)
        self.correct = _Correction(1, 4, settings.width)
        self.correct_ray = _Correction(1, 3 * self.deposits, settings.width)

    def forward(self, ke: Tensor, noise: Tensor | None = None) -> Shower:
        """Deposits in the particles' own frame.

        Args:
            ke: (P,) [MeV].
            noise: (P, N) of steps and delta rays; None for none: a straight track that leaves what it loses besides
                delta rays.
        """
        n, device = len(ke), ke.device
        out = self.correct(torch.from_numpy(np.log(_MUON_ENERGIES / 600)).float().to(device)[:, None])
        soft = torch.stack([self.rate * 0.75 * (0.2 * out[:, 0]).exp(), self.angle * (0.5 * out[:, 1]).exp(),
                            0.12 * (0.5 * out[:, 2]).exp(), (0.2 * out[:, 3]).exp()], 1)  # fmt: skip
        rate, angle, width, many = _interpolated(soft[None, :, :, None], torch.zeros_like(ke, dtype=torch.int64), ke,
                                                 _MUON_ENERGIES)[..., 0].unbind(1)  # fmt: skip
        depth = ((torch.arange(self.steps, device=device) + 0.5) * self.length).expand(n, -1)
        rate = rate[:, None].expand(-1, self.steps)
        if noise is None:
            zero = torch.zeros_like(depth)
            return Shower(torch.stack([zero, zero, depth], -1), rate * self.length, rate)
        steps, rays = noise.split([3 * self.steps, self.rays * (3 + 3 * self.deposits)], 1)
        steps, rays = steps.view(n, 3, self.steps), rays.view(n, self.rays, 3 + 3 * self.deposits)
        kick = angle[:, None, None] * steps[:, :2]
        aside = (kick.cumsum(-1) - kick / 2).cumsum(-1) * self.length
        energy = rate * self.length * (width[:, None] * steps[:, 2] - width[:, None].square() / 2).exp()
        track = torch.stack([aside[:, 0], aside[:, 1], depth], -1)
        ray, ray_energy = self._rays(rays, many, track)
        ray_rate = torch.full_like(ray_energy, 0.2)  # of an electron of some 100 keV [MeV/mm]
        return Shower(torch.cat([track, ray], 1), torch.cat([energy, ray_energy], 1), torch.cat([rate, ray_rate], 1))

    def _rays(self, noise: Tensor, many: Tensor, track: Tensor) -> tuple[Tensor, Tensor]:
        """Delta rays: position (P, D, 3) and energy (P, D) of their deposits."""
        n = len(noise)
        uniform = torch.special.ndtr(noise[..., :2]).clamp(1e-3, 1 - 1e-6)
        # The number above E falls as 1 / E, so that of all rays, the share u is above the softest energy / u.
        softest = _DELTA_RATE * many * self.length * self.steps / self.rays
        energy = (softest[:, None] / uniform[..., 0]).clamp(max=8.0)
        place = uniform[..., 1] * (self.steps - 1)
        low = place.long().clamp(max=self.steps - 2)
        rows = torch.arange(n)[:, None]
        fraction = (place - low)[..., None]
        origin = track[rows, low] * (1 - fraction) + track[rows, low + 1] * fraction

        out = self.correct_ray((torch.from_numpy(_DELTA_ENERGIES).float().to(noise.device).log() / 2)[:, None])
        zero = torch.zeros(n * self.rays, dtype=torch.int64, device=noise.device)
        shape = _interpolated(out.T[None, :, :].transpose(1, 2)[..., None], zero, energy.flatten(), _DELTA_ENERGIES)
        forward, blur, part = shape[..., 0].view(n, self.rays, 3, self.deposits).unbind(2)
        # Of a free electron at rest: it starts at this angle, and scatters until its direction is forgotten.
        cosine = (energy / (energy + 2 * _ELECTRON_MASS)).sqrt()
        turn = 2 * torch.pi * torch.special.ndtr(noise[..., 2])
        sine = (1 - cosine.square()).sqrt()
        direction = torch.stack([sine * turn.cos(), sine * turn.sin(), cosine], -1)
        reach = _ELECTRON_RANGE * energy ** (1.265 - 0.0954 * energy.clamp(min=0.02).log())
        ahead = (torch.arange(self.deposits, device=noise.device) + 0.5) / self.deposits
        move = (ahead * 0.6 * (0.5 * forward).exp())[..., None] * direction[:, :, None]
        wander = (ahead * 0.25 * (0.5 * blur).exp())[..., None] * noise[..., 3:].view(n, self.rays, self.deposits, 3)
        position = origin[:, :, None] + reach[..., None, None] * (move + wander)
        return position.flatten(1, 2), (energy[..., None] * part.softmax(-1)).flatten(1)


class _Correction(nn.Sequential):
    """A small network that starts from zero: the formulas as they are."""

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        last = nn.Linear(width, outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        super().__init__(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), last)


def _heavy(noise: Tensor, tail: Tensor) -> Tensor:
    """Normal noise with longer tails, of unit variance still."""
    return noise * (1 + tail * noise.square()) / (1 + 6 * tail + 15 * tail.square()).sqrt()


def _interpolated(table: Tensor, row: Tensor, ke: Tensor, energies: np.ndarray) -> Tensor:
    """(P, ...) values at energies ``ke`` (P,) of a table (rows, energies, ...), linear between its nodes."""
    nodes = torch.from_numpy(energies).to(ke)
    low = (torch.searchsorted(nodes, ke.detach().contiguous(), right=True) - 1).clamp(0, len(energies) - 2)
    # Beyond the table the last piece goes on, which keeps a gradient that leads back.
    fraction = ((ke - nodes[low]) / (nodes[low + 1] - nodes[low])).view(-1, *[1] * (table.ndim - 2))
    below, above = table[row, low], table[row, low + 1]
    return below + fraction * (above - below)


def _hadron_table(pdg: int, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(energies, steps) depth [mm], energy of the step [MeV], dE/dx [MeV/mm], scattering angle [rad]."""
    edges = np.linspace(0, 1, steps + 1)
    length = track_range(_HADRON_ENERGIES, np.full(len(_HADRON_ENERGIES), pdg))
    left = energy_of_range(length[:, None] * (1 - edges), pdg)
    loss = -np.diff(left)
    rate = loss / np.maximum(length[:, None] / steps, 1e-6)
    depth = length[:, None] * (edges[1:] + edges[:-1]) / 2
    momentum, beta = _motion(np.maximum((left[:, 1:] + left[:, :-1]) / 2, 0.05), pdg)
    return depth, loss, rate, np.minimum(_highland(momentum, beta, length[:, None] / steps), 0.3)


def _motion(ke: np.ndarray, pdg: int) -> tuple[np.ndarray, np.ndarray]:
    """Momentum [MeV] and velocity [c]."""
    total = ke + MASSES[pdg]
    momentum = np.sqrt(ke * (ke + 2 * MASSES[pdg]))
    return momentum, momentum / total


def _highland(momentum: np.ndarray, beta: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Scattering angle in a plane [rad], without the logarithm, which holds for a whole track and not for its steps."""
    return 13.6 / (momentum * beta) * np.sqrt(length / _RADIATION_LENGTH)
