"""Builds the one extension, ``sparsereco._C``, and packs ``configs/`` into wheels; all else is in pyproject.toml.

The CUDA kernels are built in where a CUDA build of torch meets a CUDA toolkit, or on demand with ``SPARSERECO_CUDA=1``
(or torch's own ``FORCE_CUDA=1``); ``SPARSERECO_CUDA=0`` leaves them out.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from setuptools import setup
from setuptools.command.build_py import build_py
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

PYTHON_ABI = "cp310"  # one shared object serves this Python and every later one


def with_cuda() -> bool:
    """Whether to build the CUDA kernels: the user's word, else what is there."""
    wish = os.environ.get("SPARSERECO_CUDA", os.environ.get("FORCE_CUDA"))
    if wish is not None:
        return wish == "1"
    return CUDA_HOME is not None and torch.version.cuda is not None


def extension() -> CppExtension | CUDAExtension:
    cuda = with_cuda()
    root = Path(__file__).parent
    patterns = ["csrc/*.cpp", "csrc/cpu/*.cpp", *(["csrc/cuda/*.cpp", "csrc/cuda/*.cu"] if cuda else [])]
    sources = sorted(str(path.relative_to(root)) for pattern in patterns for path in root.glob(pattern))
    return (CUDAExtension if cuda else CppExtension)(
        "sparsereco._C",
        sources,
        depends=sorted(str(path.relative_to(root)) for path in root.glob("csrc/**/*.h")),
        define_macros=[("WITH_CUDA", None)] if cuda else [],
        # at::parallel_for is a header: without -fopenmp it runs on one thread. Nobody traps floating-point exceptions
        # here, and GCC vectorises the loops of csrc/cpu/splat_loops.h only if it is told so. Python's own flags let
        # signed integers wrap around (-fwrapv), which costs index arithmetic in every loop.
        extra_compile_args={
            "cxx": ["-O3", "-g0", "-fopenmp", "-fno-trapping-math", "-fno-wrapv"],
            "nvcc": ["-O3"],
        },
        extra_link_args=["-fopenmp"],
        py_limited_api=True,
    )


class BuildPy(build_py):
    """Copies ``configs/`` into the package, where `sparsereco.commands.common.CONFIGS` finds it without a checkout."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "sparsereco" / "configs"
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build
            shutil.copytree(Path(__file__).parent / "configs", target, ignore=shutil.ignore_patterns("__pycache__"))


setup(
    ext_modules=[extension()],
    cmdclass={"build_ext": BuildExtension, "build_py": BuildPy},
    options={"bdist_wheel": {"py_limited_api": PYTHON_ABI}},
)
