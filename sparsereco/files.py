"""Output files that are either complete or not there."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
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


def check_contents(directory: Path, known: Collection[str]) -> None:
    """A directory may be replaced as a whole, as it holds nothing but known files; it need not exist.

    Raises:
        InputError: it is no directory, or names what else is in it.
    """
    if not directory.exists() and not directory.is_symlink():
        return
    if directory.is_symlink() or not directory.is_dir():
        raise InputError(f"output {directory} is not a directory that can be replaced", file=str(directory))
    foreign = sorted(path.name for path in directory.iterdir() if path.name not in known or not path.is_file())
    if foreign:
        raise InputError(
            f"output {directory} holds {foreign[0]}, which is not of an earlier report: move it, or choose another "
            "directory",
            file=str(directory),
        )


def replace_directory(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a directory that then holds nothing else, complete or as it was before.

    Args:
        directory: replaced where it is there, see `check_contents`; not there afterwards where there are no files.
        files: content by name.

    Raises:
        InputError: the directory cannot be written.
    """
    part = directory.with_name(f"{directory.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        try:
            write_files(part, files)
            if directory.exists():
                shutil.rmtree(directory)
            if files:
                part.rename(directory)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise InputError(f"output {directory} cannot be written: {error.strerror}", file=str(directory)) from error


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
        InputError: it is a directory or a device, or it exists and `force` is not set.
    """
    if path.is_dir():
        raise InputError(f"output {path} is a directory, expected a file", file=str(path))
    if path.exists() and not path.is_file():  # it would be replaced, whatever it is to others
        raise InputError(f"output {path} is a device or a pipe, expected a file", file=str(path))
    if path.exists() and not force:
        raise InputError(f"output {path} exists already; -f replaces it", file=str(path))
