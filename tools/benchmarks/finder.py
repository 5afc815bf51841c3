"""The finder's network on a batch of events, on our convolutions and on spconv's native ones, with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import jsonargparse
import torch
from torch import Tensor

from benchmarks.clock import seconds
from sparsereco import checkpoint
from sparsereco.commands.simulate_vertex import read_detector
from sparsereco.nn import sparse
from sparsereco.sim.bank import Bank, make_bank
from sparsereco.sim.compose import PRESETS, TrackBank
from sparsereco.sim.sample import draw_sample
from sparsereco.vertex.finder import Finder, FinderConfig
from sparsereco.voxels import Voxels


@torch.no_grad()
def run(args: jsonargparse.Namespace) -> dict[str, Any]:
    """Both engines in alternation, kernel maps included; what they answer must agree."""
    torch.set_num_threads(args.threads)
    bank = TrackBank(Bank.load(args.bank) if args.bank else make_bank(1000 + 8 * args.events, 1))
    generator = torch.Generator().manual_seed(1)
    sample = draw_sample(bank, PRESETS[args.preset], read_detector(args.response), args.events, generator)
    finder = checkpoint.load(checkpoint.WEIGHTS / "finder.safetensors", Finder, FinderConfig).eval()
    hits, _ = finder.visible(sample.hits)
    ours, theirs = (partial(answer, finder, hits, engine) for engine in (sparse.own_tensor, sparse.spconv_tensor))
    torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-3)
    times = [(seconds(ours), seconds(theirs)) for _ in range(args.rounds)]
    own, peer = min(t for t, _ in times), min(t for _, t in times)
    result = {"events": args.events, "voxels": len(hits.coords), "threads": args.threads}
    result |= {"seconds": own, "spconv_seconds": peer, "ratio": peer / own}
    print(
        f"finder {args.events:5,} events, {len(hits.coords):,} voxels  {own * 1e3:8.2f} ms  "
        f"spconv {peer * 1e3:8.1f} ms  ratio {peer / own:5.1f}"
    )
    return result


def answer(finder: Finder, hits: Voxels, engine: Callable[[Voxels], Any]) -> Tensor:
    """The finder's logits, on tensors of one of the engines."""
    with mock.patch.object(sparse, "sparse_tensor", engine):
        return finder(hits)[0]
