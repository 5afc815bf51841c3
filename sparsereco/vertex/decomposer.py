"""The decomposer: a transformer that takes a crop apart into its vertex and its hadrons.

Every crop is turned by one of the 48 symmetries of the voxel grid so that its longest leaving track points into one
wedge of the sphere: the network learns one forty-eighth of the problem. The encoder estimates the vertex several times,
each time from voxels seen relative to the estimate before. The decoder names hadrons one by one in descending energy;
each step is a mixture density over energy and direction, so hadrons of near-equal energy may come in either order, and
every error is a predicted one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize, softplus

from sparsereco import bounds
from sparsereco.nn.attention import DecoderBlock, EncoderBlock, KeyValue, Ragged, by_event, exactly
from sparsereco.rows import mapped
from sparsereco.vertex.crop import HALF, Crops
from sparsereco.vertex.densities import LAPLACE_68, Steps, laplace, log_density, number_probability
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
from sparsereco.vertex.hadrons import (
    ENERGY,
    HADRON_FEATURES,
    MAX_HADRONS,
    SPECIES,
    Decomposition,
    Hadrons,
    blurred,
    in_order,
    name_hadrons,
)
from sparsereco.vertex.naming import Medians, medians, next_hadron, uniform_numbers

_MODES = 4


@dataclass(frozen=True)
class DecomposerConfig:
    """What the decomposer's network looks like."""

    width: int = 112
    """Features of a token."""
    heads: int = 4
    encoder_blocks: tuple[int, ...] = (2, 2, 3)
    """Encoder blocks before each estimate of the vertex; the next ones see every voxel relative to it."""
    decoder_blocks: int = 3
    context: int = 16
    """Features of the finder's embedding of a voxel."""

    def __post_init__(self) -> None:
        bounds.at_least(1, self, "network.", "width", "heads", "encoder_blocks", "decoder_blocks", "context")
        if self.width % self.heads:
            raise ValueError(f"network.width must be a multiple of {self.heads} network.heads, got {self.width}")


@dataclass(frozen=True)
class Remembered:
    """What the decoder needs of V crops at every step."""

    start: Tensor  # (V, width) the token before the first hadron
    blocks: list[KeyValue]  # of the tokens, for each decoder block
    keys: Tensor  # (V, L, 32) of the shares
    mask: Tensor  # (V, L) bool, which tokens there are

    def at(self, rows: Tensor) -> Remembered:
        """The same of some of the crops."""
        blocks = [(key[rows], value[rows]) for key, value in self.blocks]
        return Remembered(self.start[rows], blocks, self.keys[rows], self.mask[rows])


@dataclass(frozen=True)
class Encoded:
    """What the decoder works from, in the turned frame."""

    memory: Tensor  # (T, width)
    ragged: Ragged
    of_summary: Tensor  # (V,) int64, token of each summary
    of_voxel: Tensor  # (N,) int64, token of each voxel
    vertices: Tensor  # (E, V, 3) estimates, the last one best, relative to the centre of the crop [voxels]
    vertex_scales: Tensor  # (E, V, 3) Laplace scales along the axes of `frame` [voxels]
    total: Tensor  # (V,) kinetic energy of all hadrons together [units of ENERGY]
    total_scale: Tensor  # (V,) Laplace scale [units of ENERGY]
    number: Tensor  # (V, MAX_HADRONS + 1) logits of the number of hadrons
    turn: Tensor  # (V, 3, 3) from the detector's frame to the turned one
    frame: Tensor  # (V, 3, 3) from the turned frame to that of the longest leaving track


class Decomposer(nn.Module):
    """Crops to vertices and hadrons."""

    vertex_calibration: Tensor
    ke_calibration: Tensor
    dir_calibration: Tensor
    total_calibration: Tensor
    track_light: Tensor
    uniform: Tensor

    def __init__(self, settings: DecomposerConfig) -> None:
        super().__init__()
        self.settings = settings
        width, heads = settings.width, settings.heads
        self.axes = nn.Embedding(3 * (2 * HALF + 1), width)
        self.voxel = _embedding(VOXEL_FEATURES + settings.context, width)
        self.track = _embedding(TRACK_FEATURES, width)
        self.summary = nn.Parameter(0.02 * torch.randn(width))
        self.prior = nn.Embedding(2, width)
        self.encoder = nn.ModuleList(
            nn.ModuleList(EncoderBlock(width, heads) for _ in range(blocks)) for blocks in settings.encoder_blocks
        )
        earlier = settings.encoder_blocks[1:]
        self.vertex_heads = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 6)) for _ in earlier)
        self.vertex_heads.append(_head(width, 6))
        self.relative = nn.ModuleList(_embedding(RELATIVE_FEATURES, width) for _ in earlier)
        self.start = nn.Parameter(0.02 * torch.randn(width))
        self.place = nn.Parameter(0.02 * torch.randn(MAX_HADRONS, width))
        self.hadron = _embedding(HADRON_FEATURES, width)
        self.decoder = nn.ModuleList(DecoderBlock(width, heads) for _ in range(settings.decoder_blocks))
        self.step_head = _head(width, 7 * _MODES + len(SPECIES))
        self.share_query, self.share_key = nn.Linear(width, 32), nn.Linear(width, 32)
        self.total_head = _head(width, 2)
        self.number_head = _head(width, MAX_HADRONS + 1)
        # Predicted errors are multiplied by these, so that 68 % intervals hold 68 % on held-out events; the first holds
        # where all hadrons are protons, the second where there may be light nuclei.
        self.register_buffer("vertex_calibration", torch.ones(2))
        self.register_buffer("ke_calibration", torch.ones(2))
        self.register_buffer("dir_calibration", torch.ones(2))
        self.register_buffer("total_calibration", torch.ones(2))
        # Light per length of a leaving track, median over the events of the training at the nominal light yield
        # [p.e. per voxel].
        self.register_buffer("track_light", torch.tensor(160.0))
        self.register_buffer("uniform", uniform_numbers(), persistent=False)

    def encode(self, crops: Crops, light_nuclei: Tensor) -> Encoded:
        """Encodes crops; every crop has at least its summary token, so an empty one is valid.

        Args:
            crops: what to take apart.
            light_nuclei: (V,) bool, whether a hadron may be a deuteron or a triton; where not, all are protons. The
                light alone hardly tells them apart, so what the user knows beforehand counts.
        """
        turn, line = leading_line(crops)
        place = turned(crops.place.float(), turn[crops.crop])
        axes = self.axes(place.long() + HALF + (2 * HALF + 1) * torch.arange(3)).sum(1)
        voxels = axes + exactly(self.voxel, torch.cat([voxel_features(crops, place, line), crops.context], 1))
        tracks = exactly(self.track, track_features(crops.tracks, turn))
        summary = self.summary + self.prior(light_nuclei.long())
        owner = torch.cat([torch.arange(len(crops)), crops.tracks.crop, crops.crop])
        counts = torch.bincount(owner, minlength=len(crops))
        by_length = torch.argsort(counts, stable=True)
        order = torch.argsort(torch.argsort(by_length)[owner], stable=True)
        ragged, token = Ragged.of(counts, by_length), torch.argsort(order)
        of_summary, of_voxel = token[: len(crops)], token[len(crops) + len(crops.tracks) :]
        x = torch.cat([summary, tracks, voxels])[order]

        estimates, vertex, scale = [], line.nearest, torch.empty(0)
        for i, blocks in enumerate(cast(Iterable[Iterable[EncoderBlock]], self.encoder)):
            if i > 0:
                seen = exactly(self.relative[i - 1], relative_features(crops, place, vertex, scale, line))
                x = x.index_add(0, of_voxel, seen.to(x.dtype))
            for block in blocks:
                x = block(x, ragged)
            estimates.append(_vertex(exactly(self.vertex_heads[i], x[of_summary]), vertex))
            vertex, scale = (value.detach() for value in estimates[-1])
        vertices, scales = (torch.stack(parts) for parts in zip(*estimates, strict=True))
        summary = x[of_summary]
        total, number = exactly(self.total_head, summary), exactly(self.number_head, summary)
        total, total_scale = total[:, 0] + 4, softplus(total[:, 1]) + 0.005
        return Encoded(
            *(x, ragged, of_summary, of_voxel, vertices, scales, total, total_scale, number),
            *(turn, line.frame),
        )

    def remember(self, encoded: Encoded) -> Remembered:
        """Keys and values of each decoder block and of the shares: once per crop, whatever the steps."""
        memory, ragged = encoded.memory, encoded.ragged
        blocks = [block.remember(memory, ragged) for block in cast(Iterable[DecoderBlock], self.decoder)]
        start = self.start + memory[encoded.of_summary]
        return Remembered(start, blocks, ragged.pad(self.share_key(memory)), ragged.mask)

    def decode(
        self, named: Tensor, remembered: Remembered, before: list[KeyValue] | None = None
    ) -> tuple[Steps, list[KeyValue]]:
        """Densities of the next hadron after each prefix, and what a call for the step after them needs.

        Args:
            named: (V * K, S, HADRON_FEATURES) the hadrons before, from `name_hadrons`, in K sequences for each crop;
                the density of step s depends on the first s. With ``before``, only the last of them.
            remembered: of the V crops, from `remember`.
            before: what the call for the steps before returned.
        """
        x, first = self.hadron(named), 0
        if before is None:
            start = remembered.start.repeat_interleave(len(x) // max(len(remembered.start), 1), 0)
            x = torch.cat([start[:, None], x], 1)
        else:
            first = before[0][0].shape[2]
        x = x + self.place[first : first + x.shape[1]]
        past: list[KeyValue | None] = [None] * len(self.decoder) if before is None else [*before]
        after = []
        for block, kept, own in zip(self.decoder, remembered.blocks, past, strict=True):
            x, key_value = block(x, kept, remembered.mask, own)
            after.append(key_value)
        keys = remembered.keys
        queries = by_event(self.share_query(x), len(keys))
        share = torch.einsum("vsc,vlc->vsl", queries, keys) / keys.shape[-1] ** 0.5
        out = exactly(self.step_head, x)
        modes, species = out[..., : 7 * _MODES].unflatten(-1, (_MODES, 7)), out[..., 7 * _MODES :]
        steps = Steps(
            weight=modes[..., 0].log_softmax(-1),
            direction=normalize(modes[..., 1:4], dim=-1),
            kappa=softplus(modes[..., 4] + 1) + 0.05,
            ke=modes[..., 5] + 1,
            ke_scale=softplus(modes[..., 6]) + 0.005,
            species=species,
            share=share.float().view(*x.shape[:2], keys.shape[1]),
        )
        return steps, after

    def loss(
        self, crops: Crops, light_nuclei: Tensor, vertex: Tensor, hadrons: Hadrons, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Negative log-likelihoods of the truth.

        Args:
            crops, light_nuclei: as in `encode`.
            vertex: (V, 3) true vertex relative to the centre of the crop [voxels].
            hadrons: true hadrons in any order.
            generator: of the noise on order and prefix, which prepares the decoder for its own errors.
        """
        encoded = self.encode(crops, light_nuclei)
        where = turned(vertex, encoded.turn)
        hadrons = in_order(hadrons, crops.crop, generator)
        direction = torch.einsum("vij,vsj->vsi", encoded.turn, hadrons.direction)
        named = name_hadrons(*blurred(direction, hadrons.ke, generator), hadrons.species)[:, :-1]
        steps, _ = self.decode(named, self.remember(encoded))

        exists = torch.arange(MAX_HADRONS) < hadrons.count[:, None]  # (V, S)
        kinematics = -log_density(steps, direction, hadrons.ke / ENERGY)[exists]
        species = cross_entropy(steps.species[exists], hadrons.species[exists], reduction="none")
        off = torch.stack([turned(where - vertex, encoded.frame) for vertex in encoded.vertices])
        vertex_loss = laplace(off, 0.0, encoded.vertex_scales).sum((1, 2))
        n = max(len(crops), 1)
        return {
            "vertex": 2 * vertex_loss[-1] / n,
            "earlier": 0.6 * vertex_loss[:-1].sum() / n,
            "total": laplace(hadrons.ke.sum(1) / ENERGY, encoded.total, encoded.total_scale).sum() / n,
            "number": cross_entropy(encoded.number, hadrons.count, reduction="sum") / n,
            "kinematics": kinematics.sum() / n,
            "species": species.sum() / n,
            "share": 2 * _share_loss(steps, encoded, crops, hadrons, exists),
        }

    @torch.inference_mode()
    def forward(self, crops: Crops, light_nuclei: bool, max_hadrons: int = MAX_HADRONS) -> Decomposition:
        """Takes crops apart: as many hadrons as is likeliest, and each the median of what it may be.

        Args:
            crops: what to take apart.
            light_nuclei: whether a hadron may be a deuteron or a triton; if not, all are protons.
            max_hadrons: the most that are named in a crop.
        """
        n, prior = len(crops), int(light_nuclei)
        encoded = self.encode(crops, torch.full((n,), light_nuclei))
        number = number_probability(encoded.number, max_hadrons)
        count = number.argmax(1)
        hadrons, share = self._name(encoded, count, max_hadrons)
        score = number.flip(1).cumsum(1).flip(1)[:, 1:].clamp(max=1)  # (V, S) probability of at least 1, 2, ... hadrons
        going = torch.arange(max_hadrons) < count[:, None]
        crop, step = going.nonzero(as_tuple=True)
        back = encoded.turn.mT
        share = share * going[crops.crop]
        # A row for each axis of the track's frame.
        axes = torch.bmm(encoded.frame, encoded.turn)
        width = self.vertex_calibration[prior] * LAPLACE_68 * encoded.vertex_scales[-1]
        covariance = (axes[:, :, :, None] * axes[:, :, None, :] * width.square()[:, :, None, None]).sum(1)
        return Decomposition(
            vertex=turned(encoded.vertices[-1], back),
            vertex_err=covariance.diagonal(dim1=1, dim2=2).sqrt(),
            vertex_cov=covariance,
            total=encoded.total * ENERGY,
            total_err=self.total_calibration[prior] * LAPLACE_68 * encoded.total_scale * ENERGY,
            number_prob=number,
            crop=crop,
            step=step,
            species=hadrons.species[going],
            species_prob=hadrons.species_prob[going],
            score=score[going],
            ke=hadrons.ke[going] * ENERGY,
            ke_err=self.ke_calibration[prior] * hadrons.ke_err[going] * ENERGY,
            direction=turned(hadrons.direction[going], back[crop]),
            dir_err=self.dir_calibration[prior] * hadrons.dir_err[going],
            share=share / share.sum(1, keepdim=True).clamp(min=1.0),
        )

    def _name(self, encoded: Encoded, count: Tensor, most: int) -> tuple[Medians, Tensor]:
        """As many hadrons as there are in each crop, of at most so many, and each one's share in the voxels (N, S)."""
        n, many = len(count), 1 + self.uniform.shape[1]
        named = torch.zeros(n, 0, HADRON_FEATURES)
        remembered, before = self.remember(encoded), None
        found, shares, rows = [], [], torch.arange(n)

        def of_all(value: Tensor) -> Tensor:
            """Values of the crops that have a hadron more, among zeros for the others."""
            return value.new_zeros(n, *value.shape[1:]).index_copy(0, rows, value)

        for step, uniform in enumerate(self.uniform[:most], start=1):
            steps, before = self.decode(named, remembered, before)
            if step == 1:  # where all sequences of a crop are still alike
                steps = mapped(lambda value: value.repeat_interleave(many, 0), steps)
                before = [(key.repeat_interleave(many, 0), value.repeat_interleave(many, 0)) for key, value in before]
            hadron = next_hadron(steps, uniform)
            found.append(mapped(of_all, hadron))
            shares.append(encoded.ragged.pack(of_all(steps.share[::many, -1]))[encoded.of_voxel].sigmoid())
            more = count[rows] > step
            remembered, rows, more = remembered.at(more), rows[more], more.repeat_interleave(many)
            before = [(key[more], value[more]) for key, value in before]
            named = name_hadrons(hadron.direction, hadron.ke * ENERGY, hadron.species)
            named = named.view(-1, 1, HADRON_FEATURES)[more]
        return medians(found, count), torch.stack(shares, 1)


def _embedding(features: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.Linear(width, width))


def _head(width: int, numbers: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, numbers))


def _vertex(out: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Position and Laplace scale [voxels] from a head's (V, 6)."""
    return start + out[:, :3], softplus(out[:, 3:] - 1) + 0.005


def _share_loss(steps: Steps, encoded: Encoded, crops: Crops, hadrons: Hadrons, exists: Tensor) -> Tensor:
    """Cross-entropy of each hadron's share in each voxel, mean over the crops; bright voxels count more."""
    share = encoded.ragged.pack(steps.share.transpose(1, 2))[encoded.of_voxel]
    weight = crops.signal.sqrt()
    total = torch.zeros(len(crops)).index_add(0, crops.crop, weight).clamp(min=1)
    losses = binary_cross_entropy_with_logits(share, hadrons.share, reduction="none") * exists[crops.crop]
    return (losses.sum(1) * weight / total[crops.crop]).sum() / max(len(crops), 1)
