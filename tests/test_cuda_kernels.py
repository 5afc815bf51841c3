"""The CUDA kernels as nvcc alone compiles them: no register is spilled, and as many blocks fit as the sources state.

`make cuda-check` runs this file. Shared memory is checked by the static_asserts of csrc/cuda/splat.h in the same go.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parents[1] / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = ["80", "90", "100"]
REGISTERS = 65536  # of a multiprocessor, on all three

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")


@dataclass(frozen=True)
class Kernel:
    source: str
    name: str  # mangled
    architecture: str
    registers: int  # per thread
    stack: int  # bytes per thread
    spilled: int  # bytes per thread


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> list[Kernel]:
    folder = tmp_path_factory.mktemp("kernels")
    with ThreadPoolExecutor() as pool:
        return [kernel for found in pool.map(lambda source: compiled(source, folder), SOURCES) for kernel in found]


def compiled(source: Path, folder: Path) -> list[Kernel]:
    """The kernels of a source file, as the assembler describes them."""
    targets = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in ARCHITECTURES]
    flags = ["-std=c++20", "-O3", "-Werror", "all-warnings", "-Xptxas", "-v", *targets]
    command = ["nvcc", *flags, "-c", str(source), "-o", str(folder / source.with_suffix(".o").name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:5000]
    pattern = (
        r"Compiling entry function '(\w+)' for 'sm_(\w+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
    )
    return [
        Kernel(source.name, name, architecture, int(registers), int(stack), int(stores) + int(loads))
        for name, architecture, stack, stores, loads, registers in re.findall(pattern, done.stderr, re.DOTALL)
    ]


def stated(name: str, source: str) -> int | None:
    """A constant of csrc/cuda that a source file defines or, as those on images do, has from splat.h."""
    for file in (source, "splat.h"):
        found = re.search(rf"constexpr int {name} = (\d+);", (SOURCES[0].parent / file).read_text())
        if found:
            return int(found[1])
    return None


def test_every_kernel_is_compiled_for_every_architecture(kernels: list[Kernel]) -> None:
    for source in SOURCES:
        text = source.read_text()
        names = set(re.findall(r"\b(\w+_kernel)\(", text))
        assert names, source.name
        for architecture in ARCHITECTURES:
            there = [k.name for k in kernels if k.source == source.name and k.architecture == architecture]
            for name in names:
                assert sum(name in mangled for mangled in there) >= 2, (name, architecture)  # float and double


def test_nothing_is_spilled(kernels: list[Kernel]) -> None:
    for kernel in kernels:
        name = re.search(r"([a-z_]+_kernel)I(\w+?)EEv", kernel.name)
        found = f"{kernel.registers:3} registers, {kernel.stack:3} bytes of stack"
        sys.stdout.write(f"sm_{kernel.architecture:4} {found}  {name[1]}<{name[2]}>\n")
    assert [kernel for kernel in kernels if kernel.spilled > 0] == []


def test_registers_leave_room_for_the_blocks_that_are_stated(kernels: list[Kernel]) -> None:
    for kernel in kernels:
        threads, blocks = stated("kThreads", kernel.source), stated("kBlocks", kernel.source)
        assert threads is not None
        assert blocks is not None
        per_warp = -(-kernel.registers // 8) * 8 * 32  # what a warp is given
        assert blocks * threads // 32 * per_warp <= REGISTERS, kernel
