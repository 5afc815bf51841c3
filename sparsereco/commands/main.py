"""The command `sparsereco`: what the scripts in tools/ do, by one name."""

from __future__ import annotations

import importlib
import sys

from sparsereco import cli

VERBS = {
    "simulate": "events with their truth",
    "reco": "events to particles, clusters or filled gaps",
    "evaluate": "a reconstruction against the truth",
    "display": "events as a page for the browser",
    "train": "networks on simulated events, or a response on measured ones",
    "convert": "files of other formats to input files",
    "completion": "a script that has bash, zsh or fish complete commands and options",
}
"""Each is a module beside this one, imported when it is asked for: some need torch to say what they can do."""


def run(argv: list[str]) -> None:
    """Hands the command line on to a verb, or says which there are."""
    if argv and argv[0] in VERBS:
        importlib.import_module(f"sparsereco.commands.{argv[0]}").run(argv[1:])
        return
    parser = cli.new_parser("Sparse-tensor reconstruction for imaging particle detectors.")
    verbs = parser.add_subcommands(dest="verb")
    for name, summary in VERBS.items():
        verbs.add_subcommand(name, cli.new_parser(summary), help=summary)
    parser.parse_args(argv)


def main() -> int:
    """The entry point."""
    return cli.main(run)


if __name__ == "__main__":
    sys.exit(main())
