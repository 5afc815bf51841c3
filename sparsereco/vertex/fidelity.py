"""How like those of Geant4 are images of single particles? Summaries of images, distances, and a check of gradients.

Images are compared as a detector would see them: whole photo-electrons, the same photo-statistics for all. The tracks
of the bank are split in two halves that share none, so that no comparison profits from a track that occurs twice.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.stats import wasserstein_distance
from torch import Tensor

from sparsereco import ops
from sparsereco.detector import Detector
from sparsereco.kinematics import MUON, energy_of_range, track_range
from sparsereco.sim.compose import TrackBank
from sparsereco.vertex.adversary import SIDE, ImageStream, Singles, draw_singles, generate
from sparsereco.vertex.crop import HALF
from sparsereco.vertex.generator import GENERATED, Generator

ENERGY_EDGES = {code: (300, 533, 767, 1000) if code == MUON else (0, 20, 40, 60) for code in GENERATED}
"""Edges of the bins of kinetic energy, by PDG code [MeV]."""

EDGES_IN_USE = 0.02
"""Softness of the edges of voxels at which the gradients of a fit are checked [voxels]."""

_STEPS = 100  # of a straight track
_OFF_AXIS = 0.87  # as far as the centre of a voxel can be from a line through the voxel [voxels]

Source = Callable[[Singles, torch.Generator], Tensor]
"""Measured images (P, S, S, S) of the particles given, whole photo-electrons; S is `SIDE`, or less in its middle."""


@dataclass(frozen=True)
class Images:
    """Measured images and the particles that they are of; positions in voxels from the corner of the image."""

    measured: Tensor  # (P, S, S, S) [p.e.]
    ke: Tensor  # (P,) [MeV]
    start: Tensor  # (P, 3) [voxels]
    direction: Tensor  # (P, 3)
    straight: Tensor  # (P, S, S, S) light that a straight track would leave, by the Bethe equation [p.e.]

    def __len__(self) -> int:
        return len(self.ke)

    @classmethod
    def of(cls, measured: Tensor, about: Singles, detector: Detector) -> Images:
        """Measured images (P, S, S, S) of particles of one species; those smaller than a crop show its middle."""
        margin = (SIDE - measured.shape[1]) // 2
        light = middle(straight(about, detector), margin)
        return cls(measured, about.ke, about.start - margin, about.direction, light)


def middle(image: Tensor, margin: int) -> Tensor:
    """Images (P, S, S, S) without ``margin`` voxels on each side."""
    inner = slice(margin, image.shape[1] - margin)
    return image[:, inner, inner, inner]


def straight(about: Singles, detector: Detector) -> Tensor:
    """Light (P, S, S, S) of straight tracks without straggling, of one species [p.e.]."""
    n, pdg, ke = len(about.ke), GENERATED[int(about.species[0])], about.ke.numpy()
    length = track_range(ke, np.array(pdg))
    followed = np.minimum(length, 2 * SIDE * detector.pitch)
    edges = followed[:, None] * np.linspace(0, 1, _STEPS + 1)
    loss = -np.diff(energy_of_range(length[:, None] - edges, pdg))
    rate = loss / np.maximum(np.diff(edges), 1e-6)
    light = detector.response.light_yield * loss / (1 + detector.response.birks * rate)
    depth = torch.from_numpy(edges[:, 1:] + edges[:, :-1]).float() / (2 * detector.pitch)
    position = about.start[:, None] + depth[..., None] * about.direction[:, None]
    offsets = torch.arange(n + 1) * _STEPS
    charge = torch.from_numpy(light).float().flatten()
    image, _ = ops.soft_voxelize(position.flatten(0, 1), charge, offsets, softness=1e-3, shape=(SIDE,) * 3)
    return image


@dataclass(frozen=True)
class Trial:
    """Images to be told apart: ``real`` of Geant4, ``made`` of other particles by the source on trial."""

    real: Images
    made: Images


def halves(bank: TrackBank) -> tuple[TrackBank, TrackBank]:
    """The bank twice, each with every other track of each species."""
    one, other = copy.copy(bank), copy.copy(bank)
    one.species = {code: tracks[::2] for code, tracks in bank.species.items()}
    other.species = {code: tracks[1::2] for code, tracks in bank.species.items()}
    return one, other


def draw_trials(
    sources: Mapping[str, Source], stream: ImageStream, bank: TrackBank, species: Tensor, generator: torch.Generator
) -> dict[str, Trial]:
    """For each source its images of the same particles, against the same images of Geant4 of others.

    Args:
        sources: by name; "Geant4" is added as the first: the answer of a source without fault.
        stream: detector; bank: tracks; species: (P,) index in `GENERATED`.
        generator: of everything random.
    """
    real, like = (draw_singles(stream, bank, species, generator) for _ in range(2))
    truth = torch.poisson(real.image, generator=generator)
    all_sources = {"Geant4": lambda about, random: torch.poisson(about.image, generator=random), **sources}
    trials: dict[str, Trial] = {}
    for name, source in all_sources.items():
        made = source(like, generator)
        same = middle(truth, (SIDE - made.shape[1]) // 2)
        trials[name] = Trial(Images.of(same, real, stream.detector), Images.of(made, like, stream.detector))
    return trials


def generated(model: Generator, detector: Detector, margin: int = 0) -> Source:
    """Images by the generator, without ``margin`` voxels on each side."""

    def source(like: Singles, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            light = generate(model, like, detector, generator)
        return torch.poisson(middle(light, margin), generator=generator)

    return source


class Lookup:
    """The image of the nearest of many particles of Geant4 of one species: the baseline that learns nothing.

    Near in where the track starts and ends, in voxels, and in the logarithm of the energy.
    """

    def __init__(self, library: Singles) -> None:
        self.light = library.image.to(torch.float16)  # a relative error of 1 / 2000, in half the memory
        self.tree = cKDTree(self._place(library))

    @staticmethod
    def _place(particles: Singles) -> np.ndarray:
        code = torch.tensor(GENERATED)[particles.species].numpy()
        length = np.minimum(track_range(particles.ke.numpy(), code) / 10, HALF + 1)
        end = particles.start.numpy() + length[:, None] * particles.direction.numpy()
        return np.concatenate([particles.start.numpy(), end, np.log(particles.ke.numpy() + 3)[:, None]], 1)

    def __call__(self, like: Singles, generator: torch.Generator) -> Tensor:
        """A `Source`."""
        _, nearest = self.tree.query(self._place(like))
        return torch.poisson(self.light[torch.from_numpy(nearest)].float(), generator=generator)


def summaries(images: Images) -> dict[str, np.ndarray]:
    """What there is to say of each image in numbers, (P,) each; the first `COMPARED` are those that are compared.

    Lengths are in voxels, along and across the particle's direction from its start, weighted by the light.
    """
    side = images.measured.shape[1]
    light = images.measured.flatten(1)
    lit = light > 0
    axis = torch.arange(side) + 0.5
    centre = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).view(-1, 3)
    arm = centre - images.start[:, None]
    along = (arm * images.direction[:, None]).sum(-1)
    across = (arm - along[..., None] * images.direction[:, None]).norm(dim=-1)
    total = light.sum(1)
    weight = light / total.clamp(min=1)[:, None]
    mean, mean_across = (weight * along).sum(1), (weight * across).sum(1)
    deviation = along - mean[:, None]
    spread = (weight * deviation.square()).sum(1).sqrt()
    expected = images.straight.flatten(1)
    usual = expected.sum(1).clamp(min=1)
    on_path = expected > 0
    brighter = light - expected
    neighbours = torch.nn.functional.max_pool3d(_without_centre(images.measured > 0), 1)[:, 0].flatten(1)
    brightest = light.topk(6, 1).values
    off_axis = across > _OFF_AXIS
    columns = {
        "voxels": lit.sum(1),
        "charge": total,
        "along, mean": mean,
        "along, spread": spread,
        "across, mean": mean_across,
        "across, spread": (weight * across.square()).sum(1).sqrt(),
        "along, skewness": (weight * deviation**3).sum(1) / spread.clamp(min=0.1) ** 3,
        "farthest along": along.masked_fill(~lit, -1).amax(1),
        "farthest across": across.masked_fill(~lit, -1).amax(1),
        "farthest back": along.masked_fill(~lit, 1).amin(1),
        "charge off the axis": (light * off_axis).sum(1),
        "voxels off the axis": (lit & off_axis).sum(1),
        "charge off the path": (light * ~on_path).sum(1),
        "voxels off the path": (lit & ~on_path).sum(1),
        "dark path": (expected * ~lit).sum(1),
        "voxels of the path": (lit & on_path).sum(1),
        "charge, relative to a straight track": total / usual,
        "length, relative to a straight track": mean / ((expected * along).sum(1) / usual).clamp(min=0.05),
        "deviance from a straight track": (brighter.square() / (expected + 1)).sum(1).log1p(),
        "light moved from a straight track": brighter.abs().sum(1) / usual,
        "lone voxels": (lit & (neighbours == 0)).sum(1),
        "faint voxels": ((light > 0) & (light < 10)).sum(1),
        "charge at the start": light.gather(1, _cell(images.start, side)[:, None])[:, 0],
        **{f"brightest, {i + 1}": brightest[:, i] for i in range(brightest.shape[1])},
    }
    return {name: column.numpy().astype(np.float64) for name, column in columns.items()}


COMPARED = ("voxels", "charge", "along, mean", "along, spread", "across, mean", "across, spread")
"""The summaries whose distributions are compared."""


def _without_centre(lit: Tensor) -> Tensor:
    """(P, 1, S, S, S) number of lit neighbours of each voxel, of 26."""
    kernel = torch.ones(1, 1, 3, 3, 3)
    kernel[..., 1, 1, 1] = 0
    return torch.nn.functional.conv3d(lit[:, None].float(), kernel, padding=1)


def _cell(start: Tensor, side: int) -> Tensor:
    x, y, z = start.long().clamp(0, side - 1).unbind(1)
    return (x * side + y) * side + z


def distances(images: Images, reference: Images, edges: tuple[float, ...]) -> dict[str, np.ndarray]:
    """How far two samples are apart, in bins of energy: (bins,) by quantity.

    The Wasserstein distance of the distributions of each of `COMPARED` and of the light of lit voxels, in units of the
    standard deviation of the reference; and of the occupancy, the summed absolute difference of the shares of images in
    which each voxel is lit, relative to the number of voxels that are lit.
    """
    ours, theirs = summaries(images), summaries(reference)
    rows: dict[str, list[float]] = {name: [] for name in (*COMPARED, "light of a voxel", "occupancy")}
    for low, high in pairwise(edges):
        a, b = (((one.ke >= low) & (one.ke < high)).numpy() for one in (images, reference))
        for name in COMPARED:
            rows[name].append(_distance(ours[name][a], theirs[name][b]))
        seen, known = images.measured[a], reference.measured[b]
        rows["light of a voxel"].append(_distance(seen[seen > 0].numpy(), known[known > 0].numpy()))
        shares, expected = ((one > 0).float().mean(0) for one in (seen, known))
        rows["occupancy"].append(float((shares - expected).abs().sum() / expected.sum()))
    return {name: np.array(row) for name, row in rows.items()}


def _distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(wasserstein_distance(ours, theirs) / max(theirs.std(), 1e-9)) if len(ours) and len(theirs) else np.nan


def gradient_errors(
    model: Generator, species: int, ke: float, generator: torch.Generator, images: int = 128
) -> dict[str, float]:
    """Automatic against numerical gradients of the expected image, relative error by what is varied.

    The expected image is the mean over fixed noise. Its derivatives are compared in eight random projections, as the
    root mean square of the differences over that of the numerical ones.
    """
    pitch, response, side = Detector().pitch, Detector().response, SIDE
    noise = model.noise(species, images, generator)
    weights = torch.randn(8, side**3, generator=generator, dtype=torch.float64)
    offsets = torch.arange(images + 1)
    axis = torch.nn.functional.normalize(torch.randn(3, generator=generator, dtype=torch.float64), dim=0)

    def projections(start: Tensor, direction: Tensor, energy: Tensor) -> Tensor:
        shower = model(species, energy.repeat(images), noise)
        # Positions in double precision: edges are steep.
        double = replace(shower, position=shower.position.double(), energy=shower.energy.double())
        placed = double.placed(
            torch.nn.functional.normalize(direction, dim=0).expand(images, 3), start.expand(images, 3)
        )
        light = placed.light(response.light_yield, response.birks).flatten()
        position = (placed.position / pitch).flatten(0, 1)
        each = offsets * shower.energy.shape[1]
        image, _ = ops.soft_voxelize(position, light, each, softness=EDGES_IN_USE, shape=(side,) * 3)
        return weights @ image.mean(0).flatten()

    point = {
        "vertex": pitch * (HALF + torch.rand(3, generator=generator, dtype=torch.float64)),
        "direction": axis,
        "energy": torch.tensor(ke),
    }
    steps = {"vertex": 1e-3, "direction": 1e-4, "energy": 0.02 if GENERATED[species] != MUON else 2.0}
    errors = {}
    for name, step in steps.items():
        value = point[name].clone().requires_grad_()
        out = projections(**_arguments({**point, name: value}))
        exact = torch.stack([torch.autograd.grad(one, value, retain_graph=True)[0].flatten() for one in out])
        numeric = []
        with torch.no_grad():
            for i in range(value.numel()):
                move = torch.zeros_like(value).flatten()
                move[i] = step
                up, down = (
                    projections(**_arguments({**point, name: value + sign * move.view_as(value)})) for sign in (1, -1)
                )
                numeric.append((up - down) / (2 * step))
        difference = exact.double() - torch.stack(numeric, 1)
        errors[name] = float(difference.norm() / torch.stack(numeric, 1).norm())
    return errors


def _arguments(point: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"start": point["vertex"], "direction": point["direction"], "energy": point["energy"]}
