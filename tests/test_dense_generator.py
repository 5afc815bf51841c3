"""The published generator's design, the baseline of the generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tool_loader import load_tool

from sparsereco import checkpoint, cli
from sparsereco.sim.compose import TrackBank
from sparsereco.vertex.adversary import ImageStream, Singles, draw_singles
from sparsereco.vertex.dense_generator import DenseCritic, DenseGenerator, DenseGeneratorConfig, critic_loss, labels_of

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture
def singles(bank: Any) -> Singles:
    return draw_singles(ImageStream(), TrackBank(bank), torch.arange(12) % 4, torch.Generator().manual_seed(1))


def test_size_is_about_the_published_one() -> None:
    weights = sum(weight.numel() for weight in DenseGenerator(DenseGeneratorConfig()).parameters())
    more = 64 * 5  # five labels: the species, and three numbers for a direction
    assert weights == pytest.approx(141_569 + more, rel=2e-3)


def test_images_are_whole_photo_electrons_and_repeat(singles: Singles) -> None:
    model = DenseGenerator(DenseGeneratorConfig()).eval()
    one, again, other = (model.images(singles, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one.shape == (12, 5, 5, 5)
    assert (one == one.round()).all()
    assert one.min() >= 0
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not one.requires_grad


def test_scale_leads_back_to_the_light() -> None:
    model = DenseGenerator(DenseGeneratorConfig(brightest=1000.0))
    light = torch.tensor([0.0, 500.0, 1000.0, 2000.0]).view(4, 1, 1, 1)
    torch.testing.assert_close(model.scaled(light)[:, 0], torch.tensor([-1.0, 0.0, 1.0, 1.0]))


def test_loss_of_a_linear_critic() -> None:
    class Linear(DenseCritic):
        def forward(self, scaled: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return 0.3 * scaled.sum(1)  # its slope is 0.3 x sqrt(125) everywhere

    critic = Linear(DenseGeneratorConfig(dropout=0.0))
    real, made = torch.full((12, 125), -1.0), torch.full((12, 125), -0.5)
    loss = critic_loss(critic, real, made, torch.zeros(12, 11))
    assert float(loss) == pytest.approx(0.3 * 0.5 * 125 + 10 * (0.3 * 125**0.5 - 1) ** 2, rel=1e-5)


def test_every_weight_of_the_critic_learns(singles: Singles) -> None:
    critic, labels = DenseCritic(DenseGeneratorConfig(dropout=0.0)), labels_of(singles)
    assert labels.shape == (12, 11)
    critic_loss(critic, torch.rand(12, 125), torch.rand(12, 125), labels).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in critic.parameters())


def test_training_writes_a_checkpoint(bank: Any, tmp_path: Path) -> None:
    bank.save(tmp_path / "bank.npz")
    weights = tmp_path / "dense.safetensors"
    train = ["--bank", str(tmp_path / "bank.npz"), "-o", str(weights), "-n", "64", "--minutes", "0.05", "-q"]
    assert cli.main(load_tool("baselines/dense_generator").run, train) == 0
    checkpoint.load(weights, DenseGenerator, DenseGeneratorConfig)
    record = checkpoint.metadata(weights)
    assert min(record["warm_steps"], record["steps"]) > 0
    assert record["images"] == 64


def test_bad_input_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool = load_tool("baselines/dense_generator")
    assert cli.main(tool.run, ["--bank", "none.npz", "-o", "x", "--minutes", "0"]) == 2
    assert "a positive time, got 200000, 0.0" in capsys.readouterr().err
    assert cli.main(tool.run, ["--bank", str(tmp_path / "none.npz"), "-o", "x"]) == 2
    assert "none.npz cannot be read" in capsys.readouterr().err
