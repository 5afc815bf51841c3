"""Makes input files of other formats. `tools/convert.py csv --help` lists the options."""

from __future__ import annotations

from sparsereco.commands import convert_csv, convert_edepsim, convert_larcv
from sparsereco.commands.common import dispatch

COMMANDS = {"csv": convert_csv.COMMAND, "edepsim": convert_edepsim.COMMAND, "larcv": convert_larcv.COMMAND}


def run(argv: list[str]) -> None:
    """Parses the command line and converts."""
    dispatch(__doc__, "format", COMMANDS, argv)
