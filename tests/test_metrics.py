"""The numbers of a report: on samples whose resolution is known, and by hand."""

from __future__ import annotations

from itertools import permutations

import awkward as ak
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import reco_events, truth_events, unit_vectors

from sparsereco.kinematics import angle, path_in_box, track_range
from sparsereco.matching import (
    NO_PARTNER_DIRECTION,
    best_vertex,
    cost,
    optimal_partners,
    pair,
    rank_partners,
    reco_hadrons,
    true_hadrons,
)
from sparsereco.metrics import compare, species_confusion, summarise
from sparsereco.stats import Estimate, confusion, fraction, precision, profile, quantile, rate, recall, spread

SPECIES = (2212, 1000010020, 1000010030)


@pytest.fixture(scope="module")
def truth() -> ak.Array:
    return truth_events(3000, species=SPECIES)


@pytest.fixture(scope="module")
def perfect_count(truth: ak.Array) -> dict:
    """Smeared by known amounts, every hadron found."""
    return summarise(compare(truth, reco_events(truth, vertex_sigma=1.3, ke_sigma=2.5, dir_sigma=0.12)))


def hadrons_of(*events: list[tuple[int, float, tuple[float, float, float]]]) -> ak.Array:
    """Events of schema `reco` with one vertex each, from PDG code, energy and direction of their hadrons."""
    flat = [hadron for event in events for hadron in event]
    counts = [len(event) for event in events]

    def column(values: list, dtype: str = "f4") -> ak.Array:
        return ak.unflatten(np.array(values, dtype), counts)

    one = np.ones(len(events), np.int64)
    fields = {"part_vtx": column([0] * len(flat), "i4"), "part_pdg": column([h[0] for h in flat], "i4")}
    fields |= {"part_ke": column([h[1] for h in flat])}
    fields |= {f"part_d{axis}": column([h[2][i] for h in flat]) for i, axis in enumerate("xyz")}
    fields |= {"part_ke_err": column([1] * len(flat)), "part_dir_err": column([0.1] * len(flat))}
    fields |= {name: ak.unflatten(np.zeros(len(events), "f4"), one) for name in ("vtx_score", "vtx_x")}
    return ak.Array(fields)


X, Y, Z = (1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)


def agrees(estimate: Estimate, expected: float, sigmas: float = 4) -> bool:
    return abs(estimate.value - expected) < sigmas * estimate.error


def test_known_smearing_gives_back_the_known_resolution(perfect_count: dict) -> None:
    for axis in perfect_count["vertex"]["axes"].values():
        assert agrees(axis["spread"], 1.3)
        assert agrees(axis["median"], 0)
    assert agrees(perfect_count["vertex"]["distance_median"], 1.3 * 1.5382)  # median of a Maxwell distribution
    assert perfect_count["vertex"]["within_20mm"].value == 1
    assert agrees(perfect_count["direction"]["optimal"]["median"], np.degrees(0.12) * 1.1774, 5)  # of a Rayleigh one
    assert agrees(perfect_count["hadron_energy"]["optimal"]["spread"], 2.5, 5)
    for n in range(1, 6):
        assert agrees(perfect_count["total_energy"]["by_multiplicity"][str(n)]["spread"], 2.5 * np.sqrt(n))
    assert perfect_count["number"]["right"].value == 1
    assert perfect_count["unmatched"]["false_negatives"].value == 0


def test_known_errors_are_calibrated(perfect_count: dict) -> None:
    calibration = perfect_count["calibration"]
    for name in ("vertex_x", "vertex_y", "vertex_z", "hadron_energy", "direction", "total_energy"):
        assert agrees(calibration[name]["coverage"], 0.6827), name
        assert agrees(calibration[name]["pull_spread"], 1), name
    coverage = calibration["direction_coverage_against_energy"]
    assert np.all(np.abs(coverage.fraction - 0.6827) < 4.5 * coverage.error)


def test_errors_half_as_large_as_they_should_be_show(truth: ak.Array) -> None:
    reco = reco_events(truth)
    for name in ("part_ke_err", "vtx_sx", "vtx_ke_err"):
        reco[name] = reco[name] / 2
    calibration = summarise(compare(truth, reco))["calibration"]
    assert agrees(calibration["hadron_energy"]["coverage"], 0.3829)
    assert agrees(calibration["vertex_x"]["coverage"], 0.3829)
    assert agrees(calibration["total_energy"]["coverage"], 0.3829)
    assert agrees(calibration["vertex_y"]["coverage"], 0.6827)


def test_losses_and_inventions_are_counted(truth: ak.Array) -> None:
    reco = reco_events(truth, inefficiency=0.1, ke_sigma=0.1, dir_sigma=0.01)
    numbers = summarise(compare(truth, reco))
    assert agrees(numbers["unmatched"]["false_negatives"], 0.1)
    assert numbers["unmatched"]["false_positives"].value == 0
    assert agrees(numbers["number"]["right"], np.mean(0.9 ** np.arange(1, 6)))

    numbers = summarise(compare(truth, reco_events(truth, fakes=0.2, ke_sigma=0.1, dir_sigma=0.01)))
    assert agrees(numbers["number"]["right"], 0.8)
    false = numbers["unmatched"]["false_positives_against_reco_energy"]
    assert false.count[0] > 0
    assert false.count[1:].sum() == 0  # they all have 1 MeV


def test_an_event_without_vertex_counts_as_not_found_and_with_no_energy(truth: ak.Array) -> None:
    comparison = compare(truth, reco_events(truth, no_vertex=0.25))
    numbers = summarise(comparison)
    lost = np.isnan(comparison.distance)
    assert agrees(numbers["vertex"]["within_20mm"], 0.75)
    assert numbers["vertex"]["distance_median"].count == np.sum(~lost)
    assert np.all(comparison.reco_total[lost] == 0)
    assert numbers["total_energy"]["spread"].count == len(truth)


def test_only_the_best_vertex_is_compared() -> None:
    truth = truth_events(1)
    reco = reco_events(truth)
    hadrons = len(reco.part_ke[0])
    near = reco.vtx_x[0, 0]
    fields = {name: ak.concatenate([reco[name], reco[name]], axis=1) for name in reco.fields if reco[name].ndim > 1}
    fields["vtx_score"] = ak.Array([[0.3, 0.8]])
    fields["part_vtx"] = ak.Array([[1] * hadrons + [0] * hadrons])
    fields["vtx_x"] = ak.Array([[near, near + 500]])
    fields["vtx_ke"] = ak.Array([[40.0, 70.0]])
    both = ak.Array({name: reco[name] for name in ("run", "subrun", "event")} | fields)
    assert best_vertex(both).tolist() == [1]
    comparison = compare(truth, both)
    assert comparison.reco.count.tolist() == [hadrons]
    assert comparison.distance[0] == pytest.approx(500, abs=10)
    assert comparison.nearest[0] < 20
    assert comparison.reco_total.tolist() == [70.0]


def test_no_events_give_numbers_that_are_not_known() -> None:
    truth = truth_events(0)
    numbers = summarise(compare(truth, reco_events(truth)))
    assert numbers["events"] == 0
    assert all(np.isnan(row["estimate"].value) and row["estimate"].count == 0 for row in numbers["table"])


def test_different_numbers_of_events_are_refused(truth: ak.Array) -> None:
    with pytest.raises(ValueError, match="got 2999 and 3000"):
        compare(truth, reco_events(truth)[:-1])


def test_number_confusion_by_hand() -> None:
    true, reco = np.array([1, 1, 2, 2, 2, 3]), np.array([1, 2, 2, 2, 0, 2])
    counts = confusion(reco, true)
    assert counts.tolist() == [[0, 0, 1, 0], [0, 1, 0, 0], [0, 1, 2, 1]]  # [reconstructed, true]
    assert recall(counts)[2, 1:].tolist() == pytest.approx([0.5, 2 / 3, 1])
    assert np.isnan(recall(counts)[:, 0]).all()
    assert precision(counts)[2].tolist() == [0, 0.25, 0.5, 0.25]


def test_species_confusion_by_hand() -> None:
    true = hadrons_of([(2212, 50, X), (1000010020, 20, Y)], [(2212, 30, X)], [])
    reco = hadrons_of([(2212, 50, X), (2212, 21, Y)], [], [(1000010030, 5, Z)])
    codes, counts = species_confusion(pair(true_hadrons(true), reco_hadrons(reco), optimal_partners))
    assert codes == [2212, 1000010020, 1000010030]
    # Columns: p, d, t, nothing; rows the same.
    assert counts.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]]


def test_optimal_matching_undoes_a_swap_and_rank_matching_does_not() -> None:
    true = true_hadrons(hadrons_of([(2212, 30, X), (2212, 29, Y)]))
    reco = reco_hadrons(hadrons_of([(2212, 30, Y), (2212, 29, X)]))
    optimal, rank = pair(true, reco, optimal_partners), pair(true, reco, rank_partners)
    assert optimal.angle.tolist() == [0, 0]
    assert optimal.reco_ke.tolist() == [29, 30]
    assert np.degrees(rank.angle).tolist() == [90, 90]
    assert rank.reco_ke.tolist() == [30, 29]


def test_what_has_no_partner_is_compared_with_nothing_at_all() -> None:
    true = true_hadrons(hadrons_of([(2212, 30, X), (2212, 10, Y)], []))
    reco = reco_hadrons(hadrons_of([(2212, 11, Y)], [(2212, 4, Z)]))
    pairs = pair(true, reco, optimal_partners)
    assert pairs.matched.tolist() == [False, True, False]
    assert (pairs.reco_ke - pairs.true_ke).tolist() == [-30, 1, 4]
    assert pairs.reco_direction[0].tolist() == NO_PARTNER_DIRECTION.tolist()
    assert np.degrees(pairs.angle).tolist() == [180, 0, 90]
    assert pairs.multiplicity.tolist() == [2, 2, 0]
    by_rank = pair(true, reco, rank_partners)
    assert by_rank.reco_ke.tolist() == [11, 0, 4]


@settings(max_examples=30, deadline=None)
@given(n_true=st.integers(0, 4), n_reco=st.integers(0, 4), seed=st.integers(0, 2**20))
def test_optimal_matching_is_the_best_of_all(n_true: int, n_reco: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = [
        hadrons_of([(2212, ke, tuple(d)) for ke, d in zip(rng.uniform(0, 60, n), unit_vectors(rng, n), strict=True)])
        for n in (n_true, n_reco)
    ]
    true, reco = true_hadrons(samples[0]), reco_hadrons(samples[1])
    costs = cost(true, reco)[0]
    partner = optimal_partners(true, reco)[0]
    matched = np.flatnonzero(partner >= 0)
    assert len(matched) == min(n_true, n_reco)
    assert len(set(partner[matched])) == len(matched)
    found = costs[matched, partner[matched]].sum()
    if n_true <= n_reco:
        every = [sum(costs[i, j] for i, j in enumerate(choice)) for choice in permutations(range(n_reco), n_true)]
    else:
        every = [sum(costs[i, j] for j, i in enumerate(choice)) for choice in permutations(range(n_true), n_reco)]
    assert found == pytest.approx(min(every))


def test_statistical_errors_are_as_large_as_the_fluctuations() -> None:
    samples = np.random.default_rng(3).normal(size=(400, 500))
    for estimates in ([quantile(s, 0.5) for s in samples], [spread(s) for s in samples]):
        fluctuation = np.std([e.value for e in estimates])
        assert np.mean([e.error for e in estimates]) == pytest.approx(fluctuation, rel=0.15)
    shares = [fraction(s > 1) for s in samples]
    assert np.mean([s.error for s in shares]) == pytest.approx(np.std([s.value for s in shares]), rel=0.15)


def test_a_share_of_all_or_none_has_an_error() -> None:
    assert fraction(np.ones(50, bool)).value == 1
    assert 0 < fraction(np.ones(50, bool)).error < 0.02
    assert fraction(np.zeros(0, bool)).count == 0


def test_bins_hold_their_lower_edge_and_the_last_one_both() -> None:
    x = np.array([0, 1, 1.5, 2, 2.5])
    result = profile(x, np.array([1.0, 2, 4, 8, 16]), np.array([0, 1, 2]))
    assert result.count.tolist() == [1, 3]
    assert result.median.tolist() == [1, 4]
    shares = rate(x, np.array([True, False, True, False, True]), np.array([0, 1, 2, 3, 4]))
    assert shares.count.tolist() == [1, 1, 1, 0]
    assert shares.total.tolist() == [1, 2, 2, 0]
    assert np.isnan(shares.fraction[-1])


def test_ranges() -> None:
    """Against CSDA ranges of protons in water (PSTAR): polystyrene stops 1.8 % less per g/cm2 and has 1.06 g/cm3."""
    tabulated = {10: 1.230, 20: 4.260, 50: 22.27, 100: 77.18}
    found = track_range(np.array(list(tabulated)), 2212)
    assert found == pytest.approx(np.array(list(tabulated.values())) * 1.018 / 1.06, rel=0.02)
    ratio = 1875.613 / 938.272
    deuteron, proton = track_range(np.array([30 * ratio, 30]), np.array([1000010020, 2212]))
    assert deuteron == pytest.approx(ratio * proton, rel=0.01)  # the same speed all along
    assert np.isnan(track_range(np.array([10]), 2112))


def test_angles_are_exact_at_both_ends() -> None:
    assert angle(X, (1, 1e-9, 0)) == pytest.approx(1e-9, rel=1e-6)
    assert angle(X, (-2, 0, 0)) == np.pi
    assert np.isnan(angle(X, (0, 0, 0)))


def test_path_in_box_against_small_steps() -> None:
    rng = np.random.default_rng(5)
    start, direction = rng.uniform(-60, 60, (50, 3)), unit_vectors(rng, 50)
    direction[0] = X
    lower, upper = np.full((50, 3), -35.0), np.full((50, 3), 35.0)
    points = start[:, None] + np.arange(0, 250, 0.05)[None, :, None] * direction[:, None]
    steps = 0.05 * (np.abs(points) < 35).all(2).sum(1)
    assert path_in_box(start, direction, lower, upper) == pytest.approx(steps, abs=0.11)
    assert (steps == 0).any()
