"""Transformer blocks on ragged batches against loops over events, without any padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sparsereco.nn.attention import DecoderBlock, EncoderBlock, FeedForward, Ragged, exactly

WIDTH, HEADS = 12, 3
COUNTS = [4, 1, 7, 2]


def tokens(counts: list[int], seed: int = 0) -> Tensor:
    return torch.randn(sum(counts), WIDTH, generator=torch.Generator().manual_seed(seed)).double()


def block(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return kind(WIDTH, HEADS).double()


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """Written out for one event: (L, width) each, head by head."""
    mixed = []
    for head_q, head_k, head_v in zip(*(t.chunk(HEADS, dim=1) for t in (q, k, v)), strict=True):
        score = head_q @ head_k.T / head_q.shape[1] ** 0.5
        if causal:
            score = score.masked_fill(torch.ones_like(score).triu(1).bool(), -torch.inf)
        mixed.append(score.softmax(1) @ head_v)
    return torch.cat(mixed, 1)


def encode_one(module: EncoderBlock, x: Tensor) -> Tensor:
    q, k, v = module.qkv(module.norm(x)).chunk(3, dim=1)
    x = x + module.out(attention(q, k, v))
    return x + module.feed(x)


def decode_one(module: DecoderBlock, steps: Tensor, memory: Tensor) -> Tensor:
    q, k, v = module.qkv(module.norm(steps)).chunk(3, dim=1)
    x = steps + module.out(attention(q, k, v, causal=True))
    k, v = module.key_value(memory).chunk(2, dim=1)
    x = x + module.cross_out(attention(module.query(module.cross_norm(x)), k, v))
    return x + module.feed(x)


def decode(module: DecoderBlock, steps: Tensor, memory: Tensor, counts: list[int]) -> Tensor:
    ragged = Ragged.of(torch.tensor(counts))
    return module(steps, module.remember(memory, ragged), ragged.mask)[0]


def test_sequences_of_an_event_do_not_see_each_other() -> None:
    counts = [3, 5]
    module, memory = block(DecoderBlock), tokens(counts)
    steps = tokens([24]).view(2, 4, 3, WIDTH)
    found = decode(module, steps.flatten(0, 1), memory, counts).view_as(steps)
    for event, own in enumerate(memory.split(counts)):
        for sequence in range(4):
            torch.testing.assert_close(found[event, sequence], decode_one(module, steps[event, sequence], own))


@given(st.lists(st.integers(1, 6), max_size=6))
def test_pack_undoes_pad(counts: list[int]) -> None:
    ragged, x = Ragged.of(torch.tensor(counts, dtype=torch.int64)), tokens(counts)
    padded = ragged.pad(x)
    assert padded.shape == (len(counts), max(counts, default=0), WIDTH)
    assert torch.equal(ragged.pack(padded), x)
    assert ragged.mask.sum(1).tolist() == counts
    assert not padded[~ragged.mask].any()
    assert ragged.slot.tolist() == [slot for count in counts for slot in range(count)]


def test_attention_of_many_events_in_parts_of_like_length() -> None:
    counts = [1 + 7 * k % 11 for k in range(150)]
    module, parts = block(EncoderBlock), tokens(counts).split(counts)
    by_length = torch.argsort(torch.tensor(counts), stable=True)
    ragged = Ragged.of(torch.tensor(counts), by_length)
    assert [part.mask.shape for part in ragged.parts] == [(64, sorted(counts)[63]), (64, sorted(counts)[127]), (22, 11)]
    found = ragged.pad(module(torch.cat([parts[event] for event in by_length]), ragged))
    for event, part in enumerate(parts):
        torch.testing.assert_close(found[event, : len(part)], encode_one(module, part))


def test_in_bfloat16_what_must_be_exact_is_in_single_precision() -> None:
    module, x = block(EncoderBlock).float(), tokens(COUNTS).float()
    ragged = Ragged.of(torch.tensor(COUNTS))
    with torch.autocast("cpu", torch.bfloat16):
        rounded, exact = module(x, ragged), exactly(module.feed, x)
    assert rounded.dtype == exact.dtype == torch.float32
    torch.testing.assert_close(exact, module.feed(x))
    torch.testing.assert_close(rounded, module(x, ragged), atol=0.02, rtol=0.02)
    assert not torch.equal(rounded, module(x, ragged))


def test_the_encoder_equals_a_loop_over_events() -> None:
    module, x = block(EncoderBlock), tokens(COUNTS)
    expected = torch.cat([encode_one(module, part) for part in x.split(COUNTS)])
    torch.testing.assert_close(module(x, Ragged.of(torch.tensor(COUNTS))), expected)


def test_the_decoder_equals_a_loop_over_events() -> None:
    module, memory = block(DecoderBlock), tokens(COUNTS)
    steps = torch.randn(len(COUNTS), 5, WIDTH, dtype=torch.float64)
    expected = torch.stack([decode_one(module, *pair) for pair in zip(steps, memory.split(COUNTS), strict=True)])
    torch.testing.assert_close(decode(module, steps, memory, COUNTS), expected)


def test_a_longer_event_in_the_batch_only_adds_padding() -> None:
    module, x = block(EncoderBlock), tokens([3, 2])
    longer = torch.cat([x, tokens([40], seed=1)])
    with_long = module(longer, Ragged.of(torch.tensor([3, 2, 40])))
    torch.testing.assert_close(with_long[:5], module(x, Ragged.of(torch.tensor([3, 2]))))


def test_the_encoder_does_not_know_the_order_of_tokens() -> None:
    module, x = block(EncoderBlock), tokens([6])
    ragged, order = Ragged.of(torch.tensor([6])), torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(module(x[order], ragged), module(x, ragged)[order])


@pytest.mark.parametrize("changed", [0, 2, 4])
def test_a_step_sees_only_itself_and_earlier_steps(changed: int) -> None:
    module, memory = block(DecoderBlock), tokens([4, 1])
    steps = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    other = steps.clone()
    other[:, changed] += torch.randn(WIDTH, dtype=torch.float64)
    before, after = decode(module, steps, memory, [4, 1]), decode(module, other, memory, [4, 1])
    torch.testing.assert_close(after[:, :changed], before[:, :changed])
    assert (after[:, changed:] - before[:, changed:]).abs().amax(2).gt(1e-6).all()


def test_the_decoder_sees_the_memory_of_its_own_event_only() -> None:
    module, memory = block(DecoderBlock), tokens([4, 1, 3])
    steps = torch.randn(3, 2, WIDTH, dtype=torch.float64)
    other = memory.clone()
    other[4] += torch.randn(WIDTH, dtype=torch.float64)
    before, after = decode(module, steps, memory, [4, 1, 3]), decode(module, steps, other, [4, 1, 3])
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]])
    assert (after[1] - before[1]).abs().amax() > 1e-6


def test_events_of_one_token_attend_to_themselves() -> None:
    module, x = block(EncoderBlock), tokens([1, 1, 1])
    value = module.qkv(module.norm(x)).chunk(3, dim=1)[2]
    expected = x + module.out(value)
    torch.testing.assert_close(module(x, Ragged.of(torch.tensor([1, 1, 1]))), expected + module.feed(expected))


def test_gradients_reach_every_parameter() -> None:
    encoder, decoder = block(EncoderBlock), block(DecoderBlock)
    memory = encoder(tokens(COUNTS), Ragged.of(torch.tensor(COUNTS)))
    steps = torch.randn(len(COUNTS), 3, WIDTH, dtype=torch.float64)
    decode(decoder, steps, memory, COUNTS).square().sum().backward()
    for module in (encoder, decoder):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("shape", [(9, WIDTH), (2, 5, WIDTH)])
def test_without_gradients_a_perceptron_gives_the_same_to_the_last_bit(shape: tuple[int, ...]) -> None:
    torch.manual_seed(5)
    feed, x = FeedForward(WIDTH), torch.randn(shape)
    before = x.clone()
    expected = feed(x)
    with torch.inference_mode():
        assert torch.equal(feed(x), expected.detach())
    assert torch.equal(x, before)
