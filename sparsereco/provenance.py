"""How an output was made: what has to be known to make it again."""

from __future__ import annotations

import platform
import shlex
import subprocess
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from sparsereco import __version__

LIBRARIES = ("torch", "spconv-cu120", "torch-scatter", "numpy", "awkward", "uproot", "scipy")
"""Distributions whose versions can change a result."""


def environment(command: Iterable[str]) -> dict[str, object]:
    """Software and command line of this run.

    Args:
        command: the command with its arguments.
    """
    return {
        "version": __version__,
        "git_revision": git_revision(),
        "command": shlex.join(command),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
    }


def git_revision() -> str | None:
    """Commit of the checkout that this package runs from, with ``-dirty`` after local changes; None outside of one."""
    package = Path(__file__).parent
    if not (package.parent / ".git").exists():
        return None
    command = ["git", "-C", str(package), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):  # no git here, or no commit yet
        return None
    return done.stdout.strip()


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
