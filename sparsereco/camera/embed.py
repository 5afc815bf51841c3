"""Classes without labels: Deep Embedded Clustering (arXiv 1511.06335) of patches of 100 x 100 pixels.

An autoencoder learns to redraw patches, k-means finds centres among its numbers, and then encoder and centres move
together: each patch belongs to the centres by Student's t, and is drawn towards the ones that it belongs to already.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from torch import Tensor, nn

from sparsereco import bounds
from sparsereco.camera.significance import smooth

PATCH = 25
"""Macro-pixels along the edge of a patch: 100 pixels."""

SOFT = 5.0
"""Added to the brightest macro-pixel that a patch is divided by, so that noise stays small [standard deviations]."""

CHANGES = 0.001
"""Training stops where fewer patches than this share change their class between two looks."""

GAIN = 0.05
"""A further class must raise the mean silhouette by more than this share, else it only divides another."""

SILHOUETTES = 2000
"""Patches that the number of classes is decided on."""


@dataclass(frozen=True)
class EmbedderConfig:
    """The network."""

    classes: int = 0
    """Number of classes; 0: not known yet; `choose_classes` and `best_number` say how many there are."""
    channels: tuple[int, int] = (16, 32)
    """Width after the first and the second halving of the patch."""
    latent: int = 8
    """Numbers that a patch becomes."""
    blur: float = 1.0
    """Standard deviation of the filter in front [macro-pixel]."""

    def __post_init__(self) -> None:
        bounds.not_negative(self, "network.", "classes")
        bounds.at_least(1, self, "network.", "channels", "latent")
        bounds.positive(self, "network.", "blur")


class Embedder(nn.Module):
    """An autoencoder of patches, and the centres of classes among its numbers.

    ``start`` is the encoder as it was before encoder and centres moved, for comparison.
    """

    def __init__(self, settings: EmbedderConfig) -> None:
        super().__init__()
        self.settings = settings
        fine, coarse = settings.channels
        self.encoder = nn.Sequential(
            nn.Conv2d(1, fine, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(fine, coarse, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(49 * coarse, settings.latent),
        )
        self.decoder = nn.Sequential(
            nn.Linear(settings.latent, 49 * coarse),
            nn.ReLU(),
            nn.Unflatten(1, (coarse, 7, 7)),
            nn.ConvTranspose2d(coarse, fine, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(fine, 1, 5, stride=2, padding=2),
        )
        self.start = copy.deepcopy(self.encoder)
        self.start.requires_grad_(False)
        self.centres = nn.Parameter(torch.zeros(settings.classes, settings.latent))

    def with_classes(self, classes: int) -> Embedder:
        """The same autoencoder with so many classes, whose centres are 0."""
        other = Embedder(dataclasses.replace(self.settings, classes=classes))
        other.load_state_dict({**self.state_dict(), "centres": torch.zeros(classes, self.settings.latent)})
        return other

    def forward(self, patches: Tensor) -> Tensor:
        """Assignment of patches to classes.

        Args:
            patches: (N, 25, 25) significance.

        Returns:
            (N, classes) shares by Student's t with one degree of freedom, which add up to 1.
        """
        return assign(self.encode(self.prepare(patches)), self.centres)

    def prepare(self, patches: Tensor) -> Tensor:
        """(N, 25, 25) what is drawn: smoothed, aligned, over the brightest macro-pixel."""
        image = aligned(smooth(patches, self.settings.blur))
        return image / (image.amax((1, 2), keepdim=True) + SOFT)

    def encode(self, prepared: Tensor) -> Tensor:
        """(N, latent) numbers of prepared patches (N, 25, 25)."""
        return self.encoder(prepared[:, None])

    def redraw(self, prepared: Tensor) -> Tensor:
        """(N, 25, 25) what the autoencoder makes of prepared patches."""
        return self.decoder(self.encode(prepared))[:, 0]


def aligned(patches: Tensor) -> Tensor:
    """Patches moved and turned so that their light is in the middle and longest along x: classes depend on neither.

    Args:
        patches: (N, S, S).
    """
    size = patches.shape[-1]
    place = torch.linspace(-1, 1, size)
    light = patches.clamp(min=0) ** 2  # noise counts little
    light = light / light.sum((1, 2), keepdim=True).clamp(min=1e-6)
    y, x = (light * place[:, None]).sum((1, 2)), (light * place).sum((1, 2))
    dy, dx = place[:, None] - y[:, None, None], place - x[:, None, None]
    yy, xx, xy = ((light * a * b).sum((1, 2)) for a, b in ((dy, dy), (dx, dx), (dy, dx)))
    angle = 0.5 * torch.atan2(2 * xy, xx - yy)
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.stack([torch.stack([cos, -sin, x], 1), torch.stack([sin, cos, y], 1)], 1)
    grid = F.affine_grid(matrix, [len(patches), 1, size, size], align_corners=True)
    return F.grid_sample(patches[:, None], grid, align_corners=True)[:, 0]


def assign(numbers: Tensor, centres: Tensor) -> Tensor:
    """(N, K) shares of (N, L) in (K, L) centres, by Student's t with one degree of freedom."""
    share = 1 / (1 + torch.cdist(numbers, centres) ** 2)
    return share / share.sum(1, keepdim=True)


def sharpened(shares: Tensor) -> Tensor:
    """(N, K) the target: squares of shares over the size of the class, normalised."""
    weight = shares**2 / shares.sum(0)
    return weight / weight.sum(1, keepdim=True)


def cut_patches(macro: Tensor, centres: NDArray) -> Tensor:
    """Patches of a frame; what lies beside it is 0.

    Args:
        macro: (h, w) significance.
        centres: (N, 2) y, x of their centres [macro-pixel].

    Returns:
        (N, 25, 25).
    """
    padded = F.pad(macro, (PATCH,) * 4)
    corners = np.rint(centres).astype(int) + PATCH - PATCH // 2
    corners = np.clip(corners, 0, np.array(padded.shape) - PATCH)
    pieces = [padded[y : y + PATCH, x : x + PATCH] for y, x in corners.tolist()]
    return torch.stack([*pieces]) if pieces else torch.zeros(0, PATCH, PATCH)


def choose_classes(numbers: NDArray, seed: int, most: int = 6) -> dict[int, float]:
    """Mean silhouette of k-means by number of classes, from which `best_number` takes one.

    Args:
        numbers: (N, L) of patches.
        seed: of k-means.
        most: the largest number of classes that is tried.
    """
    numbers = numbers[:SILHOUETTES]
    return {k: float(silhouette_score(numbers, kmeans(numbers, k, seed).labels_)) for k in range(2, most + 1)}


def best_number(silhouettes: dict[int, float]) -> int:
    """The smallest number of classes that no larger one improves by more than `GAIN`."""
    best = max(silhouettes.values())
    return min(k for k, value in silhouettes.items() if best <= (1 + GAIN) * value)


def kmeans(numbers: NDArray, classes: int, seed: int) -> KMeans:
    """The best of ten starts."""
    return KMeans(classes, n_init=10, random_state=seed).fit(numbers)


def cluster(
    model: Embedder,
    patches: Tensor,
    seed: int,
    rate: float = 1e-3,
    batch: int = 256,
    most: int = 100,
    report: Callable[[int, float], None] = lambda epoch, changes: None,
) -> NDArray[np.int64]:
    """Moves encoder and centres together until the classes of the patches stay, from a start by k-means.

    Args:
        model: with a trained autoencoder; changed in place.
        patches: (N, 25, 25) significance.
        seed: of k-means and the order of patches.
        rate: learning rate.
        batch: patches per step.
        most: passes over the patches after which it ends anyway.
        report: called after each pass with its number and the share of patches that changed their class.

    Returns:
        (N,) classes.
    """
    model.start.load_state_dict(model.encoder.state_dict())
    prepared, generator = model.prepare(patches), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        found = kmeans(model.encode(prepared).numpy(), model.settings.classes, seed)
        model.centres.copy_(torch.from_numpy(found.cluster_centers_))
    before = found.labels_
    optimiser = torch.optim.Adam([*model.encoder.parameters(), model.centres], rate)
    for epoch in range(most):
        with torch.no_grad():
            target = sharpened(assign(model.encode(prepared), model.centres))
        for rows in torch.randperm(len(patches), generator=generator).split(batch):
            shares = assign(model.encode(prepared[rows]), model.centres)
            optimiser.zero_grad(set_to_none=True)
            F.kl_div(shares.log(), target[rows], reduction="batchmean").backward()
            optimiser.step()
        with torch.no_grad():
            now = assign(model.encode(prepared), model.centres).argmax(1).numpy()
        changes = float((now != before).mean())
        report(epoch + 1, changes)
        before = now
        if changes < CHANGES:
            break
    return before.astype(np.int64)
