"""Crops and leaving tracks, on straight made-up tracks of known direction."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sparsereco.ops import path_lengths
from sparsereco.vertex.crop import HALF, REACH, Crops, Tracks, cut_crops, distance, surroundings, within
from sparsereco.vertex.tracks import find_tracks
from sparsereco.voxels import Voxels

GRID = (40, 30, 50)
CENTRE = (20, 15, 25)
NO_TRACKS = find_tracks(
    Voxels.make(torch.zeros(0, 3).long(), torch.zeros(0), torch.zeros(0).long(), 0, GRID), torch.zeros(0, 3).long()
)


def line(start: Tensor, direction: Tensor, length: float = 30.0, light: float = 160.0) -> tuple[Tensor, Tensor]:
    """Voxels and signals of a straight track [voxels], so many p.e. per voxel's edge."""
    _, coords, path = path_lengths(start[None].double(), (start + length * direction)[None].double(), GRID)
    return coords.long(), (path * light).float()


def hits(*events: list[tuple[Tensor, Tensor]]) -> Voxels:
    """Events made of pieces, each voxels and signals."""
    pieces = [(coords, signal, b) for b, event in enumerate(events) for coords, signal in event]
    coords = torch.cat([torch.zeros(0, 3).long(), *(coords for coords, _, _ in pieces)])
    signal = torch.cat([torch.zeros(0), *(signal for _, signal, _ in pieces)])
    event = torch.cat([torch.zeros(0).long(), *(torch.full((len(c),), b) for c, _, b in pieces)])
    return Voxels.make(coords, signal, event, len(events), GRID)


def tracks_of(*events: list[tuple[Tensor, Tensor]], centre: tuple = CENTRE, **settings: float) -> Tracks:
    """The tracks around one vertex per event, all at the same place."""
    centres = torch.tensor([centre]).expand(len(events), -1)
    around = surroundings(hits(*events), torch.arange(len(events)), centres)
    return find_tracks(around, centres, **settings)


def unit(*vector: float) -> Tensor:
    return torch.nn.functional.normalize(torch.tensor(vector), dim=0)


def voxel(*place: int, signal: float = 100.0) -> tuple[Tensor, Tensor]:
    """One voxel, relative to the centre."""
    return torch.tensor([CENTRE]) + torch.tensor([place]), torch.tensor([signal])


MIDDLE = torch.tensor(CENTRE) + 0.5


def test_surroundings_at_a_corner_of_the_detector() -> None:
    """Nothing wraps around, and the hits at the far walls are not near."""
    corners = torch.cartesian_prod(*(torch.tensor([0, REACH, REACH + 1, size - 1]) for size in GRID))
    event = [(corners, torch.arange(1.0, len(corners) + 1))]
    around = surroundings(hits(event, []), torch.tensor([0, 0]), torch.tensor([[0, 0, 0], [39, 29, 49]]), REACH)
    assert len(around) == 2
    expected = [[x, y, z] for x in (0, REACH) for y in (0, REACH) for z in (0, REACH)]
    assert around.coords[: around.offsets[1]].tolist() == expected
    assert around.coords[around.offsets[1] :].tolist() == [[39, 29, 49]]
    kept = {tuple(c): s for c, s in zip(corners.tolist(), event[0][1].tolist(), strict=True)}
    assert around.signal.tolist() == [kept[tuple(c)] for c in around.coords.tolist()]


def test_within_keeps_the_near_hits_of_each_crop() -> None:
    far = torch.tensor([[CENTRE[0] - REACH - 1, *CENTRE[1:]]]), torch.tensor([7.0])
    batch = hits([voxel(0, 0, 0), far], [far])
    centres = torch.tensor([CENTRE, CENTRE])
    around = surroundings(batch, torch.tensor([0, 1]), centres)
    assert around.offsets.tolist() == [0, 2, 3]
    near = within(around, centres, REACH)
    assert near.offsets.tolist() == [0, 1, 1]
    assert near.signal.tolist() == [100]


def test_surroundings_follow_the_event_of_each_crop() -> None:
    """Crops share events, skip events, and may find nothing."""
    batch = hits([voxel(0, 0, 0, signal=1.0)], [], [voxel(0, 0, 0, signal=3.0), voxel(2, 0, 0, signal=4.0)])
    centres = torch.tensor([CENTRE, CENTRE, (0, 0, 0), CENTRE])
    around = surroundings(batch, torch.tensor([0, 1, 2, 2]), centres, REACH)
    assert around.offsets.tolist() == [0, 1, 1, 1, 3]
    assert around.signal.tolist() == [1, 3, 4]
    nothing = surroundings(batch, torch.zeros(0).long(), torch.zeros(0, 3).long())
    assert (len(nothing), len(nothing.coords)) == (0, 0)


def cut(around: Voxels, centres: Tensor, max_voxels: int = 99) -> Crops:
    context = torch.arange(len(around.coords)).float()[:, None]
    return cut_crops(around, context, centres, NO_TRACKS, max_voxels)


def test_a_crop_holds_its_voxels_brightest_first() -> None:
    inside = [voxel(3, -3, 3, signal=5.0), voxel(0, 0, 0, signal=9.0), voxel(-3, 0, 1, signal=7.0)]
    outside = [voxel(4, 0, 0, signal=50.0), voxel(0, -4, 0, signal=50.0)]
    centres = torch.tensor([CENTRE, CENTRE])
    around = surroundings(hits(inside + outside, [voxel(1, 1, 1)]), torch.arange(2), centres)
    crops = cut(around, centres)
    assert crops.place.tolist() == [[0, 0, 0], [-3, 0, 1], [3, -3, 3], [1, 1, 1]]
    assert crops.signal.tolist() == [9, 7, 5, 100]
    assert crops.crop.tolist() == [0, 0, 0, 1]
    assert around.signal[crops.context[:, 0].long()].tolist() == crops.signal.tolist()
    assert cut(around, centres, max_voxels=2).signal.tolist() == [9, 7, 100]


def test_a_crop_at_the_corner_and_an_empty_one() -> None:
    batch = hits([(torch.tensor([[0, 0, 0], [3, 3, 3], [4, 0, 0]]), torch.tensor([1.0, 2.0, 3.0]))])
    centres = torch.tensor([[0, 0, 0], [30, 20, 40]])
    crops = cut(surroundings(batch, torch.tensor([0, 0]), centres), centres)
    assert len(crops) == 2
    assert crops.place.tolist() == [[3, 3, 3], [0, 0, 0]]
    assert crops.crop.tolist() == [0, 0]


def test_distance_is_that_of_chebyshev() -> None:
    assert distance(torch.tensor([[1, 5, 3]]), torch.tensor([[2, 1, 3]])).tolist() == [4]


def test_straight_tracks_are_found_where_they_leave() -> None:
    random = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(200, 3, generator=random), dim=1)
    offset = torch.rand(200, 3, generator=random) - 0.5  # of the vertex in its voxel
    tracks = tracks_of(*([line(MIDDLE + o, d)] for o, d in zip(offset, direction, strict=True)))
    assert tracks.crop.tolist() == list(range(200))
    angle = torch.rad2deg(torch.acos((tracks.direction * direction).sum(1).clamp(-1, 1)))
    assert angle.median() < 0.5
    assert angle.max() < 10
    torch.testing.assert_close(tracks.direction.norm(dim=1), torch.ones(200))

    path = torch.where(direction > 0, HALF + 0.5 - offset, -HALF - 0.5 - offset) / direction
    face = path.argmin(1)
    true_point = offset + path.amin(1, keepdim=True) * direction
    assert (tracks.point - true_point).norm(dim=1).max() < 1
    clear = true_point.abs().sort(dim=1).values[:, 1] < HALF - 0.5  # does not leave through an edge of the crop
    assert clear.sum() > 50
    found = tracks.point.gather(1, face[:, None])[:, 0]
    torch.testing.assert_close(found[clear], ((HALF + 0.5) * direction.gather(1, face[:, None]).sign())[:, 0][clear])
    along = (tracks.light / 160 - 1).abs()
    assert along.median() < 0.15


def test_a_track_along_an_axis_is_exact() -> None:
    tracks = tracks_of([line(MIDDLE, unit(0.0, -1.0, 0.0))])
    torch.testing.assert_close(tracks.direction, torch.tensor([[0.0, -1.0, 0.0]]), rtol=0, atol=1e-5)
    torch.testing.assert_close(tracks.point, torch.tensor([[0.0, -3.5, 0.0]]), rtol=0, atol=1e-4)
    assert tracks.hits.tolist() == [REACH - HALF]
    torch.testing.assert_close(tracks.length, torch.tensor([8.0]))
    torch.testing.assert_close(tracks.light, torch.tensor([160.0]))
    assert tracks.spread.item() < 1e-3


def test_a_track_in_one_layer_is_placed_by_where_it_leaves_it() -> None:
    """Near the vertex little tells how high in its layer it is: it passes to the next behind what is joined to it."""
    direction = unit(-0.1, 0.06, 1.0)
    starts = MIDDLE + torch.tensor([[0.1, height, -18.0] for height in (-0.4, -0.3, -0.2, -0.1)])
    batch = hits(*([line(start, direction, length=42.0)] for start in starts))
    centres = torch.tensor([[CENTRE[0], CENTRE[1], CENTRE[2] - 18]]).expand(4, -1)
    around = surroundings(batch, torch.arange(4), centres)
    tracks = find_tracks(around, centres)
    nearest = tracks.point - (tracks.point * tracks.direction).sum(1, keepdim=True) * tracks.direction
    true = starts - MIDDLE - torch.tensor([0.0, 0.0, -18.0])
    true = true - (true @ direction)[:, None] * direction
    assert (nearest - true).norm(dim=1).max() < 0.05
    short = find_tracks(within(around, centres, REACH), centres)
    assert (short.error[:, 1] > 1.5 * tracks.error[:, 1]).all()  # without the far hits the fit knows that it knows less


def test_a_bent_track_points_back_as_its_near_part_does() -> None:
    before, after = unit(0.3, 0.2, 1.0), unit(0.36, 0.17, 1.0)
    bend = MIDDLE + torch.tensor([0.2, 0.1, -20.0]) + 14 * before
    near, far = line(bend, -before, length=14.0), line(bend, after, length=22.0)
    centre = tuple((torch.tensor(CENTRE) - torch.tensor([0, 0, 20])).tolist())
    bent, straight = tracks_of([near, far], centre=centre), tracks_of([near], centre=centre)
    for tracks in (bent, straight):
        assert math.degrees(math.acos(min(1.0, float(tracks.direction[0] @ before)))) < 1


def test_two_tracks_are_sorted_by_their_hits() -> None:
    long, short = line(MIDDLE, unit(1.0, 0.2, 0.0)), line(MIDDLE, unit(-1.0, 0.0, 0.3), length=6.5)
    tracks = tracks_of([], [short, long])
    assert tracks.crop.tolist() == [1, 1]
    assert tracks.hits[0] > tracks.hits[1]
    assert (tracks.direction[0] @ unit(1.0, 0.2, 0.0)) > 0.99
    assert (tracks.direction[1] @ unit(-1.0, 0.0, 0.3)) > 0.95


def test_a_track_that_does_not_touch_the_crop_is_none() -> None:
    passing = line(MIDDLE + torch.tensor([5.0, -12.0, 0.0]), unit(0.0, 1.0, 0.0))
    touching = line(MIDDLE + torch.tensor([4.0, -12.0, 0.0]), unit(0.0, 1.0, 0.0))
    assert len(tracks_of([passing])) == 0
    assert len(tracks_of([touching])) == 1
    assert len(tracks_of([voxel(0, 0, 0), voxel(3, 3, 3)])) == 0
    assert len(tracks_of([])) == 0
    assert len(NO_TRACKS) == 0


@pytest.mark.parametrize("place", [(4, 0, 0), (-4, 4, 2), (0, 1, -4)])
def test_a_single_hit_points_away_from_the_crop(place: tuple[int, int, int]) -> None:
    tracks = tracks_of([voxel(*place)])
    assert tracks.direction[0] @ unit(*map(float, place)) > 0.99
    torch.testing.assert_close(tracks.length, torch.tensor([1.0]))
    assert 30 < tracks.light < 200  # its path in the voxel is not known
    assert tracks.point.abs().max().item() == pytest.approx(HALF + 0.5)


def test_weak_hits_join_nothing() -> None:
    gap = [voxel(x, 0, 0, signal=50.0) for x in range(20) if x != 6]
    assert tracks_of(gap).hits.tolist() == [2]  # what lies beyond the gap touches the crop no more
    assert tracks_of([*gap, voxel(6, 0, 0, signal=12.0)]).hits.tolist() == [8]
    assert tracks_of([*gap, voxel(6, 0, 0, signal=9.0)]).hits.tolist() == [2]
    assert tracks_of([*gap, voxel(6, 0, 0, signal=9.0)], min_pe=5.0).hits.tolist() == [8]


@pytest.mark.parametrize("max_tracks", [0, 1, 2, 6])
def test_only_the_tracks_with_most_hits_stay(max_tracks: int) -> None:
    axes = [unit(*v) for v in ((1.0, 0, 0), (-1.0, 0, 0), (0, 1.0, 0), (0, -1.0, 0), (0, 0, 1.0))]
    star = [line(MIDDLE, axis, length=4.9 + k) for k, axis in enumerate(axes)]
    tracks = tracks_of(star, star, max_tracks=max_tracks)
    expected = [6, 5, 4, 3, 2][:max_tracks]
    assert tracks.hits.tolist() == expected * 2
    assert tracks.crop.tolist() == [0] * len(expected) + [1] * len(expected)


def test_whatever_is_lit_gives_finite_tracks() -> None:
    """Clouds of hits, thick and thin, are no lines, but no reason to fail."""
    random = torch.Generator().manual_seed(7)
    clouds = []
    for n in (1, 5, 50, 500, 3000):
        place = torch.randint(-REACH, REACH + 1, (n, 3), generator=random)
        clouds.append([(torch.tensor([CENTRE]) + place, torch.rand(n, generator=random) * 1000)])
    tracks = tracks_of(*clouds, [voxel(4, 4, 4, signal=0.0)], min_pe=0.0)
    assert len(tracks) >= 5
    assert 5 not in tracks.crop  # no light, no track
    for name, values in vars(tracks).items():
        assert torch.isfinite(values).all(), name
    torch.testing.assert_close(tracks.direction.norm(dim=1), torch.ones(len(tracks)))
    assert tracks.point.abs().max() <= HALF + 0.5


def test_crops_do_not_see_each_other() -> None:
    """Two pieces at the same place in neighbouring events are not joined."""
    random = torch.Generator().manual_seed(4)
    events = [[line(MIDDLE, unit(*torch.randn(3, generator=random).tolist())) for _ in range(k)] for k in (2, 0, 3, 1)]
    together = tracks_of(*events)
    alone = [tracks_of(event) for event in events]
    assert [int((together.crop == k).sum()) for k in range(4)] == [len(tracks) for tracks in alone]
    torch.testing.assert_close(together.direction, torch.cat([tracks.direction for tracks in alone]))
    torch.testing.assert_close(together.point, torch.cat([tracks.point for tracks in alone]))


def test_a_track_in_the_corner_of_the_detector() -> None:
    """The vertex is 2 voxels from three walls: the track towards them leaves no hits beyond the crop."""
    start = torch.tensor([2.5, 2.5, 2.5])
    diagonal = unit(1.0, 1.0, 1.0)
    tracks = tracks_of([line(start, diagonal), line(start, -diagonal)], centre=(2, 2, 2))
    assert len(tracks) == 1
    assert math.degrees(math.acos(min(1.0, float(tracks.direction[0] @ diagonal)))) < 3
