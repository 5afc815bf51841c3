"""A report as report.json (all numbers), report.html (for reading, one self-contained file) and figures.

The JSON holds whatever `metrics.summarise` returns, an `Estimate` as value, error and count, and null for what is not
known. The HTML refers to nothing outside itself, runs no script, and every string in it is escaped.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sparsereco.stats import Estimate, format_estimate, percent

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff; max-width: 64rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid #e4e4e4; text-align: right; }
th:first-child, td:first-child { text-align: left; }
th { border-bottom: 2px solid #888; font-weight: 600; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
p { max-width: 48rem; } .facts { color: #555; } pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; }
"""


@dataclass(frozen=True)
class Section:
    """One heading of the HTML report with what stands under it."""

    title: str
    text: str = ""
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    figure: str = ""
    """Name of the figure to show."""


def to_json(numbers: Any) -> str:
    """Nested dicts, lists, dataclasses and arrays as JSON; NaN and infinity become null."""
    return json.dumps(_plain(numbers), indent=1, allow_nan=False)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (np.integer, np.bool_)):
        return value.item()
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value


def vertex_sections(summary: dict, figures: Mapping[str, object], note: str = "") -> list[Section]:
    """What the report of a vertex reconstruction shows, in this order.

    Args:
        summary: `metrics.summarise`.
        figures: the figures there are, by name; a section whose figure is missing shows none.
        note: on the baselines.
    """

    def picture(name: str) -> str:
        return name if name in figures else ""

    energy, vertex = summary["baselines"]["total_energy"], summary["baselines"]["vertex"]
    energy_rows = {"reconstruction": summary["total_energy"]} | energy
    vertex_rows = {"reconstruction": summary["vertex"]} | vertex
    calibration = {k: v for k, v in summary["calibration"].items() if isinstance(v, dict)}
    return [
        Section("Summary", rows=headline_rows(summary), header=("quantity", "value", "entries")),
        Section(
            "Total hadronic kinetic energy",
            "The reconstruction, and methods that need only the light around its vertex: coefficients fitted on one "
            f"half of this sample and applied to the other. Spread: 68 % of the absolute residuals lie below. {note}",
            ("method", "median residual", "spread"),
            tuple(
                (name, format_estimate(row["median"], "MeV"), format_estimate(row["spread"], "MeV"))
                for name, row in energy_rows.items()
            ),
            picture("total_energy"),
        ),
        Section(
            "Kinetic energy of hadrons",
            "Optimal matching pairs true and reconstructed hadrons for the smallest disagreement in energy and angle, "
            "whatever their species; rank matching pairs the i-th in energy with the i-th. With unmatched: a hadron "
            "without partner is compared with 0 MeV.",
            ("matching", "median residual", "spread", "spread with unmatched"),
            tuple(
                (kind, *(format_estimate(row[key], "MeV") for key in ("median", "spread", "spread_with_unmatched")))
                for kind, row in summary["hadron_energy"].items()
            ),
            picture("hadron_energy"),
        ),
        Section("Number of hadrons", figure=picture("number")),
        Section("Species", "Of optimally matched hadrons; none: without partner.", figure=picture("species")),
        Section(
            "False positives and negatives",
            "Hadrons that optimal matching leaves without a partner; small figures: how many.",
            figure=picture("unmatched"),
        ),
        Section(
            "Direction",
            "The range is that of the true particle in polystyrene (Bethe equation). With unmatched: a hadron without "
            "partner is compared with theta 90, phi 180 degrees.",
            ("matching", "median angle", "median above 20 MeV", "median with unmatched"),
            tuple(
                (kind, *(format_estimate(row[f"median{what}"], "deg") for what in ("", "_fast", "_with_unmatched")))
                for kind, row in summary["direction"].items()
            ),
            picture("direction"),
        ),
        Section(
            "Vertex",
            "",
            ("method", "median distance in 3D", "within 20 mm"),
            tuple(
                (name, format_estimate(row["distance_median"], "mm"), _percent(row["within_20mm"]))
                for name, row in vertex_rows.items()
            ),
            picture("vertex"),
        ),
        Section(
            "Calibration of the errors",
            "Pull: residual divided by its standard error. Coverage: share within one standard error, 68.3 % when "
            "calibrated; an angle is held against 1.515 standard errors per transverse axis.",
            ("quantity", "coverage", "median pull", "spread of the pull"),
            tuple(
                (
                    name.replace("_", " "),
                    _percent(row["coverage"]),
                    format_estimate(row["pull_median"]),
                    format_estimate(row["pull_spread"]),
                )
                for name, row in calibration.items()
            ),
            picture("calibration"),
        ),
    ]


def limit_section(rows: Sequence[Any]) -> Section:
    """What the light can tell at most, as rows of `vertex.oracle.limit_rows`."""
    return Section(
        "The limit",
        "The same events with the true number and species of the hadrons given: the refinement's fit started from the "
        "truth, with the same prior; the same fit to the light alone, which stays at the truth where the likelihood is "
        "flat; the mean of samples of the likelihood near the truth; and random errors of the size that the Fisher "
        "information allows. "
        "Medians of vertex and direction, 68 % of the absolute residuals of energies.",
        ("method", "events", "vertex", "energy of hadrons", "total energy", "direction"),
        tuple(
            (row.method, f"{row.events:,}", format_estimate(row.vertex, "mm"), format_estimate(row.ke, "MeV"),
             format_estimate(row.total, "MeV"), format_estimate(row.angle, "deg"))
            for row in rows
        ),
    )  # fmt: skip


def headline_rows(summary: dict) -> tuple[tuple[str, str, str], ...]:
    """Name, value with error, and number of entries of each row of the summary table."""
    return tuple(
        (row["name"], format_estimate(row["estimate"], row["unit"]), f"{row['estimate'].count:,}")
        for row in summary["table"]
    )


def _percent(share: Estimate) -> str:
    return format_estimate(percent(share), "%")


def to_html(title: str, facts: str, sections: list[Section], images: Mapping[str, bytes], provenance: dict) -> str:
    """The page.

    Args:
        title: heading and title.
        facts: a line under it.
        sections: in order.
        images: PNG files by name of the figure.
        provenance: shown as JSON at the end.
    """
    escape = html.escape
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; """
        """style-src 'unsafe-inline'">""",
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f'<h1>{escape(title)}</h1><p class="facts">{escape(facts)}</p>',
    ]
    for section in sections:
        parts.append(f"<h2>{escape(section.title)}</h2>")
        if section.text:
            parts.append(f"<p>{escape(section.text)}</p>")
        if section.rows:
            head = "".join(f"<th>{escape(cell)}</th>" for cell in section.header)
            body = "".join(
                "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in section.rows
            )
            parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>")
        if section.figure:
            data = base64.b64encode(images[section.figure]).decode()
            parts.append(f'<figure><img alt="{escape(section.title)}" src="data:image/png;base64,{data}"></figure>')
    record = escape(json.dumps(_plain(provenance), indent=1))
    parts.append(f"<h2>How this was made</h2><details><summary>provenance</summary><pre>{record}</pre></details>")
    return "\n".join([*parts, "</body></html>\n"])


def figures_of(record: Path) -> list[str]:
    """File names of the figures of an earlier report, from its report.json; none where that is no such file."""
    try:
        numbers = json.loads(record.read_text())
    except (OSError, ValueError):
        return []
    names = numbers.get("figures") if isinstance(numbers, dict) else None
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def render(figure: Figure, kind: str) -> bytes:
    """A figure as the content of a ``png`` or ``pdf`` file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=110)
    return buffer.getvalue()
