"""The decomposer: a transformer that takes a crop apart into its vertex and its hadrons.

Every crop is turned by one of the 48 symmetries of the voxel grid so that its longest leaving track points into one
wedge of the sphere: the network learns one forty-eighth of the problem. The encoder first estimates the vertex, then
sees every voxel relative to it. The decoder names hadrons one by one in descending energy; each step is a mixture
density over energy and direction, so hadrons of near-equal energy may come in either order, and every error is a
predicted one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize, softplus

from sparsereco.nn.attention import DecoderBlock, EncoderBlock, Ragged
from sparsereco.vertex.crop import HALF, Crops, Tracks
from sparsereco.vertex.lines import path_in_voxel

SPECIES = (2212, 1000010020, 1000010030)
"""PDG codes that a hadron can get: p, d, t."""

ENERGY = 20.0
"""Unit of energy inside the network [MeV]."""

MAX_HADRONS = 6
"""Steps of the decoder."""

_MODES = 4
_LAPLACE_68 = math.log(1 / 0.32)  # |x| < this many scales in 68 % of a Laplace distribution


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
    turn: Tensor  # (V, 3, 3) from the detector's frame to the turned one


@dataclass(frozen=True)
class Steps:
    """Densities of the decoder's steps, in the turned frame."""

    weight: Tensor  # (V, S, M) log weight of each mode
    direction: Tensor  # (V, S, M, 3) unit vectors
    kappa: Tensor  # (V, S, M) concentration of the direction
    ke: Tensor  # (V, S, M) [units of ENERGY]
    ke_scale: Tensor  # (V, S, M) Laplace scale [units of ENERGY]
    species: Tensor  # (V, S, len(SPECIES)) logits
    more: Tensor  # (V, S) logit that there is another hadron
    share: Tensor  # (V, S, L) logit that the light of a token comes from this hadron


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
            nn.Linear(_VOXEL_FEATURES + settings.context, width), nn.GELU(), nn.Linear(width, width)
        )
        self.track = nn.Sequential(nn.Linear(_TRACK_FEATURES, width), nn.GELU(), nn.Linear(width, width))
        self.summary = nn.Parameter(0.02 * torch.randn(width))
        self.first = nn.ModuleList(EncoderBlock(width, heads) for _ in range(settings.first_blocks))
        self.first_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 6))
        self.relative = nn.Sequential(nn.Linear(_RELATIVE_FEATURES, width), nn.GELU(), nn.Linear(width, width))
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
        # Predicted errors are multiplied by these, so that 68 % intervals hold 68 % on held-out events.
        self.register_buffer("vertex_calibration", torch.ones(()))
        self.register_buffer("ke_calibration", torch.ones(()))
        self.register_buffer("dir_calibration", torch.ones(()))

    def encode(self, crops: Crops) -> Encoded:
        """Encodes crops; every crop has at least its summary token, so an empty one is valid."""
        turn, line = _leading(crops)
        place = _turned(crops.place.float(), turn[crops.crop])
        axes = self.axes(place.long() + HALF + (2 * HALF + 1) * torch.arange(3)).sum(1)
        voxels = axes + self.voxel(torch.cat([_voxel_features(crops, place, line), crops.context], 1))
        tracks = self.track(_track_features(crops.tracks, turn))
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
        seen = self.relative(_relative_features(crops, place, first.detach(), first_scale.detach(), line))
        x = x + torch.zeros_like(x).index_put((is_voxel.nonzero()[:, 0],), seen.to(x.dtype))
        for block in self.second:
            x = block(x, ragged)
        vertex, scale = _vertex(self.vertex_head(x[is_summary]), first.detach())
        return Encoded(x, ragged, is_voxel, vertex, scale, first, first_scale, turn)

    def decode(self, encoded: Encoded, named: Tensor) -> Steps:
        """Densities of the next hadron after each prefix.

        Args:
            named: (V, S, 4 + len(SPECIES)) the hadrons before, from `_name`; the density of step s depends on the
                first s.
        """
        first = (self.start + encoded.memory[encoded.ragged.slot == 0])[:, None]
        x = torch.cat([first, self.hadron(named)], 1) + self.place[: named.shape[1] + 1]
        for block in self.decoder:
            assert isinstance(block, DecoderBlock)
            x = block(x, block.remember(encoded.memory, encoded.ragged), encoded.ragged.mask)
        keys = encoded.ragged.pad(self.share_key(encoded.memory))
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
        where = _turned(vertex, encoded.turn)
        hadrons = _in_order(hadrons, crops.crop, generator)
        direction = torch.einsum("vij,vsj->vsi", encoded.turn, hadrons.direction)
        steps = self.decode(encoded, _name(*_blurred(direction, hadrons.ke, generator), hadrons.species))

        exists = torch.arange(MAX_HADRONS) < hadrons.count[:, None]  # (V, S)
        asked = torch.arange(MAX_HADRONS + 1) <= hadrons.count[:, None]  # (V, S + 1): the step after the last says stop
        more = binary_cross_entropy_with_logits(
            steps.more, torch.nn.functional.pad(exists, (0, 1)).float(), reduction="none"
        )
        kinematics = -_log_density(steps, direction, hadrons.ke / ENERGY)[exists]
        species = cross_entropy(steps.species[:, :-1][exists], hadrons.species[exists], reduction="none")
        n = max(len(crops), 1)
        return {
            "vertex": _laplace(where, encoded.vertex, encoded.vertex_scale).sum() / n,
            "first": 0.3 * _laplace(where, encoded.first_vertex, encoded.first_scale).sum() / n,
            "more": more[asked].sum() / n,
            "kinematics": kinematics.sum() / n,
            "species": species.sum() / n,
            "share": 2 * _share_loss(steps, encoded, crops, hadrons, exists),
        }

    @torch.inference_mode()
    def forward(self, crops: Crops, max_hadrons: int = MAX_HADRONS) -> Decomposition:
        """Takes crops apart: at each step the likeliest mode, until another hadron is less likely than not."""
        encoded = self.encode(crops)
        n = len(crops)
        named = torch.zeros(n, 0, 4 + len(SPECIES))
        going = torch.ones(n, dtype=torch.bool)
        found = []
        for _ in range(max_hadrons):
            steps = self.decode(encoded, named)
            going = going & (steps.more[:, -1] > 0)
            mode = steps.weight[:, -1].argmax(-1)
            direction, kappa, ke, scale = (
                value[torch.arange(n), -1, mode] for value in (steps.direction, steps.kappa, steps.ke, steps.ke_scale)
            )
            ke, species = ke.clamp(min=0), steps.species[:, -1].argmax(-1)
            share = encoded.ragged.pack(steps.share[:, -1])[encoded.is_voxel].sigmoid()
            found.append((going, species, steps.more[:, -1].sigmoid(), ke, scale, direction, kappa, share))
            if not bool(going.any()):
                break
            named = torch.cat([named, _name(direction, ke * ENERGY, species)[:, None]], 1)
        going, species, score, ke, scale, direction, kappa, share = (
            torch.stack(parts, 1) for parts in zip(*found, strict=True)
        )
        crop, step = going.nonzero(as_tuple=True)
        back = encoded.turn.mT
        share = share * going[crops.crop]
        return Decomposition(
            vertex=_turned(encoded.vertex, back),
            vertex_err=self.vertex_calibration * _LAPLACE_68 * _turned(encoded.vertex_scale, back.abs()),
            crop=crop,
            step=step,
            species=species[going],
            score=score[going],
            ke=ke[going] * ENERGY,
            ke_err=self.ke_calibration * _LAPLACE_68 * scale[going] * ENERGY,
            direction=_turned(direction[going], back[crop]),
            dir_err=self.dir_calibration / kappa[going].sqrt(),
            share=share / share.sum(1, keepdim=True).clamp(min=1.0),
        )


@dataclass(frozen=True)
class _Line:
    """The longest leaving track of each crop, in the turned frame; zeros where there is none."""

    point: Tensor  # (V, 3) [voxels]
    direction: Tensor  # (V, 3)
    light: Tensor  # (V,) [p.e. per voxel]

    @property
    def nearest(self) -> Tensor:
        """(V, 3) the point of the line nearest to the centre of the crop: a first guess at the vertex."""
        return (self.point - _dot(self.point, self.direction) * self.direction).clamp(-1.5, 1.5)


def _leading(crops: Crops) -> tuple[Tensor, _Line]:
    """The turn of each crop and its line."""
    tracks, n = crops.tracks, len(crops)
    lead = torch.ones(len(tracks), dtype=torch.bool)
    lead[1:] = tracks.crop[1:] != tracks.crop[:-1]
    owner = tracks.crop[lead]
    point, direction = (
        torch.zeros(n, 3).index_copy(0, owner, value[lead]) for value in (tracks.point, tracks.direction)
    )
    light = torch.zeros(n).index_copy(0, owner, tracks.light[lead])
    # Without a track the light itself gives the axis.
    dipole = torch.zeros(n, 3).index_add(0, crops.crop, crops.place * crops.signal[:, None])
    turn = canonical_turn(torch.where(direction.any(1, keepdim=True), direction, dipole))
    return turn, _Line(_turned(point, turn), _turned(direction, turn), light)


def canonical_turn(axis: Tensor) -> Tensor:
    """The symmetry of the cube that turns each axis (V, 3) into x >= y >= z >= 0, (V, 3, 3) signed permutations."""
    order = axis.abs().argsort(dim=1, descending=True, stable=True)
    sign = torch.where(axis < 0, -1.0, 1.0).gather(1, order)
    return torch.zeros(len(axis), 3, 3).scatter(2, order[:, :, None], sign[:, :, None])


def _turned(vectors: Tensor, turn: Tensor) -> Tensor:
    """(N, 3) vectors, each by its own (N, 3, 3) matrix."""
    return (turn * vectors[:, None, :]).sum(2)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


_VOXEL_FEATURES, _RELATIVE_FEATURES, _TRACK_FEATURES = 17, 15, 13


def _voxel_features(crops: Crops, place: Tensor, line: _Line) -> Tensor:
    """(N, _VOXEL_FEATURES): place, light, and where the longest leaving track passes."""
    point, direction = line.point[crops.crop], line.direction[crops.crop]
    light = crops.signal[:, None]
    along = _dot(place - point, direction)
    aside = place - point - along * direction
    chord = path_in_voxel(place, point, direction)[:, None]
    expected = chord * line.light[crops.crop, None]
    off_line = aside.norm(dim=1, keepdim=True)
    excess = (light + 20).log() - (expected + 20).log()
    return torch.cat([place / HALF, *_light(light), along / 5, aside.clamp(-4, 4) / 2, off_line.clamp(max=4) / 2,
                      chord, *_light(expected), (light - expected) / 300, excess], 1)  # fmt: skip


def _relative_features(crops: Crops, place: Tensor, vertex: Tensor, scale: Tensor, line: _Line) -> Tensor:
    """(N, _RELATIVE_FEATURES): the voxel seen from the estimated vertex, and the light beyond the leaving track's."""
    vertex, scale, direction = vertex[crops.crop], scale[crops.crop], line.direction[crops.crop]
    arm = place - vertex
    distance = arm.norm(dim=1, keepdim=True)
    unit = arm / distance.clamp(min=0.1)
    chord = path_in_voxel(place, vertex, direction, start=0.0)[:, None]
    light = crops.signal[:, None]
    rest = light - chord * line.light[crops.crop, None]
    return torch.cat([arm / 2, unit, distance / 3, 1 / (0.3 + distance), _dot(unit, direction), chord, rest / 300,
                      rest.clamp(min=0).sqrt() / 20, 3 * scale.clamp(max=1)], 1)  # fmt: skip


def _track_features(tracks: Tracks, turn: Tensor) -> Tensor:
    """(T, _TRACK_FEATURES)."""
    point, direction = _turned(tracks.point, turn[tracks.crop]), _turned(tracks.direction, turn[tracks.crop])
    nearest = point - _dot(point, direction) * direction
    scalars = torch.stack([tracks.hits.log() / 2, tracks.length / 8, (tracks.light + 10).log() - 5, tracks.spread], 1)
    return torch.cat([point / HALF, direction, nearest.clamp(-4, 4), scalars], 1)


def _light(pe: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (pe + 5).log() / 2 - 2, pe.clamp(min=0).sqrt() / 20, pe / 1000


def _vertex(out: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Position and Laplace scale [voxels] from a head's (V, 6)."""
    out = out.float()
    return start + out[:, :3], softplus(out[:, 3:] - 1) + 0.005


def _name(direction: Tensor, ke: Tensor, species: Tensor) -> Tensor:
    """(..., 4 + len(SPECIES)) what the decoder is told about a named hadron; ke in MeV."""
    return torch.cat([direction, ke[..., None] / ENERGY, nn.functional.one_hot(species, len(SPECIES)).float()], -1)


def _laplace(x: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
    """Negative log density of a Laplace distribution."""
    return (x - centre).abs() / scale + (2 * scale).log()


def _log_density(steps: Steps, direction: Tensor, ke: Tensor) -> Tensor:
    """(V, S) log density of the true hadrons: a mixture of von Mises-Fisher (direction) times Laplace (energy)."""
    kappa = steps.kappa[:, :-1]
    cosine = (steps.direction[:, :-1] * direction[:, :, None]).sum(-1)
    fisher = kappa.log() - math.log(2 * math.pi) - torch.log1p(-torch.exp(-2 * kappa)) + kappa * (cosine - 1)
    energy = -_laplace(ke[:, :, None], steps.ke[:, :-1], steps.ke_scale[:, :-1])
    return torch.logsumexp(steps.weight[:, :-1] + fisher + energy, -1)


def _in_order(hadrons: Hadrons, crop: Tensor, generator: torch.Generator) -> Hadrons:
    """Hadrons in descending energy, where energies within some 2 MeV of each other may change places."""
    blurred = hadrons.ke + 1.5 * torch.randn(hadrons.ke.shape, generator=generator)
    blurred = blurred.masked_fill(torch.arange(MAX_HADRONS) >= hadrons.count[:, None], -math.inf)
    order = blurred.argsort(dim=1, descending=True, stable=True)
    ke, species = hadrons.ke.gather(1, order), hadrons.species.gather(1, order)
    direction = hadrons.direction.gather(1, order[:, :, None].expand(-1, -1, 3))
    return Hadrons(ke, direction, species, hadrons.count, hadrons.share.gather(1, order[crop]))


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
