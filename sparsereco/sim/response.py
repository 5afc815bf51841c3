"""From deposits to what the detector reads out: quenching, light, crosstalk, photo-statistics, noise and threshold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsereco.detector import Detector, Response
from sparsereco.voxels import Voxels


@dataclass(frozen=True)
class Deposits:
    """Energy deposits of a batch of events."""

    position: Tensor  # (N, 3) [mm]
    energy: Tensor  # (N,) [MeV]
    dedx: Tensor  # (N,) energy loss per length, for the quenching [MeV/mm]
    event: Tensor  # (N,) int64
    n_events: int


def quenched(energy: Tensor, dedx: Tensor, birks: float) -> Tensor:
    """Visible energy dE / (1 + kB dE/dx) [MeV], Birks' law (J. B. Birks, Proc. Phys. Soc. A 64 (1951) 874)."""
    return energy / (1 + birks * dedx)


def respond(
    deposits: Deposits, detector: Detector, light_scale: Tensor | None = None, generator: torch.Generator | None = None
) -> Voxels:
    """Measured voxels of every event.

    Args:
        deposits: what the particles left; deposits outside the detector are lost.
        detector: grid and response.
        light_scale: (B,) factor on the light yield of each event; None for 1.
        generator: of the photo-statistics and the noise.

    Returns:
        One feature per voxel, whole photo-electrons at or above the threshold [p.e.].
    """
    response = detector.response
    light = response.light_yield * quenched(deposits.energy, deposits.dedx, response.birks)
    if light_scale is not None:
        light = light * light_scale[deposits.event]
    coords = torch.floor((deposits.position - torch.tensor(detector.origin)) / detector.pitch).long()
    inside = _inside(coords, detector.shape)
    expected = Voxels.make(coords[inside], light[inside], deposits.event[inside], deposits.n_events, detector.shape)
    if response.crosstalk > 0:
        expected = _leak(expected, response.crosstalk)
    measured = expected.with_feats(torch.poisson(expected.feats, generator=generator))
    if response.noise_hits > 0:
        measured = _add_noise(measured, response, generator)
    return measured.select(measured.signal >= response.threshold)


def _inside(coords: Tensor, shape: tuple[int, ...]) -> Tensor:
    return ((coords >= 0) & (coords < torch.tensor(shape))).all(1)


def _leak(expected: Voxels, share: float) -> Voxels:
    """Each face neighbour takes ``share`` of a voxel's light; what would leave the detector is lost."""
    steps = torch.cat(
        [torch.zeros(1, 3), torch.eye(3), -torch.eye(3)]
    ).long()  # (7, 3): the voxel itself, then its neighbours
    weights = torch.tensor([1 - 6 * share] + [share] * 6)
    coords = (expected.coords.long()[:, None] + steps).flatten(0, 1)
    light = (expected.signal[:, None] * weights).flatten()
    event = expected.event.repeat_interleave(7)
    inside = _inside(coords, expected.grid)
    return Voxels.make(coords[inside], light[inside], event[inside], len(expected), expected.grid)


def _add_noise(measured: Voxels, response: Response, generator: torch.Generator | None) -> Voxels:
    """Noise voxels anywhere in the detector, just above the threshold."""
    counts = torch.poisson(torch.full((len(measured),), float(response.noise_hits)), generator=generator).long()
    event = torch.repeat_interleave(torch.arange(len(measured)), counts)
    coords = (torch.rand(len(event), 3, generator=generator) * torch.tensor(measured.grid)).long()
    excess = torch.empty(len(event)).exponential_(1 / max(response.noise_pe, 1e-6), generator=generator)
    signal = torch.ceil(response.threshold + excess)
    return Voxels.make(
        torch.cat([measured.coords.long(), coords]),
        torch.cat([measured.signal, signal]),
        torch.cat([measured.event, event]),
        len(measured),
        measured.grid,
    )
