"""How the likeness of generated images is judged: the judges must see a difference, and none where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tool_loader import load_tool
from torch import Tensor

from sparsereco import checkpoint, cli
from sparsereco.detector import Detector
from sparsereco.sim.compose import TrackBank
from sparsereco.vertex import fidelity
from sparsereco.vertex.adversary import ImageStream, Singles, draw_singles
from sparsereco.vertex.dense_generator import DenseGenerator, DenseGeneratorConfig
from sparsereco.vertex.discrimination import auc, by_cnn, by_trees
from sparsereco.vertex.generator import Generator, GeneratorConfig

ROOT = Path(__file__).parents[1]
STREAM = ImageStream()


@pytest.fixture(scope="module")
def tracks(bank: Any) -> TrackBank:
    return TrackBank(bank)


def brighter(like: Singles, generator: torch.Generator) -> Tensor:
    """Geant4's images with a tenth more light."""
    return torch.poisson(1.1 * like.image, generator=generator)


def trials(tracks: TrackBank, n: int) -> tuple[dict[str, fidelity.Trial], dict[str, fidelity.Trial]]:
    random = torch.Generator().manual_seed(1)
    species = torch.zeros(n, dtype=torch.int64)
    sources: dict[str, fidelity.Source] = {
        "brighter": brighter,
        "generator": fidelity.generated(Generator(GeneratorConfig()), Detector()),
    }
    fit, test = (fidelity.draw_trials(sources, STREAM, half, species, random) for half in fidelity.halves(tracks))
    return fit, test


def test_trees_see_what_is_wrong_and_nothing_where_nothing_is(tracks: TrackBank) -> None:
    fit, test = trials(tracks, 1500)
    found = {name: by_trees(fit[name], test[name]) for name in test}
    assert found["brighter"].auc.value > 0.65
    assert found["brighter"].auc.value > found["generator"].auc.value > 0.45
    geant4 = found["Geant4"].auc
    assert abs(geant4.value - 0.5) < 5 * geant4.error
    assert (np.diff(found["brighter"].true_rate) >= 0).all()
    assert next(iter(found["brighter"].importance)).startswith(("charge", "bright", "deviance", "light"))


def test_the_cnn_sees_light_that_is_wrong(tracks: TrackBank) -> None:
    fit, test = trials(tracks, 500)
    verdict = by_cnn(fit["brighter"], test["brighter"], epochs=10)
    assert verdict.auc.value > 0.6
    again = by_cnn(fit["brighter"], test["brighter"], epochs=10)
    assert again.auc.value == verdict.auc.value  # the same seed


def test_area_under_the_curve_is_the_probability_to_order_a_pair() -> None:
    score, made = np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True])
    assert auc(score, made).value == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert auc(-score, made).value == pytest.approx(1 - 3.5 / 4)


def test_halves_share_no_track(tracks: TrackBank) -> None:
    one, other = fidelity.halves(tracks)
    for code, rows in tracks.species.items():
        parts = one.species[code].tolist(), other.species[code].tolist()
        assert not set(parts[0]) & set(parts[1])
        assert sorted(parts[0] + parts[1]) == sorted(rows.tolist())


def test_distances_grow_with_what_is_wrong(tracks: TrackBank) -> None:
    _, test = trials(tracks, 800)
    edges = (0, 30, 60)
    same, wrong = (fidelity.distances(test[name].made, test[name].real, edges) for name in ("Geant4", "brighter"))
    assert (wrong["charge"] > same["charge"]).all()
    assert same["occupancy"].shape == (2,)
    assert (same["voxels"] < 0.25).all()


def test_the_lookup_gives_a_particle_of_its_library_back(tracks: TrackBank) -> None:
    library = draw_singles(STREAM, tracks, torch.zeros(50, dtype=torch.int64), torch.Generator().manual_seed(3))
    bright = Singles(library.species, library.ke, library.direction, library.start, 10 * library.image)
    found = fidelity.Lookup(bright)(library, torch.Generator().manual_seed(1))
    light = found.flatten(1).sum(1) / bright.image.flatten(1).sum(1)
    assert (light - 1).abs().max() < 0.25


@pytest.mark.parametrize("species", [0, 3])
def test_gradients_agree_with_differences(species: int) -> None:
    model = Generator(GeneratorConfig())
    ke = 600.0 if species == 3 else 40.25
    errors = fidelity.gradient_errors(model, species, ke, torch.Generator().manual_seed(1), images=32)
    assert set(errors) == {"vertex", "direction", "energy"}
    assert max(errors.values()) < 0.1


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("evaluate")


def test_report_of_the_shipped_weights(
    tool: ModuleType, bank: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank.save(tmp_path / "bank.npz")
    command = ["generator", "--bank", str(tmp_path / "bank.npz"), "--library-bank", str(tmp_path / "bank.npz")]
    command += ["-n", "100", "--library", "100", "--epochs", "1", "-o", str(tmp_path / "report"), "-q"]
    checkpoint.save(tmp_path / "dense.safetensors", DenseGenerator(DenseGeneratorConfig()), steps=0)
    command += ["--dense", str(tmp_path / "dense.safetensors")]
    assert cli.main(tool.run, command) == 0
    assert "mu-: generator" in capsys.readouterr().out
    record = json.loads((tmp_path / "report" / "report.json").read_text())
    assert set(record["species"]) == {"p", "d", "t", "mu-"}
    sources = record["species"]["p"]["sources"]
    assert set(sources) == {"Geant4", "generator", "formulas", "look-up", "generator, middle", "dense, middle"}
    assert sources["dense, middle"]["trees"]["auc"]["value"] > 0.9  # it was never trained
    assert record["provenance"]["dense"]["steps"] == 0
    assert len(record["figures"]) == 16
    page = (tmp_path / "report" / "report.html").read_text()
    assert "ROC curves" in page
    assert "the middle 5 x 5 x 5" in page
    assert cli.main(tool.run, command) == 2  # it is there already


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--bank", "none.npz"], "there is no bank none.npz"),
        (["-n", "3"], "--number: expected at least 100, got 3"),
        (["--weights", str(ROOT / "sparsereco" / "weights" / "finder.safetensors")], "expected those of Generator"),
    ],
)
def test_bad_input_is_named(
    tool: ModuleType, bank: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    bank.save(tmp_path / "bank.npz")
    command = ["generator", "--bank", str(tmp_path / "bank.npz"), "--library-bank", str(tmp_path / "bank.npz")]
    assert cli.main(tool.run, [*command, "-o", str(tmp_path / "report"), *change]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "report").exists()
