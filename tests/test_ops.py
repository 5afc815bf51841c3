"""The operators: against plain torch, against their defining properties, and on what a user can get wrong."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsereco import ops, reference

SHAPE = (5, 3, 4)
DTYPES = [torch.float32, torch.float64]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def random_segments(n: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Segments in, across and outside the grid; every third one on a lattice that meets faces and edges."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand((2, n, 3), generator=generator, dtype=dtype) * 9 - 2
    points[:, ::3] = (points[:, ::3] * 2).round() / 2
    return points[0], points[1]


def dense(segment: Tensor, coords: Tensor, length: Tensor, n: int) -> Tensor:
    """(n, *SHAPE): the same lengths where the order no longer matters."""
    grid = torch.zeros((n, *SHAPE), dtype=length.dtype)
    return grid.index_put((segment, *coords.long().T), length, accumulate=True)


def clipped_length(start: Tensor, end: Tensor) -> Tensor:
    """(N,) length inside the grid after Liang and Barsky, upper faces excluded."""
    delta, size = end - start, torch.tensor(SHAPE)
    lower, upper = -start / delta, (size - start) / delta
    within = (start >= 0) & (start < size)
    parallel = delta == 0
    enter = torch.where(parallel, torch.where(within, 0.0, 2.0), torch.minimum(lower, upper)).amax(1).clamp(min=0)
    leave = torch.where(parallel, 1.0, torch.maximum(lower, upper)).amin(1).clamp(max=1)
    return (leave - enter).clamp(min=0) * delta.norm(dim=1)


coordinates = st.one_of(st.floats(-3, 8), st.integers(-6, 16).map(lambda n: n / 2))
segments = st.lists(st.tuples(*[coordinates] * 6), min_size=1, max_size=8).map(
    lambda rows: torch.tensor(rows, dtype=torch.float64).view(-1, 2, 3).unbind(1)
)


class TestPathLengths:
    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_agrees_with_reference(self, device: str, dtype: torch.dtype) -> None:
        start, end = random_segments(600, dtype)
        got = [x.cpu() for x in ops.path_lengths(start.to(device), end.to(device), SHAPE)]
        expected = reference.path_lengths(start, end, SHAPE)
        assert [x.dtype for x in got] == [torch.int64, torch.int32, dtype]
        torch.testing.assert_close(dense(*got, n=600), dense(*expected, n=600))
        assert len(got[0]) > 500

    @pytest.mark.parametrize(
        ("start", "end", "coords", "length"),
        [
            pytest.param((0.5, 0.5, 0.5), (2.5, 0.5, 0.5), [(0, 0, 0), (1, 0, 0), (2, 0, 0)], [0.5, 1, 0.5], id="axis"),
            pytest.param((2.5, 0.5, 0.5), (0.5, 0.5, 0.5), [(2, 0, 0), (1, 0, 0), (0, 0, 0)], [0.5, 1, 0.5], id="back"),
            pytest.param((0, 0, 0), (2, 2, 0), [(0, 0, 0), (1, 1, 0)], [2**0.5] * 2, id="through an edge"),
            pytest.param((2, 2, 2), (0, 0, 0), [(1, 1, 1), (0, 0, 0)], [3**0.5] * 2, id="through a corner, back"),
            pytest.param((1, 0.5, 2), (1, 1.5, 2), [(1, 0, 2), (1, 1, 2)], [0.5, 0.5], id="inside faces"),
            pytest.param((-1, 0.5, 0.5), (9, 0.5, 0.5), [(i, 0, 0) for i in range(5)], [1] * 5, id="right through"),
            pytest.param((0.5, 0.5, 4), (0.5, 2.5, 4), [], [], id="inside the upper face of the grid"),
            pytest.param((0.5, 0.5, 4), (0.5, 0.5, 3.5), [(0, 0, 3)], [0.5], id="down from the upper face"),
            pytest.param((1.5, 1.5, 1.5), (1.5, 1.5, 1.5), [], [], id="zero length"),
            pytest.param((-1, 4, 0.5), (4, 4, 0.5), [], [], id="outside"),
            pytest.param((5, 0, 0), (6, 1, 1), [], [], id="touches"),
        ],
    )
    def test_by_hand(self, start: tuple, end: tuple, coords: list, length: list) -> None:
        points = torch.tensor([[start], [end]], dtype=torch.float64)
        segment, got_coords, got_length = ops.path_lengths(points[0], points[1], SHAPE)
        assert segment.tolist() == [0] * len(coords)
        assert [tuple(c) for c in got_coords.tolist()] == coords
        assert got_length.tolist() == pytest.approx(length)

    @given(segments)
    def test_lengths_add_up_to_the_clipped_segment(self, points: tuple[Tensor, Tensor]) -> None:
        segment, coords, length = ops.path_lengths(*points, SHAPE)
        total = torch.zeros(len(points[0]), dtype=torch.float64).index_add(0, segment, length)
        torch.testing.assert_close(total, clipped_length(*points), rtol=0, atol=1e-12)
        assert (length > 0).all()
        assert (coords >= 0).all()
        assert (coords < torch.tensor(SHAPE)).all()

    @given(segments)
    def test_successive_voxels_are_neighbours(self, points: tuple[Tensor, Tensor]) -> None:
        segment, coords, _ = ops.path_lengths(*points, SHAPE)
        assert (segment.diff() >= 0).all()
        step = coords.diff(dim=0)[segment.diff() == 0].abs()
        assert len(step) == 0 or (step.amax(1) == 1).all()

    @given(segments)
    def test_reversed_segment_crosses_the_same(self, points: tuple[Tensor, Tensor]) -> None:
        n = len(points[0])
        there = dense(*ops.path_lengths(points[0], points[1], SHAPE), n=n)
        back = dense(*ops.path_lengths(points[1], points[0], SHAPE), n=n)
        torch.testing.assert_close(there, back, rtol=0, atol=1e-12)

    def test_permuted_axes_permute_the_result(self) -> None:
        start, end = random_segments(200)
        axes = [2, 0, 1]
        plain = dense(*ops.path_lengths(start, end, SHAPE), n=200)
        segment, coords, length = ops.path_lengths(start[:, axes], end[:, axes], [SHAPE[a] for a in axes])
        torch.testing.assert_close(dense(segment, coords[:, [1, 2, 0]], length, n=200), plain)

    def test_permuted_segments_permute_the_result(self) -> None:
        start, end = random_segments(200)
        order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
        plain = dense(*ops.path_lengths(start, end, SHAPE), n=200)
        assert torch.equal(dense(*ops.path_lengths(start[order], end[order], SHAPE), n=200), plain[order])

    def test_same_bits_for_any_number_of_threads(self) -> None:
        start, end = random_segments(3000)
        threads = torch.get_num_threads()
        results = []
        try:
            for n in (1, 2, 5):
                torch.set_num_threads(n)
                results.append(ops.path_lengths(start, end, SHAPE))
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for result in results for a, b in zip(result, results[0], strict=True))

    def test_non_contiguous_input(self) -> None:
        start, end = random_segments(50)
        expected = ops.path_lengths(start, end, SHAPE)
        got = ops.path_lengths(start.T.contiguous().T, torch.stack([end, end], 1)[:, 1], SHAPE)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_no_segments(self, dtype: torch.dtype) -> None:
        segment, coords, length = ops.path_lengths(
            torch.empty(0, 3, dtype=dtype), torch.empty(0, 3, dtype=dtype), SHAPE
        )
        assert (segment.shape, coords.shape, length.shape) == ((0,), (0, 3), (0,))
        assert length.dtype == dtype

    @pytest.mark.parametrize("n", [0, 1, 40])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_opcheck(self, n: int, dtype: torch.dtype) -> None:
        torch.library.opcheck(torch.ops.sparsereco.path_lengths.default, (*random_segments(n, dtype), list(SHAPE)))

    @pytest.mark.parametrize(
        ("start", "end", "shape", "error", "message"),
        [
            (torch.ones(4, 2), torch.ones(4, 2), SHAPE, ValueError, r"start must have shape \(N, 3\), got \[4, 2\]"),
            (torch.ones(4, 3), torch.ones(3), SHAPE, ValueError, r"end must have shape \(N, 3\), got \[3\]"),
            (torch.ones(4, 3), torch.ones(5, 3), SHAPE, ValueError, "same number of rows, got 4 and 5"),
            (torch.ones(4, 3), torch.ones(4, 3).double(), SHAPE, TypeError, "same dtype, got Float and Double"),
            (torch.ones(4, 3).int(), torch.ones(4, 3).int(), SHAPE, TypeError, "float32 or float64, got Int"),
            (torch.ones(4, 3), torch.ones(4, 3), (5, 0, 4), ValueError, r"three positive int32 .* got \[5, 0, 4\]"),
            (torch.ones(4, 3), torch.ones(4, 3), (5, 4), ValueError, r"three numbers of voxels, got \(5, 4\)"),
        ],
    )
    def test_refuses(self, start: Tensor, end: Tensor, shape: tuple, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            ops.path_lengths(start, end, shape)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e9])
    def test_refuses_positions_that_are_not_finite_or_far_off(self, value: float) -> None:
        start, end = random_segments(4)
        end[2, 1] = value
        with pytest.raises(ValueError, match=r"end\[2, 1\] must be finite and within 2\^31 voxels, got"):
            ops.path_lengths(start, end, SHAPE)

    def test_refuses_inputs_that_require_a_gradient(self) -> None:
        start, end = random_segments(4)
        start.requires_grad_()
        with pytest.raises(ValueError, match=r"no gradient .* detached"):
            ops.path_lengths(start, end, SHAPE)
        with torch.no_grad():
            assert not ops.path_lengths(start, end, SHAPE)[2].requires_grad


class TestSegmentReductions:
    values = torch.tensor([[1.0, -4.0], [3.0, -2.0], [5.0, -9.0]])
    offsets = torch.tensor([0, 2, 2, 3])

    @pytest.mark.parametrize(
        ("reduce", "expected"),
        [
            (ops.segment_sum, [[4.0, -6.0], [0.0, 0.0], [5.0, -9.0]]),
            (ops.segment_mean, [[2.0, -3.0], [0.0, 0.0], [5.0, -9.0]]),
            (ops.segment_max, [[3.0, -2.0], [0.0, 0.0], [5.0, -9.0]]),
        ],
    )
    def test_values(self, reduce, expected: list) -> None:
        assert reduce(self.values, self.offsets).tolist() == expected
        assert reduce(self.values[:0], torch.tensor([0, 0])).tolist() == [[0.0, 0.0]]
        assert reduce(self.values[:0], torch.tensor([0])).shape == (0, 2)

    @pytest.mark.parametrize("reduce", [ops.segment_sum, ops.segment_mean, ops.segment_max])
    def test_gradient(self, reduce) -> None:
        values = self.values.double().requires_grad_()
        assert torch.autograd.gradcheck(lambda x: reduce(x, self.offsets), (values,))

    @pytest.mark.parametrize("offsets", [[0, 2], [1, 3], [0, 4], [0, 3, 2, 3]])
    def test_refuses_offsets_that_do_not_rise_from_0_to_n(self, offsets: list[int]) -> None:
        with pytest.raises(ValueError, match="rise from 0 to the 3 rows"):
            ops.segment_sum(self.values, torch.tensor(offsets))

    @pytest.mark.parametrize("offsets", [torch.tensor([0, 3]).int(), torch.tensor([[0, 3]]), torch.empty(0).long()])
    def test_refuses_offsets_of_another_kind(self, offsets: Tensor) -> None:
        with pytest.raises(ValueError, match=r"\(S \+ 1,\) int64, got"):
            ops.segment_sum(self.values, offsets)


def test_a_missing_extension_names_the_command_that_builds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sparsereco._C", None)
    spec = spec_from_file_location("ops_without_extension", ops.__file__)
    with pytest.raises(ImportError, match=r"pip install --no-build-isolation -e \."):
        spec.loader.exec_module(module_from_spec(spec))
