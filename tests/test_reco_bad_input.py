"""What no run can use, through tools/reco.py: one line that names it, exit code 2, no output; or skipped on demand."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot
from conftest import AveragingChain, Reco, WriteHits, some_hits

from sparsereco import cli
from sparsereco.io import HITS, RECO, read


def bad_file(kind: str, write_hits: WriteHits, folder: Path) -> str:
    """A file of the kind that no run can use."""
    path = folder / f"{kind}.root"
    if kind == "directory":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("run,event,x,y,z\n" * 100)
    elif kind == "truncated":
        data = write_hits(path.name, some_hits(50)).read_bytes()
        path.write_bytes(data[: len(data) // 2])
    elif kind == "misspelt":
        with uproot.recreate(path) as file:
            types = {b.name: f"var * {b.dtype}" if b.name in HITS.counters else b.dtype for b in HITS.branches}
            file.mktree("hits", {"hit_energy" if name == "hit_pe" else name: kind for name, kind in types.items()})
    elif kind == "treeless":
        with uproot.recreate(path) as file:
            file["note"] = "nothing else"
    elif kind == "other_tree":
        return f"{write_hits(path.name, some_hits(3))}:digits"
    return str(path)


BAD_FILES = {
    "missing": "no such file: .*missing.root",
    "directory": "directory.root is a directory, expected a file",
    "empty": r"empty.root is empty \(0 bytes\), expected a ROOT file",
    "text": "text.root is no ROOT file",
    "truncated": r"truncated.root is truncated: \d+ bytes of \d+",
    "misspelt": "branch 'hit_pe' not in tree 'hits' of .*misspelt.root; nearest: .*set it with --branches.hit_pe NAME",
    "treeless": "no tree 'hits' in .*treeless.root; it has no tree at all",
    "other_tree": "no tree 'digits' in .*other_tree.root; it has: hits; choose one with FILE:TREE",
}


def assert_refused(capsys: pytest.CaptureFixture[str], message: str) -> None:
    """One line on stderr that matches, and no output of any kind."""
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert re.match(f"error: .*{message}", captured.err)
    assert captured.out == ""
    assert not list(Path().glob("out.root*"))


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_stops_the_run(
    reco: Reco, write_hits: WriteHits, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    good = write_hits("good.root", some_hits(5))
    assert reco(good, bad_file(kind, write_hits, tmp_path), "-o", "out.root") == cli.WRONG_INPUT
    assert_refused(capsys, BAD_FILES[kind])


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_skipped_on_demand_and_listed(
    reco: Reco, write_hits: WriteHits, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    good = [write_hits(f"{part}.root", some_hits(5, 5 * part)) for part in range(2)]
    bad = bad_file(kind, write_hits, tmp_path)
    assert reco(good[0], bad, good[1], "-o", "out.root", "--skip-bad-files", "-q") == cli.DONE
    assert read("out.root", RECO)["event"].tolist() == list(range(10))
    assert capsys.readouterr().err.startswith("skipped: ")
    with uproot.open("out.root") as file:
        assert len(json.loads(str(file["provenance"]))["skipped"]) == 1


def with_bad_event(branch: str, value: float) -> ak.Array:
    """Ten events, the last hit of one of which is spoilt."""
    events = some_hits(10)
    entry = int(np.argmax(ak.num(events[branch])))
    lists = events[branch].tolist()
    lists[entry][-1] = value
    return ak.with_field(events, ak.values_astype(ak.Array(lists), "float32"), branch)


BAD_EVENTS = [
    ("hit_x", 2000.0),
    ("hit_y", np.nan),
    ("hit_pe", np.nan),
    ("hit_pe", np.inf),
    ("hit_pe", -3.0),
    ("hit_pe", 3e38),
]


@pytest.mark.parametrize(("branch", "value"), BAD_EVENTS)
def test_a_bad_event_stops_the_run(
    reco: Reco, write_hits: WriteHits, capsys: pytest.CaptureFixture[str], branch: str, value: float
) -> None:
    events = with_bad_event(branch, value)
    entry = int(np.argmax(ak.num(events[branch])))
    assert reco(write_hits("a.root", events), "-o", "out.root", "--step-size", "1") == cli.WRONG_INPUT
    assert_refused(
        capsys, f"a.root: entry {entry} of tree 'hits': branch '{branch}' has {re.escape(f'{value:g}')}, expected "
    )


@pytest.mark.parametrize(("branch", "value"), BAD_EVENTS)
def test_a_skipped_event_keeps_an_empty_entry(
    reco: Reco, write_hits: WriteHits, capsys: pytest.CaptureFixture[str], branch: str, value: float
) -> None:
    events = with_bad_event(branch, value)
    entry = int(np.argmax(ak.num(events[branch])))
    assert reco(write_hits("a.root", events), "-o", "out.root", "--skip-bad-events", "--step-size", "3") == cli.DONE
    found = read("out.root", RECO)
    assert found["event"].tolist() == list(range(10))
    wanted = ak.num(events["hit_x"]).to_numpy().copy()
    wanted[entry] = 0
    assert ak.num(found["img_x"]).tolist() == wanted.tolist()
    assert f"skipped: {Path.cwd()}/a.root: entry {entry} of tree 'hits': branch '{branch}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("yaml_text", "options", "message"),
    [
        (
            "finder: {scorethreshold: 0.2}",
            [],
            "mine.yaml: no setting 'finder.scorethreshold'; nearest: finder.score_threshold$",
        ),
        ("batchsize: 3", [], "mine.yaml: no setting 'batchsize'; nearest: batch_size$"),
        ("batch_size: many", [], "mine.yaml: .*batch_size.*Expected a .*int.*Got value: many"),
        ("batch_size: 2.5", [], "batch_size.*Expected a .*int.*Got value: 2.5"),
        ("light_scale: abc", [], "mine.yaml: .*light_scale.* abc$"),
        ("refine: 1", [], "mine.yaml: refine: expected true or false, got 1$"),
        ("", [], "mine.yaml: expected settings as 'name: value', got nothing$"),
        ("- a", [], "mine.yaml: expected settings as 'name: value', got a list$"),
        ("finder: 3", [], "finder: expected a section with the keys score_threshold, .*, got 3"),
        ("finder: [1", [], "mine.yaml: .*parsing"),
        ("branches: {hit_q: a}", [], "mine.yaml: no setting 'branches.hit_q'; nearest: branches.hit_.$"),
        ("abacus: {beads: 9}", [], "mine.yaml: no setting 'abacus.beads'; there are: batch_size, branches, .*"),
        (
            "detector: {response: {zero: 1}}",
            [],
            "mine.yaml: no setting 'detector.response.zero'; there are: detector.response.birks, .*threshold$",
        ),
        ("{}", ["--finder.score_threshold", "7"], r"finder.score_threshold must lie in \[0, 1\], got 7"),
        ("{}", ["--refinement.starts", "0"], "refinement.starts must be at least 1, got 0"),
        ("refinement: {start: 3}", [], "mine.yaml: no setting 'refinement.start'; nearest: refinement.starts$"),
        ("refine: {starts: 3}", [], "mine.yaml: no setting 'refine.starts'; nearest: refinement.starts$"),
        ("{}", ["--detector.pitch", "-1"], "detector.pitch must be positive"),
        ("{}", ["--batch_size", "x"], "batch_size.*Expected a .*int.*Got value: x"),
        ("{}", ["--batch", "5"], "--batch"),
        ("{}", ["--step-size", "lots"], "--step-size: expected .* like \"100 MB\", got 'lots'"),
        ("{}", ["--step-size", "0 MB"], "--step-size: .* got '0 MB'"),
        ("step_size: -5", [], "--step-size: .* got -5"),
        ("{}", ["--device", "abacus"], "--device abacus cannot be used"),
        ("{}", ["-n", "-2"], "expected 0 <= start <= stop"),
        ("{}", ["--finder_weights", "mine.yaml"], "checkpoint mine.yaml is no safetensors file"),
    ],
)
def test_a_wrong_setting_is_named(
    reco: Reco,
    write_hits: WriteHits,
    capsys: pytest.CaptureFixture[str],
    yaml_text: str,
    options: list[str],
    message: str,
) -> None:
    Path("mine.yaml").write_text(yaml_text)
    assert reco(write_hits("a.root", some_hits(2)), "-o", "out.root", "-c", "mine.yaml", *options) == cli.WRONG_INPUT
    assert_refused(capsys, f"({message})")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-o", "out.root"], "no input given: expected FILE"),
        (["a.root"], "no output given: expected -o OUT.root"),
        (["a.root", "-o", "out.root", "-c", "none.yaml"], "none.yaml"),
        (["a.root", "-o", "no/out.root"], "there is no folder no"),
    ],
)
def test_wrong_usage(
    reco: Reco, write_hits: WriteHits, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    write_hits("a.root", some_hits(2))
    assert reco(*argv) == cli.WRONG_INPUT
    assert_refused(capsys, message)


def test_an_existing_output_needs_force(reco: Reco, write_hits: WriteHits, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_hits("a.root", some_hits(2))
    Path("out.root").write_text("mine")
    assert reco(path, "-o", "out.root") == cli.WRONG_INPUT
    assert "output out.root exists already; -f replaces it" in capsys.readouterr().err
    assert Path("out.root").read_text() == "mine"
    assert reco(path, "-o", "out.root", "-f") == cli.DONE


@pytest.mark.parametrize("inputs", ["a.root", "*.root", "a.root:hits", "file://{}/a.root"])
@pytest.mark.parametrize("output", ["a.root", "./a.root", "link.root"])
def test_an_input_is_never_replaced(
    reco: Reco, write_hits: WriteHits, capsys: pytest.CaptureFixture[str], inputs: str, output: str
) -> None:
    content = write_hits("a.root", some_hits(2)).read_bytes()
    Path("link.root").symlink_to("a.root")
    assert reco(inputs.format(Path.cwd()), "-o", output, "-f") == cli.WRONG_INPUT
    assert_refused(capsys, f"output {Path(output)} is an input, too: expected another file")
    assert Path("a.root").read_bytes() == content


def test_an_input_is_not_written_over_meanwhile(
    reco: Reco, write_hits: WriteHits, capsys: pytest.CaptureFixture[str]
) -> None:
    write_hits("a.root.part", some_hits(2))
    assert reco("a.root.part", "-o", "a.root") == cli.WRONG_INPUT
    assert_refused(capsys, "output a.root.part is an input, too")
    Path("mine.yaml").write_text("batch_size: 4")
    assert reco("b.root", "-c", "mine.yaml", "-o", "mine.yaml", "-f") == cli.WRONG_INPUT
    assert_refused(capsys, "output mine.yaml is an input, too")


def interrupt(chain: AveragingChain, events: ak.Array) -> ak.Array:
    raise KeyboardInterrupt


def terminate(chain: AveragingChain, events: ak.Array) -> ak.Array:
    os.kill(os.getpid(), signal.SIGTERM)
    return events


def fail(chain: AveragingChain, events: ak.Array) -> ak.Array:
    raise RuntimeError("out of\nmemory")


@pytest.mark.parametrize(
    ("what", "code", "message"),
    [
        (interrupt, cli.INTERRUPTED, "interrupted"),
        (terminate, cli.INTERRUPTED, "interrupted"),
        (fail, cli.FAILED, "RuntimeError: out of memory"),
    ],
)
def test_a_run_that_breaks_off_leaves_nothing(
    reco: Reco,
    write_hits: WriteHits,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    what: Callable[..., ak.Array],
    code: int,
    message: str,
) -> None:
    monkeypatch.setattr(AveragingChain, "__call__", what)
    path = write_hits("a.root", some_hits(2))
    assert reco(path, "-o", "out.root") == code
    assert_refused(capsys, message)
    assert reco(path, "-o", "out.root", "-v") == code
    assert "Traceback" in capsys.readouterr().err
