"""The detector and its response: plain frozen values, filled from ``configs/detectors/*.yaml``.

Every length is in mm, every energy in MeV, every signal in photo-electrons (p.e.). Neither torch nor a model is known
here, so that `io` and an experiment's own code can use it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sparsereco import bounds


@dataclass(frozen=True)
class Response:
    """How deposited energy becomes signal. The defaults are the ``ideal`` response."""

    light_yield: float = 85.8
    """Photo-electrons per MeV of quenched energy [p.e./MeV]."""
    birks: float = 0.126
    """Birks constant [mm/MeV]: visible energy is dE / (1 + birks dE/dx)."""
    crosstalk: float = 0.0
    """Share of a voxel's light that leaks to each of its face neighbours (0 to 1/6); light is conserved."""
    threshold: float = 1.0
    """A voxel below this signal is not read out [p.e.]."""
    noise_hits: float = 0.0
    """Mean number of noise voxels per event, Poisson distributed."""
    noise_pe: float = 2.0
    """Mean of the exponential excess of a noise voxel above the threshold [p.e.]."""
    crossing_muons: float = 0.0
    """Probability that an unrelated muon crosses the detector in the same event."""

    def __post_init__(self) -> None:
        bounds.positive(self, "response.", "light_yield", "threshold")
        bounds.not_negative(self, "response.", "birks", "noise_hits", "noise_pe")
        if not 0 <= self.crosstalk <= 1 / 6:
            raise ValueError(f"response.crosstalk must lie in [0, 1/6], got {self.crosstalk}")
        bounds.share(self, "response.", "crossing_muons")


@dataclass(frozen=True)
class Detector:
    """A box of cubic voxels. The defaults are the SuperFGD-like detector of the documentation."""

    shape: tuple[int, int, int] = (192, 56, 184)
    """Number of voxels along x, y, z."""
    pitch: float = 10.0
    """Edge of a voxel [mm]."""
    origin: tuple[float, float, float] = (-960.0, -280.0, -920.0)
    """Lower corner of voxel (0, 0, 0) [mm]."""
    response: Response = field(default_factory=Response)

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:  # type: ignore[redundant-expr]  # settings may be anything
            raise ValueError(f"detector.shape must be three positive numbers of voxels, got {self.shape}")
        bounds.positive(self, "detector.", "pitch")

    @property
    def size(self) -> tuple[float, float, float]:
        """Full length along x, y, z [mm]."""
        x, y, z = self.shape
        return x * self.pitch, y * self.pitch, z * self.pitch

    def index(self, position: np.ndarray) -> np.ndarray:
        """Voxel index floor((x - origin) / pitch).

        Args:
            position: (N, 3) [mm].

        Returns:
            (N, 3) int64; not clipped, so a position outside gives an index outside the grid.
        """
        return np.floor((np.asarray(position, np.float64) - self.origin) / self.pitch).astype(np.int64)

    def centre(self, index: np.ndarray) -> np.ndarray:
        """Centres of voxels [mm], (N, 3), from their (N, 3) index."""
        return (np.asarray(index, np.float64) + 0.5) * self.pitch + self.origin
