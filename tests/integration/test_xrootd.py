"""A real XRootD server on loopback: what it serves is what is on disk, and one that is gone holds nobody up."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot
from test_frames import WRITERS
from test_remote import write_segments

from sparsereco.camera.pedestal import write_pedestal
from sparsereco.commands.reco_camera import read_or_measure
from sparsereco.errors import InputError
from sparsereco.frames import histogram, iterate_frames, survey_frames
from sparsereco.hdf5 import read_hdf5
from sparsereco.io import HITS, RECO, RootWriter, iterate, read, survey

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SAMPLE = ROOT / "tests" / "data" / "demo.root"
BATCH, BATCHES = 64, 20
OPTIONS = ["--device", "cpu", "--light_scale", "0.87", "--batch_size", str(BATCH), "--step-size", str(BATCH)]
HASTY = {"XRD_CONNECTIONWINDOW": "1", "XRD_CONNECTIONRETRY": "2", "XRD_TIMEOUTRESOLUTION": "1"}


class Server:
    """An XRootD server of our own, and the folder that it serves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        self.url = f"root://127.0.0.1:{self.port}//data"

    def start(self) -> None:
        self._script("start", self.folder, str(self.port))

    def stop(self) -> None:
        self._script("stop", self.folder)

    def signal(self, number: signal.Signals) -> None:
        os.kill(int((self.folder / "pid").read_text()), number)

    def wait_until_half_is_read(self) -> None:
        """Until a client has got half of the long file since the server started."""
        half = (self.folder / "data" / "long.root").stat().st_size // 2
        counters = Path(f"/proc/{(self.folder / 'pid').read_text()}/io")
        wait_for(lambda: int(counters.read_text().split()[1]) > half)

    def _script(self, *arguments: str | Path) -> None:
        subprocess.run(["sh", HERE / "xrootd.sh", *arguments], check=True, timeout=30)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """What is served: a copy of the sample in two files, and a longer file of many baskets."""
    if shutil.which("xrootd") is None:
        pytest.skip("needs a server: apt-get install xrootd-server")
    for module in ("XRootD", "fsspec_xrootd"):
        pytest.importorskip(module, reason="needs a client: pip install 'sparsereco[xrootd]'")
    with tempfile.TemporaryDirectory(prefix="xrootd-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the server has a user of its own
        (folder / "data").mkdir()
        events = read(SAMPLE, HITS)
        for file, size, batches in (
            ("part1.root", 100, [0]),
            ("part2.root", 100, [1]),
            ("long.root", BATCH, range(BATCHES)),
        ):
            with RootWriter(folder / "data" / file) as writer:
                for i in batches:
                    writer.extend("hits", HITS, events[i % 3 * size :][:size])
                    writer.flush("hits")  # a basket for each
        yield folder


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def start_reco(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts `tools/reco.py vertex` in the temporary folder; its client of XRootD does not wait for long."""

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "tools" / "reco.py"), "vertex", *arguments, *OPTIONS],
            env=os.environ | {"OMP_NUM_THREADS": "1"} | HASTY | environment,
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what was said, of a process that has to end soon."""
    try:
        said = process.communicate(timeout=90)[1]
    finally:
        process.kill()
    return process.returncode, said


def wait_for(condition: Callable[[], object]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.02)
    raise TimeoutError


def same(one: Path, other: Path) -> bool:
    found, expected = (read(path, RECO) for path in (one, other))
    return len(found) > 0 and str(found.tolist()) == str(expected.tolist())


def test_same_events_as_from_disk(server: Server) -> None:
    for step in 30, "100 kB":
        for name in "part1.root", "long.root:hits":
            there = iterate([f"{server.url}/{name}"], HITS, step_size=step)
            here = iterate([f"{server.folder}/data/{name}"], HITS, step_size=step)
            for one, other in zip(there, here, strict=True):
                assert one.file == f"{server.url}/{name.removesuffix(':hits')}"
                assert (one.uuid, one.entry_start) == (other.uuid, other.entry_start)
                assert str(one.events.tolist()) == str(other.events.tolist())


def test_wildcards(server: Server) -> None:
    sources = survey([f"{server.url}/part*.root:hits"], HITS)
    assert [source.file for source in sources] == [f"{server.url}/part{i}.root" for i in (1, 2)]


def test_rntuples_and_frames(server: Server) -> None:
    events = read(SAMPLE, HITS)[:20]
    image = np.random.default_rng(1).integers(0, 200, (8, 8), np.int32)
    path = server.folder / "data" / "others.root"
    with uproot.recreate(path) as file:
        types = {b.name: f"var * {b.dtype}" if b.name in HITS.counters else b.dtype for b in HITS.branches}
        file.mkrntuple("hits", types).extend({b.name: ak.values_astype(events[b.name], b.dtype) for b in HITS.branches})
        file["pic_run3_ev1"] = histogram("pic_run3_ev1", image)
    path.chmod(0o644)
    url = f"{server.url}/others.root"
    assert str(ak.concatenate([chunk.events for chunk in iterate([url], HITS)]).tolist()) == str(events.tolist())
    assert survey_frames([url])[0].entries == 1
    (frame,) = iterate_frames([url])
    assert (frame.run, frame.event, frame.image.tolist()) == (3, 1, image.tolist())


@pytest.mark.parametrize("name", WRITERS)
def test_frames_and_pedestals_of_every_format(server: Server, name: str) -> None:
    images = list(np.random.default_rng(2).integers(90, 200, (3, 32, 32), np.int32))
    path = WRITERS[name](server.folder / "data" / name, images)
    path.chmod(0o644)
    url = f"{server.url}/{name}"
    assert survey_frames([f"{server.url}/run7*{path.suffix}"])[0].entries == 3
    for frame, image in zip(iterate_frames([url]), images, strict=True):
        assert (frame.file, frame.run, frame.image.tolist()) == (url, 7, image.tolist())
    here, there = (read_or_measure(one, quiet=True) for one in (str(path), url))
    assert (here.frames, here.mean.tolist()) == (3, there.mean.tolist())
    write_pedestal(path.with_name("pedmap.root"), here, force=True)
    path.with_name("pedmap.root").chmod(0o644)
    assert read_or_measure(f"{server.url}/pedmap.root", quiet=True).sigma.tolist() == here.sigma.tolist()


def test_segments(server: Server) -> None:
    path = write_segments(server.folder / "data" / "edep.h5")
    path.chmod(0o644)
    here, there = read_hdf5(str(path)), read_hdf5(f"{server.url}/edep.h5")
    assert here.energy.tolist() == there.energy.tolist()


READER = """
import sys
from sparsereco.frames import iterate_frames
for n, frame in enumerate(iterate_frames([sys.argv[1]])):
    if n == 0:
        print("one", flush=True)
        sys.stdin.readline()
"""


@pytest.mark.parametrize("name", [name for name in WRITERS if not name.endswith(".root")])
def test_server_killed_between_frames(server: Server, name: str) -> None:
    images = list(np.random.default_rng(3).integers(0, 60000, (40, 512, 512), np.int32))
    WRITERS[name](server.folder / "data" / name, images).chmod(0o644)
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, f"{server.url}/{name}"],
        env=os.environ | HASTY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == "one\n"
    server.signal(signal.SIGKILL)
    said = reader.communicate("\n", timeout=90)[1].splitlines()[-1]
    assert reader.returncode == 1
    assert re.match(rf"sparsereco.errors.InputError: {server.url}/{name}.* cannot be read.*Connection error", said)


def test_same_values_as_from_disk(
    server: Server, start_reco: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    workers = ["--workers", "2", "--unit-size", "64"]
    assert finish(start_reco(f"{server.folder}/data/part*.root", "-o", "here.root"))[0] == 0
    assert finish(start_reco(f"{server.url}/part*.root", "-o", "there.root"))[0] == 0
    assert finish(start_reco(f"{server.url}/part*.root", "-o", "workers.root", *workers))[0] == 0
    assert same(tmp_path / "there.root", tmp_path / "here.root")
    assert same(tmp_path / "workers.root", tmp_path / "here.root")
    assert not list(tmp_path.glob("*.part*"))


def test_server_killed_while_it_is_read(
    server: Server, start_reco: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    output = tmp_path / "out.root"
    output.write_text("an old output")
    process = start_reco(f"{server.url}/long.root", "-o", "out.root", "-f")
    server.wait_until_half_is_read()
    server.signal(signal.SIGKILL)
    code, said = finish(process)
    assert code == 2
    assert said.startswith(f"error: {server.url}/long.root: entries ")
    assert "of tree 'hits' cannot be read: " in said
    assert "Connection error" in said
    assert len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.root"]
    assert output.read_text() == "an old output"


def test_server_killed_under_workers(
    server: Server, start_reco: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    options = ["-o", "out.root", "--workers", "2", "--unit-size", "64", "-q"]
    process = start_reco(f"{server.url}/long.root", *options)
    wait_for(lambda: list(tmp_path.glob("out.root.parts/*.root")))
    server.signal(signal.SIGKILL)
    code, said = finish(process)
    kept, error = said.splitlines()
    assert code == 2
    assert kept.endswith(f" of {BATCHES} units; --resume goes on from there")
    assert error.startswith(f"error: {server.url}/long.root")
    assert [path.name for path in tmp_path.iterdir()] == ["out.root.parts"]

    server.start()
    assert finish(start_reco(f"{server.url}/long.root", *options, "--resume")) == (0, "")
    assert finish(start_reco(f"{server.folder}/data/long.root", "-o", "here.root", "-q")) == (0, "")
    assert same(tmp_path / "out.root", tmp_path / "here.root")


def test_server_that_comes_back_is_waited_for(
    server: Server, start_reco: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start_reco(f"{server.url}/long.root", "-o", "out.root", "-q", XRD_CONNECTIONRETRY="20")
    server.wait_until_half_is_read()
    server.stop()
    server.start()
    assert finish(process) == (0, "")
    assert len(read(tmp_path / "out.root", RECO)) == BATCH * BATCHES


def test_server_that_does_not_answer(
    server: Server, start_reco: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    server.signal(signal.SIGSTOP)
    started = start_reco(f"{server.url}/long.root", "-o", "out.root", XRD_REQUESTTIMEOUT="3")
    code, said = finish(started)
    assert code == 2
    assert said.startswith(f"error: {server.url}/long.root cannot be read: ")
    assert len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["long.root", "part*.root"])
def test_server_that_is_not_there(
    server: Server, start_reco: Callable[..., subprocess.Popen[str]], tmp_path: Path, name: str
) -> None:
    server.stop()
    code, said = finish(start_reco(f"{server.url}/{name}", "-o", "out.root"))
    assert code == 2
    assert said.startswith(f"error: {server.url}/{name} cannot be ")
    assert "Connection error" in said
    assert len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuch.root", "/nosuch.root cannot be read: OSError: Failed to open file: .* no such file"),
        ("nosuch*.root", "no file matches '.*/nosuch[*].root'"),
        ("nosuch/*.root", "/nosuch/[*].root cannot be looked up: OSError: .* no such file"),
        ("cut.root", "/cut.root is truncated: 9000 bytes of [0-9]{5}"),
        ("text.root", "/text.root cannot be read: .*"),
        ("", "/data/? cannot be read: .* is a directory"),
    ],
)
def test_files_that_cannot_be_used(server: Server, name: str, message: str) -> None:
    data = server.folder / "data"
    (data / "cut.root").write_bytes((data / "part1.root").read_bytes()[:9000])
    (data / "text.root").write_text("hello\n")
    with pytest.raises(InputError, match=message) as caught:
        survey([f"{server.url}/{name}"], HITS)
    assert len(str(caught.value).splitlines()) == 1
