"""Simulates events with their truth. `tools/simulate.py vertex --help` lists the options."""

from __future__ import annotations

from sparsereco.commands import simulate_camera, simulate_infill, simulate_vertex
from sparsereco.commands.common import dispatch

COMMANDS = {
    "vertex": simulate_vertex.COMMAND,
    "bank": simulate_vertex.BANK,
    "infill": simulate_infill.COMMAND,
    "lar-bank": simulate_infill.BANK,
    "camera": simulate_camera.COMMAND,
}


def run(argv: list[str]) -> None:
    """Parses the command line and simulates."""
    dispatch(__doc__, "kind", COMMANDS, argv)
