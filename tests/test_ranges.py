"""Energies by range: of straight tracks whose length is known, and of all that must not be taken for a stop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsereco.kinematics import MUON, energy_of_range, stopping_power, track_range
from sparsereco.vertex.crop import surroundings
from sparsereco.vertex.ranges import UNKNOWN, stopping_energy
from sparsereco.vertex.tracks import find_tracks
from sparsereco.voxels import Voxels

GRID = (120, 60, 100)
CENTRE = torch.tensor([[60, 30, 50]])
DIAGONAL = torch.nn.functional.normalize(torch.tensor([0.7, 0.3, -0.5]), dim=0)


def muon(direction: Tensor, length: float, stops: bool = True, start: float = 0.0) -> tuple[Tensor, Tensor]:
    """Places [voxels] and light [p.e.] along a straight track from the centre, of ``length`` [voxels] and 80 p.e./MeV.

    One that does not stop loses the same on each piece of its way.
    """
    step = 0.02
    along = torch.arange(start, length, step) + step / 2
    rest = (length - along if stops else torch.full_like(along, 100.0)) * 10
    loss = stopping_power(energy_of_range(rest.numpy(), MUON), MUON) * 10
    visible = loss / (1 + 0.0126 * loss)
    return CENTRE[0] + 0.5 + along[:, None] * direction, torch.from_numpy(80 * step * visible).float()


def event_of(*parts: tuple[Tensor, Tensor]) -> Voxels:
    coords, light = (torch.cat(part) for part in zip(*parts, strict=True))
    index = coords.floor().long()
    inside = ((index >= 0) & (index < torch.tensor(GRID))).all(1)
    return Voxels.make(index[inside], light[inside], torch.zeros(int(inside.sum())).long(), 1, GRID)


def energies(hits: Voxels) -> Tensor:
    tracks = find_tracks(surroundings(hits, torch.zeros(1).long(), CENTRE), CENTRE)
    assert len(tracks)
    return stopping_energy(hits, torch.zeros(1).long(), CENTRE, tracks, 10.0, 10.0)


@pytest.mark.parametrize("direction", [DIAGONAL, torch.tensor([1.0, 0.0, 0.0]), -DIAGONAL])
@pytest.mark.parametrize("length", [14.0, 27.0, 41.0])
def test_a_stopping_muon_has_the_energy_of_its_range(direction: Tensor, length: float) -> None:
    """Where it leaves the crop: 3.5 voxels from the centre of the crop along its largest axis."""
    (found,) = energies(event_of(muon(direction, length))).tolist()
    beyond = length - 3.5 / direction.abs().max().item()
    assert found == pytest.approx(energy_of_range(np.array([10 * beyond]), MUON)[0], rel=0.06)


def test_scattering_does_not_shorten_a_track() -> None:
    """The way is followed, not measured from end to end."""
    first = muon(torch.tensor([1.0, 0.0, 0.0]), 24.0, stops=False)
    bend = torch.tensor([0.6, 0.8, 0.0])
    places, light = muon(bend, 16.0)
    places = places + 24 * torch.tensor([1.0, 0.0, 0.0])
    (found,) = energies(event_of(first, (places, light))).tolist()
    assert found == pytest.approx(energy_of_range(np.array([10 * (24 + 16 - 3.5)]), MUON)[0], rel=0.05)


def test_a_muon_that_leaves_the_detector_is_unknown() -> None:
    assert energies(event_of(muon(DIAGONAL, 150.0))).tolist() == [UNKNOWN]
    # One that stops in the outermost layers may have left just as well.
    assert energies(event_of(muon(torch.tensor([1.0, 0.0, 0.0]), 58.8))).tolist() == [UNKNOWN]


def test_an_end_without_a_rise_of_the_light_is_no_stop() -> None:
    assert energies(event_of(muon(DIAGONAL, 30.0, stops=False))).tolist() == [UNKNOWN]


def test_a_gap_is_no_stop() -> None:
    places, light = muon(DIAGONAL, 40.0)
    away = ((places - CENTRE[0]).norm(dim=1) - 20).abs() < 3
    assert energies(event_of((places[~away], light[~away]))).tolist() == [UNKNOWN]


def test_two_muons_are_two() -> None:
    one, other = muon(DIAGONAL, 20.0), muon(-DIAGONAL, 33.0)
    assert sorted(energies(event_of(one, other)).tolist()) == pytest.approx(
        [energies(event_of(part)).item() for part in (one, other)], rel=1e-3
    )


def test_no_tracks_and_no_hits() -> None:
    nothing = Voxels.make(torch.zeros(0, 3).long(), torch.zeros(0), torch.zeros(0).long(), 1, GRID)
    around = surroundings(nothing, torch.zeros(1).long(), CENTRE)
    tracks = find_tracks(around, CENTRE)
    assert stopping_energy(nothing, torch.zeros(1).long(), CENTRE, tracks, 10.0, 10.0).tolist() == []
    # A track without hits of its own cannot come from the chain; it is unknown all the same.
    some = find_tracks(surroundings(event_of(muon(DIAGONAL, 30.0)), torch.zeros(1).long(), CENTRE), CENTRE)
    some = replace(some, point=some.point + 40)
    assert energies(event_of(muon(DIAGONAL, 30.0))).item() > 0
    hits = event_of(muon(DIAGONAL, 30.0))
    assert stopping_energy(hits, torch.zeros(1).long(), CENTRE, some, 10.0, 10.0).tolist() == [UNKNOWN]


@pytest.mark.parametrize("pdg", [13, 2212, 1000010020])
def test_energy_and_range_are_inverse(pdg: int) -> None:
    ke = np.geomspace(0.01, 900, 50)
    np.testing.assert_allclose(energy_of_range(track_range(ke, np.array(pdg)), pdg), ke, rtol=1e-6)


def test_minimum_ionisation_is_that_of_the_tables() -> None:
    """Of polystyrene [MeV cm2/g], from the atomic and nuclear properties of the Review of Particle Physics."""
    loss = stopping_power(np.geomspace(50, 3000, 500), MUON) * 10 / 1.060
    assert loss.min() == pytest.approx(1.936, rel=0.005)
