"""What the camera keeps of a frame: the autoencoder of noise, regions, sparse frames, and what of it is measured."""

from __future__ import annotations

from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import torch
from camera_sample import SHAPE, noise, pedestal, spots
from torch import Tensor, nn

pytest.importorskip("skimage")
pytest.importorskip("shapely")

from sparsereco.camera.anomaly import OBJECTIVES, Autoencoder, AutoencoderConfig, error_map
from sparsereco.camera.chain import CameraChain
from sparsereco.camera.config import CameraConfig, RegionConfig
from sparsereco.camera.region_metrics import compare_regions, summarise_regions, threshold_at
from sparsereco.camera.regions import find_regions, label_pixels, polygons_of
from sparsereco.camera.significance import Significance
from sparsereco.camera.sparse_frame import frame_voxels, reduce_frame, restore_frame
from sparsereco.errors import InputError
from sparsereco.frames import Frame
from sparsereco.io import RootWriter, read
from sparsereco.schema import ROIS, SPARSE_FRAMES

PLACES = [(100.0, 120.0), (250.0, 300.0), (120.0, 420.0)]  # y, x
MAPS = noise()
PEDESTAL = pedestal(MAPS)


class Answer(nn.Module):
    """Answers with a multiple of what it sees."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, image: Tensor) -> Tensor:
        return self.factor * image


def white(seed: int = 1) -> Tensor:
    return torch.randn(4, 64, 64, generator=torch.Generator().manual_seed(seed))


def test_who_copies_what_it_sees_is_punished_by_denoising_alone() -> None:
    losses = {
        name: [float(one.loss(Answer(factor), white(), torch.Generator().manual_seed(2))) for factor in (0.0, 1.0)]
        for name, one in OBJECTIVES.items()
    }
    for name in ("squared", "normalised", "tiles"):
        assert losses[name][1] == 0
        assert losses[name][0] > 0.9
    silent, copying = losses["denoising"]
    assert silent == pytest.approx(1, abs=0.05)
    assert copying == pytest.approx(2, abs=0.1)  # the variances of a value and of another


def test_tile_statistics_count_what_noise_makes_of_them_once() -> None:
    zero, one = (float(OBJECTIVES["tiles"].loss(Answer(f), white(), torch.Generator())) for f in (0.0, -1.0))
    assert zero == pytest.approx(
        2 + 16 / 2, rel=0.1
    )  # variance of a mean, of a mean square, and its expectation squared
    assert one == pytest.approx(4, rel=0.1)  # only the means have the wrong sign


def test_objectives_look_at_counts_or_at_significance() -> None:
    seen = Significance(torch.full((8, 8), 1.8), torch.full((2, 2), 3.0))
    torch.testing.assert_close(OBJECTIVES["squared"].view(seen), torch.full((2, 2), 2.0))
    torch.testing.assert_close(OBJECTIVES["denoising"].view(seen), torch.full((2, 2), 3.0))


def test_error_map_has_unit_spread_and_shows_a_spot() -> None:
    torch.manual_seed(1)
    model = Autoencoder(AutoencoderConfig()).eval()
    macro = white()[0].clone()
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    macro += 3 * torch.exp(-((y - 40) ** 2 + (x - 21) ** 2) / (2 * 1.1**2))
    found = error_map(model, Significance(torch.zeros(256, 256), macro), 1.1)
    assert float(found.std()) == pytest.approx(1, abs=0.15)
    assert np.hypot(*np.subtract(divmod(int(found.argmax()), 64), (40, 21))) < 2
    assert model(torch.zeros(1, 13, 21)).shape == (1, 13, 21)


@pytest.mark.parametrize("share", [0.002, 0.01, 0.05])
def test_regions_are_polygons_without_holes_around_all_points(share: float) -> None:
    rng = np.random.default_rng(3)
    for margin in (0, 1, 3):
        kept = rng.random((96, 128)) < share
        points, score = np.argwhere(kept), rng.random(int(kept.sum()))
        found = find_regions(points, score, kept.shape, RegionConfig(margin=margin))
        corners = [np.array(polygon.exterior.coords)[:-1] for polygon in found.polygons]
        pixels = label_pixels(corners, (384, 512))
        np.testing.assert_array_equal(pixels, np.kron(found.label, np.ones((4, 4), int)))
        assert all(not polygon.interiors for polygon in found.polygons)
        assert [polygon.area for polygon in found.polygons] == np.bincount(pixels.ravel())[1:].tolist()
        assert (found.label[tuple(points.T)] > 0).all()
        for number, best in enumerate(found.score, 1):
            assert best == score[found.label[tuple(points.T)] == number].max()


def test_a_long_track_does_not_take_a_large_box() -> None:
    diagonal = np.stack([np.arange(100), np.arange(100)], 1)
    found = find_regions(diagonal, np.ones(100), (120, 120), RegionConfig(cell=8, margin=3))
    assert len(found.polygons) == 1
    assert found.polygons[0].area < 0.35 * (4 * 106) ** 2
    assert find_regions(np.zeros((0, 2), int), np.zeros(0), (9, 9), RegionConfig()).polygons == []


@pytest.fixture(scope="module")
def sample() -> list[tuple[Frame, ak.Record]]:
    """A frame with three spots of 6 keV and one with none, and what the anomaly selector makes of them."""
    rng, chain = np.random.default_rng(2), CameraChain(PEDESTAL, CameraConfig(selector="anomaly"))
    frames = [
        Frame(8, i, MAPS.expose(lights, rng), "run8.root", i) for i, lights in enumerate([spots(PLACES, 6.0, rng), []])
    ]
    return [(frame, chain(frame)) for frame in frames]


def test_regions_of_a_frame(sample: list[tuple[Frame, ak.Record]]) -> None:
    frame, event = sample[0]
    outlines = polygons_of(event)
    assert len(outlines) == len(event.roi_area) == 3
    centres = sorted(tuple(corners.mean(0)[::-1]) for corners in outlines)
    np.testing.assert_allclose(centres, sorted(PLACES), atol=8)
    labels = label_pixels(outlines, SHAPE)
    assert np.bincount(labels.ravel())[1:].tolist() == event.roi_area.tolist()
    for number, (light, hits, corners) in enumerate(
        zip(event.roi_integral, event.roi_nhits, event.roi_corners, strict=True), 1
    ):
        inside = labels == number
        assert (frame.image - PEDESTAL.mean)[inside & ~PEDESTAL.hot].sum() == pytest.approx(light, rel=1e-3)
        assert 0 < hits < inside.sum()
        assert corners >= 4
    assert event.roi_integral.tolist() == sorted(event.roi_integral, reverse=True)
    assert len(sample[1][1].roi_area) == 0
    assert (sample[1][1]["rows"], sample[1][1]["columns"]) == SHAPE


def test_a_sparse_frame_there_and_back(sample: list[tuple[Frame, ak.Record]], tmp_path: Path) -> None:
    with RootWriter(tmp_path / "sparse.root") as writer:
        for frame, event in sample:
            writer.extend(SPARSE_FRAMES.tree, SPARSE_FRAMES, ak.Array([reduce_frame(frame, event)]))
    records = read(tmp_path / "sparse.root", SPARSE_FRAMES)
    assert ak.num(records.pixel_x).tolist() == [ak.sum(event.roi_area) for _, event in sample]
    assert ak.num(records.pixel_x)[0] < 0.06 * np.prod(SHAPE)
    back = restore_frame(records[0], PEDESTAL.mean)
    (frame, event), kept = sample[0], label_pixels(polygons_of(sample[0][1]), SHAPE) > 0
    np.testing.assert_array_equal(back.image[kept], frame.image[kept])
    np.testing.assert_array_equal(back.image[~kept], PEDESTAL.mean[~kept])
    again = CameraChain(PEDESTAL, CameraConfig(selector="gaussian"))(back)
    np.testing.assert_allclose(sorted(again.sc_integral), sorted(event.sc_integral), rtol=0.05)

    voxels = frame_voxels(records)
    assert voxels.offsets.tolist() == [0, len(records[0].pixel_x), len(records[0].pixel_x)]
    y, x = voxels.coords[100].tolist()
    assert float(voxels.signal[100]) == frame.image[y, x]


def test_sparse_frames_of_something_else_are_refused(sample: list[tuple[Frame, ak.Record]]) -> None:
    (frame, event), (_, other) = sample
    with pytest.raises(InputError, match=r"run8.root: frame 0 .* but the regions are of run 8, event 1"):
        reduce_frame(frame, other)
    record = reduce_frame(frame, event)
    with pytest.raises(InputError, match="entry 0 has 384 x 512 pixels, the fill 64 x 64"):
        restore_frame(record, np.zeros((64, 64)))
    outside = ak.Record({**{name: record[name] for name in record.fields}, "pixel_x": record.pixel_x + 500})
    with pytest.raises(InputError, match="has pixels outside of its 384 x 512"):
        restore_frame(outside, PEDESTAL.mean)
    with pytest.raises(InputError, match="sparse frames of one size, got none"):
        frame_voxels(ak.Array([record])[:0])


def square(x: float, y: float, size: float) -> list[tuple[float, float]]:
    return [(x, y), (x, y + size), (x + size, y + size), (x + size, y)]


def test_region_metrics_by_hand() -> None:
    """Two frames of 40 x 40: regions with scores 8 (holds 90 of 100 counts), 5 (false), and 6 (holds 20 of 80)."""
    truth = ak.Array(
        [
            {"run": 1, "eventnumber": 0, "energy": [1.0], "redpix_ix": [4, 5, 20], "redpix_iy": [4, 4, 4],
             "redpix_iz": [40.0, 50.0, 10.0], "redpix_track": [0, 0, 0]},
            {"run": 1, "eventnumber": 1, "energy": [1.0], "redpix_ix": [4, 30], "redpix_iy": [4, 30],
             "redpix_iz": [20.0, 60.0], "redpix_track": [0, 0]},
        ]
    )  # fmt: skip
    boxes = [[square(-0.5, -0.5, 8), square(23.5, 23.5, 4)], [square(-0.5, -0.5, 8)]]
    regions = ak.Array(
        [
            {"run": 1, "event": i, "rows": 40, "columns": 40, "roi_score": score, "roi_area": area,
             "roi_corners": [4] * len(area), "corner_x": [x for box in boxes[i] for x, _ in box],
             "corner_y": [y for box in boxes[i] for _, y in box]}
            for i, (score, area) in enumerate([([8.0, 5.0], [64, 16]), ([6.0], [64])])
        ]
    )  # fmt: skip
    one = compare_regions(regions, truth)
    assert one.held.tolist() == [8.0, -np.inf]
    assert one.false.tolist() == [False, True, False]
    everything, best = summarise_regions(one, -np.inf), summarise_regions(one, 7.0)
    assert everything["kept"].value == pytest.approx(110 / 180)
    assert everything["discarded"].value == pytest.approx(1 - (80 + 64) / 3200)
    assert everything["false_per_frame"].value == 0.5
    assert everything["held"]["1"].value == 0.5
    assert best["kept"].value == pytest.approx(90 / 180)
    assert best["false_per_frame"].value == 0
    assert (threshold_at(one, 0.5), threshold_at(one, 0.2)) == (-np.inf, 5.0)
    with pytest.raises(InputError, match="are of different frames"):
        compare_regions(regions[:1], truth)
    assert ROIS.counters["corner_x"] == "nCorner"
