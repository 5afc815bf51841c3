"""What the commands on liquid argon share: detectors by name or file, and the file of hits that converters write."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import jsonargparse
import yaml

from sparsereco import cli
from sparsereco.commands.common import CONFIGS
from sparsereco.errors import InputError
from sparsereco.schema import CHARGE_HITS

if TYPE_CHECKING:
    from sparsereco.infill.gaps import LArDetector
    from sparsereco.io import Chunk

NAMES = ("2x2", "nd-lar", "module", "gap10")
"""Shipped geometries, ``configs/detectors/NAME.yaml``."""


def write_hits(
    args: jsonargparse.Namespace, given: str | list[str], chunks: Iterable[Chunk], argv: list[str]
) -> tuple[int, int]:
    """Writes a tree `hits`, chunk by chunk.

    Args:
        args: the command line.
        given: the inputs, for the provenance.
        chunks: events.
        argv: the command line as it was given.

    Returns:
        How many events, and how many voxels in them.
    """
    import awkward as ak

    from sparsereco.io import RootWriter
    from sparsereco.provenance import environment

    events = voxels = 0
    with RootWriter(args.output, force=args.force) as writer:
        writer.create("hits", CHARGE_HITS)
        for chunk in chunks:
            writer.extend("hits", CHARGE_HITS, chunk.events)
            events += len(chunk.events)
            voxels += int(ak.count(chunk.events.hit_e))
        writer.provenance({**environment(["convert.py", *argv]), "input": given, "units": CHARGE_HITS.units})
    return events, voxels


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
    cli.check_keys(parser, values, str(file))
    detector = cli.build(LArDetector, parser.parse_object(values))
    channels = detector.channels
    listed, layout = (name and str(file.parent / name) for name in (channels.file, channels.layout))  # beside it
    channels = dataclasses.replace(channels, file=listed, layout=layout)
    return dataclasses.replace(detector, channels=channels)
