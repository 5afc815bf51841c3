"""`tools/reco.py vertex`: full-detector events to particles."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jsonargparse

from sparsereco import cli
from sparsereco.commands import common, scaled
from sparsereco.errors import InputError
from sparsereco.schema import HITS, RECO, BranchNames

if TYPE_CHECKING:
    from sparsereco.io import Chunk, RootWriter
    from sparsereco.parts import Tally, Unit
    from sparsereco.vertex.chain import VertexChain
    from sparsereco.vertex.config import VertexConfig
    from sparsereco.vertex.light import LightYield

LIGHT_EVENTS = 500
"""Events that the light yield is measured on: where each has a leaving muon, to half a per cent."""

UNIT_SIZE = 2048
"""Events that a worker does at a time: some seconds."""

TEXT = """\
From full-detector events to vertices, hadrons and leaving tracks.

Reads a tree `hits` (one entry per event: run, subrun, event and the lists hit_x, hit_y, hit_z [mm], hit_pe [p.e.]) from
TTrees or RNTuples and writes a tree `reco` with one entry per event, also where nothing is found. Lengths are in mm,
energies in MeV, signals in p.e.

examples:
  tools/reco.py vertex run7.root -o reco7.root
  tools/reco.py vertex 'run*.root:hits' -o reco.root -c configs/vertex.yaml --finder.score_threshold 0.3
  tools/reco.py vertex run7.root -o reco7.root --refine --refinement.starts 3
  tools/reco.py vertex other.root:tree --branches.hit_pe charge --check
  tools/reco.py vertex 'run*.root' -o reco.root --workers 8

exit codes: 0 done, 1 failed while running, 2 wrong usage, setting, file or branch, 130 interrupted
"""


def parser() -> jsonargparse.ArgumentParser:
    """Options of `reco.py vertex`, those of the chain among them."""
    from sparsereco.vertex.config import VertexConfig

    parser = common.reco_parser(TEXT, "events", "1 MB")
    scaled.add_options(parser, "events", UNIT_SIZE)
    parser.add_class_arguments(VertexConfig, nested_key=None, skip={"refine"})
    parser.add_argument(
        "--refine",
        action=jsonargparse.ActionYesNo(no_prefix="no-"),
        default=VertexConfig.refine,
        help="fit vertex and hadrons to the light of the crop: six times slower",
    )
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
    from sparsereco.io import RootWriter, iterate, survey
    from sparsereco.parts import Input, Tally

    writer = RootWriter(args.output, force=args.force)
    on_bad_file = skipped.append if args.skip_bad_files else None
    sources = survey(args.files, HITS, names, on_bad_file)
    total = sum(source.entries for source in sources)
    start, stop = common.entry_range(args)
    with scaled.workers(args, "sparsereco.vertex.chain", "sparsereco.io") as client:
        device = cli.choose_device(args.device)
        chain = load_chain(config, device, args.seed)
        trees = [f"{source.file}:{source.tree}" for source in sources]
        light = measure_light(chain, trees, names, start, stop) if config.light_scale is None else None
        if light and light.usable:
            chain.light_scale = light.scale

        job = Job(config, names, chain.light_scale, device, args.seed, args.step_size, args.skip_bad_events)
        tally = Tally(skipped=skipped)
        clock = time.perf_counter()
        with writer, cli.progress("vertex", common.selected(total, start, stop), "events", args.quiet) as advance:
            if client is not None:
                inputs = [Input(source.file, source.tree, source.entries, source.uuid) for source in sources]
                about = {"chain": chain.provenance(), "branches": dataclasses.asdict(names), "device": device}
                scaled.reconstruct(
                    client,
                    args,
                    (RECO,),
                    process_unit,
                    lambda folder: job,
                    inputs,
                    config.batch_size,
                    about,
                    writer,
                    tally,
                    advance,
                )
            else:
                chunks = iterate(trees, HITS, None, names, args.step_size, start, stop, on_bad_file)
                process(job, chain, chunks, writer, tally, advance)
            record["config"]["light_scale"] = chain.light_scale
            told_light = light and dataclasses.asdict(light)
            writer.provenance(
                common.provenance_of(args, record, chain.provenance(), device, tally, RECO, light_yield=told_light)
            )
    seconds = time.perf_counter() - clock
    dropped, more, fewer = (tally.found[what] for what in ("dropped", "more", "fewer"))
    return (
        f"{args.output}: {tally.events:,} events, {tally.found['vertices']:,} vertices in {seconds:.1f} s on {device} "
        f"({tally.events / seconds:,.0f} events/s), {len(skipped)} skipped"
        + (f"\n{told(light)}" if light and tally.events else "")
        + (f"\n{more:,} vertices got a hadron more by their fits, {fewer:,} one fewer" if more or fewer else "")
        + (f"\n{dropped:,} starts of fits were dropped, not finite" if dropped else "")
    )


@dataclass(frozen=True)
class Job:
    """What a worker has to know."""

    config: VertexConfig
    names: BranchNames
    light_scale: float
    """As taken for all events, given or measured."""
    device: str
    seed: int
    step_size: str | int
    skip_bad_events: bool


def process(
    job: Job,
    chain: VertexChain,
    chunks: Iterable[Chunk],
    writer: RootWriter,
    tally: Tally,
    advance: Callable[[int], None],
) -> None:
    """Reconstructs events and writes them, batch by batch."""
    import awkward as ak

    from sparsereco.io import check_hits, regroup

    before = chain.fits.copy()
    chunks = regroup(chunks, job.config.batch_size)
    check = functools.partial(check_hits, detector=job.config.detector)
    schemas = HITS, RECO
    for found in common.answered(chain, chunks, check, job.names, schemas, job.skip_bad_events, writer, tally, advance):
        tally.found["vertices"] += int(ak.count(found["vtx_score"]))
    for what, number in (chain.fits - before).items():
        tally.found[what] += number


def process_unit(job: Job, unit: Unit, writer: RootWriter) -> Tally:
    """Reconstructs a unit; runs on a worker."""
    from sparsereco.io import iterate
    from sparsereco.parts import Tally

    tally = Tally()
    stop = unit.entry_stop or None  # of a file without entries: it is read, and listed
    tree = f"{unit.file}:{unit.tree}"
    chunks = iterate([tree], HITS, None, job.names, job.step_size, unit.entry_start, stop)
    process(job, job_chain(job), chunks, writer, tally, lambda done: None)
    return tally


@functools.lru_cache(maxsize=1)
def job_chain(job: Job) -> VertexChain:
    """The chain of a job, loaded once per worker."""
    chain = load_chain(job.config, job.device, job.seed)
    chain.light_scale = job.light_scale
    return chain


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
