"""Pixel selection: from a frame to the points that are clustered. One interface, four selectors.

`nsigma` is the classical chain, `gaussian` a matched filter, `unet` the network, `anomaly` what an autoencoder of noise
cannot explain. All but the first choose in two steps: a region may be faint at its edge, but somewhere in it must be a
macro-pixel that no noise explains.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import label, median_filter, uniform_filter
from torch import Tensor

from sparsereco import checkpoint
from sparsereco.camera.anomaly import Autoencoder, AutoencoderConfig, error_map
from sparsereco.camera.config import AnomalyConfig, CameraConfig, GaussianConfig, NsigmaConfig
from sparsereco.camera.significance import BIN, Normaliser, Significance, smooth
from sparsereco.camera.unet import Selector, SelectorConfig


@dataclass(frozen=True)
class Selection:
    """What a selector takes from a frame."""

    points: NDArray[np.int64]  # (N, 2) y, x of macro-pixels
    weight: NDArray[np.float64]  # (N,) of a point in DBSCAN
    score: NDArray[np.float64]  # (N,) how far a point is from noise
    hits: NDArray[np.bool_]  # (N, 16) the chosen pixels of each point, row by row
    residual: NDArray[np.float32]  # (H, W) counts above the pedestal
    adds_up: bool = False
    """Whether the score of a cluster is the sum over its points, not their maximum."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time per step, by the name of the branch."""


Select = Callable[[Tensor], Selection]
"""An image (H, W) in counts to its selection."""


class Stopwatch:
    """Time between calls, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def __call__(self, name: str) -> None:
        """Books the time since the last call."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now


def make_select(settings: CameraConfig, mean: Tensor, sigma: Tensor, hot: Tensor, device: str = "cpu") -> Select:
    """The selector that the settings name, for one camera.

    Args:
        settings: of the chain.
        mean: (H, W) of the pedestal [counts].
        sigma: (H, W) its standard deviation [counts].
        hot: (H, W) bool, pixels to leave out.
        device: torch device.

    Raises:
        CheckpointError: the weights cannot be used.
    """
    normaliser = Normaliser(mean.to(device), sigma.to(device), hot.to(device))
    if settings.selector == "nsigma":
        cut = torch.where(hot, torch.inf, settings.nsigma.nsigma * sigma)
        return lambda image: select_nsigma(image.cpu(), normaliser, cut, settings.nsigma)
    if settings.selector == "gaussian":
        return lambda image: select_gaussian(image.to(device), normaliser, settings.gaussian)
    path = weights_of(settings)
    assert path is not None
    if settings.selector == "anomaly":
        autoencoder = checkpoint.load(path, Autoencoder, AutoencoderConfig).to(device)
        return lambda image: select_anomaly(image.to(device), normaliser, autoencoder, settings.anomaly)
    model = checkpoint.load(path, Selector, SelectorConfig).to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolutions are faster so
    probability, seed = settings.unet.probability, settings.unet.min_score
    return lambda image: select_unet(image.to(device), normaliser, model, probability, seed)


def weights_of(settings: CameraConfig) -> Path | None:
    """Checkpoint of the network that selects; None where none does."""
    if settings.selector == "unet":
        return Path(settings.unet.weights or checkpoint.WEIGHTS / "selector.safetensors")
    if settings.selector == "anomaly":
        return Path(settings.anomaly.weights or checkpoint.WEIGHTS / "anomaly.safetensors")
    return None


def select_nsigma(image: Tensor, normaliser: Normaliser, cut: Tensor, settings: NsigmaConfig) -> Selection:
    """The classical chain: zero suppression, median filter, mean of 4 x 4, noise reductor.

    Args:
        image: (H, W) [counts].
        normaliser: knows the pedestal.
        cut: (H, W) values below are suppressed [counts].
        settings: its thresholds.
    """
    clock = Stopwatch()
    residual = image.float() - normaliser.mean
    residual[normaliser.where_hot] = 0.0
    clock("t_pedsub")
    kept = torch.where(residual > cut, residual, 0.0)
    clock("t_zerosup")
    filtered = torch.from_numpy(median_filter(kept.numpy(), size=2))
    clock("t_medianfilter")
    macro = F.avg_pool2d(filtered[None, None], BIN)[0, 0].numpy()
    clock("t_rebin")
    macro = reduce_noise(macro, settings)
    points = np.argwhere(np.rint(macro) > 0)
    value = macro[tuple(points.T)]
    hits = _pixels_of(residual.numpy() > cut.numpy(), points)
    clock("t_noisered")
    weight = np.maximum(value.astype(int), 1).astype(float)
    return Selection(points, weight, value, hits, residual.numpy(), True, clock.seconds)


def reduce_noise(macro: NDArray, settings: NsigmaConfig) -> NDArray:
    """The noise reductor: outliers are levelled, and what has too little around it is set to 0.

    Args:
        macro: (h, w) zero-suppressed means of macro-pixels [counts].
        settings: its thresholds.
    """
    neighbours = (9 * uniform_filter(macro, 3, mode="constant") - macro) / 8
    level = np.where(np.abs(macro - neighbours) > settings.outlier, neighbours, macro)
    lit = 9 * uniform_filter((macro > 0).astype(np.float32), 3, mode="constant")
    level[(neighbours < settings.neighbours) | (lit < 2.5)] = 0
    level[:2], level[-2:], level[:, :2], level[:, -2:] = 0, 0, 0, 0
    return level


def select_gaussian(image: Tensor, normaliser: Normaliser, settings: GaussianConfig) -> Selection:
    """Pixels by the response of a matched filter, whose macro-pixels are interpolated.

    Args:
        image: (H, W) [counts].
        normaliser: knows the pedestal.
        settings: width of the spot and thresholds.
    """
    clock = Stopwatch()
    seen = normaliser(image)
    clock("t_pedsub")
    return _select_response(smooth(seen.macro, settings.sigma / BIN), seen, settings, clock)


def select_anomaly(image: Tensor, normaliser: Normaliser, model: Autoencoder, settings: AnomalyConfig) -> Selection:
    """Pixels by the smoothed error of an autoencoder, whose macro-pixels are interpolated.

    Args:
        image: (H, W) [counts].
        normaliser: knows the pedestal.
        model: the autoencoder.
        settings: width of the spot and thresholds.
    """
    clock = Stopwatch()
    seen = normaliser(image)
    clock("t_pedsub")
    return _select_response(error_map(model, seen, settings.sigma / BIN), seen, settings, clock)


def _select_response(
    response: Tensor, seen: Significance, settings: GaussianConfig | AnomalyConfig, clock: Stopwatch
) -> Selection:
    """Pixels where the response (h, w) of macro-pixels, interpolated, is above a threshold."""
    fine = F.interpolate(response[None, None], scale_factor=BIN, mode="bilinear", align_corners=False)[0, 0]
    chosen = fine > settings.threshold
    points, hits = _seeded(F.pixel_unshuffle(chosen[None, None].float(), BIN)[0] > 0, response, settings.min_score)
    score = response.cpu().numpy()[tuple(points.T)].astype(float)
    clock("t_zerosup")
    return Selection(points, np.ones(len(points)), score, hits, seen.residual.cpu().numpy(), seconds=clock.seconds)


def select_unet(
    image: Tensor, normaliser: Normaliser, model: Selector, probability: float, min_score: float
) -> Selection:
    """Pixels by the network.

    Args:
        image: (H, W) [counts].
        normaliser: knows the pedestal.
        model: the network.
        probability: a pixel is chosen above.
        min_score: a region needs a macro-pixel whose mean logit is above.
    """
    clock = Stopwatch()
    seen = normaliser(image)
    clock("t_pedsub")
    with torch.inference_mode():
        logits = model(seen.macro[None])[0]
    score = logits.mean(0)
    points, hits = _seeded(logits > float(np.log(probability / (1 - probability))), score, min_score)
    clock("t_zerosup")
    values = score.cpu().numpy()[tuple(points.T)].astype(float)
    return Selection(points, np.ones(len(points)), values, hits, seen.residual.cpu().numpy(), seconds=clock.seconds)


def _seeded(chosen: Tensor, score: Tensor, seed: float) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Points and hits of connected regions whose best score is above a seed.

    Args:
        chosen: (16, h, w) bool, the pixels of each macro-pixel.
        score: (h, w).
        seed: what the best of a region must exceed.
    """
    pixels, best = chosen.permute(1, 2, 0).cpu().numpy(), score.cpu().numpy()
    region, n = label(pixels.any(2), np.ones((3, 3)))
    good = np.zeros(n + 1, bool)
    good[region[best > seed]] = True
    good[0] = False
    points = np.argwhere(good[region])
    return points, pixels[tuple(points.T)]


def _pixels_of(chosen: NDArray[np.bool_], points: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N, 16) the pixels of macro-pixels."""
    height, width = chosen.shape
    blocks = chosen.reshape(height // BIN, BIN, width // BIN, BIN)
    return blocks[points[:, 0], :, points[:, 1]].reshape(len(points), BIN**2)
