"""Figures of an infill report, and what it says. Nothing here touches pyplot or a global style."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import hist
import mplhep
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sparsereco.infill.metrics import Match, Truth, VoxelSet, energies
from sparsereco.plots import BLUE, COLOURS, GREEN, GREY, ORANGE
from sparsereco.report import Section
from sparsereco.stats import Estimate, format_estimate, percent, spread

WINDOW = 32
"""Displays show this many voxels on either side of the middle of what is missing."""


def panels(rows: int, columns: int, size: tuple[float, float] = (4.6, 3.7)) -> tuple[Figure, NDArray]:
    """A figure and its axes as an array."""
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def voxel_counts(truth: Truth, matches: Mapping[str, Match]) -> Figure:
    """Voxels above threshold per event and energy per event, filled against missing, as in the LArDRIP slides."""
    figure, ((a, b),) = panels(1, 2)
    names = list(matches)[:2]
    for ax, weights, label in ((a, False, "voxels in gaps per event"), (b, True, "energy in gaps per event [MeV]")):

        def per_event(voxels: VoxelSet, weights: bool = weights) -> NDArray:
            return np.bincount(voxels.event, voxels.energy if weights else None, minlength=truth.n_events)

        target = per_event(truth.voxels)
        top = max(1.0, 1.2 * float(np.quantile(target, 0.98)))
        axis = hist.axis.Regular(40, 0, top)
        for name, values, colour in (
            ("target", target, GREY),
            *((name, per_event(matches[name].filled), c) for name, c in zip(names, COLOURS, strict=False)),
        ):
            histogram: hist.Hist = hist.Hist(axis).fill(np.clip(values, 0, 0.999 * top))
            mplhep.histplot(histogram, ax=ax, label=name, color=colour, yerr=False, lw=1.4)
        ax.set(xlabel=label, ylabel="events", xlim=(0, top))
        ax.legend(fontsize=8, frameon=False)
    return figure


def energy(truth: Truth, matches: Mapping[str, Match], single: NDArray[np.bool_]) -> Figure:
    """Relative residuals of the energy per crossing."""
    figure, ((ax,),) = panels(1, 1, (6.0, 4.2))
    for (name, m), colour in zip(matches.items(), COLOURS, strict=False):
        true, said = energies(truth, m.filled)
        used = single & (true > 0)
        residual = said[used] / true[used] - 1
        histogram: hist.Hist = hist.Hist(hist.axis.Regular(60, -1, 1)).fill(np.clip(residual, -0.999, 0.999))
        text = f"{name}\n  median {100 * np.median(residual):.1f} %, spread {100 * spread(residual).value:.1f} %"
        mplhep.histplot(histogram, ax=ax, label=text if len(residual) else name, color=colour, yerr=False, lw=1.4)
    ax.set(xlabel="energy in the gap, filled / true - 1", ylabel="crossings", xlim=(-1, 1))
    ax.set_title(f"{int((single & (energies(truth, truth.voxels)[0] > 0)).sum()):,} crossings", fontsize=9, color=GREY)
    ax.legend(fontsize=7, frameon=False, loc="upper left")
    return figure


def calibration(numbers: Mapping[str, Any], pull: NDArray) -> Figure:
    """Said probability against the share that is right, and the pulls of the energies."""
    figure, ((a, b),) = panels(1, 2)
    shown = numbers["count"] > 0
    a.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
    said, right, count = (numbers[key][shown] for key in ("said", "right", "count"))
    a.errorbar(said, right, np.sqrt(right * (1 - right) / count), fmt="o", color=BLUE, ms=3.5, lw=1.2)
    a.set(xlabel="probability of a voxel", ylabel="share that is missing indeed", xlim=(0, 1), ylim=(0, 1))
    a.set_title(f"{int(count.sum()):,} voxels", fontsize=9, color=GREY, loc="right")
    axis = hist.axis.Regular(60, -6, 6)
    mplhep.histplot(hist.Hist(axis).fill(np.clip(pull, -5.99, 5.99)), ax=b, color=BLUE, yerr=False, lw=1.4)
    x = np.linspace(-6, 6, 200)
    b.plot(x, np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi) * len(pull) * 0.2, color=ORANGE, lw=1, ls="--")
    b.set(xlabel="energy of a voxel, (filled - true) / stated error", ylabel="voxels", xlim=(-6, 6))
    return figure


def joined_by_angle(methods: Mapping[str, Any]) -> Figure:
    """Share of tracks joined against their angle to the gap's normal."""
    figure, ((ax,),) = panels(1, 1, (6.0, 4.0))
    for (name, numbers), colour in zip(methods.items(), COLOURS, strict=False):
        rows = [row for row in numbers["by_angle"] if row["joined"].count]
        x = [(row["low"] + row["high"]) / 2 for row in rows]
        y = [row["joined"].value for row in rows]
        ax.errorbar(x, y, [row["joined"].error for row in rows], 7.5, "o", color=colour, ms=3.5, lw=1.2, label=name)
    ax.set(xlabel="angle to the normal of the gap [deg]", ylabel="share of tracks joined", xlim=(0, 90), ylim=(0, 1.05))
    ax.legend(fontsize=8, frameon=False, loc="lower left")
    return figure


def display(truth: Truth, hits: VoxelSet, filled: VoxelSet, chosen: list[int]) -> Figure:
    """Target, input and prediction of events side by side, projected along the axis that shows the gap best."""
    figure, axes = panels(len(chosen), 3, (3.6, 3.4))
    for row, event in zip(axes, chosen, strict=True):
        missing, seen, guess = (_of_event(v, event) for v in (truth.voxels, hits, filled))
        across = int(truth.axis[np.bincount(missing.gap).argmax()])
        middle = np.median(missing.coords, 0).astype(int)
        up = max((a for a in range(3) if a != across), key=lambda a: np.ptp(missing.coords[:, a]))
        for ax, title, parts in (
            (row[0], "target", (seen, missing)),
            (row[1], "input", (seen,)),
            (row[2], "prediction", (seen, guess)),
        ):
            _project(ax, parts, across, up, middle)
            inside = missing.coords[:, across]
            ax.axvspan(inside.min(), inside.max() + 1, color=GREEN, alpha=0.08, lw=0)
            ax.set_title(f"event {event}: {title}", fontsize=9)
            ax.set(xlabel=f"{'xyz'[across]} [voxel]", ylabel=f"{'xyz'[up]} [voxel]", aspect="equal")
    return figure


def _of_event(voxels: VoxelSet, event: int) -> VoxelSet:
    own = voxels.event == event
    return VoxelSet(voxels.event[own], voxels.coords[own], voxels.energy[own], voxels.gap[own])


def _project(ax: Axes, parts: tuple[VoxelSet, ...], across: int, up: int, middle: NDArray) -> None:
    """Energy summed along the third axis."""
    image = np.zeros((2 * WINDOW, 2 * WINDOW))
    low = middle[[across, up]] - WINDOW
    for part in parts:
        place = part.coords[:, [across, up]] - low
        inside = ((place >= 0) & (place < 2 * WINDOW)).all(1)
        np.add.at(image, (place[inside, 1], place[inside, 0]), part.energy[inside])
    extent = (low[0], low[0] + 2 * WINDOW, low[1], low[1] + 2 * WINDOW)
    shown = np.ma.masked_less_equal(image, 0)
    ax.imshow(shown, origin="lower", extent=extent, norm=LogNorm(0.1, 10), cmap="viridis", interpolation="nearest")


def headline(summary: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    """Name, value and entries of each row of the summary table."""
    rows: list[tuple[str, Estimate, str]] = []
    for name, numbers in summary["methods"].items():
        rows.append((f"{name}: F1 by exact voxel", numbers["f1"], ""))
        if name not in list(summary["methods"])[:2]:  # the rest of the other baselines stands in the report
            continue
        rows += [
            (f"{name}: F1 within one voxel", numbers["f1_near"], ""),
            (f"{name}: energy per crossing, median residual", percent(numbers["energy"]["bias"]), "%"),
            (f"{name}: energy per crossing, bias of the sum", percent(numbers["energy"]["bias_of_sum"]), "%"),
            (f"{name}: energy per crossing, 68 % of abs(residual)", percent(numbers["energy"]["spread"]), "%"),
            (f"{name}: tracks joined", percent(numbers["joined"]), "%"),
        ]
    expected = summary["expected_energy"]
    rows += [
        ("network, unlikely voxels too: energy per crossing, bias of the sum", percent(expected["bias_of_sum"]), "%"),
        ("energy per crossing: own fluctuation of the tracks", percent(summary["own_fluctuation"]), "%"),
        ("missing voxels in pieces that no hit leads to", percent(summary["unreached"]), "%"),
        ("missing voxels of tracks that touch no hit", percent(summary["by_contacts"][0]["share"]), "%"),
        ("limit of F1 within one voxel: all of the other tracks, nothing else", summary["limit"]["f1_near"], ""),
        ("voxel energies within one stated error", percent(summary["coverage"]), "%"),
        ("expected calibration error of the probability", summary["calibration"]["ece"], ""),
        ("empty gaps filled by mistake, of all", percent(summary["mistakes"]), "%"),
        ("empty gaps filled by mistake, of those with hits beside", percent(summary["mistakes_beside"]), "%"),
    ]
    return tuple((name, format_estimate(value, unit), f"{value.count:,}") for name, value, unit in rows)


def sections(summary: Mapping[str, Any]) -> list[Section]:
    """What the report shows, in this order."""
    methods = summary["methods"]

    def table(*keys: str) -> tuple[tuple[str, ...], ...]:
        return tuple((name, *(format_estimate(numbers[key]) for key in keys)) for name, numbers in methods.items())

    def by(group: str, label: str, unit: str = "") -> tuple[tuple[str, ...], ...]:
        first = next(iter(methods.values()))[group]
        return tuple(
            (
                f"{row[label]}{unit}",
                *(format_estimate(numbers[group][i]["joined"]) for numbers in methods.values()),
                f"{row['joined'].count:,}",
            )
            for i, row in enumerate(first)
        )

    exact, near = ("precision", "recall", "f1"), ("precision_near", "recall_near", "f1_near")
    energy_rows = tuple(
        (
            name,
            *(format_estimate(percent(numbers["energy"][key]), "%") for key in ("bias", "bias_of_sum", "spread")),
            format_estimate(numbers["chamfer"], "mm") if "chamfer" in numbers else "",
        )
        for name, numbers in (*methods.items(), ("network, gap_e", {"energy": summary["expected_energy"]}))
    )
    tracks = tuple(
        (row["tracks"], *(format_estimate(numbers["by_tracks"][i]["f1"]) for numbers in methods.values()))
        for i, row in enumerate(next(iter(methods.values()))["by_tracks"])
    )
    contacts = tuple(
        (row["contacts"], *(format_estimate(percent(row[key]), "%") for key in ("share", "recall_near")))
        for row in summary["by_contacts"]
    )
    return [
        Section("Summary", "", ("quantity", "value", "entries"), headline(summary)),
        Section(
            "Voxels",
            "Dead voxels that would be above threshold, summed over all events; errors by bootstrap over events. "
            "Straight line: charge-weighted, through the hits within 12 voxels on either side; lone ends: also from "
            "ends without partner as far as the gap goes. Reflection: the track mirrored through its end.",
            ("method", *exact, *(key.replace("_near", " within one") for key in near)),
            table(*exact, *near),
            "counts",
        ),
        Section(
            "Energy",
            "Gaps that one track runs through and in which exactly one pair of track ends was joined. Own fluctuation: "
            "the spread of the true energy over the length of the line, which no method knows. "
            "gap_e: the expected energy of a gap, voxels too unlikely to be filled counted by their probability; "
            "its sum is right where the median lies below the mean, as delta rays have it.",
            ("method", "median residual", "bias of the sum", "68 % of abs(residual)", "Chamfer distance"),
            energy_rows,
            "energy",
        ),
        Section(
            "Tracks joined",
            "Tracks with at least 4 missing voxels in a gap of which 90 % have a filled one within one voxel, by angle "
            f"to the gap's normal, in all methods; {summary['crossings']:,} crossings have exactly one joined pair.",
            figure="joined",
        ),
        Section("By gap width", "", ("voxels", *methods, "tracks"), by("by_width", "width")),
        Section("By particle", "PDG code.", ("particle", *methods, "tracks"), by("by_particle", "pdg")),
        Section("F1 by tracks in gaps", "Of events with that many.", ("tracks", *methods), tracks),
        Section(
            "Recall of the network by what there is to see",
            "At how many places hits touch a track in the gap: a track that touches none, as a secondary inside, is "
            "not to be known; one that touches one stops, scatters or leaves the detector, or runs along the gap.",
            ("places", "of the missing voxels", "filled within one voxel"),
            contacts,
        ),
        Section("Calibration", "Probabilities and errors of the filled voxels.", figure="calibration"),
        Section("Events", "Energy summed along the third axis; shaded: the gap.", figure="display"),
    ]
