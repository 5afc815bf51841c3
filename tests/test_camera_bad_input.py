"""Settings, samples and pedestals that make no sense to the camera tools: one line, by exit code and message."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from camera_sample import noise, pedestal
from conftest import RunTool

from sparsereco import cli
from sparsereco.camera.config import (
    AnomalyConfig,
    CameraConfig,
    ClusterConfig,
    DirectionalConfig,
    GaussianConfig,
    NsigmaConfig,
    RegionConfig,
    UnetConfig,
)
from sparsereco.camera.pedestal import write_pedestal
from sparsereco.commands import simulate_camera
from sparsereco.frames import histogram
from sparsereco.io import RootWriter
from sparsereco.sim.camera import RANGES


def write_frames(path: str, number: int) -> None:
    maps, rng = noise(), np.random.default_rng(1)
    with RootWriter(path) as writer:
        for event in range(number):
            name = f"pic_run1_ev{event}"
            writer.put(name, histogram(name, maps.expose([], rng).astype(np.int32)))


@pytest.mark.parametrize(
    ("kind", "name", "values", "section"),
    [
        (NsigmaConfig, "nsigma", [-1.0, float("nan")], "nsigma."),
        (NsigmaConfig, "neighbours", [-0.1], "nsigma."),
        (NsigmaConfig, "outlier", [-1.0], "nsigma."),
        (NsigmaConfig, "min_samples", [0], "nsigma."),
        (GaussianConfig, "sigma", [0.0, -1.0, 1e6, float("nan")], "gaussian."),
        (AnomalyConfig, "sigma", [0.0, -1.0, 1e6, float("nan")], "anomaly."),
        (UnetConfig, "probability", [0.0, 1.0, 2.0], "unet."),
        (RegionConfig, "cell", [0], "region."),
        (RegionConfig, "margin", [-1], "region."),
        (ClusterConfig, "eps", [0.0, float("inf")], "cluster."),
        (ClusterConfig, "min_samples", [0], "cluster."),
        (ClusterConfig, "min_size", [0], "cluster."),
        (ClusterConfig, "margin", [-1], "cluster."),
        (DirectionalConfig, "accuracy", [-0.1, 1.1], "cluster.directional."),
        (DirectionalConfig, "radius", [0.0], "cluster.directional."),
        (DirectionalConfig, "thickness", [0.0], "cluster.directional."),
        (DirectionalConfig, "min_points", [0], "cluster.directional."),
        (DirectionalConfig, "min_samples", [0], "cluster.directional."),
        (CameraConfig, "pixel", [0.0, -1.0, float("inf")], ""),
        (CameraConfig, "kev_per_count", [0.0, -1.0, float("nan")], ""),
    ],
)
def test_settings_have_ranges(kind: type, name: str, values: list[float], section: str) -> None:
    for value in values:
        with pytest.raises(ValueError, match=re.escape(f"{section}{name} must ") + f".*, got {value}$"):
            kind(**{name: value})


def test_a_setting_out_of_its_range_is_wrong_usage(run_tool: RunTool, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("reco", "camera", "run.root", "--pedestal", "none.root", "-o", "out.root")
    assert run_tool(*options, "--cluster.eps", 0) == cli.WRONG_INPUT
    assert capsys.readouterr().err == "error: cluster.eps must be positive and finite, got 0.0\n"
    assert run_tool(*options, "--kev_per_count", -1) == cli.WRONG_INPUT
    assert capsys.readouterr().err == "error: kev_per_count must be positive and finite, got -1.0\n"


@pytest.mark.parametrize("option", ["fakes", "limit"])
def test_negative_numbers_of_an_evaluation(option: str, run_tool: RunTool, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("evaluate", "camera", "reco.root", "run.root", "-o", "report", f"--{option}", -1) == cli.WRONG_INPUT
    told = capsys.readouterr().err
    assert told.startswith(f"error: --{option}: expected a number that is not negative")
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("energies", "[1, 1e9]", "expected some from 0.25 to 100 keV, got [1.0, 1000000000.0]"),
        ("energies", "[0.1]", "expected some from 0.25 to 100 keV, got [0.1]"),
        ("energies", "[]", "expected some from 0.25 to 100 keV, got []"),
        ("noise-scale", "-1", "expected a finite number that is not negative, got -1.0"),
        ("noise-scale", ".inf", "expected a finite number that is not negative, got inf"),
        ("pedestal-drift", ".nan", "expected a finite number, got nan"),
        ("tracks", "-1", "expected a number that is not negative, got -1"),
    ],
)
def test_samples_that_make_no_sense(
    option: str, value: str, message: str, run_tool: RunTool, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("simulate", "camera", "-o", "run.root", "-n", 1, "--seed", 1, "--particles", "[helium]")
    assert run_tool(*argv, f"--{option}", value) == cli.WRONG_INPUT
    assert capsys.readouterr().err == f"error: --{option}: {message}\n"
    assert not Path("run.root").exists()


def test_energies_end_where_the_tables_do() -> None:
    assert all(energies[-1] == simulate_camera.ENERGIES[1] for energies, _ in RANGES.values())


def test_a_run_is_not_its_own_pedestal(run_tool: RunTool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_frames("run.root", 2)
    write_frames("other.root", 2)
    Path("link.root").symlink_to("run.root")
    for files, given in (
        (["run.root"], "run.root"),
        (["other.root", "run.root"], "./run.root"),
        (["r*.root"], tmp_path / "run.root"),
        (["run.root"], "link.root"),
        ([f"file://{tmp_path}/run.root"], "run.root"),
    ):
        assert run_tool("reco", "camera", *files, "--pedestal", given, "-o", "out.root") == cli.WRONG_INPUT
        told = capsys.readouterr().err
        assert told == f"error: --pedestal {given} is an input, too: expected frames without tracks\n"
        assert not Path("out.root").exists()


def test_a_pedestal_of_few_frames_is_warned_of(run_tool: RunTool, capsys: pytest.CaptureFixture[str]) -> None:
    write_frames("run.root", 1)
    options = ("--selector", "gaussian", "-f", "-o", "out.root", "-q")
    for frames, warning in ((9, "few.root: a pedestal of only 9 frames, expected at least 10\n"), (10, "")):
        write_pedestal("few.root", pedestal(noise(), frames), force=True)
        assert run_tool("reco", "camera", "run.root", "--pedestal", "few.root", *options) == cli.DONE
        told = capsys.readouterr().err
        assert told.endswith(warning)
        assert bool(told) == bool(warning)
