"""tools/simulate.py from the outside: exit codes, what is written, and that a seed decides it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import torch
from tool_loader import load_tool

from sparsereco import cli
from sparsereco.io import read
from sparsereco.schema import HITS, TRUTH
from sparsereco.sim.bank import Bank

Simulate = Callable[..., int]


@pytest.fixture
def simulate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Simulate:
    """Runs the tool in the temporary folder and gives the exit code."""
    module = load_tool("simulate")
    monkeypatch.chdir(tmp_path)
    return lambda *argv: cli.main(module.run, [str(word) for word in argv])


@pytest.fixture
def bank_file(bank: Bank, tmp_path: Path) -> Path:
    bank.save(tmp_path / "bank.npz")
    return tmp_path / "bank.npz"


def trees(path: str) -> tuple[list, list]:
    return read(path, HITS).tolist(), read(path, TRUTH).tolist()


@pytest.mark.parametrize("preset", ["conf1", "conf2"])
@pytest.mark.parametrize("response", ["ideal", "superfgd"])
def test_a_seed_decides_the_file(simulate: Simulate, bank_file: Path, preset: str, response: str) -> None:
    def make(name: str, seed: int) -> tuple[list, list]:
        options = ["--seed", seed, "--preset", preset, "--response", response, "--bank", bank_file]
        assert simulate("vertex", "-o", name, "-n", 8, *options) == cli.DONE
        return trees(name)

    first = make("a.root", 7)
    torch.manual_seed(99)  # the global generator plays no part
    assert make("b.root", 7) == first
    assert make("c.root", 8) != first
    hits, truth = read("a.root", HITS), read("a.root", TRUTH)
    assert len(hits) == len(truth) == 8
    assert hits["event"].tolist() == truth["event"].tolist() == list(range(8))
    assert hits["run"].tolist() == truth["run"].tolist() == [7] * 8  # samples of other seeds are other runs
    assert ak.min(hits["hit_pe"]) >= (3 if response == "superfgd" else 1)
    species = set(ak.flatten(truth["part_pdg"]).tolist())
    assert {13, 2212} <= species
    assert preset == "conf2" or species == {13, 2212}


def test_without_a_bank_fresh_tracks_are_made(
    simulate: Simulate, bank: Bank, capfd: pytest.CaptureFixture[str]
) -> None:
    assert simulate("vertex", "-o", "a.root", "-n", 2, "--seed", 1) == cli.DONE
    assert len(read("a.root", TRUTH)) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == "a.root: 2 events\n"


def test_a_bank_is_written(simulate: Simulate, bank: Bank) -> None:
    assert simulate("bank", "-o", "new.npz", "-n", 30, "--seed", 2, "-q") == cli.DONE
    assert len(Bank.load("new.npz")) == 30
    assert simulate("bank", "-o", "new.npz", "-n", 30, "--seed", 2) == cli.WRONG_INPUT
    assert simulate("bank", "-o", "new.npz", "-n", 31, "--seed", 2, "-f", "-q") == cli.DONE


def test_an_existing_file_is_replaced_only_with_force(
    simulate: Simulate, bank_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.root").write_text("precious")
    options = ["vertex", "-o", "a.root", "-n", 3, "--seed", 1, "--bank", bank_file]
    assert simulate(*options) == cli.WRONG_INPUT
    assert "a.root exists already" in capsys.readouterr().err
    assert Path("a.root").read_text() == "precious"
    assert simulate(*options, "-f") == cli.DONE
    assert len(read("a.root", HITS)) == 3
    Path("copy.npz").write_bytes(bank_file.read_bytes())
    taken = ["vertex", "-o", "copy.npz", "-n", 3, "--seed", 1, "--bank", "copy.npz", "-f"]
    assert simulate(*taken) == cli.WRONG_INPUT
    assert "output copy.npz is an input, too" in capsys.readouterr().err
    assert Path("copy.npz").read_bytes() == bank_file.read_bytes()
    assert not Path("a.root.part").exists()


WRONG = [
    (["--response", "idael"], "--response: expected ideal, superfgd or a YAML file, got 'idael'"),
    (["--response", "unknown.yaml"], "unknown.yaml"),
    (["--response", "key.yaml"], "lite_yield"),
    (["--response", "value.yaml"], "crosstalk must lie in"),
    (["--response", "list.yaml"], "list.yaml"),
    (["--response", "broken.yaml"], "broken.yaml"),
    (["--preset", "conf3"], "conf3"),
    (["--bank", "missing.npz"], "bank missing.npz cannot be read: .*No such file"),
    (["--bank", "key.yaml"], "key.yaml is no bank of vertex tracks; make one with tools/simulate.py bank$"),
    (["--bank", "one.npy"], "one.npy is no bank of vertex tracks"),
    (["--bank", "other.npz"], "other.npz is no bank of vertex tracks"),
    (["-n", "0"], "-n: expected a positive number, got 0"),
    (["-n", "some"], "some"),
    (["--sed", "1"], "sed"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[" ".join(options) for options, _ in WRONG])
def test_wrong_usage_is_one_line_and_no_file(
    simulate: Simulate, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("key.yaml").write_text("response: {lite_yield: 3}\n")
    Path("value.yaml").write_text("response: {crosstalk: 0.5}\n")
    Path("list.yaml").write_text("- 1\n- 2\n")
    Path("broken.yaml").write_text("response: {crosstalk\n")
    np.save("one.npy", np.zeros(3))
    np.savez("other.npz", position=np.zeros((3, 3)))
    assert simulate("vertex", "-o", "a.root", "-n", 2, "--seed", 1, *options) == cli.WRONG_INPUT
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(message, error), error
    assert not list(Path().glob("a.root*"))


@pytest.mark.parametrize("options", [[], ["vertex"], ["vertex", "-n", "2", "--seed", "1"], ["camera"]])
def test_incomplete_commands(simulate: Simulate, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(*options) == cli.WRONG_INPUT
    assert capsys.readouterr().err.startswith("error: ")
