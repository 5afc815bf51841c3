"""tools/simulate.py, reco.py, evaluate.py and train.py for the camera, from the outside."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot
from camera_sample import noise, pedestal, spots
from conftest import RunTool

from sparsereco import cli
from sparsereco.camera.pedestal import read_pedestal, write_pedestal
from sparsereco.errors import InputError, OutputError
from sparsereco.frames import histogram
from sparsereco.io import RootWriter, read
from sparsereco.schema import FRAME_TRUTH, FRAMES, ROIS, SPARSE_FRAMES

ROOT = Path(__file__).parents[1]
PLACES = [(100.0, 120.0), (250.0, 300.0), (120.0, 420.0)]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ten frames of three 3 keV tracks each and their truth, and a pedestal run of 40 frames."""
    folder, maps = tmp_path_factory.mktemp("sample"), noise()
    rng = np.random.default_rng(1)
    with RootWriter(folder / "run2.root") as writer:
        for event in range(10):
            lights = spots(PLACES, 3.0, rng, z=rng.uniform(0, 500))
            image = maps.expose(lights, rng).astype(np.int32)
            writer.put(f"pic_run2_ev{event}", histogram(f"pic_run2_ev{event}", image))
            lit = [light.expected >= 0.5 for light in lights]
            pixel = np.concatenate([light.pixel[on] for light, on in zip(lights, lit, strict=True)])
            truth = {
                "particle_type": np.full(3, 11),
                "energy": np.full(3, 3.0),
                "x_vertex": np.array([x for _, x in PLACES]),
                "y_vertex": np.array([y for y, _ in PLACES]),
                "z_vertex": np.full(3, 250.0),
                "light": np.array([light.counts.sum() for light in lights]),
                "redpix_ix": pixel[:, 1],
                "redpix_iy": pixel[:, 0],
                "redpix_iz": np.concatenate([light.expected[on] for light, on in zip(lights, lit, strict=True)]),
                "redpix_track": np.repeat(np.arange(3), [on.sum() for on in lit]),
            }
            fields = {name: ak.unflatten(column, [len(column)]) for name, column in truth.items()}
            writer.extend(
                "event_info", FRAME_TRUTH, ak.zip({"run": [2], "eventnumber": [event], **fields}, depth_limit=1)
            )
    with RootWriter(folder / "run1.root") as writer:
        for event in range(40):
            image = maps.expose([], rng).astype(np.int32)
            writer.put(f"pic_run1_ev{event}", histogram(f"pic_run1_ev{event}", image))
    write_pedestal(folder / "pedmap.root", pedestal(maps))
    return folder


def test_frames_to_clusters_to_a_report(
    sample: Path, run_tool: RunTool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = sample / "run2.root"
    common = (run, "--pedestal", sample / "run1.root")
    assert run_tool("reco", "camera", *common, "-o", "unet.root", "--save-pedestal", "map.root") == cli.DONE
    assert "10 frames" in capsys.readouterr().err
    assert read_pedestal("map.root").frames == 40
    with uproot.open("map.root") as file:
        record = json.loads(str(file["provenance"]))
    assert record["pedestal"] == str(sample / "run1.root")
    assert "--save-pedestal map.root" in record["command"]
    again = run_tool("reco", "camera", run, "--pedestal", "map.root", "-o", "again.root")
    assert again == cli.DONE
    one, two = read("unet.root", FRAMES), read("again.root", FRAMES)
    assert one.event.tolist() == list(range(10))
    assert one.sc_integral.tolist() == two.sc_integral.tolist()
    assert set(one.pedestal_run) == {1}
    assert (ak.to_numpy(one.t_zerosup) > 0).all()
    with uproot.open("unet.root") as file:
        assert file["Events"]["sc_size"].typename == "float[]"
        record = json.loads(str(file["provenance"]))
    assert record["config"]["selector"] == "unet"
    assert record["inputs"] == [{"file": str(run), "entry_start": 0, "entry_stop": 10}]
    assert len(record["chain"]["weights"]["selector"]["sha256"]) == 64

    assert run_tool("reco", "camera", *common, "-o", "gauss.root", "--selector", "gaussian") == cli.DONE
    assert (
        run_tool("evaluate", "camera", "unet.root", run, "--compare", "gauss.root", "-o", "report", "--pdf") == cli.DONE
    )
    numbers = json.loads(Path("report/report.json").read_text())
    assert list(numbers["selectors"]) == ["unet", "gaussian"]
    for summary in numbers["selectors"].values():
        assert summary["energies"]["3"]["found"]["value"] == 1
        assert abs(summary["energies"]["3"]["bias"]["value"]) < 0.1
    assert numbers["selectors"]["unet"]["energies"]["3"]["f1"]["value"] > 0.8
    assert numbers["found_more"]["gaussian"]["3"]["value"] == 0
    assert sorted(path.name for path in (tmp_path / "report" / "figures").iterdir()) == numbers["figures"]
    assert "unet, 3 keV: found" in Path("report/report.html").read_text()

    assert run_tool("evaluate", "camera", "gauss.root", sample / "run2.root", "-o", "report") == cli.WRONG_INPUT
    assert run_tool("evaluate", "calibration", "unet.root", "-o", "scale") == cli.WRONG_INPUT
    assert "a peak needs at least 50 clusters" in capsys.readouterr().err


def test_a_range_of_frames(sample: Path, run_tool: RunTool) -> None:
    options = ("--pedestal", sample / "pedmap.root", "--selector", "gaussian", "-o", "out.root")
    assert run_tool("reco", "camera", sample / "run2.root", "--entry-start", 3, "-n", 2, *options) == cli.DONE
    assert read("out.root", FRAMES).event.tolist() == [3, 4]


def test_check_and_print_config(sample: Path, run_tool: RunTool, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("reco", "camera", sample / "run2.root", "--pedestal", sample / "pedmap.root", "--check") == cli.DONE
    pedestal = ("--pedestal", sample / "run1.root", "--save-pedestal", "map.root")
    assert run_tool("reco", "camera", sample / "run2.root", *pedestal, "--check", "-q") == cli.DONE
    assert not Path("map.root").exists()
    told = capsys.readouterr().out
    assert "run2.root: ROOT, 10 frames" in told
    assert '"sha256"' in told
    assert run_tool("reco", "camera", "--gaussian.sigma", 3, "--print-config") == cli.DONE
    settings = capsys.readouterr().out
    Path("camera.yaml").write_text(settings)
    assert "sigma: 3.0" in settings
    assert run_tool("reco", "camera", "-c", "camera.yaml", "--print-config") == cli.DONE
    assert capsys.readouterr().out == settings


def test_the_shipped_settings_are_the_defaults(run_tool: RunTool, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("reco", "camera", "--print-config") == cli.DONE
    defaults = capsys.readouterr().out
    assert run_tool("reco", "camera", "-c", ROOT / "configs" / "camera.yaml", "--print-config") == cli.DONE
    assert capsys.readouterr().out == defaults


def test_a_bad_frame_stops_the_run_or_leaves_an_empty_entry(
    sample: Path, run_tool: RunTool, capsys: pytest.CaptureFixture[str]
) -> None:
    with uproot.open(sample / "run2.root") as file:
        image = file["pic_run2_ev0"].values().T.astype(np.int32)
    with RootWriter("bad.root") as writer:
        for event, content in enumerate((image, np.zeros_like(image), image[:64, :64], image + 3000, image)):
            writer.put(f"pic_run5_ev{event}", histogram(f"pic_run5_ev{event}", content))
    options = ("bad.root", "--pedestal", sample / "pedmap.root", "--selector", "gaussian", "-o", "out.root")
    assert run_tool("reco", "camera", *options) == cli.WRONG_INPUT
    assert "bad.root: frame 1 (run 5, event 1) is 0 everywhere" in capsys.readouterr().err
    assert not Path("out.root").exists()
    assert run_tool("reco", "camera", *options, "--skip-bad-events") == cli.DONE
    told = capsys.readouterr().err
    assert "3 skipped" in told
    assert "has 64 x 64 pixels, expected 384 x 512 as in the pedestal" in told
    assert "is a spark" in told
    events = read("out.root", FRAMES)
    assert events.status.tolist() == [0, 1, 1, 1, 0]
    assert ak.num(events.sc_size).tolist()[1:4] == [0, 0, 0]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run2.root", "-o", "out.root"], "no pedestal given: expected --pedestal FILE"),
        (["run2.root", "--pedestal", "none.root", "-o", "out.root"], "none.root"),
        (["run2.root", "--pedestal", "other.root", "-o", "out.root"], "holds no pedestal: expected a TH2 'pedmap'"),
        (["none.root", "--pedestal", "pedmap.root", "-o", "out.root"], "no such file: none.root"),
        (["run2.root", "--pedestal", "pedmap.root", "-o", "pedmap.root"], "output pedmap.root is an input, too"),
        (
            ["run2.root", "--pedestal", "pedmap.root", "--save-pedestal", "./pedmap.root", "-o", "o.root", "-f"],
            "output pedmap.root is an input, too: expected another file",
        ),
        (
            ["run2.root", "--pedestal", "pedmap.root", "--save-sparse", "run2.root", "-o", "o.root", "-f"],
            "output run2.root is an input, too",
        ),
        (
            ["run2.root", "--pedestal", "pedmap.root", "--save-pedestal", "o.root", "-o", "o.root"],
            "expected outputs that are different files, got o.root and o.root",
        ),
        (
            ["run2.root", "--pedestal", "pedmap.root", "--save-sparse", "./o.root", "-o", "o.root"],
            "expected outputs that are different files, got o.root and o.root",
        ),
        (
            ["run2.root", "--pedestal", "pedmap.root", "--save-pedestal", "other.root", "-o", "o.root"],
            "output other.root exists already",
        ),
        (["run2.root", "--pedestal", "pedmap.root", "--selector", "best", "-o", "o.root"], "selector"),
        (
            ["run2.root", "--pedestal", "pedmap.root", "--vignetting", "no.root", "-o", "o.root"],
            "no such vignetting map",
        ),
    ],
)
def test_wrong_usage(
    argv: list[str], message: str, sample: Path, run_tool: RunTool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("run2.root", "pedmap.root"):
        (tmp_path / name).symlink_to(sample / name)
    with RootWriter("other.root") as writer:
        writer.put("map", histogram("map", np.zeros((16, 16))))
    assert run_tool("reco", "camera", *argv) == cli.WRONG_INPUT
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not Path("o.root").exists()


def test_an_empty_run_gives_an_empty_tree(sample: Path, run_tool: RunTool) -> None:
    with RootWriter("empty.root"):
        pass
    options = ("--pedestal", sample / "pedmap.root", "-o", "out.root")
    assert run_tool("reco", "camera", "empty.root", *options) == cli.DONE
    assert len(read("out.root", FRAMES)) == 0


def test_simulated_frames(run_tool: RunTool, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("camera", "-n", 1, "--seed", 4, "--tracks", 3, "--energies", "[1, 6]", "--particles", "[helium, fluorine]")
    assert run_tool("simulate", *argv, "-o", "a.root") == cli.DONE
    assert run_tool("simulate", *argv, "-o", "b.root") == cli.DONE
    a, b = read("a.root", FRAME_TRUTH), read("b.root", FRAME_TRUTH)
    assert a.tolist() == b.tolist()
    assert a.energy.tolist() == [[1, 6, 1]]
    assert a.particle_type.tolist() == [[1000020040, 1000020040, 1000090190]]
    with uproot.open("a.root") as one, uproot.open("b.root") as two:
        image = one["pic_run1_ev0"].values()
        assert image.shape == (2304, 2304)
        np.testing.assert_array_equal(image, two["pic_run1_ev0"].values())
    x, y, z = (ak.to_numpy(a[f"redpix_i{axis}"][0]) for axis in "xyz")
    assert image[x, y].mean() - np.median(image) == pytest.approx(z.mean(), abs=1)
    assert (
        run_tool("simulate", "camera", "-n", 1, "--seed", 4, "--particles", "[muon]", "-o", "c.root") == cli.WRONG_INPUT
    )
    assert "expected some of electron, helium, carbon, fluorine" in capsys.readouterr().err
    assert run_tool("simulate", "camera", "-n", 1, "--seed", 4, "--tracks", 5000, "-o", "c.root") == cli.WRONG_INPUT
    assert "do not fit on a frame" in capsys.readouterr().err


def test_a_training_learns_and_goes_on(run_tool: RunTool) -> None:
    if importlib.util.find_spec("geant4_pybind") is None:
        pytest.skip("geant4-pybind is not installed: pip install 'sparsereco[sim]'")
    argv = ["selector", "--patches.size", 64, "--patches.electrons", 60, "--schedule.batch_size", 4, "--output", "out"]
    argv += ["--network.channels", "[4, 8]", "--schedule.warmup", 5, "-q"]
    assert run_tool("train", *argv, "--schedule.steps", 50) == cli.DONE
    assert run_tool("train", *argv, "--schedule.steps", 100, "--resume") == cli.DONE
    with Path("out/log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["50", "100"]
    assert float(rows[1]["focal"]) < float(rows[0]["focal"])
    from sparsereco import checkpoint
    from sparsereco.camera.unet import Selector, SelectorConfig

    assert checkpoint.load("out/selector.safetensors", Selector, SelectorConfig).settings.channels == (4, 8)
    with pytest.raises(InputError, match="no safetensors file"):
        checkpoint.load("out/log.csv", Selector, SelectorConfig)


def test_regions_sparse_frames_and_classes(sample: Path, run_tool: RunTool, capsys: pytest.CaptureFixture[str]) -> None:
    run, pedestal = sample / "run2.root", sample / "pedmap.root"
    common = ("reco", "camera", run, "--pedestal", pedestal, "--selector", "anomaly", "-o", "reco.root")
    assert run_tool(*common, "--save-sparse", "reco.root") == cli.WRONG_INPUT
    assert "expected outputs that are different files, got reco.root and reco.root" in capsys.readouterr().err
    assert run_tool(*common, "--save-sparse", "sparse.root") == cli.DONE
    regions, reduced = read("reco.root", ROIS), read("sparse.root", SPARSE_FRAMES)
    assert ak.num(regions.roi_area).tolist() == [3] * 10
    with uproot.open("sparse.root") as file:
        record = json.loads(str(file["provenance"]))
    assert record["units"] == SPARSE_FRAMES.units
    assert record["config"]["selector"] == "anomaly"
    assert ak.num(reduced.pixel_x).tolist() == ak.sum(regions.roi_area, axis=1).tolist()
    assert ak.sum(regions.roi_corners, axis=1).tolist() == ak.num(regions.corner_x).tolist()
    with uproot.open("reco.root") as file:
        record = json.loads(str(file["provenance"]))
    assert record["chain"]["weights"]["selector"]["file"] == "anomaly.safetensors"

    assert run_tool("evaluate", "camera", "reco.root", run, "-o", "report") == cli.DONE
    numbers = json.loads(Path("report/report.json").read_text())["regions"]["anomaly"]
    assert numbers["kept"]["value"] > 0.95
    assert 0.85 < numbers["discarded"]["value"] < 0.99
    assert numbers["held"]["3"]["value"] == 1
    assert "anomaly, regions: track light kept" in Path("report/report.html").read_text()
    assert run_tool("evaluate", "camera", "reco.root", run, "-o", "report2", "--limit", 5) == cli.WRONG_INPUT
    assert "does not say which chamber and camera it is of" in capsys.readouterr().err

    assert run_tool("evaluate", "embed", "reco.root", run, "-o", "classes") == cli.WRONG_INPUT
    assert "expected --pedestal FILE" in capsys.readouterr().err
    assert run_tool("evaluate", "embed", "reco.root", run, "--pedestal", pedestal, "-o", "classes") == cli.DONE
    numbers = json.loads(Path("classes/report.json").read_text())
    assert np.sum(numbers["classes"]) == 50  # 30 of regions, 20 of noise
    assert set(numbers["adjusted_rand"]) >= {"Deep Embedded Clustering", "k-means on pixels"}
    assert numbers["figures"] == ["frame.png", "patches.png"]


def test_outputs_appear_together(
    sample: Path, run_tool: RunTool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(writer: RootWriter, tree: str) -> None:
        if tree == FRAMES.tree:
            raise OutputError(f"output {writer.path} cannot be written: No space left on device")

    monkeypatch.setattr(RootWriter, "flush", full)
    options = ("--pedestal", sample / "pedmap.root", "--selector", "gaussian", "-o", "out.root", "-n", 1)
    assert run_tool("reco", "camera", sample / "run2.root", *options, "--save-sparse", "sparse.root") == cli.WRONG_INPUT
    assert "No space left" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_trainings_without_labels(sample: Path, run_tool: RunTool, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["anomaly", "--pieces.size", 64, "--schedule.batch_size", 4, "--schedule.steps", 20, "--schedule.warmup", 5]
    assert run_tool("train", *argv, "-q", "--pieces.frames", sample / "run1.root", "--output", "real") == cli.DONE
    from sparsereco import checkpoint
    from sparsereco.camera.anomaly import Autoencoder, AutoencoderConfig

    assert checkpoint.load("real/anomaly.safetensors", Autoencoder, AutoencoderConfig).settings.latent == 4
    assert run_tool("train", *argv, "-q", "--pieces.frames", "none.root", "--output", "none") == cli.WRONG_INPUT
    assert "no such file: none.root" in capsys.readouterr().err
    big = ("train", "anomaly", "--pieces.size", 400, "--pieces.frames", sample / "run1.root", "--output", "none")
    assert run_tool(*big) == cli.WRONG_INPUT
    assert "pieces.size 400 is larger than the frames of" in capsys.readouterr().err
    assert run_tool("train", "anomaly", "--network.objective", "best", "--output", "none") == cli.WRONG_INPUT
