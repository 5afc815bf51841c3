"""Figures of a camera report. Each function draws into axes that it is given; nothing here touches pyplot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import awkward as ak
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from sparsereco.camera.calibrate import Peak
from sparsereco.camera.metrics import Comparison
from sparsereco.camera.region_metrics import RegionComparison, summarise_regions
from sparsereco.camera.regions import polygons_of
from sparsereco.camera.significance import BIN, smooth
from sparsereco.plots import BLUE, COLOURS, GREY, ORANGE
from sparsereco.stats import Estimate, format_estimate


def efficiency(
    ax: Axes, comparisons: Mapping[str, Comparison], energy: float, limit: Mapping[str, Estimate] | None = None
) -> None:
    """Share of tracks found against fakes per frame, as the cut on the score moves, and what can be found."""
    for (what, ideal), marker in zip((limit or {}).items(), "Ds", strict=False):
        ax.errorbar(0.1, ideal.value, ideal.error, fmt=marker, color=GREY, ms=4, label=f"ideal observer, {what} known")
    ax.set(
        xscale="log", xlim=(0.01, 30), ylim=(0, 1.03), xlabel="fake clusters per frame", ylabel="share of events found"
    )
    for (name, one), colour in zip(comparisons.items(), COLOURS, strict=False):
        mine = np.abs(one.tracks.energy - energy) < 1e-3 * energy
        cuts = np.append(np.sort(one.fakes)[::-1], -np.inf)
        share = [(one.tracks.score[mine] > cut).mean() for cut in cuts]
        # From the left edge, where no fake is left, to the right one, beyond the last that there is.
        share, fakes = [*share, share[-1]], np.append(np.arange(len(cuts)) / one.frames, 100.0)
        fakes[0] = 1e-3
        error = np.sqrt(np.array(share) * (1 - np.array(share)) / max(mine.sum(), 1))
        ax.step(fakes, share, where="post", color=colour, lw=1.3, label=name)
        ax.fill_between(fakes, share - error, share + error, step="post", color=colour, alpha=0.15, lw=0)
    ax.axvline(0.1, color=GREY, lw=0.8, ls=":")
    ax.set_title(f"{energy:g} keV, {mine.sum():,} events", fontsize=9, color=GREY, loc="right")
    ax.legend(fontsize=7, frameon=False, loc="lower right")


def by_energy(ax: Axes, summaries: Mapping[str, dict], quantity: str, label: str) -> None:
    """One number per energy and reconstruction, with errors."""
    energies = sorted({float(e) for summary in summaries.values() for e in summary["energies"]})
    for i, ((name, summary), colour) in enumerate(zip(summaries.items(), COLOURS, strict=False)):
        points = [(energies.index(float(e)), row[quantity]) for e, row in summary["energies"].items()]
        x = [place + 0.12 * (i - (len(summaries) - 1) / 2) for place, _ in points]
        ax.errorbar(
            x,
            [e.value for _, e in points],
            [e.error for _, e in points],
            fmt="o",
            color=colour,
            ms=4,
            lw=1.2,
            label=name,
        )
    ax.set_xticks(range(len(energies)), [f"{energy:g}" for energy in energies])
    ax.set(xlabel="energy [keV]", ylabel=label)
    ax.legend(fontsize=7, frameon=False)


def light(ax: Axes, comparison: Comparison, threshold: float) -> None:
    """Measured against true light of the tracks that were found."""
    found = comparison.tracks.score > threshold
    true, reco = comparison.tracks.light[found], comparison.tracks.corrected[found]
    points = ax.scatter(true, reco, s=5, c=comparison.tracks.depth[found], cmap="viridis", lw=0)
    points.set_rasterized(True)
    ax.figure.colorbar(points, ax=ax, label="distance to the GEM [mm]")
    top = 1.05 * max([1.0, *true])
    ax.plot([0, top], [0, top], color=GREY, lw=0.8, ls="--")
    ax.set(xlabel="true light [counts]", ylabel="light of the cluster [counts]", xlim=(0, top), ylim=(0, None))


def times(ax: Axes, summaries: Mapping[str, dict]) -> None:
    """Stacked times per stage."""
    stages = [name for name in next(iter(summaries.values()))["seconds"] if name != "all"]
    left = np.zeros(len(summaries))
    for stage, colour in zip(stages, (*COLOURS, GREY), strict=False):
        values = np.array([1000 * summary["seconds"][stage] for summary in summaries.values()])
        if values.any():
            ax.barh(range(len(summaries)), values, left=left, color=colour, label=stage.removeprefix("t_"))
        left += values
    ax.set_yticks(range(len(summaries)), list(summaries))
    ax.set(xlabel="time per frame [ms]", ylim=(-0.6, len(summaries) + 0.4))
    ax.legend(fontsize=7, frameon=False, ncols=4, loc="upper center")


def peak(ax: Axes, integral: np.ndarray, fitted: Peak) -> None:
    """Light of clusters around a line, with the fit."""
    low, high = (fitted.mean.value + side * 5 * fitted.sigma.value for side in (-1, 1))
    counts, edges = np.histogram(integral, 60, (max(low, 0), high))
    width = edges[1] - edges[0]
    ax.errorbar(edges[:-1] + width / 2, counts, np.sqrt(counts), fmt="o", color=BLUE, ms=3, lw=1)
    x = np.linspace(edges[0], high, 300)
    ax.plot(x, fitted.density(x) * fitted.mean.count * width, color=ORANGE, lw=1.3)
    ax.set(xlabel="integral [counts]", ylabel=f"clusters / {width:.0f} counts", ylim=(0, None))
    ax.set_title(f"{format_estimate(fitted.mean)} counts", fontsize=9, color=GREY, loc="right")


def dependence(ax: Axes, centres: np.ndarray, peaks: Sequence[Peak | None], label: str) -> None:
    """Place of the peak against another quantity."""
    known = [(x, one.mean) for x, one in zip(centres, peaks, strict=True) if one is not None]
    ax.errorbar(
        [x for x, _ in known], [e.value for _, e in known], [e.error for _, e in known], fmt="o", color=BLUE, ms=4
    )
    ax.set(xlabel=label, ylabel="place of the peak [counts]", ylim=(0, None))


def calibration(
    integral: np.ndarray, fitted: Peak, centres: np.ndarray, bins: Sequence[Peak | None], label: str
) -> Figure:
    """The peak, and its place against another quantity."""
    figure = Figure(figsize=(9.2, 3.7), layout="constrained")
    a, b = figure.subplots(1, 2)
    peak(a, integral, fitted)
    dependence(b, centres, bins, label)
    return figure


def light_kept(ax: Axes, regions: Mapping[str, RegionComparison]) -> None:
    """Light of tracks kept against area kept, as the cut on the score moves."""
    for (name, one), colour in zip(regions.items(), COLOURS, strict=False):
        points = [summarise_regions(one, cut) for cut in _cuts(one)]
        area, kept = ([100 * value(p) for p in points] for value in (lambda p: 1 - p["discarded"].value, _kept))
        ax.plot(area, kept, color=colour, lw=1.3, label=name)
    ax.plot(2.2, 93.0, "x", color=GREY, ms=6, label="published (arXiv 2512.24290)")
    ax.set(xscale="log", xlabel="area kept [%]", ylabel="track light kept [%]", ylim=(70, 100.5))
    ax.legend(fontsize=7, frameon=False, loc="lower right")


def events_held(ax: Axes, regions: Mapping[str, RegionComparison], energy: float) -> None:
    """Share of events that a region holds against false regions per frame, as the cut on the score moves."""
    for (name, one), colour in zip(regions.items(), COLOURS, strict=False):
        points = [summarise_regions(one, cut) for cut in _cuts(one)]
        false = [max(p["false_per_frame"].value, 0.5 / one.frames) for p in points]
        ax.plot(false, [p["held"][f"{energy:g}"].value for p in points], color=colour, lw=1.3, label=name)
    ax.set(xscale="log", xlabel="false regions per frame", ylabel="share of events held")
    ax.set(xlim=(0.003, 30), ylim=(0, 1.03))
    ax.set_title(f"{energy:g} keV", fontsize=9, color=GREY, loc="right")
    ax.legend(fontsize=7, frameon=False, loc="lower right")


def _cuts(one: RegionComparison) -> np.ndarray:
    """Cuts on the score from all regions to none."""
    return np.append(-np.inf, np.quantile(one.score, np.linspace(0, 1, 60))) if len(one.score) else np.array([-np.inf])


def _kept(summary: dict) -> float:
    return summary["kept"].value


def figures(
    comparisons: Mapping[str, Comparison],
    summaries: Mapping[str, dict],
    regions: Mapping[str, RegionComparison],
    limits: Mapping[str, Mapping[str, Estimate]],
) -> dict[str, Figure]:
    """All figures of a camera report by file name, the first comparison being the one that the report is about."""
    first = next(iter(comparisons))
    energies = sorted({float(e) for e in summaries[first]["energies"]})
    found = Figure(figsize=(4.4 * max(len(energies), 1), 3.7), layout="constrained")
    for ax, energy in zip(found.subplots(1, max(len(energies), 1), squeeze=False)[0], energies, strict=False):
        efficiency(ax, comparisons, energy, limits.get(f"{energy:g}"))
    measured = Figure(figsize=(13.2, 3.7), layout="constrained")
    a, b, c = measured.subplots(1, 3)
    light(a, comparisons[first], summaries[first]["threshold"])
    by_energy(b, summaries, "bias", "relative bias of the light")
    b.axhline(0, color=GREY, lw=0.8, ls=":")
    by_energy(c, summaries, "f1", "F1 of the chosen pixels")
    spent = Figure(figsize=(7.5, 1.6 + 0.5 * len(summaries)), layout="constrained")
    times(spent.subplots(), summaries)
    drawn = {"efficiency": found, "light": measured, "times": spent}
    if regions:
        faintest = energies[:3]  # the others are held by any
        drawn["regions"] = Figure(figsize=(4.4 * (1 + len(faintest)), 3.7), layout="constrained")
        first_ax, *others = drawn["regions"].subplots(1, 1 + len(faintest), squeeze=False)[0]
        light_kept(first_ax, regions)
        for ax, energy in zip(others, faintest, strict=True):
            events_held(ax, regions, energy)
    return drawn


def classes_on_frame(macro: Tensor, regions: ak.Record, labels: np.ndarray, classes: int) -> Figure:
    """The regions of a frame, coloured by class.

    Args:
        macro: (h, w) significance.
        regions: record of the tree ``roi``.
        labels: (R,) their classes.
        classes: how many there are.
    """
    figure = Figure(figsize=(7.2, 6.6), layout="constrained")
    ax = figure.subplots()
    rows, columns = macro.shape
    edges = (-0.5, BIN * columns - 0.5, -0.5, BIN * rows - 0.5)
    picture = ax.imshow(smooth(macro, 1.0).numpy(), origin="lower", cmap="Greys", vmin=0, vmax=12, extent=edges)
    figure.colorbar(picture, ax=ax, label="smoothed significance", shrink=0.8)
    for corners, number in zip(polygons_of(regions), labels, strict=True):
        ax.fill(*corners.T, fill=False, ec=COLOURS[int(number) % len(COLOURS)], lw=1.4)
        ax.annotate(str(number), corners.max(0), color=COLOURS[int(number) % len(COLOURS)], fontsize=8)
    for number in range(classes):
        ax.plot([], [], color=COLOURS[number % len(COLOURS)], label=f"class {number}")
    ax.set(xlabel="x [pixel]", ylabel="y [pixel]", xlim=edges[:2], ylim=edges[2:])
    ax.legend(fontsize=7, loc="upper right")
    return figure


def class_examples(prepared: np.ndarray, labels: np.ndarray, classes: int, each: int = 8) -> Figure:
    """The first patches of each class.

    Args:
        prepared: (N, 25, 25) as the autoencoder sees them.
        labels: (N,) classes.
        classes: how many there are.
        each: patches of a class.
    """
    figure = Figure(figsize=(1.1 * each, 1.2 * classes), layout="constrained")
    axes = figure.subplots(classes, each, squeeze=False)
    for number, row in enumerate(axes):
        chosen = prepared[labels == number][:each]
        for ax in row:
            ax.set(xticks=[], yticks=[])
        for ax, patch in zip(row, chosen, strict=False):
            ax.imshow(patch, origin="lower", cmap="Greys", vmin=0, vmax=1)
        row[0].set_ylabel(f"class {number}", fontsize=8)
    return figure
