#!/usr/bin/env python3
"""Compares a reconstruction with the truth. `tools/evaluate.py vertex --help` lists the options."""

from __future__ import annotations

import sys
from pathlib import Path

import jsonargparse

from sparsereco import cli
from sparsereco.schema import RECO, TRUTH

VERTEX = """\
Vertices and hadrons against the truth.

Reads a tree `reco` as tools/reco.py writes it, a tree `truth` with the same events in the same order, and, where the
file of the truth has them, the hits for baselines that need no network. Prints a table; writes report.json (all
numbers), report.html (one self-contained page) and figures/ into the output directory; -f replaces them as a whole.

example:
  tools/evaluate.py vertex reco.root sample.root -o report

exit codes: 0 done, 1 failed while running, 2 wrong usage, file or branch, 130 interrupted
"""


def parsers() -> jsonargparse.ArgumentParser:
    """The command line: one subcommand per system."""
    vertex = cli.new_parser(VERTEX)
    add = vertex.add_argument
    add("reco", metavar="RECO[:TREE]", help="reconstruction; tree `reco` unless named")
    add("truth", metavar="TRUTH[:TREE]", help="truth; tree `truth` unless named, hits from tree `hits`")
    add("-o", "--output", required=True, metavar="REPORT_DIR", help="directory of the report")
    add("-f", "--force", action="store_true", help="replace a report that is there already")
    add("--pdf", action="store_true", help="figures as PDF, too")
    cli.add_verbosity(vertex)

    parser = cli.new_parser(__doc__)
    cli.add_verbosity(parser)
    parser.add_subcommands(dest="system").add_subcommand("vertex", vertex, help="vertices and hadrons")
    return parser


def run(argv: list[str]) -> None:
    """Parses the command line, compares, prints and writes."""
    args = parsers().parse_args(argv).vertex
    log = cli.set_up_logging(args.quiet, args.verbose)

    from sparsereco import files, plots, report
    from sparsereco.baselines import Baselines, baselines
    from sparsereco.events import check_finite, check_same_events, detector_of, has_tree, hits_of, read_provenance
    from sparsereco.io import HITS, read, survey
    from sparsereco.metrics import compare, summarise
    from sparsereco.provenance import environment

    directory = Path(args.output)
    files.check_directory(directory, args.force)
    files.check_contents(directory / "figures", report.figures_of(directory / "report.json"))
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
    figures = plots.figures(comparison, summary, simple.energy, simple.vertex) if len(truth) else {}

    inputs = [
        {"file": source.file, "tree": source.tree, "uuid": source.uuid, "entries": source.entries}
        for source in (*reco_sources, *truth_sources)
    ]
    provenance = {**environment(["evaluate.py", *argv]), "inputs": inputs, "reconstruction": made}
    images = {name: report.render(figure, "png") for name, figure in figures.items()}
    facts = f"{args.reco} against {args.truth}, {len(truth):,} events; errors are statistical, one standard deviation"
    sections = report.vertex_sections(summary, images, simple.note)
    page = report.to_html("Vertex reconstruction against truth", facts, sections, images, provenance)
    rendered = {f"{name}.png": image for name, image in images.items()}
    if args.pdf:
        rendered |= {f"{name}.pdf": report.render(figure, "pdf") for name, figure in figures.items()}
    numbers = {
        "system": "vertex",
        "note": simple.note,
        **summary,
        "figures": sorted(rendered),
        "provenance": provenance,
    }
    files.replace_directory(directory / "figures", rendered)
    files.write_files(directory, {"report.html": page.encode(), "report.json": report.to_json(numbers).encode()})

    print_table(facts, report.headline_rows(summary), simple.note)
    log.info("%s: report.html, report.json, %d figures", directory, len(figures))


def print_table(title: str, rows: tuple[tuple[str, ...], ...], note: str) -> None:
    """The summary on stdout, whole also where the terminal is narrow."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", title_style="")
    table.add_column("quantity")
    table.add_column("value", justify="right")
    table.add_column("entries", justify="right")
    for row in rows:
        table.add_row(*map(escape, row))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    if note:
        console.print(note, markup=False)


if __name__ == "__main__":
    sys.exit(cli.main(run))
