"""Sphinx settings of the documentation; the tables of formats are written from the schemas themselves."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from sparsereco import __version__, schema  # noqa: E402

project = "sparsereco"
author = "The sparsereco developers"
release = version = __version__
extensions = ["myst_parser"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
html_theme = "furo"
html_title = f"sparsereco {__version__}"
exclude_patterns = ["_build"]

TREES = {
    "Vertex": (schema.HITS, schema.RECO, schema.TRUTH),
    "Camera": (schema.FRAMES, schema.ROIS, schema.SPARSE_FRAMES, schema.FRAME_TRUTH),
    "Infill": (schema.CHARGE_HITS, schema.INFILL, schema.INFILL_TRUTH),
}


def table(tree: schema.Schema) -> list[str]:
    """Branches of a tree as a table in Markdown."""
    lines = [f"### Tree `{tree.tree}`", "", "| branch | type | unit | meaning |", "|---|---|---|---|"]
    counters = tree.counters
    for branch in tree.branches:
        kind = f"{branch.dtype}[{counters[branch.name]}]" if branch.name in counters else branch.dtype
        lines.append(f"| `{branch.name}` | {kind} | {branch.unit} | {branch.meaning} |")
    return [*lines, ""]


def write_branches() -> None:
    """Makes the page of all branches."""
    lines = [
        "# Branches",
        "",
        "Written from `sparsereco/schema.py`. A list has the length of the counter in brackets.",
        "",
    ]
    for system, trees in TREES.items():
        lines += [f"## {system}", ""]
        for tree in trees:
            lines += table(tree)
    (Path(__file__).parent / "branches.md").write_text("\n".join(lines))


write_branches()
