"""Settings, samples and pedestals that make no sense to the camera tools: one line, by exit code and message."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from camera_sample import noise, pedestal
from tool_loader import load_tool

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
from sparsereco.frames import histogram
from sparsereco.io import RootWriter

Tool = Callable[..., int]


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """Runs a tool in the temporary folder and gives the exit code."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *argv: object) -> int:
        return cli.main(load_tool(name).run, [str(arg) for arg in argv])

    return run


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


def test_a_setting_out_of_its_range_is_wrong_usage(tool: Tool, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("reco", "camera", "run.root", "--pedestal", "none.root", "-o", "out.root")
    assert tool(*options, "--cluster.eps", 0) == cli.WRONG_INPUT
    assert capsys.readouterr().err == "error: cluster.eps must be positive and finite, got 0.0\n"
    assert tool(*options, "--kev_per_count", -1) == cli.WRONG_INPUT
    assert capsys.readouterr().err == "error: kev_per_count must be positive and finite, got -1.0\n"
