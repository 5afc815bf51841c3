"""Settings that are wrong are named, with the value, before anything runs."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import RunTool

from sparsereco import bounds, cli
from sparsereco.vertex.decomposer import DecomposerConfig


def test_what_is_right_passes() -> None:
    right = SimpleNamespace(number=1, several=(0.5, 1.0), edge=0.0)
    bounds.at_least(1, right, "", "number")
    bounds.positive(right, "", "number", "several")
    bounds.share(right, "", "number", "several", "edge")
    bounds.not_negative(right, "", "several", "edge")


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (bounds.positive, 0, "group.name must be positive and finite, got 0"),
        (bounds.positive, math.inf, "group.name must be positive and finite, got inf"),
        (bounds.positive, (2.0, -1.0), r"group.name must be positive and finite, got \(2.0, -1.0\)"),
        (bounds.positive, (), "group.name must have at least one number, got none"),
        (bounds.not_negative, -1e-9, "group.name must not be negative, got -1e-09"),
        (bounds.not_negative, math.nan, "group.name must not be negative, got nan"),
        (bounds.share, 1.1, r"group.name must lie in \[0, 1\], got 1.1"),
        (bounds.share, math.nan, r"group.name must lie in \[0, 1\], got nan"),
        (lambda *where: bounds.at_least(1, *where), [4, 0], r"group.name must be at least 1, got \[4, 0\]"),
    ],
)
def test_what_is_wrong_is_named(check: object, value: object, message: str) -> None:
    assert callable(check)
    with pytest.raises(ValueError, match=f"^{message}$"):
        check(SimpleNamespace(fine=1, name=value), "group.", "fine", "name")


def test_heads_share_the_width() -> None:
    with pytest.raises(ValueError, match=r"network.width must be a multiple of 4 network.heads, got 30"):
        DecomposerConfig(width=30)


@pytest.mark.parametrize(
    ("stage", "option", "value", "message"),
    [
        (
            "decomposer",
            "network.encoder_blocks",
            "[]",
            "network.encoder_blocks must have at least one number, got none",
        ),
        ("decomposer", "network.heads", 0, "network.heads must be at least 1, got 0"),
        ("decomposer", "events.conf2", 2, "events.conf2 must lie in [0, 1], got 2.0"),
        ("finder", "schedule.steps", 0, "schedule.steps must be at least 1, got 0"),
        ("finder", "schedule.learning_rate", -1, "schedule.learning_rate must be positive and finite, got -1.0"),
        ("finder", "processes", 0, "processes must be at least 1, got 0"),
        ("finder", "network.channels", "[]", "network.channels must have at least one number, got none"),
        ("generator", "network.muon_length", 0, "network.muon_length must be positive and finite, got 0.0"),
        ("filler", "tracks.mixed", -0.1, "tracks.mixed must lie in [0, 1], got -0.1"),
        ("selector", "patches.size", 2, "patches.size must be at least 4, got 2"),
        ("anomaly", "network.latent", 0, "network.latent must be at least 1, got 0"),
        ("embed", "sample.electrons", "[0, 60]", "sample.electrons must be positive and finite, got (0.0, 60.0)"),
    ],
)
def test_no_training_starts_with_them(
    run_tool: RunTool, capsys: pytest.CaptureFixture[str], stage: str, option: str, value: object, message: str
) -> None:
    Path("bank.npz").touch()  # nothing else may stop it first
    banks = {"finder": "events", "decomposer": "events", "generator": "images", "filler": "tracks"}
    bank = [f"--{banks[stage]}.bank", "bank.npz"] if stage in banks else []
    code = run_tool("train", stage, *bank, "--output", "run", f"--{option}", value)
    assert (code, capsys.readouterr().err) == (cli.WRONG_INPUT, f"error: {message}\n")
    assert not Path("run").exists()
