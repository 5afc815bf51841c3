"""Draws events as one self-contained HTML page. `tools/display.py vertex --help` lists the options."""

from __future__ import annotations

from sparsereco.commands import display_camera, display_infill, display_vertex
from sparsereco.commands.common import dispatch

COMMANDS = {"vertex": display_vertex.COMMAND, "camera": display_camera.COMMAND, "infill": display_infill.COMMAND}


def run(argv: list[str]) -> None:
    """Parses the command line and draws."""
    dispatch(__doc__, "system", COMMANDS, argv)
