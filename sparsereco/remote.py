"""Files by path or URL: one way to open any of them, and what has to be seen to with servers before and after.

A server of XRootD is given time to come back, but not for ever: by itself its client waits 30 minutes for an answer.
"""

from __future__ import annotations

import importlib.util
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from sparsereco.errors import InputError, reason

LIMITS = {
    "XRD_CONNECTIONWINDOW": 20,  # [s] for an attempt to connect, the first one and those after a connection broke
    "XRD_CONNECTIONRETRY": 3,  # attempts; the last one is not waited for
    "XRD_REQUESTTIMEOUT": 120,  # [s] for an answer, once connected
    "XRD_STREAMERRORWINDOW": 60,  # [s] in which a server that was given up is not asked again
}
"""Settings of the XRootD client where the environment has none: it gives up after 40 s without a connection."""

BLOCK = 1 << 18
"""What is read ahead [bytes]: little where HDF5 looks here and there for what it wants, much for a small read."""


def is_remote(path: str) -> bool:
    """Whether a path is a URL."""
    return "://" in path


def name(path: str) -> str:
    """Name of a file without its folder; of a URL without its query."""
    return Path(path.partition("?")[0] if is_remote(path) else path).name


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """A file to be read, on a disk or a server.

    Raises:
        InputError: there is no such file, it is a directory, it cannot be opened, or its URL needs a package that is
            not installed.
    """
    with connection(path):
        file = _open_url(path) if is_remote(path) else _open_local(path)
        try:
            yield file
        finally:
            with suppress(OSError):  # where a connection broke; that is told already
                file.close()


def _open_url(url: str) -> IO[bytes]:
    import fsspec

    try:
        files, path = fsspec.url_to_fs(url)
        opened: IO[bytes] = files.open(path, "rb", block_size=BLOCK)
    except Exception as error:  # of as many classes as there are protocols
        raise InputError(f"{url} cannot be read: {reason(error)}", file=url) from error
    return opened


def _open_local(path: str) -> IO[bytes]:
    try:
        return Path(path).open("rb")
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}", file=path) from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a directory, expected a file", file=path) from error
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror}", file=path) from error


@contextmanager
def connection(url: str) -> Iterator[None]:
    """What is read from a URL inside is read from the server, not through the handle of a connection that broke.

    Raises:
        InputError: the URL needs a package that is not installed.
    """
    if not url.startswith("root://"):
        yield
        return
    _prepare(url)
    import fsspec

    try:
        yield
    finally:
        # fsspec-xrootd keeps handles open for the next reader, dead ones too, and complains of those when Python ends.
        with suppress(OSError, ValueError):
            files, path = fsspec.url_to_fs(url)
            files.invalidate_cache(path)


def expand(pattern: str) -> list[str]:
    """The URLs that a pattern with ``*`` or ``[...]`` names, sorted; a URL of anything but XRootD names itself.

    Raises:
        InputError: the server cannot be asked, or no file matches.
    """
    if not (pattern.startswith("root://") and any(sign in pattern for sign in "*[")):  # "?" begins a query
        return [pattern]
    _prepare(pattern)
    import fsspec

    try:
        files, path = fsspec.url_to_fs(pattern)
        found = sorted(files.unstrip_protocol(match) for match in files.glob(path))
        if not found:  # glob says nothing of a server that is not there
            files.ls(re.split(r"/[^/]*[*[]", path)[0] or "/")
    except (OSError, ValueError) as error:
        raise InputError(f"{pattern} cannot be looked up: {reason(error)}", file=pattern) from error
    if not found:
        raise InputError(f"no file matches '{pattern}'", file=pattern)
    return found


def _prepare(url: str) -> None:
    """The XRootD client is there, and does not wait for ever; it reads its environment when it is imported."""
    if any(importlib.util.find_spec(name) is None for name in ("XRootD", "fsspec_xrootd")):
        raise InputError(f"{url} needs the client of XRootD: pip install 'sparsereco[xrootd]'", file=url)
    for name, value in LIMITS.items():
        os.environ.setdefault(name, str(value))
    # At the end it looks at every object for open files, and torch has some that warn when they are looked at.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"XRootD\.")
