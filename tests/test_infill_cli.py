"""tools/simulate.py, reco.py, evaluate.py infill and train.py filler from the outside."""

from __future__ import annotations

import json
import os
from pathlib import Path

import awkward as ak
import h5py
import numpy as np
import pytest
import yaml
from conftest import ROOT, RunTool
from tool_loader import run_without

from sparsereco import cli
from sparsereco.events import read_provenance
from sparsereco.io import RootWriter, read
from sparsereco.schema import CHARGE_HITS, INFILL, INFILL_TRUTH
from sparsereco.sim.lartpc import SegmentBank


@pytest.fixture(scope="module")
def bank_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Straight tracks along z in steps of 2 mm, of four species."""
    path = tmp_path_factory.mktemp("bank") / "bank.npz"
    steps, species = 350, [13, 13, 211, 2212, 11, 11]
    z = np.tile(np.arange(steps) * 2.0, len(species))
    start = np.stack([0 * z, 0 * z, z], 1).astype("f4")
    end = start + np.array([0, 0, 2], "f4")
    offsets = np.arange(len(species) + 1) * steps
    ke = np.array([500, 900, 200, 100, 50, 5], "f4")
    SegmentBank(start, end, np.full(len(z), 0.42, "f4"), offsets, np.array(species, "i4"), ke).save(path)
    return path


def simulate(run_tool: RunTool, bank: Path, name: str = "sample.root", n: int = 12, **options: object) -> int:
    given = {"--seed": 3, "--detector": "gap10", "--bank": bank} | {f"--{key}": value for key, value in options.items()}
    return run_tool("simulate", "infill", "-o", name, "-n", n, *(word for pair in given.items() for word in pair))


def test_from_simulation_to_report(run_tool: RunTool, bank_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(run_tool, bank_file) == cli.DONE
    assert (
        run_tool("reco", "infill", "sample.root", "-o", "filled.root", "--detector", "gap10", "--step-size", 5)
        == cli.DONE
    )
    hits, truth, filled = (
        read("sample.root", CHARGE_HITS),
        read("sample.root", INFILL_TRUTH),
        read("filled.root", INFILL),
    )
    assert filled["event"].tolist() == hits["event"].tolist() == truth["event"].tolist()
    assert ak.all(filled["fill_prob"] >= 0.4)
    assert ak.all(np.abs(filled["fill_x"]) < 19.1)  # in the gap
    made = read_provenance("filled.root")
    assert made["chain"]["detector"]["size"] == [285, 1241.52, 620.76]
    assert made["inputs"][0]["entry_stop"] == 12
    assert run_tool("evaluate", "infill", "filled.root", "sample.root", "-o", "report") == cli.DONE
    numbers = json.loads(Path("report/report.json").read_text())
    assert numbers["methods"]["network"]["f1"]["value"] > 0.7  # straight tracks
    assert set(numbers["methods"]) == {
        "network", "straight line", "straight line, lone ends too", "reflection", "nothing",
    }  # fmt: skip
    assert sorted(path.name for path in Path("report/figures").iterdir()) == sorted(numbers["figures"])
    assert "network: F1 by exact voxel" in capsys.readouterr().out
    assert run_tool("evaluate", "infill", "filled.root", "sample.root", "-o", "report") == cli.WRONG_INPUT


def test_the_step_size_does_not_change_the_result(run_tool: RunTool, bank_file: Path) -> None:
    assert simulate(run_tool, bank_file, preset="mixed") == cli.DONE
    for name, step in (("a.root", 3), ("b.root", 12)):
        options = ["--detector", "gap10", "--step-size", step]
        assert run_tool("reco", "infill", "sample.root", "-o", name, *options) == cli.DONE
    first, second = (read(name, INFILL) for name in ("a.root", "b.root"))
    assert first["fill_x"].tolist() == second["fill_x"].tolist()
    assert np.allclose(ak.flatten(first["fill_e"]), ak.flatten(second["fill_e"]), rtol=1e-4)


def test_an_entry_range(run_tool: RunTool, bank_file: Path) -> None:
    assert simulate(run_tool, bank_file) == cli.DONE
    options = ["--detector", "gap10", "--entry-start", 4, "-n", 3]
    assert run_tool("reco", "infill", "sample.root", "-o", "some.root", *options) == cli.DONE
    assert read("some.root", INFILL)["event"].tolist() == [4, 5, 6]


def test_a_seed_decides_the_file(run_tool: RunTool, bank_file: Path) -> None:
    for name, seed in (("a.root", 3), ("b.root", 3), ("c.root", 4)):
        assert simulate(run_tool, bank_file, name, seed=seed, preset="mixed") == cli.DONE
    a, b, c = (read(name, CHARGE_HITS).tolist() for name in ("a.root", "b.root", "c.root"))
    assert a == b
    assert a != c


def test_segments_and_voxels_from_hdf5(run_tool: RunTool, capsys: pytest.CaptureFixture[str]) -> None:
    kind = [("eventID", "u4"), ("dE", "f4")] + [(f"{a}_{s}", "f4") for s in ("start", "end") for a in "xyz"]
    rows = np.zeros(3, kind)  # a track along x in each of two events; in the second it is in two pieces
    rows["eventID"], rows["dE"] = [7, 9, 9], [50, 25, 25]
    rows["x_start"], rows["x_end"] = [-12, -12, 0], [12, 0, 12]
    with h5py.File("segments.h5", "w") as file:
        file["segments"] = rows
    assert run_tool("reco", "infill", "segm*.h5", "-o", "a.root", "--detector", "gap10") == cli.DONE
    found = read("a.root", INFILL)
    assert found["event"].tolist() == [7, 9]
    assert ak.num(found["fill_e"]).tolist()[0] >= 8
    assert "left out" not in capsys.readouterr().err
    rows["x_start"][2], rows["x_end"][2] = 9000, 9012  # 90 m away
    with h5py.File("partly.h5", "w") as file:
        file["segments"] = rows
    assert run_tool("reco", "infill", "partly.h5", "-o", "c.root", "--detector", "gap10") == cli.DONE
    assert "partly.h5: 1 of 3 segments, 25 MeV, lie outside the detector" in capsys.readouterr().err
    for place, message in ((9000, "all segments lie outside the detector"), (1e12, "expected finite numbers below")):
        rows["x_start"], rows["x_end"] = place, place + 12
        with h5py.File("far.h5", "w") as file:
            file["segments"] = rows
        assert run_tool("reco", "infill", "far.h5", "-o", "d.root", "--detector", "gap10") == cli.WRONG_INPUT
        assert message in capsys.readouterr().err
    voxel = np.zeros(60, [("imageInd", "i4"), ("voxx", "i4"), ("voxy", "i4"), ("voxz", "i4"), ("voxdE", "f4")])
    voxel["voxx"], voxel["voxy"], voxel["voxz"], voxel["voxdE"] = np.arange(50, 110), 160, 80, 0.8
    with h5py.File("voxels.h5", "w") as file:
        file["data"] = voxel
    assert run_tool("reco", "infill", "voxels.h5", "-o", "b.root", "--detector", "gap10") == cli.DONE
    assert ak.num(read("b.root", INFILL)["fill_e"]).tolist()[0] >= 8


def write_hits(name: str, **changed: list) -> None:
    event = {"hit_x": [[-100.0], [-50.0]], "hit_y": [[0.0]] * 2, "hit_z": [[0.0]] * 2, "hit_e": [[0.8]] * 2} | changed
    numbers = {"run": [1, 1], "subrun": [0, 0], "event": [4, 5]}
    with RootWriter(name, force=True) as writer:
        writer.extend(
            "hits", CHARGE_HITS, ak.zip({k: ak.Array(v) for k, v in (numbers | event).items()}, depth_limit=1)
        )


def test_bad_input_is_told_in_one_line(run_tool: RunTool, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(message: str, *argv: object) -> None:
        assert run_tool("reco", "infill", *argv) == cli.WRONG_INPUT
        said = capsys.readouterr().err
        assert message in said
        assert len(said.splitlines()) == 1
        assert not Path("out.root").exists()

    write_hits("good.root")
    refused("no geometry given: --detector, expected 2x2", "good.root", "-o", "out.root")
    refused("no such file: none.root", "none.root", "-o", "out.root", "--detector", "gap10")
    options = ["-o", "out.root", "--detector", "gap10"]
    write_hits("dead.root", hit_x=[[-100.0], [3.0]])
    refused("dead.root: entry 1 of tree 'hits': branch 'hit_x' has 3, expected live argon", "dead.root", *options)
    write_hits("negative.root", hit_e=[[-1.0], [0.8]])
    refused("entry 0 of tree 'hits': branch 'hit_e' has -1, expected a finite energy", "negative.root", *options)
    refused("branch 'charge' not in tree 'hits'", "good.root", *options, "--branches.hit_e", "charge")
    refused("min_prob must lie in [0, 1], got 3", "good.root", *options, "--min_prob", 3)
    refused("either all ROOT files or all HDF5 files", "good.root", "x.h5", *options)


def test_bad_events_can_be_skipped(run_tool: RunTool, capsys: pytest.CaptureFixture[str]) -> None:
    write_hits("dead.root", hit_x=[[-100.0], [3.0]])
    options = ["--detector", "gap10", "--skip-bad-events"]
    assert run_tool("reco", "infill", "dead.root", "-o", "out.root", *options) == cli.DONE
    assert "skipped: dead.root: entry 1" in capsys.readouterr().err
    assert len(read("out.root", INFILL)) == 2


def test_the_shipped_config_lists_the_defaults(run_tool: RunTool, capsys: pytest.CaptureFixture[str]) -> None:
    file = ROOT / "configs" / "infill.yaml"
    assert run_tool("reco", "infill", "--print-config") == cli.DONE
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(file.read_text())
    assert run_tool("reco", "infill", "-c", file, "--detector", "2x2", "--min_prob", 0.7, "--print-config") == cli.DONE
    changed = yaml.safe_load(capsys.readouterr().out)
    assert (changed["detector"], changed["min_prob"]) == ("2x2", 0.7)
    Path("odd.yaml").write_text("min_probability: 0.5\n")
    assert run_tool("reco", "infill", "-c", "odd.yaml", "--print-config") == cli.WRONG_INPUT


def test_the_shipped_training_lists_the_defaults() -> None:
    from dataclasses import asdict

    from sparsereco.commands.train_infill import FillerTraining

    shipped = yaml.safe_load((ROOT / "configs" / "train" / "filler.yaml").read_text())
    assert shipped == json.loads(json.dumps(asdict(FillerTraining())))


def test_help_loads_nothing_heavy() -> None:
    for tool in ("reco", "simulate", "evaluate"):
        done = run_without(tool, ["infill", "--help"], {"torch", "uproot", "awkward", "scipy", "h5py"})
        assert done.returncode == 0, done.stderr


def test_check_prints_the_gaps(run_tool: RunTool, capsys: pytest.CaptureFixture[str]) -> None:
    write_hits("good.root")
    assert run_tool("reco", "infill", "good.root", "--check", "--detector", "2x2") == cli.DONE
    said = capsys.readouterr().out
    assert "good.root: tree 'hits', 2 events" in said
    assert "gap 1: 15 voxels wide" in said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["infill", "-o", "a.root", "-n", 2, "--seed", 1], "no geometry given"),
        (["infill", "-o", "a.root", "-n", 0, "--seed", 1, "--detector", "gap10"], "-n: expected a positive number"),
        (
            ["infill", "-o", "a.root", "-n", 2, "--seed", 1, "--detector", "gap10", "--segments", "no.h5"],
            "no such file",
        ),
        (
            ["infill", "-o", "a.root", "-n", 2, "--seed", 1, "--detector", "gap10", "--bank", __file__],
            "is no bank of tracks in liquid argon; make one with tools/simulate.py lar-bank",
        ),
        (["lar-bank", "-o", "bank.root", "-n", 2, "--seed", 1], "expected a name that ends in .npz"),
    ],
)
def test_what_simulate_refuses(run_tool: RunTool, capsys: pytest.CaptureFixture[str], argv: list, message: str) -> None:
    assert run_tool("simulate", *argv) == cli.WRONG_INPUT
    assert message in capsys.readouterr().err


def test_the_truth_must_be_of_the_same_events(
    run_tool: RunTool, bank_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate(run_tool, bank_file) == cli.DONE
    assert simulate(run_tool, bank_file, "short.root", n=5) == cli.DONE
    assert run_tool("reco", "infill", "sample.root", "-o", "filled.root", "--detector", "gap10") == cli.DONE
    assert run_tool("evaluate", "infill", "filled.root", "short.root", "-o", "report") == cli.WRONG_INPUT
    assert "expected the same events" in capsys.readouterr().err
    assert simulate(run_tool, bank_file, "other.root", seed=4) == cli.DONE
    assert run_tool("evaluate", "infill", "filled.root", "other.root", "-o", "report") == cli.WRONG_INPUT
    assert "first at entry 0: run 3 subrun 0 event 0 against run 4" in capsys.readouterr().err


def test_a_training_of_three_steps(run_tool: RunTool, bank_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--network.channels",
        "[8, 8]",
        "--schedule.steps",
        3,
        "--schedule.batch_size",
        4,
        "--output",
        "out",
        "-q",
    ]
    assert run_tool("train", "filler", *options) == cli.WRONG_INPUT
    assert "tools/simulate.py lar-bank -o banks/lar.npz" in capsys.readouterr().err
    banks = ["--tracks.bank", bank_file, "--held_out", bank_file, "--held_out_batches", 1]
    environment = dict(os.environ)
    assert run_tool("train", "filler", *options, *banks) == cli.DONE
    assert dict(os.environ) == environment  # what the processes of the training need is theirs alone
    from sparsereco import checkpoint

    made = checkpoint.metadata("out/filler.safetensors")
    assert made["class"] == "Filler"
    assert set(made["metrics"]) == {"muon", "mixed"}


def test_the_form_of_the_slides_is_trained_and_scored(
    run_tool: RunTool, bank_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    banks = ["--bank", bank_file, "--held-out", bank_file]
    assert run_tool("benchmark", "slides", *banks, "--steps", 1, "--events", 6, "--json", "slides.json") == cli.DONE
    rows = json.loads(Path("slides.json").read_text())["rows"]
    assert [row["weights"] for row in rows] == ["softmax", "barrier", "fixed"]
    assert all(0 <= row["f1"] <= row["f1_near"] <= 1 for row in rows)
    assert rows[2]["final"] == [0.5, 0.5]
    assert run_tool("benchmark", "slides", *banks, "--steps", 0) == cli.WRONG_INPUT
