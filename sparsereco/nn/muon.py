"""Muon in single precision: gradient descent that moves every direction of a weight matrix alike.

`torch.optim.Muon` orthogonalises in bfloat16, which a CPU without instructions for it does more than ten times slower
than single precision: there, training the decomposer spent more time on that than on its network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_ROUNDS = 5
_QUINTIC = 3.4445, -4.7750, 2.0315
"""Steps to the orthogonal matrix and their coefficients, which pull singular values to about 1 as fast as can be
(K. Jordan, "Muon: An optimizer for hidden layers in neural networks")."""


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal; its steps are as large as those of AdamW (arXiv 2502.16982).

    Args:
        params: matrices, or groups of them.
        lr: learning rate.
        weight_decay: decoupled, as of AdamW.
        momentum: decay of the running mean of the gradients.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; matrices of one shape are made orthogonal together."""
        assert closure is None
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                mean = state["momentum_buffer"].lerp_(weight.grad, 1 - momentum)
                update = torch.lerp(weight.grad, mean, momentum)  # Nesterov's
                by_shape.setdefault(weight.shape, []).append((weight, update))
            for shape, moves in by_shape.items():
                weights, updates = zip(*moves, strict=True)
                length = 0.2 * max(shape) ** 0.5
                for weight, update in zip(weights, orthogonalised(torch.stack(updates)), strict=True):
                    weight.mul_(1 - rate * group["weight_decay"]).add_(update, alpha=-rate * length)


def orthogonalised(matrices: Tensor) -> Tensor:
    """The orthogonal matrix next to each of (N, A, B), roughly: singular values come to between 0.7 and 1.2."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    a, b, c = _QUINTIC
    for _ in range(_ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
