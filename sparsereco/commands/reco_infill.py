"""`tools/reco.py infill`: the missing parts of tracks across the dead regions of a liquid-argon detector."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jsonargparse

from sparsereco import cli
from sparsereco.commands import common, scaled
from sparsereco.commands.lar import NAMES, read_detector
from sparsereco.errors import InputError
from sparsereco.schema import CHARGE_HITS, INFILL, ChargeBranchNames

if TYPE_CHECKING:
    from sparsereco.infill.chain import InfillChain
    from sparsereco.infill.config import InfillConfig
    from sparsereco.infill.gaps import Gaps, LArDetector
    from sparsereco.io import Chunk, RootWriter
    from sparsereco.parts import Input, Tally, Unit

UNIT_SIZE = 2048
"""Events that a worker does at a time: some seconds."""

GROUP = 16
"""Batches that are filled and written at a time."""

TEXT = f"""\
The missing voxels of tracks that cross gaps between modules, cathodes and dead channels, with their energy.

Reads a tree `hits` (one entry per event: run, subrun, event and the lists hit_x, hit_y, hit_z [mm], hit_e [MeV]) from
TTrees or RNTuples, or HDF5 files of edep-sim segments or of voxels, and writes a tree `infill` with one entry per
event: what to add to the hits. Which regions are dead follows from the geometry (--detector: {", ".join(NAMES)},
or a YAML file like configs/detectors/2x2.yaml). Segments are put into voxels by path length, and what falls into a gap
is dropped.

examples:
  tools/reco.py infill run7.root -o filled.root --detector 2x2
  tools/reco.py infill edepsim-output.h5 -o filled.root --detector my.yaml --min_prob 0.6
  tools/reco.py infill other.root:tree --branches.hit_e charge --detector nd-lar --check

exit codes: 0 done, 1 failed while running, 2 wrong usage, setting, file or branch, 130 interrupted
"""


def parser() -> jsonargparse.ArgumentParser:
    """Options of `reco.py infill`, those of the chain among them."""
    from sparsereco.infill.config import InfillConfig

    parser = common.reco_parser(TEXT, "events", "3 MB")
    scaled.add_options(parser, "events", UNIT_SIZE)
    parser.add_argument("--detector", type=str | None, metavar="NAME|FILE", help="geometry; needed")
    parser.add_class_arguments(InfillConfig, nested_key=None)
    parser.add_class_arguments(ChargeBranchNames, "branches")
    return parser


def run(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Does what the command line asks for."""
    from sparsereco.infill.config import InfillConfig

    config = cli.build(InfillConfig, args)
    names = cli.build(ChargeBranchNames, args.branches, "branches.")
    settings = {"detector": args.detector, **dataclasses.asdict(config), "branches": dataclasses.asdict(names)}
    common.run_reco(
        args,
        settings,
        lambda skipped: check(args, config, names, skipped),
        lambda record, skipped: reconstruct(args, config, names, record, skipped),
        argv,
    )


def load_chain(detector: LArDetector, config: InfillConfig, device: str, seed: int) -> InfillChain:
    """The chain with its weights."""
    import torch

    from sparsereco.infill.chain import InfillChain

    torch.manual_seed(seed)
    return InfillChain(detector, config, device)


def check(
    args: jsonargparse.Namespace, config: InfillConfig, names: ChargeBranchNames, skipped: list[InputError]
) -> None:
    """Prints what would be read, and by what it would be filled."""
    from sparsereco.hdf5 import is_hdf5
    from sparsereco.io import survey

    detector = read_detector(args.detector)
    roots = [file for file in args.files if not is_hdf5(file)]
    on_bad_file = skipped.append if args.skip_bad_files else None
    common.print_sources(survey(roots, CHARGE_HITS, names, on_bad_file), CHARGE_HITS)
    device = cli.choose_device(args.device)
    chain = load_chain(detector, config, device, args.seed)
    for chunk in chunks(args, names, chain.gaps, [file for file in args.files if is_hdf5(file)], skipped):
        print(f"{chunk.file}: {chunk.tree}, events from {chunk.entry_start:,} to {chunk.entry_stop - 1:,}")
    print(f"detector: {detector.shape} voxels of {detector.pitch:g} mm, {chain.gaps.n:,} gaps")
    for gap in range(chain.gaps.n_regions):
        print(f"  gap {gap}: {chain.gaps.width[gap]} voxels wide")
    print(f"chain on {device}: {json.dumps(chain.provenance(), indent=2)}")


def reconstruct(
    args: jsonargparse.Namespace,
    config: InfillConfig,
    names: ChargeBranchNames,
    record: dict[str, Any],
    skipped: list[InputError],
) -> str:
    """Reads, fills and writes chunk by chunk.

    Args:
        args: the command line.
        config: settings of the chain.
        names: what the inputs call their branches.
        record: what the provenance knows already.
        skipped: takes the errors that did not stop the run.

    Returns:
        The summary.
    """
    from sparsereco.io import RootWriter
    from sparsereco.parts import Tally

    on_workers = scaled.wanted(args)
    detector = read_detector(args.detector)
    writer = RootWriter(args.output, force=args.force)
    # Without workers, what is bad is listed when it is read.
    inputs = survey(args, names, skipped if on_workers else None)
    total = common.selected(sum(one.entries for one in inputs), *common.entry_range(args))
    with scaled.workers(args, "sparsereco.infill.chain", "sparsereco.io", "sparsereco.hdf5") as client:
        device = cli.choose_device(args.device)
        chain = load_chain(detector, config, device, args.seed)
        job = Job(detector, config, names, device, args.seed, args.step_size, args.skip_bad_events)
        tally = Tally(skipped=skipped)
        clock = time.perf_counter()
        with writer, cli.progress("infill", total, "events", args.quiet) as advance:
            if client is not None:
                about = {"chain": chain.provenance(), "branches": dataclasses.asdict(names), "device": device}
                scaled.reconstruct(
                    client,
                    args,
                    (INFILL,),
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
                process(job, chain, chunks(args, names, chain.gaps, args.files, skipped), writer, tally, advance)
            writer.provenance(common.provenance_of(args, record, chain.provenance(), device, tally, INFILL))
    seconds = time.perf_counter() - clock
    wide = tally.found["wide"]
    note = f"\n{wide:,} events have gaps filled that are wider than trained (gap_wide)" if wide else ""
    return (
        f"{args.output}: {tally.events:,} events, {tally.found['voxels']:,} voxels filled in in {seconds:.1f} s on "
        f"{device} ({tally.events / seconds:,.0f} events/s), {len(skipped)} skipped{note}"
    )


@dataclass(frozen=True)
class Job:
    """What a worker has to know."""

    detector: LArDetector
    config: InfillConfig
    names: ChargeBranchNames
    device: str
    seed: int
    step_size: str | int
    skip_bad_events: bool


def process(
    job: Job,
    chain: InfillChain,
    chunks: Iterable[Chunk],
    writer: RootWriter,
    tally: Tally,
    advance: Callable[[int], None],
) -> None:
    """Fills events and writes them, some batches at a time."""
    import awkward as ak

    from sparsereco.infill.checks import check_charge_hits
    from sparsereco.io import regroup

    chunks = regroup(chunks, GROUP * job.config.batch_size)
    check = functools.partial(check_charge_hits, gaps=chain.gaps)
    schemas = CHARGE_HITS, INFILL
    for found in common.answered(chain, chunks, check, job.names, schemas, job.skip_bad_events, writer, tally, advance):
        tally.found["voxels"] += int(ak.count(found["fill_e"]))
        tally.found["wide"] += int(ak.sum(ak.any(found["gap_wide"] * (1 - found["gap_alone"]) > 0, axis=1)))


def process_unit(job: Job, unit: Unit, writer: RootWriter) -> Tally:
    """Fills the events of a unit; runs on a worker."""
    from sparsereco.hdf5 import is_hdf5
    from sparsereco.io import iterate
    from sparsereco.parts import Tally

    tally = Tally()
    chain = job_chain(job)
    stop = unit.entry_stop or None  # of a file without entries: it is read, and listed
    if is_hdf5(unit.file):
        chunks = of_hdf5([unit.file], chain.gaps, unit.entry_start, stop, None)
    else:
        tree = f"{unit.file}:{unit.tree}"
        chunks = iterate([tree], CHARGE_HITS, None, job.names, job.step_size, unit.entry_start, stop)
    process(job, chain, chunks, writer, tally, lambda done: None)
    return tally


@functools.lru_cache(maxsize=1)
def job_chain(job: Job) -> InfillChain:
    """The chain of a job, loaded once per worker."""
    return load_chain(job.detector, job.config, job.device, job.seed)


def survey(args: jsonargparse.Namespace, names: ChargeBranchNames, skipped: list[InputError] | None) -> list[Input]:
    """The files and their events; finds bad ROOT files before anything is reconstructed.

    Args:
        args: the command line.
        names: what the inputs call their branches.
        skipped: takes the errors of bad files; None where they are listed later, when they are read. HDF5 files, which
            have to be read to be counted, are left out then.
    """
    from sparsereco import io
    from sparsereco.hdf5 import count_events, is_hdf5
    from sparsereco.parts import Input

    noted = (lambda error: None) if skipped is None else skipped.append
    on_bad_file = noted if args.skip_bad_files else None
    roots = [file for file in args.files if not is_hdf5(file)]
    sources = io.survey(roots, CHARGE_HITS, names, on_bad_file)
    inputs = [Input(source.file, source.tree, source.entries, source.uuid) for source in sources]
    if len(roots) < len(args.files):
        check_one_format(args.files)
    for file, _ in io.expand(args.files) if skipped is not None and not roots else []:
        try:
            inputs.append(Input(file, None, count_events(file)))
        except InputError as error:
            if on_bad_file is None:
                raise
            on_bad_file(error)
    return inputs


def chunks(
    args: jsonargparse.Namespace, names: ChargeBranchNames, gaps: Gaps, files: list[str], skipped: list[InputError]
) -> Iterator[Chunk]:
    """Events of ROOT and HDF5 files in the order given; an entry range is counted over all of them together."""
    from sparsereco.hdf5 import is_hdf5
    from sparsereco.io import iterate

    start, stop = common.entry_range(args)
    on_bad_file = skipped.append if args.skip_bad_files else None
    if any(map(is_hdf5, files)):
        check_one_format(files)
        yield from of_hdf5(files, gaps, start, stop, on_bad_file)
    else:
        yield from iterate(files, CHARGE_HITS, None, names, args.step_size, start, stop, on_bad_file)


def check_one_format(files: list[str]) -> None:
    """Refuses HDF5 files together with others."""
    from sparsereco.hdf5 import is_hdf5

    if not all(map(is_hdf5, files)):
        raise InputError("inputs are either all ROOT files or all HDF5 files, not both in one run")


def of_hdf5(
    files: list[str], gaps: Gaps, start: int, stop: int | None, on_bad_file: Callable[[InputError], None] | None
) -> Iterator[Chunk]:
    """Events of HDF5 files, arguments as of `sparsereco.io.iterate`."""
    from sparsereco.infill.events import from_hdf5
    from sparsereco.io import expand

    before = 0
    for file, _ in expand(files):
        try:
            for chunk in from_hdf5(file, gaps, 500):
                first, last = max(start - before, 0), len(chunk.events) if stop is None else max(stop - before, 0)
                before += len(chunk.events)
                if first < min(last, len(chunk.events)):
                    yield dataclasses.replace(
                        chunk,
                        entry_start=chunk.entry_start + first,
                        entry_stop=chunk.entry_start + min(last, len(chunk.events)),
                        events=chunk.events[first:last],
                    )
        except InputError as error:
            if on_bad_file is None:
                raise
            on_bad_file(error)


COMMAND = common.Command("missing parts of tracks in liquid argon", TEXT, parser, run)
