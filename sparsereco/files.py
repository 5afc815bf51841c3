"""Output files that are either complete or not there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sparsereco.errors import InputError


def check_directory(directory: Path, force: bool) -> None:
    """A report can go there.

    Raises:
        InputError: it is a file, or it is not empty and `force` is not set.
    """
    if directory.exists() and not directory.is_dir():
        raise InputError(f"output {directory} is a file, expected a directory", file=str(directory))
    if directory.exists() and any(directory.iterdir()) and not force:
        raise InputError(f"output {directory} exists already; -f replaces the report in it", file=str(directory))


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write files so that each is either complete or not there.

    Args:
        directory: is made where it is not there; other files in it stay.
        files: content by path below the directory, in the order in which they appear.

    Raises:
        InputError: the directory cannot be written to.
    """
    for name, content in files.items():
        path = directory / name
        part = path.with_name(f"{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                part.write_bytes(content)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"output {path} cannot be written: {error.strerror}", file=str(path)) from error


def check_file(path: Path, force: bool) -> None:
    """A file can be written there.

    Raises:
        InputError: it is a directory, or it exists and `force` is not set.
    """
    if path.is_dir():
        raise InputError(f"output {path} is a directory, expected a file", file=str(path))
    if path.exists() and not force:
        raise InputError(f"output {path} exists already; -f replaces it", file=str(path))
