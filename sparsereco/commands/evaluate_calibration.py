"""`tools/evaluate.py calibration`: the energy scale of a camera from the peak of a line."""

from __future__ import annotations

import jsonargparse

from sparsereco import cli
from sparsereco.commands import common, reports
from sparsereco.errors import InputError
from sparsereco.schema import FRAMES

TEXT = """\
The energy scale of a camera from the peak of a line, 5.9 keV of 55Fe unless told otherwise.

Reads a tree `Events` as tools/reco.py camera writes it, fits the highest peak of sc_corrintegral, also in bins of the
light per pixel or of another feature, and prints the scale for --kev_per_count of tools/reco.py. Writes report.json,
report.html and figures/.

example:
  tools/evaluate.py calibration reco_fe55.root -o calibration

exit codes: 0 done, 1 failed while running, 2 wrong usage, file or branch, 130 interrupted
"""


def parser() -> jsonargparse.ArgumentParser:
    """Options of `evaluate.py calibration`."""
    parser = common.evaluate_parser(TEXT)
    add = parser.add_argument
    add("reco", metavar="RECO[:TREE]", help="reconstruction; tree `Events` unless named")
    add("--energy", type=float, default=5.9, help="energy of the line [keV]")
    add("--against", default="density", metavar="NAME", help="density (light per hit), or a feature without sc_")
    add("--bins", type=int, default=5, help="how many bins of it, with equal numbers of clusters")
    return parser


def run(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Fits, prints and writes."""
    cli.set_up_logging(args.quiet, args.verbose)
    features = [branch.name.removeprefix("sc_") for branch in FRAMES.groups["nSc"]]
    if args.against not in ["density", *features]:
        raise InputError(f"--against: expected density or one of {', '.join(features)}; got {args.against!r}")
    if args.energy <= 0 or args.bins < 1:
        raise InputError(f"expected --energy and --bins above 0, got {args.energy} and {args.bins}")

    import awkward as ak
    import numpy as np

    from sparsereco import report
    from sparsereco.camera import plots
    from sparsereco.camera.calibrate import fit_in_bins, fit_peak
    from sparsereco.events import read_provenance
    from sparsereco.io import read, survey
    from sparsereco.provenance import environment
    from sparsereco.stats import format_estimate

    reports.check_output(args)
    events = read(args.reco, FRAMES)
    integral = ak.flatten(events.sc_corrintegral).to_numpy().astype(float)
    if args.against == "density":
        variable, label = integral / np.maximum(ak.flatten(events.sc_nhits).to_numpy(), 1), "light per hit [counts]"
    else:
        variable, label = ak.flatten(events[f"sc_{args.against}"]).to_numpy(), f"sc_{args.against}"
    peak = fit_peak(integral)
    near = np.abs(integral - peak.mean.value) < 4 * peak.sigma.value
    edges = np.quantile(variable[near], np.linspace(0, 1, args.bins + 1))
    bins = fit_in_bins(integral[near], variable[near], edges)
    scale = peak.kev_per_count(args.energy)

    rows: tuple[tuple[str, ...], ...] = (
        ("place of the peak", format_estimate(peak.mean, "counts"), f"{peak.mean.count:,}"),
        ("resolution", format_estimate(peak.resolution), f"{peak.mean.count:,}"),
        ("share in the tail", f"{100 * peak.tail:.1f} %", ""),
        ("kev_per_count", f"{scale.value:.4g} ± {scale.error:.2g} keV", f"{scale.count:,}"),
    )
    text = f"The peak of all clusters, and its place in bins of the {label}."
    reports.write_report(
        args,
        reports.Report(
            "calibration",
            "Energy scale of the camera",
            f"{args.reco}, line of {args.energy:g} keV; errors are statistical, one standard deviation",
            rows,
            [report.Section("Energy scale", text, ("quantity", "value", "entries"), rows, "calibration")],
            {"calibration": plots.calibration(integral, peak, 0.5 * (edges[1:] + edges[:-1]), bins, label)},
            {"peak": peak, "kev_per_count": scale, "against": args.against, "edges": edges, "bins": bins},
            {
                **environment(["evaluate.py", *argv]),
                "reconstruction": read_provenance(survey([args.reco], FRAMES)[0].file),
            },
        ),
    )


COMMAND = common.Command("energy scale of a camera", TEXT, parser, run)
