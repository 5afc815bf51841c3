"""`tools/benchmark.py camera` on small frames."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from camera_sample import SENSOR
from tool_loader import TOOLS, load_tool

from sparsereco import cli
from sparsereco.sim.camera import SENSORS


def test_every_selector_is_timed_on_the_same_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec("geant4_pybind") is None:
        pytest.skip("geant4-pybind is not installed: pip install 'sparsereco[sim]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(TOOLS)
    monkeypatch.setitem(SENSORS, "fusion", SENSOR)
    run = load_tool("benchmark").run
    options = ["--frames", "2", "--tracks", "1", "--energies", "[6]", "--rounds", "1"]
    assert cli.main(run, ["camera", *options, "--json", "camera.json"]) == cli.DONE
    told = capsys.readouterr().out
    result = json.loads(Path("camera.json").read_text())
    rows = {row["selector"]: row for row in result["rows"]}
    assert list(rows) == ["unet", "gaussian", "anomaly", "nsigma", "nsigma, loose"]
    assert all(name in told for name in rows)
    assert all(
        row["ms"] > 0 and row["ratio"] == pytest.approx(rows["nsigma"]["ms"] / row["ms"]) for row in rows.values()
    )
    assert all(row["points"] > 0 for row in rows.values())
    assert rows["unet"]["points"] < rows["nsigma, loose"]["points"]
    assert (result["size"], result["frames"], result["threads"]) == ([384, 512], 2, 1)
    assert cli.main(run, ["camera", "--frames", "0"]) == cli.WRONG_INPUT
    assert "--frames: expected positive numbers, got 0" in capsys.readouterr().err
