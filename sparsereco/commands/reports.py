"""What the reports of `tools/evaluate.py` share: a folder that is checked first, and written at the very end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonargparse

from sparsereco import cli
from sparsereco.commands import common

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sparsereco.report import Section


@dataclass(frozen=True)
class Report:
    """All of a report."""

    system: str
    """What was evaluated, for programs that read report.json."""
    title: str
    facts: str
    """One line: what was compared, and how large a sample it is."""
    rows: tuple[tuple[str, ...], ...]
    """Quantity, value, entries of the summary table."""
    sections: list[Section]
    figures: Mapping[str, Figure]
    numbers: Mapping[str, Any]
    """Everything, for report.json."""
    provenance: Mapping[str, Any]
    note: str = ""
    """Printed below the table."""


def check_output(args: jsonargparse.Namespace) -> None:
    """Refuses an output folder that a report must not replace, before any work is done."""
    from sparsereco import files, report

    directory = Path(args.output)
    files.check_directory(directory, args.force)
    files.check_contents(directory / "figures", report.figures_of(directory / "report.json"))


def write_report(args: jsonargparse.Namespace, made: Report) -> None:
    """Draws, writes report.json, report.html and figures/ into ``--output``, and prints the table."""
    from sparsereco import files, report

    log = cli.set_up_logging(args.quiet, args.verbose)
    directory = Path(args.output)
    images = {name: report.render(figure, "png") for name, figure in made.figures.items()}
    rendered = {f"{name}.png": image for name, image in images.items()}
    if args.pdf:
        rendered |= {f"{name}.pdf": report.render(figure, "pdf") for name, figure in made.figures.items()}
    provenance = dict(made.provenance)
    page = report.to_html(made.title, made.facts, made.sections, images, provenance)
    numbers = {"system": made.system, **made.numbers, "figures": sorted(rendered), "provenance": provenance}
    files.replace_directory(directory / "figures", rendered)
    files.write_files(directory, {"report.html": page.encode(), "report.json": report.to_json(numbers).encode()})
    common.print_table(made.facts, made.rows, made.note)
    log.info("%s: report.html, report.json, %d figures", directory, len(images))
