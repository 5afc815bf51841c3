"""Events drawn from the model of the refinement, for its tests and those of the limit."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from sparsereco.detector import Response
from sparsereco.geometry import across
from sparsereco.vertex.config import RefinementSettings
from sparsereco.vertex.crop import HALF, Crops, Tracks
from sparsereco.vertex.expected import SIDE, ExpectedLight
from sparsereco.vertex.generator import Generator, GeneratorConfig
from sparsereco.vertex.hadrons import MAX_HADRONS, Decomposition
from sparsereco.vertex.likelihood import DELTA_LIGHT, DELTA_RATE, TRACK_LIGHT, variance
from sparsereco.vertex.refine import Refiner

VOXELS = SIDE**3
PITCH = 10.0


def refiner(starts: int = 4, steps: int = 8, response: Response | None = None) -> Refiner:
    return Refiner(
        Generator(GeneratorConfig()), response or Response(), PITCH, RefinementSettings(starts=starts, steps=steps)
    )


class Truth:
    """Events drawn from the model: one leaving muon and up to ``most`` protons of 15 to 55 MeV.

    Given ``energies`` [MeV], there are protons of just these, and each is ``apart`` [rad] from the one before.
    """

    def __init__(
        self,
        n: int,
        seed: int,
        most: int = 3,
        track: bool = True,
        noise: bool = False,
        energies: tuple[float, ...] = (),
        apart: float = 2.0,
    ) -> None:
        random = torch.Generator().manual_seed(seed)
        expected = ExpectedLight(Generator(GeneratorConfig()), Response(), PITCH)
        self.count = torch.randint(1, most + 1, (n,), generator=random)
        if energies:
            self.count = torch.full((n,), len(energies))
        self.vertex = torch.rand(n, 3, generator=random) - 0.5
        self.crop = torch.repeat_interleave(torch.arange(n), self.count)
        self.step = torch.cat([torch.arange(int(k)) for k in self.count])
        h = len(self.crop)
        self.ke = 15 + 40 * torch.rand(h, generator=random)
        self.direction = normalize(torch.randn(h, 3, generator=random), dim=1)
        self.muon = normalize(torch.randn(n, 3, generator=random), dim=1)
        if energies:
            self._set(energies, apart)
        with torch.no_grad():
            latent = torch.randn(h, 3, generator=random) if noise else torch.zeros(h, 3)
            species = torch.zeros(h, dtype=torch.int64)
            position, charge = expected.deposits(self.vertex[self.crop], species, self.ke, self.direction, latent)
            offsets = torch.cat([torch.zeros(1, dtype=torch.int64), self.count.cumsum(0)]) * charge.shape[1]
            hadrons, wide = (expected.image(position, charge, offsets, softness) for softness in (0.05, 0.15))
            nearest = self.vertex - (self.vertex * self.muon).sum(1, keepdim=True) * self.muon
            path = expected.paths(self.vertex, nearest + 6.1 * self.muon) * track
        core = variance(hadrons, wide, TRACK_LIGHT[0] * path, 1.0)
        self.signal = hadrons + TRACK_LIGHT[0] * path
        if noise:
            ray = torch.rand(n, VOXELS, generator=random) < (DELTA_RATE * path).clamp(max=0.7)
            light = -DELTA_LIGHT * torch.rand(n, VOXELS, generator=random).log()
            lit = self.signal > 1
            blurred = self.signal + core.sqrt() * torch.randn(n, VOXELS, generator=random)
            self.signal = torch.where(lit, blurred.clamp(min=0), 0.0) + ray * light
        point = nearest + (HALF + 0.5) * self.muon
        owner = torch.arange(n) if track else torch.zeros(0, dtype=torch.int64)
        ones, error = torch.ones(len(owner)), torch.full((len(owner), 3), 0.1)
        tracks = Tracks(owner, point[owner], self.muon[owner], ones, ones, 160 * ones, ones, error)
        self.crops = crops_of(self.signal, tracks)

    def _set(self, energies: tuple[float, ...], apart: float) -> None:
        """Protons of these energies in a plane at right angles to the muon, so that none is hidden in its light."""
        turn = apart * self.step[:, None]
        u, v = (side[self.crop] for side in across(self.muon))
        self.ke = torch.tensor(energies)[self.step]
        self.direction = turn.cos() * u + turn.sin() * v

    def found(self, seed: int = 0, off: float = 1.0) -> Decomposition:
        """A decomposition that is off by a normal amount, of which it knows the size."""
        random = torch.Generator().manual_seed(seed)
        n, h = len(self.vertex), len(self.crop)
        spread = torch.full((n, 3), 0.15)
        shift = off * torch.randn(h, 4, generator=random)
        direction = normalize(self.direction + 0.2 * shift[:, :3], dim=1)
        return Decomposition(
            vertex=self.vertex + off * spread * torch.randn(n, 3, generator=random),
            vertex_err=spread,
            vertex_cov=torch.diag_embed(spread.square()),
            total=torch.zeros(n).index_add(0, self.crop, self.ke),
            total_err=torch.full((n,), 3.0),
            number_prob=one_hot(self.count, MAX_HADRONS + 1).float(),
            crop=self.crop,
            step=self.step,
            species=torch.zeros(h, dtype=torch.int64),
            species_prob=torch.tensor([1.0, 0.0, 0.0]).expand(h, 3),
            score=torch.ones(h),
            ke=self.ke + 3 * shift[:, 3],
            ke_err=torch.full((h,), 3.0),
            direction=direction,
            dir_err=torch.full((h,), 0.2),
            share=torch.zeros(len(self.crops.place), MAX_HADRONS),
        )


def crops_of(signal: Tensor, tracks: Tracks) -> Crops:
    crop, voxel = (signal > 1).nonzero(as_tuple=True)
    place = torch.stack([voxel // SIDE**2, voxel // SIDE % SIDE, voxel % SIDE], 1) - HALF
    return Crops(
        place, signal[crop, voxel], torch.zeros(len(crop), 0), crop, torch.zeros(len(signal), 3).long(), tracks
    )
