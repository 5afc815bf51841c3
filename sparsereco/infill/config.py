"""Settings of the infill chain: the one truth that ``configs/infill.yaml`` and the command line fill.

Light on purpose (no torch): ``tools/reco.py --help`` reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsereco import bounds


@dataclass(frozen=True)
class InfillConfig:
    """Settings of the infill chain; the geometry comes on its own."""

    min_prob: float = 0.45
    """Candidates with a lower probability are left out (0 to 1), but for those that the next setting adds."""
    min_expected: float = 0.7
    """A voxel is also filled where at least so many missing ones are expected in and beside it that no filled one
    touches; more than 27 there cannot be."""
    min_peak: float = 0.6
    """A gap whose likeliest candidate in an event has a lower probability is left alone (0 to 1)."""
    batch_size: int = 32
    """Events per forward pass; changes speed and memory, not results."""
    weights: str | None = None
    """Checkpoint of the filler (.safetensors); null: the shipped one."""

    def __post_init__(self) -> None:
        bounds.share(self, "", "min_prob", "min_peak")
        bounds.positive(self, "", "min_expected")
        bounds.at_least(1, self, "", "batch_size")
