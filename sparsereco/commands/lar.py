"""The liquid-argon detectors that the infill commands take by name or file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from sparsereco import cli
from sparsereco.commands.common import CONFIGS
from sparsereco.errors import InputError

if TYPE_CHECKING:
    from sparsereco.infill.gaps import LArDetector

NAMES = ("2x2", "nd-lar", "module", "gap10")
"""Shipped geometries, ``configs/detectors/NAME.yaml``."""


def read_detector(name: str | None) -> LArDetector:
    """A detector by the name of a shipped geometry, or from a YAML file like those.

    Raises:
        InputError: no geometry is given, there is no such file, or it describes no detector.
    """
    known = f"expected {', '.join(NAMES)} or a YAML file like configs/detectors/2x2.yaml"
    if not name:
        raise InputError(f"no geometry given: --detector, {known}")
    file = CONFIGS / "detectors" / f"{name}.yaml" if name in NAMES else Path(name)
    if not file.is_file():
        raise InputError(f"--detector: {known}, got {name!r}")
    try:
        values = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--detector: {file} is no YAML file: {error}", file=str(file)) from error
    if not isinstance(values, dict) or not {"size", "centres"} <= set(values):
        raise InputError(f"--detector: {file} has no boxes (keys size, centres): {known}", file=str(file))
    from sparsereco.infill.gaps import LArDetector

    parser = cli.new_parser("")
    parser.add_class_arguments(LArDetector, nested_key=None)
    detector = cli.build(LArDetector, parser.parse_object(values))
    channels = detector.channels
    listed, layout = (name and str(file.parent / name) for name in (channels.file, channels.layout))  # beside it
    channels = dataclasses.replace(channels, file=listed, layout=layout)
    return dataclasses.replace(detector, channels=channels)
