"""The refinement: it finds the truth on images of its own model, never ends worse, and knows how well it fits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from model_events import PITCH, VOXELS, Truth, crops_of, refiner
from torch import Tensor

from sparsereco.detector import Response
from sparsereco.rows import rows_at
from sparsereco.vertex import combination
from sparsereco.vertex.combination import combined
from sparsereco.vertex.config import RefinementSettings, VertexConfig
from sparsereco.vertex.crop import Tracks
from sparsereco.vertex.expected import SIDE, ExpectedLight, leaked, measured_light
from sparsereco.vertex.generator import Generator, GeneratorConfig
from sparsereco.vertex.hadrons import MAX_HADRONS, Decomposition
from sparsereco.vertex.likelihood import TRACK_LIGHT, variance, voxel_loss
from sparsereco.vertex.parameters import Problem, State, draws, prior_derivatives, prior_loss, to_problem
from sparsereco.vertex.refine import Refiner

BY_HADRON = "crop", "step", "species", "species_prob", "score", "ke", "ke_err", "direction", "dir_err"


@pytest.fixture(scope="module")
def fit() -> Refiner:
    return refiner()


def distance(truth: Truth, found: Decomposition) -> Tensor:
    return (found.vertex - truth.vertex).norm(dim=1)


def test_it_recovers_the_truth_of_noise_free_images(fit: Refiner) -> None:
    truth = Truth(60, seed=1, most=2)
    start = truth.found()
    refined = fit(truth.crops, truth.signal, start)
    assert distance(truth, refined.found).median() < 0.4 * distance(truth, start).median()
    off, before = (found.ke - truth.ke for found in (refined.found, start))
    assert off.abs().median() < 0.6 * before.abs().median()
    cosine, cosine_before = ((found.direction * truth.direction).sum(1) for found in (refined.found, start))
    assert (1 - cosine).median() < 0.75 * (1 - cosine_before).median()
    assert refined.dropped == 0


def test_from_the_truth_it_stays_there(fit: Refiner) -> None:
    truth = Truth(40, seed=2)
    refined = fit(truth.crops, truth.signal, truth.found(off=0.0))
    assert distance(truth, refined.found).quantile(0.9) < 0.1
    assert (refined.found.ke - truth.ke).abs().median() < 0.5


@pytest.mark.parametrize("noise", [False, True])
def test_it_never_ends_worse_than_it_started(noise: bool) -> None:
    truth = Truth(80, seed=3, noise=noise)
    for starts, steps in ((1, 1), (3, 5)):
        refined = refiner(starts, steps)(truth.crops, truth.signal, truth.found(seed=4, off=1.5))
        assert (refined.loss <= refined.start_loss).all()
        assert (refined.loss < refined.start_loss).float().mean() > 0.8


def test_the_order_of_crops_and_their_company_do_not_matter(fit: Refiner) -> None:
    truth = Truth(12, seed=5, noise=True)
    found = truth.found()
    together = fit(truth.crops, truth.signal, found).found
    for index in (0, 7):
        own, of_track = found.crop == index, truth.crops.tracks.crop == index
        tracks = Tracks(**{name: value[of_track] for name, value in vars(truth.crops.tracks).items()})
        crops = crops_of(truth.signal[index : index + 1], replace(tracks, crop=tracks.crop * 0))
        by_crop = {"vertex", "vertex_err", "vertex_cov", "total", "total_err", "number_prob"}
        alone = {
            name: value[index : index + 1] if name in by_crop else value[own]
            for name, value in vars(found).items()
            if name != "share"
        }
        alone["crop"] = alone["crop"] * 0
        single = Decomposition(**alone, share=torch.zeros(len(crops.place), MAX_HADRONS))
        refined = fit(crops, truth.signal[index : index + 1], single).found
        torch.testing.assert_close(refined.vertex[0], together.vertex[index], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(refined.ke, together.ke[own], atol=0.05, rtol=1e-3)


def test_without_a_track_and_with_one_hadron(fit: Refiner) -> None:
    truth = Truth(40, seed=6, most=1, track=False)
    start = truth.found()
    refined = fit(truth.crops, truth.signal, start)
    assert distance(truth, refined.found).median() < distance(truth, start).median()
    assert (refined.found.ke - truth.ke).abs().median() < 0.6, "all light is its own"
    shared = refined.found.share.sum(1)
    bright = truth.crops.signal > 50
    assert shared[bright].median() == pytest.approx(1, abs=0.05), "all light is the hadron's"
    assert (refined.track_share == 0).all()


def test_crops_without_hadrons_or_light_pass_unchanged(fit: Refiner) -> None:
    truth = Truth(6, seed=7)
    found = truth.found()
    dark = torch.where(torch.arange(6)[:, None] == 2, 0.0, truth.signal)
    own = found.crop != 4
    rest = {name: getattr(found, name)[own] for name in BY_HADRON}
    found = replace(found, **rest)
    refined = fit(truth.crops, dark, found)
    for index in (2, 4):
        assert refined.deviance[index].isnan()
        assert refined.ndf[index] == 0
        assert torch.equal(refined.found.vertex[index], found.vertex[index])
    assert torch.equal(refined.found.ke[found.crop == 2], found.ke[found.crop == 2])
    assert (refined.ndf[[0, 1, 3, 5]] > 0).all()
    nothing = fit(truth.crops, torch.zeros_like(dark), found)
    assert nothing.found.vertex.equal(found.vertex)
    assert nothing.deviance.isnan().all()


def test_a_loss_that_is_not_finite_is_dropped_and_counted(fit: Refiner) -> None:
    truth = Truth(5, seed=8)
    found = truth.found()
    broken = truth.signal.clone()
    broken[3, 100] = math.nan
    refined = fit(truth.crops, broken, found)
    assert refined.dropped == fit.settings.starts
    assert refined.found.vertex[3].equal(found.vertex[3])
    assert refined.found.ke[found.crop == 3].equal(found.ke[found.crop == 3])
    assert refined.deviance[3].isnan()
    assert refined.deviance[[0, 1, 2, 4]].isfinite().all()
    assert not refined.found.vertex[0].equal(found.vertex[0])


def test_the_deviance_of_events_of_the_model_is_its_number_of_degrees_of_freedom(fit: Refiner) -> None:
    truth = Truth(300, seed=9, most=2, noise=True)
    refined = fit(truth.crops, truth.signal, truth.found(seed=1, off=0.0))
    assert refined.deviance.mean() / refined.ndf.mean() == pytest.approx(1, abs=0.3)
    # One hadron is not enough for the light of several.
    first = truth.step == 0
    found = truth.found(seed=1, off=0.0)
    rest = {name: getattr(found, name)[first] for name in BY_HADRON}
    fewer = fit(truth.crops, truth.signal, replace(found, **rest))
    two = truth.count == 2
    assert fewer.deviance[two].median() > 3 * refined.deviance[two].median()
    torch.testing.assert_close(fewer.deviance[~two].median(), refined.deviance[~two].median(), rtol=0.2, atol=0.5)


def test_the_changes_are_those_of_the_expected_light(fit: Refiner) -> None:
    truth = Truth(8, seed=10, most=2)
    problem = to_problem(truth.crops, truth.signal, truth.found(), 2, fit.expected)

    def light(state: State) -> Tensor:
        _, (hadrons, _, track, _) = fit.fitter.loss(problem, state)
        return hadrons + track

    with torch.no_grad():
        _, (hadrons, _, track, path) = fit.fitter.loss(problem, problem.mean)
        change = fit.fitter._changes(problem, problem.mean, hadrons + track, path)
        for parameter, size in ((0, 0.01), (3, 1.0), (4, 0.1), (5, 0.005), (8, 0.1), (9, 0.1)):
            step = torch.zeros(8, change.shape[1])
            step[:, parameter] = size
            numeric = (light(problem.mean.moved(step)) - light(problem.mean.moved(-step))) / (2 * size)
            both = torch.stack([numeric.flatten(), change[:, parameter].flatten()])
            assert torch.corrcoef(both)[0, 1] > 0.9, parameter
            assert both[1].norm() == pytest.approx(float(both[0].norm()), rel=0.2), parameter
        slope, curvature = fit.fitter.derivatives(problem, problem.mean)[1:]
    assert slope.isfinite().all()
    assert (torch.linalg.eigvalsh(curvature) > 0).all()


def test_the_prior_is_quadratic_in_its_parameters(fit: Refiner) -> None:
    truth = Truth(5, seed=11)
    problem = to_problem(truth.crops, truth.signal, truth.found(), 3, fit.expected)
    repeated = rows_at(problem, torch.arange(5).repeat_interleave(2))
    _, state = draws(repeated, repeated.mean, 2)
    torch.testing.assert_close(state.vertex[::2], problem.mean.vertex)  # the first start is the decomposition itself
    assert (prior_loss(repeated, state)[::2] < prior_loss(repeated, state)[1::2]).all()
    slope, _ = prior_derivatives(repeated, state)
    for parameter in (0, 3, 4, 5, 8):
        step = torch.zeros(10, slope.shape[1])
        step[:, parameter] = 0.01
        numeric = (prior_loss(repeated, state.moved(step)) - prior_loss(repeated, state.moved(-step))) / 0.02
        torch.testing.assert_close(numeric, slope[:, parameter], atol=0.02, rtol=0.02)


def test_the_density_of_a_voxel_is_one() -> None:
    signal = torch.arange(-200.0, 3000.0, 0.5, dtype=torch.float64)
    for hadrons, path in ((0.0, 0.0), (0.0, 1.0), (300.0, 0.4)):
        had, way = torch.tensor(hadrons, dtype=torch.float64), torch.tensor(path, dtype=torch.float64)
        track = TRACK_LIGHT[0] * way
        core = variance(had, had, track, 1.0)
        density = (-voxel_loss(signal, had, core, track, way)).exp()
        assert float(density.sum() * 0.5) == pytest.approx(1, abs=0.01)
    far = voxel_loss(
        torch.tensor([1e5, 0.0]), torch.tensor([10.0, 9e4]), torch.tensor(9.0), torch.zeros(2), torch.zeros(2)
    )
    assert far.isfinite().all()


def test_crosstalk_is_part_of_the_expected_light() -> None:
    image = torch.zeros(1, SIDE, SIDE, SIDE)
    image[0, 3, 3, 3], image[0, 0, 3, 3] = 100.0, 50.0
    seen = leaked(image, 0.03)
    assert seen[0, 3, 3, 4] == pytest.approx(3)
    assert seen[0, 3, 3, 3] == pytest.approx(82)
    assert seen.sum() == pytest.approx(150 - 1.5), "what leaves the crop is lost"
    # A long straight track is as bright as it shows itself to be, with crosstalk or without.
    far, start = torch.tensor([[0.0, 0.0, 6.0]]), torch.tensor([[0.0, 0.0, -6.0]])
    generator = Generator(GeneratorConfig())
    paths = [
        ExpectedLight(generator, Response(crosstalk=c), PITCH).paths(start, far).view(SIDE, SIDE, SIDE)[3, 3]
        for c in (0.0, 0.03)
    ]
    torch.testing.assert_close(paths[0][2:5], paths[1][2:5], rtol=0.06, atol=0.0)


def test_hits_outside_the_crop_do_not_count() -> None:
    place = torch.tensor([[0, 0, 0], [4, 0, 0], [-3, 3, 1], [0, 0, 0]])
    light = measured_light(place, torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([0, 0, 1, 1]), 2)
    assert light.sum(1).tolist() == [1, 12]
    assert light[0, VOXELS // 2] == 1


@pytest.mark.parametrize("name", ["starts", "steps"])
def test_a_budget_below_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"refinement\.{name} must be at least 1, got 0"):
        VertexConfig(refinement=RefinementSettings(**{name: 0}))


def test_a_doubtful_number_or_species_leaves_the_decomposers_values_their_part(fit: Refiner) -> None:
    truth = Truth(30, seed=14)
    start = truth.found()
    number = torch.full((30, MAX_HADRONS + 1), 0.4 / MAX_HADRONS).scatter(1, truth.count[:, None], 0.6)
    species = torch.tensor([1 - 1e-6, 1e-6, 0.0])
    doubtful = replace(start, number_prob=number, species_prob=species.expand(len(start.crop), 3))
    sure, unsure = (fit(truth.crops, truth.signal, found) for found in (start, doubtful))
    assert unsure.loss.equal(sure.loss), "the fits are the same"
    assert unsure.deviance.equal(sure.deviance)
    for name in ("vertex", "ke", "total"):
        old, some, whole = (getattr(found, name) for found in (start, unsure.found, sure.found))
        torch.testing.assert_close(some, torch.lerp(old, whole, 0.6), atol=1e-4, rtol=0.0)
    assert (unsure.found.vertex_err > 0.6 * sure.found.vertex_err).all()
    assert (unsure.found.direction * start.direction).sum(1).mean() > (sure.found.direction * start.direction).sum(
        1
    ).mean()


def test_the_error_of_a_mixture_is_that_of_its_parts_and_of_their_distance() -> None:
    truth = Truth(1, seed=15, most=1)
    species, number = torch.tensor([[0.8, 0.2, 0.0]]), torch.tensor([[0.0, 0.5, 0.5, 0, 0, 0, 0]])
    start = replace(truth.found(off=0.0), species_prob=species, number_prob=number)
    problem = to_problem(truth.crops, truth.signal, start, 1, refiner().expected)
    fitted = replace(problem.mean, vertex=problem.mean.vertex + 0.3, ke=problem.mean.ke + 2)
    same, near = torch.full((1, 10), 1e-9), torch.full((1, 10), 1.0)
    values = combined(problem, fitted, same, same[:, 0])
    torch.testing.assert_close(values.vertex, problem.mean.vertex + 0.4 * 0.3)
    torch.testing.assert_close(values.vertex_err, torch.full((1, 3), (0.6 * 0.15**2 + 0.24 * 0.3**2) ** 0.5))
    torch.testing.assert_close(values.ke, problem.mean.ke + 0.4 * 2)
    torch.testing.assert_close(values.ke_err, torch.full((1, 1), (0.6 * 9 + 0.24 * 4.0) ** 0.5))
    torch.testing.assert_close(values.total, start.total + 0.4 * 2)
    torch.testing.assert_close(values.total_err, (0.6 * start.total_err.square() + 0.24 * 4.0).sqrt())
    torch.testing.assert_close(values.direction, problem.mean.direction)
    assert (combined(problem, fitted, near, near[:, 0]).dir_err > values.dir_err).all()


def test_the_error_of_the_sum_of_energies_knows_that_they_trade(fit: Refiner) -> None:
    """Of two protons side by side the sum is known better than the parts; of one alone it is the part."""
    for energies, trade in (((40.0,), False), ((40.0, 30.0), True)):
        truth = Truth(30, seed=16, noise=True, energies=energies, apart=0.05)
        start = truth.found()
        start = replace(start, total_err=torch.full((30,), 50.0), ke_err=torch.full_like(start.ke_err, 20.0))
        found = fit(truth.crops, truth.signal, start).found
        torch.testing.assert_close(found.total, torch.zeros(30).index_add(0, found.crop, found.ke))
        apart = torch.zeros(30).index_add(0, found.crop, found.ke_err.square()).sqrt()
        _, of_parts, _, of_sum = combination._CALIBRATION
        ratio = (found.total_err / of_sum / (apart / of_parts)).median().item()
        assert ratio < 0.8 if trade else ratio == pytest.approx(1, abs=1e-3)


def test_starts_draw_the_species_that_the_decomposer_leaves_open() -> None:
    truth = Truth(40, seed=12)
    found = truth.found()
    likely = torch.tensor([0.6, 0.4, 0.0]).expand(len(found.crop), 3)
    problem = to_problem(truth.crops, truth.signal, replace(found, species_prob=likely), 3, refiner().expected)
    repeated = rows_at(problem, torch.arange(40).repeat_interleave(32))
    species, _ = draws(repeated, repeated.mean, 32)
    assert (species.view(40, 32, 3)[:, 0] == problem.species).all(), "the first start is what was named"
    drawn = species[repeated.on]
    assert (drawn < 2).all()
    assert (drawn == 1).float().mean() == pytest.approx(0.4, abs=0.06)
    assert (species[~repeated.on] == 0).all()


def test_fits_stop_when_steps_are_idle(fit: Refiner, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = Truth(6, seed=13)
    problem = to_problem(truth.crops, truth.signal, truth.found(off=0.0), 3, fit.expected)
    sizes: list[int] = []
    derivatives = fit.fitter.derivatives

    def counted(problem: Problem, state: State) -> tuple[Tensor, Tensor, Tensor]:
        sizes.append(len(problem.signal))
        return derivatives(problem, state)

    monkeypatch.setattr(fit.fitter, "derivatives", counted)
    with torch.no_grad():
        ends = fit.fitter.descend(problem, problem.mean, 100)
    assert len(sizes) < 30, "from the truth there is little to do"
    assert sizes[-1] == 6, "the curvature is that of all"
    assert min(sizes) < 6, "fits end one by one"
    assert (ends.loss <= fit.fitter.loss(problem, problem.mean)[0]).all()
