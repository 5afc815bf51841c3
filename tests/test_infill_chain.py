"""Straight tracks through gaps: ends, lines, candidates, losses; the chain on hits that must and must not be filled."""

from __future__ import annotations

from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import torch

from sparsereco.infill import baselines
from sparsereco.infill.candidates import FEATURES, bend, loss_behind, make_problem
from sparsereco.infill.chain import InfillChain, pose
from sparsereco.infill.channels import Channels
from sparsereco.infill.choice import choose
from sparsereco.infill.config import InfillConfig
from sparsereco.infill.ends import find_ends
from sparsereco.infill.fits import crossing, refined, with_empty
from sparsereco.infill.gaps import ChargeResponse, Gaps, LArDetector
from sparsereco.infill.model import Filler, FillerConfig, answers, filler_loss, line_charge
from sparsereco.infill.tracks import find_lines
from sparsereco.segments import Segments, voxelize
from sparsereco.voxels import VoxelError, Voxels

SLAB = LArDetector(size=(190, 190, 190), centres=((-114, 0, 0), (114, 0, 0)))  # a gap of 10 voxels, 50 to 59 along x
PER_VOXEL = 0.75


def tracks(*ends: tuple[tuple, tuple], detector: LArDetector = SLAB) -> tuple[Voxels, Voxels]:
    """Hits and missing voxels of straight tracks [mm] that lose what muons do, one event."""
    start, end = (torch.tensor([pair[i] for pair in ends], dtype=torch.float32) for i in (0, 1))
    energy = (end - start).norm(dim=1) / detector.pitch * PER_VOXEL
    segments = Segments(start, end, energy, torch.zeros(len(ends), dtype=torch.int64), 1)
    voxels = voxelize(segments, detector.origin, detector.pitch, detector.shape)
    voxels = voxels.select(voxels.signal > 0.1)
    gap = torch.from_numpy(Gaps(detector).of(voxels.coords.numpy()))
    return voxels.select(gap == -1), voxels.select(gap >= 0)


def records(hits: Voxels, detector: LArDetector = SLAB) -> ak.Array:
    centre = detector.centre(hits.coords.numpy())
    counts = hits.offsets.diff().numpy()
    fields = {f"hit_{axis}": ak.unflatten(centre[:, i], counts) for i, axis in enumerate("xyz")}
    return ak.zip(fields | {"hit_e": ak.unflatten(hits.signal.numpy(), counts)}, depth_limit=1)


SLANTED = (-180.0, -60.0, 11.0), (180.0, 70.0, -30.0)


@pytest.fixture(scope="module")
def chain() -> InfillChain:
    return InfillChain(SLAB)


def test_a_track_has_two_ends_and_one_line() -> None:
    hits, _ = tracks(SLANTED)
    gaps = Gaps(SLAB)
    ends, lines, _ = pose(hits, gaps)
    assert ends.gap.tolist() == [0, 0]
    assert lines.linked.tolist() == [True]
    true = torch.nn.functional.normalize(torch.tensor(SLANTED[1]) - torch.tensor(SLANTED[0]), dim=0)
    assert float((lines.direction[0] * true).sum()) > 0.9999
    assert float(lines.energy[0]) == pytest.approx(PER_VOXEL, rel=0.03)
    # 10 voxels along x, over the cosine; the ends lie in the middle of the hits at the faces.
    assert float(lines.length[0]) == pytest.approx(10 / float(true[0]), abs=2.5)


def test_a_line_fitted_by_path_length_is_nearer_than_the_axis() -> None:
    away: dict[str, list[float]] = {"axis": [], "fit": []}
    generator = np.random.default_rng(0)
    for _ in range(15):
        y0, z0, y1, z1 = generator.uniform(-80, 80, 4)
        start, end = (-180.0, y0, z0), (180.0, y1, z1)
        hits, _ = tracks((start, end))
        _, lines, _ = pose(hits, Gaps(SLAB))
        true = torch.nn.functional.normalize(torch.tensor(end) - torch.tensor(start), dim=0)
        where = (torch.tensor(start) - torch.tensor(SLAB.origin)) / SLAB.pitch
        for name, point in (("axis", lines.axis[0][0]), ("fit", lines.point[0])):
            away[name].append(float(torch.linalg.cross(point - where, true).norm()))
    assert np.median(away["fit"]) < 0.5 * np.median(away["axis"])


def test_crossing_is_the_length_in_a_voxel() -> None:
    centre = torch.full((3, 3), 0.5)
    point = torch.tensor([[0.0, 0.5, 0.5], [0.0, 0.0, 0.0], [0.0, 2.0, 0.5]])
    direction = torch.nn.functional.normalize(torch.tensor([[1.0, 0, 0], [1.0, 1, 1], [1.0, 0, 0]]), dim=1)
    torch.testing.assert_close(crossing(centre, point, direction), torch.tensor([1.0, 3**0.5, 0.0]))


def test_refining_leaves_a_line_without_hits_alone() -> None:
    point, direction = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    none = torch.zeros(0, dtype=torch.int64)
    moved = refined(point, direction, torch.ones(1), none, torch.zeros(0, 3), torch.zeros(0), torch.zeros(0))
    torch.testing.assert_close(moved[0], point)
    torch.testing.assert_close(moved[1], direction)


def test_empty_voxels_beside_a_track_tell_where_it_passes() -> None:
    away: dict[str, list[float]] = {"hits": [], "empty ones too": []}
    random = np.random.default_rng(3)
    gaps = Gaps(SLAB)
    for _ in range(40):
        y, z, slope, tilt = random.uniform(-40, 40, 4) * (1, 1, 2, 2)
        start, end = (torch.tensor([side * 180.0, y + side * slope, z + side * tilt]) for side in (-1, 1))
        hits, _ = tracks((tuple(start.tolist()), tuple(end.tolist())))
        # Energies fluctuate, and only hits near the gap are taken.
        noisy = hits.feats * torch.from_numpy(random.gamma(3.0, 1 / 3.0, hits.feats.shape)).float()
        hits = hits.with_feats(noisy).select((noisy[:, 0] > 0.1) & ((hits.coords[:, 0] - 54.5).abs() < 17))
        row = torch.arange(len(hits.coords))
        of, place, energy = with_empty(torch.zeros_like(row), row, hits, gaps)
        assert bool((energy[: len(row)] == hits.signal).all())
        assert not energy[len(row) :].any()
        assert (gaps.of(place.long().numpy()) == -1).all()
        assert len(torch.unique(place, dim=0)) == len(place)
        true = torch.nn.functional.normalize(end - start, dim=0)
        where = ((start + end) / 2 - torch.tensor(SLAB.origin)) / SLAB.pitch
        point, loss = where[None] + torch.tensor([0.0, 0.1, -0.1]), torch.full((1,), PER_VOXEL)
        for name, n in (("hits", len(row)), ("empty ones too", len(of))):
            fitted, _ = refined(point, true[None], loss, of[:n], place[:n], energy[:n], torch.zeros(n))
            away[name].append(float(torch.linalg.cross(fitted[0] - where, true).norm()))
    assert np.median(away["empty ones too"]) < 0.85 * np.median(away["hits"])


def test_a_line_follows_the_near_hits_of_a_bent_track() -> None:
    # It comes at a slope of a tenth and leaves straight ahead, 5 voxels before the face.
    hits, _ = tracks(((-80.0, 4.7, 1.2), (-38.0, 0.5, 1.2)), ((-38.0, 0.5, 1.2), (-19.1, 0.5, 1.2)))
    row = torch.arange(len(hits.coords))
    of, place, energy = with_empty(torch.zeros_like(row), row, hits, Gaps(SLAB))
    face = (torch.tensor([[-19.0, 0.5, 1.2]]) - torch.tensor(SLAB.origin)) / SLAB.pitch
    ahead, loss = torch.tensor([[1.0, 0.0, 0.0]]), torch.full((1,), PER_VOXEL)
    turned = [
        refined(face, ahead, loss, of, place, energy, lever)[1][0, 1].abs()
        for lever in (torch.zeros(len(of)), 5 * (place - face).norm(dim=1))
    ]
    assert float(turned[1]) < 0.5 * float(turned[0])


def test_what_a_track_loses_behind_its_end() -> None:
    gaps = Gaps(SLAB)
    hits, _ = tracks(((-180.0, 2.0, 2.0), (-19.1, 2.0, 2.0)), ((-40.0, 62.0, 2.0), (-19.1, 62.0, 2.0)))
    stopping = hits.coords[:, 0] >= 47
    hits = hits.with_feats(torch.where(stopping[:, None], 3 * hits.feats, hits.feats))
    ends = find_ends(hits, gaps)
    lines = find_lines(ends, hits, gaps)
    long, short = sorted(loss_behind(hits, lines).tolist(), key=sum, reverse=True)
    assert long[:3] == pytest.approx([3 * PER_VOXEL, PER_VOXEL, PER_VOXEL], rel=0.05)
    assert short[0] > 2 * PER_VOXEL
    assert short[2:] == [0, 0]


def test_the_candidates_hold_the_track_and_are_dead() -> None:
    hits, missing = tracks(SLANTED, ((-180.0, 50.0, 60.0), (180.0, 40.0, -60.0)))
    gaps = Gaps(SLAB)
    _, _, problem = pose(hits, gaps)
    assert (gaps.of(problem.coords.numpy()) == 0).all()
    assert problem.voxels.feats.shape[1] == FEATURES
    assert torch.isfinite(problem.voxels.feats).all()
    hit, energy = answers(problem, missing)
    assert int(hit.sum()) == len(missing.coords)
    assert float(energy.sum()) == pytest.approx(float(missing.signal.sum()))
    made = Voxels.make(
        problem.voxels.coords.long(), torch.ones(len(problem.voxels.coords)), problem.voxels.event, 1, SLAB.shape
    )
    assert torch.equal(made.coords, problem.voxels.coords)  # sorted, and no voxel twice


def test_two_crossing_tracks_are_joined_with_their_own_ends() -> None:
    gaps = Gaps(SLAB)
    hits, _ = tracks(((-180.0, -60.0, 0.0), (180.0, 60.0, 0.0)), ((-180.0, 60.0, 0.0), (180.0, -60.0, 0.0)))
    _, lines, _ = pose(hits, gaps)
    slope = (lines.direction[:, 1] / lines.direction[:, 0])[lines.linked]
    # They meet in the middle of the gap, so whatever else is joined there would not slope by a third.
    assert sorted(slope.tolist()) == pytest.approx([-1 / 3, 1 / 3], abs=0.03)


def test_tracks_whose_hits_at_a_face_hang_together_have_an_end_each() -> None:
    # Two tracks five voxels apart at the near face, with a bridge of hits between them along it.
    both = ((-180.0, -19.0, 2.0), (180.0, 1.0, 2.0)), ((-180.0, 18.0, 2.0), (180.0, -2.0, 2.0))
    hits, _ = tracks(*both, ((-20.9, -10.0, 2.0), (-20.9, 9.0, 2.0)))
    _, lines, _ = pose(hits, Gaps(SLAB))
    slope = (lines.direction[:, 1] / lines.direction[:, 0])[lines.linked]
    assert sorted(slope.tolist()) == pytest.approx([-1 / 18, 1 / 18], abs=0.03)


def test_a_ray_along_the_face_goes_on_into_the_gap() -> None:
    # It runs along the gap, 5 degrees from the face, for 40 voxels of hits and 100 of gap; 20 of these are left.
    hits, missing = tracks(((-33.0, -90.0, 5.0), (3.0, 90.0, 5.0)))
    gaps = Gaps(SLAB)
    _, lines, problem = pose(hits, gaps)
    assert lines.linked.tolist() == [False]
    assert float(lines.length[0]) > 20
    hit, _ = answers(problem, missing)
    assert int(hit.sum()) > 0.8 * len(missing.coords)


def test_a_delta_ray_at_a_face_does_not_keep_a_track_from_being_joined() -> None:
    straight = ((-180.0, -60.0, 2.0), (180.0, 60.0, 2.0))
    for side in (-19.0, 19.0):
        y = side / 3
        hits, _ = tracks(straight, ((side * 1.2, y, 2.0), (side * 2.5, y + 50.0, 2.0)))
        _, lines, _ = pose(hits, Gaps(SLAB))
        slope = (lines.direction[:, 1] / lines.direction[:, 0])[lines.linked]
        assert slope.tolist() == pytest.approx([1 / 3], abs=0.03)


def test_a_bend_passes_through_both_ends_along_their_directions() -> None:
    hits, _ = tracks(SLANTED)
    ends = find_ends(hits, Gaps(SLAB))
    lines = find_lines(ends, hits, Gaps(SLAB))
    curve = bend(lines, ends.position, ends.direction)
    place, tangent = curve.at(torch.tensor([0, 0]), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(place[0], ends.position[lines.first[0]])
    torch.testing.assert_close(place[1], ends.position[lines.second[0]])
    assert float((tangent[0] * ends.direction[lines.first[0]]).sum()) > 0.999


def test_the_straight_line_and_the_reflection_fill_a_straight_track() -> None:
    hits, missing = tracks(SLANTED)
    gaps = Gaps(SLAB)
    ends, lines, _ = pose(hits, gaps)
    true = set(map(tuple, missing.coords.tolist()))
    line = baselines.straight_lines(ends, lines, hits, gaps, lone=False)
    found = set(map(tuple, line.coords.tolist()))
    assert len(found & true) >= 0.8 * len(true)
    assert float(line.energy.sum()) == pytest.approx(float(missing.signal.sum()), rel=0.1)
    mirrored = baselines.reflection(ends, lines, hits, gaps)
    near = (mirrored.coords[:, None] - missing.coords.long()[None]).abs().amax(2).amin(1) <= 1
    assert float(near.float().mean()) > 0.9
    assert len(baselines.nothing().event) == 0


def test_gradients_of_the_charge_along_a_line() -> None:
    expected = torch.tensor([0.5, 0.2, 0.4, 0.9], dtype=torch.float64, requires_grad=True)
    energy = torch.tensor([0.0, 0.7, 0.8, 0.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda e: line_charge(e, energy, torch.tensor([3, 3, 7, 7])), (expected,))
    assert float(line_charge(energy, energy, torch.tensor([3, 3, 7, 7]))) == 0


def test_all_losses_reach_the_network() -> None:
    torch.manual_seed(0)
    model = Filler(FillerConfig(channels=(8, 8), blocks=1))
    hits, missing = tracks(SLANTED)
    _, _, problem = pose(hits, Gaps(SLAB))
    losses = filler_loss(model(problem), problem, *answers(problem, missing))
    assert set(losses) == {"occupancy", "energy", "charge"}
    for value in losses.values():
        model.zero_grad()
        value.backward(retain_graph=True)
        assert float(model.head.weight.grad.abs().sum()) > 0


def test_the_shipped_network_fills_a_muon(chain: InfillChain) -> None:
    hits, missing = tracks(SLANTED)
    filled = chain(records(hits))[0]
    found = SLAB.index(np.stack([filled[f"fill_{axis}"].to_numpy() for axis in "xyz"], 1))
    true = set(map(tuple, missing.coords.tolist()))
    right = true & set(map(tuple, found.tolist()))
    assert 2 * len(right) / (len(true) + len(found)) > 0.85
    assert float(ak.sum(filled.fill_e)) == pytest.approx(float(missing.signal.sum()), rel=0.15)
    assert ak.all(filled.fill_e_err > 0)
    assert filled.gap_e.tolist() == pytest.approx([float(missing.signal.sum())], rel=0.15)
    assert filled.gap_id.tolist() == [0]
    assert filled.gap_joined.tolist() == [1]
    assert filled.gap_alone.tolist() == [0]
    assert filled.gap_wide.tolist() == [0]


def test_events_do_not_depend_on_their_neighbours(chain: InfillChain) -> None:
    one, other = (records(tracks(t)[0]) for t in (SLANTED, ((-180.0, 0.0, 0.0), (180.0, 3.0, 5.0))))
    both = chain(ak.concatenate([one, other, one[:0], one]))
    alone = chain(one)[0].tolist()
    for found in (both[0], both[2]):
        assert found.fill_prob.tolist() == pytest.approx(alone["fill_prob"], abs=1e-5)
        assert found.fill_x.tolist() == alone["fill_x"]


def test_the_energy_of_a_gap_does_not_depend_on_what_is_left_out(chain: InfillChain) -> None:
    event = records(tracks(SLANTED)[0])
    everything = InfillChain(SLAB, InfillConfig(min_prob=0.0, min_peak=0.0))(event)[0]
    expected = float(ak.sum(everything.fill_prob * everything.fill_e))
    assert chain(event)[0].gap_e.tolist() == pytest.approx([expected], rel=1e-4)


def test_a_gap_that_nothing_crosses_is_left_alone(chain: InfillChain) -> None:
    along = ((-180.0, -80.0, 0.0), (-40.0, 80.0, 0.0))  # does not reach the gap at x = -19
    filled = chain(records(tracks(along)[0]))[0]
    assert filled.fill_x.tolist() == []
    assert filled.gap_id.tolist() == []


def test_one_hit_beside_a_gap_is_looked_at_and_left_alone(chain: InfillChain) -> None:
    event = ak.zip({"hit_x": [[-20.9]], "hit_y": [[1.9]], "hit_z": [[1.9]], "hit_e": [[0.15]]}, depth_limit=1)
    filled = chain(event)[0]
    assert filled.gap_id.tolist() == [0]
    assert filled.gap_alone.tolist() == [int(len(filled.fill_x) == 0)]
    assert len(filled.fill_x) <= 3


def test_no_events_and_events_without_hits(chain: InfillChain) -> None:
    none = ak.zip({name: ak.Array([[]]) for name in ("hit_x", "hit_y", "hit_z", "hit_e")}, depth_limit=1)
    assert chain(none).fill_e.tolist() == [[]]
    assert len(chain(none[:0])) == 0


def test_dead_channels_are_filled(tmp_path: Path) -> None:
    file = tmp_path / "dead.csv"
    rows = [f"0,{y},{z}" for y in (-2.0, 1.8, 5.6) for z in np.arange(-13.3, 14, 3.8)]  # a strip of three pixels in y
    file.write_text("box,u,v\n" + "\n".join(rows) + "\n")
    detector = LArDetector((190, 190, 190), ((0, 0, 0),), channels=Channels(str(file), "x", 3.8))
    gaps = Gaps(detector)
    assert gaps.n_regions == 0
    assert gaps.n == len(rows)
    hits, missing = tracks(((-30.0, -80.0, 3.0), (40.0, 80.0, -6.0)), detector=detector)
    assert len(missing.coords) >= 3
    filled = InfillChain(detector)(records(hits, detector))[0]
    found = detector.index(np.stack([filled[f"fill_{axis}"].to_numpy() for axis in "xyz"], 1))
    true = set(map(tuple, missing.coords.tolist()))
    assert len(true & set(map(tuple, found.tolist()))) >= 0.7 * len(true)
    assert set(filled.fill_gap.tolist()) <= set(filled.gap_id.tolist())


def test_one_voxel_is_filled_where_several_share_what_is_expected() -> None:
    hits, _ = tracks(SLANTED)
    gaps = Gaps(SLAB)
    _, _, problem = pose(hits, gaps)
    settings = InfillConfig(min_prob=0.5, min_expected=1.0, min_peak=0.6)
    coords = problem.coords.long()
    middle = coords[coords[:, 0] == 55].float().mean(0).round().long()
    probability = torch.zeros(len(coords))
    probability[(coords[:, 0] == 50).nonzero()[0]] = 0.9
    probability[(coords - middle).abs().amax(1) <= 1] = 0.1  # 27 of them
    chosen = choose(problem, probability, gaps.n, settings)
    assert coords[chosen][:, 0].tolist().count(50) == 1
    assert (coords[chosen] == middle).all(1).tolist().count(True) == 1
    assert int(chosen.sum()) == 2
    # A filled voxel beside them makes it needless; as does a gap without a likely one.
    probability[(coords == middle).all(1)] = 0.7
    assert (choose(problem, probability, gaps.n, settings) == (probability >= 0.5)).all()
    probability[probability > 0.5] = 0.3
    assert not choose(problem, probability, gaps.n, settings).any()


def test_a_gap_without_a_likely_voxel_is_left_alone() -> None:
    event = records(tracks(SLANTED)[0])
    filled = InfillChain(SLAB, InfillConfig(min_prob=0.0, min_peak=1.0))(event)[0]
    assert filled.fill_x.tolist() == []
    assert filled.gap_alone.tolist() == [1]
    everything = InfillChain(SLAB, InfillConfig(min_prob=0.0, min_peak=0.0))(event)[0]
    assert len(everything.fill_x) > 100


def test_a_gap_wider_than_trained_is_filled_and_flagged() -> None:
    wide = LArDetector(size=(190, 190, 190), centres=((-133, 0, 0), (133, 0, 0)))  # 20 voxels
    chain = InfillChain(wide)
    filled = chain(records(tracks(((-200.0, -60.0, 11.0), (200.0, 70.0, -30.0)), detector=wide)[0], wide))[0]
    assert len(filled.fill_x) > 10
    assert filled.gap_wide.tolist() == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hit_x": [[0.0]]}, "hit_x has 0, expected live argon: the hit lies in gap 0"),
        ({"hit_y": [[500.0]]}, r"hit_y has 500, expected a position in \[-95, 95\) mm"),
        ({"hit_e": [[-0.5]]}, "hit_e has -0.5, expected a finite energy of at least 0 MeV"),
        ({"hit_e": [[float("nan")]]}, "hit_e has nan"),
        ({"hit_e": [[0.5, 0.5]]}, "expected as many values as 'hit_e'"),
    ],
)
def test_bad_events_are_named(chain: InfillChain, change: dict, message: str) -> None:
    event = {"hit_x": [[-100.0]], "hit_y": [[0.0]], "hit_z": [[0.0]], "hit_e": [[0.8]]} | change
    with pytest.raises(VoxelError, match=message):
        chain(ak.zip({name: ak.Array(values) for name, values in event.items()}, depth_limit=1))


@pytest.mark.parametrize("values", [{"min_prob": 1.5}, {"min_expected": 0}, {"min_peak": -1}, {"batch_size": 0}])
def test_settings_out_of_range(values: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        InfillConfig(**values)


def test_response_is_checked() -> None:
    with pytest.raises(ValueError, match=r"response\.noise must not be negative"):
        ChargeResponse(noise=-1)


def test_make_problem_of_nothing() -> None:
    gaps = Gaps(SLAB)
    hits = Voxels.make(torch.zeros(0, 3).long(), torch.zeros(0), torch.zeros(0).long(), 2, SLAB.shape)
    ends = find_ends(hits, gaps)
    lines = find_lines(ends, hits, gaps)
    problem = make_problem(hits, gaps, lines, bend(lines, ends.position, ends.direction), ends.hits)
    assert len(problem.candidate) == 0
    assert len(problem.voxels) == 2
