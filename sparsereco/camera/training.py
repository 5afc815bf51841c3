"""What the networks of the camera chain are trained on: pieces of frames with and without tracks, of many cameras."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsereco import bounds
from sparsereco.camera.anomaly import OBJECTIVES, Autoencoder
from sparsereco.camera.embed import PATCH, Embedder
from sparsereco.camera.significance import BIN, Normaliser, Significance
from sparsereco.camera.unet import Selector, focal_loss, to_pixels
from sparsereco.sim.camera import (
    CARBON,
    FLUORINE,
    HELIUM,
    SENSORS,
    Chamber,
    Light,
    Noise,
    Sensor,
    Track,
    electron_tracks,
    light_of,
    lit_pixels,
    recoil_track,
)


@dataclass(frozen=True)
class PatchStream:
    """The pieces of frames and the loss."""

    size: int = 256
    """Edge of a piece [pixel]."""
    electrons: int = 8000
    """Electron tracks from Geant4 that are used again and again."""
    faint: float = 0.75
    """Share of tracks below 1.5 keV; the others go up to 60 keV."""
    recoils: float = 0.25
    """Share of nuclear recoils."""
    positive_weight: float = 2.0
    """Weight of lit pixels in the loss."""
    gamma: float = 1.0
    """Exponent of the focal loss."""

    def __post_init__(self) -> None:
        bounds.at_least(BIN, self, "patches.", "size")
        bounds.at_least(1, self, "patches.", "electrons")
        bounds.share(self, "patches.", "faint", "recoils")
        bounds.positive(self, "patches.", "positive_weight")
        bounds.not_negative(self, "patches.", "gamma")


def draw_noises(shape: tuple[int, int], rng: np.random.Generator) -> list[tuple[Sensor, Noise]]:
    """Pixels of pieces of cameras, three of four like those of the first preset."""
    sensors = [SENSORS["fusion"]] * 3 + [SENSORS["quest"]]
    return [(replace(sensor, shape=shape), Noise.draw(sensor, shape, rng)) for sensor in sensors * 48]


def seen_with_pedestal(image: NDArray, noise: Noise, sensor: Sensor, rng: np.random.Generator) -> Significance:
    """An image as it is seen by a pedestal of 40 to 400 frames of its camera."""
    # A run of n frames knows the mean to sigma / sqrt(n), and sigma to a share of 1 / sqrt(2 n).
    frames, shape = rng.integers(40, 400), noise.mean.shape
    mean = noise.mean + noise.sigma * rng.standard_normal(shape, np.float32) / np.sqrt(frames)
    sigma = noise.sigma * (1 + rng.standard_normal(shape, np.float32) / np.sqrt(2 * frames))
    hot = noise.mean > sensor.offset + 20
    normaliser = Normaliser(*(torch.from_numpy(np.asarray(a)) for a in (mean.astype("f4"), sigma.astype("f4"), hot)))
    return normaliser(torch.from_numpy(image.astype(np.float32)))


class Patches:
    """Draws pieces of frames; tracks and noise maps are made once.

    Args:
        settings: the pieces.
        seed: of Geant4, the noise maps and their use.
    """

    def __init__(self, settings: PatchStream, seed: int) -> None:
        self.settings = settings
        rng = np.random.default_rng(seed)
        self.electrons = electron_tracks(np.sort(self._energies(settings.electrons, rng)), seed + 1, rng)
        shape = (settings.size, settings.size)
        self.noises = draw_noises(shape, rng)

    def _energies(self, n: int, rng: np.random.Generator) -> np.ndarray:
        faint = rng.random(n) < self.settings.faint
        return np.exp(np.where(faint, rng.uniform(np.log(0.15), np.log(1.5), n), rng.uniform(0.0, np.log(60), n)))

    def draw(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Pieces and their truth.

        Args:
            n: how many.
            seed: the same one gives the same pieces.

        Returns:
            (n, size / 4, size / 4) significance and (n, size, size) bool, lit pixels.
        """
        rng = np.random.default_rng(seed)
        macros, targets = zip(*(self._piece(rng) for _ in range(n)), strict=True)
        return torch.stack(macros), torch.stack(targets)

    def _piece(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        sensor, noise = self.noises[rng.integers(len(self.noises))]
        size, shape = self.settings.size, noise.mean.shape
        # One light yield for all tracks of a piece: vignetting, another gain, another camera.
        chamber = Chamber(
            light=1000 * np.exp(rng.uniform(np.log(0.4), np.log(1.6))),
            saturation=rng.choice([0.0, 150.0]),
            edge_light=1.0,
            diffusion=rng.uniform(0.10, 0.15),
        )
        lights = []
        for _ in range(rng.choice(3, p=[0.25, 0.5, 0.25])):
            place = rng.uniform(-20, size + 20, 2)
            lights.append(light_of(self._track(rng), place, rng.uniform(0, chamber.drift), chamber, sensor, rng))
        image = noise.expose(lights, rng, scale=rng.choice([1.0, 1.3]), drift=rng.choice([0.0, 0.3]))

        return seen_with_pedestal(image, noise, sensor, rng).macro, torch.from_numpy(lit_pixels(lights, shape))

    def _track(self, rng: np.random.Generator) -> Track:
        if rng.random() > self.settings.recoils:
            return self.electrons[rng.integers(len(self.electrons))]
        return recoil_track(rng.choice([HELIUM, CARBON, FLUORINE]), float(2 * self._energies(1, rng)[0]), rng)


def selector_step(
    model: Selector, settings: PatchStream, patches: Patches, n: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Losses of one step on ``n`` pieces."""
    seed = int(torch.randint(2**62, (1,), generator=generator))
    macro, target = patches.draw(n, seed)
    logits = to_pixels(model(macro))
    # In units of the share of lit pixels: of the order of 1.
    return {"focal": 100 * focal_loss(logits, target, settings.positive_weight, settings.gamma)}


@dataclass(frozen=True)
class PedestalStream:
    """Pieces of pedestal frames, without a track."""

    size: int = 256
    """Edge of a piece [pixel], a multiple of 4."""
    frames: str | None = None
    """File with frames of a real pedestal run; null: pieces of simulated cameras."""
    max_frames: int = 60
    """How many of its frames are used, after those that measured the pedestal (a third of them)."""

    def __post_init__(self) -> None:
        bounds.at_least(BIN, self, "pieces.", "size")
        bounds.at_least(1, self, "pieces.", "max_frames")


class PedestalPieces:
    """Draws maps of pieces of pedestal frames, as an objective sees them.

    Args:
        settings: the pieces.
        view: of the objective.
        seed: of the noise maps.
        run: frames of a pedestal run as they are seen by its pedestal; None: simulated ones.
    """

    def __init__(
        self,
        settings: PedestalStream,
        view: Callable[[Significance], Tensor],
        seed: int,
        run: Iterable[Significance] | None = None,
    ) -> None:
        self.settings, self.view = settings, view
        shape = (settings.size, settings.size)
        self.noises = draw_noises(shape, np.random.default_rng(seed)) if run is None else []
        self.maps = [] if run is None else [view(seen) for seen in run]

    def draw(self, n: int, seed: int) -> Tensor:
        """(n, size / 4, size / 4); the same seed gives the same ones."""
        rng = np.random.default_rng(seed)
        return torch.stack([self._piece(rng) for _ in range(n)])

    def _piece(self, rng: np.random.Generator) -> Tensor:
        if self.maps:
            whole, edge = self.maps[rng.integers(len(self.maps))], self.settings.size // BIN
            top, left = (int(rng.integers(side - edge + 1)) for side in whole.shape)
            return whole[top : top + edge, left : left + edge]
        sensor, noise = self.noises[rng.integers(len(self.noises))]
        image = noise.expose([], rng, scale=rng.choice([1.0, 1.3]), drift=rng.choice([0.0, 0.3]))
        return self.view(seen_with_pedestal(image, noise, sensor, rng))


def anomaly_step(model: Autoencoder, pieces: PedestalPieces, n: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Losses of one step on ``n`` pieces."""
    image = pieces.draw(n, int(torch.randint(2**62, (1,), generator=generator)))
    objective = OBJECTIVES[model.settings.objective]
    return {model.settings.objective: objective.loss(model, image, generator)}


@dataclass(frozen=True)
class EmbedSample:
    """Patches of electron recoils, nuclear recoils and noise, a third each."""

    patches: int = 2400
    """How many."""
    electrons: tuple[float, float] = (20.0, 60.0)
    """Energies of electrons [keV]."""
    recoils: tuple[float, float] = (20.0, 100.0)
    """Energies of nuclei [keV]."""

    def __post_init__(self) -> None:
        bounds.at_least(1, self, "sample.", "patches")
        bounds.positive(self, "sample.", "electrons", "recoils")


def embed_patches(settings: EmbedSample, seed: int) -> Tensor:
    """(N, 25, 25) significance of patches, whose centre is that of the light, up to three macro-pixels off."""
    rng = np.random.default_rng(seed)
    noises = draw_noises((BIN * PATCH, BIN * PATCH), rng)
    energies = [_log_uniform(settings.electrons, rng) for _ in range(0, settings.patches, 3)]
    electrons = iter(electron_tracks(np.array(energies), seed + 1, rng))
    maps = []
    for i in range(settings.patches):
        sensor, noise = noises[rng.integers(len(noises))]
        lights = []
        if i % 3 == 0:
            lights = [_patch_of(next(electrons), sensor, rng)]
        elif i % 3 == 1:
            energy = _log_uniform(settings.recoils, rng)
            lights = [_patch_of(recoil_track(rng.choice([HELIUM, CARBON, FLUORINE]), energy, rng), sensor, rng)]
        maps.append(seen_with_pedestal(noise.expose(lights, rng), noise, sensor, rng).macro)
    return torch.stack(maps)


def _log_uniform(limits: tuple[float, float], rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(limits[0]), np.log(limits[1]))))


def _patch_of(track: Track, sensor: Sensor, rng: np.random.Generator) -> Light:
    """The light of a track that falls into a patch around its centre."""
    chamber, wide = Chamber(edge_light=1.0), replace(sensor, shape=(1200, 1200))
    light = light_of(track, np.array([600.0, 600.0]), rng.uniform(0, chamber.drift), chamber, wide, rng)
    centre = np.average(light.pixel, axis=0, weights=light.expected) if len(light.pixel) else np.zeros(2)
    place = light.pixel - np.rint(centre + rng.uniform(-12, 12, 2)).astype(int) + BIN * PATCH // 2
    inside = ((place >= 0) & (place < BIN * PATCH)).all(1)
    return Light(place[inside], light.expected[inside], light.counts[inside])


def embed_step(model: Embedder, prepared: Tensor, n: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Loss of one step of the autoencoder on ``n`` of the prepared patches."""
    rows = torch.randint(len(prepared), (n,), generator=generator)
    return {"drawing": torch.nn.functional.mse_loss(model.redraw(prepared[rows]), prepared[rows]) / prepared.var()}
