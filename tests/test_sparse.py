"""`SparseUNet` against the same network in dense torch, and what must hold for every sparse network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sparsereco.nn import sparse
from sparsereco.nn.sparse import SparseUNet
from sparsereco.voxels import Voxels

GRIDS = {2: (12, 11), 3: (8, 7, 9)}  # odd sizes too: a strided convolution drops the last row of those
DIMS = pytest.mark.parametrize("dims", [2, 3])


@pytest.fixture(params=["own", "spconv"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the networks run on: the engine of the CPU, and that of CUDA by its native algorithm."""
    monkeypatch.setattr(sparse, "sparse_tensor", getattr(sparse, f"{request.param}_tensor"))
    return request.param


def random_voxels(dims: int, n_events: int = 3, rows: int = 60, seed: int = 0, grid: tuple[int, ...] = ()) -> Voxels:
    grid = grid or GRIDS[dims]
    random = torch.Generator().manual_seed(seed)
    coords = torch.stack([torch.randint(size, (rows,), generator=random) for size in grid], 1)
    event = torch.randint(n_events, (rows,), generator=random)
    return Voxels.make(coords, torch.rand(rows, 2, generator=random).double(), event, n_events, grid)


def network(dims: int, channels: tuple[int, ...] = (4, 6, 5), blocks: int = 2) -> SparseUNet:
    """In double precision, and with norms that differ from where they start."""
    torch.manual_seed(1)
    unet = SparseUNet(dims, 2, channels, blocks).double()
    for module in unet.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return unet


def to_dense(voxels: Voxels) -> Tensor:
    """(B, C, *grid)."""
    dense = voxels.feats.new_zeros(len(voxels), *voxels.grid, voxels.feats.shape[1])
    return dense.index_put((voxels.event, *voxels.coords.long().T), voxels.feats).movedim(-1, 1)


def at(dense: Tensor, indices: Tensor) -> Tensor:
    """(N, C) values at (N, 1 + D) event and coordinate."""
    return dense.movedim(1, -1)[tuple(indices.long().T)]


def indices(x: sparse.SparseTensor) -> Tensor:
    """(N, 1 + D) int32 event and coordinate."""
    event = torch.repeat_interleave(torch.arange(len(x.sites.offsets) - 1), x.sites.offsets.diff())
    return torch.cat([event[:, None].int(), x.sites.coords], 1)


def site_numbers(indices: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(N,) ascending in event and coordinate."""
    number = indices[:, 0].long()
    for axis, size in enumerate(grid):
        number = number * size + indices[:, 1 + axis]
    return number


def dense_conv(conv: nn.Module, x: Tensor, stride: int = 1) -> Tensor:
    weight = conv.weight.movedim(-1, 1)  # ours is (out, *kernel, in)
    apply = functional.conv2d if x.ndim == 4 else functional.conv3d
    return apply(x, weight, stride=stride, padding=1 if stride == 1 else 0)


def dense_up(conv: nn.Module, x: Tensor, like: Tensor) -> Tensor:
    apply = functional.conv_transpose2d if x.ndim == 4 else functional.conv_transpose3d
    up = apply(x, conv.weight.movedim(-1, 0), stride=2)
    missing = [n for size, now in zip(like.shape[:1:-1], up.shape[:1:-1], strict=True) for n in (0, size - now)]
    return functional.pad(up, missing)


def dense_unet(unet: SparseUNet, voxels: Voxels) -> Tensor:
    """The U-Net in dense torch: at every level a mask says which sites are active."""

    def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
        return torch.relu(layer(x.movedim(1, -1)).movedim(-1, 1))

    pool = functional.max_pool2d if len(voxels.grid) == 2 else functional.max_pool3d
    masks = [(to_dense(voxels.with_feats(torch.ones_like(voxels.feats[:, :1]))) > 0).double()]
    x = dense_conv(unet.stem, to_dense(voxels)) * masks[0]
    skips = []

    def block(module: sparse.SparseBlock, x: Tensor, mask: Tensor) -> Tensor:
        return (x + dense_conv(module.conv, norm(module.norm, x) * mask)) * mask

    for level, blocks in enumerate(unet.encode):
        if level:
            skips.append(x)
            masks.append(pool(masks[-1], 2))
            x = dense_conv(unet.down[level - 1], x, stride=2)
        for one in blocks:
            x = block(one, x, masks[level])
    for level in reversed(range(len(skips))):
        x = (dense_up(unet.up[level], x, skips[level]) + skips[level]) * masks[level]
        x = block(unet.decode[level], x, masks[level])
    return at(norm(unet.norm, x), torch.cat([voxels.event[:, None], voxels.coords.long()], 1))


@DIMS
def test_every_kind_of_convolution_agrees_with_a_dense_one(dims: int) -> None:
    unet, voxels = network(dims), random_voxels(dims)
    stem, dense_stem = unet.stem(sparse.own_tensor(voxels)), dense_conv(unet.stem, to_dense(voxels))
    torch.testing.assert_close(stem.features, at(dense_stem, indices(stem)))

    dense_stem = to_dense(voxels.with_feats(stem.features))
    down, dense_down = unet.down[0](stem), dense_conv(unet.down[0], dense_stem, stride=2)
    assert list(down.sites.grid) == list(dense_down.shape[2:])
    assert 0 < len(down.features) < len(stem.features)
    torch.testing.assert_close(down.features, at(dense_down, indices(down)))

    up = unet.up[0](down)
    assert up.sites is stem.sites
    torch.testing.assert_close(up.features, at(dense_up(unet.up[0], dense_down, dense_stem), indices(up)))
    with pytest.raises(ValueError, match="leads back to sites that were halved"):
        unet.up[0](up)


@DIMS
def test_spconv_gives_the_same_with_the_same_weights(dims: int) -> None:
    unet, voxels = network(dims), random_voxels(dims)
    first, second = sparse.own_tensor(voxels), sparse.spconv_tensor(voxels)
    for convolution in (unet.stem, unet.down[0], unet.up[0]):
        first, second = convolution(first), convolution(second)
        order = torch.argsort(site_numbers(second.indices, voxels.grid))  # spconv numbers halved sites in its own way
        assert torch.equal(indices(first), second.indices[order])
        torch.testing.assert_close(first.features, second.features[order])


@DIMS
@pytest.mark.usefixtures("engine")
def test_the_network_and_its_gradients_agree_with_dense_torch(dims: int) -> None:
    unet, voxels = network(dims), random_voxels(dims)
    pull = torch.randn(len(voxels.coords), 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gradients = []
    outputs = unet(voxels), dense_unet(unet, voxels)
    torch.testing.assert_close(*outputs)
    assert outputs[0].std() > 0.1
    for output in outputs:
        gradients.append(torch.autograd.grad((output * pull).sum(), list(unet.parameters())))
    for (name, _), first, second in zip(unet.named_parameters(), *gradients, strict=True):
        assert first.abs().max() > 0, f"no gradient reaches {name}"
        torch.testing.assert_close(first, second, msg=lambda text, name=name: f"{name}: {text}")


@DIMS
def test_gradients_reach_the_input(dims: int) -> None:
    unet, voxels = network(dims, blocks=1), random_voxels(dims, 2, 12)
    feats = voxels.feats.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda f: unet(voxels.with_feats(f)), feats)


@DIMS
def test_events_do_not_see_each_other_or_their_order(dims: int) -> None:
    unet, voxels = network(dims).eval(), random_voxels(dims, n_events=4)
    together = unet(voxels)
    order = [2, 0, 3, 1]
    rows = [torch.arange(voxels.offsets[b], voxels.offsets[b + 1]) for b in order]
    event = torch.repeat_interleave(torch.arange(4), torch.tensor([len(row) for row in rows]))
    row = torch.cat(rows)
    shuffled = Voxels.make(voxels.coords[row], voxels.feats[row], event, 4, voxels.grid)
    torch.testing.assert_close(unet(shuffled), together[row], rtol=0, atol=1e-12)
    for own in rows:
        alone = Voxels.make(voxels.coords[own], voxels.feats[own], torch.zeros_like(own), 1, voxels.grid)
        torch.testing.assert_close(unet(alone), together[own], rtol=0, atol=1e-12)


@DIMS
def test_a_shift_by_a_whole_cell_of_the_deepest_level_changes_nothing(dims: int) -> None:
    unet = network(dims).eval()
    voxels = random_voxels(dims, grid=(8,) * dims)
    moved = Voxels(voxels.coords + 4, voxels.feats, voxels.offsets, (16,) * dims)
    here = Voxels(voxels.coords, voxels.feats, voxels.offsets, (16,) * dims)
    torch.testing.assert_close(unet(moved), unet(here), rtol=0, atol=1e-12)


@DIMS
@pytest.mark.usefixtures("engine")
def test_no_voxels_one_voxel_and_voxels_in_the_last_row(dims: int) -> None:
    """The last row of an odd grid has no cell at the next level: a batch of nothing else must work too."""
    unet = network(dims)
    nothing = Voxels.make(
        torch.zeros(0, dims).long(), torch.zeros(0, 2).double(), torch.zeros(0).long(), 2, GRIDS[dims]
    )
    assert unet(nothing).shape == (0, 4)
    for coordinate in ([0] * dims, [size - 1 for size in GRIDS[dims]]):
        one = Voxels.make(torch.tensor([coordinate]), torch.ones(1, 2).double(), torch.tensor([1]), 3, GRIDS[dims])
        out = unet(one)
        torch.testing.assert_close(out, dense_unet(unet, one))
        out.sum().backward()


def test_grids_of_more_than_2_to_the_32_sites_are_like_any_other() -> None:
    """300 events on 2^24 sites each, then the same voxels on a small grid."""
    unet, small = network(3), random_voxels(3, 3, grid=(8, 8, 8))
    event = torch.tensor([0, 150, 299])[small.event]
    large = Voxels.make(small.coords, small.feats, event, 300, (256, 256, 256))
    assert torch.equal(unet(large), unet(small))


def test_weights_are_laid_out_as_those_of_spconv() -> None:
    """The shipped checkpoints, made with spconv's layers, depend on it."""
    shapes = {name: tuple(weight.shape) for name, weight in network(3).state_dict().items() if weight.ndim > 1}
    assert shapes["stem.weight"] == (4, 3, 3, 3, 2)
    assert shapes["down.0.weight"] == (6, 2, 2, 2, 4)
    assert shapes["up.0.weight"] == (4, 2, 2, 2, 6)
    assert shapes["encode.1.0.conv.weight"] == (6, 3, 3, 3, 6)


def test_the_same_seed_gives_the_same_weights_and_output() -> None:
    first, second = (network(3)(random_voxels(3)) for _ in range(2))
    assert torch.equal(first, second)
