"""The finder: what it is trained towards, how candidates become vertices, and that it can learn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsereco.vertex.finder import Finder, FinderConfig, Vertices, decode, embed, finder_loss, finder_targets
from sparsereco.voxels import Voxels

GRID = (24, 16, 24)


def voxels(*events: list[tuple[int, int, int]], signal: float | list[float] = 100.0) -> Voxels:
    """Events of voxels, all of one signal, or each of its own."""
    coords = torch.tensor([c for event in events for c in event], dtype=torch.int64).reshape(-1, 3)
    event = torch.tensor([b for b, event in enumerate(events) for _ in event], dtype=torch.int64)
    light = torch.full((len(coords),), signal) if isinstance(signal, float) else torch.tensor(signal)
    return Voxels.make(coords, light, event, len(events), GRID)


def candidates(hits: Voxels, probability: list[float], offset: list | None = None, **settings: float) -> Vertices:
    """What `decode` makes of voxels with these probabilities, in the sorted order of the voxels."""
    logit = torch.logit(torch.tensor(probability, dtype=torch.float32))
    offsets = torch.zeros(len(hits.coords), 3) if offset is None else torch.tensor(offset)
    limits = {"score_threshold": 0.1, "further_threshold": 0.1, "separation": 4.0, "max_vertices": 5} | settings
    return decode(logit, offsets, hits, **limits)


def small_finder() -> Finder:
    torch.manual_seed(2)
    return Finder(FinderConfig(channels=(8, 12, 16), min_pe=10.0))


def stars(n: int, seed: int = 0) -> tuple[Voxels, Tensor]:
    """Events with three straight arms from a vertex, and the vertices [voxels]."""
    random = torch.Generator().manual_seed(seed)
    vertex = 6 + torch.rand(n, 3, generator=random) * (torch.tensor(GRID) - 12)
    arms = torch.nn.functional.normalize(torch.randn(n, 3, 1, 3, generator=random), dim=-1)
    points = (vertex[:, None, None] + torch.linspace(0, 8, 60)[:, None] * arms).flatten(1, 2)
    coords, event = torch.floor(points).long().flatten(0, 1), torch.arange(n).repeat_interleave(180)
    inside = ((coords >= 0) & (coords < torch.tensor(GRID))).all(1)
    return Voxels.make(coords[inside], torch.full((int(inside.sum()),), 25.0), event[inside], n, GRID), vertex


def test_neighbouring_candidates_join_into_one() -> None:
    hits = voxels([(5, 5, 5), (5, 5, 6), (20, 5, 5)])
    found = candidates(hits, [0.6, 0.2, 0.05], [[0.0, 0, 0.5], [0, 0, -0.5], [0, 0, 0]])
    assert found.event.tolist() == [0]
    torch.testing.assert_close(found.position, torch.tensor([[5.5, 5.5, (0.6 * 6 + 0.2 * 6) / 0.8]]))
    torch.testing.assert_close(found.score, torch.tensor([1 - 0.4 * 0.8]))


@pytest.mark.parametrize(("gap", "n_found"), [(2, 1), (3, 1), (4, 2), (9, 2)])
def test_candidates_closer_than_the_separation_are_one(gap: int, n_found: int) -> None:
    found = candidates(voxels([(5, 5, 5), (5 + gap, 5, 5)]), [0.9, 0.8])
    assert len(found.event) == n_found


def test_several_vertices_are_sorted_by_event_and_score() -> None:
    hits = voxels([(0, 0, 0), (10, 0, 0), (20, 0, 0)], [], [(3, 3, 3)], [(0, 0, 0), (12, 12, 12)])
    found = candidates(hits, [0.3, 0.9, 0.5, 0.05, 0.2, 0.7])
    assert found.event.tolist() == [0, 0, 0, 3, 3]
    torch.testing.assert_close(found.score, torch.tensor([0.9, 0.5, 0.3, 0.7, 0.2]))
    assert found.position[:, 0].tolist() == [10.5, 20.5, 0.5, 12.5, 0.5]


@pytest.mark.parametrize("max_vertices", [1, 2, 5])
def test_at_most_so_many_vertices_the_best_ones(max_vertices: int) -> None:
    found = candidates(voxels([(0, 0, 0), (10, 0, 0), (20, 0, 0)]), [0.3, 0.9, 0.5], max_vertices=max_vertices)
    torch.testing.assert_close(found.score, torch.tensor([0.9, 0.5, 0.3])[:max_vertices])


def test_equal_scores_in_one_event() -> None:
    found = candidates(voxels([(0, 0, 0), (10, 0, 0)], [(0, 0, 0)]), [0.5, 0.5, 0.5])
    assert found.event.tolist() == [0, 0, 1]
    assert found.position[:, 0].tolist() == [0.5, 10.5, 0.5]


def test_the_threshold() -> None:
    hits = voxels([(0, 0, 0), (10, 0, 0)])
    assert len(candidates(hits, [0.09, 0.05]).event) == 0
    assert len(candidates(hits, [0.11, 0.05]).event) == 1
    assert len(candidates(hits, [0.11, 0.05], score_threshold=0.0, further_threshold=0.0).event) == 2


def test_the_best_candidate_of_an_event_needs_less() -> None:
    hits = voxels([(0, 0, 0), (10, 0, 0)], [(0, 0, 0), (10, 0, 0)])
    found = candidates(hits, [0.05, 0.04, 0.2, 0.3], score_threshold=0.02)
    assert found.event.tolist() == [0, 1, 1]
    torch.testing.assert_close(found.score, torch.tensor([0.05, 0.3, 0.2]))


@pytest.mark.parametrize("events", [[], [[]], [[], [], []]])
def test_no_voxels_give_no_vertex(events: list) -> None:
    hits = voxels(*events)
    finder = small_finder()
    logit, offset, embedding = finder(hits)
    assert (logit.shape, offset.shape, embedding.shape) == ((0,), (0, 3), (0, 8))
    found = decode(logit, offset, hits, 0.1, 0.1, 4.0, 5)
    assert (found.event.shape, found.position.shape, found.score.shape) == ((0,), (0, 3), (0,))


def test_targets_point_to_the_nearest_vertex() -> None:
    hits = voxels([(5, 5, 5), (5, 5, 9), (5, 5, 20)], [(1, 1, 1)], [(7, 7, 7), (8, 7, 7)])
    vertex = torch.tensor([[5.5, 5.5, 6.0], [5.5, 5.5, 18.0], [8.2, 7.5, 7.5]])
    target, to_vertex, near = finder_targets(hits, vertex, torch.tensor([0, 0, 2]))
    assert target.tolist() == [1, 0, 1, 0, 0, 1]
    torch.testing.assert_close(to_vertex[:3], torch.tensor([[0, 0, 0.5], [0, 0, -3.5], [0, 0, -2.5]]))
    torch.testing.assert_close(to_vertex[4:], torch.tensor([[0.7, 0, 0], [-0.3, 0, 0]]))
    assert near.tolist() == [True, False, True, False, True, True]


def test_an_event_without_vertex_wants_none() -> None:
    hits = voxels([(5, 5, 5)], [(1, 1, 1)])
    target, _, near = finder_targets(hits, torch.zeros(0, 3), torch.zeros(0).long())
    assert not target.any()
    assert not near.any()
    finder = small_finder()
    losses = finder_loss(*finder(hits)[:2], hits, torch.zeros(0, 3), torch.zeros(0).long())
    assert losses["offset"] == 0
    assert 0 < losses["score"] < 1
    sum(losses.values()).backward()


def test_perfect_answers_cost_nothing_and_decode_to_the_truth() -> None:
    hits, vertex = stars(8)
    event = torch.arange(8)
    target, to_vertex, _ = finder_targets(hits, vertex, event)
    logit = (target - 0.5) * 60
    losses = finder_loss(logit, to_vertex, hits, vertex, event)
    assert sum(losses.values()) < 1e-6
    found = decode(logit, to_vertex, hits, 0.5, 0.5, 4.0, 5)
    assert found.event.tolist() == event.tolist()
    torch.testing.assert_close(found.position, vertex)


def test_weak_hits_are_not_looked_at() -> None:
    hits = voxels([(1, 1, 1), (2, 2, 2), (3, 3, 3)], signal=[9.0, 10.0, 50.0])
    finder = small_finder()
    visible, rows = finder.visible(hits)
    assert rows.tolist() == [1, 2]
    embedding = embed(finder, hits)
    assert embedding.shape == (3, 8)
    assert not embedding[0].any()
    torch.testing.assert_close(embedding[1:], finder(visible)[2].detach())
    assert not embedding.requires_grad


def test_an_event_gets_the_same_answer_in_any_batch() -> None:
    finder = small_finder().eval()
    together, _ = stars(4)
    logit, offset, _ = finder(together)
    for b in range(4):
        own = slice(together.offsets[b], together.offsets[b + 1])
        alone = Voxels(
            together.coords[own].contiguous(), together.feats[own], torch.tensor([0, own.stop - own.start]), GRID
        )
        torch.testing.assert_close(finder(alone)[0], logit[own], rtol=0, atol=1e-5)
        torch.testing.assert_close(finder(alone)[1], offset[own], rtol=0, atol=1e-5)


def test_gradients_reach_every_parameter_and_the_loss_goes_down() -> None:
    finder = small_finder()
    hits, vertex = stars(16)
    event = torch.arange(16)
    optimiser = torch.optim.Adam(finder.parameters(), lr=5e-3)
    losses = []
    for step in range(40):
        loss = sum(finder_loss(*finder(hits)[:2], hits, vertex, event).values())
        optimiser.zero_grad()
        loss.backward()
        if step == 0:
            dead = [name for name, p in finder.named_parameters() if p.grad is None or not p.grad.any()]
            assert dead == []
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
