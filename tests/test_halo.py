"""Light on and beside leaving tracks, and the response that follows from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from tool_loader import load_tool
from torch import Tensor

from sparsereco import VertexChain, cli
from sparsereco.detector import Detector, Response
from sparsereco.vertex.crop import Tracks
from sparsereco.vertex.halo import TrackLight, fit_response, track_light
from sparsereco.voxels import Voxels

ROOT = Path(__file__).parents[1]
GRID = (40, 40, 40)


def straight_track(on: float, beside: float, stray: float = 0.0) -> tuple[Voxels, Tensor, Tracks]:
    """A track along +x from the middle of a crop at (20, 20, 20), its light and that in its face neighbours."""
    x = torch.arange(20, 32)
    rows = [
        torch.stack([x, 20 + dy + 0 * x, 20 + dz + 0 * x], 1) for dy, dz in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
    ]
    light = torch.cat([torch.full((12,), on), torch.full((48,), beside)])
    coords = torch.cat([*rows, torch.tensor([[30, 30, 30]])])
    hits = Voxels.make(coords, torch.cat([light, torch.tensor([stray])]), torch.zeros(61, dtype=torch.int64), 1, GRID)
    tracks = Tracks(
        crop=torch.zeros(1, dtype=torch.int64),
        point=torch.tensor([[3.5, 0.0, 0.0]]),
        direction=torch.tensor([[1.0, 0.0, 0.0]]),
        hits=torch.tensor([8.0]),
        length=torch.tensor([8.0]),
        light=torch.tensor([on]),
        spread=torch.tensor([0.1]),
        error=torch.full((1, 3), 0.05),
    )
    return hits, torch.tensor([[20, 20, 20]]), tracks


def test_light_beside_a_track_is_that_of_its_face_neighbours() -> None:
    found = track_light(*straight_track(150.0, 6.0, stray=400.0))
    assert found.on.tolist() == [150.0]
    assert found.beside.tolist() == pytest.approx([6.0])


def test_a_neighbour_that_was_not_read_out_counts_as_dark() -> None:
    hits, centre, tracks = straight_track(150.0, 6.0)
    lost = (hits.coords == torch.tensor([25, 21, 20])).all(1)
    found = track_light(hits.select(~lost), centre, tracks)
    assert found.beside.tolist() == pytest.approx([6.0 * 31 / 32])


def test_a_delta_ray_beside_a_track_counts_little() -> None:
    hits, centre, tracks = straight_track(150.0, 6.0)
    bright = (hits.coords == torch.tensor([25, 21, 20])).all(1)
    feats = torch.where(bright[:, None], 500.0, hits.feats)
    found = track_light(hits.with_feats(feats), centre, tracks)
    assert found.beside.tolist() == pytest.approx([(6.0 * 31 + 0.15 * 150) / 32])


def test_without_tracks_there_is_nothing() -> None:
    hits, centre, tracks = straight_track(150.0, 6.0)
    none = Tracks(**{name: value[:0] for name, value in vars(tracks).items()})
    found = track_light(hits, centre, none)
    assert len(found.on) == len(found.beside) == 0


def test_the_fit_inverts_a_known_response() -> None:
    def simulate(response: Response) -> TrackLight:
        on = response.light_yield * 1.8 * (1 - 5 * response.crosstalk)
        beside = response.light_yield * 1.7 * (response.crosstalk + 0.01)
        spread = torch.linspace(-0.1, 0.1, 101)
        return TrackLight(on * (1 + spread), beside * (1 + spread))

    truth = Response(light_yield=70.0, crosstalk=0.055)
    found = fit_response(simulate(truth), simulate, Response(crosstalk=0.03))
    assert found.response.light_yield == pytest.approx(70, rel=1e-3)
    assert found.response.crosstalk == pytest.approx(0.055, rel=1e-3)
    assert found.tracks == 101
    assert 0 < found.light_yield_err < 2
    assert 0 < found.crosstalk_err < 0.005


def test_chain_gives_the_light_as_measured_whatever_its_scale(bank: Any) -> None:
    from sparsereco.sim.compose import PRESETS, TrackBank
    from sparsereco.sim.sample import draw_sample, to_records

    generator = torch.Generator().manual_seed(1)
    sample = draw_sample(TrackBank(bank), PRESETS["conf1"], Detector(), 20, generator)
    events, chain = to_records(sample, Detector())[0], VertexChain()
    plain = chain.track_light(events)
    assert len(plain.on) >= 15
    assert 120 < plain.on.median() < 220
    assert len(chain.track_light(events[:0]).on) == 0
    chain.light_scale = 1.25
    torch.testing.assert_close(chain.track_light(events).on.median(), plain.on.median(), rtol=0.05, atol=0)


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("train")


def sample_file(path: Path, bank: Any, response: Response, n: int, seed: int) -> Path:
    from sparsereco.io import RootWriter
    from sparsereco.schema import HITS
    from sparsereco.sim.compose import PRESETS, TrackBank
    from sparsereco.sim.sample import draw_sample, to_records

    detector = Detector(response=response)
    sample = draw_sample(TrackBank(bank), PRESETS["conf1"], detector, n, torch.Generator().manual_seed(seed))
    with RootWriter(path) as writer:
        writer.create("hits", HITS)
        writer.extend("hits", HITS, to_records(sample, detector)[0])
    return path


def test_response_of_a_file_is_found_without_truth(tool: ModuleType, bank: Any, tmp_path: Path) -> None:
    truth = Response(light_yield=78.9, crosstalk=0.06, threshold=3.0)
    sample = sample_file(tmp_path / "sample.root", bank, truth, 250, 3)
    bank.save(tmp_path / "bank.npz")
    start = tmp_path / "start.yaml"
    start.write_text("response: {crosstalk: 0.03, threshold: 3.0}\n")
    command = ["response", str(sample), "-o", str(tmp_path / "out.yaml"), "--bank", str(tmp_path / "bank.npz")]
    command += ["--response", str(start), "--simulated", "150", "-q"]
    assert cli.main(tool.run, command) == 0
    found = yaml.safe_load((tmp_path / "out.yaml").read_text())
    assert found["response"]["light_yield"] == pytest.approx(truth.light_yield, rel=0.04)
    assert found["response"]["crosstalk"] == pytest.approx(truth.crosstalk, rel=0.1)
    assert found["response"]["threshold"] == 3.0
    assert tuple(found["shape"]) == Detector().shape
    assert cli.main(tool.run, command) == 2  # it is there already


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--bank": "none.npz"}, "there is no bank none.npz"),
        ({"--response": "none.yaml"}, "expected ideal, superfgd or a YAML file"),
        ({"--simulated": "0"}, "--simulated: expected a positive number, got 0"),
        ({}, "leaving tracks in the events, expected at least 200"),
    ],
)
def test_bad_input_is_named(
    tool: ModuleType,
    bank: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str],
    message: str,
) -> None:
    sample = sample_file(tmp_path / "sample.root", bank, replace(Response(), threshold=3.0), 10, 3)
    bank.save(tmp_path / "bank.npz")
    options = {"--bank": str(tmp_path / "bank.npz"), "--response": "superfgd", "--simulated": "10"} | change
    command = ["response", str(sample), "-o", str(tmp_path / "out.yaml"), "-q"]
    assert cli.main(tool.run, [*command, *(word for pair in options.items() for word in pair)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.yaml").exists()
