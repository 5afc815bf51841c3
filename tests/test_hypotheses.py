"""Other numbers of hadrons: what was left out is found, what is twice there is merged, and else all stays as named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from model_events import PITCH, Truth, refiner
from torch import Tensor

from sparsereco.detector import Response
from sparsereco.vertex.config import RefinementSettings
from sparsereco.vertex.generator import Generator, GeneratorConfig
from sparsereco.vertex.hadrons import MAX_HADRONS, Decomposition
from sparsereco.vertex.hypotheses import hypotheses, posterior_number
from sparsereco.vertex.parameters import to_problem
from sparsereco.vertex.refine import Refined, Refiner

BY_HADRON = "crop", "step", "species", "species_prob", "score", "ke", "ke_err", "direction", "dir_err"
UNDECIDED = torch.tensor([0.0, 0.25, 0.25, 0.25, 0.25, 0.0, 0.0])


@pytest.fixture(scope="module")
def fit() -> Refiner:
    settings = RefinementSettings(starts=3, steps=15, number=True)
    return Refiner(Generator(GeneratorConfig()), Response(), PITCH, settings)


def only(found: Decomposition, own: Tensor) -> Decomposition:
    return replace(found, **{name: getattr(found, name)[own] for name in BY_HADRON})


def counts(refined: Refined, n: int) -> Tensor:
    return torch.bincount(refined.found.crop, minlength=n)


def test_a_proton_that_was_left_out_is_found(fit: Refiner) -> None:
    truth = Truth(20, seed=1, noise=True, energies=(60.0, 45.0))
    start = only(truth.found(off=0.5), truth.step == 0)
    start = replace(start, number_prob=UNDECIDED.expand(20, -1), total_err=torch.full((20,), 8.0))
    refined = fit(truth.crops, truth.signal, start)
    two = counts(refined, 20) == 2
    assert two.sum() >= 18
    assert refined.more == two.sum()
    assert refined.fewer == 0
    second = refined.found.step == 1
    true = (truth.step == 1) & two[truth.crop]
    assert (refined.found.crop[second] == truth.crop[true]).all()
    assert (refined.found.direction[second] * truth.direction[true]).sum(1).median() > 0.9
    assert (refined.found.ke[second] - 45).abs().median() < 12
    assert (refined.found.score[second] > 0.5).all()
    gain = refined.start_loss[two] - refined.loss[two]
    assert (gain >= 0).all()
    assert (gain > 1).sum() >= 18


def test_a_hadron_in_the_place_of_another_is_merged(fit: Refiner) -> None:
    truth = Truth(20, seed=2, energies=(50.0, 30.0))
    found = truth.found(off=0.3)
    shared = replace(found, ke=torch.where(truth.step == 0, 30.0, found.ke), ke_err=torch.full_like(found.ke, 6.0))
    spurious = only(found, truth.step == 0)
    spurious = replace(spurious, step=spurious.step + 2, ke=spurious.ke * 0 + 20)
    both = {name: torch.cat([getattr(shared, name), getattr(spurious, name)]) for name in BY_HADRON}
    start = replace(found, **both, number_prob=UNDECIDED.expand(20, -1))
    start = only(start, torch.argsort(start.crop * MAX_HADRONS + start.step))
    refined = fit(truth.crops, truth.signal, start)
    two = counts(refined, 20) == 2
    assert two.sum() >= 16, "the others end in other optima"
    assert refined.fewer >= two.sum()
    first = (refined.found.step == 0) & two[refined.found.crop]
    assert (refined.found.ke[first] - 50).abs().median() < 3
    assert (refined.found.score <= 1).all()


def test_hadrons_that_explain_the_light_stay(fit: Refiner) -> None:
    truth = Truth(12, seed=3, noise=True, energies=(60.0, 45.0))
    start = replace(truth.found(off=0.5), number_prob=UNDECIDED.expand(12, -1))
    refined = fit(truth.crops, truth.signal, start)
    assert (counts(refined, 12) == 2).sum() >= 11
    assert torch.equal(refined.found.crop, refined.found.crop.sort().values)
    assert (refined.loss <= refined.start_loss).all()


def test_the_decomposers_number_decides_where_it_is_sure(fit: Refiner) -> None:
    truth = Truth(6, seed=4, noise=True, energies=(60.0, 45.0))
    start = only(truth.found(off=0.5), truth.step == 0)
    sure = torch.eye(MAX_HADRONS + 1)[1].expand(6, -1)
    problem = to_problem(truth.crops, truth.signal, start, 2, fit.expected)
    log_prior = [way.log_prior for way in hypotheses(fit.fitter, problem, problem.mean, sure)]
    assert (log_prior[0] == 0).all()
    assert (log_prior[1] < -13).all(), "a millionth at most"
    assert log_prior[2].isneginf().all(), "the last hadron cannot go"


def test_there_is_none_beyond_the_most(fit: Refiner) -> None:
    truth = Truth(4, seed=5, noise=True, energies=(60.0, 45.0))
    number = UNDECIDED.expand(4, -1)
    full = to_problem(truth.crops, truth.signal, truth.found(), 2, fit.expected)
    assert hypotheses(fit.fitter, full, full.mean, number)[1].log_prior.isneginf().all()
    roomy = to_problem(truth.crops, truth.signal, truth.found(), 3, fit.expected)
    assert hypotheses(fit.fitter, roomy, roomy.mean, number)[1].log_prior.isfinite().all()


def test_probabilities_of_numbers_follow_the_evidence() -> None:
    before = torch.tensor([[0.1, 0.4, 0.3, 0.2], [0.0, 0.5, 0.3, 0.2]])
    evidence = torch.log(torch.tensor([[0.5, 0.5], [0.25, 0.0], [0.25, 0.5]]))
    after = posterior_number(before, torch.tensor([2, 2]), evidence)
    torch.testing.assert_close(after.sum(1), torch.ones(2))
    torch.testing.assert_close(after[0], torch.tensor([0.1, 0.9 * 0.25, 0.9 * 0.5, 0.9 * 0.25]))
    torch.testing.assert_close(after[1], torch.tensor([0.0, 0.4, 0.4, 0.2]))


def test_it_is_off_unless_asked_for() -> None:
    truth = Truth(6, seed=1, noise=True, energies=(60.0, 45.0))
    start = only(truth.found(off=0.5), truth.step == 0)
    refined = refiner()(truth.crops, truth.signal, replace(start, number_prob=UNDECIDED.expand(6, -1)))
    assert (counts(refined, 6) == 1).all()
    assert refined.more == refined.fewer == 0
