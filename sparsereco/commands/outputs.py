"""What a command may write: no output is a file that the same command line reads, or another output."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

import jsonargparse

from sparsereco.errors import InputError

OUTPUTS = ("output", "figure", "save_pedestal", "save_sparse")
"""Options of all commands that name a file to be written."""


def check_outputs(args: jsonargparse.Namespace) -> None:
    """Refuses an output that is, by whatever path, a file that the command line names otherwise: -f would replace it.

    Raises:
        InputError: an output is an input (of any option), or another output, too.
    """
    options = vars(args.as_flat())
    outputs = [Path(options[name]) for name in OUTPUTS if options.get(name) is not None]
    written = [path for output in outputs for path in (output, Path(f"{output}.part"))]
    if len({path.resolve() for path in written}) < len(written):
        raise InputError(f"expected outputs that are different files, got {' and '.join(map(str, outputs))}")
    for name, value in options.items():
        for file in _files(value) if name not in OUTPUTS else []:
            for path in written:
                if path.exists() and path.samefile(file):
                    raise InputError(f"output {path} is an input, too: expected another file", file=str(path))


def _files(value: object) -> Iterator[Path]:
    """The local files that the value of an option may name: FILE[:TREE], patterns, URLs of files, or lists of them."""
    for item in value if isinstance(value, list) else [value]:
        whole = str(item).removeprefix("file://") if isinstance(item, str | PathLike) else ""
        for text in (whole, whole.rpartition(":")[0]):
            names = glob.glob(glob.escape(text)) or glob.glob(text, recursive=True)
            yield from (path for path in map(Path, names) if path.is_file())
