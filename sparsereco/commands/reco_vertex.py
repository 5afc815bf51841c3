"""`tools/reco.py vertex`: full-detector events to particles."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jsonargparse

from sparsereco import cli
from sparsereco.commands import common
from sparsereco.errors import InputError
from sparsereco.schema import HITS, RECO, BranchNames

if TYPE_CHECKING:
    from sparsereco.vertex.chain import VertexChain
    from sparsereco.vertex.config import VertexConfig
    from sparsereco.vertex.light import LightYield

LIGHT_EVENTS = 500
"""Events that the light yield is measured on: where each has a leaving muon, to half a per cent."""

TEXT = """\
From full-detector events to vertices, hadrons and leaving tracks.

Reads a tree `hits` (one entry per event: run, subrun, event and the lists hit_x, hit_y, hit_z [mm], hit_pe [p.e.]) from
TTrees or RNTuples and writes a tree `reco` with one entry per event, also where nothing is found. Lengths are in mm,
energies in MeV, signals in p.e.

examples:
  tools/reco.py vertex run7.root -o reco7.root
  tools/reco.py vertex 'run*.root:hits' -o reco.root -c configs/vertex.yaml --finder.score_threshold 0.3
  tools/reco.py vertex other.root:tree --branches.hit_pe charge --check

exit codes: 0 done, 1 failed while running, 2 wrong usage, setting, file or branch, 130 interrupted
"""


def parser() -> jsonargparse.ArgumentParser:
    """Options of `reco.py vertex`, those of the chain among them."""
    from sparsereco.vertex.config import VertexConfig

    parser = common.reco_parser(TEXT, "events", "3 MB")
    parser.add_class_arguments(VertexConfig, nested_key=None)
    parser.add_class_arguments(BranchNames, "branches")
    return parser


def run(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Does what the command line asks for."""
    from sparsereco.vertex.config import VertexConfig

    config = cli.build(VertexConfig, args)
    names = cli.build(BranchNames, args.branches, "branches.")
    common.run_reco(
        args,
        {**dataclasses.asdict(config), "branches": dataclasses.asdict(names)},
        lambda skipped: check(args, config, names, skipped.append),
        lambda record, skipped: reconstruct(args, config, names, record, skipped),
        argv,
    )


def load_chain(config: VertexConfig, device: str, seed: int) -> VertexChain:
    """The chain with its weights."""
    import torch

    from sparsereco.vertex.chain import VertexChain

    torch.manual_seed(seed)
    return VertexChain(config, device=device)


def check(
    args: jsonargparse.Namespace, config: VertexConfig, names: BranchNames, skip: Callable[[InputError], None]
) -> None:
    """Prints what would be read, and by what it would be reconstructed."""
    from sparsereco.io import survey

    common.print_sources(survey(args.files, HITS, names, skip if args.skip_bad_files else None), HITS)
    device = cli.choose_device(args.device)
    chain = load_chain(config, device, args.seed)
    print(f"chain on {device}: {json.dumps(chain.provenance(), indent=2)}")


def reconstruct(
    args: jsonargparse.Namespace,
    config: VertexConfig,
    names: BranchNames,
    record: dict[str, Any],
    skipped: list[InputError],
) -> str:
    """Reads, reconstructs and writes chunk by chunk.

    Args:
        args: the command line.
        config: settings of the chain.
        names: what the inputs call their branches.
        record: what the provenance knows already.
        skipped: takes the errors that did not stop the run.

    Returns:
        The summary.
    """
    import awkward as ak

    from sparsereco.io import RootWriter, check_hits, iterate, survey

    writer = RootWriter(args.output, force=args.force)
    on_bad_file = skipped.append if args.skip_bad_files else None
    sources = survey(args.files, HITS, names, on_bad_file)
    total = sum(source.entries for source in sources)
    start, stop = common.entry_range(args)
    device = cli.choose_device(args.device)
    chain = load_chain(config, device, args.seed)
    trees = [f"{source.file}:{source.tree}" for source in sources]
    light = measure_light(chain, trees, names, start, stop) if config.light_scale is None else None
    if light and light.usable:
        chain.light_scale = light.scale

    inputs: dict[tuple[str, str], dict[str, Any]] = {}
    events = vertices = 0
    clock = time.perf_counter()
    with writer, cli.progress("vertex", common.selected(total, start, stop), "events", args.quiet) as advance:
        writer.create("reco", RECO)
        for chunk in iterate(trees, HITS, None, names, args.step_size, start, stop, on_bad_file):
            bad = check_hits(chunk.events, config.detector)
            hits = common.sound_events(chunk, bad, names, HITS, skipped if args.skip_bad_events else None)
            found = chain(hits)
            writer.extend("reco", RECO, found)
            common.add_input(inputs, chunk)
            events += len(found)
            vertices += int(ak.count(found["vtx_score"]))
            advance(len(found))
            cli.release_memory()
        record["config"]["light_scale"] = chain.light_scale
        told_light = light and dataclasses.asdict(light)
        writer.provenance(
            common.provenance_of(
                args, record, chain.provenance(), device, inputs, skipped, RECO, light_yield=told_light
            )
        )
    seconds = time.perf_counter() - clock
    return (
        f"{args.output}: {events:,} events, {vertices:,} vertices in {seconds:.1f} s on {device} "
        f"({events / seconds:,.0f} events/s), {len(skipped)} skipped"
        + (f"\n{told(light)}" if light else "")
        + (f"\n{chain.dropped_starts:,} starts of fits were dropped, not finite" if chain.dropped_starts else "")
    )


def measure_light(chain: VertexChain, trees: list[str], names: BranchNames, start: int, stop: int | None) -> LightYield:
    """The light yield by the leaving tracks of the first events, always the same ones whatever the step size."""
    import awkward as ak

    from sparsereco.io import check_hits, drop_hits, iterate
    from sparsereco.vertex.light import nothing_seen

    last = start + LIGHT_EVENTS if stop is None else min(stop, start + LIGHT_EVENTS)
    parts = []
    # What is wrong with a file or an event is for the reconstruction to tell.
    for chunk in iterate(trees, HITS, None, names, LIGHT_EVENTS, start, last, lambda error: None):
        bad = [event.offset for event in check_hits(chunk.events, chain.config.detector)]
        parts.append(drop_hits(chunk.events, bad))
    return chain.measure_light(ak.concatenate(parts)) if parts else nothing_seen()


def told(light: LightYield) -> str:
    """What was measured, and what became of it."""
    from sparsereco.vertex.light import MIN_TRACKS

    if light.tracks < MIN_TRACKS:
        return f"light yield: taken for nominal, only {light.tracks} leaving tracks; --light_scale sets it"
    found = f"light yield: {light.scale:.3f} +- {light.error:.3f} of the nominal one by {light.tracks} leaving tracks"
    if light.usable:
        return f"{found}; signals were divided by it (--light_scale 1 takes them as they are)"
    return f"{found} is no plausible one, taken for nominal; --light_scale sets it"


COMMAND = common.Command("full-detector events to particles", TEXT, parser, run)
