"""`Voxels.make`: what it refuses, by name, and what it makes of the rest."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsereco.voxels import VoxelError, Voxels, rank_in_group, rows_of

GRID = (4, 5, 6)


def make(coords: list, feats: list, event: list, n_events: int = 3, grid: tuple[int, ...] = GRID) -> Voxels:
    return Voxels.make(
        torch.tensor(coords, dtype=torch.int64).reshape(-1, len(grid)),
        torch.tensor(feats, dtype=torch.float64),
        torch.tensor(event, dtype=torch.int64),
        n_events,
        grid,
    )


def rows(grid: tuple[int, ...], n_events: int) -> st.SearchStrategy[list]:
    """Rows of (event, coordinate, signal); a small grid, so that many fall together."""
    coordinate = st.tuples(*(st.integers(0, size - 1) for size in grid))
    return st.lists(st.tuples(st.integers(0, n_events - 1), coordinate, st.integers(0, 1000)), max_size=40)


def make_rows(given_rows: list, grid: tuple[int, ...]) -> Voxels:
    event, coords, feats = zip(*given_rows, strict=True) if given_rows else ((), (), ())
    return make(list(coords), list(feats), list(event), 4, grid)


@pytest.mark.parametrize("grid", [(2, 3, 2), (3, 4)], ids=["3D", "2D"])
@given(data=st.data())
def test_duplicates_are_summed_and_the_rest_is_sorted(grid: tuple[int, ...], data: st.DataObject) -> None:
    given_rows = data.draw(rows(grid, 4))
    expected: dict[tuple, int] = {}
    for event, coordinate, signal in given_rows:
        expected[(event, *coordinate)] = expected.get((event, *coordinate), 0) + signal
    voxels = make_rows(given_rows, grid)
    found = torch.cat([voxels.event[:, None], voxels.coords.long()], 1).tolist()
    assert [tuple(row) for row in found] == sorted(expected)
    assert voxels.signal.tolist() == [expected[key] for key in sorted(expected)]
    assert voxels.coords.dtype == torch.int32
    assert voxels.coords.is_contiguous()
    assert voxels.feats.is_contiguous()
    assert len(voxels) == 4
    assert voxels.offsets.tolist() == [sum(key[0] < event for key in expected) for event in range(5)]


@given(data=st.data())
def test_the_order_of_the_rows_does_not_matter(data: st.DataObject) -> None:
    given_rows = data.draw(rows(GRID, 4))
    shuffled = data.draw(st.permutations(given_rows))
    first, second = make_rows(given_rows, GRID), make_rows(shuffled, GRID)
    assert torch.equal(first.coords, second.coords)
    assert torch.equal(first.feats, second.feats)
    assert torch.equal(first.offsets, second.offsets)


def test_column_major_coordinates_come_out_contiguous() -> None:
    """`torch.nonzero` gives such ones; spconv would read them wrongly."""
    coords = torch.tensor([[0, 1, 2], [3, 4, 5]]).T.contiguous().T
    assert not coords.is_contiguous()
    voxels = Voxels.make(coords, torch.ones(2), torch.zeros(2, dtype=torch.int64), 1, GRID)
    assert voxels.coords.is_contiguous()
    assert voxels.coords.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("n_events", [0, 1, 3])
def test_no_voxels(n_events: int) -> None:
    voxels = make([], [], [], n_events)
    assert len(voxels) == n_events
    assert voxels.coords.shape == (0, 3)
    assert voxels.feats.shape == (0, 1)
    assert voxels.event.tolist() == []
    assert voxels.select(voxels.signal > 1).offsets.tolist() == [0] * (n_events + 1)


def test_one_voxel_in_the_last_corner_of_the_last_event() -> None:
    voxels = make([[3, 4, 5]], [0.0], [2])
    assert voxels.offsets.tolist() == [0, 0, 0, 1]
    assert voxels.event.tolist() == [2]
    assert voxels.signal.tolist() == [0]


def test_several_features_are_summed_each() -> None:
    feats = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    coords = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 1, 1]])
    voxels = Voxels.make(coords, feats, torch.zeros(3, dtype=torch.int64), 1, GRID)
    assert voxels.feats.tolist() == [[2, 20], [5, 50]]


@pytest.mark.parametrize(
    ("coords", "feats", "event", "message"),
    [
        ([[0, 0, 0], [4, 0, 0]], [1, 1], [0, 1], r"\[4, 0, 0\] in row 1 \(event 1\) lies outside the grid \(4, 5, 6\)"),
        ([[0, 0, -1]], [1], [0], r"\[0, 0, -1\] in row 0 \(event 0\) lies outside the grid"),
        ([[0, 0, 0]], [1], [3], r"voxel 3 in row 0 \(event 3\) is no event of a batch of 3"),
        ([[0, 0, 0]], [1], [-1], r"voxel -1 in row 0 .* is no event"),
        ([[0, 0, 0], [1, 1, 1]], [1, float("nan")], [0, 2], r"\[nan\] in row 1 \(event 2\) is not finite"),
        ([[0, 0, 0]], [float("inf")], [0], r"\[inf\] in row 0 .* is not finite"),
        ([[0, 0, 0]], [-0.5], [1], r"\[-0.5\] in row 0 \(event 1\) is negative"),
        ([[0, 0, 0]], [1, 2], [0], "as many rows in coords, feats and event; got 1, 2 and 1"),
        ([[0, 0, 0]], [1], [0, 0], "got 1, 1 and 2"),
    ],
)
def test_refused_by_name_with_the_value(coords: list, feats: list, event: list, message: str) -> None:
    with pytest.raises(VoxelError, match=message):
        make(coords, feats, event)


@pytest.mark.parametrize(
    ("coords", "grid", "message"),
    [
        (torch.zeros(1, 2, dtype=torch.int64), GRID, r"shape \(N, 3\) for the grid \(4, 5, 6\), got \(1, 2\)"),
        (torch.zeros(3, dtype=torch.int64), GRID, r"got \(3,\)"),
        (torch.zeros(1, 4, dtype=torch.int64), (2, 2, 2, 2), r"for the grid \(2, 2, 2, 2\)"),
        (torch.zeros(1, 3), GRID, "expected integer coords .* got torch.float32"),
    ],
)
def test_coordinates_of_a_wrong_kind(coords: Tensor, grid: tuple[int, ...], message: str) -> None:
    with pytest.raises(VoxelError, match=message):
        Voxels.make(coords, torch.ones(1), torch.zeros(1, dtype=torch.int64), 1, grid)


def test_a_batch_of_more_voxels_than_numbers_is_refused() -> None:
    side, none = 2**21, torch.zeros(1, dtype=torch.int64)
    corner = torch.tensor([[side - 2, side - 1, side - 1]])
    with pytest.raises(VoxelError, match=r"more voxels than 2\^63"):
        Voxels.make(corner, torch.ones(1), none, 1, (side, side, side))
    largest = Voxels.make(corner, torch.ones(1), none, 1, (side - 1, side, side))
    assert largest.coords.tolist() == corner.tolist()


def test_select_keeps_every_event() -> None:
    voxels = make([[0, 0, 0], [1, 1, 1], [2, 2, 2]], [1, 5, 9], [0, 1, 1])
    bright = voxels.select(voxels.signal > 4)
    assert bright.coords.tolist() == [[1, 1, 1], [2, 2, 2]]
    assert bright.offsets.tolist() == [0, 0, 2, 2]
    assert voxels.select(voxels.signal > 99).offsets.tolist() == [0, 0, 0, 0]


def test_other_features_on_the_same_voxels() -> None:
    voxels = make([[0, 0, 0], [1, 1, 1]], [1, 5], [0, 1])
    assert voxels.with_feats(torch.ones(2, 7)).feats.shape == (2, 7)
    with pytest.raises(VoxelError, match="expected 2 rows of features, one per voxel; got 3"):
        voxels.with_feats(torch.ones(3, 1))


def test_to_moves_every_tensor() -> None:
    moved = make([[0, 0, 0]], [1], [0]).to("meta")
    assert {tensor.device.type for tensor in (moved.coords, moved.feats, moved.offsets)} == {"meta"}
    assert moved.grid == GRID


def test_the_rank_starts_anew_in_each_group() -> None:
    assert rank_in_group(torch.tensor([0, 0, 0, 2, 5, 5])).tolist() == [0, 1, 2, 0, 0, 1]
    assert rank_in_group(torch.zeros(0, dtype=torch.int64)).tolist() == []


def test_the_rows_of_events() -> None:
    """In the order in which events are named; empty ones have none, and one that is named twice has its rows twice."""
    owner, row = rows_of(torch.tensor([0, 2, 2, 5]), torch.tensor([2, 1, 0, 2]))
    assert row.tolist() == [2, 3, 4, 0, 1, 2, 3, 4]
    assert owner.tolist() == [0, 0, 0, 2, 2, 3, 3, 3]
    assert [part.tolist() for part in rows_of(torch.tensor([0, 2]), torch.zeros(0, dtype=torch.int64))] == [[], []]
