"""The baselines on events whose light is known."""

from __future__ import annotations

import awkward as ak
import numpy as np
import pytest
from synthetic import DETECTOR, hit_events, reco_events, truth_events, unit_vectors

from sparsereco.baselines import (
    Fit,
    baselines,
    birks_unfolded,
    cross_fit,
    crossing_point,
    measure_crop,
)
from sparsereco.metrics import compare, summarise
from sparsereco.stats import spread

LIGHT_PER_MEV, LIGHT_PER_MM = 60.0, 16.0


@pytest.fixture(scope="module")
def sample() -> tuple[ak.Array, ak.Array, ak.Array]:
    """Hits, truth and reconstruction."""
    truth = truth_events(300)
    return hit_events(truth, LIGHT_PER_MEV, LIGHT_PER_MM), truth, reco_events(truth, no_vertex=0.05)


def test_the_linear_fit_recovers_the_energy_and_its_coefficients(sample: tuple[ak.Array, ak.Array, ak.Array]) -> None:
    hits, truth, reco = sample
    comparison = compare(truth, reco)
    found = np.isfinite(comparison.distance)
    result = baselines([hits], truth, reco, comparison, DETECTOR)
    residual = {name: energy - comparison.true_total for name, energy in result.energy.items()}
    assert spread(residual["linear, true muon"][found]).value < 0.2
    assert spread(residual["linear, reconstructed tracks"][found]).value < 1.0  # the vertex is smeared by 1 mm per axis
    assert result.note == ""

    crop = measure_crop(hits, truth, reco, comparison.reco_vertex, DETECTOR)
    coefficients = []

    def predict(fit: Fit, terms: np.ndarray) -> np.ndarray:
        coefficients.append(fit(terms))
        return terms @ coefficients[-1]

    terms = np.stack([np.ones(len(truth)), crop.light, crop.true_path], axis=1)
    cross_fit(terms, comparison.true_total, predict)
    expected = [0, 1 / LIGHT_PER_MEV, -LIGHT_PER_MM / LIGHT_PER_MEV]
    assert len(coefficients) == 2
    for fitted in coefficients:
        assert fitted == pytest.approx(expected, rel=0.01, abs=0.3)


def test_the_report_compares_with_the_better_baseline(sample: tuple[ak.Array, ak.Array, ak.Array]) -> None:
    hits, truth, reco = sample
    comparison = compare(truth, reco)
    result = baselines([hits], truth, reco, comparison, DETECTOR)
    numbers = summarise(comparison, result.energy, result.vertex)
    rows = {row["name"]: row["estimate"] for row in numbers["table"]}
    spreads = {name: row["spread"].value for name, row in numbers["baselines"]["total_energy"].items()}
    assert len(spreads) == 4
    ratio = rows["total energy, spread over that of the best baseline"]
    assert ratio.value == pytest.approx(numbers["total_energy"]["spread"].value / min(spreads.values()))
    assert ratio.error > 0
    assert set(numbers["baselines"]["vertex"]) == {"charge-weighted centre", "crossing of leaving tracks"}


def test_chunks_of_hits_do_not_change_anything(sample: tuple[ak.Array, ak.Array, ak.Array]) -> None:
    hits, truth, reco = sample
    comparison = compare(truth, reco)
    whole = baselines([hits], truth, reco, comparison, DETECTOR)
    parts = baselines([hits[:7], hits[7:200], hits[200:]], truth, reco, comparison, DETECTOR)
    for name, energy in whole.energy.items():
        assert np.array_equal(energy, parts.energy[name])
    with pytest.raises(ValueError, match="hits of 300 events, got 299"):
        baselines([hits[:-1]], truth, reco, comparison, DETECTOR)


def test_too_few_events_leave_the_energies_out(sample: tuple[ak.Array, ak.Array, ak.Array]) -> None:
    hits, truth, reco = (events[:10] for events in sample)
    result = baselines([hits], truth, reco, compare(truth, reco), DETECTOR)
    assert result.energy == {}
    assert "at least 20 events" in result.note
    assert len(result.vertex) == 2


def test_no_event_takes_part_in_its_own_prediction() -> None:
    rng = np.random.default_rng(2)
    terms = np.stack([np.ones(40), rng.normal(size=40)], axis=1)
    terms[5] = np.nan
    target = rng.normal(size=40)

    def predict(fit: Fit, terms: np.ndarray) -> np.ndarray:
        return terms @ fit(terms)

    before = cross_fit(terms, target, predict)
    assert before[5] == pytest.approx(target[::2].mean())
    changed = target.copy()
    changed[7] += 100
    after = cross_fit(terms, changed, predict)
    assert np.array_equal(after[1::2], before[1::2])  # its own half
    assert not np.isclose(after[::2], before[::2]).any()  # the other one


def test_birks_unfolding_inverts_birks_law() -> None:
    energy, length = np.array([1.0, 10, 40]), np.array([6.0, 8, 20])
    visible = energy / (1 + DETECTOR.response.birks * energy / length)
    light = DETECTOR.response.light_yield * visible
    assert birks_unfolded(light, length, DETECTOR) == pytest.approx(energy)
    # Lengths are kept within half a voxel and 4.5 diagonals, and the bracket above 0.2.
    assert birks_unfolded(light[:1], np.zeros(1), DETECTOR) == birks_unfolded(light[:1], np.full(1, 5.0), DETECTOR)
    assert birks_unfolded(np.array([1e5]), np.zeros(1), DETECTOR) == pytest.approx(5e5 / DETECTOR.response.light_yield)


def test_the_crop_ends_three_voxels_from_that_of_the_vertex() -> None:
    truth = truth_events(2, seed=4)
    reco = reco_events(truth, no_vertex=0)
    vertex = np.array([[12.0, -3, 4], [np.nan, np.nan, np.nan]])
    x = np.array([15.0 - 30, 15 + 30, 15 - 40, 15 + 40, 15])
    hits = ak.Array(
        {
            "hit_x": [x, x],
            "hit_y": [np.full(5, -5.0)] * 2,
            "hit_z": [np.full(5, 5.0)] * 2,
            "hit_pe": [[100.0, 300, 1000, 1000, 40]] * 2,
        }
    )
    crop = measure_crop(hits, truth, reco, vertex, DETECTOR)
    assert crop.light[0] == 440
    assert crop.centroid[0] == pytest.approx([(100 * -15 + 300 * 45 + 40 * 15) / 440, -5, 5])
    assert crop.extent[0] == pytest.approx(np.linalg.norm([45 - 12, -2, 1]))
    for column in (crop.light, crop.extent, crop.true_path, crop.reco_path, crop.centroid[:, 0]):
        assert np.isnan(column[1])


def test_crossing_point_of_two_lines_one_and_none() -> None:
    rng = np.random.default_rng(6)
    target = np.array([3.0, -2, 7])
    direction = unit_vectors(rng, 3)
    owner = np.array([0, 0, 1])
    point = target + direction * np.array([[40.0], [-30], [25]])
    prior = np.array([[0.0, 0, 0], target + np.cross(direction[2], [1.0, 0, 0]), [9, 9, 9]])
    found = crossing_point(owner, point, direction, prior)
    assert found[0] == pytest.approx(target, abs=1e-3)
    assert found[1] == pytest.approx(target, abs=1e-3)  # the nearest point of the line to the prior
    assert found[2].tolist() == [9, 9, 9]
