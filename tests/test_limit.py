"""The limit: it knows the truth, does not tell hadrons apart by luck, and is what the information allows."""

from __future__ import annotations

import pytest
import torch
from model_events import PITCH, Truth

from sparsereco.detector import Response
from sparsereco.vertex import limit
from sparsereco.vertex.expected import ExpectedLight
from sparsereco.vertex.fits import Fitter
from sparsereco.vertex.generator import Generator, GeneratorConfig
from sparsereco.vertex.hadrons import Decomposition
from sparsereco.vertex.limit import as_named, limits
from sparsereco.vertex.parameters import State


@pytest.fixture(scope="module")
def fitter() -> Fitter:
    return Fitter(ExpectedLight(Generator(GeneratorConfig()), Response(), PITCH), Response().threshold)


def named(truth: Truth) -> Decomposition:
    width = int(truth.count.max())
    ke, direction = torch.zeros(len(truth.vertex), width), torch.zeros(len(truth.vertex), width, 3)
    ke[truth.crop, truth.step], direction[truth.crop, truth.step] = truth.ke, truth.direction
    species = torch.zeros(ke.shape, dtype=torch.int64)
    return as_named(truth.vertex, ke, direction, species, truth.count, len(truth.crops.place))


@torch.no_grad()
def test_the_limits_of_events_of_the_model(fitter: Fitter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "CHAINS", 24)
    monkeypatch.setattr(limit, "SAMPLINGS", 120)
    truth, done = Truth(24, seed=21, most=2, noise=True), []
    rows = torch.arange(0, 24, 2)
    found = limits(fitter, truth.crops, truth.signal, named(truth), rows, done.append)
    assert sum(done) == len(rows) == len(found.on)
    assert found.on.sum(1).equal(truth.count[rows])
    # Voxels of 10 mm: all of them know the vertex to a few, and the fit from the truth best.
    assert found.from_truth.distance.median() < 0.1
    assert found.from_truth.distance.median() < found.sampled.distance.median() < 0.35
    assert found.fisher.distance.median() < 0.35
    one = truth.count[rows] == 1
    assert found.sampled.ke[one][found.on[one]].abs().median() < 4
    assert (found.sampled.ke[~found.on] == 0).all()
    again = limits(fitter, truth.crops, truth.signal, named(truth), rows)
    assert torch.equal(again.sampled.distance, found.sampled.distance)


def test_hadrons_are_put_in_the_order_of_the_reference() -> None:
    random = torch.Generator().manual_seed(3)
    direction = torch.nn.functional.normalize(torch.randn(6, 4, 3, generator=random), dim=-1)
    ke, latent = 60 * torch.rand(6, 4, generator=random), torch.randn(6, 4, 3, generator=random)
    state = State(torch.zeros(6, 3), torch.zeros(6), ke, direction, latent)
    on = torch.arange(4) < torch.tensor([1, 2, 3, 4, 3, 2])[:, None]
    order = torch.stack([torch.cat([torch.arange(int(n)).flip(0), torch.arange(int(n), 4)]) for n in on.sum(1)])
    rows = torch.arange(6)[:, None]
    mixed = State(state.vertex, state.light, ke[rows, order], direction[rows, order], latent[rows, order])
    back = limit._relabelled(mixed, state, on)
    for name in ("ke", "direction", "latent"):
        assert getattr(back, name)[on].equal(getattr(state, name)[on])
