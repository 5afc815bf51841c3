"""The finder: a sparse U-Net over the active voxels of the whole detector, which scores each as an interaction vertex.

A voxel gets a logit and an offset to the vertex. Neighbouring voxels that score join into one candidate, whose position
is the mean of what they point at; so an event has any number of vertices, and an empty one has none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsereco import bounds
from sparsereco.nn.sparse import SparseUNet
from sparsereco.vertex.config import FinderSettings
from sparsereco.voxels import Voxels, rank_in_group


@dataclass(frozen=True)
class FinderConfig:
    """What the finder's network looks like."""

    channels: tuple[int, ...] = (16, 32, 48, 64, 64)
    """Width of each level of the U-Net, from full resolution downwards."""
    blocks: int = 1
    """Residual blocks per level."""
    min_pe: float = 10.0
    """Voxels below take no part: crosstalk and noise would only cost time [p.e.]."""

    def __post_init__(self) -> None:
        bounds.at_least(1, self, "network.", "channels", "blocks")
        bounds.not_negative(self, "network.", "min_pe")


@dataclass(frozen=True)
class Vertices:
    """Vertex candidates of a batch, sorted by event and then by descending score."""

    event: Tensor  # (V,) int64
    position: Tensor  # (V, 3) in voxel units, voxel i spans i to i + 1
    score: Tensor  # (V,) 0 to 1


class Finder(nn.Module):
    """Scores, offsets and an embedding per voxel."""

    def __init__(self, settings: FinderConfig) -> None:
        super().__init__()
        self.settings = settings
        self.unet = SparseUNet(3, 3, settings.channels, settings.blocks)
        self.head = nn.Linear(settings.channels[0], 4)
        nn.init.constant_(self.head.bias[:1], -4.0)

    def visible(self, hits: Voxels) -> tuple[Voxels, Tensor]:
        """The voxels that the network looks at, and their rows in ``hits``."""
        seen = hits.signal >= self.settings.min_pe
        return hits.select(seen), seen.nonzero()[:, 0]

    def forward(self, hits: Voxels) -> tuple[Tensor, Tensor, Tensor]:
        """Logit (N,), offset to the vertex (N, 3) [voxels] and embedding (N, channels[0]) of what is ``visible``."""
        light = hits.signal
        feats = torch.stack([torch.log(light / 100), (light / 200).clamp(max=8), torch.ones_like(light)], 1)
        embedding = self.unet(hits.with_feats(feats))
        out = self.head(embedding)
        return out[:, 0], out[:, 1:], embedding


def find_vertices(finder: Finder, hits: Voxels, settings: FinderSettings, pitch: float) -> Vertices:
    """Vertex candidates of a batch; ``pitch`` is the edge of a voxel [mm]."""
    visible, _ = finder.visible(hits)
    logit, offset, _ = finder(visible)
    thresholds = settings.score_threshold, settings.further_threshold
    return decode(logit, offset, visible, *thresholds, settings.separation / pitch, settings.max_vertices)


@torch.no_grad()
def embed(finder: Finder, hits: Voxels) -> Tensor:
    """(N, channels[0]) embedding of every hit, zero where the finder does not look."""
    visible, rows = finder.visible(hits)
    embedding = finder(visible)[2]
    return embedding.new_zeros(len(hits.coords), embedding.shape[1]).index_put((rows,), embedding)


def finder_loss(logit: Tensor, offset: Tensor, hits: Voxels, vertex: Tensor, vertex_event: Tensor) -> dict[str, Tensor]:
    """Loss of a batch.

    Args:
        logit: (N,) of the finder.
        offset: (N, 3) [voxels].
        hits: the voxels that were looked at.
        vertex: (V, 3) true vertices in voxel units.
        vertex_event: (V,) int64 ascending; an event may have none or several.
    """
    target, to_vertex, near = finder_targets(hits, vertex, vertex_event)
    losses = nn.functional.binary_cross_entropy_with_logits(logit, target, reduction="none")
    score = losses.sum() / max(len(vertex), 1)
    pull = nn.functional.smooth_l1_loss(offset[near], to_vertex[near], beta=0.2)
    return {"score": score, "offset": pull if bool(near.any()) else offset.sum() * 0}


def finder_targets(hits: Voxels, vertex: Tensor, vertex_event: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Target probability (N,), vector to the nearest vertex (N, 3) [voxels] and whether a voxel is near one (N,)."""
    n = len(hits.coords)
    target = torch.zeros(n)
    to_vertex = torch.zeros(n, 3)
    distance = torch.full((n,), 1e9)
    per_event = torch.bincount(vertex_event, minlength=len(hits))
    first = per_event.cumsum(0) - per_event
    event = hits.event
    for k in range(int(per_event.max()) if len(vertex) else 0):
        has = per_event[event] > k
        rows = has.nonzero()[:, 0]
        vector = vertex[first[event[rows]] + k] - (hits.coords[rows].float() + 0.5)
        far = vector.norm(dim=1)
        closest = torch.full((len(hits),), 1e9).scatter_reduce_(0, event[rows], far, "amin")
        target[rows[far <= closest[event[rows]]]] = 1.0
        closer = far < distance[rows]
        to_vertex[rows[closer]], distance[rows[closer]] = vector[closer], far[closer]
    return target, to_vertex, distance < 3.0


def decode(
    logit: Tensor,
    offset: Tensor,
    hits: Voxels,
    score_threshold: float,
    further_threshold: float,
    separation: float,
    max_vertices: int,
) -> Vertices:
    """Vertex candidates from the finder's output.

    Args:
        logit: (N,); offset: (N, 3) [voxels]; hits: the voxels that were looked at.
        score_threshold: weaker candidates are dropped.
        further_threshold: of each event, all candidates but the best are dropped below this, too.
        separation: two vertices of an event lie at least this far apart [voxels].
        max_vertices: at most so many per event.
    """
    probability = logit.sigmoid()
    seen = probability > min(0.01, score_threshold)
    event, weight = hits.event[seen], probability[seen]
    points = hits.coords[seen].float() + 0.5 + offset[seen]
    events, positions, scores = [], [], []
    for _ in range(max_vertices):
        if not len(event):
            break
        best = torch.zeros(len(hits)).scatter_reduce_(0, event, weight, "amax")
        leader = torch.full((len(hits),), -1, dtype=torch.int64)
        top = (weight == best[event]).nonzero()[:, 0].flip(0)
        leader[event[top]] = top
        joined = (points - points[leader[event]]).norm(dim=1) < separation
        total = torch.zeros(len(hits)).index_add_(0, event[joined], weight[joined])
        mean = torch.zeros(len(hits), 3).index_add_(0, event[joined], points[joined] * weight[joined, None])
        miss = torch.ones(len(hits)).scatter_reduce_(0, event[joined], 1 - weight[joined], "prod")
        keep = (total > 0) & (1 - miss > score_threshold)
        events.append(keep.nonzero()[:, 0])
        positions.append(mean[keep] / total[keep, None])
        scores.append((1 - miss)[keep])
        event, weight, points = event[~joined], weight[~joined], points[~joined]
    if not events:
        return Vertices(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3), torch.zeros(0))
    event, position, score = torch.cat(events), torch.cat(positions), torch.cat(scores)
    order = torch.argsort(score, descending=True, stable=True)
    order = order[torch.argsort(event[order], stable=True)]
    best = rank_in_group(event[order]) == 0
    order = order[best | (score[order] > further_threshold)]
    return Vertices(event[order], position[order], score[order])
