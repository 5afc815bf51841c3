"""Hadrons as the decomposer is told of them: species and units, their order, a prefix as it would name it itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

SPECIES = (2212, 1000010020, 1000010030)
"""PDG codes that a hadron can get: p, d, t."""

ENERGY = 20.0
"""Unit of energy inside the network [MeV]."""

MAX_HADRONS = 6
"""Steps of the decoder."""

HADRON_FEATURES = 4 + len(SPECIES)


@dataclass(frozen=True)
class Hadrons:
    """True hadrons, padded; in the detector's frame."""

    ke: Tensor  # (V, S) [MeV]
    direction: Tensor  # (V, S, 3)
    species: Tensor  # (V, S) int64, index in SPECIES
    count: Tensor  # (V,) int64
    share: Tensor  # (N, S) share of each hadron in the light of each voxel of the crops


@dataclass(frozen=True)
class Decomposition:
    """What the decomposer found, in the detector's frame; hadrons sorted by crop and then as they were named."""

    vertex: Tensor  # (V, 3) relative to the centre of the crop [voxels]
    vertex_err: Tensor  # (V, 3) [voxels]
    vertex_cov: Tensor  # (V, 3, 3) covariance [voxels^2]: the light tells least about the vertex along its track
    total: Tensor  # (V,) kinetic energy of all hadrons together: seen at once, better known than its parts [MeV]
    total_err: Tensor  # (V,) [MeV]
    number_prob: Tensor  # (V, S + 1) probability of each number of hadrons
    crop: Tensor  # (H,) int64
    step: Tensor  # (H,) int64, place in the order of its crop
    species: Tensor  # (H,) int64, index in SPECIES
    species_prob: Tensor  # (H, len(SPECIES)) probability of each, mean over the drawn sequences
    score: Tensor  # (H,) probability that this hadron exists
    ke: Tensor  # (H,) [MeV]
    ke_err: Tensor  # (H,) [MeV]
    direction: Tensor  # (H, 3)
    dir_err: Tensor  # (H,) per transverse axis [rad]
    share: Tensor  # (N, S) share of each step's hadron in the light of each voxel of the crops


def name_hadrons(direction: Tensor, ke: Tensor, species: Tensor) -> Tensor:
    """(..., HADRON_FEATURES) what the decoder is told about a named hadron; ke in MeV."""
    return torch.cat([direction, ke[..., None] / ENERGY, one_hot(species, len(SPECIES)).float()], -1)


def in_order(hadrons: Hadrons, crop: Tensor, generator: torch.Generator) -> Hadrons:
    """Hadrons in descending energy, where energies within some 2 MeV of each other may change places."""
    moved = hadrons.ke + 1.5 * torch.randn(hadrons.ke.shape, generator=generator)
    moved = moved.masked_fill(torch.arange(MAX_HADRONS) >= hadrons.count[:, None], -math.inf)
    order = moved.argsort(dim=1, descending=True, stable=True)
    ke, species = hadrons.ke.gather(1, order), hadrons.species.gather(1, order)
    direction = hadrons.direction.gather(1, order[:, :, None].expand(-1, -1, 3))
    return Hadrons(ke, direction, species, hadrons.count, hadrons.share.gather(1, order[crop]))


def blurred(direction: Tensor, ke: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The prefix as the decoder would have named it itself: short tracks point badly."""
    size = 1.5 * torch.rand(*ke.shape, generator=generator)
    angle = size * (0.08 + 0.5 * torch.exp(-ke / 12))
    turned = normalize(direction + angle[..., None] * torch.randn(direction.shape, generator=generator), dim=-1)
    return turned, (ke + 1.5 * size * torch.randn(ke.shape, generator=generator)).clamp(min=0)
