"""Image matching: the smallest input, and what a user can get wrong; exceptions name the argument and the value."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparsereco import ops
from sparsereco.ops import MeasuredImages


def given(**changes: Any) -> dict[str, Any]:
    """Two images of two deposits each and two measured images; `measured` may be changed in part."""
    measured = {
        "coords": torch.tensor([[0, 1, 2], [3, 3, 3], [6, 6, 6]], dtype=torch.int32),
        "signal": torch.tensor([4.0, 5.0, 6.0]),
        "offsets": torch.tensor([0, 2, 3]),
        "variance": None,
    }
    measured |= {name: changes.pop(name) for name in ("coords", "signal", "variance") if name in changes}
    if "measured_offsets" in changes:
        measured["offsets"] = changes.pop("measured_offsets")
    plain = {
        "position": torch.full((4, 3), 3.3),
        "charge": torch.ones(4),
        "offsets": torch.tensor([0, 2, 4]),
        "background": torch.full((2,), 0.1),
        "index": torch.tensor([1, 0]),
        "softness": 0.3,
    }
    return plain | {"measured": MeasuredImages(**measured)} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position": torch.ones(3, 3)}, r"charge must have shape \(N,\) .*, got \[4\]"),
        ({"offsets": torch.tensor([0, 3, 2])}, "offsets must rise from 0 to the 4 rows .* got 3 and then 2 at image 1"),
        ({"charge": torch.tensor([1, 1, 1, -2.0])}, r"charge\[3\] must be finite and not negative, got -2"),
        ({"charge": torch.tensor([1, torch.inf, 1, 1])}, r"charge\[1\] must be finite .* got inf"),
        ({"position": torch.full((4, 3), torch.nan)}, r"position\[0\] must be finite, got \(nan, nan, nan\)"),
        ({"background": torch.ones(3)}, r"background must have shape \(I,\) .* got \[3\]"),
        ({"background": torch.tensor([0.1, -1.0])}, r"background\[1\] must be finite and not negative, .* got -1"),
        ({"background": torch.tensor([0.0, 1.0])}, r"background\[0\] .* above 0 for the loss 'poisson', got 0"),
        ({"background": torch.tensor([0.1, torch.nan])}, r"background\[1\] .* got nan"),
        ({"index": torch.tensor([0, 2])}, r"index\[1\] must be one of the 2 measured images, got 2"),
        ({"index": torch.tensor([-1, 0])}, r"index\[0\] .* got -1"),
        ({"index": torch.tensor([0])}, r"index must have shape \(I,\) .* got \[1\]"),
        ({"index": None, "measured_offsets": torch.tensor([0, 3])}, "without index .* got 1 for 2"),
        ({"coords": torch.ones(3, 2).int()}, r"measured.coords must have shape \(M, 3\), got \[3, 2\]"),
        ({"coords": torch.full((3, 3), 7).int()}, r"measured.coords\[0\] must be inside .* got \(7, 7, 7\)"),
        ({"coords": torch.full((3, 3), -1).int()}, r"measured.coords\[0\] must be inside .* got \(-1, -1, -1\)"),
        ({"coords": torch.ones(3, 3).int()}, r"measured.coords\[1\] names a voxel for the second time, \(1, 1, 1\)"),
        ({"signal": torch.ones(2)}, r"measured.signal must have shape \(M,\) .* got \[2\]"),
        ({"signal": torch.tensor([1.0, -1.0, 1.0])}, r"measured.signal\[1\] must be .* not negative, got -1"),
        ({"signal": torch.tensor([1.0, 1.0, torch.nan])}, r"measured.signal\[2\] must be finite .* got nan"),
        (
            {"measured_offsets": torch.tensor([0, 4, 3])},
            "measured.offsets must rise .* 0 to the 3 .* got 4 and then 3",
        ),
        ({"measured_offsets": torch.tensor([0, 1, 2])}, "measured.offsets must rise .* got 1 and then 2 at image 1"),
        ({"measured_offsets": torch.empty(0).long(), "index": None}, "without index"),
        ({"measured_offsets": torch.empty(0).long()}, r"measured.offsets must have shape \(K \+ 1,\), got \[0\]"),
        ({"variance": torch.ones(3)}, "variance is only for the loss 'gaussian', got one with 'poisson'"),
        ({"loss": "gaussian"}, "variance is needed by the loss 'gaussian', got none"),
        ({"loss": "gaussian", "variance": torch.tensor([1.0, 0.0, 1.0])}, r"measured.variance\[1\] .* positive, got 0"),
        ({"loss": "gaussian", "variance": torch.ones(3), "empty_variance": -1.0}, "empty_variance must be .* got -1"),
        ({"loss": "cauchy"}, "loss must be 'poisson', 'gaussian' or 'squared', got 'cauchy'"),
        ({"loss": "squared", "threshold": 1.0}, "threshold needs a likelihood, which the loss 'squared' is not, got 1"),
        ({"threshold": 0.0}, r"threshold must lie in \(0, 1000\], got 0"),
        ({"threshold": float("nan")}, "threshold must lie .* got nan"),
        ({"crosstalk": 0.17}, r"crosstalk must lie in \[0, 1/6\], got 0.17"),
        ({"crosstalk": -0.1}, "crosstalk must lie .* got -0.1"),
        ({"softness": 0.6}, r"softness must lie in \(0, 0.5\], got 0.6"),
        ({"shape": (7, 7)}, r"shape must be three numbers of voxels, got \(7, 7\)"),
        ({"shape": (7, -7, 7)}, r"shape must be three positive numbers of voxels, got \[7, -7, 7\]"),
        ({"shape": (20, 20, 20)}, r"at most 2744 voxels .* got \[20, 20, 20\]"),
    ],
)
def test_refuses_values(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.image_match(**given(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position": torch.ones(4, 3).half()}, "position must be float32 or float64, got Half"),
        ({"charge": torch.ones(4).double()}, "charge must be Float as position is, got Double"),
        ({"background": torch.ones(2).double()}, "background must be Float as position is, got Double"),
        ({"signal": torch.ones(3).double()}, "measured.signal must be Float as position is, got Double"),
        ({"coords": torch.ones(3, 3).long()}, "measured.coords must be Int, got Long"),
        ({"index": torch.tensor([0, 1]).int()}, "index must be Long, got Int"),
        ({"offsets": torch.tensor([0.0, 2.0, 4.0])}, "offsets must be Long, got Float"),
    ],
)
def test_refuses_types(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        ops.image_match(**given(**changes))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_refuses_other_devices() -> None:
    with pytest.raises(ValueError, match="charge must be on cuda:0 as position is, got cpu"):
        ops.image_match(**given(position=torch.ones(4, 3, device="cuda")))


def test_the_lowest_fault_is_named_whatever_the_threads() -> None:
    n = 400
    charge = torch.ones(n)
    charge[[90, 250, 399]] = torch.tensor([-1.0, -2.0, -3.0])
    many = given(
        position=torch.ones(n, 3), charge=charge, offsets=torch.arange(n + 1), background=torch.ones(n), index=None
    )
    many["index"] = torch.zeros(n).long()
    threads = torch.get_num_threads()
    try:
        for number in (1, 4):
            torch.set_num_threads(number)
            with pytest.raises(ValueError, match=r"charge\[90\] must be finite and not negative, got -1"):
                ops.image_match(**many)
    finally:
        torch.set_num_threads(threads)


class TestSmallest:
    def test_no_images(self) -> None:
        nothing = torch.empty(0)
        measured = MeasuredImages(torch.empty(0, 3).int(), nothing, torch.tensor([0]))
        position = torch.empty(0, 3, requires_grad=True)
        loss, dropped = ops.image_match(position, nothing, torch.tensor([0]), nothing, measured, softness=0.3)
        loss.sum().backward()
        assert (loss.shape, dropped.shape, position.grad.shape) == ((0,), (0,), (0, 3))

    def test_deposits_without_an_image(self) -> None:
        with pytest.raises(ValueError, match="offsets names no image for 4 deposits"):
            ops.image_match(**given(offsets=torch.tensor([0]), background=torch.empty(0), index=torch.empty(0).long()))

    def test_an_image_without_deposits(self) -> None:
        loss, dropped = ops.image_match(**given(offsets=torch.tensor([0, 0, 4])))
        assert loss[0].item() == pytest.approx(2 * (343 * 0.1 - 6 + 6 * torch.log(torch.tensor(60.0)).item()), rel=1e-5)
        assert dropped.tolist() == [0, 0]

    def test_an_empty_measured_image(self) -> None:
        nothing = given(coords=torch.empty(0, 3).int(), signal=torch.empty(0), measured_offsets=torch.tensor([0, 0, 0]))
        loss, _ = ops.image_match(**nothing)
        assert loss.tolist() == pytest.approx([2 * (34.3 + 2)] * 2, rel=1e-5)

    def test_one_voxel(self) -> None:
        measured = MeasuredImages(torch.zeros(1, 3).int(), torch.tensor([3.0]), torch.tensor([0, 1]))
        loss, _ = ops.image_match(
            torch.full((1, 3), 0.5),
            torch.ones(1),
            torch.tensor([0, 1]),
            torch.ones(1),
            measured,
            softness=0.3,
            shape=(1, 1, 1),
            loss="squared",
        )
        assert loss.item() == 1.0

    def test_non_contiguous_input(self) -> None:
        plain = given()
        expected, _ = ops.image_match(**plain)
        measured = plain["measured"]
        strided = plain | {
            "position": plain["position"].T.contiguous().T,
            "charge": torch.stack([plain["charge"]] * 2, 1)[:, 1],
            "offsets": plain["offsets"].repeat_interleave(3)[::3],
            "background": plain["background"][:1].expand(2),
            "measured": MeasuredImages(
                measured.coords.T.contiguous().T, measured.signal.repeat_interleave(2)[::2], measured.offsets
            ),
        }
        assert torch.equal(ops.image_match(**strided)[0], expected)

    def test_backward_of_an_expanded_and_of_a_single_gradient(self) -> None:
        plain = given()
        plain["position"] = (plain["position"] + torch.rand(4, 3) / 4).requires_grad_()
        loss, _ = ops.image_match(**plain)
        (of_sum,) = torch.autograd.grad(loss.sum(), plain["position"], retain_graph=True)
        (of_second,) = torch.autograd.grad(3 * loss[1], plain["position"])
        assert not of_second[:2].any()
        torch.testing.assert_close(of_second[2:], 3 * of_sum[2:])
