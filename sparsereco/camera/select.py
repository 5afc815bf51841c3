"""Pixel selection: from a frame to the points that are clustered. One interface, four selectors.

`nsigma` is the classical chain, `gaussian` a matched filter, `unet` the network, `anomaly` what an autoencoder of noise
cannot explain. All but the first choose in two steps: a region may be faint at its edge, but no noise must explain it,
for the network by all of it together, for the filters by its best macro-pixel.
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
from scipy.special import logit
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

Network = Selector | Autoencoder | None
"""What selects, where a network does."""


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


def make_select(
    settings: CameraConfig, network: Network, mean: Tensor, sigma: Tensor, hot: Tensor, device: str = "cpu"
) -> Select:
    """The selector that the settings name, for one camera.

    Args:
        settings: of the chain.
        network: of `load_network`.
        mean: (H, W) of the pedestal [counts].
        sigma: (H, W) its standard deviation [counts].
        hot: (H, W) bool, pixels to leave out.
        device: torch device.
    """
    normaliser = Normaliser(mean.to(device), sigma.to(device), hot.to(device))
    if settings.selector == "nsigma":
        cut = torch.where(hot, torch.inf, settings.nsigma.nsigma * sigma)
        return lambda image: select_nsigma(image.cpu(), normaliser, cut, settings.nsigma)
    if settings.selector == "gaussian":
        return lambda image: select_gaussian(image.to(device), normaliser, settings.gaussian)
    if isinstance(network, Autoencoder):
        autoencoder = network.to(device)
        return lambda image: select_anomaly(image.to(device), normaliser, autoencoder, settings.anomaly)
    assert network is not None
    model = network.to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolutions are faster so
    probability, seed = settings.unet.probability, settings.unet.min_score
    return lambda image: select_unet(image.to(device), normaliser, model, probability, seed)


def load_network(settings: CameraConfig) -> Network:
    """The network that selects.

    Raises:
        CheckpointError: its weights cannot be used.
    """
    path = weights_of(settings)
    if path is None:
        return None
    if settings.selector == "anomaly":
        return checkpoint.load(path, Autoencoder, AutoencoderConfig)
    return checkpoint.load(path, Selector, SelectorConfig)


def weights_of(settings: CameraConfig) -> Path | None:
    """Checkpoint of the network that selects; None where none does."""
    if settings.selector == "unet":
        return Path(settings.unet.weights or checkpoint.WEIGHTS / "selector.safetensors")
    if settings.selector == "anomaly":
        return Path(settings.anomaly.weights or checkpoint.WEIGHTS / "anomaly.safetensors")
    return None


def make_above(settings: CameraConfig, network: Network) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """How far scores are above the threshold of the selector that the settings name.

    Args:
        settings: of the chain.
        network: that selects, if one does.

    Returns:
        A function of (C,) scores; its (C,) values are in standard deviations of a matched filter. The score of the
        U-Net is translated to the significance of a spot that gets it where there is no noise. Infinite for
        `nsigma`, whose score is none of this kind.
    """
    if settings.selector == "nsigma":
        return lambda score: np.full(len(score), np.inf)
    if isinstance(network, Selector):
        known, significance = spot_scores(network, settings.unet.probability)
        if not len(known):  # weights that see none of them
            return lambda score: np.full(len(score), np.inf)
        least = np.interp(settings.unet.min_score, known, significance)
        return lambda score: np.interp(score, known, significance) - least
    threshold = (settings.gaussian if settings.selector == "gaussian" else settings.anomaly).min_score
    return lambda score: score - threshold


def spot_scores(model: Selector, probability: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores that a network gives to spots of the usual width without noise.

    Args:
        model: the network, on the CPU.
        probability: a pixel is chosen above.

    Returns:
        (K,) scores, which never fall, and (K,) significances up to 20 of the spots that have chosen pixels.
    """
    significance = torch.arange(1.0, 20.0, 0.25)
    line = torch.exp(-0.5 * ((torch.arange(48) - 24) * BIN / GaussianConfig.sigma) ** 2)
    spot = torch.outer(line, line)
    with torch.inference_mode():
        logits = model(significance[:, None, None] * spot / spot.norm())
    chosen = (logits > logit(probability)).any(1)
    scores = logits.mean(1).where(chosen, torch.tensor(-torch.inf)).flatten(1).logsumexp(1).double().numpy()
    seen = np.isfinite(scores)
    return np.maximum.accumulate(scores[seen]), significance.double().numpy()[seen]


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
    points, hits, region = _connected(F.pixel_unshuffle((fine > settings.threshold)[None, None].float(), BIN)[0] > 0)
    score = response.cpu().numpy()[tuple(points.T)].astype(float)
    kept = _pooled(np.maximum, score, region) > settings.min_score
    return _selection(points[kept], hits[kept], score[kept], seen, clock)


def select_unet(
    image: Tensor, normaliser: Normaliser, model: Selector, probability: float, min_score: float
) -> Selection:
    """Pixels by the network.

    Args:
        image: (H, W) [counts].
        normaliser: knows the pedestal.
        model: the network.
        probability: a pixel is chosen above.
        min_score: a region needs summed odds whose logarithm is above; this is the score of all its points.
    """
    clock = Stopwatch()
    seen = normaliser(image)
    clock("t_pedsub")
    with torch.inference_mode():
        logits = model(seen.macro[None])[0]
    points, hits, region = _connected(logits > logit(probability))
    of_point = logits.mean(0).cpu().numpy()[tuple(points.T)].astype(float)
    score = _pooled(np.logaddexp, of_point, region)
    kept = score > min_score
    return _selection(points[kept], hits[kept], score[kept], seen, clock)


def _selection(
    points: NDArray[np.int64],
    hits: NDArray[np.bool_],
    score: NDArray[np.float64],
    seen: Significance,
    clock: Stopwatch,
) -> Selection:
    """Points that all weigh the same."""
    residual = seen.residual.cpu().numpy()
    clock("t_zerosup")
    return Selection(points, np.ones(len(points)), score, hits, residual, seconds=clock.seconds)


def _connected(chosen: Tensor) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Macro-pixels with chosen pixels, and the connected regions that they make.

    Args:
        chosen: (16, h, w) bool, the pixels of each macro-pixel.

    Returns:
        (N, 2) points, (N, 16) their chosen pixels, and (N,) the region of each, from 0.
    """
    pixels = chosen.permute(1, 2, 0).cpu().numpy()
    region, _ = label(pixels.any(2), np.ones((3, 3)))
    points = np.argwhere(region)
    return points, pixels[tuple(points.T)], region[tuple(points.T)] - 1


def _pooled(pool: np.ufunc, score: NDArray[np.float64], region: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N,) the scores of all points of a region together, for each of its points."""
    total = np.full(region.max(initial=-1) + 1, -np.inf)
    pool.at(total, region, score)
    return total[region]


def _pixels_of(chosen: NDArray[np.bool_], points: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N, 16) the pixels of macro-pixels."""
    height, width = chosen.shape
    blocks = chosen.reshape(height // BIN, BIN, width // BIN, BIN)
    return blocks[points[:, 0], :, points[:, 1]].reshape(len(points), BIN**2)
