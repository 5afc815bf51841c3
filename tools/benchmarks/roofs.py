"""What the machine can do: the limits that the compiled operators are measured against."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from benchmarks.clock import seconds
from sparsereco.errors import InputError

SOURCE = Path(__file__).with_name("multiply_add.cpp")
ROUNDS = 500_000
"""Of multiply-adds in one measurement: some milliseconds, short enough to run undisturbed now and then."""


def roofs() -> tuple[float, float]:
    """Floating-point operations and bytes copied (read and written) per second, with the threads of torch."""
    return multiply_add_rate(torch.get_num_threads()), copy_rate()


def multiply_add_rate(threads: int) -> float:
    """Floating-point operations per second of all threads, by multiply-adds on registers."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(threads) as pool:
        library = compile_library(Path(folder) / "multiply_add.so")
        library.multiply_add.argtypes = [ctypes.c_int64, ctypes.POINTER(ctypes.c_float)]
        library.multiply_add.restype = ctypes.c_double

        def work(_: int = 0) -> float:
            return library.multiply_add(ROUNDS, ctypes.c_float(1))

        operations = threads * work()
        if threads == 1:
            return operations / min(seconds(work) for _ in range(200))
        return operations / min(seconds(lambda: list(pool.map(work, range(threads)))) for _ in range(200))


def compile_library(path: Path) -> ctypes.CDLL:
    """`multiply_add.cpp`, compiled for this very processor."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        raise InputError("the rate of multiply-adds is measured by a compiled loop: install a C++ compiler or set CXX")
    command = [compiler, "-O3", "-march=native", "-shared", "-fPIC", str(SOURCE), "-o", str(path)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        raise InputError(f"{' '.join(command)} failed: {run.stderr.strip().splitlines()[-1]}")
    return ctypes.CDLL(str(path))


def copy_rate() -> float:
    """Bytes read and written per second in a copy that is larger than a core's own caches."""
    source, target = torch.ones(2**22), torch.empty(2**22)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source)) for _ in range(200))
