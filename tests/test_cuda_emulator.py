"""The CUDA kernels on images, compiled as C++ (csrc/emulator) and run under sanitizers: equal to the reference."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_image_match import CASES, SHAPE, losses_and_gradients, problem
from torch import Tensor

from sparsereco import reference

EMULATOR = Path(__file__).parents[1] / "csrc" / "emulator"
SANITIZERS = ["address,undefined", "thread"]
LOSSES = {"poisson": 0, "gaussian": 2, "squared": 2}
NO_FAULT = 2**63 - 1

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module", params=SANITIZERS)
def emulator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the emulator under a sanitizer."""
    program = tmp_path_factory.mktemp("emulator") / "main"
    flags = ["-std=c++20", "-O1", "-g", "-Wno-unknown-pragmas", f"-fsanitize={request.param}", "-fno-sanitize-recover"]
    build = ["g++", *flags, f"-I{EMULATOR}", "-x", "c++", EMULATOR / "main.cpp", "-o", program, "-pthread"]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:5000]
    # ThreadSanitizer of GCC 12 cannot place its memory where addresses are randomised with more than 28 bits.
    fixed = ["setarch", os.uname().machine, "-R"] if shutil.which("setarch") else []
    return [*fixed, str(program)]


def run(command: list[str], folder: Path, header: list[Any], arrays: list[Tensor], sizes: list[tuple]) -> list[Tensor]:
    """Writes a problem, runs the emulator, and reads as many arrays as there are sizes."""
    packed = np.array(header[:12], np.int64).tobytes() + np.array(header[12:], np.float64).tobytes()
    (folder / "problem").write_bytes(packed + b"".join(array.contiguous().numpy().tobytes() for array in arrays))
    done = subprocess.run(
        [*command, folder / "problem", folder / "result"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[:5000]
    assert done.stderr == ""
    rest = (folder / "result").read_bytes()
    results = []
    for shape, dtype in sizes:
        bytes_ = int(np.prod(shape)) * np.dtype(dtype).itemsize
        results.append(torch.from_numpy(np.frombuffer(rest[:bytes_], dtype).copy()).reshape(shape))
        rest = rest[bytes_:]
    assert not rest
    return results


def match(command: list[str], folder: Path, given: dict[str, Any], deterministic: bool) -> list[Tensor]:
    """Fault, dropped, loss and derivatives of it with respect to position, charge and background."""
    measured, threshold = given["measured"], given.get("threshold")
    scalar = given["position"].dtype
    images, deposits = len(given["background"]), len(given["charge"])
    squared = given["loss"] == "squared"
    header = [
        *(0, scalar == torch.float64, deterministic, images, deposits, len(measured.offsets) - 1),
        *(len(measured.signal), measured.variance is not None, LOSSES[given["loss"]] + (threshold is not None)),
        *given["shape"],
        *(given["softness"], given.get("crosstalk", 0.0), threshold or 0.0),
        1.0 if squared else given.get("empty_variance", 1.0),
    ]
    arrays = [given[name] for name in ("position", "charge", "offsets", "background", "index")]
    arrays += [measured.coords, measured.signal]
    arrays += [measured.variance] if measured.variance is not None else []
    arrays += [measured.offsets]
    real = "f8" if scalar == torch.float64 else "f4"
    sizes = [((1,), "i8"), ((images,), "i8"), ((images,), real)]
    sizes += [((deposits, 3), real), ((deposits,), real), ((images,), real)]
    return run(command, folder, header, arrays, sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("deterministic", [False, True], ids=["atomic", "deterministic"])
@pytest.mark.parametrize("options", [CASES[0], CASES[2], CASES[6]])
def test_image_match_agrees_with_reference(
    emulator: list[str], tmp_path: Path, options: dict[str, Any], deterministic: bool, dtype: torch.dtype
) -> None:
    given = problem(options, dtype)
    fault, dropped, loss, *gradients = match(emulator, tmp_path, given, deterministic)
    expected = losses_and_gradients(reference.image_match, given)
    assert fault == NO_FAULT
    assert torch.equal(dropped, expected[1])
    weight = torch.arange(1, len(loss) + 1, dtype=dtype)  # as losses_and_gradients weighs the images
    of_deposit = weight.repeat_interleave(given["offsets"].diff())
    got = [loss, gradients[0] * of_deposit[:, None], gradients[1] * of_deposit, gradients[2] * weight]
    tolerance = {"rtol": 1e-3, "atol": 2e-3} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-9}
    for ours, theirs in zip(got, [expected[0], *expected[2:]], strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


def test_deterministic_mode_gives_the_same_bits(emulator: list[str], tmp_path: Path) -> None:
    given = problem({"loss": "poisson"}, torch.float32)
    first, second = (match(emulator, tmp_path, given, deterministic=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("deterministic", [False, True], ids=["atomic", "deterministic"])
def test_soft_voxelize_agrees_with_reference(emulator: list[str], tmp_path: Path, deterministic: bool) -> None:
    given = problem({"loss": "squared"})
    position, charge, offsets = given["position"].requires_grad_(), given["charge"].requires_grad_(), given["offsets"]
    image, lost = reference.soft_voxelize(position, charge, offsets, softness=0.4, shape=SHAPE)
    weight = torch.randn(image.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad((image * weight).sum(), (position, charge))
    n, images = len(charge), len(image)
    header = [1, True, deterministic, images, n, 0, 0, 0, 0, *SHAPE, 0.4, 0.0, 0.0, 1.0]
    sizes = [((1,), "i8"), ((images,), "i8"), (image.shape, "f8"), ((n, 3), "f8"), ((n,), "f8")]
    fault, dropped, *got = run(emulator, tmp_path, header, [position.detach(), charge.detach(), offsets, weight], sizes)
    assert fault == NO_FAULT
    assert torch.equal(dropped, lost)
    for ours, theirs in zip(got, [image.detach(), *gradients], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_places_of_deposits_agree_with_reference(emulator: list[str], tmp_path: Path) -> None:
    """What the kernels of soft_voxelize_sparse do; torch sorts and adds up."""
    given = problem({"loss": "squared"})
    position, charge, offsets = given["position"].requires_grad_(), given["charge"].requires_grad_(), given["offsets"]
    options = {"softness": 0.4, "shape": SHAPE}
    image, lost = reference.soft_voxelize(position, charge, offsets, **options)
    weight = torch.randn(image.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad((image * weight).sum(), (position, charge))
    n, images = len(charge), len(image)
    header = [2, True, False, images, n, 0, 0, 0, 0, *SHAPE, 0.4, 0.0, 0.0, 1.0]
    sizes = [((1,), "i8"), ((images,), "i8"), ((n, 8), "i8"), ((n, 8), "f8"), ((n, 3), "f8"), ((n,), "f8")]
    deposits = [position.detach(), charge.detach(), offsets]
    _, _, voxel, *_ = run(emulator, tmp_path, header, [*deposits, torch.zeros(n, 8).double()], sizes)
    lit = voxel >= 0
    of_voxels = torch.where(lit, weight.flatten()[voxel.clamp(min=0)], 0.0)
    fault, dropped, again, light, *got = run(emulator, tmp_path, header, [*deposits, of_voxels], sizes)
    assert fault == NO_FAULT
    assert torch.equal(again, voxel)
    assert torch.equal(dropped, lost)
    summed = torch.zeros(image.numel()).double().index_add(0, voxel[lit], light[lit])
    torch.testing.assert_close(summed.view_as(image), image.detach())
    touched, _ = reference.soft_voxelize(position.detach(), torch.ones(n).double(), offsets, **options)
    assert torch.equal(voxel[lit].unique(), touched.flatten().nonzero()[:, 0])
    for ours, theirs in zip(got, gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("name", "row", "value", "kind"),
    [
        ("offsets", 2, 10**12, 0),
        ("offsets", 1, -5, 0),
        ("position", (7, 1), float("nan"), 1),
        ("position", (7, 1), 1e300, None),
        ("charge", 5, -1.0, 2),
        ("background", 1, 0.0, 3),
        ("index", 4, 4, 4),
        ("index", 4, -1, 4),
        ("measured.offsets", 1, 10**9, 5),
        ("measured.coords", (3, 2), 4, 6),
        ("measured.coords", (3, 2), -(2**31), 6),
        ("measured.signal", 2, float("inf"), 8),
    ],
)
def test_bad_values_are_reported_and_nothing_out_of_bounds_is_touched(
    emulator: list[str], tmp_path: Path, name: str, row: Any, value: float, kind: int | None
) -> None:
    given = problem({"loss": "poisson", "crosstalk": 0.1})
    owner, field = (vars(given["measured"]), name.split(".")[1]) if "." in name else (given, name)
    owner[field][row] = value
    fault, *_ = match(emulator, tmp_path, given, deterministic=False)
    assert (fault == NO_FAULT) if kind is None else (fault >> 48 == kind)
