"""The decomposer: a transformer that takes a crop apart into its vertex and its hadrons.

Every crop is turned by one of the 48 symmetries of the voxel grid so that its longest leaving track points into one
wedge of the sphere: the network learns one forty-eighth of the problem. The encoder first estimates the vertex, then
sees every voxel relative to it. The decoder names hadrons one by one in descending energy; each step is a mixture
density over energy and direction, so hadrons of near-equal energy may come in either order, and every error is a
predicted one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize, softplus

from sparsereco.nn.attention import DecoderBlock, EncoderBlock, Ragged
from sparsereco.vertex.crop import HALF, Crops
from sparsereco.vertex.densities import LAPLACE_68, Steps, half_width, laplace, log_density, number_probability
from sparsereco.vertex.features import (
    RELATIVE_FEATURES,
    TRACK_FEATURES,
    VOXEL_FEATURES,
    leading_line,
    relative_features,
    track_features,
    turned,
    voxel_features,
)

SPECIES = (2212, 1000010020, 1000010030)
"""PDG codes that a hadron can get: p, d, t."""

ENERGY = 20.0
"""Unit of energy inside the network [MeV]."""

MAX_HADRONS = 6
"""Steps of the decoder."""

_MODES = 4


@dataclass(frozen=True)
class DecomposerConfig:
    """What the decomposer's network looks like."""

    width: int = 112
    """Features of a token."""
    heads: int = 4
    first_blocks: int = 2
    """Encoder blocks before the vertex is estimated."""
    second_blocks: int = 3
    """Encoder blocks that see voxels relative to the estimate."""
    decoder_blocks: int = 3
    context: int = 16
    """Features of the finder's embedding of a voxel."""


Remembered = tuple[list[tuple[Tensor, Tensor]], Tensor]
"""What `Decomposer.decode` needs of a crop at every step."""


@dataclass(frozen=True)
class Encoded:
    """What the decoder works from, in the turned frame."""

    memory: Tensor  # (T, width)
    ragged: Ragged
    is_voxel: Tensor  # (T,) bool
    vertex: Tensor  # (V, 3) relative to the centre of the crop [voxels]
    vertex_scale: Tensor  # (V, 3) Laplace scale [voxels]
    first_vertex: Tensor  # (V, 3) the estimate after the first blocks
    first_scale: Tensor  # (V, 3)
    total: Tensor  # (V,) kinetic energy of all hadrons together [units of ENERGY]
    total_scale: Tensor  # (V,) Laplace scale [units of ENERGY]
    number: Tensor  # (V, MAX_HADRONS + 1) logits of the number of hadrons
    turn: Tensor  # (V, 3, 3) from the detector's frame to the turned one


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
    crop: Tensor  # (H,) int64
    step: Tensor  # (H,) int64, place in the order of its crop
    species: Tensor  # (H,) int64, index in SPECIES
    score: Tensor  # (H,) probability that this hadron exists
    ke: Tensor  # (H,) [MeV]
    ke_err: Tensor  # (H,) [MeV]
    direction: Tensor  # (H, 3)
    dir_err: Tensor  # (H,) per transverse axis [rad]
    share: Tensor  # (N, S) share of each step's hadron in the light of each voxel of the crops


class Decomposer(nn.Module):
    """Crops to vertices and hadrons."""

    vertex_calibration: Tensor
    ke_calibration: Tensor
    dir_calibration: Tensor

    def __init__(self, settings: DecomposerConfig) -> None:
        super().__init__()
        self.settings = settings
        width, heads = settings.width, settings.heads
        self.axes = nn.Embedding(3 * (2 * HALF + 1), width)
        self.voxel = nn.Sequential(
            nn.Linear(VOXEL_FEATURES + settings.context, width), nn.GELU(), nn.Linear(width, width)
        )
        self.track = nn.Sequential(nn.Linear(TRACK_FEATURES, width), nn.GELU(), nn.Linear(width, width))
        self.summary = nn.Parameter(0.02 * torch.randn(width))
        self.first = nn.ModuleList(EncoderBlock(width, heads) for _ in range(settings.first_blocks))
        self.first_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 6))
        self.relative = nn.Sequential(nn.Linear(RELATIVE_FEATURES, width), nn.GELU(), nn.Linear(width, width))
        self.second = nn.ModuleList(EncoderBlock(width, heads) for _ in range(settings.second_blocks))
        self.vertex_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 6))
        self.start = nn.Parameter(0.02 * torch.randn(width))
        self.place = nn.Parameter(0.02 * torch.randn(MAX_HADRONS + 1, width))
        self.hadron = nn.Sequential(nn.Linear(4 + len(SPECIES), width), nn.GELU(), nn.Linear(width, width))
        self.decoder = nn.ModuleList(DecoderBlock(width, heads) for _ in range(settings.decoder_blocks))
        self.step_head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 7 * _MODES + len(SPECIES) + 1)
        )
        self.share_query, self.share_key = nn.Linear(width, 32), nn.Linear(width, 32)
        self.total_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 2))
        self.number_head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, MAX_HADRONS + 1)
        )
        # Predicted errors are multiplied by these, so that 68 % intervals hold 68 % on held-out events.
        self.register_buffer("vertex_calibration", torch.ones(()))
        self.register_buffer("ke_calibration", torch.ones(()))
        self.register_buffer("dir_calibration", torch.ones(()))

    def encode(self, crops: Crops) -> Encoded:
        """Encodes crops; every crop has at least its summary token, so an empty one is valid."""
        turn, line = leading_line(crops)
        place = turned(crops.place.float(), turn[crops.crop])
        axes = self.axes(place.long() + HALF + (2 * HALF + 1) * torch.arange(3)).sum(1)
        voxels = axes + self.voxel(torch.cat([voxel_features(crops, place, line), crops.context], 1))
        tracks = self.track(track_features(crops.tracks, turn))
        summary = self.summary.expand(len(crops), -1)
        owner = torch.cat([torch.arange(len(crops)), crops.tracks.crop, crops.crop])
        order = torch.argsort(owner, stable=True)
        ragged = Ragged.of(torch.bincount(owner, minlength=len(crops)))
        x = torch.cat([summary, tracks, voxels])[order]

        for block in self.first:
            x = block(x, ragged)
        is_summary = ragged.slot == 0
        first, first_scale = _vertex(self.first_head(x[is_summary]), line.nearest)
        is_voxel = order >= len(crops) + len(crops.tracks)
        seen = self.relative(relative_features(crops, place, first.detach(), first_scale.detach(), line))
        x = x + torch.zeros_like(x).index_put((is_voxel.nonzero()[:, 0],), seen.to(x.dtype))
        for block in self.second:
            x = block(x, ragged)
        vertex, scale = _vertex(self.vertex_head(x[is_summary]), first.detach())
        total, number = self.total_head(x[is_summary]), self.number_head(x[is_summary])
        total, total_scale = total[:, 0] + 4, softplus(total[:, 1]) + 0.005
        return Encoded(x, ragged, is_voxel, vertex, scale, first, first_scale, total, total_scale, number.float(), turn)

    def remember(self, encoded: Encoded) -> Remembered:
        """Keys and values of each decoder block and of the shares: once per crop, whatever the steps."""
        decoder = cast(Iterable[DecoderBlock], self.decoder)
        blocks = [block.remember(encoded.memory, encoded.ragged) for block in decoder]
        return blocks, encoded.ragged.pad(self.share_key(encoded.memory))

    def decode(self, encoded: Encoded, named: Tensor, remembered: Remembered) -> Steps:
        """Densities of the next hadron after each prefix.

        Args:
            encoded: the crops; remembered: of the same, from `remember`.
            named: (V, S, 4 + len(SPECIES)) the hadrons before, from `_name`; the density of step s depends on the
                first s.
        """
        first = (self.start + encoded.memory[encoded.ragged.slot == 0])[:, None]
        x = torch.cat([first, self.hadron(named)], 1) + self.place[: named.shape[1] + 1]
        blocks, keys = remembered
        for block, kept in zip(self.decoder, blocks, strict=True):
            x = block(x, kept, encoded.ragged.mask)
        share = torch.einsum("vsc,vlc->vsl", self.share_query(x), keys) / keys.shape[-1] ** 0.5
        out = self.step_head(x).float()
        modes, rest = out[..., : 7 * _MODES].unflatten(-1, (_MODES, 7)), out[..., 7 * _MODES :]
        return Steps(
            weight=modes[..., 0].log_softmax(-1),
            direction=normalize(modes[..., 1:4], dim=-1),
            kappa=softplus(modes[..., 4] + 1) + 0.05,
            ke=modes[..., 5] + 1,
            ke_scale=softplus(modes[..., 6]) + 0.005,
            species=rest[..., : len(SPECIES)],
            more=rest[..., len(SPECIES)],
            share=share.float(),
        )

    def loss(self, crops: Crops, vertex: Tensor, hadrons: Hadrons, generator: torch.Generator) -> dict[str, Tensor]:
        """Negative log-likelihoods of the truth.

        Args:
            vertex: (V, 3) true vertex relative to the centre of the crop [voxels].
            hadrons: true hadrons in any order.
            generator: of the noise on order and prefix, which prepares the decoder for its own errors.
        """
        encoded = self.encode(crops)
        where = turned(vertex, encoded.turn)
        hadrons = _in_order(hadrons, crops.crop, generator)
        direction = torch.einsum("vij,vsj->vsi", encoded.turn, hadrons.direction)
        named = _name(*_blurred(direction, hadrons.ke, generator), hadrons.species)
        steps = self.decode(encoded, named, self.remember(encoded))

        exists = torch.arange(MAX_HADRONS) < hadrons.count[:, None]  # (V, S)
        asked = torch.arange(MAX_HADRONS + 1) <= hadrons.count[:, None]  # (V, S + 1): the step after the last says stop
        more = binary_cross_entropy_with_logits(
            steps.more, torch.nn.functional.pad(exists, (0, 1)).float(), reduction="none"
        )
        kinematics = -log_density(steps, direction, hadrons.ke / ENERGY)[exists]
        species = cross_entropy(steps.species[:, :-1][exists], hadrons.species[exists], reduction="none")
        n = max(len(crops), 1)
        return {
            "vertex": 2 * laplace(where, encoded.vertex, encoded.vertex_scale).sum() / n,
            "first": 0.6 * laplace(where, encoded.first_vertex, encoded.first_scale).sum() / n,
            "total": laplace(hadrons.ke.sum(1) / ENERGY, encoded.total, encoded.total_scale).sum() / n,
            "number": cross_entropy(encoded.number, hadrons.count, reduction="sum") / n,
            "more": more[asked].sum() / n,
            "kinematics": kinematics.sum() / n,
            "species": species.sum() / n,
            "share": 2 * _share_loss(steps, encoded, crops, hadrons, exists),
        }

    @torch.inference_mode()
    def forward(self, crops: Crops, max_hadrons: int = MAX_HADRONS) -> Decomposition:
        """Takes crops apart: at each step the likeliest mode, and as many hadrons as is likeliest in all.

        Stopping at the first step that is less likely than not would often miss the likeliest number.
        """
        encoded = self.encode(crops)
        n = len(crops)
        named = torch.zeros(n, 0, 4 + len(SPECIES))
        remembered = self.remember(encoded)
        found = []
        for _ in range(max_hadrons):
            steps = self.decode(encoded, named, remembered)
            mode = steps.weight[:, -1].argmax(-1)
            direction, kappa, ke = (
                value[torch.arange(n), -1, mode] for value in (steps.direction, steps.kappa, steps.ke)
            )
            ke, species = ke.clamp(min=0), steps.species[:, -1].argmax(-1)
            scale = half_width(ke, steps.weight[:, -1].exp(), steps.ke[:, -1], steps.ke_scale[:, -1])
            share = encoded.ragged.pack(steps.share[:, -1])[encoded.is_voxel].sigmoid()
            found.append((species, steps.more[:, -1].sigmoid(), ke, scale, direction, kappa, share))
            named = torch.cat([named, _name(direction, ke * ENERGY, species)[:, None]], 1)
        species, more, ke, scale, direction, kappa, share = (
            torch.stack(parts, 1) for parts in zip(*found, strict=True)
        )
        number = number_probability(more, encoded.number)
        score = number.flip(1).cumsum(1).flip(1)[:, 1:]  # (V, S) probability of at least 1, 2, ... hadrons
        going = torch.arange(max_hadrons) < number.argmax(1)[:, None]
        ke = _reconciled(ke, scale, going, encoded)
        crop, step = going.nonzero(as_tuple=True)
        back = encoded.turn.mT
        share = share * going[crops.crop]
        return Decomposition(
            vertex=turned(encoded.vertex, back),
            vertex_err=self.vertex_calibration * LAPLACE_68 * turned(encoded.vertex_scale, back.abs()),
            crop=crop,
            step=step,
            species=species[going],
            score=score[going],
            ke=ke[going] * ENERGY,
            ke_err=self.ke_calibration * scale[going] * ENERGY,
            direction=turned(direction[going], back[crop]),
            dir_err=self.dir_calibration / kappa[going].sqrt(),
            share=share / share.sum(1, keepdim=True).clamp(min=1.0),
        )


def _vertex(out: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Position and Laplace scale [voxels] from a head's (V, 6)."""
    out = out.float()
    return start + out[:, :3], softplus(out[:, 3:] - 1) + 0.005


def _name(direction: Tensor, ke: Tensor, species: Tensor) -> Tensor:
    """(..., 4 + len(SPECIES)) what the decoder is told about a named hadron; ke in MeV."""
    return torch.cat([direction, ke[..., None] / ENERGY, nn.functional.one_hot(species, len(SPECIES)).float()], -1)


def _in_order(hadrons: Hadrons, crop: Tensor, generator: torch.Generator) -> Hadrons:
    """Hadrons in descending energy, where energies within some 2 MeV of each other may change places."""
    blurred = hadrons.ke + 1.5 * torch.randn(hadrons.ke.shape, generator=generator)
    blurred = blurred.masked_fill(torch.arange(MAX_HADRONS) >= hadrons.count[:, None], -math.inf)
    order = blurred.argsort(dim=1, descending=True, stable=True)
    ke, species = hadrons.ke.gather(1, order), hadrons.species.gather(1, order)
    direction = hadrons.direction.gather(1, order[:, :, None].expand(-1, -1, 3))
    return Hadrons(ke, direction, species, hadrons.count, hadrons.share.gather(1, order[crop]))


def _reconciled(ke: Tensor, scale: Tensor, going: Tensor, encoded: Encoded) -> Tensor:
    """Energies (V, S) moved, each by its own uncertainty, so that their sum agrees with the total that is seen at once.

    The total is known better than the sum of the parts: a hadron that takes too much leaves too little to another.
    """
    variance = scale.square() * going
    excess = encoded.total - (ke * going).sum(1)
    share = variance / variance.sum(1, keepdim=True).clamp(min=1e-9)
    return (ke + share * excess[:, None]).clamp(min=0)


def _blurred(direction: Tensor, ke: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The prefix as the decoder would have named it itself: short tracks point badly."""
    size = 1.5 * torch.rand(*ke.shape, generator=generator)
    angle = size * (0.08 + 0.5 * torch.exp(-ke / 12))
    turned = normalize(direction + angle[..., None] * torch.randn(direction.shape, generator=generator), dim=-1)
    return turned, (ke + 1.5 * size * torch.randn(ke.shape, generator=generator)).clamp(min=0)


def _share_loss(steps: Steps, encoded: Encoded, crops: Crops, hadrons: Hadrons, exists: Tensor) -> Tensor:
    """Cross-entropy of each hadron's share in each voxel, mean over the crops; bright voxels count more."""
    share = encoded.ragged.pack(steps.share[:, :-1].transpose(1, 2))[encoded.is_voxel]
    weight = crops.signal.sqrt()
    total = torch.zeros(len(crops)).index_add(0, crops.crop, weight).clamp(min=1)
    losses = binary_cross_entropy_with_logits(share, hadrons.share, reduction="none") * exists[crops.crop]
    return (losses.sum(1) * weight / total[crops.crop]).sum() / max(len(crops), 1)
