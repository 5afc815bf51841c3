"""Parts of the camera system: simulation, matched filter, network, loss, calibration, metrics."""

from __future__ import annotations

import dataclasses
import importlib.util

import awkward as ak
import numpy as np
import pytest
import torch
from camera_sample import CHAMBER, SENSOR, SHAPE, noise, spots

from sparsereco import checkpoint
from sparsereco.camera.calibrate import fit_in_bins, fit_peak
from sparsereco.camera.config import CameraConfig, UnetConfig
from sparsereco.camera.metrics import compare, found_more, summarise, threshold_at
from sparsereco.camera.select import load_network, make_above
from sparsereco.camera.significance import Normaliser, settle, smooth
from sparsereco.camera.threshold import NETWORK, excess
from sparsereco.camera.unet import Selector, SelectorConfig, focal_loss, to_pixels
from sparsereco.errors import InputError
from sparsereco.nn.dense import DenseUNet
from sparsereco.sim.camera import (
    FLUORINE,
    HELIUM,
    SENSORS,
    Chamber,
    Noise,
    Track,
    light_of,
    lit_pixels,
    recoil_track,
    vignetting,
)
from sparsereco.stats import Estimate

POINT = Track(11, 6.0, np.zeros((1, 3)), np.array([6.0]))


def many(chamber: Chamber, z: float, n: int = 100, kev: float = 6.0) -> np.ndarray:
    rng = np.random.default_rng(1)
    track = Track(11, kev, np.zeros((1, 3)), np.array([kev]))
    return np.array([light_of(track, np.array([200.0, 250.0]), z, chamber, SENSOR, rng).counts.sum() for _ in range(n)])


def test_light_yield_and_its_fluctuation() -> None:
    light = many(CHAMBER, 250.0)
    electrons = 6000 / CHAMBER.electron_energy
    # Poisson electrons with exponential gain, then photo-electrons.
    spread = np.sqrt(2 / electrons + 1 / (6000 * SENSOR.electrons))
    assert light.mean() == pytest.approx(6000, rel=4 * spread / np.sqrt(100))
    assert light.std() / light.mean() == pytest.approx(spread, rel=0.2)


def test_losses() -> None:
    far = many(dataclasses.replace(CHAMBER, attachment=1350.0), 450.0).mean()
    assert far / many(CHAMBER, 450.0).mean() == pytest.approx(np.exp(-450 / 1350), rel=0.05)
    # Saturation costs most where the charge is densest, near the GEM.
    saturated = dataclasses.replace(CHAMBER, saturation=150.0)
    assert many(saturated, 0.0).mean() < 0.75 * many(saturated, 450.0).mean() < 0.75 * 6000
    corner = vignetting(np.array([[0, 0], [192, 256]]), SHAPE, 0.22)
    np.testing.assert_allclose(corner, [0.22, 1.0], atol=1e-3)


@pytest.mark.parametrize(("z", "pixels"), [(0.0, 2.3), (250.0, 4.5), (500.0, 5.9)])
def test_diffusion(z: float, pixels: float) -> None:
    rng = np.random.default_rng(3)
    widths = []
    for _ in range(40):
        light = light_of(POINT, np.array([200.0, 250.0]), z, CHAMBER, SENSOR, rng)
        centre = np.average(light.pixel, axis=0, weights=light.expected)
        widths.append(np.average((light.pixel - centre) ** 2, axis=0, weights=light.expected).mean())
    assert np.sqrt(np.mean(widths)) == pytest.approx(pixels, rel=0.07)


def test_recoils_are_short_and_quenched() -> None:
    rng = np.random.default_rng(4)
    helium, fluorine = recoil_track(HELIUM, 30.0, rng), recoil_track(FLUORINE, 30.0, rng)
    assert helium.deposit.sum() == pytest.approx(0.74 * 30)
    assert 0.3 * 30 < fluorine.deposit.sum() < 0.48 * 30
    lengths = [np.linalg.norm(np.ptp(track.position, axis=0)) for track in (helium, fluorine)]
    assert lengths[0] == pytest.approx(0.42, rel=0.1)
    assert lengths[1] == pytest.approx(0.10, rel=0.1)


def test_electrons_by_geant4() -> None:
    if importlib.util.find_spec("geant4_pybind") is None:
        pytest.skip("geant4-pybind is not installed: pip install 'sparsereco[sim]'")
    from sparsereco.sim.camera import electron_tracks

    energies = np.array([0.25, 1.0, 10.0, 60.0] * 20)
    tracks = electron_tracks(energies, 5, np.random.default_rng(5))
    reach = np.array([np.linalg.norm(track.position, axis=1).max() for track in tracks])
    # Deposits add up to the energy; ranges as in 2.5 keV/cm gas: a point at 1 keV, millimetres at 10.
    np.testing.assert_allclose([track.deposit.sum() for track in tracks], energies, rtol=1e-6)
    assert reach[energies == 1.0].mean() < 0.1
    assert 0.5 < reach[energies == 10.0].mean() < 2.5
    assert 20 < reach[energies == 60.0].mean() < 40
    directions = np.array([track.position[-1] / (reach[i] + 1e-9) for i, track in enumerate(tracks)])
    assert np.abs(directions.mean(0)).max() < 0.3


def test_noise_is_that_of_the_sensor() -> None:
    maps = Noise.draw(SENSORS["fusion"], (1024, 1024), np.random.default_rng(6))
    assert np.median(maps.sigma) == pytest.approx(3.6, rel=0.01)
    assert (maps.sigma > 7.2).mean() == pytest.approx(0.01, rel=0.2)
    assert 1e-4 < (maps.mean > 105).mean() < 6e-4
    rng = np.random.default_rng(7)
    one, two = (maps.expose([], rng, scale=1.3).astype(float) for _ in range(2))
    quiet = maps.sigma < 5
    assert (one - two)[quiet].std() / np.sqrt(2) == pytest.approx(1.3 * 3.6, rel=0.03)
    drifted = maps.expose([], rng, drift=2.0).astype(float)
    assert np.median(drifted[-100:]) - np.median(drifted[:100]) == pytest.approx(1.3, abs=1)


def test_significance_has_unit_variance_and_follows_drift_and_noise() -> None:
    maps, rng = noise(), np.random.default_rng(8)
    hot = maps.mean > 120
    normaliser = Normaliser(*(torch.from_numpy(a) for a in (maps.mean, maps.sigma, hot)))
    for scale, drift in ((1.0, 0.0), (1.3, 0.0), (1.0, 0.5)):
        seen = normaliser(torch.from_numpy(maps.expose([], rng, scale, drift).astype("i4")))
        assert float(seen.macro.std()) == pytest.approx(1, abs=0.05)
        assert float(seen.macro.mean()) == pytest.approx(0, abs=0.05)
        assert float(smooth(seen.macro, 1.1).std()) == pytest.approx(1, abs=0.1)
    assert (seen.residual.numpy()[hot] == 0).all()


def test_settle_leaves_quiet_frames_alone() -> None:
    macro = torch.randn(128, 128, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(settle(macro), macro, atol=0.06, rtol=0.05)


def test_matched_filter_gives_the_signal_to_noise_of_a_spot() -> None:
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="ij")
    spot = torch.exp(-((y - 30) ** 2 + (x - 20) ** 2) / (2 * 1.5**2))
    response = smooth(3 * spot, 1.5)
    assert divmod(int(response.argmax()), 48) == (30, 20)
    assert float(response.max()) == pytest.approx(3 * float(spot.square().sum().sqrt()), rel=1e-3)


def test_dense_unet_on_sides_of_any_length() -> None:
    net = DenseUNet(2, (4, 6, 8))
    for shape in ((16, 24), (13, 18)):
        assert net(torch.randn(1, 2, *shape)).shape == (1, 4, *shape)


def test_a_frame_gives_what_its_pieces_give() -> None:
    torch.manual_seed(1)
    net, macro = Selector(SelectorConfig()).eval(), torch.randn(1, 160, 160)
    whole, piece = net(macro), net(macro[:, 32:128, 32:128])
    torch.testing.assert_close(whole[..., 64:96, 64:96], piece[..., 32:64, 32:64], atol=1e-4, rtol=1e-4)


def test_channels_are_pixels() -> None:
    logits = torch.zeros(1, 16, 3, 5)
    logits[0, 4 * 2 + 1, 1, 3] = 1  # pixel (2, 1) of macro-pixel (1, 3)
    pixels = to_pixels(logits)
    assert pixels.shape == (1, 12, 20)
    assert pixels.nonzero().tolist() == [[0, 6, 13]]


def test_focal_loss() -> None:
    logits, target = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([True, False, False])
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, target.float())
    torch.testing.assert_close(focal_loss(logits, target, 1.0, 0.0), cross_entropy)
    p = torch.sigmoid(logits)
    by_hand = (4 * (1 - p[0]) ** 2 * -p[0].log() + sum(q**2 * -(1 - q).log() for q in p[1:])) / 3
    torch.testing.assert_close(focal_loss(logits, target, 4.0, 2.0), by_hand)
    assert focal_loss(torch.tensor([-200.0]), torch.tensor([True]), 4.0, 2.0) == 800


def test_light_that_a_threshold_adds() -> None:
    """What is taken is what noise has added to all that is found together, for any energies about the threshold."""
    rng, n, cut = np.random.default_rng(12), 400_000, 5.0
    flat, falling, rising = rng.uniform(0, 12, n), rng.exponential(4, n), rng.gamma(10, 0.8, n)
    for true, accuracy in ((flat, 0.05), (falling, 0.25), (rising, 0.35)):
        score = true + rng.standard_normal(n)
        found = score > cut
        added = (score - true)[found].sum()
        assert added > 10_000
        assert excess(score - cut, 1.0)[found].sum() == pytest.approx(added, rel=accuracy)
    assert (excess(np.array([-0.1, -3.0]), 1.0) == 0).all()


def test_light_that_goes_with_the_score_of_the_network() -> None:
    """The gradient of the score over the pixels of spots about the threshold, over its norm."""
    model = checkpoint.load(checkpoint.WEIGHTS / "selector.safetensors", Selector, SelectorConfig)
    y, x = torch.meshgrid(torch.arange(48.0) - 24, torch.arange(48.0) - 24, indexing="ij")
    spot = torch.exp(-(x**2 + y**2) / (2 * (4.5 / 4) ** 2))
    noise = torch.randn(200, 48, 48, generator=torch.Generator().manual_seed(2))
    macro = (noise + 5.5 * spot / spot.norm()).requires_grad_(True)
    logits = model(macro)
    seen = (logits > 0).any(1) & (x.hypot(y) < 7)
    score = logits.mean(1).where(seen, torch.tensor(-torch.inf)).flatten(1).logsumexp(1)
    near = (score > 3) & (score < 4.5)
    assert near.sum() > 30
    gradient = torch.autograd.grad(score[near].sum(), macro)[0][near]
    light = 4 * gradient[:, x.hypot(y) < 5.2].sum(1) / gradient.flatten(1).norm(dim=1)  # a macro-pixel: 4 sigma
    assert float(light.mean()) == pytest.approx(NETWORK, rel=0.1)


def test_scores_of_a_network_are_translated() -> None:
    scores = np.array([1.0, 3.3, 4.0, 5.0, 20.0])

    def above(settings: CameraConfig) -> np.ndarray:  # in standard deviations
        return make_above(settings, load_network(settings))(scores)

    network = above(CameraConfig())
    assert network[0] < network[1] == 0 < network[2] < network[3] < 2
    assert network[4] > 5
    lower = above(CameraConfig(unet=UnetConfig(min_score=1.0)))
    np.testing.assert_allclose(lower - network, -network[0])
    assert above(CameraConfig(selector="gaussian"))[3] == 0
    assert (excess(above(CameraConfig(selector="nsigma")), 1.0) == 0).all()


def line_of(n: int, mean: float, rng: np.random.Generator) -> np.ndarray:
    """Light of 5.9 keV: electrons with exponential gain, read-out noise, and a few clusters that lost some."""
    light = mean / 5900 * np.array([rng.exponential(46.2, k).sum() for k in rng.poisson(127.7, n)])
    lost = rng.random(n) < 0.05
    return np.where(lost, light * rng.uniform(0.3, 1, n), light) + rng.normal(0, 60, n)


def test_peak_is_found_with_the_right_error() -> None:
    rng = np.random.default_rng(9)
    peaks = [fit_peak(np.append(line_of(500, 6000, rng), rng.exponential(300, 100))) for _ in range(25)]
    pulls = np.array([(peak.mean.value - 6000) / peak.mean.error for peak in peaks])
    assert abs(pulls.mean()) < 0.8
    assert 0.6 < pulls.std() < 1.4
    assert np.mean([peak.mean.value for peak in peaks]) == pytest.approx(6000, rel=0.01)
    assert np.mean([peak.kev_per_count(5.9).value for peak in peaks]) == pytest.approx(5.9 / 6000, rel=0.01)
    x = np.linspace(0, 20000, 20001)
    assert peaks[0].density(x).sum() == pytest.approx(1, abs=0.01)


def test_peak_in_bins() -> None:
    rng = np.random.default_rng(10)
    light = np.concatenate([line_of(400, 5000, rng), line_of(400, 7000, rng), line_of(10, 5000, rng)])
    depth = np.repeat([1.0, 2.0, 3.0], [400, 400, 10])
    near, far, few = fit_in_bins(light, depth, np.array([0.5, 1.5, 2.5, 3.5]))
    assert near is not None
    assert far is not None
    assert few is None
    assert far.mean.value / near.mean.value == pytest.approx(1.4, rel=0.03)
    with pytest.raises(InputError, match="at least 50 clusters, found"):
        fit_peak(np.zeros(3))


def truth_and_reco() -> tuple[ak.Array, ak.Array]:
    """Two frames: a track that is found, one that is missed, and fakes with scores 9 and 2."""
    truth = ak.Array(
        [
            {"run": 1, "eventnumber": 0, "energy": [1.0, 1.0], "light": [100.0, 90.0], "z_vertex": [1.0, 2.0],
             "redpix_ix": [10, 11, 12, 50], "redpix_iy": [5, 5, 5, 9], "redpix_iz": [40.0, 50.0, 10.0, 90.0],
             "redpix_track": [0, 0, 0, 1]},
            {"run": 1, "eventnumber": 1, "energy": [], "light": [], "z_vertex": [], "redpix_ix": [], "redpix_iy": [],
             "redpix_iz": [], "redpix_track": []},
        ]
    )  # fmt: skip
    reco = ak.Array(
        [
            {"run": 1, "event": 0, "t_DBSCAN": 0.1, "lp_len": 4.0, "sc_size": [3, 1], "sc_score": [7.0, 2.0],
             "sc_integral": [110.0, 5.0], "sc_corrintegral": [95.0, 5.0],
             "redpix_ix": [10, 11, 13, 70], "redpix_iy": [5, 5, 5, 70],
             "redpix_hit": [1, 1, 1, 0]},
            {"run": 1, "event": 1, "t_DBSCAN": 0.3, "lp_len": 2.0, "sc_size": [1], "sc_score": [9.0],
             "sc_integral": [8.0], "sc_corrintegral": [8.0], "redpix_ix": [0], "redpix_iy": [0], "redpix_hit": [1]},
        ]
    )  # fmt: skip
    return truth, reco


def test_metrics_by_hand() -> None:
    truth, reco = truth_and_reco()
    one = compare(reco, truth)
    assert one.tracks.score.tolist() == [7.0, -np.inf]
    assert sorted(one.fakes) == [2.0, 9.0]
    assert (one.points, one.seconds["t_DBSCAN"]) == (3.0, pytest.approx(0.2))
    assert threshold_at(one, 1.0) == -np.inf
    assert threshold_at(one, 0.5) == 2.0
    numbers = summarise(one, 2.0)
    row = numbers["energies"]["1"]
    assert numbers["fakes_per_frame"].value == 0.5
    assert row["found"].value == 0.5
    assert row["f1"].value == pytest.approx(2 * 2 / (3 + 3 + 1))  # 2 pixels right of 3 chosen, 4 lit
    assert row["recall"].value == pytest.approx(2 / 4)
    assert (one.tracks.integral.tolist(), one.tracks.corrected.tolist()) == ([110.0, 0.0], [95.0, 0.0])
    assert summarise(one, 8.0)["energies"]["1"]["found"].value == 0
    assert summarise(one, 8.0)["energies"]["1"]["recall"].value == 0
    gain = found_more(one, 2.0, one, 8.0)["1"]  # of two tracks the one that the higher cut loses
    assert (gain.value, gain.count) == (0.5, 2)
    assert gain.error == pytest.approx(0.5 / 2**0.5)
    assert found_more(one, 2.0, one, 5.0)["1"] == Estimate(0.0, 0.0, 2)


def test_metrics_of_other_frames_are_refused() -> None:
    truth, reco = truth_and_reco()
    with pytest.raises(InputError, match="has 1 frames, the truth 2"):
        compare(reco[:1], truth)
    with pytest.raises(InputError, match="entry 0 is run 1, event 1 in the reconstruction, but run 1, event 0"):
        compare(reco[::-1], truth)
    brighter = ak.with_field(truth, truth.light * 2, "light")
    with pytest.raises(InputError, match="only on the same sample"):
        found_more(compare(reco, truth), 0.0, compare(reco, brighter), 0.0)


def test_lit_pixels_add_up_over_tracks() -> None:
    rng = np.random.default_rng(11)
    lights = spots([(100.0, 100.0), (100.0, 104.0)], 0.5, rng)
    both = lit_pixels(lights, SHAPE)
    assert both.sum() > max(lit_pixels(lights[:1], SHAPE).sum(), lit_pixels(lights[1:], SHAPE).sum())
    assert lit_pixels([], SHAPE).sum() == 0
