"""The limit: it knows the truth, does not tell hadrons apart by luck, and is what the information allows."""

from __future__ import annotations

from dataclasses import replace

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
    found = limits(fitter, truth.crops, truth.signal, named(truth), named(truth), rows, done.append)
    assert sum(done) == len(rows) == len(found.on)
    assert found.on.sum(1).equal(truth.count[rows])
    # Voxels of 10 mm: all of them know the vertex to a few, and the fit from the truth best.
    assert found.from_truth.distance.median() < 0.1
    assert found.from_truth.distance.median() < found.sampled.distance.median() < 0.35
    assert found.fisher.distance.median() < 0.35
    one = truth.count[rows] == 1
    assert found.sampled.ke[one][found.on[one]].abs().median() < 4
    assert (found.sampled.ke[~found.on] == 0).all()
    again = limits(fitter, truth.crops, truth.signal, named(truth), named(truth), rows)
    assert torch.equal(again.sampled.distance, found.sampled.distance)
    # What the fits believed here was the truth, but for the line of the track, which the others know.
    assert (found.with_prior.distance - found.from_truth.distance).abs().median() < 0.1


def test_the_truth_as_the_decomposer_knows_it() -> None:
    """Of two crops: in the first it found both hadrons, in the other order, in the second one of two, and one more."""
    x, y, z = torch.eye(3)
    true = as_named(
        torch.zeros(2, 3),
        torch.tensor([[30.0, 20.0], [40.0, 10.0]]),
        torch.stack([torch.stack([x, y]), torch.stack([x, z])]),
        torch.tensor([[0, 1], [0, 0]]),
        torch.tensor([2, 2]),
        voxels=5,
    )
    found = replace(
        as_named(
            torch.full((2, 3), 0.1),
            torch.tensor([[22.0, 28.0], [37.0, 0.0]]),
            torch.stack([torch.stack([y, x]), torch.stack([x, z])]),
            torch.zeros(2, 2, dtype=torch.int64),
            torch.tensor([2, 1]),
            voxels=5,
        ),
        ke_err=torch.tensor([1.0, 2.0, 3.0]),
        dir_err=torch.tensor([0.1, 0.2, 0.3]),
        total=torch.tensor([49.0, 44.0]),
    )
    got = limit.believed(true, found)
    assert got.ke.tolist() == [28.0, 22.0, 37.0, 10.0]
    assert got.ke_err[:3].tolist() == [2.0, 1.0, 3.0]
    assert got.ke_err[3] == true.ke_err[3] > 50
    assert torch.allclose(got.dir_err[:3], torch.tensor([0.2, 0.1, 0.3]))
    assert got.dir_err[3] == true.dir_err[3]
    assert got.vertex.equal(found.vertex)
    assert got.total.equal(found.total)
    assert got.species.equal(true.species)
    assert true.ke.tolist() == [30.0, 20.0, 40.0, 10.0], "the truth stays as it is"


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
