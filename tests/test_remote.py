"""Files on servers, as far as it goes without one; tests/integration/test_xrootd.py has one."""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import Reco, WriteHits, some_hits
from fsspec.implementations.memory import MemoryFileSystem
from test_frames import WRITERS

from sparsereco import cli, remote
from sparsereco.camera.pedestal import read_pedestal, read_vignetting, write_pedestal
from sparsereco.commands.reco_camera import read_or_measure
from sparsereco.errors import InputError
from sparsereco.frames import histogram, iterate_frames, survey_frames
from sparsereco.hdf5 import SEGMENT_FIELDS, count_events, read_hdf5
from sparsereco.io import HITS, RootWriter, expand, read, survey

URL = "root://localhost:1//data/a.root"


@pytest.fixture
def without_client(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    missing = {"XRootD", "fsspec_xrootd"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find(name))


@pytest.mark.usefixtures("without_client")
@pytest.mark.parametrize("url", [URL, f"{URL}:hits", "root://localhost:1//data/*.root"])
def test_what_to_install_is_said(reco: Reco, capsys: pytest.CaptureFixture[str], url: str) -> None:
    assert reco(url, "-o", "out.root") == cli.WRONG_INPUT
    said = capsys.readouterr().err
    assert said == f"error: {url.removesuffix(':hits')} needs the client of XRootD: pip install 'sparsereco[xrootd]'\n"
    assert not Path("out.root").exists()


def test_limits_of_the_user_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("XRootD", reason="needs a client: pip install 'sparsereco[xrootd]'")
    for name in remote.LIMITS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XRD_CONNECTIONWINDOW", "7")
    with remote.connection(URL):
        assert os.environ["XRD_CONNECTIONWINDOW"] == "7"
        assert os.environ["XRD_REQUESTTIMEOUT"] == str(remote.LIMITS["XRD_REQUESTTIMEOUT"])


def test_other_urls_name_themselves() -> None:
    given = ["https://host/a.root?b=*", "https://host:80/a.root:hits", "root://host//a.root?x=1"]
    expected = [
        ("https://host/a.root?b=*", None),
        ("https://host:80/a.root", "hits"),
        ("root://host//a.root?x=1", None),
    ]
    assert list(expand(given)) == expected


Upload = Callable[[Path], str]


@pytest.fixture
def upload() -> Iterator[Upload]:
    """Puts a file on a server, and gives its URL."""

    def put(path: Path) -> str:
        MemoryFileSystem().pipe(path.name, path.read_bytes())
        return f"memory://{path.name}"

    yield put
    MemoryFileSystem.store.clear()


class Breaking(io.BytesIO):
    """A file on a server that is gone once so many bytes are read."""

    left = 0

    def read(self, size: int | None = -1) -> bytes:
        return self._spend(super().read(size))

    def readinto(self, buffer: Any) -> int:
        read = super().readinto(buffer)
        self._spend(bytes(read))
        return read

    @classmethod
    def _spend(cls, data: bytes) -> bytes:
        cls.left -= len(data)
        if cls.left < 0:
            raise OSError("the server is gone")
        return data


IMAGES = list(np.random.default_rng(1).integers(90, 200, (6, 64, 64), np.int32))


@pytest.mark.parametrize("name", WRITERS)
def test_frames_as_from_disk(name: str, upload: Upload, tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path / name, IMAGES)
    url = upload(path)
    (here,), (there,) = survey_frames([str(path)]), survey_frames([url])
    assert (there.file, there.kind, there.entries) == (url, here.kind, len(IMAGES))
    frames = list(iterate_frames([url], 1))
    assert [(frame.run, frame.event, frame.entry) for frame in frames] == [(7, n, n) for n in range(1, len(IMAGES))]
    for frame, image in zip(frames, IMAGES[1:], strict=True):
        assert frame.file == url
        np.testing.assert_array_equal(frame.image, image)


@pytest.mark.parametrize("name", WRITERS)
def test_pedestals_as_from_disk(name: str, upload: Upload, tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path / name, IMAGES)
    here, there = (read_or_measure(one, quiet=True) for one in (str(path), upload(path)))
    np.testing.assert_array_equal(here.mean, there.mean)
    np.testing.assert_allclose(here.mean, np.mean(IMAGES, 0), rtol=1e-6)
    write_pedestal(tmp_path / "pedmap.root", here)
    again = read_or_measure(upload(tmp_path / "pedmap.root"), quiet=True)
    np.testing.assert_array_equal(again.sigma, here.sigma)


def test_vignetting_as_from_disk(upload: Upload, tmp_path: Path) -> None:
    with RootWriter(tmp_path / "light.root") as writer:
        writer.put("normmap", histogram("normmap", np.linspace(0.5, 1, 64).reshape(8, 8)))
    light = [read_vignetting(one, (16, 16)) for one in (str(tmp_path / "light.root"), upload(tmp_path / "light.root"))]
    np.testing.assert_array_equal(*light)


def write_segments(path: Path) -> Path:
    rows = np.zeros(900, [("event_id", "i4"), *((name, "f4") for name in SEGMENT_FIELDS)])
    rows["event_id"], rows["dE"] = np.arange(900) % 3, np.arange(900)
    with h5py.File(path, "w") as file:
        file.create_dataset("segments", data=rows, chunks=(100,))
    return path


def test_segments_as_from_disk(upload: Upload, tmp_path: Path) -> None:
    path = write_segments(tmp_path / "edep.h5")
    here, there = read_hdf5(str(path)), read_hdf5(upload(path))
    assert count_events(upload(path)) == 3
    np.testing.assert_array_equal(here.energy, there.energy)
    assert here.energy.sum() == 899 * 450


def test_events_as_from_disk(upload: Upload, write_hits: WriteHits) -> None:
    path = write_hits("a.root", some_hits(40))
    assert str(read(upload(path), HITS).tolist()) == str(read(path, HITS).tolist())


@pytest.mark.parametrize("name", ["run7.h5", "run7.mid.gz", "edep.h5"])
def test_a_server_that_is_gone_in_mid_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_segments(tmp_path / name) if name == "edep.h5" else WRITERS[name](tmp_path / name, IMAGES)
    work = read_hdf5 if name == "edep.h5" else lambda url: list(iterate_frames([url]))
    monkeypatch.setattr(remote, "_open_url", lambda url: Breaking(path.read_bytes()))
    Breaking.left = 10**9
    work(f"server://host/{name}")
    used = 10**9 - Breaking.left
    for share in (0.0, 0.3, 0.6, 0.9):
        Breaking.left = int(share * used)
        with pytest.raises(InputError, match=rf"server://host/{name}.* cannot be read.*the server is gone") as caught:
            work(f"server://host/{name}")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("work", "name"),
    [
        (lambda url: survey_frames([url]), "run7.h5"),
        (lambda url: survey_frames([url]), "run7.mid.gz"),
        (lambda url: survey([url], HITS), "a.root"),
        (read_hdf5, "edep.h5"),
        (read_pedestal, "pedmap.root"),
    ],
)
def test_what_is_not_there(work: Callable[[str], Any], name: str, upload: Upload, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"memory://nosuch/{name} cannot be read.*FileNotFoundError|{name}") as caught:
        work(f"memory://nosuch/{name}")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=f"no such (file|pedestal): {tmp_path}/{name}"):
        work(str(tmp_path / name))


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path} is a directory, expected a file"), remote.opened(str(tmp_path)):
        pass
    assert remote.name("root://host//data/run7.mid.gz?token=a/b.c") == "run7.mid.gz"
    assert remote.name("/data/what?.h5") == "what?.h5"
