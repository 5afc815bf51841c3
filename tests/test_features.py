"""Where lines cross voxels, and the frame of the longest leaving track."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from sparsereco import ops
from sparsereco.vertex.features import Line
from sparsereco.vertex.lines import crossing


def random_lines(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return 3 * torch.rand(n, 3, generator=random) - 1.5, normalize(torch.randn(n, 3, generator=random), dim=1)


def test_crossings_agree_with_the_path_lengths_of_long_segments() -> None:
    point, direction = random_lines(50)
    segment, coords, length = ops.path_lengths(point + 3.5 - 20 * direction, point + 3.5 + 20 * direction, (7, 7, 7))
    place = torch.cartesian_prod(*[torch.arange(7)] * 3)
    expected = torch.zeros(50, 7, 7, 7).index_put((segment, *coords.long().T), length).flatten(1)
    for line in range(50):
        one = [value[line].expand(len(place), -1) for value in (point, direction)]
        enter, leave = crossing((place - 3).float(), *one)
        torch.testing.assert_close((leave - enter).clamp(min=0), expected[line], atol=2e-5, rtol=0)


def test_a_line_through_the_centre_crosses_half_a_voxel_on_either_side() -> None:
    enter, leave = crossing(torch.zeros(1, 3), torch.zeros(1, 3), torch.tensor([[0.0, 0.6, 0.8]]))
    assert (enter.item(), leave.item()) == pytest.approx((-0.625, 0.625))


def test_no_line_crosses_nothing() -> None:
    enter, leave = crossing(torch.zeros(2, 3), torch.ones(2, 3), torch.zeros(2, 3))
    assert enter.tolist() == leave.tolist() == [0.0, 0.0]


def test_the_frame_of_a_track_is_orthonormal_and_begins_with_its_direction() -> None:
    point, direction = random_lines(20)
    direction = direction.abs().sort(dim=1, descending=True).values  # of the wedge that crops are turned into
    direction[0] = torch.tensor([1.0, 0.0, 0.0])
    frame = Line(point, direction, torch.ones(20)).frame
    torch.testing.assert_close(torch.bmm(frame, frame.mT), torch.eye(3).expand(20, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(frame[:, 0], direction)


def test_without_a_track_the_frame_is_that_of_the_grid() -> None:
    assert torch.equal(Line(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2)).frame, torch.eye(3).expand(2, 3, 3))
