"""The generator of single-particle images: its physics, its gradients, its likeness to Geant4."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sparsereco import checkpoint, ops
from sparsereco.geometry import across
from sparsereco.kinematics import track_range
from sparsereco.vertex.decomposer import Decomposer, DecomposerConfig
from sparsereco.vertex.generator import GENERATED, Generator, GeneratorConfig, Shower
from sparsereco.vertex.hadrons import SPECIES

WEIGHTS = checkpoint.WEIGHTS / "generator.safetensors"


@pytest.fixture(scope="module")
def formulas() -> Generator:
    """Untrained: the formulas alone."""
    return Generator(GeneratorConfig())


@pytest.fixture(scope="module")
def trained() -> Generator:
    return checkpoint.load(WEIGHTS, Generator, GeneratorConfig)


def random_directions(n: int, seed: int = 1) -> Tensor:
    return normalize(torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("species", range(len(SPECIES)))
def test_hadrons_stop_at_their_range_and_lose_all_their_energy(formulas: Generator, species: int) -> None:
    ke = torch.tensor([5.0, 20.25, 60.0])
    made = formulas(species, ke)
    expected = track_range(ke.numpy(), np.full(3, SPECIES[species]))
    np.testing.assert_allclose(made.position[:, -1, 2].detach(), expected, rtol=0.02)
    np.testing.assert_allclose(made.energy.sum(1).detach(), ke, rtol=1e-3)
    assert (made.position.diff(dim=1)[..., 2] > 0).all()
    assert (made.position[..., :2] == 0).all()


def test_without_noise_a_muon_leaves_what_it_loses_besides_delta_rays(formulas: Generator) -> None:
    ke = torch.tensor([350.0, 900.0])
    made = formulas(GENERATED.index(13), ke)
    assert made.energy.shape == (2, GeneratorConfig().muon_steps)
    with_rays = formulas(GENERATED.index(13), ke.repeat(500), formulas.noise(3, 1000, torch.Generator().manual_seed(1)))
    assert (with_rays.energy.view(500, 2, -1).sum(2).mean(0) > 1.05 * made.energy.sum(1)).all()


@pytest.mark.parametrize("species", range(len(GENERATED)))
def test_each_particle_depends_on_its_own_noise_alone(formulas: Generator, species: int) -> None:
    ke = torch.tensor([30.0, 12.0, 55.0]) * (10 if species == 3 else 1)
    noise = formulas.noise(species, 3, torch.Generator().manual_seed(3))
    made, alone = formulas(species, ke, noise), formulas(species, ke[1:2], noise[1:2])
    for name in ("position", "energy", "dedx"):
        torch.testing.assert_close(getattr(made, name)[1:2], getattr(alone, name))
    assert (made.energy >= 0).all()
    none = formulas(species, ke[:0], noise[:0])
    assert none.position.shape[0] == 0


def test_the_same_seed_gives_the_same_deposits(formulas: Generator) -> None:
    one, two = (
        formulas(3, torch.tensor([500.0]), formulas.noise(3, 1, torch.Generator().manual_seed(8))) for _ in range(2)
    )
    assert torch.equal(one.position, two.position)


def test_placed_turns_the_own_axis_to_the_direction(formulas: Generator) -> None:
    direction, start = random_directions(5), torch.arange(15.0).view(5, 3)
    made = formulas(0, torch.full((5,), 40.0))
    placed = made.placed(direction, start)
    expected = start[:, None] + made.position[..., 2:] * direction[:, None]
    torch.testing.assert_close(placed.position, expected)
    u, v = across(direction)
    frame = torch.stack([u, v, direction], 1)
    torch.testing.assert_close(frame @ frame.mT, torch.eye(3).expand(5, 3, 3), atol=1e-6, rtol=0)
    assert (torch.linalg.det(frame) > 0.99).all()


def test_light_is_quenched_where_the_particle_is_slow(formulas: Generator) -> None:
    made = formulas(0, torch.tensor([50.0]))
    assert made.light(100.0, 0.0).sum().item() == pytest.approx(5000, rel=1e-3)
    ratio = (made.light(1.0, 0.126) / made.energy)[0]
    assert ratio[0] > 0.85
    assert ratio[-1] < 0.35


@pytest.mark.parametrize("species", range(len(GENERATED)))
def test_gradients_of_the_image_are_those_of_finite_differences(trained: Generator, species: int) -> None:
    n, pitch = 200, 10.0
    ke = torch.tensor(40.25 if species < 3 else 600.0)  # between nodes of the table, where there is no kink
    noise = trained.noise(species, n, torch.Generator().manual_seed(2))
    weight = torch.randn(5, 5, 5, generator=torch.Generator().manual_seed(4))

    def score(energy: Tensor, turn: Tensor, start: Tensor) -> Tensor:
        direction = normalize(torch.tensor([0.3, -0.5, 0.8]) + turn, dim=0)
        with torch.no_grad():
            spread = 10 * random_directions(n) / 4  # starts all over a voxel: the mean image has no edges
        made = trained(species, energy.expand(n), noise).placed(direction.expand(n, 3), start + spread + 25.0)
        light = made.light(85.8, 0.126)
        offsets = torch.arange(n + 1) * light.shape[1]
        image, _ = ops.soft_voxelize(
            (made.position / pitch).flatten(0, 1), light.flatten(), offsets, softness=0.3, shape=(5, 5, 5)
        )
        return (image.mean(0) * weight).sum()

    arguments = [ke.clone(), torch.zeros(3), torch.zeros(3)]
    steps = [0.005 * float(ke), 0.01, 0.1]
    tracked = [value.clone().requires_grad_() for value in arguments]
    slopes = torch.autograd.grad(score(*tracked), tracked)
    for which, (slope, step) in enumerate(zip(slopes, steps, strict=True)):
        for index in np.ndindex(*arguments[which].shape):
            ends = []
            for sign in (1, -1):
                moved = [value.clone() for value in arguments]
                moved[which][index] += sign * step
                ends.append(float(score(*moved).detach()))
            size = max(float(slope.abs().max()), 1.0)
            assert float(slope[index]) == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=0.05 * size)


def test_beyond_the_trained_energies_there_is_still_a_gradient(formulas: Generator) -> None:
    for ke in (0.0, 75.0, 120.0):
        energy = torch.tensor([ke], requires_grad=True)
        made = formulas(0, energy)
        (slope,) = torch.autograd.grad(made.light(85.8, 0.126).sum(), energy)
        assert torch.isfinite(slope).all()
        assert slope > 0


def summed(position: Tensor, light: Tensor, owner: Tensor, n: int) -> dict[str, Tensor]:
    """Total light, its mean depth and mean lateral displacement along one axis, of each of n particles."""
    total = torch.zeros(n).index_add_(0, owner, light)
    depth, aside = (
        torch.zeros(n).index_add_(0, owner, light * position[:, axis]) / total.clamp(min=1e-6) for axis in (2, 0)
    )
    return {"light": total, "depth": depth, "aside": aside}


@pytest.mark.parametrize("species", range(len(SPECIES)))
def test_the_trained_generator_is_like_geant4(trained: Generator, bank: Any, species: int) -> None:
    tracks = np.flatnonzero((bank.pdg == SPECIES[species]) & (bank.ke > 10))
    rows = np.concatenate([np.arange(bank.offsets[t], bank.offsets[t + 1]) for t in tracks])
    n, counts = len(tracks), np.diff(bank.offsets)[tracks]
    light = torch.from_numpy(85.8 * bank.energy[rows] / (1 + 0.126 * bank.dedx[rows]))
    owner = torch.arange(n).repeat_interleave(torch.from_numpy(counts))
    real = summed(torch.from_numpy(bank.position[rows]), light, owner, n)
    noise = trained.noise(species, n, torch.Generator().manual_seed(1))
    with torch.no_grad():
        made: Shower = trained(species, torch.from_numpy(bank.ke[tracks]), noise)
    owner = torch.arange(n).repeat_interleave(made.energy.shape[1])
    false = summed(made.position.flatten(0, 1), made.light(85.8, 0.126).flatten(), owner, n)
    assert (false["light"] / real["light"]).mean().item() == pytest.approx(1, abs=0.01)
    assert (false["depth"] / real["depth"]).mean().item() == pytest.approx(1, abs=0.02)
    spread = [values["aside"].abs().quantile(0.68) for values in (false, real)]
    # A tenth of a millimetre at most, of which an image shows little: it is learnt to half its size.
    assert float(spread[0] / spread[1]) == pytest.approx(1, abs=0.6)


def test_checkpoints_of_other_settings_are_refused(trained: Generator, tmp_path: Any) -> None:
    other = Generator(replace(GeneratorConfig(), width=8))
    checkpoint.save(tmp_path / "other.safetensors", other)
    assert checkpoint.load(tmp_path / "other.safetensors", Generator, GeneratorConfig).settings.width == 8
    with pytest.raises(checkpoint.CheckpointError, match="expected those of Decomposer"):
        checkpoint.load(WEIGHTS, Decomposer, DecomposerConfig)
