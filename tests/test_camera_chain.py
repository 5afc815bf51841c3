"""The camera chain on small frames: what is found, the invariants of its output, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import awkward as ak
import numpy as np
import pytest
import uproot
from camera_sample import CHAMBER, SENSOR, SHAPE, line, noise, pedestal, spots

pytest.importorskip("sklearn")

from scipy.stats import norm

from sparsereco.camera.chain import CameraChain
from sparsereco.camera.config import CameraConfig, ClusterConfig, DirectionalConfig, GaussianConfig, UnetConfig
from sparsereco.camera.redpix import cluster_rows, cluster_voxels
from sparsereco.checkpoint import CheckpointError
from sparsereco.errors import InputError
from sparsereco.frames import Frame, histogram
from sparsereco.io import RootWriter, read
from sparsereco.schema import FRAMES
from sparsereco.sim.camera import light_of

Kind = Literal["unet", "gaussian", "nsigma"]
SELECTORS: tuple[Kind, ...] = ("unet", "gaussian", "nsigma")
PLACES = [(100.0, 120.0), (250.0, 300.0), (120.0, 420.0)]  # y, x
MAPS = noise()
PEDESTAL = pedestal(MAPS)


def frame(lights: list, seed: int = 1, event: int = 0) -> Frame:
    return Frame(8, event, MAPS.expose(lights, np.random.default_rng(seed)), "run8.root", event)


def chain(selector: Kind, **settings: object) -> CameraChain:
    return CameraChain(PEDESTAL, CameraConfig(selector=selector, **settings))  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=SELECTORS)
def events(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ak.Array:
    """Three spots of 6 keV, then nothing, then two spots, through a file."""
    rng = np.random.default_rng(2)
    one = chain(request.param)
    frames = [
        frame(spots(PLACES, 6.0, rng), 1, 0),
        frame([], 2, 1),
        frame(spots(PLACES[:2], 6.0, rng), 3, 2),
    ]
    path = tmp_path_factory.mktemp("chain") / "reco.root"
    with RootWriter(path) as writer:
        for each in frames:
            writer.extend(FRAMES.tree, FRAMES, ak.Array([one(each)]))
    return read(path, FRAMES)


def test_tracks_are_found_where_they_are(events: ak.Array) -> None:
    assert events.event.tolist() == [0, 1, 2]
    for entry, expected in ((0, PLACES), (2, PLACES[:2])):
        bright = events[entry].sc_integral > 3000
        found = sorted(zip(events[entry].sc_ymean[bright], events[entry].sc_xmean[bright], strict=True))
        np.testing.assert_allclose(found, sorted(expected), atol=3)
    assert not ak.any(events[1].sc_integral > 1000)


def test_invariants_of_the_pixels(events: ak.Array) -> None:
    for event in events:
        rows = cluster_rows(event)
        assert event.sc_redpix_begin.tolist() == event.sc_redpixIdx.tolist()
        assert [len(r) for r in rows if r is not None] == event.sc_size.tolist()  # 1
        assert sum(event.sc_size) == len(event.redpix_ix)
        assert event.sc_integral.tolist() == sorted(event.sc_integral, reverse=True)
        for i, r in enumerate(rows):
            x, y, z = (np.asarray(event[f"redpix_i{axis}"])[r] for axis in "xyz")
            box = [event[f"sc_{name}"][i] for name in ("xmin", "xmax", "ymin", "ymax")]
            assert box == [x.min(), x.max(), y.min(), y.max()]  # 2
            _, counts = np.unique(y // 4 * 10000 + x // 4, return_counts=True)
            assert set(counts) == {16}  # 3
            assert event.sc_rms[i] == pytest.approx(z.std(), rel=1e-4)  # 4
            assert event.sc_xmean[i] == pytest.approx(np.average(x, weights=np.maximum(z, 0)), abs=0.01)  # 5
            assert event.sc_integral[i] == pytest.approx(z.sum(), rel=1e-4)  # 6, exact here
            assert event.sc_nhits[i] == np.asarray(event.redpix_hit)[r].sum()


def test_clusters_as_voxels(events: ak.Array) -> None:
    voxels = cluster_voxels(events[0], SHAPE)
    assert len(voxels) == len(events[0].sc_size)
    assert voxels.offsets.diff().tolist() == events[0].sc_size.tolist()
    np.testing.assert_allclose(voxels.signal[: voxels.offsets[1]].sum(), events[0].sc_integral[0], rtol=1e-4)


@pytest.mark.parametrize("selector", ["unet", "gaussian"])
def test_light_is_measured_without_bias(selector: Kind) -> None:
    rng = np.random.default_rng(3)
    one, true, seen = chain(selector), 0.0, 0.0
    for seed in range(6):
        lights = spots(PLACES, 1.0, rng, z=rng.uniform(0, 500))
        true += sum(light.counts.sum() for light in lights)
        seen += ak.sum(one(frame(lights, seed)).sc_integral)
    assert seen / true == pytest.approx(1, abs=0.05)


def test_light_that_the_threshold_adds_is_taken_off_the_energy() -> None:
    rng = np.random.default_rng(13)
    shot = frame(spots(PLACES, 0.3, rng))
    plain = chain("gaussian", gaussian=GaussianConfig(min_score=3.0))(shot)
    taken = plain.sc_integral - plain.sc_corrintegral
    expected = 3.6 * 2 * np.sqrt(np.pi) * 4.5 * 2 * norm.pdf(plain.sc_score - 3)
    np.testing.assert_allclose(taken, expected, rtol=0.05, atol=0.01)
    assert ak.max(taken) > 20
    np.testing.assert_allclose(plain.sc_energy, 0.001 * plain.sc_corrintegral, rtol=1e-5)
    classical = chain("nsigma")(shot)
    assert classical.sc_integral.tolist() == classical.sc_corrintegral.tolist()


def test_energy_and_vignetting(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    with RootWriter(tmp_path / "map.root") as writer:
        half = np.ones((48, 64))
        half[:, :32] = 0.5
        writer.put("normmap", histogram("normmap", half))
    shot = frame(spots(PLACES, 6.0, rng))
    plain = chain("gaussian")(shot)
    corrected = chain("gaussian", vignetting=str(tmp_path / "map.root"), kev_per_count=0.002)(shot)
    by_x = {round(float(x) / 50): i for i, x in enumerate(corrected.sc_xmean)}
    for i, x in enumerate(plain.sc_xmean):
        other = by_x[round(float(x) / 50)]
        factor = 2 if x < 240 else 1
        assert corrected.sc_integral[other] == pytest.approx(factor * plain.sc_integral[i], rel=1e-3)
        assert corrected.sc_energy[other] == pytest.approx(0.002 * corrected.sc_integral[other], rel=1e-5)


def test_a_gap_is_bridged_along_the_track() -> None:
    rng = np.random.default_rng(7)
    track = line((0, 0), 55.0, 60.0, lambda where: (where > 0.45) & (where < 0.62))
    light = light_of(track, np.array([200.0, 80.0]), 100.0, CHAMBER, SENSOR, rng)
    shot = frame([light])
    plain = chain("gaussian")(shot)
    grown = chain("gaussian", cluster=ClusterConfig(directional=DirectionalConfig(enabled=True)))(shot)
    assert (plain.sc_integral > 5000).tolist().count(True) == 2
    assert (grown.sc_integral > 5000).tolist().count(True) == 1
    assert grown.sc_polynomial[0] == 1
    assert grown.sc_length[0] > 300
    assert abs(grown.sc_theta[0]) < 0.05


def test_the_answer_does_not_depend_on_noise_level_or_offset() -> None:
    """Another camera: everything in other units."""
    rng = np.random.default_rng(8)
    shot = frame(spots(PLACES, 6.0, rng))
    scaled = dataclasses.replace(shot, image=shot.image.astype(np.float32) * 3 + 50)
    other = dataclasses.replace(PEDESTAL, mean=PEDESTAL.mean * 3 + 50, sigma=PEDESTAL.sigma * 3)
    assert (other.hot == PEDESTAL.hot).mean() > 0.9999
    a, b = chain("unet")(shot), CameraChain(other)(scaled)
    np.testing.assert_allclose(b.sc_integral, 3 * a.sc_integral, rtol=0.02)


def test_a_frame_of_another_camera_is_refused() -> None:
    small = Frame(1, 4, np.full((64, 64), 99), "other.root", 7)
    with pytest.raises(
        InputError, match=r"other.root: frame 7 \(run 1, event 4\) has 64 x 64 pixels, expected 384 x 512"
    ):
        chain("gaussian")(small)
    empty = chain("gaussian").empty(small)
    assert (empty.status, len(empty.sc_size), len(empty.redpix_ix)) == (1, 0, 0)


def test_weights_of_another_network_are_refused() -> None:
    weights = str(Path(__file__).parents[1] / "sparsereco" / "weights" / "finder.safetensors")
    with pytest.raises(CheckpointError, match="holds weights of Finder, expected those of Selector"):
        chain("unet", unet=UnetConfig(weights=weights))


SHARED = Path(__file__).parents[2] / "shared" / "data" / "cygno" / "reco_gui"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real files are not here")
@pytest.mark.parametrize("path", sorted(SHARED.glob("*/*.root")), ids=lambda path: path.stem)
def test_pixels_of_real_clusters(path: Path) -> None:
    """Size, box, centre and rms of every cluster of the experiment's files, from its pixels."""
    with uproot.open(path) as root:
        names = [b.name for b in FRAMES.branches if b.name in root["Events"].keys()]  # noqa: SIM118
        events = root["Events"].arrays(names)
    simulated = "run20001" in path.name
    for event in events:
        for i, r in enumerate(cluster_rows(event)):
            if r is None:
                continue
            x, y, z = (np.asarray(event[f"redpix_i{axis}"])[r] for axis in "xyz")
            assert len(r) == event.sc_size[i]
            box = [event[f"sc_{name}"][i] for name in ("xmin", "xmax", "ymin", "ymax")]
            assert box == [x.min(), x.max(), y.min(), y.max()]
            # Values were cut to integers in the simulated run, which shrinks the noise.
            assert z.std() == pytest.approx(event.sc_rms[i], rel=0.03 if simulated else 0.005)
            assert event.sc_xmean[i] == pytest.approx(np.average(x, weights=np.maximum(z, 0)), abs=0.15)
            assert z.sum() == pytest.approx(event.sc_integral[i], rel=0.06)
