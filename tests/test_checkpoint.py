"""Checkpoints: what is saved comes back, and what cannot be used is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sparsereco import __version__
from sparsereco.checkpoint import (
    WEIGHTS,
    CheckpointError,
    digest,
    load,
    load_training,
    metadata,
    save,
    save_training,
    sha256,
)
from sparsereco.errors import InputError


@dataclass(frozen=True)
class Settings:
    sizes: tuple[int, ...] = (3, 4)
    bias: bool = True


class Net(nn.Module):
    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.layer = nn.Linear(*settings.sizes, bias=settings.bias)
        self.register_buffer("calibration", torch.tensor(1.5))


class Other(Net):
    """The same network by another name."""


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "net.safetensors"
    save(path, Net(Settings((2, 5), bias=False)), training={"steps": 7}, metrics={"loss": 0.25})
    return path


def rewrite(path: Path, change: Callable[[dict], None]) -> None:
    """Changes the metadata of a checkpoint."""
    info = metadata(path)
    change(info)
    save_file(load_file(path), path, metadata={"sparsereco": json.dumps(info)})


def test_round_trip(saved: Path) -> None:
    model = Net(Settings((2, 5), bias=False))
    model.calibration.fill_(2.0)
    save(saved, model, training={"steps": 8})
    found = load(saved, Net, Settings)
    assert found.settings == model.settings
    assert not found.training
    for (name, expected), value in zip(model.state_dict().items(), found.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name
    assert metadata(saved) == {
        "class": "Net",
        "config": {"sizes": [2, 5], "bias": False},
        "version": __version__,
        "digest": digest(model.state_dict()),
        "training": {"steps": 8},
    }
    assert [file.name for file in saved.parent.iterdir()] == ["net.safetensors"]


def test_the_hash_is_that_of_the_file(saved: Path) -> None:
    """The one that `sha256sum` prints."""
    saved.write_bytes(b"abc")
    assert sha256(saved) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_flipped_bit(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[-1] ^= 1  # in the last weight
    saved.write_bytes(data)
    with pytest.raises(
        CheckpointError, match=r"net\.safetensors is damaged: its weights have the digest \w+, expected"
    ):
        load(saved, Net, Settings)


def test_a_digest_tells_weights_apart() -> None:
    one = {"a": torch.arange(6.0), "b": torch.tensor(3)}
    others = [
        {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)},
        {"a": torch.arange(6.0).int().view(torch.float32), "b": torch.tensor(3)},
        {"a": torch.arange(6.0), "c": torch.tensor(3)},
        {"a": torch.arange(6.0), "b": torch.tensor(3, dtype=torch.int32)},
    ]
    assert len({digest(state) for state in [one, *others]}) == 5
    assert digest(dict(reversed(one.items()))) == digest(one)


@pytest.mark.parametrize("path", sorted(WEIGHTS.glob("*.safetensors")), ids=lambda path: path.stem)
def test_shipped_weights_are_whole(path: Path) -> None:
    assert digest(load_file(path)) == metadata(path)["digest"]


def test_another_class(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"net\.safetensors holds weights of Net, expected those of Other"):
        load(saved, Other, Settings)


@pytest.mark.parametrize("change", [lambda c: c.update(colour=1), lambda c: c.pop("bias")], ids=["unknown", "missing"])
def test_an_unknown_or_a_missing_setting(saved: Path, change: Callable[[dict], None]) -> None:
    rewrite(saved, lambda info: change(info["config"]))
    with pytest.raises(CheckpointError, match=r"other settings than Settings: (colour|bias)$"):
        load(saved, Net, Settings)


def test_weights_of_another_shape(saved: Path) -> None:
    rewrite(saved, lambda info: info["config"].update(sizes=[2, 6]))
    with pytest.raises(CheckpointError, match=r"(?s)does not fit Net: .*layer\.weight"):
        load(saved, Net, Settings)


def test_weights_that_are_missing(saved: Path) -> None:
    rewrite(saved, lambda info: info["config"].update(bias=True))
    with pytest.raises(CheckpointError, match=r"(?s)does not fit Net: .*layer\.bias"):
        load(saved, Net, Settings)


def no_file(path: Path) -> None:
    path.unlink()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("this is no checkpoint at all")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def pickle(path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, path)


def of_others(path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, path)


def broken_json(path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, path, metadata={"sparsereco": "{no json"})


def without_class(path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, path, metadata={"sparsereco": '{"config": {}}'})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_file, "does not exist or is no file"),
        (folder, "does not exist or is no file"),
        (empty, "is no safetensors file"),
        (text, "is no safetensors file"),
        (truncated, "is no safetensors file"),
        (pickle, "is no safetensors file"),
        (of_others, "was not written by sparsereco"),
        (broken_json, "was not written by sparsereco"),
        (without_class, "was not written by sparsereco"),
    ],
)
def test_what_is_no_checkpoint_is_named(saved: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(saved)
    with pytest.raises(CheckpointError, match=rf"checkpoint .*net\.safetensors {message}") as caught:
        load(saved, Net, Settings)
    assert isinstance(caught.value, InputError)  # so that a tool ends with one line and exit code 2


def test_a_failed_save_leaves_the_old_file(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        save(saved, Net(Settings()), training=object())
    assert saved.read_bytes() == before


def test_the_state_of_a_training(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "last.pt"
    save_training(path, step=3, model={"weight": torch.arange(4.0)})
    save_training(path, step=4, model={"weight": torch.arange(5.0)})
    state = load_training(path)
    assert state["step"] == 4
    assert torch.equal(state["model"]["weight"], torch.arange(5.0))
    assert [file.name for file in path.parent.iterdir()] == ["last.pt"]
