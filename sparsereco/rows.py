"""Dataclasses of tensors that have a row for each of something: picked, joined and replaced row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def choose(condition: Tensor, yes: T, no: T) -> T:
    """Of each row one of two values."""

    def either(parts: list[Tensor]) -> Tensor:
        return torch.where(condition.view(-1, *[1] * (parts[0].ndim - 1)), parts[0], parts[1])

    return zipped(either, [yes, no])


def joined(values: Sequence[T]) -> T:
    """The rows of all values, one after the other."""
    return zipped(torch.cat, values)


def zipped(function: Callable[[list[Tensor]], Tensor], values: Sequence[T]) -> T:
    """A dataclass of tensors from several of its kind, by a function of the tensors of the same name."""
    parts = {}
    for field in fields(values[0]):  # type: ignore[arg-type]
        column = [getattr(value, field.name) for value in values]
        parts[field.name] = function(column) if isinstance(column[0], Tensor) else zipped(function, column)
    return type(values[0])(**parts)


def mapped(function: Callable[[Tensor], Tensor], value: T) -> T:
    """A dataclass of tensors with a function applied to each."""
    parts = {field.name: getattr(value, field.name) for field in fields(value)}  # type: ignore[arg-type]
    return type(value)(**{k: function(v) if isinstance(v, Tensor) else mapped(function, v) for k, v in parts.items()})


def rows_at(value: T, rows: Tensor) -> T:
    """Some rows of every tensor."""
    return mapped(lambda column: column[rows], value)


def put_rows(value: T, rows: Tensor, new: T) -> T:
    """Some rows of every tensor replaced."""
    columns = {
        field.name: getattr(value, field.name).index_copy(0, rows, getattr(new, field.name))
        for field in fields(value)  # type: ignore[arg-type]
    }
    return type(value)(**columns)


def plain(value: T) -> T:
    """Without the mark of inference mode, which derivatives refuse."""
    return mapped(torch.clone, value)
