"""Vectors in space."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def across(direction: Tensor) -> tuple[Tensor, Tensor]:
    """Two unit vectors at right angles to directions (..., 3) and to each other."""
    side = torch.zeros_like(direction).scatter(-1, direction.abs().argmin(-1, keepdim=True), 1.0)
    u = normalize(torch.linalg.cross(side, direction), dim=-1)
    return u, torch.linalg.cross(direction, u)
