"""Checkpoints: safetensors with one JSON string of metadata. Loaded strictly, verified by hash, never a pickle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from sparsereco.errors import InputError

Model = TypeVar("Model", bound=nn.Module)

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the shipped checkpoints."""


class CheckpointError(InputError, ValueError):
    """A file that is no checkpoint, or one of another model; the message says what was expected and what came."""


def save(path: str | Path, model: nn.Module, **info: Any) -> None:
    """Writes weights and metadata; the file appears only when it is complete.

    Args:
        path: ends in ``.safetensors`` by convention.
        model: has its frozen config dataclass as ``model.settings``.
        info: training data, steps, metrics: anything that JSON can hold.
    """
    from sparsereco import __version__

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    metadata = {
        "class": type(model).__name__,
        "config": dataclasses.asdict(model.settings),  # type: ignore[call-overload]
        "version": __version__,
        "digest": digest(state),
        **info,
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_file(state, part, metadata={"sparsereco": json.dumps(metadata)})
    part.chmod(0o644)  # safetensors writes files that only their owner can read
    part.replace(path)


def metadata(path: str | Path) -> dict[str, Any]:
    """The metadata of a checkpoint.

    Raises:
        CheckpointError: no such file, no safetensors file, or not one of sparsereco.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist or is no file")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("sparsereco")
    except SafetensorError as error:
        raise CheckpointError(f"checkpoint {path} is no safetensors file: {error}") from error
    try:
        info = json.loads(text or "{}")
    except json.JSONDecodeError:
        info = {}
    if not {"class", "config", "digest"} <= set(info):
        raise CheckpointError(
            f"checkpoint {path} was not written by sparsereco: its metadata name no class, config and digest"
        )
    return info


def load(path: str | Path, model_class: type[Model], settings_class: type[Any]) -> Model:
    """Builds the model that a checkpoint describes and fills it, in eval mode.

    Raises:
        CheckpointError: not a checkpoint, another class, an unknown or missing setting, or weights that do not match
            the model or are not those that were saved.
    """
    info = metadata(path)
    if info["class"] != model_class.__name__:
        found, expected = info["class"], model_class.__name__
        raise CheckpointError(f"checkpoint {path} holds weights of {found}, expected those of {expected}")
    names = {field.name for field in dataclasses.fields(settings_class)}
    if set(info["config"]) != names:
        odd = sorted(set(info["config"]) ^ names)
        raise CheckpointError(f"checkpoint {path} has other settings than {settings_class.__name__}: {', '.join(odd)}")
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in info["config"].items()}
    model = model_class(settings_class(**settings))
    state = load_file(path)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"checkpoint {path} does not fit {model_class.__name__}: {error}") from error
    found = digest(state)
    if found != info["digest"]:
        raise CheckpointError(
            f"checkpoint {path} is damaged: its weights have the digest {found}, expected {info['digest']}"
        )
    return model.eval()


def digest(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of weights: names, types, shapes and values, whatever file they are in."""
    total = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def sha256(path: str | Path) -> str:
    """Hash of a file, as recorded in the provenance of every output."""
    with Path(path).open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else hashlib.sha256(file.read()).hexdigest()
        )


def save_training(path: str | Path, **state: Any) -> None:
    """Everything that a training needs to go on after a kill; replaced in one move."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    torch.save(state, part)
    part.replace(path)


def load_training(path: str | Path) -> dict[str, Any]:
    """What `save_training` wrote; only tensors and plain values are accepted."""
    return torch.load(path, weights_only=True)
