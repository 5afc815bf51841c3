"""What trains the generator: images of single particles from Geant4, and a critic that tells generated ones from them.

The objective is the Wasserstein distance with gradient penalty (arXiv 1704.00028). Critic and generator share one loss
and one optimiser step: the gradient changes its sign on its way from the critic to the generated image. Both kinds of
images get photo-statistics before the critic sees them: what no detector could tell apart is not worth learning.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sparsereco import ops
from sparsereco.detector import Detector
from sparsereco.geometry import across
from sparsereco.sim.compose import Particles, TrackBank, deposits, random_rotations
from sparsereco.sim.response import quenched
from sparsereco.vertex.crop import HALF
from sparsereco.vertex.generator import GENERATED, Generator, GeneratorConfig
from sparsereco.voxels import offsets_of

SIDE = 2 * HALF + 1

HARD = 0.002
"""Softness of the edges of voxels that is as good as none [voxels]."""

_SOFT = 0.05
"""Softness of the edges of voxels in training, for both kinds of images: gradients need edges [voxels]."""

_SHARES = (0.4, 0.15, 0.15, 0.3)  # of the species in a batch
_REACH = 90.0  # as far as a crop goes from any point of its central voxel [mm]


@dataclass(frozen=True)
class ImageStream:
    """Images that the generator is trained on: one particle each, at random in the central voxel of a crop."""

    bank: str = "banks/vertex.npz"
    """File of `tools/simulate.py bank`."""
    detector: Detector = field(default_factory=Detector)


@dataclass(frozen=True)
class Singles:
    """P particles and their images; positions in voxels from the corner of the crop."""

    species: Tensor  # (P,) int64, index in GENERATED
    ke: Tensor  # (P,) [MeV]
    direction: Tensor  # (P, 3)
    start: Tensor  # (P, 3) [voxels]
    image: Tensor  # (P, SIDE, SIDE, SIDE) expected light [p.e.]


def draw_singles(
    stream: ImageStream, bank: TrackBank, species: Tensor, generator: torch.Generator, softness: float = HARD
) -> Singles:
    """Particles of Geant4 of the species asked for, (P,) index in `GENERATED`, with the light that they leave."""
    n, pitch, response = len(species), stream.detector.pitch, stream.detector.response
    pdg = torch.tensor(GENERATED)[species]
    track = bank.sample(pdg, generator)
    start = HALF + torch.rand(n, 3, generator=generator)
    rotation = random_rotations(n, generator)
    particles = Particles(torch.arange(n), track, pdg, bank.ke[track], rotation, start * pitch)
    made, owner = deposits(bank, particles, n, _REACH)
    light = response.light_yield * quenched(made.energy, made.dedx, response.birks)
    offsets = offsets_of(torch.bincount(owner, minlength=n))
    image, _ = ops.soft_voxelize(made.position / pitch, light, offsets, softness=softness, shape=(SIDE,) * 3)
    return Singles(species, particles.ke, particles.direction, start, image)


def generate(
    model: Generator, like: Singles, detector: Detector, generator: torch.Generator, softness: float = HARD
) -> Tensor:
    """Images (P, SIDE, SIDE, SIDE) of the same particles by the generator [p.e.]; differentiable."""
    image = torch.zeros_like(like.image)
    table = model.hadrons.table()
    muon = like.species == len(GENERATED) - 1
    for rows in ((~muon).nonzero()[:, 0], muon.nonzero()[:, 0]):
        if not len(rows):
            continue
        species, ke = like.species[rows], like.ke[rows]
        noise = model.noise(int(species[0]), len(rows), generator)
        shower = model.muons(ke, noise) if muon[rows[0]] else model.hadrons(species, ke, noise, table)
        pitch, response = detector.pitch, detector.response
        shower = shower.placed(like.direction[rows], like.start[rows] * pitch)
        offsets = torch.arange(len(rows) + 1) * shower.energy.shape[1]
        part, _ = ops.soft_voxelize(
            (shower.position / pitch).flatten(0, 1),
            shower.light(response.light_yield, response.birks).flatten(),
            offsets,
            softness=softness,
            shape=(SIDE,) * 3,
        )
        image = image.index_copy(0, rows, part)
    return image


class Critic(nn.Module):
    """Scores sparse images of single particles: every lit voxel as seen from the particle, summed in two rounds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.voxel = nn.Sequential(nn.Linear(13, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.condition = nn.Sequential(nn.Linear(len(GENERATED) + 1, width), nn.SiLU(), nn.Linear(width, width))
        self.second = nn.Sequential(nn.Linear(3 * width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.score = nn.Sequential(nn.Linear(3 * width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, amplitude: Tensor, owner: Tensor, place: Tensor, about: Singles) -> Tensor:
        """(P,) scores.

        Args:
            amplitude: (M,) square root of the light of each voxel; voxels without light do not count.
            owner: (M,) particle of each voxel; place: (M, 3) its index in the crop.
            about: the particles.
        """
        n = len(about.ke)
        kind = torch.eye(len(GENERATED))[about.species]
        condition = self.condition(torch.cat([kind, (about.ke[:, None] + 3).log() - 4], 1))
        arm = place + 0.5 - about.start[owner]
        direction = about.direction[owner]
        u, v = across(direction)
        sides = torch.stack([(arm * axis).sum(1) for axis in (direction, u, v)], 1)
        offset = about.start[owner] - HALF - 0.5
        light = amplitude[:, None]
        seen = torch.cat([light / 15, light.square() / 500, arm / 3, sides / 3, direction, offset[:, :2]], 1)
        weight = torch.tanh(light / 2)
        first = self.voxel(seen)
        once = torch.zeros(n, first.shape[1]).index_add(0, owner, weight * first) / 4
        again = self.second(torch.cat([first, once[owner], condition[owner]], 1))
        twice = torch.zeros(n, again.shape[1]).index_add(0, owner, weight * again) / 4
        return self.score(torch.cat([once, twice, condition], 1))[:, 0]


class Adversaries(nn.Module):
    """Generator and critic, trained as one."""

    def __init__(self, settings: GeneratorConfig, critic_width: int) -> None:
        super().__init__()
        self.settings = settings
        self.generator = Generator(settings)
        self.critic = Critic(critic_width)

    def losses(
        self, stream: ImageStream, bank: TrackBank, n: int, penalty: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The critic's loss on n fresh images of each kind, which the generator ascends."""
        species = torch.multinomial(torch.tensor(_SHARES), n, replacement=True, generator=generator)
        real = draw_singles(stream, bank, species, generator, _SOFT)
        made = _Reversed.apply(generate(self.generator, real, stream.detector, generator, _SOFT))
        lit = ((real.image > 0) | (made.detach() > 0)).nonzero()
        owner, place = lit[:, 0], lit[:, 1:]
        true, false = (_photons(image[tuple(lit.T)], generator) for image in (real.image, made))
        mixed = torch.rand(n, generator=generator)[owner]
        between = (mixed * true + (1 - mixed) * false.detach()).requires_grad_()
        scores = self.critic(between, owner, place, real)
        (slope,) = torch.autograd.grad(scores.sum(), between, create_graph=True)
        steepness = (torch.zeros(n).index_add(0, owner, slope.square()) + 1e-12).sqrt()
        distance = self.critic(true, owner, place, real) - self.critic(false, owner, place, real)
        return {"critic": -distance.mean(), "penalty": penalty * (steepness - 1).square().mean()}


def _photons(light: Tensor, generator: torch.Generator) -> Tensor:
    """Amplitudes of measured light: the square root has the same photo-statistics, 1/2, whatever the light."""
    noise = torch.randn(light.shape, generator=generator)
    return ((light + 0.25).sqrt() - 0.5 + 0.5 * noise * torch.tanh(light.detach())).clamp(min=0)


class _Reversed(torch.autograd.Function):
    """The identity, against whose gradient is descended."""

    @staticmethod
    def forward(ctx: object, image: Tensor) -> Tensor:
        return image.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return -gradient
