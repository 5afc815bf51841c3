"""What the pixel selector is trained on: pieces of frames with tracks of few keV, in the noise of many cameras."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sparsereco.camera.significance import Normaliser
from sparsereco.camera.unet import Selector, focal_loss, to_pixels
from sparsereco.sim.camera import (
    CARBON,
    FLUORINE,
    HELIUM,
    SENSORS,
    Chamber,
    Noise,
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
        sensors = [SENSORS["fusion"]] * 3 + [SENSORS["quest"]]
        self.noises = [(replace(sensor, shape=shape), Noise.draw(sensor, shape, rng)) for sensor in sensors * 48]

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

        # A pedestal run of n frames knows the mean to sigma / sqrt(n), and sigma to a share of 1 / sqrt(2 n).
        frames = rng.integers(40, 400)
        mean = noise.mean + noise.sigma * rng.standard_normal(shape, np.float32) / np.sqrt(frames)
        sigma = noise.sigma * (1 + rng.standard_normal(shape, np.float32) / np.sqrt(2 * frames))
        hot = noise.mean > sensor.offset + 20
        normaliser = Normaliser(
            *(torch.from_numpy(np.asarray(a)) for a in (mean.astype("f4"), sigma.astype("f4"), hot))
        )
        macro = normaliser(torch.from_numpy(image.astype(np.float32))).macro
        return macro, torch.from_numpy(lit_pixels(lights, shape))

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
