"""Can a classifier tell images of a source from those of Geant4? Trees on summaries, and a small sparse CNN.

Both know the particle. Both learn on one half of the tracks and are judged on the other; an area under the ROC curve of
0.5 means that they cannot tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_curve
from torch import Tensor, nn

from sparsereco import ops
from sparsereco.nn.sparse import Convolution, SparseBlock, sparse_tensor
from sparsereco.stats import Estimate
from sparsereco.vertex.fidelity import Images, Trial, summaries
from sparsereco.voxels import Voxels, offsets_of

BATCH = 256
"""Images in a step of the CNN's training."""

VOXEL_FEATURES = 7
"""What the CNN sees of a voxel, besides what all voxels of an image share."""


@dataclass(frozen=True)
class Verdict:
    """How well a classifier tells images of a source from those of Geant4."""

    auc: Estimate
    """Area under the ROC curve."""
    false_rate: np.ndarray
    """ROC curve: share of Geant4's images taken for the source's."""
    true_rate: np.ndarray
    """Share of the source's images recognised."""
    importance: dict[str, float]
    """By how much the area shrinks when a summary is shuffled among the images; empty for the CNN."""


def by_trees(fit: Trial, test: Trial, seed: int = 1) -> Verdict:
    """Gradient-boosted trees on the kinematics and the summaries of an image."""
    (x, y), (new, truth) = _table(fit), _table(test)
    names = [*_columns(test.real)]
    model = HistGradientBoostingClassifier(
        max_iter=300, learning_rate=0.06, max_leaf_nodes=15, min_samples_leaf=40, l2_regularization=1.0,
        early_stopping=True, validation_fraction=0.2, n_iter_no_change=20, random_state=seed,
    )  # fmt: skip
    model.fit(x, y)
    area = auc(model.decision_function(new), truth)
    random, importance = np.random.default_rng(seed), {}
    for i, name in enumerate(names):
        if name in KINEMATICS:
            continue
        shuffled = new.copy()
        shuffled[:, i] = random.permutation(shuffled[:, i])
        importance[name] = area.value - auc(model.decision_function(shuffled), truth).value
    ordered = dict(sorted(importance.items(), key=lambda item: -item[1]))
    return Verdict(area, *_curve(model.decision_function(new), truth), ordered)


def by_cnn(fit: Trial, test: Trial, epochs: int = 12, seed: int = 1) -> Verdict:
    """A small sparse CNN on the images, each voxel with its place as seen from the particle."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ImageClassifier()
        batches = epochs * -(-2 * len(fit.real) // BATCH)
        optimiser = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.02)
        pace = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, batches)
        for _ in range(epochs):
            for rows in torch.randperm(2 * len(fit.real)).split(BATCH):
                made = rows >= len(fit.real)
                logit = torch.cat([model(fit.real, rows[~made]), model(fit.made, rows[made] - len(fit.real))])
                loss = nn.functional.binary_cross_entropy_with_logits(logit, made.sort().values.float())
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                pace.step()
    model.eval()
    with torch.no_grad():
        score = torch.cat(
            [
                model(sample, rows)
                for sample in (test.real, test.made)
                for rows in torch.arange(len(sample)).split(BATCH)
            ]
        ).numpy()
    truth = np.arange(len(score)) >= len(test.real)
    return Verdict(auc(score, truth), *_curve(score, truth), {})


class ImageClassifier(nn.Module):
    """Two levels of sparse convolutions on the voxels that are lit or should be, then their sum and mean."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = Convolution(3, VOXEL_FEATURES + 4, width, "submanifold", 0)
        self.fine = nn.ModuleList(SparseBlock(3, width, 0) for _ in range(2))
        self.down = Convolution(3, width, 2 * width, "down", 0)
        self.coarse = SparseBlock(3, 2 * width, 1)
        self.head = nn.Sequential(nn.Linear(6 * width + 7, 64), nn.SiLU(), nn.Dropout(0.1), nn.Linear(64, 1))

    def forward(self, images: Images, rows: Tensor) -> Tensor:
        """(P,) logits of some rows (P,) of the images."""
        about = torch.cat(
            [_scaled(images.ke[rows]), images.start[rows] % 1 - 0.5, images.direction[rows]], 1
        )  # (P, 7): what the particle is
        if not len(rows):
            return about.new_zeros(0)
        voxels = _voxels(images, rows)
        tensor = sparse_tensor(voxels.with_feats(torch.cat([voxels.feats, about[voxels.event][:, :4]], 1)))
        x = self.stem(tensor)
        for block in self.fine:
            x = block(x)
        fine, offsets = torch.relu(x.features), voxels.offsets
        x = self.coarse(self.down(x))
        coarse, coarser = torch.relu(x.features), x.sites.offsets
        pooled = [
            ops.segment_sum(fine, offsets) / 8, ops.segment_mean(fine, offsets),
            ops.segment_sum(coarse, coarser) / 4, ops.segment_mean(coarse, coarser),
        ]  # fmt: skip
        return self.head(torch.cat([*pooled, about], 1))[:, 0]


def _voxels(images: Images, rows: Tensor) -> Voxels:
    """Voxels that are lit, or that a straight track would light."""
    measured, straight = images.measured[rows], images.straight[rows]
    place = ((measured > 0) | (straight > 0)).nonzero()
    event, coords = place[:, 0], place[:, 1:]
    light, expected = measured[tuple(place.T)].sqrt(), straight[tuple(place.T)].sqrt()
    arm = coords + 0.5 - images.start[rows][event]
    direction = images.direction[rows][event]
    along = (arm * direction).sum(1)
    across = (arm - along[:, None] * direction).norm(dim=1)
    seen = [light / 10, expected / 10, light - expected, (light > 0).float(), (expected > 0).float(), along / 2, across]
    feats = torch.stack(seen, 1)
    offsets = offsets_of(torch.bincount(event, minlength=len(rows)))
    return Voxels(coords.int().contiguous(), feats, offsets, tuple(measured.shape[1:]))


def _scaled(ke: Tensor) -> Tensor:
    """(P, 1) of the order of 1 for the energies of all species."""
    return ((ke[:, None] + 3).log() - 4) / 2


KINEMATICS = ("energy", *(f"start, {a}" for a in "xyz"), *(f"direction, {a}" for a in "xyz"))


def _columns(images: Images) -> dict[str, np.ndarray]:
    """What the trees see, (P,) each."""
    particle = torch.cat([images.ke[:, None], images.start % 1, images.direction], 1).numpy().T
    return {**dict(zip(KINEMATICS, particle, strict=True)), **summaries(images)}


def _table(trial: Trial) -> tuple[np.ndarray, np.ndarray]:
    """Rows for the trees, (N, F), and whether they are of the source, (N,)."""
    parts = [np.stack([*_columns(images).values()], 1) for images in (trial.real, trial.made)]
    return np.concatenate(parts), np.arange(sum(map(len, parts))) >= len(parts[0])


def auc(score: np.ndarray, made: np.ndarray) -> Estimate:
    """Area under the ROC curve with its error (E. DeLong et al., Biometrics 44 (1988) 837).

    Args:
        score: (N,) higher for what is more likely of the source.
        made: (N,) bool, whether it is.
    """
    of_made, of_real = score[made], score[~made]

    def below(values: np.ndarray, others: np.ndarray) -> np.ndarray:
        others = np.sort(others)
        return (np.searchsorted(others, values) + np.searchsorted(others, values, "right")) / (2 * len(others))

    wins, losses = below(of_made, of_real), below(of_real, of_made)
    error = np.sqrt(wins.var(ddof=1) / len(wins) + losses.var(ddof=1) / len(losses))
    return Estimate(float(wins.mean()), float(error), len(score))


def _curve(score: np.ndarray, made: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    false_rate, true_rate, _ = roc_curve(made, score)
    grid = np.linspace(0, 1, 101)
    return grid, np.interp(grid, false_rate, true_rate)
