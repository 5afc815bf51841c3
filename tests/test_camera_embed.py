"""Unsupervised classes of patches, and what an ideal observer finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, maximum_filter

pytest.importorskip("sklearn")

from sklearn.metrics import adjusted_rand_score

from sparsereco.camera.embed import (
    PATCH,
    Embedder,
    EmbedderConfig,
    aligned,
    assign,
    best_number,
    choose_classes,
    cluster,
    cut_patches,
    sharpened,
)
from sparsereco.camera.observer import is_found, maxima_per_pixel, spot, threshold_for


def drawn(n: int) -> tuple[torch.Tensor, np.ndarray]:
    """Patches of round spots, of bent lines, and of noise, in turn."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:PATCH, :PATCH] - PATCH // 2
    kinds, patches = np.arange(n) % 3, rng.standard_normal((n, PATCH, PATCH))
    for patch, kind in zip(patches, kinds, strict=True):
        dy, dx = y - rng.uniform(-2, 2), x - rng.uniform(-2, 2)
        angle = rng.uniform(0, np.pi)
        u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
        if kind == 0:
            patch += rng.uniform(20, 60) * np.exp(-(u**2 + v**2) / 5)
        elif kind == 1:
            patch += rng.uniform(10, 30) * np.exp(-((v - 0.03 * u**2) ** 2) / 4) * (np.abs(u) < 9)
    return torch.from_numpy(patches.astype("f4")), kinds


def test_direction_and_place_do_not_matter() -> None:
    patch = torch.zeros(1, PATCH, PATCH)
    patch[0, 8:11, 4:15] = torch.arange(1.0, 12.0)
    moved = torch.roll(torch.rot90(patch, 2, (1, 2)), (2, -3), (1, 2))
    one, other = aligned(patch), aligned(moved)
    torch.testing.assert_close(other, torch.rot90(one, 2, (1, 2)), atol=0.05, rtol=0.05)
    upright = aligned(patch.transpose(1, 2))[0]
    assert upright.sum(0).gt(1).sum() > 2 * upright.sum(1).gt(1).sum()  # along x again
    assert torch.isfinite(aligned(torch.zeros(2, PATCH, PATCH))).all()


def test_students_t_and_its_sharpened_target() -> None:
    shares = assign(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [3.0]]))
    torch.testing.assert_close(shares[0], torch.tensor([1.0, 0.1]) / 1.1)
    torch.testing.assert_close(shares.sum(1), torch.ones(3))
    target = sharpened(shares)
    torch.testing.assert_close(target.sum(1), torch.ones(3))
    assert (target.amax(1) >= shares.amax(1)).all()


def test_classes_are_found_without_labels() -> None:
    torch.manual_seed(1)
    patches, kinds = drawn(600)
    model = Embedder(EmbedderConfig(classes=3, channels=(8, 8), latent=4))
    prepared = model.prepare(patches)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(150):
        rows = torch.arange(step * 64, step * 64 + 64) % len(patches)
        optimiser.zero_grad()
        torch.nn.functional.mse_loss(model.redraw(prepared[rows]), prepared[rows]).backward()
        optimiser.step()
    changes: list[float] = []
    before = [weight.detach().clone() for weight in model.encoder.parameters()]
    answer = cluster(model, patches, 1, report=lambda _, share: changes.append(share))
    assert adjusted_rand_score(kinds, answer) > 0.95
    assert changes[-1] < 0.001
    assert len(changes) < 100
    assert all((old == kept).all() for old, kept in zip(before, model.start.parameters(), strict=True))
    assert any((old != new).any() for old, new in zip(before, model.encoder.parameters(), strict=True))
    with torch.inference_mode():
        assert (model(patches).argmax(1).numpy() == answer).all()


def test_the_silhouette_counts_separate_classes() -> None:
    rng = np.random.default_rng(2)
    numbers = np.repeat(np.eye(4)[:, :3] * 10, 60, axis=0) + rng.standard_normal((240, 3))
    found = choose_classes(numbers, 1)
    assert best_number(found) == 4
    assert best_number({2: 0.40, 3: 0.45, 4: 0.46}) == 3
    wider = Embedder(EmbedderConfig()).with_classes(4)
    assert wider.centres.shape == (4, 8)


def test_patches_at_the_edge_are_filled_with_nothing() -> None:
    macro = torch.arange(40.0 * 50).reshape(40, 50)
    middle, corner = cut_patches(macro, np.array([[20.0, 25.0], [0.0, 49.0]]))
    torch.testing.assert_close(middle, macro[8:33, 13:38])
    assert corner[:12].abs().sum() == 0
    assert corner[12, 12] == macro[0, 49]
    assert cut_patches(macro, np.zeros((0, 2))).shape == (0, PATCH, PATCH)


def test_maxima_of_noise_are_as_many_as_predicted() -> None:
    rng, width = np.random.default_rng(3), 4.0
    y, x = np.mgrid[-20:21, -20:21]
    template = np.exp(-(y**2 + x**2) / (2 * width**2))
    field = np.concatenate(
        [gaussian_filter(rng.standard_normal((1024, 1024)), width, mode="wrap").ravel() for _ in range(6)]
    ).reshape(6, 1024, 1024)
    field /= field.std()
    peaks = (field == maximum_filter(field, (1, 5, 5), mode="wrap")) & (field > 3.5)
    expected = maxima_per_pixel(3.5, template) * field.size
    assert peaks.sum() == pytest.approx(expected, rel=0.2)
    assert maxima_per_pixel(threshold_for(template, 0.1, 10**6), template) * 10**6 == pytest.approx(0.1)


def test_the_observer_finds_half_of_the_events_at_the_threshold() -> None:
    rng = np.random.default_rng(4)
    pixel = np.argwhere(np.ones((31, 31)))
    shape = spot(pixel, np.array([15.0, 15.0]), 4.0)
    patch = shape.reshape(31, 31) / np.sqrt((shape**2).sum())
    limit = threshold_for(np.pad(patch, 4), 0.1, 2304**2)
    shares = []
    for strength in (0.5, 1.0, 1.6):
        light = strength * limit * 3.6 * shape / np.sqrt((shape**2).sum())
        shares.append(np.mean([is_found(pixel, shape, light, 3.6, 0.1, 2304**2, rng) for _ in range(150)]))
    assert shares[0] < 0.05
    assert 0.4 < shares[1] < 0.85  # a bit more than half: the response has its maximum beside the place
    assert shares[2] > 0.97
    assert not is_found(pixel[:0], shape[:0], shape[:0], 3.6, 0.1, 2304**2, rng)
