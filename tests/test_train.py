"""The training loop: what a kill and a resume change (nothing), the running average, the reports."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparsereco import checkpoint
from sparsereco.checkpoint import load_training
from sparsereco.nn.muon import orthogonalised
from sparsereco.sim.bank import Bank
from sparsereco.sim.compose import TrackBank
from sparsereco.train import Schedule, fit
from sparsereco.vertex.crop import HALF
from sparsereco.vertex.decomposer import Decomposer, DecomposerConfig
from sparsereco.vertex.finder import Finder, FinderConfig
from sparsereco.vertex.hadrons import MAX_HADRONS
from sparsereco.vertex.training import (
    EventStream,
    calibrate,
    decomposer_batch,
    decomposer_step,
    finder_step,
    measure_track_light,
)

Losses = Callable[[torch.Generator], dict[str, Tensor]]


class Killed(Exception):
    """Stands for a kill from outside."""


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def losses_of(net: nn.Module, seen: list[float] | None = None, kill_at: int | None = None) -> Losses:
    """A fit of the sum of squares, on fresh points each step; ``seen`` takes the first number of each."""
    calls = 0

    def losses(generator: torch.Generator) -> dict[str, Tensor]:
        nonlocal calls
        if calls == kill_at:
            raise Killed
        calls += 1
        x = torch.randn(32, 3, generator=generator)
        if seen is not None:
            seen.append(float(x[0, 0]))
        error = net(x)[:, 0] - x.square().sum(1)
        return {"square": error.square().mean(), "absolute": error.abs().mean()}

    return losses


SCHEDULE = Schedule(steps=12, batch_size=32, learning_rate=1e-2, warmup=3, average=0.9, save_every=0)


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("kill_at", [1, 5, 11])
def test_a_resumed_training_ends_as_one_that_never_stopped(tmp_path: Path, kill_at: int) -> None:
    whole, seen_whole = model(), []
    average = fit(whole, losses_of(whole, seen_whole), SCHEDULE, tmp_path / "whole")

    killed, seen = model(), []
    with pytest.raises(Killed):
        fit(killed, losses_of(killed, seen, kill_at), SCHEDULE, tmp_path / "cut")
    assert load_training(tmp_path / "cut" / "last.pt")["step"] == kill_at
    resumed = model()
    resumed_average = fit(resumed, losses_of(resumed, seen), SCHEDULE, tmp_path / "cut", resume=True)

    assert same(resumed, whole)
    assert same(resumed_average, average)
    assert not same(average, whole)
    assert seen == seen_whole
    assert len(set(seen)) == SCHEDULE.steps


def test_a_finished_training_resumes_to_its_result(tmp_path: Path) -> None:
    first = model()
    average = fit(first, losses_of(first), SCHEDULE, tmp_path)
    again = model()
    assert same(fit(again, losses_of(again, kill_at=0), SCHEDULE, tmp_path, resume=True), average)


def test_the_average_follows_the_weights(tmp_path: Path) -> None:
    net, path = model(), []

    def losses(generator: torch.Generator) -> dict[str, Tensor]:
        path.append(net[2].bias.item())
        return losses_of(net)(generator)

    average = fit(net, losses, SCHEDULE, tmp_path)
    weights = [*path[1:], net[2].bias.item()]
    expected = weights[0]
    for value in weights[1:]:
        expected = 0.9 * expected + 0.1 * value
    assert average[2].bias.item() == pytest.approx(expected, rel=1e-5)


def test_another_seed_is_another_training(tmp_path: Path) -> None:
    trained = []
    for seed in (1, 1, 2):
        net = model()
        trained.append(fit(net, losses_of(net), Schedule(steps=3, seed=seed), tmp_path / str(seed)))
    assert same(trained[0], trained[1])
    assert not same(trained[0], trained[2])


def test_the_loss_goes_down(tmp_path: Path) -> None:
    net, reports = model(), []
    schedule = Schedule(steps=150, batch_size=32, learning_rate=3e-2, warmup=10, average=0.9)
    fit(net, losses_of(net), schedule, tmp_path, report=lambda step, values: reports.append((step, values)))
    assert [step for step, _ in reports] == [50, 100, 150]
    assert all(set(values) == {"square", "absolute", "events/s"} for _, values in reports)
    assert all(values["events/s"] > 0 for _, values in reports)
    assert reports[-1][1]["square"] < 0.75 * reports[0][1]["square"]


def test_a_report_is_the_mean_since_the_last_one(tmp_path: Path) -> None:
    """Also after a resume between two reports."""
    values = iter(range(1, 1000))
    net = model()

    def losses(generator: torch.Generator) -> dict[str, Tensor]:
        value = next(values)
        if value == 21:
            raise Killed
        return {"number": net[2].bias.sum() * 0 + value}

    reports: dict[int, float] = {}
    schedule = Schedule(steps=60, save_every=0)

    def report(step: int, means: dict[str, float]) -> None:
        reports[step] = means["number"]

    with pytest.raises(Killed):
        fit(net, losses, schedule, tmp_path, report=report)
    fit(net, losses, schedule, tmp_path, resume=True, report=report)
    assert reports == {50: pytest.approx(sum(range(22, 52)) / 30), 60: pytest.approx(sum(range(52, 62)) / 10)}


def test_norms_and_biases_do_not_decay(tmp_path: Path) -> None:
    net = nn.Linear(2, 2)
    torch.nn.init.ones_(net.weight)
    torch.nn.init.ones_(net.bias)
    schedule = Schedule(steps=20, warmup=1, weight_decay=1.0, learning_rate=0.05)
    fit(net, lambda generator: {"nothing": net.weight.sum() * 0 + net.bias.sum() * 0}, schedule, tmp_path)
    assert torch.equal(net.bias, torch.ones(2))
    assert (net.weight < 0.7).all()


@pytest.fixture(scope="module")
def tracks(bank: Bank) -> TrackBank:
    return TrackBank(bank)


def small_finder() -> Finder:
    torch.manual_seed(3)
    return Finder(FinderConfig(channels=(8, 8)))


def test_the_finder_trains_on_composed_events(tracks: TrackBank, tmp_path: Path) -> None:
    finder = small_finder()
    before = [p.clone() for p in finder.parameters()]
    schedule = Schedule(steps=2, batch_size=8, warmup=1)
    fit(finder, lambda g: finder_step(finder, EventStream(), tracks, 8, g), schedule, tmp_path)
    assert all(not torch.equal(p, old) for p, old in zip(finder.parameters(), before, strict=True))


def test_the_decomposer_trains_on_crops_as_the_chain_cuts_them(tracks: TrackBank, tmp_path: Path) -> None:
    torch.manual_seed(4)
    config = DecomposerConfig(width=16, heads=2, encoder_blocks=(1, 1), decoder_blocks=1, context=8)
    decomposer, finder = Decomposer(config), small_finder()
    schedule, reports = Schedule(steps=2, batch_size=8, warmup=1), []
    fit(
        decomposer,
        lambda g: decomposer_step(decomposer, finder, EventStream(), tracks, 8, g),
        schedule,
        tmp_path,
        report=lambda step, values: reports.append(values),
    )
    assert all(math.isfinite(value) for value in reports[-1].values())
    assert all(p.grad is None for p in finder.parameters())


def test_the_truth_of_a_crop(tracks: TrackBank) -> None:
    stream = EventStream(superfgd=0.0, conf2=1.0, light_spread=0.0)
    finder = checkpoint.load(checkpoint.WEIGHTS / "finder.safetensors", Finder, FinderConfig)
    batch = decomposer_batch(finder, stream, tracks, 60, torch.Generator().manual_seed(2))
    crops, light_nuclei, vertex, hadrons = batch
    assert len(crops) == len(vertex) == len(hadrons.count) == 60
    assert light_nuclei.tolist() == [True] * 60
    # The central voxel is where the finder puts the vertex: mostly its own, at times one beside it.
    assert (vertex.abs() <= 2.5).all()
    assert 0.5 < (vertex.abs() <= 0.5).float().mean() < 1
    assert hadrons.count.min() >= 1
    assert hadrons.count.max() <= MAX_HADRONS
    exists = torch.arange(MAX_HADRONS) < hadrons.count[:, None]
    assert (hadrons.ke[exists] > 0).all()
    assert not hadrons.ke[~exists].any()
    torch.testing.assert_close(hadrons.direction.norm(dim=2), exists.float())
    assert hadrons.share.shape == (len(crops.place), MAX_HADRONS)
    assert ((hadrons.share >= 0) & (hadrons.share.sum(1, keepdim=True) <= 1 + 1e-5)).all()
    assert crops.place.abs().max() <= HALF
    # The light of the hadrons is in the voxels that hold it: near the vertex they take most of it, far away hardly any.
    near = (crops.place - vertex[crops.crop]).norm(dim=1) < 1
    assert hadrons.share[near].sum(1).mean() > 2 * hadrons.share[~near].sum(1).mean()
    again = decomposer_batch(finder, stream, tracks, 60, torch.Generator().manual_seed(2))
    assert torch.equal(again[0].signal, crops.signal)
    assert torch.equal(again[3].ke, hadrons.ke)


@pytest.mark.parametrize("conf2", [0.0, 1.0])
def test_the_calibration_is_that_of_one_prior(tracks: TrackBank, conf2: float) -> None:
    """It makes a second calibration on the same events find nothing to do, and leaves the other prior alone."""
    torch.manual_seed(4)
    config = DecomposerConfig(width=16, heads=2, encoder_blocks=(1, 1), decoder_blocks=1, context=8)
    decomposer, finder, stream = Decomposer(config).eval(), small_finder(), EventStream(conf2=conf2)
    with torch.no_grad():
        decomposer.number_head[-1].bias[0] = -9.0  # so that it names hadrons at all
    measured = calibrate(decomposer, finder, stream, tracks, 1, 5)
    assert set(measured) == {"vertex", "ke", "angle", "count"}
    buffers = [value for name, value in decomposer.named_buffers() if name.endswith("calibration")]
    assert len(buffers) == 4
    first = torch.stack(buffers)
    assert (first[:, int(conf2)] != 1).all()
    assert (first[:, 1 - int(conf2)] == 1).all()
    assert calibrate(decomposer, finder, stream, tracks, 1, 5) == measured
    torch.testing.assert_close(torch.stack(buffers), first)


def test_the_light_of_tracks_is_that_of_the_nominal_yield(tracks: TrackBank) -> None:
    """Muons at minimum ionisation: 1.936 MeV cm2/g times 1.06 g/cm3 times 10 mm, quenched, in 85.8 p.e./MeV."""
    decomposer = Decomposer(DecomposerConfig(width=16, heads=2))
    measure_track_light(decomposer, small_finder(), EventStream(light_spread=0.5, superfgd=1.0), tracks, 1, 3)
    loss = 0.1936 * 1.06  # [MeV/mm]
    assert decomposer.track_light.item() == pytest.approx(85.8 * 10 * loss / (1 + 0.126 * loss), rel=0.12)


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (12, 12), (1, 5), (5, 1)])
def test_orthogonal_factors_are_those_of_the_singular_values(shape: tuple[int, int]) -> None:
    """The quintic iteration keeps the singular vectors and brings every singular value to about 1."""
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(2))
    u, sizes, v = torch.linalg.svd(matrices, full_matrices=False)
    found = u.mT @ orthogonalised(matrices) @ v.mT
    wide = sizes > 0.1 * sizes[:, :1]
    values = found.diagonal(dim1=1, dim2=2)[wide]
    assert ((values > 0.6) & (values < 1.25)).all()
    assert (found - torch.diag_embed(found.diagonal(dim1=1, dim2=2))).abs().max() < 1e-4
    assert not orthogonalised(torch.zeros(1, *shape)).any()


def test_a_matrix_moves_alike_in_all_directions(tmp_path: Path) -> None:
    """Muon: the singular values of a step are near-equal, however different those of the gradient."""
    net = nn.Linear(4, 4, bias=False)
    torch.nn.init.zeros_(net.weight)
    pull = torch.diag(torch.tensor([1.0, 0.5, 0.2, 0.1]))
    fit(net, lambda generator: {"pull": (pull * net.weight).sum()}, Schedule(steps=1, warmup=1), tmp_path)
    moved = torch.linalg.svdvals(net.weight.detach())
    assert moved.min() > 0.5 * moved.max() > 0
