"""`tools/evaluate.py camera`: clusters against the truth."""

from __future__ import annotations

from pathlib import Path

import jsonargparse

from sparsereco import cli
from sparsereco.commands import common, reports
from sparsereco.errors import InputError
from sparsereco.schema import FRAME_TRUTH, FRAMES

TEXT = """\
Clusters of camera frames against the truth.

Reads a tree `Events` as tools/reco.py camera writes it, and a tree `event_info` with the same frames in the same order.
Other reconstructions of these frames can be compared (--compare). All are cut on their score at the same rate of fakes
(--fakes), or taken as they are. Prints a table; writes report.json (all numbers), report.html and figures/.

example:
  tools/evaluate.py camera unet.root run.root --compare gaussian.root --compare nsigma.root -o report

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
    return parser


def run(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Compares, prints and writes."""
    cli.set_up_logging(args.quiet, args.verbose)

    from sparsereco.camera import metrics, plots
    from sparsereco.events import read_provenance
    from sparsereco.io import read, survey
    from sparsereco.provenance import environment

    reports.check_output(args)
    truth = read(args.truth, FRAME_TRUTH)
    if not len(truth):
        raise InputError(f"{args.truth} has no frames", file=args.truth)
    comparisons, made = {}, {}
    for path in [args.reco, *args.compare]:
        record = read_provenance(survey([path], FRAMES)[0].file)
        name = record.get("config", {}).get("selector", Path(path).stem)
        name = f"{name} ({Path(path).stem})" if name in comparisons else name
        comparisons[name], made[name] = metrics.compare(read(path, FRAMES), truth), record
    cuts = {
        name: float("-inf") if args.fakes is None else metrics.threshold_at(one, args.fakes)
        for name, one in comparisons.items()
    }
    summaries = {name: metrics.summarise(one, cuts[name]) for name, one in comparisons.items()}
    cut = "as they are" if args.fakes is None else f"cut at {args.fakes:g} fakes per frame"
    rows = headline_rows(summaries)
    reports.write_report(
        args,
        reports.Report(
            "camera",
            "Camera reconstruction against truth",
            f"{args.reco} against {args.truth}, {len(truth):,} frames, {cut}; errors are one standard deviation",
            rows,
            sections(rows),
            plots.figures(comparisons, summaries),
            {"selectors": summaries},
            {**environment(["evaluate.py", *argv]), "truth": args.truth, "reconstructions": made},
        ),
    )


def sections(rows: tuple[tuple[str, ...], ...]) -> list:
    """What the report shows, in this order."""
    from sparsereco.camera.metrics import SHARE
    from sparsereco.report import Section

    return [
        Section("Summary", header=("quantity", "value", "entries"), rows=rows),
        Section(
            "Events found",
            f"A track is found by a cluster with {100 * SHARE:.0f} % of its expected light; a cluster without any lit "
            "pixel is a fake. The cut on the score moves along each line; dotted: 0.1 fakes per frame.",
            figure="efficiency",
        ),
        Section(
            "Light and pixels",
            "Of the tracks found at the cut. Bias: sum of the integrals over the sum of the true light, minus 1. F1: "
            "of the pixels that the selector chose, against those with at least half a count of expected light.",
            figure="light",
        ),
        Section("Time", "Per frame and stage, reading left out.", figure="times"),
    ]


def headline_rows(summaries: dict) -> tuple[tuple[str, str, str], ...]:
    """Name, value with error, and number of entries of each row of the table."""
    from sparsereco.stats import Estimate, format_estimate

    rows = []
    for name, summary in summaries.items():
        rate = summary["fakes_per_frame"]
        rows.append((f"{name}: fakes per frame", format_estimate(rate), f"{rate.count:,}"))
        rows.append((f"{name}: cut on the score", f"{summary['threshold']:.3g}", ""))
        rows.append((f"{name}: time per frame", f"{1000 * summary['seconds']['all']:.0f} ms", f"{rate.count:,}"))
        rows.append((f"{name}: points given to DBSCAN", f"{summary['points']:,.1f}", f"{rate.count:,}"))
        for energy, row in summary["energies"].items():
            for key, text, scale, unit in (
                ("found", "found", 100, "%"),
                ("bias", "bias of the light", 100, "%"),
                ("f1", "F1 of the pixels", 1, ""),
            ):
                e = row[key]
                value = format_estimate(Estimate(scale * e.value, scale * e.error, e.count), unit)
                rows.append((f"{name}, {energy} keV: {text}", value, f"{e.count:,}"))
    return tuple(rows)


COMMAND = common.Command("clusters of camera frames", TEXT, parser, run)
