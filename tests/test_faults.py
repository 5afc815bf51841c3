"""Spoilt input and full disks, a few of what `tools/benchmark.py faults` does at length: one line, whatever comes."""

from __future__ import annotations

import random
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Reco, WriteHits, some_hits
from tool_loader import load_tool

from sparsereco import cli
from sparsereco.io import HITS, RECO, RootWriter, read

faults = load_tool("benchmarks/faults")


@pytest.mark.parametrize("spoil", faults.BYTES, ids=lambda spoil: spoil.__name__)
def test_spoilt_bytes(reco: Reco, capsys: pytest.CaptureFixture[str], spoil: faults.BYTES) -> None:
    with RootWriter("sound.root") as writer:
        writer.extend("hits", HITS, some_hits(12))
        writer.flush("hits")
        writer.extend("hits", HITS, some_hits(12, 12))
    sound = Path("sound.root").read_bytes()
    for seed in range(4):
        data = bytearray(sound)
        spoil(data, random.Random(seed))
        Path("spoilt.root").write_bytes(data)
        assert_survived(reco("spoilt.root", "-o", "out.root", "-q", "-f"), capsys, seed)


@pytest.mark.parametrize("spoil", [faults.odd_values, faults.odd_type], ids=["values", "types"])
def test_odd_content(reco: Reco, capsys: pytest.CaptureFixture[str], spoil: faults.odd_values) -> None:
    events = some_hits(12)
    for seed in range(8):
        what = spoil(Path("odd.root"), events, random.Random(seed))
        assert_survived(reco("odd.root", "-o", "out.root", "-q", "-f"), capsys, what)


def assert_survived(code: int, capsys: pytest.CaptureFixture[str], what: object) -> None:
    output = Path("out.root")
    assert faults.judge(code, capsys.readouterr().err, output) in ("result", "one-line error"), what
    output.unlink(missing_ok=True)


@contextmanager
def full_disk(at: int) -> Iterator[None]:
    """No file can grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [100, 20_000, 60_000])
def test_a_full_disk_leaves_the_old_output(
    reco: Reco, write_hits: WriteHits, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    path = write_hits("a.root", some_hits(3000))
    Path("out.root").write_text("the old one")
    with full_disk(size):
        code = reco(path, "-o", "out.root", "-f", "-q", "--step-size", 300)
    assert code == cli.WRONG_INPUT
    assert re.fullmatch(
        "error: output out.root cannot be (created|written): .*File too large.*\n", capsys.readouterr().err
    )
    assert Path("out.root").read_text() == "the old one"
    assert not Path("out.root.part").exists()
    assert reco(path, "-o", "out.root", "-f", "-q") == cli.DONE
    assert len(read("out.root", RECO)) == 3000
