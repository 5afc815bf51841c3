"""tools/reco.py from the outside: what is in the output, with a chain that averages hits and with the real one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import awkward as ak
import pytest
import uproot
import yaml
from conftest import ROOT, AveragingChain, Reco, WriteHits, some_hits
from tool_loader import run_without

from sparsereco import __version__, cli
from sparsereco.io import RECO, BranchNames, read
from sparsereco.vertex.config import VertexConfig
from sparsereco.vertex.light import LightYield


def test_every_event_gets_an_entry(reco: Reco, write_hits: WriteHits, capsys: pytest.CaptureFixture[str]) -> None:
    """No hits and one hit are valid events."""
    events = some_hits(40)
    assert ak.num(events["hit_x"])[:2].tolist() == [0, 1]
    assert reco(write_hits("a.root", events), "-o", "out.root") == cli.DONE
    found = read("out.root", RECO)
    assert found.tolist() == AveragingChain(VertexConfig(), "cpu")(events).tolist()
    captured = capsys.readouterr()
    assert "out.root: 40 events, " in captured.err
    assert captured.out == ""
    assert not Path("out.root.part").exists()


@pytest.mark.parametrize("rntuple", [False, True], ids=["TTree", "RNTuple"])
def test_results_do_not_depend_on_the_step_size(reco: Reco, write_hits: WriteHits, rntuple: bool) -> None:
    files = [write_hits(f"{part}.root", some_hits(15, 15 * part, part), rntuple=rntuple) for part in range(2)]
    found = []
    for step in ("4", "7", "1 kB", "100 MB"):
        assert reco(*files, "-o", "out.root", "-f", "-q", "--step-size", step) == cli.DONE
        found.append(read("out.root", RECO).tolist())
    assert found.count(found[0]) == 4
    assert [event["event"] for event in found[0]] == list(range(30))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--entry-start", 7], slice(7, None)),
        (["--entry-stop", 12], slice(0, 12)),
        (["-n", 3], slice(0, 3)),
        (["--entry-start", 8, "-n", 5], slice(8, 13)),
        (["--entry-start", 8, "--entry-stop", 11, "-n", 5], slice(8, 11)),
        (["--entry-start", 99], slice(99, None)),
    ],
)
def test_entry_ranges_over_several_files(
    reco: Reco, write_hits: WriteHits, options: list[str | int], expected: slice
) -> None:
    files = [write_hits(f"{part}.root", some_hits(10, 10 * part, part)) for part in range(2)]
    assert reco(*files, "-o", "out.root", *options) == cli.DONE
    assert read("out.root", RECO)["event"].tolist() == list(range(20))[expected]


def test_provenance_says_how_to_make_it_again(reco: Reco, write_hits: WriteHits) -> None:
    files = [write_hits(f"{part}.root", some_hits(10)) for part in range(2)]
    Path("mine.yaml").write_text("finder: {score_threshold: 0.3}\nlight_scale: 0.9\n")
    options = (
        "-c",
        "mine.yaml",
        "--light_scale",
        "1.1",
        "--seed",
        "5",
        "--device",
        "cpu",
        "--entry-start",
        "4",
        "-n",
        "9",
    )
    assert reco(*files, "-o", "out.root", "--step-size", "3", *options) == cli.DONE
    with uproot.open("out.root") as file:
        record = json.loads(str(file["provenance"]))
    uuids = [str(uproot.open(path).file.uuid) for path in files]
    assert record["inputs"] == [
        {"file": str(files[0]), "tree": "hits", "uuid": uuids[0], "entry_start": 4, "entry_stop": 10},
        {"file": str(files[1]), "tree": "hits", "uuid": uuids[1], "entry_start": 0, "entry_stop": 3},
    ]
    config = record["config"]
    assert (config["finder"]["score_threshold"], config["light_scale"], config["branches"]["hit_pe"]) == (
        0.3,
        1.1,
        "hit_pe",
    )
    assert record["chain"] == {"finder": {"sha256": "00ff"}}
    assert (record["version"], record["seed"], record["device"], record["skipped"]) == (__version__, 5, "cpu", [])
    assert record["command"].startswith("reco.py vertex ")
    assert record["libraries"]["uproot"] == uproot.__version__
    assert record["time"].endswith("+00:00")
    assert record["units"]["part_ke"] == "MeV"


def test_no_events_give_a_valid_empty_output(
    reco: Reco, write_hits: WriteHits, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_hits("a.root", some_hits(0))
    assert reco(path, "-o", "out.root") == cli.DONE
    assert "light yield" not in capsys.readouterr().err
    assert len(read("out.root", RECO)) == 0
    with uproot.open("out.root") as file:
        assert json.loads(str(file["provenance"]))["inputs"][0]["entry_stop"] == 0


def test_check_reads_headers_and_writes_nothing(
    reco: Reco, write_hits: WriteHits, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        reco(write_hits("a.root", some_hits(1234)), "--check", "--branches.run", "null", "--device", "cpu") == cli.DONE
    )
    out = capsys.readouterr().out
    assert "a.root: tree 'hits', 1,234 events" in out
    assert "hit_pe [p.e.]   from hit_pe" in out
    assert "run             from (none)" in out
    assert 'chain on cpu: {\n  "finder"' in out
    assert [path.name for path in Path().iterdir()] == ["a.root"]


def test_the_shipped_config_holds_every_key_with_its_default(reco: Reco, capsys: pytest.CaptureFixture[str]) -> None:
    shipped = yaml.safe_load((ROOT / "configs" / "vertex.yaml").read_text())
    defaults = json.loads(json.dumps(asdict(VertexConfig()) | {"branches": asdict(BranchNames())}))
    assert shipped == defaults
    assert reco("--print-config", "-c", ROOT / "configs" / "vertex.yaml", "--refine") == cli.DONE
    defaults["refine"] = True
    assert yaml.safe_load(capsys.readouterr().out) == defaults


def test_the_detector_may_be_a_file(reco: Reco, capsys: pytest.CaptureFixture[str]) -> None:
    assert reco("--print-config", "--detector", ROOT / "configs" / "detectors" / "superfgd.yaml") == cli.DONE
    assert yaml.safe_load(capsys.readouterr().out)["detector"]["response"]["crosstalk"] == 0.03


@pytest.mark.parametrize("system", [[], ["vertex"]])
def test_help_loads_nothing_heavy(system: list[str]) -> None:
    done = run_without("reco", [*system, "--help"], {"torch", "uproot", "awkward", "scipy", "rich"})
    assert done.returncode == 0, done.stderr
    assert "vertex" in done.stdout
    if system:
        assert "--finder.score_threshold" in done.stdout
        assert "Candidates with a lower score are dropped" in done.stdout


def test_the_real_chain_runs(
    tool: ModuleType, write_hits: WriteHits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.root"
    argv = ["vertex", str(write_hits("a.root", some_hits(20))), "-o", str(out), "--device", "cpu"]
    assert cli.main(tool.run, argv) == cli.DONE, capsys.readouterr().err
    assert read(str(out), RECO)["event"].tolist() == list(range(20))


@pytest.mark.parametrize(
    ("light", "options", "expected", "word"),
    [
        (LightYield(0.9, 0.01, 400), [], 0.9, "0.900 +- 0.010"),
        (LightYield(0.9, 0.01, 400), ["--light_scale", 1.1], 1.1, ""),
        (LightYield(0.9, 0.02, 20), [], 1.0, "only 20 leaving tracks"),
        (LightYield(7.0, 0.01, 400), [], 1.0, "no plausible one"),
    ],
)
def test_the_light_yield_is_measured_on_the_input(
    reco: Reco,
    write_hits: WriteHits,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    light: LightYield,
    options: list[str | float],
    expected: float,
    word: str,
) -> None:
    """On the events of the entry range, the sound ones, unless the user names it; what was taken is in the output."""
    seen: list[int] = []

    def measure(chain: AveragingChain, events: ak.Array) -> LightYield:
        seen.extend(events["event"].tolist())
        return light

    monkeypatch.setattr(AveragingChain, "measure_light", measure)
    files = [write_hits(f"{part}.root", some_hits(10, 10 * part)) for part in range(2)]
    assert reco(*files, "-o", "out.root", "--step-size", "3", "--entry-start", "4", "-n", "9", *options) == cli.DONE
    assert seen == ([] if options else list(range(4, 13)))
    with uproot.open("out.root") as file:
        record = json.loads(str(file["provenance"]))
    assert record["config"]["light_scale"] == expected
    assert record["light_yield"] == (None if options else asdict(light))
    hits = ak.flatten(some_hits(10)["hit_pe"][4:]).to_numpy()
    assert ak.flatten(read("out.root", RECO)["img_pe"][:6]).to_numpy() == pytest.approx(hits / expected, rel=1e-6)
    assert word in capsys.readouterr().err
