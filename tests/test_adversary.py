"""What trains the generator: images of single particles, the critic, and the step that they share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsereco.detector import Detector
from sparsereco.sim.compose import TrackBank
from sparsereco.train import Schedule, fit
from sparsereco.vertex.adversary import SIDE, Adversaries, Critic, ImageStream, Singles, draw_singles, generate
from sparsereco.vertex.generator import Generator, GeneratorConfig

STREAM = ImageStream()


@pytest.fixture(scope="module")
def tracks(bank: Any) -> TrackBank:
    return TrackBank(bank)


@pytest.fixture
def singles(tracks: TrackBank) -> Singles:
    return draw_singles(STREAM, tracks, torch.arange(40) % 4, torch.Generator().manual_seed(1))


def test_singles_hold_the_light_of_their_tracks(singles: Singles, tracks: TrackBank) -> None:
    assert singles.image.shape == (40, SIDE, SIDE, SIDE)
    assert ((singles.start >= 3) & (singles.start < 4)).all()
    light = singles.image.flatten(1).sum(1)
    stopping = singles.species < 3
    # All of a stopping hadron's energy is in its image, quenched.
    assert (light[stopping] < 85.8 * singles.ke[stopping]).all()
    assert (light[stopping & (singles.ke > 20)] > 30 * singles.ke[stopping & (singles.ke > 20)]).all()


def test_generated_images_have_the_light_of_the_real_ones(singles: Singles) -> None:
    made = generate(Generator(GeneratorConfig()), singles, Detector(), torch.Generator().manual_seed(1))
    light, real = made.detach().flatten(1).sum(1), singles.image.flatten(1).sum(1)
    fast = (singles.species < 3) & (singles.ke > 10)
    torch.testing.assert_close(light[fast], real[fast], rtol=0.05, atol=0)


def test_order_of_the_particles_does_not_matter_to_the_critic(singles: Singles) -> None:
    critic = Critic(16)
    amplitude, owner, place = lit(singles)
    scores = critic(amplitude, owner, place, singles)
    shuffled = torch.randperm(len(owner), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(critic(amplitude[shuffled], owner[shuffled], place[shuffled], singles), scores)
    more = torch.cat([amplitude, torch.zeros(3)]), torch.cat([owner, owner[:3]]), torch.cat([place, place[:3]])
    torch.testing.assert_close(critic(*more, singles), scores)  # voxels without light do not count


def lit(singles: Singles) -> tuple[Tensor, Tensor, Tensor]:
    rows = (singles.image > 0).nonzero()
    return singles.image[tuple(rows.T)].sqrt(), rows[:, 0], rows[:, 1:]


def test_gradients_reach_every_parameter_and_point_apart(tracks: TrackBank) -> None:
    torch.manual_seed(1)
    pair = Adversaries(GeneratorConfig(), 16)
    for layer in pair.generator.modules():  # the last layers start from zero, which blocks those before
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.normal_(layer.weight, std=0.1)
    losses = pair.losses(STREAM, tracks, 64, 10.0, torch.Generator().manual_seed(1))
    assert set(losses) == {"critic", "penalty"}
    torch.stack(list(losses.values())).sum().backward()
    for name, weight in pair.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
        assert weight.grad.any() or name.endswith("score.2.bias"), name  # a constant cancels in a difference


def test_the_generator_ascends_what_the_critic_descends(tracks: TrackBank) -> None:
    torch.manual_seed(1)
    pair = Adversaries(GeneratorConfig(), 16)

    def loss() -> Tensor:
        return pair.losses(STREAM, tracks, 256, 0.0, torch.Generator().manual_seed(1))["critic"]

    before = loss()
    before.backward()
    with torch.no_grad():
        for weight in pair.generator.parameters():
            if weight.grad is not None:
                weight -= 0.02 * weight.grad / weight.grad.norm().clamp(min=1e-12)
    assert loss() > before


def test_training_mends_a_generator_that_is_off(tracks: TrackBank, tmp_path: Path) -> None:
    torch.manual_seed(1)
    pair = Adversaries(GeneratorConfig(), 32)
    with torch.no_grad():  # light of hadrons 15 % too low
        pair.generator.hadrons.correct[-1].bias[1] = 5.0

    def excess() -> float:
        like = draw_singles(STREAM, tracks, torch.zeros(400, dtype=torch.int64), torch.Generator().manual_seed(5))
        with torch.no_grad():
            made = generate(pair.generator, like, Detector(), torch.Generator().manual_seed(6))
        return float(made.sum() / like.image.sum() - 1)

    before = excess()
    schedule = Schedule(steps=60, batch_size=128, learning_rate=5e-3, warmup=5, average=0.5)
    fit(
        pair,
        lambda generator: pair.losses(STREAM, tracks, 128, 10.0, generator),
        schedule,
        tmp_path,
        pace={"generator": 2.0},
    )
    assert abs(excess()) < abs(before)


def test_a_part_can_go_at_its_own_pace(tracks: TrackBank, tmp_path: Path) -> None:
    torch.manual_seed(1)
    pair = Adversaries(GeneratorConfig(), 16)
    start = {name: weight.clone() for name, weight in pair.named_parameters()}
    schedule = Schedule(steps=2, batch_size=32, learning_rate=1e-3, warmup=1)
    fit(
        pair,
        lambda generator: pair.losses(STREAM, tracks, 32, 10.0, generator),
        schedule,
        tmp_path,
        pace={"generator": 0.0},
    )
    moved = {name.split(".")[0] for name, weight in pair.named_parameters() if not torch.equal(weight, start[name])}
    assert moved == {"critic"}
