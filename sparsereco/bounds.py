"""What settings may be, checked where they are made: a wrong one is named before anything runs.

A setting of several numbers must have at least one, and each of them must be right.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf


def at_least(least: float, settings: object, where: str, *names: str) -> None:
    """Refuses smaller numbers.

    Args:
        least: what they may be.
        settings: their dataclass.
        where: what stands before their names on the command line, as in ``"schedule."``.
        names: of the settings that are looked at.

    Raises:
        ValueError: one of them is wrong. The other checks raise the same.
    """
    _check(lambda value: value >= least, f"be at least {least}", settings, where, names)


def not_negative(settings: object, where: str, *names: str) -> None:
    """Refuses negative numbers."""
    _check(lambda value: value >= 0, "not be negative", settings, where, names)


def positive(settings: object, where: str, *names: str) -> None:
    """Refuses all but positive and finite numbers."""
    _check(lambda value: 0 < value < inf, "be positive and finite", settings, where, names)


def share(settings: object, where: str, *names: str) -> None:
    """Refuses what is no share or probability."""
    _check(lambda value: 0 <= value <= 1, "lie in [0, 1]", settings, where, names)


def _check(right: Callable[[float], bool], what: str, settings: object, where: str, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(settings, name)
        numbers = value if isinstance(value, tuple | list) else [value]
        if not numbers:
            raise ValueError(f"{where}{name} must have at least one number, got none")
        if not all(right(number) for number in numbers):  # NaN is never right
            raise ValueError(f"{where}{name} must {what}, got {value}")
