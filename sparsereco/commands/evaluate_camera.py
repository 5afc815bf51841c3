"""`tools/evaluate.py camera`: clusters against the truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonargparse

from sparsereco import cli
from sparsereco.commands import common, reports
from sparsereco.errors import InputError
from sparsereco.schema import FRAME_TRUTH, FRAMES, ROIS

if TYPE_CHECKING:
    import awkward as ak

TEXT = """\
Clusters and regions of camera frames against the truth.

Reads the trees `Events` and `roi` as tools/reco.py camera writes them, and a tree `event_info` with the same frames in
the same order. Other reconstructions of these frames can be compared (--compare). All are cut on their score at the
same rate of fakes (--fakes), or taken as they are. --limit simulates more such tracks and says how many an ideal
observer finds. Prints a table; writes report.json (all numbers), report.html and figures/.

examples:
  tools/evaluate.py camera unet.root run.root --compare gaussian.root --compare nsigma.root -o report
  tools/evaluate.py camera unet.root run.root --limit 1000 -o report

exit codes: 0 done, 1 failed while running, 2 wrong usage, file or branch, 130 interrupted
"""


def parser() -> jsonargparse.ArgumentParser:
    """Options of `evaluate.py camera`."""
    parser = common.evaluate_parser(TEXT)
    add = parser.add_argument
    add("reco", metavar="RECO[:TREE]", help="reconstruction; tree `Events` unless named")
    add("truth", metavar="TRUTH[:TREE]", help="truth; tree `event_info` unless named")
    add(
        "--compare",
        action="append",
        type=str,
        default=[],
        metavar="RECO",
        help="another reconstruction; may be repeated",
    )
    add(
        "--fakes", type=float | None, default=0.1, help="fake clusters per frame that the score is cut at; null: no cut"
    )
    add(
        "--limit",
        type=int,
        default=0,
        metavar="N",
        help="show what an ideal observer finds of N simulated tracks per energy, at 0.1 fakes per frame; 0: not",
    )
    return parser


def run(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Compares, prints and writes."""
    cli.set_up_logging(args.quiet, args.verbose)
    if args.fakes is not None and not args.fakes >= 0:
        raise InputError(f"--fakes: expected a number that is not negative, or null, got {args.fakes}")
    if args.limit < 0:
        raise InputError(f"--limit: expected a number that is not negative, got {args.limit}")

    from sparsereco.camera import metrics, plots, region_metrics
    from sparsereco.events import has_tree, read_provenance
    from sparsereco.io import read, survey
    from sparsereco.provenance import environment

    reports.check_output(args)
    truth = read(args.truth, FRAME_TRUTH)
    if not len(truth):
        raise InputError(f"{args.truth} has no frames", file=args.truth)
    comparisons, made, regions = {}, {}, {}
    for path in [args.reco, *args.compare]:
        record = read_provenance(survey([path], FRAMES)[0].file)
        name = record.get("config", {}).get("selector", Path(path).stem)
        name = f"{name} ({Path(path).stem})" if name in comparisons else name
        comparisons[name], made[name] = metrics.compare(read(path, FRAMES), truth), record
        if has_tree(path.partition(":")[0], ROIS):
            regions[name] = region_metrics.compare_regions(read(path.partition(":")[0], ROIS), truth)
    cuts = {
        name: float("-inf") if args.fakes is None else metrics.threshold_at(one, args.fakes)
        for name, one in comparisons.items()
    }
    summaries = {name: metrics.summarise(one, cuts[name]) for name, one in comparisons.items()}
    first, *others = comparisons
    gains = {
        name: metrics.found_more(comparisons[first], cuts[first], comparisons[name], cuts[name]) for name in others
    }
    region_cuts = {
        name: float("-inf") if args.fakes is None else region_metrics.threshold_at(one, args.fakes)
        for name, one in regions.items()
    }
    kept = {name: region_metrics.summarise_regions(one, region_cuts[name]) for name, one in regions.items()}
    limits = observe(args, truth, read_provenance(args.truth.partition(":")[0])) if args.limit else {}
    cut = "as they are" if args.fakes is None else f"cut at {args.fakes:g} fakes per frame"
    rows = headline_rows(summaries) + gain_rows(first, gains) + region_rows(kept) + limit_rows(limits)
    reports.write_report(
        args,
        reports.Report(
            "camera",
            "Camera reconstruction against truth",
            f"{args.reco} against {args.truth}, {len(truth):,} frames, {cut}; errors are one standard deviation",
            rows,
            sections(rows, bool(regions), bool(limits)),
            plots.figures(comparisons, summaries, regions, limits),
            {"selectors": summaries, "found_more": gains, "regions": kept, "limit": limits},
            {**environment(["evaluate.py", *argv]), "truth": args.truth, "reconstructions": made},
        ),
    )


def observe(args: jsonargparse.Namespace, truth: ak.Array, made: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Shares of tracks that an ideal observer finds, by energy: of their very light, and of the spot of their depth.

    Args:
        args: the command line.
        truth: the tracks; as many energies and species are simulated again.
        made: provenance of the truth, which has the chamber and the camera.

    Raises:
        InputError: the provenance has neither.
    """
    import awkward as ak
    import numpy as np

    from sparsereco.camera.observer import is_found, spot
    from sparsereco.sim.camera import ELECTRON, Chamber, Sensor, electron_tracks, light_of, recoil_track
    from sparsereco.stats import fraction

    if not {"chamber", "sensor"} <= set(made):
        raise InputError(f"--limit: {args.truth} does not say which chamber and camera it is of; was it simulated?")
    chamber, sensor = Chamber(**made["chamber"]), Sensor(**{**made["sensor"], "shape": tuple(made["sensor"]["shape"])})
    noise, pixels = sensor.noise * made.get("noise_scale", 1.0), sensor.shape[0] * sensor.shape[1]
    fakes = 0.1  # per frame
    energy, pdg = (ak.to_numpy(ak.flatten(truth[name])) for name in ("energy", "particle_type"))
    limits = {}
    with cli.progress("limit", args.limit * len(np.unique(energy)), "tracks", args.quiet) as advance:
        for kev in np.unique(energy):
            rng = np.random.default_rng(1)
            kinds = rng.choice(pdg[energy == kev], args.limit)
            electrons = iter(electron_tracks(np.full((kinds == ELECTRON).sum(), float(kev)), 1, rng))
            found: dict[str, list[bool]] = {"light": [], "spot": []}
            for kind in kinds:
                track = next(electrons) if kind == ELECTRON else recoil_track(int(kind), float(kev), rng)
                place, depth = rng.uniform(60, np.array(sensor.shape) - 60), rng.uniform(0, chamber.drift)
                light = light_of(track, place, depth, chamber, sensor, rng)
                width = np.hypot(chamber.gem_spread, chamber.diffusion * np.sqrt(depth / 10)) / sensor.pixel
                for name, template in (("light", light.expected), ("spot", spot(light.pixel, place, width))):
                    found[name].append(is_found(light.pixel, template, light.counts, noise, fakes, pixels, rng))
                advance(1)
            limits[f"{kev:g}"] = {name: fraction(np.array(values)) for name, values in found.items()}
    return limits


def sections(rows: tuple[tuple[str, ...], ...], regions: bool, limits: bool) -> list:
    """What the report shows, in this order."""
    from sparsereco.camera.metrics import SHARE
    from sparsereco.camera.region_metrics import HELD
    from sparsereco.report import Section

    limit_text = (
        " Ideal observer, grey, at 0.1 fakes per frame: matched filters in white noise. Light known: of the very light "
        "of each event, whose place and electrons are known beforehand, more than which nothing can find. Spot known: "
        "of a Gaussian spot at the known place, as wide as the known depth makes it."
    )
    shown = [
        Section("Summary", header=("quantity", "value", "entries"), rows=rows),
        Section(
            "Events found",
            f"A track is found by a cluster with {100 * SHARE:.0f} % of its expected light; a cluster without any lit "
            "pixel is a fake. The cut on the score moves along each line; dotted: 0.1 fakes per frame."
            + (limit_text if limits else ""),
            figure="efficiency",
        ),
        Section(
            "Light and pixels",
            "Of the tracks found at the cut. Bias: sum of sc_corrintegral over the sum of the true light, minus 1; "
            "what the threshold of the selector adds is taken off there, what a harder cut adds is not. F1: of the "
            "pixels that the selector chose, against those with at least half a count of expected light.",
            figure="light",
        ),
        Section("Time", "Per frame and stage, reading left out.", figure="times"),
    ]
    if regions:
        text = (
            f"A region holds a track by {100 * HELD:.0f} % of its expected light; one without any lit pixel is false. "
            "The cut on the score moves along each line."
        )
        shown.insert(3, Section("Regions", text, figure="regions"))
    return shown


def headline_rows(summaries: dict) -> tuple[tuple[str, str, str], ...]:
    """Name, value with error, and number of entries of each row of the table."""
    from sparsereco.stats import format_estimate, percent

    rows = []
    for name, summary in summaries.items():
        rate = summary["fakes_per_frame"]
        rows.append((f"{name}: fakes per frame", format_estimate(rate), f"{rate.count:,}"))
        rows.append((f"{name}: cut on the score", f"{summary['threshold']:.3g}", ""))
        rows.append((f"{name}: time per frame", f"{1000 * summary['seconds']['all']:.0f} ms", f"{rate.count:,}"))
        rows.append((f"{name}: points given to DBSCAN", f"{summary['points']:,.1f}", f"{rate.count:,}"))
        for energy, row in summary["energies"].items():
            for text, e, unit in (
                ("found", percent(row["found"]), "%"),
                ("bias of the light", percent(row["bias"]), "%"),
                ("bias of sc_integral", percent(row["bias_of_integral"]), "%"),
                ("F1 of the pixels", row["f1"], ""),
                ("recall of the pixels", percent(row["recall"]), "%"),
            ):
                rows.append((f"{name}, {energy} keV: {text}", format_estimate(e, unit), f"{e.count:,}"))
    return tuple(rows)


def gain_rows(first: str, gains: dict) -> tuple[tuple[str, str, str], ...]:
    """What the first selector finds more than each of the others."""
    from sparsereco.stats import format_estimate, percent

    return tuple(
        (
            f"{first}, {energy} keV: found more than by {name}",
            format_estimate(percent(e), "%"),
            f"{e.count:,}",
        )
        for name, row in gains.items()
        for energy, e in row.items()
    )


def region_rows(kept: dict) -> tuple[tuple[str, str, str], ...]:
    """The same of the regions."""
    from sparsereco.stats import format_estimate, percent

    rows = []
    for name, summary in kept.items():
        shares = {"track light kept": summary["kept"], "area left out": summary["discarded"]}
        shares |= {f"{energy} keV events held": share for energy, share in summary["held"].items()}
        false = summary["false_per_frame"]
        rows.append((f"{name}, regions: false ones per frame", format_estimate(false), f"{false.count:,}"))
        for text, e in shares.items():
            value = format_estimate(percent(e), "%")
            rows.append((f"{name}, regions: {text}", value, f"{e.count:,}"))
    return tuple(rows)


def limit_rows(limits: dict) -> tuple[tuple[str, str, str], ...]:
    """The same of the ideal observer."""
    from sparsereco.stats import format_estimate, percent

    texts = {"light": "found, its light known", "spot": "found, its place and depth known"}
    return tuple(
        (
            f"ideal observer, {energy} keV: {texts[name]}",
            format_estimate(percent(e), "%"),
            f"{e.count:,}",
        )
        for energy, row in limits.items()
        for name, e in row.items()
    )


COMMAND = common.Command("clusters and regions of camera frames", TEXT, parser, run)
