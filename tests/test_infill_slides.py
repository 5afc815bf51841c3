"""The two-part loss of the LArDRIP slides: where plain softmax weights collapse, and what holds them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsereco.infill.gaps import Gaps, LArDetector
from sparsereco.infill.slides import BlockConfig, BlockFiller, TwoPartLoss, dense_block
from sparsereco.voxels import Voxels

TWO_BOXES = LArDetector(size=(40, 40, 40), centres=((-22, 0, 0), (22, 0, 0)), pitch=2.0)


def toy(weights: str, steps: int = 1500) -> tuple[list[float], float, float]:
    """Voxels of which 2 % are track, seen through one noisy hint; final weights, mean answer on and off the track."""
    generator = torch.Generator().manual_seed(3)
    target = (torch.rand(5000, generator=generator) < 0.02).float()
    hint = target + 0.7 * torch.randn(5000, generator=generator)
    model, loss = nn.Linear(1, 1), TwoPartLoss(weights)  # type: ignore[arg-type]
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimiser = torch.optim.Adam([*model.parameters(), *loss.parameters()], lr=0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(torch.sigmoid(model(hint[:, None]))[:, 0], target).backward()
        optimiser.step()
    with torch.no_grad():
        answer = torch.sigmoid(model(hint[:, None]))[:, 0]
    return loss.weights.tolist(), float(answer[target == 1].mean()), float(answer[target == 0].mean())


def test_plain_softmax_weights_collapse_to_one_trivial_answer() -> None:
    weights, on, off = toy("softmax")
    assert max(weights) > 0.98
    assert abs(on - off) < 0.02


@pytest.mark.parametrize("weights", ["barrier", "fixed"])
def test_a_barrier_or_fixed_weights_cure_it(weights: str) -> None:
    final, on, off = toy(weights)
    assert min(final) > 0.35
    assert on - off > 0.25


def test_each_error_is_a_mean_over_its_own_voxels() -> None:
    loss = TwoPartLoss("fixed")
    value, target = torch.tensor([0.5, 0.25, 0.25, 0.25]), torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert float(loss(value, target)) == pytest.approx(0.5 * 0.25 + 0.5 * 0.0625)


def test_the_weights_follow_the_stated_gradient() -> None:
    loss = TwoPartLoss("softmax")
    value, target = torch.tensor([0.2, 0.1]), torch.tensor([1.0, 0.0])
    loss(value, target).backward()
    errors = torch.tensor([0.64, 0.01])
    torch.testing.assert_close(loss.theta.grad, 0.5 * (errors - errors.mean()))


def line_of_hits() -> Voxels:
    x = torch.tensor([*range(10, 20), *range(22, 32)])
    coords = torch.stack([x, torch.full_like(x, 9), torch.full_like(x, 12)], 1)
    return Voxels.make(coords, torch.full((len(x),), 0.8), torch.zeros_like(x), 1, TWO_BOXES.shape)


def test_the_block_is_the_gap_within_the_box_of_the_hits() -> None:
    event, cell = dense_block(line_of_hits(), Gaps(TWO_BOXES))
    assert cell.tolist() == [[20, 9, 12], [21, 9, 12]]
    assert event.tolist() == [0, 0]


@pytest.mark.parametrize("start", ["zero", "random", "minus one"])
def test_a_block_filler_learns_a_straight_track(start: str) -> None:
    torch.manual_seed(0)
    model = BlockFiller(BlockConfig(channels=(8, 8), start=start))  # type: ignore[arg-type]
    hits = line_of_hits()
    hits = Voxels.make(  # a second track widens the block
        torch.cat([hits.coords, hits.coords + torch.tensor([0, 4, 2])]).long(),
        torch.full((2 * len(hits.coords),), 0.8), torch.zeros(2 * len(hits.coords)).long(), 1, TWO_BOXES.shape,
    )  # fmt: skip
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        generator = torch.Generator().manual_seed(1)
        _, cell, value = model(hits, Gaps(TWO_BOXES), generator)
        on = ((cell[:, 1:] == torch.tensor([9, 12])) | (cell[:, 1:] == torch.tensor([13, 14]))).all(1)
        optimiser.zero_grad()
        model.loss(value, on.float()).backward()
        optimiser.step()
    assert len(cell) == 2 * 5 * 3
    assert float(value.detach()[on].mean() - value.detach()[~on].mean()) > 0.5
