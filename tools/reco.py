#!/usr/bin/env python3
"""Reconstructs events: ROOT files in, one ROOT file out. `tools/reco.py vertex --help` lists the options."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jsonargparse
import yaml

from sparsereco import cli
from sparsereco.errors import InputError
from sparsereco.schema import HITS, RECO, BranchNames

if TYPE_CHECKING:
    import awkward as ak

    from sparsereco.io import Chunk, Source
    from sparsereco.vertex.chain import VertexChain
    from sparsereco.vertex.config import VertexConfig
    from sparsereco.vertex.light import LightYield

LIGHT_EVENTS = 500
"""Events that the light yield is measured on: where each has a leaving muon, to half a per cent."""

VERTEX = """\
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


def new_parser(argv: list[str]) -> jsonargparse.ArgumentParser:
    """The command line: one subcommand per system, with options for the one that ``argv`` asks for."""
    parser = cli.new_parser(__doc__)
    systems = parser.add_subcommands(dest="system")
    # To collect a system's options takes longer than the rest of --help, so the others do without.
    vertex = vertex_parser() if argv[:1] == ["vertex"] else cli.new_parser(VERTEX)
    systems.add_subcommand("vertex", vertex, help="full-detector events to particles")
    return parser


def vertex_parser() -> jsonargparse.ArgumentParser:
    """Options of `reco.py vertex`, those of the chain among them."""
    from sparsereco.vertex.config import VertexConfig

    parser = cli.new_parser(VERTEX)
    add = parser.add_argument
    add("files", nargs="*", metavar="FILE[:TREE]", help="input: local files, globs or URLs; tree `hits` unless named")
    add("-o", "--output", type=str | None, metavar="OUT.root", help="output; appears when all is done")
    add("-f", "--force", action="store_true", help="replace an output that is there already")
    add("-c", "--config", action="config", metavar="FILE", help="settings as YAML; what stands further right wins")
    add("--print-config", action="store_true", help="print all settings as YAML and stop")
    add("--check", action="store_true", help="open the inputs, print branches, event counts and the chain, and stop")
    add("--entry-start", type=int | None, metavar="N", help="first entry, counted over all inputs together")
    add("--entry-stop", type=int | None, metavar="N", help="first entry not to read, counted likewise")
    add("-n", "--max-events", type=int | None, metavar="N", help="at most this many events")
    add("--step-size", type=int | str, default="3 MB", metavar="SIZE", help="what to read at a time: events, or memory")
    add("--device", default="auto", help="torch device; auto is the GPU where there is one")
    add("--seed", type=int, default=0, help="seed of the random numbers")
    add("--skip-bad-files", action="store_true", help="go on after a file that cannot be read, list it at the end")
    add("--skip-bad-events", action="store_true", help="leave bad events empty, list them at the end")
    cli.add_verbosity(parser)
    parser.add_class_arguments(VertexConfig, nested_key=None)
    parser.add_class_arguments(BranchNames, "branches")
    return parser


def run(argv: list[str]) -> None:
    """Parses the command line and does what it asks for."""
    args = new_parser(argv).parse_args(argv).vertex

    from sparsereco.vertex.config import VertexConfig

    config = cli.build(VertexConfig, args)
    names = cli.build(BranchNames, args.branches, "branches.")
    settings = json.loads(json.dumps({**dataclasses.asdict(config), "branches": dataclasses.asdict(names)}))
    log = cli.set_up_logging(args.quiet, args.verbose)
    if args.print_config:
        print(yaml.safe_dump(settings, sort_keys=False), end="")
        return
    if not args.files:
        raise InputError("no input given: expected FILE[:TREE]...")
    cli.check_step_size(args.step_size)

    skipped: list[InputError] = []
    if args.check:
        check(args, config, names, skipped.append)
    elif args.output is None:
        raise InputError("no output given: expected -o OUT.root")
    else:
        record = {"command": ["reco.py", *argv], "config": settings}
        log.info(reconstruct(args, config, names, record, skipped))
    for error in skipped:
        log.warning("skipped: %s", error)


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

    for source in survey(args.files, HITS, names, skip if args.skip_bad_files else None):
        print(f"{source.file}: tree '{source.tree}', {source.entries:,} events")
        for branch in HITS.branches:
            unit = f" [{branch.unit}]" if branch.unit else ""
            print(f"  {branch.name + unit:15} from {source.names[branch.name] or '(none)'}")
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

    from sparsereco.io import RootWriter, iterate, survey
    from sparsereco.provenance import environment

    writer = RootWriter(args.output, force=args.force)
    on_bad_file = skipped.append if args.skip_bad_files else None
    sources = survey(args.files, HITS, names, on_bad_file)
    start, stop = entry_range(args)
    device = cli.choose_device(args.device)
    chain = load_chain(config, device, args.seed)
    trees = [f"{source.file}:{source.tree}" for source in sources]
    light = measure_light(chain, trees, names, start, stop) if config.light_scale is None else None
    if light and light.usable:
        chain.light_scale = light.scale

    inputs: dict[tuple[str, str], dict[str, Any]] = {}
    events = vertices = 0
    clock = time.perf_counter()
    with writer, cli.progress("vertex", selected(sources, start, stop), "events", args.quiet) as advance:
        writer.create("reco", RECO)
        for chunk in iterate(trees, HITS, None, names, args.step_size, start, stop, on_bad_file):
            hits = sound_events(chunk, config, names, skipped if args.skip_bad_events else None)
            found = chain(hits)
            writer.extend("reco", RECO, found)
            first = {"file": chunk.file, "tree": chunk.tree, "uuid": chunk.uuid, "entry_start": chunk.entry_start}
            inputs.setdefault((chunk.file, chunk.tree), first)["entry_stop"] = chunk.entry_stop
            events += len(found)
            vertices += int(ak.count(found["vtx_score"]))
            advance(len(found))
            cli.release_memory()
        writer.provenance(
            {
                **environment(record["command"]),
                "config": record["config"] | {"light_scale": chain.light_scale},
                "chain": chain.provenance(),
                "light_yield": light and dataclasses.asdict(light),
                "device": device,
                "seed": args.seed,
                "inputs": list(inputs.values()),
                "skipped": [str(error) for error in skipped],
                "units": RECO.units,
            }
        )
    seconds = time.perf_counter() - clock
    return (
        f"{args.output}: {events:,} events, {vertices:,} vertices in {seconds:.1f} s on {device} "
        f"({events / seconds:,.0f} events/s), {len(skipped)} skipped" + (f"\n{told(light)}" if light else "")
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


def entry_range(args: jsonargparse.Namespace) -> tuple[int, int | None]:
    """First entry and first entry not to read, from the three options for it."""
    start = args.entry_start or 0
    stops = [args.entry_stop, None if args.max_events is None else start + args.max_events]
    return start, min((stop for stop in stops if stop is not None), default=None)


def selected(sources: list[Source], start: int, stop: int | None) -> int:
    """Number of events in an entry range."""
    total = sum(source.entries for source in sources)
    return max(min(total, total if stop is None else stop) - start, 0)


def sound_events(chunk: Chunk, config: VertexConfig, names: BranchNames, skipped: list[InputError] | None) -> ak.Array:
    """The events of a chunk; bad ones stop the run, or lose their hits and join ``skipped`` where that is given."""
    from sparsereco.io import check_hits, drop_hits

    bad = check_hits(chunk.events, config.detector)
    if not bad:
        return chunk.events
    errors = [event.error(chunk, names) for event in bad]
    if skipped is None:
        raise errors[0]
    skipped.extend(errors)
    return drop_hits(chunk.events, [event.offset for event in bad])


if __name__ == "__main__":
    sys.exit(cli.main(run))
