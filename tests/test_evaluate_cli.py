"""tools/evaluate.py from the outside."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
from synthetic import hit_events, reco_events, truth_events
from tool_loader import load_tool

from sparsereco import cli
from sparsereco.detector import Detector, Response
from sparsereco.events import detector_of
from sparsereco.io import HITS, RECO, TRUTH, InputError, RootWriter, read
from sparsereco.vertex import limit

TOOLS = Path(__file__).parents[1] / "tools"
DEMO = Path(__file__).parent / "data" / "demo.root"
N = 60
WriteReco = Callable[..., Path]
Evaluate = Callable[..., int]


@pytest.fixture(scope="module")
def truth() -> ak.Array:
    return truth_events(N)


@pytest.fixture(scope="module")
def sample(truth: ak.Array, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with hits and truth."""
    path = tmp_path_factory.mktemp("sample") / "sample.root"
    with RootWriter(path) as writer:
        writer.extend("hits", HITS, hit_events(truth))
        writer.extend("truth", TRUTH, truth)
    return path


@pytest.fixture
def write_reco(tmp_path: Path) -> WriteReco:
    def write(events: ak.Array, name: str = "reco.root") -> Path:
        path = tmp_path / name
        with RootWriter(path) as writer:
            writer.create("reco", RECO)
            writer.extend("reco", RECO, events)
            writer.provenance({"version": "test", "config": {"light_scale": 1.0}})
        return path

    return write


@pytest.fixture
def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """Runs the tool in the temporary folder and gives the exit code."""
    module = load_tool("evaluate")
    monkeypatch.chdir(tmp_path)
    return lambda *argv: cli.main(module.run, ["vertex", *map(str, argv)])


def test_report_of_a_known_smearing(
    evaluate: Evaluate, write_reco: WriteReco, sample: Path, truth: ak.Array, capsys: pytest.CaptureFixture[str]
) -> None:
    reco = write_reco(reco_events(truth, ke_sigma=2.0))
    assert evaluate(reco, sample, "-o", "report", "--pdf") == cli.DONE
    printed = capsys.readouterr().out
    for name in ("vertex within 20 mm", "hadron number right", "total energy, spread of the best baseline"):
        assert name in printed

    numbers = json.loads(Path("report/report.json").read_text())
    assert numbers["events"] == N
    spread = numbers["hadron_energy"]["optimal"]["spread"]
    assert abs(spread["value"] - 2.0) < 4 * spread["error"]
    assert numbers["baselines"]["total_energy"]["linear, true muon"]["spread"]["value"] < 0.3
    assert numbers["provenance"]["reconstruction"]["version"] == "test"
    assert [entry["entries"] for entry in numbers["provenance"]["inputs"]] == [N, N]

    figures = {path.name for path in Path("report/figures").iterdir()}
    names = {"total_energy", "hadron_energy", "number", "species", "unmatched", "direction", "vertex", "calibration"}
    assert figures == {f"{name}.{kind}" for name in names for kind in ("png", "pdf")}
    page = Path("report/report.html").read_text()
    assert page.count("data:image/png;base64,") == len(names)
    assert "://" not in page.split("<details>")[0]  # nothing from outside
    assert not list(Path("report").rglob("*.part"))


def test_file_names_are_escaped(evaluate: Evaluate, write_reco: WriteReco, sample: Path, truth: ak.Array) -> None:
    reco = write_reco(reco_events(truth), "<script>alert('&').root")
    assert evaluate(reco.name, sample, "-o", "report") == cli.DONE
    page = Path("report/report.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(") >= 2  # the line under the title, the provenance


def test_without_hits_the_baselines_are_left_out_with_a_note(
    evaluate: Evaluate, write_reco: WriteReco, truth: ak.Array, capsys: pytest.CaptureFixture[str]
) -> None:
    with RootWriter("truth.root") as writer:
        writer.extend("truth", TRUTH, truth)
    assert evaluate(write_reco(reco_events(truth)), "truth.root", "-o", "report") == cli.DONE
    numbers = json.loads(Path("report/report.json").read_text())
    assert numbers["baselines"] == {"total_energy": {}, "vertex": {}}
    assert "has no tree 'hits'" in numbers["note"]
    assert "has no tree" in Path("report/report.html").read_text()
    assert "No baselines" in capsys.readouterr().out


def test_the_limit_stands_beside_what_was_reached(
    evaluate: Evaluate, write_reco: WriteReco, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limit, "CHAINS", 16)
    monkeypatch.setattr(limit, "SAMPLINGS", 20)
    truth = read(DEMO, TRUTH)
    reco = write_reco(reco_events(truth, ke_sigma=2.0))
    assert evaluate(reco, DEMO, "-o", "report", "--oracle", 6) == cli.DONE
    printed = capsys.readouterr().out
    methods = "this reconstruction", "fit from the truth", "fit to light alone", "mean near the truth"
    for method in (*methods, "information, 1 hadron"):
        assert method in printed
        assert method in Path("report/report.html").read_text()
    rows = json.loads(Path("report/report.json").read_text())["limit"]
    assert tuple(row["method"] for row in rows[:4]) == methods
    here, start, light, *_ = rows
    assert here["events"] == start["events"] <= 6
    assert light["vertex"]["value"] < 2.0, "from the truth the fit stays close"
    assert light["ke"]["value"] < start["ke"]["value"], "the prior pulls it to what the decomposer found"


@pytest.mark.parametrize("number", [-1, 1.5])
def test_a_number_of_events_that_is_none(
    evaluate: Evaluate, write_reco: WriteReco, sample: Path, truth: ak.Array, number: float
) -> None:
    assert evaluate(write_reco(reco_events(truth)), sample, "-o", "r", "--oracle", number) == cli.WRONG_INPUT
    assert not Path("r").exists()


def test_no_limit_where_no_crop_holds_the_vertex(
    evaluate: Evaluate, write_reco: WriteReco, capsys: pytest.CaptureFixture[str]
) -> None:
    hits, truth = read(DEMO, HITS)[:3], read(DEMO, TRUTH)[:3]
    truth["vtx_x"] = truth["vtx_x"] + np.float32(200)
    with RootWriter("moved.root") as writer:
        writer.extend("hits", HITS, hits)
        writer.extend("truth", TRUTH, truth)
    assert evaluate(write_reco(reco_events(truth)), "moved.root", "-o", "report", "--oracle", 3) == cli.WRONG_INPUT
    assert "--oracle 3: none of 3 events" in capsys.readouterr().err
    assert not Path("report").exists()


def test_no_events_give_a_report(evaluate: Evaluate, write_reco: WriteReco) -> None:
    with RootWriter("truth.root") as writer:
        writer.create("truth", TRUTH)
        writer.create("hits", HITS)
    truth = truth_events(0)
    assert evaluate(write_reco(reco_events(truth)), "truth.root", "-o", "report") == cli.DONE
    numbers = json.loads(Path("report/report.json").read_text())
    assert numbers["table"][0]["estimate"] == {"value": None, "error": None, "count": 0}


def test_nothing_found_at_all_gives_a_report(
    evaluate: Evaluate, write_reco: WriteReco, sample: Path, truth: ak.Array
) -> None:
    assert evaluate(write_reco(reco_events(truth, no_vertex=1.0)), sample, "-o", "report") == cli.DONE
    numbers = json.loads(Path("report/report.json").read_text())
    assert numbers["vertex"]["within_20mm"]["value"] == 0
    assert "at least 20 events" in numbers["note"]


def test_events_without_any_hadron_give_a_report(evaluate: Evaluate, write_reco: WriteReco, truth: ak.Array) -> None:
    reco = reco_events(truth, inefficiency=1.0)
    hadronless = truth
    for name in truth.fields:
        if name.startswith("part_"):
            hadronless = ak.with_field(hadronless, truth[name][truth.part_pdg == 13], name)
    with RootWriter("muons.root") as writer:
        writer.extend("hits", HITS, hit_events(hadronless))
        writer.extend("truth", TRUTH, hadronless)
    assert evaluate(write_reco(reco), "muons.root", "-o", "report") == cli.DONE
    numbers = json.loads(Path("report/report.json").read_text())
    assert numbers["number"]["right"]["value"] == 1
    assert numbers["hadron_energy"]["optimal"]["spread"]["count"] == 0


def test_a_vertex_whose_image_is_not_fitted_is_evaluated(
    evaluate: Evaluate, write_reco: WriteReco, sample: Path, truth: ak.Array
) -> None:
    reco = reco_events(truth)
    unfitted = write_reco(ak.with_field(reco, reco.vtx_deviance * np.float32(np.nan), "vtx_deviance"))
    assert evaluate(unfitted, sample, "-o", "report") == cli.DONE
    assert json.loads(Path("report/report.json").read_text())["vertex"]["found"]["value"] == 1


def changed(events: ak.Array, name: str, entry: int, value: float) -> ak.Array:
    """Events of which one has another number."""
    column = ak.to_numpy(events[name]).copy()
    column[entry] = value
    return ak.with_field(events, column, name)


def test_other_events_are_refused(
    evaluate: Evaluate, write_reco: WriteReco, sample: Path, truth: ak.Array, capsys: pytest.CaptureFixture[str]
) -> None:
    reco = reco_events(truth)
    other = write_reco(changed(reco, "subrun", 7, 3), "other.root")
    assert evaluate(other, sample, "-o", "report") == cli.WRONG_INPUT
    message = capsys.readouterr().err
    assert "first at entry 7: run 1 subrun 3 event 7 against run 1 subrun 0 event 7 (1 of 60 entries differ)" in message

    assert evaluate(write_reco(reco[:-1], "short.root"), sample, "-o", "report") == cli.WRONG_INPUT
    message = capsys.readouterr().err
    assert "short.root has 59 events" in message
    assert "sample.root has 60" in message
    assert not Path("report").exists()


def test_hits_of_other_events_are_refused(
    evaluate: Evaluate, write_reco: WriteReco, truth: ak.Array, capsys: pytest.CaptureFixture[str]
) -> None:
    with RootWriter("sample.root") as writer:
        writer.extend("truth", TRUTH, truth)
        writer.extend("hits", HITS, changed(hit_events(truth), "event", 5, 99))
    assert evaluate(write_reco(reco_events(truth)), "sample.root", "-o", "report") == cli.WRONG_INPUT
    assert "tree 'hits' of sample.root" in capsys.readouterr().err


def test_numbers_that_are_none_are_refused(
    evaluate: Evaluate, write_reco: WriteReco, sample: Path, truth: ak.Array, capsys: pytest.CaptureFixture[str]
) -> None:
    reco = reco_events(truth)
    broken = reco.part_ke / ak.Array(np.where(np.arange(N) == 3, np.nan, 1))
    path = write_reco(ak.with_field(reco, broken, "part_ke"))
    assert evaluate(path, sample, "-o", "report") == cli.WRONG_INPUT
    message = capsys.readouterr().err
    assert "entry 3 of tree 'reco': branch 'part_ke' has [nan" in message
    assert message.count("\n") == 1


def test_a_report_is_replaced_only_when_told(
    evaluate: Evaluate, write_reco: WriteReco, sample: Path, truth: ak.Array, capsys: pytest.CaptureFixture[str]
) -> None:
    reco = write_reco(reco_events(truth))
    Path("report").mkdir()
    Path("report/report.json").write_text("old")
    Path("report/mine.txt").write_text("kept")
    assert evaluate(reco, sample, "-o", "report") == cli.WRONG_INPUT
    assert "-f replaces" in capsys.readouterr().err
    assert Path("report/report.json").read_text() == "old"
    assert evaluate(reco, sample, "-o", "report", "-f") == cli.DONE
    assert json.loads(Path("report/report.json").read_text())["events"] == N
    assert Path("report/mine.txt").read_text() == "kept"


def test_no_figure_of_an_earlier_report_is_left(
    evaluate: Evaluate, write_reco: WriteReco, sample: Path, truth: ak.Array
) -> None:
    reco = write_reco(reco_events(truth))
    assert evaluate(reco, sample, "-o", "report", "--pdf") == cli.DONE
    assert Path("report/figures/vertex.pdf").exists()
    assert evaluate(reco, sample, "-o", "report", "-f") == cli.DONE
    figures = sorted(path.name for path in Path("report/figures").iterdir())
    assert figures == json.loads(Path("report/report.json").read_text())["figures"]
    assert {Path(name).suffix for name in figures} == {".png"}


@pytest.mark.parametrize("record", [None, "old", "[]", '{"figures": 3}', '{"figures": ["vertex.png"]}'])
def test_figures_of_somebody_else_are_not_replaced(
    record: str | None,
    evaluate: Evaluate,
    write_reco: WriteReco,
    sample: Path,
    truth: ak.Array,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("report/figures").mkdir(parents=True)
    Path("report/figures/thesis.png").write_text("mine")
    if record is not None:
        Path("report/report.json").write_text(record)
    assert evaluate(write_reco(reco_events(truth)), sample, "-o", "report", "-f") == cli.WRONG_INPUT
    assert "report/figures holds thesis.png, which is not of an earlier report" in capsys.readouterr().err
    assert Path("report/figures/thesis.png").read_text() == "mine"
    assert not Path("report/report.html").exists()


def test_the_detector_is_that_of_the_reconstruction() -> None:
    detector = Detector(shape=(10, 20, 30), pitch=5.0, origin=(0.0, 1.0, 2.0), response=Response(crosstalk=0.03))
    record = json.loads(json.dumps({"config": {"detector": asdict(detector)}}))
    assert detector_of(record) == detector
    assert detector_of({}) == Detector()
    del record["config"]["detector"]["pitch"]
    with pytest.raises(InputError, match="no detector: 'pitch'"):
        detector_of(record)


@pytest.mark.parametrize("argv", [[], ["absent.root", "absent.root", "-o", "report"], ["--no-such-option"]])
def test_wrong_usage(evaluate: Evaluate, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(*argv) == cli.WRONG_INPUT
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("tool", ["evaluate.py", "display.py"])
def test_help_needs_no_heavy_library(tool: str) -> None:
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['{tool}', '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(TOOLS / tool)!r}, run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    assert stop.code == 0\n"
        "print({'torch', 'uproot', 'awkward', 'matplotlib', 'plotly', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
