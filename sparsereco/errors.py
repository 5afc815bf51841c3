"""What a user can get wrong, as exceptions: tools turn an `InputError` into one line on stderr and exit code 2."""

from __future__ import annotations

import re


class InputError(Exception):
    """Something that was given cannot be used: a file, a tree, a branch, an event, a setting.

    Args:
        message: One line that says what came, what was expected and what would be right.
        file: The file as the user named it, where it is known.
        tree: Name of the TTree or RNTuple in it.
        branch: Name of the branch, as the file spells it.
        entry: Entry number in the tree.
        value: The offending value.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        tree: str | None = None,
        branch: str | None = None,
        entry: int | None = None,
        value: object = None,
    ) -> None:
        super().__init__(message)
        self.file = file
        self.tree = tree
        self.branch = branch
        self.entry = entry
        self.value = value

    def __str__(self) -> str:
        """The message itself, in subclasses of `KeyError` too (which would quote it)."""
        return str(self.args[0])


class BranchError(InputError, KeyError):
    """A branch is missing, misspelt or of the wrong type."""


class OutputError(InputError):
    """An output cannot be written: no space, no right to, or its folder is gone."""


def reason(error: Exception) -> str:
    """The first line of a foreign error, without addresses of objects."""
    lines = re.sub(r"<bound method (\S+) of .*?>>", r"\1", str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
