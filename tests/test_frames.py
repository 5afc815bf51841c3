"""Frames and pedestals: one orientation from three formats, pedestals in one pass, and what no frame can be."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from sparsereco.camera.pedestal import (
    Pedestal,
    check_frame,
    measure_pedestal,
    read_pedestal,
    read_vignetting,
    write_pedestal,
)
from sparsereco.errors import InputError
from sparsereco.frames import Frame, histogram, iterate_frames, survey_frames
from sparsereco.writer import RootWriter

h5py = pytest.importorskip("h5py")
SHARED = Path(__file__).parents[2] / "shared" / "data" / "cygno"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="the real files are not here")
IMAGE = np.arange(32 * 32, dtype=np.int32).reshape(32, 32)


def midas_event(kind: int, serial: int, banks: bytes) -> bytes:
    return struct.pack("<HHIIIII", kind, 0, serial, 0, len(banks) + 8, len(banks), 0x31) + banks


def bank(name: bytes, data: bytes) -> bytes:
    return struct.pack("<4sIII", name, 4, len(data), 0) + data + b"\0" * (-len(data) % 8)


def midas_file(path: Path, images: list[np.ndarray]) -> Path:
    """The camera reads out its upper row first; other banks and events stand around."""
    events = [midas_event(0x8000, 0, b"")]
    for serial, image in enumerate(images):
        data = image[::-1].astype("<u2").tobytes()
        events.append(midas_event(1, serial, bank(b"DGH0", b"abc") + bank(b"CAM0", data)))
    path.write_bytes(gzip.compress(b"".join([*events, midas_event(0x8001, 0, b"")])))
    return path


def root_file(path: Path, images: list[np.ndarray]) -> Path:
    with RootWriter(path) as writer:
        for event, image in reversed(list(enumerate(images))):
            writer.put(f"pic_run7_ev{event}", histogram(f"pic_run7_ev{event}", image))
    return path


def hdf5_file(path: Path, images: list[np.ndarray]) -> Path:
    with h5py.File(path, "w") as file:
        for event, image in enumerate(images):
            file.create_dataset(f"pic_run7_ev{event}", data=image, compression="gzip")
    return path


WRITERS = {"run7.root": root_file, "run7.h5": hdf5_file, "run7.mid.gz": midas_file}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_image(name: str, tmp_path: Path) -> None:
    images = [IMAGE, IMAGE + 1, IMAGE.T * 2, *[IMAGE] * 9]
    path = str(WRITERS[name](tmp_path / name, images))
    frames = list(iterate_frames([path]))
    assert [(frame.run, frame.event, frame.entry) for frame in frames] == [(7, i, i) for i in range(12)]
    for frame, image in zip(frames, images, strict=True):
        np.testing.assert_array_equal(frame.image, image)
    assert survey_frames([path])[0].entries == 12
    assert [frame.event for frame in iterate_frames([path, path], 10, 14)] == [10, 11, 0, 1]


def test_a_pixel_is_the_bin_of_its_x_and_y(tmp_path: Path) -> None:
    import uproot

    image = np.zeros((16, 24), np.int32)
    image[3, 20] = 5  # y, x
    path = root_file(tmp_path / "run7.root", [image])
    with uproot.open(path) as root:
        assert root["pic_run7_ev0"].values()[20, 3] == 5
        assert root["pic_run7_ev0"].classname == "TH2I"


def test_hdf5_with_one_frame_per_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "run00012.h5", "w") as file:
        file["Image"] = IMAGE
    frame = next(iterate_frames([str(tmp_path / "run00012.h5")]))
    assert (frame.run, frame.event) == (12, 0)
    np.testing.assert_array_equal(frame.image, IMAGE)


def test_a_truncated_midas_file_gives_its_whole_frames_and_an_error(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 200, (8, 64, 64))
    path = midas_file(tmp_path / "run1.mid.gz", list(noise))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    errors: list[InputError] = []
    frames = list(iterate_frames([str(path)], on_bad_file=errors.append))
    assert 0 < len(frames) < 8
    assert f"truncated or damaged after {len(frames)} frames" in str(errors[0])
    with pytest.raises(InputError, match="truncated"):
        list(iterate_frames([str(path)]))


def test_files_without_frames(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no frames")
    with RootWriter(tmp_path / "other.root") as writer:
        writer.put("map", histogram("map", IMAGE))
    with RootWriter(tmp_path / "empty.root") as writer:
        pass
    with pytest.raises(InputError, match="expected a ROOT, HDF5 or MIDAS file"):
        survey_frames([str(text)])
    with pytest.raises(InputError, match="expected names like pic_run1_ev0, it has hits, provenance, truth"):
        survey_frames([str(ROOT / "tests" / "data" / "demo.root")])
    with pytest.raises(InputError, match="expected names like pic_run1_ev0, it has map"):
        survey_frames([str(tmp_path / "other.root")])
    assert list(iterate_frames([str(tmp_path / "empty.root")])) == []


def frames_of(images: np.ndarray) -> list[Frame]:
    return [Frame(5, event, image, "file", event) for event, image in enumerate(images)]


def test_pedestal_in_one_pass(tmp_path: Path) -> None:
    images = np.random.default_rng(2).normal(99, 3.6, (30, 32, 16)).round().astype(np.uint16)
    pedestal = measure_pedestal(iter(frames_of(images)))
    np.testing.assert_allclose(pedestal.mean, images.mean(0), rtol=1e-6)
    np.testing.assert_allclose(pedestal.sigma, images.std(0, ddof=1), rtol=1e-5)
    write_pedestal(tmp_path / "ped.root", pedestal)
    again = read_pedestal(str(tmp_path / "ped.root"))
    np.testing.assert_array_equal(again.mean, pedestal.mean)
    np.testing.assert_array_equal(again.sigma, pedestal.sigma)
    assert (again.run, again.frames) == (5, 30)
    with pytest.raises(InputError, match="at least two frames, got 1"):
        measure_pedestal(frames_of(images[:1]))
    with pytest.raises(InputError, match="has 16 x 16 pixels, expected 32 x 16"):
        measure_pedestal([*frames_of(images[:2]), *frames_of(images[:1, :16])])


def test_hot_dead_and_unknown_pixels() -> None:
    mean, sigma = np.full((16, 16), 99, "f4"), np.full((16, 16), 3.6, "f4")
    mean[1, 2], sigma[3, 4], sigma[5, 6], mean[7, 8] = 400, 40, 0, np.nan
    mean[0, 0] = 104
    hot = Pedestal(np.nan_to_num(mean, nan=-1), sigma).hot
    assert set(zip(*np.nonzero(hot), strict=True)) == {(1, 2), (3, 4), (5, 6), (7, 8)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: image * 0, "is 0 everywhere"),
        (lambda image: np.where(np.arange(64) < 3, 65535, image), "is saturated"),
        (lambda image: np.where(np.arange(64) < 3, np.nan, image), "192 pixels that are not finite"),
        (lambda image: image + 9000, "is a spark"),
        (lambda image: image[:32], "has 32 x 64 pixels, expected 64 x 64 as in the pedestal"),
    ],
)
def test_frames_that_are_none(change: object, message: str) -> None:
    image = np.full((64, 64), 99.0)
    pedestal = Pedestal(image.astype("f4"), np.full((64, 64), 3.6, "f4"))
    check_frame(Frame(1, 2, image, "file", 0), pedestal)
    with pytest.raises(InputError, match=message):
        check_frame(Frame(1, 2, change(image), "file", 0), pedestal)  # type: ignore[operator]


@real
@pytest.mark.parametrize("exposure", [10, 100, 1000])
def test_real_pedestals(exposure: int) -> None:
    pedestal = read_pedestal(str(SHARED / "pedmaps" / f"pedmap_ex{exposure}_rebin4.root"))
    assert pedestal.mean.shape == (512, 512)
    assert 98.8 < np.median(pedestal.mean) < 99.3
    assert 0.5 < np.median(pedestal.sigma) < 0.8
    # Longer exposures have more hot pixels.
    assert {10: 1e-5, 100: 1e-5, 1000: 1e-4}[exposure] < pedestal.hot.mean() < 2e-2


@real
@pytest.mark.parametrize("name", ["vignette_run03806.root", "vign_MANGO.root"])
def test_real_vignetting_fills_the_sensor(name: str) -> None:
    light = read_vignetting(str(SHARED / "vignette" / name), (2304, 2304))
    assert light.shape == (2304, 2304)
    assert light.max() == 1
    assert 0.6 < light.mean() < 0.9
    assert light[-8:].mean() > 0.05
