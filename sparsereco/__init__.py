"""Sparse-tensor reconstruction for imaging particle detectors.

The names below are loaded when they are first used, so that ``import sparsereco`` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsereco.camera.chain import CameraChain
    from sparsereco.detector import Detector, Response
    from sparsereco.records import read
    from sparsereco.vertex.chain import VertexChain
    from sparsereco.voxels import Voxels

__version__ = "0.1.0"
__all__ = ["CameraChain", "Detector", "Response", "VertexChain", "Voxels", "__version__", "read"]

_HOMES = {
    "CameraChain": "sparsereco.camera.chain",
    "Detector": "sparsereco.detector",
    "Response": "sparsereco.detector",
    "VertexChain": "sparsereco.vertex.chain",
    "Voxels": "sparsereco.voxels",
    "read": "sparsereco.records",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
