"""Transformer blocks for ragged batches: linear layers see only real tokens, attention alone is padded.

A crop has 10 to 50 tokens; padding every layer to the longest of a batch, as torch's own transformer layers do, would
spend most of the time on nothing. Attention works on some events of like length at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class Ragged:
    """Which of T packed tokens belongs where in a padded (B, L) batch; tokens of an event lie beside each other."""

    event: Tensor  # (T,) int64
    slot: Tensor  # (T,) int64, place in the event
    mask: Tensor  # (B, L) bool, True where there is a token
    parts: tuple[Ragged, ...] = field(default=(), repr=False)
    """The same tokens, in the same order, as batches of a few events that count their events from 0."""

    @classmethod
    def of(cls, counts: Tensor, order: Tensor | None = None) -> Ragged:
        """Where tokens belong.

        Args:
            counts: (B,) int64, number of tokens of each event; at least one each.
            order: (B,) in which order the events come; where their lengths ascend, least is padded. None: as counted.
        """
        order = torch.arange(len(counts), device=counts.device) if order is None else order
        lengths = counts[order]
        local = _padded(lengths)
        parts = tuple(_padded(some) for some in lengths.split(_PART))
        mask = torch.zeros_like(local.mask).index_copy(0, order, local.mask)
        return cls(order[local.event], local.slot, mask, parts)

    def pad(self, tokens: Tensor) -> Tensor:
        """(T, ...) to (B, L, ...), zero where there is no token."""
        padded = tokens.new_zeros(*self.mask.shape, *tokens.shape[1:])
        return padded.index_put((self.event, self.slot), tokens)

    def pack(self, padded: Tensor) -> Tensor:
        """(B, L, ...) to (T, ...)."""
        return padded[self.event, self.slot]


_PART = 64
"""Events that attention takes at a time."""


def _padded(counts: Tensor) -> Ragged:
    """Tokens of events that come as they are counted."""
    event = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    slot = torch.arange(len(event), device=counts.device) - (counts.cumsum(0) - counts)[event]
    width = int(counts.max()) if len(counts) else 0
    return Ragged(event, slot, torch.arange(width, device=counts.device) < counts[:, None])


def attend(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """Attention never in half precision, whose kernels are several times slower on a CPU for heads this narrow."""
    with torch.autocast(q.device.type, enabled=False):
        return scaled_dot_product_attention(_whole(q), _whole(k), _whole(v), **options)


def exactly(module: nn.Module, x: Tensor) -> Tensor:
    """A module never in half precision, for what autocast would round too coarsely: lengths, energies, densities."""
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = module(_whole(x))
    return out


def _whole(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


KeyValue = tuple[Tensor, Tensor]
"""Keys and values of tokens, each (B, heads, L, width / heads)."""


def by_event(x: Tensor, events: int) -> Tensor:
    """Tokens (B * K, S, width) of K sequences of each of B events as (B, K * S, width)."""
    return x.reshape(events, len(x) * x.shape[1] // max(events, 1), x.shape[2])


class FeedForward(nn.Sequential):
    """Pre-normalised two-layer perceptron of a transformer block."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) tokens to the same; without gradients, the widest tensor of a block is there once, not twice."""
        if torch.is_grad_enabled():
            return super().forward(x)
        norm, rise, _, fall = self
        return fall(torch.ops.aten.gelu_(rise(norm(x))))


class EncoderBlock(nn.Module):
    """Self-attention among the tokens of each event, then a perceptron; both pre-normalised residuals."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed = FeedForward(width)

    def forward(self, x: Tensor, ragged: Ragged) -> Tensor:
        """(T, width) tokens to the same."""
        qkv = self.qkv(self.norm(x)).split([len(part.event) for part in ragged.parts])
        mixed = [self._mix(tokens, part) for tokens, part in zip(qkv, ragged.parts, strict=True)]
        x = x + self.out(torch.cat(mixed))
        return x + self.feed(x)

    def _mix(self, qkv: Tensor, part: Ragged) -> Tensor:
        q, k, v = part.pad(qkv).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return part.pack(attend(q, k, v, attn_mask=part.mask[:, None, None, :]).transpose(1, 2).flatten(2))


class DecoderBlock(nn.Module):
    """Causal self-attention among the steps of an event, attention to its tokens, then a perceptron."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.cross_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.cross_out = nn.Linear(width, width)
        self.feed = FeedForward(width)

    def remember(self, memory: Tensor, ragged: Ragged) -> KeyValue:
        """Keys and values of the (T, width) tokens, once for all steps."""
        padded = ragged.pad(self.key_value(memory))
        key, value = padded.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return key, value

    def forward(
        self, x: Tensor, remembered: KeyValue, mask: Tensor, before: KeyValue | None = None
    ) -> tuple[Tensor, KeyValue]:
        """Steps to the same, and their keys and values, those before them included.

        Args:
            x: (B * K, S, width) all steps of K sequences of each event, or with ``before`` the one step after those.
            remembered: of the tokens; mask: (B, L) which of them there are.
            before: what the call for the steps before returned.
        """
        qkv = self.qkv(self.norm(x))
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if before is not None:
            assert x.shape[1] == 1
            k, v = torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)
        mixed = attend(q, k, v, is_causal=before is None)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        # Sequences of an event look at the same tokens, and not at each other.
        queries = by_event(self.query(self.cross_norm(x)), len(mask))
        q = queries.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        mixed = attend(q, *remembered, attn_mask=mask[:, None, None, :])
        x = x + self.cross_out(mixed.transpose(1, 2).flatten(2)).view_as(x)
        return x + self.feed(x), (k, v)
