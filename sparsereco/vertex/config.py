"""Settings of the vertex chain: the one truth that ``configs/vertex.yaml`` and the command line fill.

Light on purpose (no torch): ``tools/reco.py --help`` reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sparsereco import bounds
from sparsereco.detector import Detector


@dataclass(frozen=True)
class FinderSettings:
    """How the vertices are taken from the finder's voxel scores."""

    score_threshold: float = 0.01
    """Candidates with a lower score are dropped (0 to 1)."""
    further_threshold: float = 0.1
    """After the best candidate of an event, those with a lower score than this are dropped, too (0 to 1)."""
    separation: float = 40.0
    """Of two candidates that are closer than this, the better one stays [mm]."""
    max_vertices: int = 5
    """At most this many vertices per event, best first."""

    def __post_init__(self) -> None:
        bounds.share(self, "finder.", "score_threshold", "further_threshold")
        bounds.not_negative(self, "finder.", "separation")
        bounds.at_least(1, self, "finder.", "max_vertices")


@dataclass(frozen=True)
class TrackSettings:
    """How the tracks that leave the crop are found."""

    min_pe: float = 10.0
    """Weaker hits (crosstalk, noise) are not joined to tracks [p.e.]."""
    max_tracks: int = 4
    """At most this many leaving tracks per vertex, those with most hits."""

    def __post_init__(self) -> None:
        bounds.not_negative(self, "tracks.", "min_pe", "max_tracks")


@dataclass(frozen=True)
class DecomposerSettings:
    """How the crop is taken apart into hadrons."""

    light_nuclei: bool = False
    """Whether hadrons may be deuterons and tritons; if not, all are taken for protons."""
    max_hadrons: int = 6
    """At most this many hadrons per vertex (1 to 6, what the network was made for)."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_hadrons <= 6:
            raise ValueError(f"decomposer.max_hadrons must lie in [1, 6], got {self.max_hadrons}")


@dataclass(frozen=True)
class RefinementSettings:
    """How vertex and hadrons are fitted to the light of the crop, where they are."""

    starts: int = 8
    """Fits per vertex, from draws of the decomposer's densities; time is proportional to it."""
    steps: int = 20
    """Steps of a fit at most; most of them end sooner."""
    number: bool = False
    """Whether one hadron more and one fewer than were named are fitted as well, and the likeliest number is taken."""

    def __post_init__(self) -> None:
        bounds.at_least(1, self, "refinement.", "starts", "steps")


@dataclass(frozen=True)
class VertexConfig:
    """Settings of the vertex chain."""

    detector: Detector = field(default_factory=Detector)
    """The detector that the hits come from."""
    finder: FinderSettings = field(default_factory=FinderSettings)
    """How the vertices are taken from the finder's voxel scores."""
    tracks: TrackSettings = field(default_factory=TrackSettings)
    """How the tracks that leave the crop are found."""
    decomposer: DecomposerSettings = field(default_factory=DecomposerSettings)
    """How the crop is taken apart into hadrons."""
    refine: bool = False
    """Whether vertex and hadrons are fitted to the light of the crop. It fills `vtx_deviance` and `vtx_ndf`, and takes
    six times as long as all the rest."""
    refinement: RefinementSettings = field(default_factory=RefinementSettings)
    """How they are, where they are."""
    batch_size: int = 256
    """Events per forward pass; changes speed and memory, not results."""
    light_scale: float | None = None
    """Light yield divided by the nominal one; signals are divided by it. null: `tools/reco.py` measures it on the
    leaving tracks of the first events, `VertexChain` by itself takes the nominal one."""
    finder_weights: str | None = None
    """Checkpoint of the finder (.safetensors); null: the shipped one."""
    decomposer_weights: str | None = None
    """Checkpoint of the decomposer (.safetensors); null: the shipped one."""
    generator_weights: str | None = None
    """Checkpoint of the generator (.safetensors), which the refinement needs; null: the shipped one."""

    def __post_init__(self) -> None:
        bounds.at_least(1, self, "", "batch_size")
        if self.light_scale is not None and not 0 < self.light_scale < float("inf"):
            raise ValueError(f"light_scale must be positive and finite, or null, got {self.light_scale}")
