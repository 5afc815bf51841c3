"""Filled against missing voxels: numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sparsereco.infill import causes, metrics
from sparsereco.infill.metrics import Truth, VoxelSet


def voxels(*rows: tuple[int, tuple[int, int, int], float]) -> VoxelSet:
    event, coords, energy = zip(*rows, strict=True) if rows else ((), (), ())
    return VoxelSet(
        np.array(event, np.int64), np.array(coords, np.int64).reshape(-1, 3), np.array(energy), np.zeros(len(rows), int)
    )


def truth(missing: VoxelSet, part: list[int] | None = None, n_events: int = 2) -> Truth:
    n = max(part or [0]) + 1
    return Truth(
        missing,
        np.array(part or [0] * len(missing.event)),
        np.zeros(n, int),
        np.full(n, 13),
        np.tile([1.0, 0.0, 0.0], (n, 1)),
        n_events,
        np.array([10]),
        np.array([0]),
    )


ROW = voxels(*((0, (x, 0, 0), 1.0) for x in range(10)))


def test_exact_voxels_and_neighbours() -> None:
    filled = voxels(*((0, (x, 0, 0), 1.0) for x in range(6)), (0, (7, 1, 1), 1.0), (0, (5, 9, 9), 1.0))
    found = metrics.scores(truth(ROW), metrics.match(truth(ROW), filled))
    assert found["precision"].value == pytest.approx(6 / 8)
    assert found["recall"].value == pytest.approx(6 / 10)
    assert found["f1"].value == pytest.approx(2 * 6 / 18)
    assert found["precision_near"].value == pytest.approx(7 / 8)
    assert found["recall_near"].value == pytest.approx(9 / 10)  # 0-6 beside 0-5, 6-8 beside 7


def test_the_same_place_in_another_event_is_no_hit() -> None:
    filled = voxels((1, (0, 0, 0), 1.0))
    m = metrics.match(truth(ROW), filled)
    assert m.exact.tolist() == [-1]
    assert not m.near.any()
    assert np.isinf(m.away).all()


def test_nothing_filled_scores_nothing() -> None:
    t = truth(ROW)
    m = metrics.match(t, voxels())
    assert all(value.value == 0 for value in metrics.scores(t, m).values())
    assert metrics.joined(t, m).tolist() == [False]


def test_chamfer_distance() -> None:
    filled = voxels(*((0, (x, 2, 0), 1.0) for x in range(10)))
    assert metrics.chamfer(truth(ROW), metrics.match(truth(ROW), filled), pitch=3.8).value == pytest.approx(7.6)


def test_a_track_is_joined_by_nine_in_ten() -> None:
    t = truth(ROW)
    for last, expected in ((7, [False]), (8, [True])):  # voxel 8 lies beside 7, 9 beside 8
        filled = voxels(*((0, (x, 0, 0), 1.0) for x in range(last)))
        assert metrics.joined(t, metrics.match(t, filled)).tolist() == expected


def test_short_tracks_are_not_asked_about() -> None:
    t = truth(ROW, [0] * 7 + [1] * 3)
    part, gap, row = metrics.crossings(t)
    assert (part.tolist(), gap.tolist()) == ([0], [0])
    assert row.tolist() == [0] * 7 + [-1] * 3
    assert metrics.lone_tracks(t).tolist() == [[False], [False]]
    assert metrics.lone_tracks(truth(ROW)).tolist() == [[True], [False]]


def test_energy_per_crossing() -> None:
    found = metrics.energy_scores(np.array([10.0, 20.0, 40.0]), np.array([11.0, 20.0, 36.0]))
    assert found["bias"].value == pytest.approx(0.0)
    assert found["bias_of_sum"].value == pytest.approx(-3 / 70)
    true, said = metrics.energies(truth(ROW), voxels((0, (0, 0, 0), 4.0), (1, (0, 0, 0), 2.0)))
    assert true.tolist() == [[10.0], [0.0]]
    assert said.tolist() == [[4.0], [2.0]]


def test_stated_energies_of_gaps() -> None:
    said = metrics.expected_energies(truth(ROW), np.array([1, 0]), np.array([0, 0]), np.array([2.5, 4.0]))
    assert said.tolist() == [[4.0], [2.5]]


def test_a_piece_that_no_hit_touches_is_unreached() -> None:
    missing = voxels(*((0, (x, 0, 0), 1.0) for x in (0, 1, 4, 5)), (1, (0, 0, 0), 1.0))
    t = replace(truth(ROW), voxels=missing)
    hits = voxels((0, (-1, 1, 0), 1.0))
    assert causes.unreached(t, hits).tolist() == [False, False, True, True, True]


def test_contacts_are_the_places_where_hits_touch_a_track() -> None:
    missing = voxels(*((0, (x, y, 0), 1.0) for y in (0, 1, 8) for x in range(3)), (1, (0, 0, 0), 1.0))
    t = truth(missing, part=[0, 0, 0, 1, 1, 1, 2, 2, 2, 3])
    # Two hits in one place before the first track, one behind it; the second touches the hits of the first, too.
    hits = voxels((0, (-1, 0, 0), 1.0), (0, (-2, 0, 0), 1.0), (0, (-1, 7, 0), 1.0), (0, (3, -1, 0), 1.0))
    assert causes.contacts(t, hits).tolist() == [2, 2, 2, 1, 1, 1, 1, 1, 1, 0]
    assert causes.contacts(t, voxels()).tolist() == [0] * 10


def test_recall_and_its_limit_by_contacts() -> None:
    missing = voxels(*((0, (x, 0, 0), 1.0) for x in range(4)), (1, (0, 0, 0), 1.0))
    t, count = truth(missing), np.array([1, 1, 2, 2, 0])
    rows = causes.by_contacts(t, metrics.match(t, voxels((0, (0, 0, 0), 1.0))), count)
    assert [row["contacts"] for row in rows] == ["none", "one", "two or more"]
    assert [row["share"].value for row in rows] == [0.2, 0.4, 0.4]
    assert [row["recall_near"].value for row in rows] == [0.0, 1.0, 0.0]
    best = causes.limit(t, count)
    assert (best["precision"].value, best["recall"].value) == (1.0, 0.8)


def test_coverage_is_of_rightly_filled_voxels() -> None:
    filled = voxels((0, (0, 0, 0), 1.5), (0, (1, 0, 0), 0.9), (0, (0, 5, 0), 9.0))
    m = metrics.match(truth(ROW), filled)
    share, pull = metrics.coverage(m, truth(ROW), np.array([0.2, 0.2, 0.2]))
    assert share.value == 0.5
    assert pull.tolist() == pytest.approx([2.5, -0.5])


def test_calibration_of_a_calibrated_and_of_an_overconfident_guess() -> None:
    rng = np.random.default_rng(0)
    probability = rng.uniform(size=100_000)
    hit = rng.uniform(size=100_000) < probability
    assert metrics.calibration(probability, hit)["ece"].value < 0.01
    assert metrics.calibration(probability, hit & (rng.uniform(size=100_000) < 0.5))["ece"].value > 0.2


def test_empty_gaps_filled_by_mistake() -> None:
    t = truth(ROW)
    beside = np.array([[True], [True]])
    filled = voxels((0, (0, 0, 0), 1.0))
    assert [share.value for share in metrics.mistakes(t, filled, beside)] == [0.0, 0.0]
    filled = voxels((0, (0, 0, 0), 1.0), (1, (0, 0, 0), 1.0))
    assert [share.value for share in metrics.mistakes(t, filled, beside)] == [1.0, 1.0]
    assert metrics.mistakes(t, filled, ~beside)[1].count == 0


def test_own_fluctuation_is_that_of_the_loss_per_length() -> None:
    event = np.repeat(np.arange(101), 4)
    loss = np.linspace(0.8, 1.2, 101)
    missing = VoxelSet(event, np.tile([[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]], (101, 1)), loss[event], event * 0)
    t = Truth(
        missing,
        event,
        np.arange(101),
        np.full(101, 13),
        np.tile([1.0, 0, 0], (101, 1)),
        101,
        np.array([4]),
        np.array([0]),
    )
    single, length = np.ones((101, 1), bool), np.full((101, 1), 4.0)
    found = metrics.summarise(t, {"all": metrics.match(t, missing)}, single, length, 3.8)
    assert found["own_fluctuation"].value == pytest.approx(0.2 * 0.6827, abs=0.005)
    assert found["methods"]["all"]["f1"].value == 1
    assert found["methods"]["all"]["joined"].value == 1
    assert found["methods"]["all"]["energy"]["spread"].value == 0
