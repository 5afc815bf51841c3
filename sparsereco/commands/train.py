"""Trains a stage on simulated events, or fits a response to measured ones.

`tools/train.py finder --help` lists the options of a stage.
"""

from __future__ import annotations

from sparsereco.commands import train_camera, train_infill, train_response, train_vertex
from sparsereco.commands.common import dispatch

COMMANDS = {
    "finder": train_vertex.FINDER,
    "decomposer": train_vertex.DECOMPOSER,
    "generator": train_vertex.GENERATOR,
    "response": train_response.COMMAND,
    "filler": train_infill.COMMAND,
    "selector": train_camera.SELECTOR,
    "anomaly": train_camera.ANOMALY,
    "embed": train_camera.EMBED,
}


def run(argv: list[str]) -> None:
    """Parses the command line and trains."""
    dispatch(__doc__, "stage", COMMANDS, argv)
