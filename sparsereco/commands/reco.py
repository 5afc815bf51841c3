"""Reconstructs events: ROOT files in, one ROOT file out. `tools/reco.py vertex --help` lists the options."""

from __future__ import annotations

from sparsereco.commands import reco_camera, reco_infill, reco_vertex
from sparsereco.commands.common import dispatch

COMMANDS = {
    "vertex": reco_vertex.COMMAND,
    "infill": reco_infill.COMMAND,
    "camera": reco_camera.COMMAND,
}


def run(argv: list[str]) -> None:
    """Parses the command line and does what it asks for."""
    dispatch(__doc__, "system", COMMANDS, argv)
