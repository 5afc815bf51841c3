"""Compares a reconstruction with the truth. `tools/evaluate.py vertex --help` lists the options."""

from __future__ import annotations

from sparsereco.commands import (
    evaluate_calibration,
    evaluate_camera,
    evaluate_embed,
    evaluate_generator,
    evaluate_infill,
    evaluate_vertex,
)
from sparsereco.commands.common import dispatch

COMMANDS = {
    "vertex": evaluate_vertex.COMMAND,
    "generator": evaluate_generator.COMMAND,
    "infill": evaluate_infill.COMMAND,
    "camera": evaluate_camera.COMMAND,
    "embed": evaluate_embed.COMMAND,
    "calibration": evaluate_calibration.COMMAND,
}


def run(argv: list[str]) -> None:
    """Parses the command line and evaluates."""
    dispatch(__doc__, "system", COMMANDS, argv)
