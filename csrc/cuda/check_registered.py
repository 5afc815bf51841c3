"""Run by `make cuda` in a fresh process: a CUDA build has all operators, each with the kernels that it should have."""

from __future__ import annotations

import sys

import torch

CPU_ONLY = {"submanifold_map", "strided_map", "sparse_conv", "sparse_conv_weight"}  # spconv does it on CUDA


def main(library: str) -> str | None:
    """The complaint about a shared object, if there is one."""
    torch.ops.load_library(library)
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("sparsereco::")]
    if not names:
        return f"{library} registers no operator"
    for name in sorted(names):
        keys = {key for key in ("CPU", "CUDA") if torch._C._dispatch_has_kernel_for_dispatch_key(name, key)}
        expected = {"CPU"} if name.removeprefix("sparsereco::") in CPU_ONLY else {"CPU", "CUDA"}
        if keys != expected:
            return f"{name} has kernels for {sorted(keys)}, not for {sorted(expected)}"
        sys.stdout.write(f"{name}: {', '.join(sorted(keys))}\n")
    return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
