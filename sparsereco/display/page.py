"""Events as one HTML page that holds all it needs, plotly.js among it: for any browser, without a network.

An event is plain data: counts and tables for the panel beside the plot, and views. A view is a plotly figure, traces
and layout, with two more kinds of traces, which are large as plotly wants them and which `page.js` unfolds:

- ``cubes``: one cube for each of the event's ``voxels`` of a name, with the length ``edge``; by ``log`` the colour goes
  by the logarithm of their value.
- ``image``: a heat map whose ``z`` is in bytes, ``low + step * byte``.

Traces with the same ``legendgroup`` are switched together by a box above the plot.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from typing import Any

import numpy as np

Trace = dict[str, Any]
PLAIN_AXIS = {"showgrid": False, "zeroline": False, "ticks": "outside", "showline": True, "mirror": True}
"""An axis of a plot with pixels, in plotly's words."""
HIDDEN = "legendonly"
"""What ``visible`` is for a trace that is not shown at first."""


@dataclass(frozen=True)
class Table:
    """Rows for the panel."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class View:
    """One way to look at an event."""

    name: str
    traces: list[Trace]
    layout: dict[str, Any]
    places: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Changes of the layout that show a place, by its name; the first is how the view opens."""


@dataclass(frozen=True)
class Event:
    """What is known of one event."""

    name: str
    counts: dict[str, str]
    """How many there are of what, as text."""
    tables: list[Table]
    views: list[View]
    voxels: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of ``cubes``, by name: see `shapes.voxels`."""


def to_page(title: str, events: Sequence[Event]) -> str:
    """The page, 1.8 MB of it plotly.js.

    Args:
        title: of the page; may hold any characters, like all other text.
        events: at least one.
    """
    data = json.dumps({"title": title, "events": [asdict(event) for event in events]}, allow_nan=False)
    data = data.replace("<", r"\u003c")  # no text can end the element that it stands in
    here = files("sparsereco.display")
    style, script, plotly = (here.joinpath(name).read_text("utf8") for name in ("page.css", "page.js", "plotly.min.js"))
    return "\n".join([
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data: blob:; """
        """style-src 'unsafe-inline'; script-src 'unsafe-inline'">""",
        f'<title>{html.escape(title)}</title><link rel="icon" href="data:,"><style>\n{style}</style></head><body>',
        '<header><h1></h1><nav><button id="previous" title="previous event (left arrow)">&#9664;</button>',
        '<select id="event" aria-label="event"></select>',
        '<button id="next" title="next event (right arrow)">&#9654;</button></nav>',
        '<span id="views" role="group"></span><select id="place" aria-label="place to look at"></select>',
        '<span id="toggles"></span></header>',
        '<main><aside><dl id="counts"></dl><div id="tables"></div></aside><div id="plot"></div></main>',
        f"<script>{plotly}</script>",
        f'<script id="page" type="application/json">{data}</script>',
        f"<script>\n{script}</script></body></html>\n",
    ])  # fmt: skip


def numbers(values: Any, digits: int = 3) -> list[float | None]:
    """An array as a list for JSON, rounded; what is not finite becomes None."""
    rounded = np.asarray(values, np.float64).round(digits)
    return np.where(np.isfinite(rounded), rounded, np.array(None)).tolist()


def packed_image(values: np.ndarray, low: float, high: float, **trace: Any) -> Trace:
    """A heat map of 256 levels.

    Args:
        values: (H, W).
        low: value of the lowest level.
        high: of the highest one; what lies beyond is shown like it.
        trace: further attributes, for instance the place of the pixels (``x0``, ``dx``).
    """
    step = (high - low) / 255
    levels = np.clip(np.rint((np.nan_to_num(values, nan=low) - low) / step), 0, 255).astype(np.uint8)
    data = base64.b64encode(levels.tobytes()).decode()
    return {"type": "image", "bytes": data, "width": values.shape[1], "low": low, "step": step, **trace}


def escaped(row: Mapping[str, str]) -> str:
    """Lines of a hover text: plotly takes some tags in it."""
    return "<br>".join(html.escape(f"{name}: {value}") for name, value in row.items())
