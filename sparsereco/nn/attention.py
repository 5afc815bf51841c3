"""Transformer blocks for ragged batches: linear layers see only real tokens, attention alone is padded.

A crop has 10 to 50 tokens; padding every layer to the longest of a batch, as torch's own transformer layers do, would
spend most of the time on nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class Ragged:
    """Which of T packed tokens belongs where in a padded (B, L) batch."""

    event: Tensor  # (T,) int64, ascending
    slot: Tensor  # (T,) int64, place in the event
    mask: Tensor  # (B, L) bool, True where there is a token

    @classmethod
    def of(cls, counts: Tensor) -> Ragged:
        """From the number of tokens of each event, (B,) int64; at least one each."""
        event = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        slot = torch.arange(len(event), device=counts.device) - (counts.cumsum(0) - counts)[event]
        width = int(counts.max()) if len(counts) else 0
        return cls(event, slot, torch.arange(width, device=counts.device) < counts[:, None])

    def pad(self, tokens: Tensor) -> Tensor:
        """(T, ...) to (B, L, ...), zero where there is no token."""
        padded = tokens.new_zeros(*self.mask.shape, *tokens.shape[1:])
        return padded.index_put((self.event, self.slot), tokens)

    def pack(self, padded: Tensor) -> Tensor:
        """(B, L, ...) to (T, ...)."""
        return padded[self.event, self.slot]


KeyValue = tuple[Tensor, Tensor]
"""Keys and values of tokens, each (B, heads, L, width / heads)."""


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
        qkv = ragged.pad(self.qkv(self.norm(x)))
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, L, width / heads)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=ragged.mask[:, None, None, :])
        x = x + self.out(ragged.pack(mixed.transpose(1, 2).flatten(2)))
        return x + self.feed(x)


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
        """(B, S, width) steps to the same, and their keys and values, those before them included.

        Args:
            x: all steps, or with ``before`` the one step after those.
            remembered: of the tokens; mask: (B, L) which of them there are.
            before: what the call for the steps before returned.
        """
        qkv = self.qkv(self.norm(x))
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if before is not None:
            assert x.shape[1] == 1
            k, v = torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=before is None)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        q = self.query(self.cross_norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        mixed = scaled_dot_product_attention(q, *remembered, attn_mask=mask[:, None, None, :])
        x = x + self.cross_out(mixed.transpose(1, 2).flatten(2))
        return x + self.feed(x), (k, v)
