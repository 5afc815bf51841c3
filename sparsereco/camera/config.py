"""Settings of the camera chain. Light: the command line needs them before torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sparsereco import bounds


@dataclass(frozen=True)
class NsigmaConfig:
    """The classical selection: zero suppression, median filter, macro-pixels, noise reductor."""

    nsigma: float = 1.3
    """Pixels below this many standard deviations are set to 0."""
    neighbours: float = 0.75
    """Mean of its eight neighbours below which a macro-pixel is noise [counts]."""
    outlier: float = 10.0
    """A macro-pixel this far off the mean of its neighbours is replaced by it [counts]."""
    min_samples: int = 14
    """Weight within reach that makes a core point of DBSCAN; here the weight of a point is its light [counts]."""
    min_score: float = 15.0
    """Clusters with a smaller sum of zero-suppressed light per macro-pixel are dropped [counts]."""

    def __post_init__(self) -> None:
        bounds.not_negative(self, "nsigma.", "nsigma", "neighbours", "outlier")
        bounds.at_least(1, self, "nsigma.", "min_samples")


@dataclass(frozen=True)
class GaussianConfig:
    """A matched filter."""

    sigma: float = 4.5
    """Standard deviation of the spot [pixel]."""
    threshold: float = 2.5
    """Pixels whose response is below this many standard deviations are not of a cluster."""
    min_score: float = 5.0
    """Clusters whose largest response is below are dropped [standard deviations]."""

    def __post_init__(self) -> None:
        if not 0 < self.sigma <= 100:
            raise ValueError(f"gaussian.sigma must be positive and at most 100, got {self.sigma}")


@dataclass(frozen=True)
class UnetConfig:
    """The U-Net."""

    weights: str | None = None
    """Checkpoint (.safetensors); null: the shipped one."""
    probability: float = 0.5
    """Pixels with a smaller output are not of a cluster (0 to 1)."""
    min_score: float = 3.3
    """Clusters with a smaller logarithm of their summed odds are dropped; this value leaves one fake in ten frames."""

    def __post_init__(self) -> None:
        if not 0 < self.probability < 1:
            raise ValueError(f"unet.probability must lie between 0 and 1, got {self.probability}")


@dataclass(frozen=True)
class AnomalyConfig:
    """The autoencoder that knows only noise."""

    weights: str | None = None
    """Checkpoint (.safetensors); null: the shipped one."""
    sigma: float = 4.5
    """Standard deviation of the spot that its error is smoothed over [pixel]."""
    threshold: float = 2.5
    """Pixels whose smoothed error is below this many standard deviations are not of a cluster."""
    min_score: float = 5.0
    """Clusters whose largest smoothed error is below are dropped [standard deviations]."""

    def __post_init__(self) -> None:
        if not 0 < self.sigma <= 100:
            raise ValueError(f"anomaly.sigma must be positive and at most 100, got {self.sigma}")


@dataclass(frozen=True)
class RegionConfig:
    """The regions of a frame that are worth keeping."""

    cell: int = 8
    """A track has a box in every cell of this edge [macro-pixel]."""
    margin: int = 3
    """How far boxes are enlarged on every side [macro-pixel]."""

    def __post_init__(self) -> None:
        bounds.at_least(1, self, "region.", "cell")
        bounds.not_negative(self, "region.", "margin")


@dataclass(frozen=True)
class DirectionalConfig:
    """Growth of straight and bent tracks beyond gaps."""

    enabled: bool = False
    """Whether clusters are tested and grown at all."""
    min_points: int = 12
    """Smaller clusters are not tested [macro-pixel]."""
    accuracy: float = 0.95
    """Share of a cluster's points that must lie along a line."""
    radius: float = 28.0
    """How far from a cluster its next points may be [macro-pixel]."""
    thickness: float = 6.5
    """How far from the curve points may be [macro-pixel]."""
    min_samples: int = 12
    """New points in one step, by weight, below which growth ends."""

    def __post_init__(self) -> None:
        bounds.share(self, "cluster.directional.", "accuracy")
        bounds.positive(self, "cluster.directional.", "radius", "thickness")
        # Without a new point growth would never end.
        bounds.at_least(1, self, "cluster.directional.", "min_points", "min_samples")


@dataclass(frozen=True)
class ClusterConfig:
    """DBSCAN on macro-pixels."""

    eps: float = 5.8
    """Reach of a point [macro-pixel]."""
    min_samples: int = 5
    """Points within reach that make a core point; not for `nsigma`."""
    min_size: int = 2
    """Smaller clusters are dropped [macro-pixel]."""
    margin: int = 3
    """Macro-pixels around the selected ones that belong to a cluster too, to hold its faint edge; not for `nsigma`."""
    directional: DirectionalConfig = field(default_factory=DirectionalConfig)

    def __post_init__(self) -> None:
        bounds.positive(self, "cluster.", "eps")
        bounds.at_least(1, self, "cluster.", "min_samples", "min_size")
        bounds.not_negative(self, "cluster.", "margin")


@dataclass(frozen=True)
class CameraConfig:
    """The chain from frames to clusters."""

    selector: Literal["unet", "gaussian", "nsigma", "anomaly"] = "unet"
    """What chooses pixels."""
    nsigma: NsigmaConfig = field(default_factory=NsigmaConfig)
    gaussian: GaussianConfig = field(default_factory=GaussianConfig)
    unet: UnetConfig = field(default_factory=UnetConfig)
    anomaly: AnomalyConfig = field(default_factory=AnomalyConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    region: RegionConfig = field(default_factory=RegionConfig)
    pixel: float = 0.152
    """Size of a pixel on the GEM [mm]."""
    kev_per_count: float = 0.001
    """Energy scale, as `sparsereco.camera.calibrate` finds it [keV/count]."""
    vignetting: str | None = None
    """ROOT file with the map of the light that arrives; null: no correction."""

    def __post_init__(self) -> None:
        bounds.positive(self, "", "pixel", "kev_per_count")
