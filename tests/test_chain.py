"""`VertexChain` on full-detector events: with the shipped weights, and with random ones that find anything."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import torch
from conftest import some_hits
from synthetic import hit_events, truth_events

from sparsereco import checkpoint
from sparsereco.checkpoint import CheckpointError
from sparsereco.schema import RECO
from sparsereco.vertex.chain import MIN_SHARE, VertexChain
from sparsereco.vertex.config import DecomposerSettings, FinderSettings, RefinementSettings, TrackSettings, VertexConfig
from sparsereco.vertex.crop import HALF, MAX_VOXELS
from sparsereco.vertex.decomposer import Decomposer, DecomposerConfig
from sparsereco.vertex.finder import Finder, FinderConfig, decode
from sparsereco.voxels import VoxelError

CONFIG = VertexConfig(finder=FinderSettings(separation=60.0, max_vertices=3))
COUNTERS = {name: group[0].name for name, group in RECO.groups.items()}


@pytest.fixture(scope="module")
def random_config(tmp_path_factory: pytest.TempPathFactory) -> VertexConfig:
    """Untrained networks whose odds are moved so that they answer with several vertices and hadrons."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(6)
    finder = Finder(FinderConfig(channels=(16, 8, 8)))
    decomposer = Decomposer(DecomposerConfig(width=24, heads=2, encoder_blocks=(1, 1), decoder_blocks=1, context=16))
    with torch.no_grad():
        finder.head.weight[:1].mul_(3)
        decomposer.step_head[-1].weight.mul_(4)
        decomposer.number_head[-1].bias[-1] = 9.0
        decomposer.place.mul_(30)
    checkpoint.save(folder / "finder.safetensors", finder)
    checkpoint.save(folder / "decomposer.safetensors", decomposer)
    paths = {f"{name}_weights": str(folder / f"{name}.safetensors") for name in ("finder", "decomposer")}
    return replace(CONFIG, **paths)


@pytest.fixture(scope="module", params=["random", "shipped"])
def chain(request: pytest.FixtureRequest, random_config: VertexConfig) -> VertexChain:
    if request.param == "random":
        return VertexChain(random_config)
    return VertexChain(CONFIG)


@pytest.fixture(scope="module")
def events() -> ak.Array:
    """Made-up interactions, two interactions in one event, scattered hits, one hit, no hit."""
    single = hit_events(truth_events(12, seed=3))
    first, second = hit_events(truth_events(2, seed=4))
    both = {name: ak.concatenate([first[name], second[name]])[None] for name in ("hit_x", "hit_y", "hit_z", "hit_pe")}
    double = ak.zip({name: single[name][:1] for name in ("run", "subrun", "event")} | both, depth_limit=1)
    return ak.concatenate([single, double, some_hits(6)])


@pytest.fixture(scope="module")
def reco(chain: VertexChain, events: ak.Array) -> ak.Array:
    return chain(events)


def close(first: ak.Array, second: ak.Array, atol: float = 1e-3, rtol: float = 1e-4) -> None:
    """The same numbers of everything, equal integers, floats up to rounding."""
    for branch in RECO.branches:
        a, b = first[branch.name], second[branch.name]
        if branch.name in RECO.counters:
            assert ak.num(a).tolist() == ak.num(b).tolist(), branch.name
            a, b = ak.flatten(a), ak.flatten(b)
        np.testing.assert_allclose(a.to_numpy(), b.to_numpy(), rtol=rtol, atol=atol, err_msg=branch.name)


def particles(event: ak.Record, prefix: str = "part") -> Iterator[tuple[int, np.ndarray]]:
    """The vertices of an event and which of its particles (or tracks) belong to each."""
    owner = event[f"{prefix}_vtx"].to_numpy()
    for vertex in range(len(event.vtx_x)):
        yield vertex, np.flatnonzero(owner == vertex)


def test_one_record_per_event_with_the_types_of_the_schema(reco: ak.Array, events: ak.Array) -> None:
    assert ak.fields(reco) == [branch.name for branch in RECO.branches]
    for branch in RECO.branches:
        jagged = "var * " if branch.name in RECO.counters else ""
        assert str(ak.type(reco[branch.name])) == f"{len(events)} * {jagged}{branch.dtype}"
    for name in ("run", "subrun", "event"):
        assert reco[name].tolist() == events[name].tolist()
    for counter, group in RECO.groups.items():
        lengths = [ak.num(reco[branch.name]).tolist() for branch in group]
        assert lengths.count(lengths[0]) == len(lengths), counter


def test_the_sample_holds_all_sorts_of_answers(chain: VertexChain, reco: ak.Array) -> None:
    """So that the tests below say something."""
    assert ak.max(ak.num(reco["vtx_x"])) >= 2
    assert ak.count(reco["part_ke"]) > 10
    assert ak.count(reco["trk_x"]) > 10
    assert ak.count(reco["img_pe"]) > 100


def test_vertices_and_particles_are_sound(reco: ak.Array) -> None:
    flat = {
        branch.name: ak.flatten(reco[branch.name]).to_numpy()
        for branch in RECO.branches
        if branch.name in RECO.counters
    }
    for name in ("vtx_sx", "vtx_sy", "vtx_sz", "vtx_ke_err", "part_ke_err", "part_dir_err"):
        assert (flat[name] > 0).all(), name
        assert np.isfinite(flat[name]).all(), name
    for name in ("vtx_score", "part_score"):
        assert ((flat[name] >= 0) & (flat[name] <= 1)).all(), name
    for prefix in ("part_d", "trk_d"):
        length = np.sqrt(sum(flat[f"{prefix}{axis}"].astype(float) ** 2 for axis in "xyz"))
        np.testing.assert_allclose(length, 1, atol=1e-5)
    assert set(flat["part_pdg"].tolist()) <= {2212, 1000010020, 1000010030}
    assert (flat["part_ke"] >= 0).all()
    assert (flat["vtx_ke"] >= 0).all()
    assert ((flat["trk_ke"] == -1) | (flat["trk_ke"] > 0)).all()
    assert np.isnan(flat["vtx_deviance"]).all()
    assert (flat["vtx_ndf"] == 0).all()
    for event in reco:
        n = len(event.vtx_x)
        assert sorted(event.vtx_score.tolist(), reverse=True) == event.vtx_score.tolist()
        for prefix in ("part", "trk"):
            owner = event[f"{prefix}_vtx"].tolist()
            assert owner == sorted(owner)
            assert all(0 <= vertex < n for vertex in owner)
        for _, own in particles(event):
            ke = event.part_ke.to_numpy()[own]
            assert (np.diff(ke) <= 0).all()


def test_tracks_leave_at_the_face_of_a_crop(chain: VertexChain, reco: ak.Array) -> None:
    """7 voxels wide, its centre on that of a voxel, the vertex in its middle."""
    detector, half = chain.config.detector, (HALF + 0.5) * chain.config.detector.pitch
    for event in reco:
        for _, own in particles(event, "trk"):
            points = np.stack([event[f"trk_{axis}"].to_numpy()[own] for axis in "xyz"], 1)
            walls = (points - np.array(detector.origin)) / detector.pitch
            assert np.isclose(walls, np.round(walls), atol=1e-3).any(1).all()
            assert len(points) == 0 or (np.ptp(points, axis=0) <= 2 * half + 0.01).all()


def test_images_share_out_the_light_of_the_hits(reco: ak.Array, events: ak.Array) -> None:
    """Where a track leaves the crop, all of it; nowhere more than there is."""
    for event, hits in zip(reco, events, strict=True):
        light = {}
        for *place, pe in zip(*(hits[f"hit_{name}"].tolist() for name in ("x", "y", "z", "pe")), strict=True):
            light[tuple(place)] = light.get(tuple(place), 0.0) + pe
        parts, vertex_of = event.img_part.tolist(), event.part_vtx.tolist()
        track_of = event.trk_vtx.tolist()
        images: dict[tuple, float] = {}
        for part, *place, pe in zip(
            parts, *(event[f"img_{name}"].tolist() for name in ("x", "y", "z", "pe")), strict=True
        ):
            assert -len(track_of) <= part < len(vertex_of)
            vertex = vertex_of[part] if part >= 0 else track_of[-1 - part]
            images[(vertex, *place)] = images.get((vertex, *place), 0.0) + pe
            assert pe > 0
        voxels_of = {vertex: [key for key in images if key[0] == vertex] for vertex in range(len(event.vtx_x))}
        for vertex, keys in voxels_of.items():
            assert len(keys) <= MAX_VOXELS
            for key in keys:
                assert key[1:] in light, "an image lies on hits"
                least = 1 - 7 * MIN_SHARE if vertex in track_of else 0.0
                assert least * light[key[1:]] - 1e-3 <= images[key] <= light[key[1:]] * 1.0001 + 1e-3


def test_a_leaving_track_has_an_image_only_where_it_leads_its_crop(reco: ak.Array) -> None:
    for event in reco:
        track_of = event.trk_vtx.tolist()
        first = {vertex: track_of.index(vertex) for vertex in set(track_of)}
        seen = {-1 - part for part in event.img_part.tolist() if part < 0}
        assert seen <= set(first.values())


def test_no_hits_and_one_hit(chain: VertexChain) -> None:
    found = chain(some_hits(2))
    assert len(found) == 2
    assert all(len(found[0][name]) == 0 for name in COUNTERS.values())
    nothing = chain(some_hits(1))
    assert ak.num(nothing["vtx_x"]).tolist() == [0]
    assert str(ak.type(nothing["part_pdg"])) == "1 * var * int32"
    none = chain(some_hits(3)[:0])
    assert len(none) == 0
    assert ak.fields(none) == ak.fields(found)


@pytest.mark.parametrize("place", [(0, 0, 0), (191, 55, 183), (0, 55, 100), (100, 48, 0)])
def test_one_bright_hit_in_a_corner(chain: VertexChain, place: tuple[int, int, int]) -> None:
    centre = chain.config.detector.centre(np.array([place]))[0]
    fields = {f"hit_{axis}": ak.Array([[value]]) for axis, value in zip("xyz", centre, strict=True)}
    found = chain(ak.zip(fields | {"hit_pe": ak.Array([[500.0]])}, depth_limit=1))
    assert len(found) == 1
    assert found["event"].tolist() == [0]


def test_the_order_of_events_and_the_batch_do_not_matter(chain: VertexChain, events: ak.Array, reco: ak.Array) -> None:
    order = np.random.default_rng(0).permutation(len(events))
    close(chain(events[order]), reco[order])
    for batch_size in (1, 4):
        small = VertexChain(replace(chain.config, batch_size=batch_size))
        close(small(events), reco)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same(events: ak.Array) -> None:
    """To a thousandth, or a hundredth of the unit: sums are made in another order there."""
    close(VertexChain(CONFIG, device="cuda")(events), VertexChain(CONFIG)(events), atol=1e-2, rtol=1e-3)


def test_the_order_of_hits_does_not_matter(chain: VertexChain, events: ak.Array, reco: ak.Array) -> None:
    turned = {name: events[name][:, ::-1] for name in ("hit_x", "hit_y", "hit_z", "hit_pe")}
    close(chain(ak.zip({name: events[name] for name in ("run", "subrun", "event")} | turned, depth_limit=1)), reco)


def test_two_interactions_in_one_event(chain: VertexChain, events: ak.Array, reco: ak.Array) -> None:
    """Both are treated as if alone, where the finder finds both."""
    double = reco[12]
    assert len(double.vtx_x) >= 2
    assert set(double.trk_vtx.tolist()) <= set(range(len(double.vtx_x)))


def test_the_light_scale_undoes_another_light_yield(chain: VertexChain, events: ak.Array, reco: ak.Array) -> None:
    brighter = ak.with_field(events, events["hit_pe"] * 2, "hit_pe")
    scaled = VertexChain(replace(chain.config, light_scale=2.0))
    found = scaled(brighter)
    close(ak.with_field(found, found["img_pe"] / 2, "img_pe"), reco)


def test_the_light_yield_is_that_of_the_leaving_tracks(chain: VertexChain) -> None:
    """It follows the signals, and comes out the same for a chain that corrects for it."""
    events = hit_events(truth_events(30, seed=5), light_per_mm=16.0)
    light = chain.measure_light(events)
    assert light.tracks >= 20
    assert light.scale == pytest.approx(160 / chain.decomposer.track_light.item(), rel=0.15)
    brighter = ak.with_field(events, events["hit_pe"] * 1.25, "hit_pe")
    corrected = VertexChain(replace(chain.config, light_scale=1.25)).measure_light(brighter)
    assert corrected.scale == pytest.approx(1.25 * light.scale, rel=1e-3)
    assert chain.measure_light(events[:0]).tracks == 0
    with pytest.raises(VoxelError, match="hit_pe has nan"):
        chain.measure_light(ak.with_field(events, events["hit_pe"] * np.nan, "hit_pe"))


def test_the_limits_of_the_settings_hold(random_config: VertexConfig, events: ak.Array) -> None:
    tight = replace(
        random_config,
        finder=FinderSettings(max_vertices=1),
        tracks=TrackSettings(max_tracks=1),
        decomposer=DecomposerSettings(max_hadrons=2),
    )
    found = VertexChain(tight)(events)
    assert ak.max(ak.num(found["vtx_x"])) == 1
    assert ak.max(ak.num(found["trk_x"])) == 1
    assert ak.max(ak.num(found["part_ke"])) == 2
    deaf = VertexChain(replace(random_config, finder=FinderSettings(score_threshold=1.0)))
    assert ak.count(deaf(events)["vtx_x"]) == 0


def test_the_shipped_finder_finds_the_vertex(random_config: VertexConfig) -> None:
    """On events that it was not trained on: all light of the hadrons in one voxel, a straight muon."""
    chain, truth = VertexChain(replace(random_config, finder_weights=None)), truth_events(40, seed=9)
    with torch.inference_mode():
        visible, _ = chain.finder.visible(chain._voxels(hit_events(truth)))
        vertices = decode(*chain.finder(visible)[:2], visible, 0.1, 0.1, 4.0, 1)
    position = vertices.position.numpy() * 10 + np.array(chain.config.detector.origin)
    true = np.stack([truth[f"vtx_{axis}"].to_numpy() for axis in "xyz"], 1)[vertices.event.numpy()]
    assert (np.linalg.norm(position - true, axis=1) < 20).sum() >= 36


BAD = [
    ("hit_pe", math.nan, "hit_pe has nan"),
    ("hit_pe", math.inf, "hit_pe has inf"),
    ("hit_pe", -1.0, "hit_pe has -1"),
    ("hit_x", math.nan, "hit_x has nan"),
    ("hit_y", 280.0, r"hit_y has 280, expected a position in \[-280, 280\)"),
    ("hit_z", -2000.0, "hit_z has -2000"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_bad_hits_are_refused_with_their_event(
    random_config: VertexConfig, name: str, value: float, message: str
) -> None:
    """Its place in the array that was given, whatever the size of a batch."""
    events = some_hits(9)
    row = ak.num(events["hit_x"]).tolist()
    target = next(k for k in range(4, 9) if row[k])
    lists = events[name].tolist()
    lists[target][-1] = value
    chain = VertexChain(replace(random_config, batch_size=2))
    with pytest.raises(VoxelError, match=f"event {target}: {message}"):
        chain(ak.with_field(events, ak.Array(lists), name))


def test_lists_of_unequal_length_are_refused(random_config: VertexConfig) -> None:
    events = some_hits(9)
    with pytest.raises(VoxelError, match=r"event 1: .* expected as many values as 'hit_pe'"):
        VertexChain(random_config)(ak.with_field(events, events["hit_pe"][:, 1:], "hit_pe"))


@pytest.mark.parametrize("wrong", ["finder", "decomposer"])
def test_weights_of_the_other_stage_are_refused(random_config: VertexConfig, wrong: str) -> None:
    other = {"finder": random_config.decomposer_weights, "decomposer": random_config.finder_weights}[wrong]
    with pytest.raises(CheckpointError, match=f"expected those of {wrong.capitalize()}"):
        VertexChain(replace(random_config, **{f"{wrong}_weights": other}))
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors does not exist"):
        VertexChain(replace(random_config, **{f"{wrong}_weights": "nowhere.safetensors"}))


def test_the_provenance_names_the_weights(random_config: VertexConfig) -> None:
    record = VertexChain(random_config).provenance()
    for name in ("finder", "decomposer"):
        path = Path(getattr(random_config, f"{name}_weights"))
        assert record["weights"][name] == {"file": path.name, "sha256": checkpoint.sha256(path)}
    assert record["config"]["finder"]["separation"] == 60


@pytest.fixture(scope="module")
def refined(chain: VertexChain, events: ak.Array) -> ak.Array:
    fitting = VertexChain(replace(chain.config, refine=True, refinement=RefinementSettings(starts=2, steps=4)))
    return fitting(events)


def test_refined_events_have_the_same_vertices_and_particles(
    chain: VertexChain, events: ak.Array, reco: ak.Array, refined: ak.Array
) -> None:
    """The fit moves them; it adds none and drops none."""
    for name in ("vtx_score", "trk_vtx", "trk_x", "trk_ke", "part_vtx"):
        assert refined[name].tolist() == reco[name].tolist(), name
    for event, before in zip(refined, reco, strict=True):
        for (_, own), (_, own_before) in zip(particles(event), particles(before), strict=True):
            assert sorted(event.part_pdg.to_numpy()[own]) == sorted(before.part_pdg.to_numpy()[own_before])
            assert (np.diff(event.part_ke.to_numpy()[own]) <= 0).all()
    deviance, ndf = (ak.flatten(refined[name]).to_numpy() for name in ("vtx_deviance", "vtx_ndf"))
    assert (np.isnan(deviance) == (ndf == 0)).all()
    assert (ndf > 0).sum() > 8
    assert (deviance[ndf > 0] >= 0).all()
    moved = np.abs(ak.flatten(refined["vtx_x"]).to_numpy() - ak.flatten(reco["vtx_x"]).to_numpy())
    assert moved.max() > 0.01, "little where the weights are random, which are sure of no number"


def test_fits_may_change_the_number_of_hadrons_by_one(chain: VertexChain, events: ak.Array, reco: ak.Array) -> None:
    settings = RefinementSettings(starts=1, steps=4, number=True)
    fitting = VertexChain(replace(chain.config, refine=True, refinement=settings))
    found = fitting(events)
    pairs = [zip(particles(own), particles(before), strict=True) for own, before in zip(found, reco, strict=True)]
    change = np.array([len(own) - len(before) for event in pairs for (_, own), (_, before) in event])
    assert set(change) <= {-1, 0, 1}
    assert ((change == 1).sum(), (change == -1).sum()) == (fitting.fits["more"], fitting.fits["fewer"])
    for event in found:
        assert (np.diff(event.part_vtx.to_numpy()) >= 0).all()
        for _, own in particles(event):
            assert (np.diff(event.part_ke.to_numpy()[own]) <= 0).all()
        assert ((event.part_score > 0) & (event.part_score < 1.001)).to_numpy().all()
        assert (event.img_part < len(event.part_ke)).to_numpy().all()


def test_images_of_fits_are_the_light_that_they_expect(refined: ak.Array, events: ak.Array) -> None:
    """Measured and expected light agree in the vertices whose fit is good, but not in every voxel."""
    good, apart = np.zeros(2), 0.0
    for event, hits in zip(refined, events, strict=True):
        light: dict[tuple, float] = {}
        for *place, pe in zip(*(hits[f"hit_{name}"].tolist() for name in ("x", "y", "z", "pe")), strict=True):
            light[tuple(place)] = light.get(tuple(place), 0.0) + pe
        vertex_of = np.concatenate([event.part_vtx.to_numpy(), event.trk_vtx.to_numpy()[::-1]])  # -1 - t from the end
        images: dict[tuple, float] = {}
        for part, *place, pe in zip(
            *(event[f"img_{name}"].tolist() for name in ("part", "x", "y", "z", "pe")), strict=True
        ):
            assert tuple(place) in light, "an image lies on hits"
            assert pe > 0
            key = int(vertex_of[part]), *place
            images[key] = images.get(key, 0.0) + pe
        fine = (event.vtx_deviance < 3 * event.vtx_ndf).tolist()
        for (vertex, *place), pe in images.items():
            if fine[vertex]:
                good += light[tuple(place)], pe
                apart += abs(light[tuple(place)] - pe)
    if good[0] > 0:
        assert good[1] == pytest.approx(good[0], rel=0.15)
        assert 0 < apart / good[0] < 0.4


def test_refined_events_do_not_depend_on_their_batch(chain: VertexChain, events: ak.Array, refined: ak.Array) -> None:
    settings = RefinementSettings(starts=2, steps=4)
    small = VertexChain(replace(chain.config, refine=True, refinement=settings, batch_size=4))
    order = np.arange(len(events))[::-1]
    again = small(events[order])[order]
    for name, atol in (("vtx_x", 0.05), ("part_vtx", 0), ("trk_x", 1e-3)):
        first, second = (ak.flatten(found[name]).to_numpy() for found in (again, refined))
        np.testing.assert_allclose(first, second, atol=atol)
    nothing = small(some_hits(1))
    assert ak.num(nothing["vtx_deviance"]).tolist() == [0]


def test_the_refinement_wants_a_generator(random_config: VertexConfig) -> None:
    wrong = replace(random_config, refine=True, generator_weights=random_config.finder_weights)
    with pytest.raises(CheckpointError, match="expected those of Generator"):
        VertexChain(wrong)
    assert VertexChain(replace(wrong, refine=False)).refiner is None
    right = VertexChain(replace(random_config, refine=True))
    assert right.provenance()["weights"]["generator"]["file"] == "generator.safetensors"
