"""The decomposer: symmetry, independence of the batch, densities, and every size of input that can occur."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import permutations, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsereco.vertex.crop import HALF, Crops, Tracks
from sparsereco.vertex.decomposer import Decomposer, DecomposerConfig, Decomposition
from sparsereco.vertex.features import canonical_turn
from sparsereco.vertex.hadrons import ENERGY, MAX_HADRONS, SPECIES, Hadrons, name_hadrons

CONTEXT = 5
SYMMETRIES = torch.stack(
    [
        torch.eye(3)[list(order)] * torch.tensor(sign)[:, None]
        for order in permutations(range(3))
        for sign in product((1.0, -1.0), repeat=3)
    ]
)
"""Of the cube: the 48 signed permutations."""


def decomposer(number: int | None = None) -> Decomposer:
    """A small one with random weights, which names that many hadrons, or one number here and another there."""
    torch.manual_seed(5)
    config = DecomposerConfig(width=24, heads=2, encoder_blocks=(1, 1), decoder_blocks=1, context=CONTEXT)
    model = Decomposer(config).eval()
    with torch.no_grad():
        model.step_head[-1].weight.mul_(4)
        crops, head = random_crops(N_VOXELS, N_TRACKS), model.number_head[-1]
        logits = model.encode(crops, torch.ones(len(crops), dtype=torch.bool)).number
        head.bias.sub_(logits.mean(0)).div_(logits.std(0))
        head.weight.div_(logits.std(0)[:, None])
        if number is not None:
            head.bias[number] = 500.0
    return model


def random_crops(n_voxels: list[int], n_tracks: list[int], seed: int = 0) -> Crops:
    random = torch.Generator().manual_seed(seed)
    crop = torch.repeat_interleave(torch.arange(len(n_voxels)), torch.tensor(n_voxels, dtype=torch.int64))
    cells = [torch.randperm((2 * HALF + 1) ** 3, generator=random)[:n] for n in n_voxels]
    cell = torch.cat([torch.zeros(0).long(), *cells])
    place = torch.stack([cell // 49, cell // 7 % 7, cell % 7], 1) - HALF
    signal = 500 * torch.rand(len(crop), generator=random) + 1
    owner = torch.repeat_interleave(torch.arange(len(n_tracks)), torch.tensor(n_tracks, dtype=torch.int64))
    n = len(owner)
    direction = torch.nn.functional.normalize(torch.randn(n, 3, generator=random), dim=1)
    point = (HALF + 0.5) * direction / direction.abs().amax(1, keepdim=True)
    scalars = [1 + 9 * torch.rand(n, generator=random) for _ in range(4)]
    context = torch.randn(len(crop), CONTEXT, generator=random)
    centre = torch.randint(20, 40, (len(n_voxels), 3), generator=random)
    error = 0.5 * torch.rand(n, 3, generator=random)
    return Crops(place, signal, context, crop, centre, Tracks(owner, point, direction, *scalars, error))


def turned(crops: Crops, turn: Tensor) -> Crops:
    """The whole crop, turned about its central voxel."""
    point, direction = crops.tracks.point @ turn.T, crops.tracks.direction @ turn.T
    tracks = replace(crops.tracks, point=point, direction=direction, error=crops.tracks.error @ turn.abs().T)
    return replace(crops, place=(crops.place.float() @ turn.T).long(), tracks=tracks)


def one_of(crops: Crops, index: int) -> Crops:
    """A crop alone."""
    own, of_track = crops.crop == index, crops.tracks.crop == index
    tracks = Tracks(**{field.name: getattr(crops.tracks, field.name)[of_track] for field in fields(Tracks)})
    parts = crops.place[own], crops.signal[own], crops.context[own], crops.crop[own] * 0, crops.centre[index][None]
    return Crops(*parts, replace(tracks, crop=tracks.crop * 0))


def random_hadrons(crops: Crops, counts: list[int], seed: int = 0) -> Hadrons:
    """Hadrons at least 15 MeV apart."""
    random = torch.Generator().manual_seed(seed)
    n = len(crops)
    ke = 10 + 15 * torch.rand(n, MAX_HADRONS, generator=random).argsort(1).float()
    direction = torch.nn.functional.normalize(torch.randn(n, MAX_HADRONS, 3, generator=random), dim=2)
    species = torch.randint(len(SPECIES), (n, MAX_HADRONS), generator=random)
    share = torch.rand(len(crops.place), MAX_HADRONS, generator=random) / MAX_HADRONS
    return Hadrons(ke, direction, species, torch.tensor(counts, dtype=torch.int64), share)


def assert_same(found: Decomposition, expected: Decomposition, atol: float = 1e-4) -> None:
    for field in fields(Decomposition):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        torch.testing.assert_close(a, b, rtol=1e-3, atol=atol, msg=lambda text, name=field.name: f"{name}: {text}")


N_VOXELS, N_TRACKS = [28, 1, 10, 17, 5], [1, 2, 4, 1, 1]
NUCLEI = torch.tensor([True, False, False, True, True, False])
"""Whether there may be light nuclei in each of six crops."""


@given(st.tuples(*[st.floats(-10, 10, allow_subnormal=False)] * 3))
def test_the_canonical_turn_leads_into_the_wedge(axis: tuple[float, float, float]) -> None:
    turn = canonical_turn(torch.tensor([axis], dtype=torch.float64).float())[0]
    assert torch.equal(turn.abs().sum(0), torch.ones(3))
    assert torch.equal(turn.abs().sum(1), torch.ones(3))
    assert set(turn.unique().tolist()) <= {-1.0, 0.0, 1.0}
    x, y, z = (turn @ torch.tensor(axis)).tolist()
    assert x >= y >= z >= 0


@pytest.mark.parametrize("axis", [(0, 0, 0), (1, 1, 1), (-1, -1, -1), (0, -2, 0), (3, 0, -3), (-0.0, 1, 1)])
def test_the_canonical_turn_of_ties_and_zeros(axis: tuple[float, ...]) -> None:
    turn = canonical_turn(torch.tensor([axis], dtype=torch.float32))[0]
    assert torch.equal(turn @ turn.T, torch.eye(3))
    assert (turn @ torch.tensor(axis, dtype=torch.float32)).tolist() == sorted(map(abs, axis), reverse=True)


def test_turning_the_crop_turns_the_answer() -> None:
    """By any of the 48 symmetries of the cube, mirrors among them."""
    assert len(SYMMETRIES.flatten(1).unique(dim=0)) == 48
    model, crops = decomposer(), random_crops(N_VOXELS, N_TRACKS)
    found = model(crops, True)
    assert len(set(torch.bincount(found.crop, minlength=5).tolist())) > 1
    for turn in SYMMETRIES:
        expected = replace(
            found,
            vertex=found.vertex @ turn.T,
            vertex_err=found.vertex_err @ turn.abs().T,
            vertex_cov=turn @ found.vertex_cov @ turn.T,
            direction=found.direction @ turn.T,
        )
        assert_same(model(turned(crops, turn), True), expected)


def test_without_a_track_the_light_gives_the_axis() -> None:
    model, crops = decomposer(), random_crops([20, 12], [0, 0])
    found, turn = model(crops, True), SYMMETRIES[29]
    again = model(turned(crops, turn), True)
    torch.testing.assert_close(again.vertex, found.vertex @ turn.T, rtol=0, atol=1e-4)
    torch.testing.assert_close(again.direction, found.direction @ turn.T, rtol=0, atol=1e-4)


def test_a_crop_gets_the_same_answer_in_any_batch() -> None:
    model, crops = decomposer(), random_crops(N_VOXELS, N_TRACKS)
    together = model(crops, True)
    for index in range(len(crops)):
        alone, own = model(one_of(crops, index), True), together.crop == index
        assert len(alone.crop) == own.sum()
        for name in ("species", "ke", "ke_err", "direction", "dir_err", "score", "step"):
            torch.testing.assert_close(getattr(alone, name), getattr(together, name)[own], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(alone.vertex[0], together.vertex[index], rtol=0, atol=1e-4)
        share = together.share[crops.crop == index]
        torch.testing.assert_close(alone.share, share[:, : alone.share.shape[1]], rtol=0, atol=1e-4)
        assert not share[:, alone.share.shape[1] :].any()


@pytest.mark.parametrize(
    ("n_voxels", "n_tracks"),
    [([0], [0]), ([0, 3], [2, 0]), ([1], [0]), ([343], [6]), ([28] * 3, [0, 1, 4]), ([], [])],
    ids=["nothing", "only tracks", "one voxel", "full", "0 to 4 tracks", "no crops"],
)
@pytest.mark.parametrize("number", [0, None, MAX_HADRONS], ids=["none", "some", "all"])
def test_any_size_of_input_gives_a_sound_answer(n_voxels: list[int], n_tracks: list[int], number: int | None) -> None:
    crops = random_crops(n_voxels, n_tracks)
    found = decomposer(number)(crops, True)
    counts = torch.bincount(found.crop, minlength=len(crops)).tolist()
    if number is not None:
        assert counts == [number] * len(crops)
    assert found.step.tolist() == [step for count in counts for step in range(count)]
    assert found.crop.tolist() == [crop for crop, count in enumerate(counts) for _ in range(count)]
    assert found.vertex.shape == found.vertex_err.shape == (len(crops), 3)
    torch.testing.assert_close(found.direction.norm(dim=1), torch.ones(len(found.crop)))
    assert (found.ke >= 0).all()
    assert ((found.score > 0) & (found.score <= 1)).all()
    assert len(found.share) == sum(n_voxels)
    assert ((found.share >= 0) & (found.share <= 1)).all()
    assert (found.share.sum(1) <= 1 + 1e-6).all()
    for error in (found.vertex_err, found.ke_err, found.dir_err):
        assert (torch.isfinite(error) & (error > 0)).all()


@pytest.mark.parametrize("max_hadrons", [1, 3])
def test_no_more_hadrons_than_allowed(max_hadrons: int) -> None:
    crops = random_crops([20, 8], [1, 1])
    found = decomposer(MAX_HADRONS)(crops, True, max_hadrons)
    assert torch.bincount(found.crop).tolist() == [max_hadrons] * 2
    assert found.share.shape[1] == max_hadrons


@pytest.mark.parametrize("light_nuclei", [False, True])
def test_the_calibration_scales_the_errors_alone(light_nuclei: bool) -> None:
    """Each prior has one of its own."""
    model, crops = decomposer(), random_crops(N_VOXELS, N_TRACKS)
    before = model(crops, light_nuclei)
    buffers = model.vertex_calibration, model.ke_calibration, model.dir_calibration, model.total_calibration
    for value, buffer in enumerate(buffers, start=2):
        buffer[int(light_nuclei)] = value
    expected = replace(
        before,
        vertex_err=2 * before.vertex_err,
        vertex_cov=4 * before.vertex_cov,
        ke_err=3 * before.ke_err,
        dir_err=4 * before.dir_err,
        total_err=5 * before.total_err,
    )
    assert_same(model(crops, light_nuclei), expected)


def test_what_is_known_beforehand_counts() -> None:
    model, crops = decomposer(), random_crops(N_VOXELS, N_TRACKS)
    protons, nuclei = (model.encode(crops, torch.full((5,), prior)).memory for prior in (False, True))
    assert (protons - nuclei).abs().max() > 1e-3
    mixed = model.encode(crops, NUCLEI[:5])
    own = mixed.ragged.event
    torch.testing.assert_close(mixed.memory, torch.where(NUCLEI[own, None], nuclei, protons))


def test_step_by_step_is_as_all_at_once() -> None:
    """The decoder remembers the steps before, instead of going through them again."""
    model, crops = decomposer(), random_crops(N_VOXELS, N_TRACKS)
    hadrons = random_hadrons(crops, [MAX_HADRONS] * 5)
    named = name_hadrons(hadrons.direction, hadrons.ke, hadrons.species)[:, :-1]
    with torch.inference_mode():
        encoded = model.encode(crops, NUCLEI[:5])
        remembered, before = model.remember(encoded), None
        expected, _ = model.decode(named, remembered)
        for step in range(MAX_HADRONS):
            new = named[:, step - 1 : step] if step else named[:, :0]
            found, before = model.decode(new, remembered, before)
            for field in fields(found):
                value, all_ = getattr(found, field.name), getattr(expected, field.name)
                torch.testing.assert_close(value[:, -1], all_[:, step], rtol=1e-4, atol=1e-5)


def test_the_loss_is_finite_and_reaches_every_parameter() -> None:
    model = decomposer().train()
    crops = random_crops([*N_VOXELS, 0], [*N_TRACKS, 0])
    hadrons = random_hadrons(crops, [1, 6, 3, 0, 2, 1])
    losses = model.loss(crops, NUCLEI, torch.zeros(6, 3), hadrons, torch.Generator().manual_seed(0))
    assert all(torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize(("n_voxels", "n_tracks", "counts"), [([4], [1], [0]), ([0], [0], [2]), ([], [], [])])
def test_the_loss_of_what_is_rare(n_voxels: list[int], n_tracks: list[int], counts: list[int]) -> None:
    crops = random_crops(n_voxels, n_tracks)
    vertex, random = torch.zeros(len(crops), 3), torch.Generator().manual_seed(0)
    losses = decomposer().loss(crops, NUCLEI[: len(crops)], vertex, random_hadrons(crops, counts), random)
    assert all(torch.isfinite(value) for value in losses.values())


def test_the_loss_takes_hadrons_in_any_order() -> None:
    model, crops = decomposer(), random_crops(N_VOXELS, N_TRACKS)
    hadrons = random_hadrons(crops, [MAX_HADRONS] * 5)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = replace(hadrons, **{k: getattr(hadrons, k)[:, order] for k in ("ke", "direction", "species", "share")})
    first, second = (
        model.loss(crops, NUCLEI[:5], torch.zeros(5, 3), h, torch.Generator().manual_seed(0))
        for h in (hadrons, shuffled)
    )
    torch.testing.assert_close(first, second)


def test_a_turned_truth_costs_the_same() -> None:
    model, crops = decomposer(), random_crops(N_VOXELS, N_TRACKS)
    hadrons, vertex = random_hadrons(crops, [1, 2, 3, 4, 0]), 0.3 * torch.randn(5, 3)
    turn = SYMMETRIES[17]
    first = model.loss(crops, NUCLEI[:5], vertex, hadrons, torch.Generator().manual_seed(0))
    hadrons = replace(hadrons, direction=hadrons.direction @ turn.T)
    second = model.loss(turned(crops, turn), NUCLEI[:5], vertex @ turn.T, hadrons, torch.Generator().manual_seed(0))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def test_energies_are_in_mev() -> None:
    """The density is over energies in units of ENERGY: a mode at 1 is a hadron of that many MeV."""
    model, crops = decomposer(MAX_HADRONS), random_crops([10], [1])
    with torch.no_grad():
        model.step_head[-1].weight[:28].zero_()
        model.step_head[-1].bias[:28].zero_()
        model.step_head[-1].bias[:28].view(4, 7)[:, 1] = 1.0
    found = model(crops, True)
    torch.testing.assert_close(found.ke, torch.full((MAX_HADRONS,), ENERGY), rtol=1e-3, atol=0)
