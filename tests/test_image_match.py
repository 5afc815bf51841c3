"""Image matching: values and gradients against plain torch, and the properties that a fit leans on."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsereco import ops, reference
from sparsereco.ops import MeasuredImages

SHAPE = (5, 3, 4)
DTYPES = [torch.float32, torch.float64]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
COUNTS = [70, 0, 1, 200, 33]  # deposits of five images, of which
INDEX = [0, 1, 0, 2, 3]  # the first and the third are compared with the same measured one; the last one is empty
CASES = [
    pytest.param({"loss": "poisson"}, id="poisson"),
    pytest.param({"loss": "poisson", "crosstalk": 0.05}, id="poisson, crosstalk"),
    pytest.param({"loss": "poisson", "threshold": 0.5, "crosstalk": 0.1}, id="poisson, at least one count"),
    pytest.param({"loss": "poisson", "threshold": 3.0, "crosstalk": 0.03}, id="poisson, threshold"),
    pytest.param({"loss": "poisson", "threshold": 12.0}, id="poisson, high threshold"),
    pytest.param({"loss": "gaussian", "empty_variance": 0.7}, id="gaussian"),
    pytest.param({"loss": "gaussian", "empty_variance": 0.7, "crosstalk": 1 / 6}, id="gaussian, crosstalk"),
    pytest.param({"loss": "gaussian", "empty_variance": 0.7, "threshold": 2.5}, id="gaussian, threshold"),
    pytest.param({"loss": "squared", "crosstalk": 0.05}, id="squared"),
]


def problem(options: dict[str, Any], dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Any]:
    """Five images, four measured ones and the options of a loss, as keywords of `image_match`."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(COUNTS)
    position = torch.rand((n, 3), generator=generator, dtype=dtype) * torch.tensor([7, 5, 6]) - 1
    position[::5] = position[::5].round()
    voxels = torch.tensor(list(itertools.product(*map(range, SHAPE))), dtype=torch.int32)
    lit = [torch.randperm(len(voxels), generator=generator)[:n] for n in (20, 60, 9, 0)]
    rows = torch.cat(lit)
    variance = torch.rand(len(rows), generator=generator, dtype=dtype) + 0.5
    return {
        "position": position.to(dtype),
        "charge": torch.rand(n, generator=generator, dtype=dtype) * 5,
        "offsets": torch.tensor([0, *COUNTS]).cumsum(0),
        "background": torch.rand(len(COUNTS), generator=generator, dtype=dtype) + 0.05,
        "measured": MeasuredImages(
            voxels[rows],
            torch.randint(0, 25, (len(rows),), generator=generator).to(dtype),
            torch.tensor([0, *map(len, lit)]).cumsum(0),
            variance if options["loss"] == "gaussian" else None,
        ),
        "index": torch.tensor(INDEX),
        "softness": 0.4,
        "shape": SHAPE,
        **options,
    }


def to(device: str, given: dict[str, Any]) -> dict[str, Any]:
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in given.items()}
    tensors = vars(given["measured"]).items()
    moved["measured"] = MeasuredImages(
        **{name: value if value is None else value.to(device) for name, value in tensors}
    )
    return moved


def losses_and_gradients(match: Any, given: dict[str, Any]) -> list[Tensor]:
    """Losses, dropped deposits, and derivatives of a weighted sum of the losses."""
    leaves = [given[name].detach().clone().requires_grad_() for name in ("position", "charge", "background")]
    changed = given | dict(zip(("position", "charge", "background"), leaves, strict=True))
    loss, dropped = match(**changed)
    weight = torch.arange(1, len(loss) + 1, device=loss.device, dtype=loss.dtype)
    gradients = torch.autograd.grad((loss * weight).sum(), leaves)
    return [x.detach().cpu() for x in (loss, dropped, *gradients)]


class TestAgreesWithReference:
    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("options", CASES)
    def test_losses_and_gradients(self, options: dict[str, Any], dtype: torch.dtype, device: str) -> None:
        given = problem(options, dtype)
        got = losses_and_gradients(ops.image_match, to(device, given))
        expected = losses_and_gradients(reference.image_match, given)
        assert got[0].dtype == dtype
        tolerance = {"rtol": 1e-3, "atol": 2e-3} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-9}
        for ours, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(ours, theirs, **tolerance)
        assert got[1].sum() > 50

    @pytest.mark.parametrize("capability", ["avx2", "default"])
    def test_every_instruction_set(self, capability: str) -> None:
        """In a process of its own: torch chooses once."""
        code = (
            "import torch; import test_image_match as t\n"
            "for dtype in t.DTYPES:\n"
            "    t.TestAgreesWithReference().test_losses_and_gradients({'loss': 'poisson'}, dtype, 'cpu')\n"
            "print(torch.backends.cpu.get_cpu_capability())"
        )
        run = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parent,
            env=os.environ | {"ATEN_CPU_CAPABILITY": capability},
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.split()[-1] == {"avx2": "AVX2", "default": "DEFAULT"}[capability]

    @pytest.mark.parametrize("options", CASES)
    def test_gradcheck(self, options: dict[str, Any]) -> None:
        given = problem(options)
        given["position"] += 0.0137  # off the ends of the edges, where the second derivative jumps
        leaves = [given.pop(name).requires_grad_() for name in ("position", "charge", "background")]
        rest = given.pop("offsets")
        assert torch.autograd.gradcheck(
            lambda r, q, b: ops.image_match(r, q, rest, b, **given)[0], leaves, rtol=1e-4, atol=1e-5
        )

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("options", [CASES[0], CASES[6]])
    def test_opcheck(self, options: dict[str, Any], dtype: torch.dtype) -> None:
        given = problem(options, dtype)
        measured = given["measured"]
        arguments = (
            given["position"].requires_grad_(),
            given["charge"].requires_grad_(),
            given["offsets"],
            given["background"].requires_grad_(),
            given["index"],
            *(measured.coords, measured.signal, measured.variance, measured.offsets),
            *(list(SHAPE), options["loss"], 0.3, 0.02, options.get("threshold"), 1.0, True),
        )
        torch.library.opcheck(torch.ops.sparsereco.image_match.default, arguments)


class TestExtremes:
    """The likelihood of staying under the threshold, where a plain formula overflows or loses its digits; deviances
    of predictions that are far off, or hardly."""

    @staticmethod
    def one_voxel(background: float, **options: Any) -> tuple[float, float]:
        b = torch.tensor([background], dtype=torch.float64, requires_grad=True)
        nothing = torch.empty(0, dtype=torch.float64)
        variance = nothing if options["loss"] == "gaussian" else None
        measured = MeasuredImages(torch.empty(0, 3).int(), nothing, torch.tensor([0, 0]), variance)
        loss, _ = ops.image_match(
            nothing.view(0, 3), nothing, torch.tensor([0, 0]), b, measured, softness=0.3, shape=(1, 1, 1), **options
        )
        (gradient,) = torch.autograd.grad(loss, b)
        return loss.item(), gradient.item()

    @pytest.mark.parametrize("mean", [1e-12, 1e-3, 0.7, 2.999, 3.0, 40.0, 1e4, 1e9])
    @pytest.mark.parametrize("threshold", [0.3, 1.0, 3.0, 17.0, 900.0])
    def test_poisson(self, mean: float, threshold: float) -> None:
        b = torch.tensor(mean, dtype=torch.float64, requires_grad=True)
        expected = -2 * reference._log_poisson_below(b, threshold)
        (slope,) = torch.autograd.grad(expected, b)
        got, gradient = self.one_voxel(mean, loss="poisson", threshold=threshold)
        assert got == pytest.approx(expected.item(), rel=1e-9, abs=1e-11)
        assert gradient == pytest.approx(slope.item(), rel=1e-6, abs=1e-10)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_deviance(self, dtype: torch.dtype) -> None:
        values = torch.cat([torch.logspace(-9, 9, 37), 1 + torch.logspace(-7, -1, 13)]).to(dtype)
        signal, background = (grid.flatten() for grid in torch.meshgrid(values, values, indexing="ij"))
        images, shape = len(signal), (3, 4, 3)
        voxels = torch.tensor(list(itertools.product(*map(range, shape))), dtype=torch.int32)
        n = len(voxels)  # all alike, so that the sum has the digits of each, but for those that adding in float64 loses
        offsets = torch.arange(images + 1) * n
        measured = MeasuredImages(voxels.repeat(images, 1), signal.repeat_interleave(n), offsets)
        nothing = torch.empty(0, dtype=dtype)
        loss, _ = ops.image_match(
            nothing.view(0, 3), nothing, torch.zeros(images + 1).long(), background, measured, softness=0.3, shape=shape
        )
        b, s = background.double(), signal.double()
        log = (s / b).log()
        lost = (4 * torch.finfo(dtype).eps + n * torch.finfo(torch.float64).eps) * n * (b + s + s * log.abs())
        assert ((loss.double() - 2 * n * (b - s + s * log)).abs() <= lost).all()

    @pytest.mark.parametrize("mean", [0.0, 2.0, 3.0, 8.9, 9.1, 60.0, 1e4])
    def test_gaussian(self, mean: float) -> None:
        b = torch.tensor(mean, dtype=torch.float64, requires_grad=True)
        expected = -2 * reference._log_normal_below(b, 3.0, torch.tensor(1.0, dtype=torch.float64))
        (slope,) = torch.autograd.grad(expected, b)
        got, gradient = self.one_voxel(mean, loss="gaussian", threshold=3.0, empty_variance=1.0)
        assert got == pytest.approx(expected.item(), rel=1e-10)
        assert gradient == pytest.approx(slope.item(), rel=1e-7)


class TestProperties:
    @pytest.mark.parametrize("options", CASES)
    def test_permuted_deposits_give_the_same(self, options: dict[str, Any]) -> None:
        given = problem(options)
        bounds = given["offsets"].tolist()
        generator = torch.Generator().manual_seed(4)
        order = torch.cat([a + torch.randperm(b - a, generator=generator) for a, b in itertools.pairwise(bounds)])
        plain = losses_and_gradients(ops.image_match, given)
        mixed = losses_and_gradients(
            ops.image_match, given | {"position": given["position"][order], "charge": given["charge"][order]}
        )
        expected = [plain[0], plain[1], plain[2][order], plain[3][order], plain[4]]
        for a, b in zip(mixed, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("options", CASES)
    def test_same_bits_for_any_number_of_threads_and_any_company(self, options: dict[str, Any]) -> None:
        given = problem(options, torch.float32)
        copies = 20
        many = given | {
            "position": given["position"].repeat(copies, 1),
            "charge": given["charge"].repeat(copies),
            "offsets": torch.tensor([0, *COUNTS * copies]).cumsum(0),
            "background": given["background"].repeat(copies),
            "index": given["index"].repeat(copies),
        }
        alone = ops.image_match(**given)[0]
        threads = torch.get_num_threads()
        results = []
        try:
            for n in (1, 2, 5):
                torch.set_num_threads(n)
                results.append(losses_and_gradients(ops.image_match, many))
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for result in results for a, b in zip(result, results[0], strict=True))
        assert torch.equal(results[0][0].view(copies, -1), alone.expand(copies, -1))

    def test_derivatives_only_where_they_are_asked_for(self) -> None:
        given = problem({"loss": "poisson", "threshold": 2.0})
        measured = given["measured"]
        arguments = [given[name] for name in ("position", "charge", "offsets", "background", "index")]
        arguments += [measured.coords, measured.signal, measured.variance, measured.offsets, list(SHAPE), "poisson"]
        arguments += [0.4, 0.1, 2.0, 1.0]
        loss, dropped, *derivatives = torch.ops.sparsereco.image_match(*arguments, True)
        alone, lost, *nothing = torch.ops.sparsereco.image_match(*arguments, False)
        assert torch.equal(loss, alone)
        assert torch.equal(dropped, lost)
        assert [x.shape for x in derivatives] == [(len(given["charge"]), 3), (len(given["charge"]),), (5,)]
        assert [x.shape for x in nothing] == [(0, 3), (0,), (0,)]

    def test_gradient_of_a_sum(self) -> None:
        given = problem({"loss": "poisson"})
        position = given["position"].requires_grad_()
        loss, _ = ops.image_match(**given)
        once, again = (torch.autograd.grad(loss.sum(), position, retain_graph=True)[0] for _ in range(2))
        (doubled,) = torch.autograd.grad((2 * loss).sum(), position, retain_graph=True)
        assert torch.equal(again, once)
        assert torch.equal(doubled, 2 * once)
        loss.sum().backward(retain_graph=True)
        assert torch.equal(position.grad, once)
        once.zero_()  # what a caller does to a gradient must not change the next one in silence
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.sum().backward()

    def test_compiles(self) -> None:
        given = problem({"loss": "poisson"})
        position = given.pop("position").requires_grad_()

        def loss(position: Tensor) -> Tensor:
            return ops.image_match(position, **given)[0].square().sum()

        compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
        assert torch.equal(*(torch.autograd.grad(f(position), position)[0] for f in (compiled, loss)))

    @pytest.mark.parametrize("power", [1, 2])
    def test_refuses_second_derivatives(self, power: int) -> None:
        given = problem({"loss": "poisson"})
        position = given["position"].requires_grad_()
        loss, _ = ops.image_match(**given)
        (slope,) = torch.autograd.grad((loss**power).sum(), position, create_graph=True)
        with pytest.raises(RuntimeError, match="derivatives of first order only"):
            slope.sum().backward()

    def test_a_perfect_prediction_has_no_loss_and_no_gradient(self) -> None:
        given = problem({"loss": "squared"})
        start, stop = given["offsets"][3:5].tolist()
        deposits = {"position": given["position"][start:stop], "charge": given["charge"][start:stop]}
        deposits["offsets"] = torch.tensor([0, stop - start])
        image, _ = reference.soft_voxelize(**deposits, softness=0.4, shape=SHAPE)
        lit = image[0].nonzero()
        measured = MeasuredImages(lit.int(), image[0][tuple(lit.T)], torch.tensor([0, len(lit)]))
        rest = {"background": torch.zeros(1).double(), "measured": measured, "index": None}
        loss, _, *gradients = losses_and_gradients(ops.image_match, given | deposits | rest)
        assert loss.item() == pytest.approx(0.0, abs=1e-20)
        assert all(gradient.abs().max() < 1e-10 for gradient in gradients)

    @pytest.mark.parametrize("options", [{"loss": "poisson"}, {"loss": "gaussian"}])
    def test_a_signal_of_minus_zero_is_none(self, options: dict[str, Any]) -> None:
        given = problem(options)
        dark = given["measured"].signal == 0
        assert dark.any()
        expected = losses_and_gradients(ops.image_match, given)
        given["measured"].signal[dark] = -0.0
        for got, right in zip(losses_and_gradients(ops.image_match, given), expected, strict=True):
            assert got.equal(right)

    def test_smooth_where_a_deposit_crosses_borders(self) -> None:
        given = problem({"loss": "poisson", "crosstalk": 0.03, "threshold": 2.0})
        places = torch.linspace(-0.7, 5.7, 6401, dtype=torch.float64)
        n = len(places)
        path = {
            "position": torch.stack([places, torch.full_like(places, 1.1), torch.full_like(places, 2.4)], 1),
            "charge": torch.full((n,), 6.0, dtype=torch.float64),
            "offsets": torch.arange(n + 1),
            "background": torch.full((n,), 0.3, dtype=torch.float64),
            "index": torch.ones(n, dtype=torch.int64),
        }
        path["position"].requires_grad_()
        loss, _ = ops.image_match(**given | path)
        (gradient,) = torch.autograd.grad(loss.sum(), path["position"])
        central = (loss[2:] - loss[:-2]).detach() / (places[2:] - places[:-2])
        slope = gradient[:, 0]
        scale = slope.abs().max()
        assert scale > 1
        assert (slope[1:-1] - central).abs().max() < 0.005 * scale
        assert slope.diff().abs().max() < 0.05 * scale  # no jump anywhere, the outer faces of the grid included

    def test_gradient_descent_finds_the_charge(self) -> None:
        """What the operator is for: a fit of some hypotheses to one measured image."""
        place = torch.tensor([[1.2, 1.3, 2.2]]).double()
        truth, _ = ops.soft_voxelize(place, torch.tensor([40.0]).double(), torch.tensor([0, 1]), softness=0.5)
        lit = truth[0].nonzero()
        measured = MeasuredImages(lit.int(), truth[0][tuple(lit.T)], torch.tensor([0, len(lit)]))
        position = (place + torch.tensor([[0.1, -0.1, 0.1], [-0.1, 0.1, 0.1], [0.1, 0.1, -0.1]])).requires_grad_()
        charge = torch.tensor([20.0, 60.0, 35.0]).double().requires_grad_()
        optimiser = torch.optim.LBFGS([position, charge], max_iter=100, line_search_fn="strong_wolfe")

        def step() -> Tensor:
            optimiser.zero_grad()
            loss, _ = ops.image_match(
                position,
                charge.abs(),
                torch.arange(4),
                torch.full((3,), 1e-3).double(),
                measured,
                torch.zeros(3).long(),
                softness=0.5,
            )
            loss.sum().backward()
            return loss.sum()

        optimiser.step(step)
        torch.testing.assert_close(charge.detach(), torch.full_like(charge, 40.0), rtol=1e-2, atol=0)
