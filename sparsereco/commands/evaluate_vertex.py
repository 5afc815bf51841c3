"""`tools/evaluate.py vertex`: vertices and hadrons against the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jsonargparse
from jsonargparse.typing import NonNegativeInt

from sparsereco import cli
from sparsereco.commands import common, reports
from sparsereco.schema import RECO, TRUTH

if TYPE_CHECKING:
    import awkward as ak

    from sparsereco.io import Source
    from sparsereco.vertex.oracle import LimitRow

TEXT = """\
Vertices and hadrons against the truth.

Reads a tree `reco` as tools/reco.py writes it, a tree `truth` with the same events in the same order, and, where the
file of the truth has them, the hits for baselines that need no network. Prints a table; writes report.json (all
numbers), report.html (one self-contained page) and figures/ into the output directory; -f replaces them as a whole.

With --oracle N it also shows, for the first N events, what their light can tell at most: about two seconds an event.

examples:
  tools/evaluate.py vertex reco.root sample.root -o report
  tools/evaluate.py vertex reco.root sample.root -o report --oracle 200

exit codes: 0 done, 1 failed while running, 2 wrong usage, file or branch, 130 interrupted
"""


def parser() -> jsonargparse.ArgumentParser:
    """Options of `evaluate.py vertex`."""
    parser = common.evaluate_parser(TEXT)
    parser.add_argument("reco", metavar="RECO[:TREE]", help="reconstruction; tree `reco` unless named")
    parser.add_argument("truth", metavar="TRUTH[:TREE]", help="truth; tree `truth` unless named, hits from tree `hits`")
    parser.add_argument("--oracle", type=NonNegativeInt, default=0, metavar="N", help="events to find the limit of")
    return parser


def run(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Compares, prints and writes."""
    cli.set_up_logging(args.quiet, args.verbose)

    from sparsereco import plots, report
    from sparsereco.baselines import Baselines, baselines
    from sparsereco.events import check_finite, check_same_events, detector_of, has_tree, hits_of, read_provenance
    from sparsereco.io import HITS, read, survey
    from sparsereco.metrics import compare, summarise
    from sparsereco.provenance import environment

    reports.check_output(args)
    reco_sources, truth_sources = survey([args.reco], RECO), survey([args.truth], TRUTH)
    reco, truth = read(args.reco, RECO), read(args.truth, TRUTH)
    check_same_events(reco, truth, args.reco, args.truth)
    check_finite(reco, RECO, args.reco, but=["vtx_deviance"])  # which is not evaluated, and NaN where nothing is fitted
    check_finite(truth, TRUTH, args.truth)
    made = read_provenance(reco_sources[0].file)

    comparison = compare(truth, reco)
    if all(has_tree(source.file, HITS) for source in truth_sources):
        simple = baselines(hits_of(truth_sources, truth), truth, reco, comparison, detector_of(made))
    else:
        simple = Baselines({}, {}, f"No baselines: {args.truth} has no tree 'hits'.")
    summary = summarise(comparison, simple.energy, simple.vertex)
    if args.oracle:
        summary["limit"] = _limit(args, truth_sources, truth, reco, made)
    figures = plots.figures(comparison, summary, simple.energy, simple.vertex) if len(truth) else {}

    inputs = [
        {"file": source.file, "tree": source.tree, "uuid": source.uuid, "entries": source.entries}
        for source in (*reco_sources, *truth_sources)
    ]
    sections = report.vertex_sections(summary, figures, simple.note)
    limit = report.limit_section(summary["limit"]) if args.oracle else None
    if limit:
        sections.append(limit)
    reports.write_report(
        args,
        reports.Report(
            "vertex",
            "Vertex reconstruction against truth",
            f"{args.reco} against {args.truth}, {len(truth):,} events; errors are statistical, one standard deviation",
            report.headline_rows(summary),
            sections,
            figures,
            {"note": simple.note, **summary},
            {**environment(["evaluate.py", *argv]), "inputs": inputs, "reconstruction": made},
            simple.note,
        ),
    )
    if limit:
        common.print_table(limit.text, limit.rows, "", limit.header)


def _limit(
    args: jsonargparse.Namespace, sources: list[Source], truth: ak.Array, reco: ak.Array, made: dict
) -> list[LimitRow]:
    """What the light of the first events can tell, with the settings that they were reconstructed with."""
    from sparsereco.errors import InputError
    from sparsereco.events import check_same_events, detector_of
    from sparsereco.io import HITS, read
    from sparsereco.metrics import compare
    from sparsereco.vertex.chain import VertexChain
    from sparsereco.vertex.config import DecomposerSettings, VertexConfig
    from sparsereco.vertex.oracle import limit_rows, oracle

    hits = read(f"{sources[0].file}:{HITS.tree}", HITS)[: args.oracle]
    truth, reco = truth[: len(hits)], reco[: len(hits)]
    check_same_events(hits, truth, f"tree 'hits' of {sources[0].file}", args.truth)
    detector, config = detector_of(made), made.get("config", {})
    decomposer = DecomposerSettings(**config.get("decomposer", {}))
    settings = VertexConfig(
        detector=detector, light_scale=config.get("light_scale"), decomposer=decomposer, refine=True
    )
    chain = VertexChain(settings)
    with cli.progress("limit", len(hits), "events", args.quiet) as advance:
        try:
            found = oracle(chain, hits, truth, advance)
        except ValueError as error:
            raise InputError(f"--oracle {args.oracle}: {error}", file=sources[0].file) from error
    return limit_rows(found, compare(truth[found.event], reco[found.event]), detector.pitch)


COMMAND = common.Command("vertices and hadrons", TEXT, parser, run)
