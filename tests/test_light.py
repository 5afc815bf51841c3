"""The light yield of a run from its leaving tracks."""

from __future__ import annotations

import pytest
import torch

from sparsereco.vertex.light import MIN_TRACKS, LightYield, light_yield


def test_the_median_of_the_tracks_and_its_error() -> None:
    """The error is the spread of the results of many runs."""
    random = torch.Generator().manual_seed(1)
    runs = [light_yield(152 + 11 * torch.randn(400, generator=random), 160.0) for _ in range(300)]
    scales = torch.tensor([run.scale for run in runs])
    assert scales.mean().item() == pytest.approx(0.95, abs=1e-3)
    assert scales.std().item() == pytest.approx(sum(run.error for run in runs) / len(runs), rel=0.15)
    assert all(run.tracks == 400 and run.usable for run in runs)


def test_showers_and_stopping_tracks_do_not_pull() -> None:
    light = torch.cat([torch.linspace(150, 170, 901), torch.full((50,), 900.0), torch.full((50,), 20.0)])
    assert light_yield(light, 160.0).scale == pytest.approx(1.0, abs=0.005)


def test_no_tracks() -> None:
    nothing = light_yield(torch.zeros(0), 160.0)
    assert nothing == LightYield(1.0, float("inf"), 0)
    assert not nothing.usable


@pytest.mark.parametrize(
    ("scale", "tracks", "usable"),
    [(1.0, MIN_TRACKS, True), (1.0, MIN_TRACKS - 1, False), (0.4, 1000, False), (2.5, 1000, False)],
)
def test_what_can_be_used(scale: float, tracks: int, usable: bool) -> None:
    assert LightYield(scale, 0.01, tracks).usable == usable
