"""How well regions hold the tracks of a frame, and how little else.

An event is held by a region with half of its expected light. A region without any lit pixel is false.
"""

from __future__ import annotations

from dataclasses import dataclass

import awkward as ak
import numpy as np
from numpy.typing import NDArray

from sparsereco.camera.metrics import score_at_rate
from sparsereco.camera.regions import label_pixels, polygons_of
from sparsereco.errors import InputError
from sparsereco.stats import Estimate, fraction

HELD = 0.5
"""Share of a track's expected light that a region must have to hold it."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RegionComparison:
    """The regions of a sample against its tracks."""

    energy: Floats  # (T,) true kinetic energy [keV]
    held: Floats  # (T,) best score of a region that holds the track, -inf where none does
    light: Floats  # (P,) expected light of a track in a region [counts], for each pair that has some
    light_score: Floats  # (P,) score of that region
    light_frame: NDArray[np.int64]  # (P,) its frame
    total: Floats  # (frames,) expected light of all tracks [counts]
    area: Floats  # (R,) of a region, over that of the frame
    score: Floats  # (R,)
    false: NDArray[np.bool_]  # (R,) no lit pixel inside
    region_frame: NDArray[np.int64]  # (R,)

    @property
    def frames(self) -> int:
        """How many there are."""
        return len(self.total)


def compare_regions(regions: ak.Array, truth: ak.Array) -> RegionComparison:
    """Finds which region holds how much of which track.

    Args:
        regions: records of the tree ``roi``.
        truth: records of the tree ``event_info`` for the same frames in the same order.

    Raises:
        InputError: the frames are not the same.
    """
    if regions.event.tolist() != truth.eventnumber.tolist() or regions.run.tolist() != truth.run.tolist():
        raise InputError(
            f"the regions ({len(regions):,} frames) and the truth ({len(truth):,}) are of different frames"
        )
    parts = [_compare_frame(one, true, i) for i, (one, true) in enumerate(zip(regions, truth, strict=True))]
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return RegionComparison(*columns)


def _compare_frame(regions: ak.Record, truth: ak.Record, frame: int) -> tuple[NDArray, ...]:
    """The columns of `RegionComparison` of one frame."""
    shape, score = (regions.rows, regions.columns), np.asarray(regions.roi_score, float)
    labels = label_pixels(polygons_of(regions), shape)
    track, light = np.asarray(truth.redpix_track), np.asarray(truth.redpix_iz, float)
    where = labels[np.asarray(truth.redpix_iy), np.asarray(truth.redpix_ix)]
    n, r = len(truth.energy), len(score)
    inside = np.bincount(track * (r + 1) + where, light, n * (r + 1)).reshape(n, r + 1)[:, 1:]
    total = np.bincount(track, light, n)
    held = np.where(inside > HELD * total[:, None], score, -np.inf).max(1, initial=-np.inf)
    _, region = np.nonzero(inside)
    return (
        np.asarray(truth.energy, float),
        held,
        inside[np.nonzero(inside)],
        score[region],
        np.full(len(region), frame),
        total.sum(keepdims=True),
        np.asarray(regions.roi_area, float) / (shape[0] * shape[1]),
        score,
        np.bincount(where, minlength=r + 1)[1:] == 0,
        np.full(r, frame),
    )


def threshold_at(comparison: RegionComparison, false_per_frame: float) -> float:
    """The score that so many false regions per frame exceed; -inf where there are fewer at all."""
    return score_at_rate(comparison.score[comparison.false], false_per_frame, comparison.frames)


def summarise_regions(one: RegionComparison, threshold: float) -> dict:
    """All numbers at one threshold.

    Args:
        one: of a sample.
        threshold: on the score; regions above count.

    Returns:
        Shares of light kept and of area left out (errors from the spread over frames), false regions per frame, and
        the share of events held by energy.
    """
    n, above = one.frames, one.score > threshold
    kept = np.bincount(one.light_frame, one.light * (one.light_score > threshold), n)
    area = np.bincount(one.region_frame, one.area * above, n)
    false = int((one.false & above).sum())
    share = kept.sum() / one.total.sum() if one.total.sum() else np.nan
    spread = (kept - share * one.total).std(ddof=1) / np.sqrt(n) / one.total.mean() if n > 1 else np.nan
    energies = {
        f"{energy:g}": fraction(one.held[np.abs(one.energy - energy) < 1e-3 * energy] > threshold)
        for energy in np.unique(one.energy)
    }
    return {
        "threshold": threshold,
        "kept": Estimate(float(share), float(spread), n),
        "discarded": Estimate(float(1 - area.mean()), float(area.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan, n),
        "false_per_frame": Estimate(false / n, max(false, 1) ** 0.5 / n, n),
        "held": energies,
    }
