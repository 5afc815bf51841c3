"""Figures of a vertex report. Each function draws into the axes it is given and returns what it drew.

Points are medians with statistical errors, bands hold the central 68.27 % of the entries, small grey figures are
numbers of entries. `figures` puts the panels of a report together; nothing here touches pyplot or a global style.
"""

from __future__ import annotations

from collections.abc import Mapping

import hist
import mplhep
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sparsereco.metrics import NEAR_VERTEX, Comparison, pulls
from sparsereco.stats import Estimate, Profile, Rate, format_estimate, median, spread

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#6b6b6b"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "#e69f00", "#56b4e9")
PULL_NAMES = {
    "vertex_x": "vertex x",
    "vertex_y": "vertex y",
    "vertex_z": "vertex z",
    "hadron_energy": "hadron energy",
    "direction": "hadron direction",
    "total_energy": "total energy",
}
"""Names in the figures of what `metrics.pulls` returns."""


def correlation(ax: Axes, true: np.ndarray, reco: np.ndarray, quantity: str, unit: str) -> ScalarMappable:
    """Density of reconstructed against true values, with the diagonal."""
    top = 1.02 * max([1.0, *(np.quantile(values, 0.999) for values in (true, reco) if len(values))])
    axis = hist.axis.Regular(60, 0, top)
    mesh = _density(ax, axis, true, reco)
    ax.plot([0, top], [0, top], color=ORANGE, lw=1, ls="--")
    ax.set(xlabel=f"true {quantity} [{unit}]", ylabel=f"reconstructed {quantity} [{unit}]", aspect="equal")
    ax.set_title(f"{len(true):,} entries", fontsize=9, color=GREY, loc="right")
    return mesh


def residuals(ax: Axes, samples: Mapping[str, np.ndarray], quantity: str, unit: str) -> list:
    """Histograms of residuals up to four spreads of the first sample; what lies beyond is counted in the outer bins.

    Args:
        ax: axes.
        samples: residuals by their label in the legend.
        quantity: label of the axis.
        unit: of the residuals.
    """
    limit = 4 * max(spread(next(iter(samples.values()))).value, 1e-6)
    limit = limit if np.isfinite(limit) else 1.0
    artists = []
    for (label, values), colour in zip(samples.items(), COLOURS, strict=False):
        histogram: hist.Hist = hist.Hist(hist.axis.Regular(60, -limit, limit))
        histogram.fill(np.clip(values, -0.999 * limit, 0.999 * limit))
        numbers = f"median {format_estimate(median(values))}, spread {format_estimate(spread(values), unit)}"
        text = f"{label}\n  {numbers}"
        artists += mplhep.histplot(histogram, ax=ax, label=text, color=colour, yerr=False, lw=1.4)
    ax.axvline(0, color=GREY, lw=0.8, ls=":")
    count = len(next(iter(samples.values())))
    ax.set(xlabel=f"{quantity}, reconstructed - true [{unit}]", ylabel=f"entries / {2 * limit / 60:.2g} {unit}")
    ax.set_title(f"{count:,} entries", fontsize=9, color=GREY, loc="right")
    ax.set(xlim=(-limit, limit), ylim=(0, 1.5 * ax.get_ylim()[1]))
    ax.legend(fontsize=6, frameon=False, loc="upper left", handlelength=1)
    return artists


def profile_band(ax: Axes, profile: Profile, x_label: str, y_label: str, label: str = "median, 68 % band") -> list:
    """Median with error and 68 % band in bins, the numbers of entries along the bottom."""
    edges = profile.edges
    shown, centre, half = profile.count > 0, 0.5 * (edges[1:] + edges[:-1]), 0.5 * np.diff(edges)
    band = ax.bar(
        centre[shown], (profile.high - profile.low)[shown], 2 * half[shown], profile.low[shown], color=BLUE, alpha=0.2
    )
    points = ax.errorbar(
        centre[shown], profile.median[shown], profile.median_error[shown], half[shown], "o", color=BLUE, ms=3.5, lw=1.2,
        label=label,
    )  # fmt: skip
    ax.set(xlabel=x_label, ylabel=y_label, xlim=(edges[0], edges[-1]))
    _frame(ax, signed=bool((profile.low[shown] < 0).any()))
    _counts(ax, centre[shown], profile.count[shown])
    ax.legend(fontsize=8, frameon=False)
    return [band, points]


def boxes(ax: Axes, groups: np.ndarray, values: np.ndarray, x_label: str, y_label: str) -> dict:
    """One box per group: median, central 68.27 % as box, central 95.45 % as whiskers."""
    numbers = np.unique(groups)
    ax.set(xlabel=x_label, ylabel=y_label)
    if len(numbers) == 0:
        return {}
    quantiles = [0.0228, 0.1587, 0.5, 0.8413, 0.9772]
    stats = []
    for number in numbers:
        keys = ("whislo", "q1", "med", "q3", "whishi")
        stats.append(dict(zip(keys, np.quantile(values[groups == number], quantiles), strict=True)))
    box = {"facecolor": BLUE, "alpha": 0.25, "edgecolor": BLUE}
    line = {"color": BLUE, "lw": 1.6}
    artists = ax.bxp(
        stats, positions=numbers, showfliers=False, patch_artist=True, widths=0.6, boxprops=box, medianprops=line
    )
    ax.set_xticks(numbers, [str(number) for number in numbers])
    _frame(ax, signed=bool((values < 0).any()))
    _counts(ax, numbers, np.array([(groups == number).sum() for number in numbers]))
    return artists


def matrix(ax: Axes, shares: np.ndarray, counts: np.ndarray, columns: list[str], rows: list[str]) -> ScalarMappable:
    """Shares of a confusion matrix [reconstructed, true], each cell with its count."""
    image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, origin="lower", aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        if count:
            share = shares[row, column]
            text = f"{100 * share:.1f} %\n{count:,}"
            ax.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if share > 0.6 else "black")
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    return image


def rate_points(
    ax: Axes, rate: Rate, x_label: str, y_label: str, colour: str = BLUE, label: str = ""
) -> ErrorbarContainer:
    """Fractions with errors in bins."""
    shown = rate.total > 0
    centre, half = 0.5 * (rate.edges[1:] + rate.edges[:-1]), 0.5 * np.diff(rate.edges)
    points = ax.errorbar(
        centre[shown], rate.fraction[shown], rate.error[shown], half[shown], "o", color=colour, ms=3.5, lw=1.2,
        label=label,
    )  # fmt: skip
    ax.set(xlabel=x_label, ylabel=y_label, xlim=(rate.edges[0], rate.edges[-1]))
    return points


def pull_histogram(ax: Axes, values: np.ndarray, name: str) -> list:
    """Pulls with the curve of a calibrated reconstruction: a unit Gaussian, for the direction a Rayleigh curve."""
    one_sided = name == "direction"
    low, high = (0.0, 4.0) if one_sided else (-5.0, 5.0)
    histogram: hist.Hist = hist.Hist(hist.axis.Regular(50, low, high)).fill(np.clip(values, 0.999 * low, 0.999 * high))
    artists = mplhep.histplot(histogram, ax=ax, color=BLUE, yerr=False, lw=1.4)
    x = np.linspace(low, high, 200)
    if one_sided:
        r = -2 * np.log(1 - 0.6827)  # the angle is in units of its 68.27 % quantile
        curve = r * x * np.exp(-0.5 * r * x**2)
    else:
        curve = np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)
    artists += ax.plot(x, curve * len(values) * (high - low) / 50, color=ORANGE, lw=1, ls="--")
    ax.set(xlabel=f"pull, {PULL_NAMES[name]}", ylabel="entries", xlim=(low, high), ylim=(0, None))
    ax.set_title(f"{len(values):,} entries, spread {format_estimate(spread(values))}", fontsize=8, color=GREY)
    return artists


def coverage(ax: Axes, estimates: Mapping[str, Estimate]) -> ErrorbarContainer:
    """Shares of 68 % intervals that hold the truth, against the expectation."""
    known = {name: e for name, e in estimates.items() if e.count}
    places = np.arange(len(known))[::-1]
    ax.axvspan(0.66, 0.70, color=GREEN, alpha=0.2, lw=0, label="66 % to 70 %")
    points = ax.errorbar(
        [e.value for e in known.values()], places, xerr=[e.error for e in known.values()], fmt="o", color=BLUE
    )
    ax.set_yticks(places, [PULL_NAMES[name] for name in known])
    ax.set(xlabel="share of truths within one standard error", xlim=(-0.02, 1.02))
    ax.margins(y=0.2)
    ax.legend(fontsize=8, frameon=False, loc="upper left")
    return points


def cumulative(ax: Axes, distances: Mapping[str, np.ndarray], x_label: str) -> list:
    """Share of events within a distance; events without a vertex count and never enter."""
    artists = []
    for (label, values), colour in zip(distances.items(), COLOURS, strict=False):
        ordered = np.sort(values[np.isfinite(values)])
        share = np.arange(len(ordered) + 2).clip(max=len(ordered)) / max(len(values), 1)
        artists += ax.step([0, *ordered, 1e4], share, where="post", color=colour, label=label)
    ax.axvline(NEAR_VERTEX, color=GREY, lw=0.8, ls=":")
    ax.set(xlabel=x_label, ylabel="share of events within", xscale="log", xlim=(0.1, 1000), ylim=(0, 1.02))
    ax.legend(fontsize=8, frameon=False, loc="lower right")
    return artists


def _density(ax: Axes, axis: hist.axis.Regular, x: np.ndarray, y: np.ndarray) -> ScalarMappable:
    """Entries in two dimensions with the same binning; empty bins stay white."""
    histogram: hist.Hist = hist.Hist(axis, axis).fill(x, y)
    counts = histogram.values().T
    top = max(1.0, float(counts.max()))
    norm = LogNorm(1, top) if top > 10 else Normalize(0, top)
    mesh = ax.pcolormesh(axis.edges, axis.edges, np.ma.masked_equal(counts, 0), norm=norm, cmap="viridis")
    mesh.set_rasterized(True)
    ax.figure.colorbar(mesh, ax=ax, label="entries", ticks=None if top > 10 else MaxNLocator(integer=True))
    return mesh


def _frame(ax: Axes, signed: bool) -> None:
    """Room below for the counts; a line at 0 for signed residuals, the axis at 0 for distances and angles."""
    ax.use_sticky_edges = False  # a bar without height would hold the margin back
    ax.margins(y=0.15)
    if signed:
        ax.axhline(0, color=GREY, lw=0.8, ls=":")
    else:
        ax.set_ylim(0, None)


def _counts(ax: Axes, x: np.ndarray, counts: np.ndarray) -> None:
    for place, count in zip(x, counts, strict=True):
        ax.text(place, 0.01, f"{count:,}", transform=ax.get_xaxis_transform(), fontsize=6, color=GREY, ha="center")


def figures(
    c: Comparison, summary: dict, energy_baselines: Mapping[str, np.ndarray], vertex_baselines: Mapping[str, np.ndarray]
) -> dict[str, Figure]:
    """All figures of a vertex report by file name.

    Args:
        c: at least one event.
        summary: `metrics.summarise` of the same events.
        energy_baselines: (E,) total energy [MeV] by method, may be empty.
        vertex_baselines: (E, 3) vertex [mm] by method, may be empty.
    """
    return {
        "total_energy": _total_energy(c, summary["total_energy"], energy_baselines),
        "hadron_energy": _hadron_energy(c, summary["hadron_energy"]),
        "number": _confusion(summary["number"], [str(n) for n in range(10**3)], "number of hadrons"),
        "species": _confusion(summary["species"], [*summary["species"]["labels"], "none"], "species"),
        "unmatched": _unmatched(summary["unmatched"]),
        "direction": _direction(c, summary["direction"]),
        "vertex": _vertex(c, vertex_baselines),
        "calibration": _calibration(c, summary["calibration"]),
    }


def _panels(rows: int, columns: int, size: tuple[float, float] = (4.6, 3.7)) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _total_energy(c: Comparison, numbers: dict, baselines: Mapping[str, np.ndarray]) -> Figure:
    figure, ((a, b), (d, e)) = _panels(2, 2)
    difference = c.reco_total - c.true_total
    correlation(a, c.true_total, c.reco_total, "total kinetic energy", "MeV")
    best = sorted(baselines, key=lambda name: spread(baselines[name] - c.true_total).value)[:2]
    samples = {"reconstruction": difference} | {name: baselines[name] - c.true_total for name in best}
    residuals(b, samples, "total kinetic energy", "MeV")
    label = "total kinetic energy, reco - true [MeV]"
    profile_band(d, numbers["against_true_energy"], "true total kinetic energy [MeV]", label)
    boxes(e, c.true.count, difference, "true number of hadrons", label)
    return figure


def _hadron_energy(c: Comparison, numbers: dict) -> Figure:
    figure, ((a, b), (d, e)) = _panels(2, 2)
    pairs, matched = c.optimal, c.optimal.matched
    difference = pairs.reco_ke - pairs.true_ke
    correlation(a, pairs.true_ke[matched], pairs.reco_ke[matched], "kinetic energy", "MeV")
    by_rank = (c.rank.reco_ke - c.rank.true_ke)[c.rank.matched]
    residuals(b, {"optimal matching": difference[matched], "rank matching": by_rank}, "kinetic energy", "MeV")
    label = "kinetic energy, reco - true [MeV]"
    profile_band(d, numbers["optimal"]["against_true_energy"], "true kinetic energy [MeV]", label)
    boxes(e, pairs.multiplicity[matched], difference[matched], "true number of hadrons", label)
    return figure


def _confusion(numbers: dict, labels: list[str], quantity: str) -> Figure:
    figure, ((a, b),) = _panels(1, 2, (5.2, 4.4))
    rows, columns = numbers["counts"].shape
    for ax, kind, title in (
        (a, "recall", "recall: each column adds up to 100 %"),
        (b, "precision", "precision: each row adds up to 100 %"),
    ):
        image = matrix(ax, numbers[kind], numbers["counts"], labels[:columns], labels[:rows])
        ax.set(xlabel=f"true {quantity}", ylabel=f"reconstructed {quantity}")
        ax.set_title(title, fontsize=9)
    figure.colorbar(image, ax=[a, b], label="share", shrink=0.8)
    return figure


def _unmatched(numbers: dict) -> Figure:
    figure, ((a, b),) = _panels(1, 2)
    for ax, kind, energy, colour in (
        (a, "false_negatives", "true", BLUE),
        (b, "false_positives", "reco", ORANGE),
    ):
        rate, name = numbers[f"{kind}_against_{energy}_energy"], kind.replace("_", " ")
        share = numbers[kind]
        x_label = f"{'reconstructed' if energy == 'reco' else 'true'} kinetic energy [MeV]"
        rate_points(ax, rate, x_label, f"share of {name}", colour)
        shown = rate.total > 0
        _counts(ax, 0.5 * (rate.edges[1:] + rate.edges[:-1])[shown], rate.count[shown])
        ax.set_title(f"{name}: {100 * share.value:.2f} % of {share.count:,}", fontsize=9, color=GREY)
        ax.set_ylim(-0.1 * max(ax.get_ylim()[1], 0.01), None)  # room for the numbers below 0
    return figure


def _direction(c: Comparison, numbers: dict) -> Figure:
    figure, ((a, b), (d, e)) = _panels(2, 2)
    optimal = numbers["optimal"]
    label = "angle to the true direction [deg]"
    profile_band(a, optimal["against_true_energy"], "true kinetic energy [MeV]", label)
    profile_band(b, optimal["against_true_range"], "true range [mm]", label)
    profile_band(d, optimal["against_true_range_with_unmatched"], "true range [mm]", "angle, unmatched too [deg]")
    for ax in (b, d):
        ax.set_xscale("symlog", linthresh=1, linscale=0.4)
        ax.set_xticks([0, 0.5, 1, 2, 5, 10, 20, 50], ["0", "", "1", "2", "5", "10", "20", "50"])
    pairs, matched = c.optimal, c.optimal.matched
    reco, true = (_spherical(v[matched]) for v in (pairs.reco_direction, pairs.true_direction))
    steps = np.stack([reco[0] - true[0], (reco[1] - true[1] + 180) % 360 - 180])
    _density(e, hist.axis.Regular(60, -90, 90), *np.clip(steps, -89.9, 89.9))
    e.set(xlabel="theta, reco - true [deg]", ylabel="phi, reco - true [deg]")
    return figure


def _spherical(direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Theta and phi [deg] of (N, 3) unit vectors."""
    return np.degrees(np.arccos(np.clip(direction[:, 2], -1, 1))), np.degrees(np.arctan2(*direction[:, 1::-1].T))


def _vertex(c: Comparison, baselines: Mapping[str, np.ndarray]) -> Figure:
    figure, ((a, b, d),) = _panels(1, 3)
    found = np.isfinite(c.distance)
    difference = (c.reco_vertex - c.true_vertex)[found]
    residuals(a, dict(zip("xyz", difference.T, strict=True)), "vertex", "mm")
    label = "3D distance to the true vertex [mm]"
    boxes(b, c.true.count[found], c.distance[found], "true number of hadrons", label)
    b.set(yscale="log", ylim=(0.1, 1000))  # a single wrong vertex is a metre off
    distances = {name: np.linalg.norm(place - c.true_vertex, axis=1) for name, place in baselines.items()}
    cumulative(d, {"reconstruction": c.distance} | distances, label)
    return figure


def _calibration(c: Comparison, numbers: dict) -> Figure:
    figure, axes = _panels(2, 4, (3.8, 3.4))
    values = pulls(c)
    for ax, (name, pull) in zip(axes.flat, values.items(), strict=False):
        pull_histogram(ax, pull, name)
    coverage(axes[1, 2], {name: numbers[name]["coverage"] for name in values})
    last = axes[1, 3]
    last.axhspan(0.66, 0.70, color=GREEN, alpha=0.2, lw=0)
    for name, colour in (("hadron_energy", BLUE), ("direction", ORANGE)):
        rate = numbers[f"{name}_coverage_against_energy"]
        rate_points(last, rate, "true kinetic energy [MeV]", "coverage", colour, PULL_NAMES[name])
    last.set_ylim(-0.03, 1.03)
    last.legend(fontsize=8, frameon=False, loc="lower right")
    return figure
