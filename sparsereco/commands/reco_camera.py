"""`tools/reco.py camera`: camera frames to clusters."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonargparse

from sparsereco import cli
from sparsereco.commands import common, scaled
from sparsereco.errors import InputError

if TYPE_CHECKING:
    from sparsereco.camera.chain import CameraChain
    from sparsereco.camera.config import CameraConfig
    from sparsereco.camera.pedestal import Pedestal
    from sparsereco.frames import Frame
    from sparsereco.io import RootWriter
    from sparsereco.parts import Tally, Unit

UNIT_SIZE = 20
"""Frames that a worker does at a time: some seconds."""

FEW_FRAMES = 10
"""With fewer frames in the pedestal the user is warned: the noise of a pixel is then known to a quarter at best."""

log = logging.getLogger("sparsereco")

TEXT = """\
From camera frames of an optical TPC to clusters with their pixels, features and energies.

Reads frames from ROOT files (TH2 `pic_run<R>_ev<E>`), HDF5 files and MIDAS files (.mid.gz, bank CAM0), and a pedestal:
a `pedmap` file, or a pedestal run in any of these formats, which is then averaged. Writes the trees `Events` (clusters)
and `roi` (regions that are worth keeping, as polygons) with one entry per frame, also where nothing is found. Positions
are in pixels, light in counts, energies in keV.

examples:
  tools/reco.py camera run7.root --pedestal pedmap_run5.root -o reco7.root
  tools/reco.py camera 'run*.mid.gz' --pedestal run5.mid.gz --save-pedestal pedmap_run5.root -o reco.root
  tools/reco.py camera run7.root --pedestal run5.root --selector gaussian -o reco7.root
  tools/reco.py camera run7.root --pedestal run5.root --selector anomaly --save-sparse sparse7.root -o reco7.root

exit codes: 0 done, 1 failed while running, 2 wrong usage, setting, file or frame, 130 interrupted
"""


def parser() -> jsonargparse.ArgumentParser:
    """Options of `reco.py camera`, those of the chain among them."""
    from sparsereco.camera.config import CameraConfig

    parser = common.reco_parser(TEXT, "frames", 1)
    scaled.add_options(parser, "frames", UNIT_SIZE)
    parser.add_argument("--pedestal", type=str | None, metavar="FILE", help="pedmap file, or frames of a pedestal run")
    parser.add_argument("--save-pedestal", type=str | None, metavar="FILE", help="write the pedestal as pedmap file")
    parser.add_argument("--save-sparse", type=str | None, metavar="FILE", help="write frames reduced to their regions")
    parser.add_class_arguments(CameraConfig, nested_key=None)
    return parser


def run(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Does what the command line asks for."""
    from sparsereco.camera.config import CameraConfig

    config = cli.build(CameraConfig, args)
    common.run_reco(
        args,
        dataclasses.asdict(config),
        lambda skipped: check(args, config, skipped),
        lambda record, skipped: reconstruct(args, config, record, skipped),
        argv,
    )


def load_pedestal(args: jsonargparse.Namespace) -> Pedestal:
    """The pedestal of the command line."""
    if args.pedestal is None:
        raise InputError("no pedestal given: expected --pedestal FILE, a pedmap file or frames of a pedestal run")
    return read_or_measure(args.pedestal, args.quiet)


def read_or_measure(path: str, quiet: bool) -> Pedestal:
    """A pedestal from a file with one, or from the frames of a run."""
    from sparsereco.camera.pedestal import measure_pedestal, read_pedestal
    from sparsereco.frames import iterate_frames, survey_frames

    if is_pedestal(path):
        return read_pedestal(path)
    total = sum(file.entries for file in survey_frames([path]))
    with cli.progress("pedestal", total, "frames", quiet) as advance:
        return measure_pedestal(counted(iterate_frames([path]), advance))


def is_pedestal(path: str) -> bool:
    """Whether a file is a ROOT file without frames, where a pedestal may be."""
    from sparsereco import remote
    from sparsereco.frames import survey_frames

    if not remote.name(path).endswith(".root"):
        return False
    try:
        return survey_frames([path])[0].entries == 0
    except InputError:
        return True


def counted(frames: Any, advance: Any) -> Any:
    """The same frames, with progress."""
    for frame in frames:
        yield frame
        advance(1)


def load_chain(args: jsonargparse.Namespace, config: CameraConfig) -> tuple[CameraChain, str]:
    """The chain with its pedestal and weights, and the device that it is on."""
    import torch

    from sparsereco.camera.chain import CameraChain

    device = cli.choose_device(args.device)
    torch.manual_seed(args.seed)
    check_other_file(args.pedestal, args.files)
    pedestal = load_pedestal(args)
    if 0 < pedestal.frames < FEW_FRAMES:
        log.warning(
            "%s: a pedestal of only %d frames, expected at least %d", args.pedestal, pedestal.frames, FEW_FRAMES
        )
    return CameraChain(pedestal, config, device), device


def check_other_file(pedestal: str | None, files: list[str]) -> None:
    """Holds a pedestal to a file that is not reconstructed with it: there the light of tracks would be taken for noise.

    Raises:
        InputError: it is an input.
    """
    from sparsereco.io import expand

    if pedestal is not None and place(pedestal) in {place(path) for path, _ in expand(files)}:
        raise InputError(f"--pedestal {pedestal} is an input, too: expected frames without tracks", file=pedestal)


def place(path: str) -> str:
    """The one name of a file that can be named in several ways; URLs of servers are as they are."""
    path = path.removeprefix("file://")
    return path if "://" in path else str(Path(path).resolve())


def check(args: jsonargparse.Namespace, config: CameraConfig, skipped: list[InputError]) -> None:
    """Prints what would be read, and by what it would be reconstructed."""
    from sparsereco.frames import survey_frames

    for source in survey_frames(args.files, skipped.append if args.skip_bad_files else None):
        print(f"{source.file}: {source.kind}, {source.entries:,} frames")
    chain, device = load_chain(args, config)
    print(f"chain on {device}: {json.dumps(chain.provenance(), indent=2)}")


def reconstruct(
    args: jsonargparse.Namespace, config: CameraConfig, record: dict[str, Any], skipped: list[InputError]
) -> str:
    """Reads, reconstructs and writes frame by frame, ``--step-size`` of them at a time.

    Args:
        args: the command line.
        config: settings of the chain.
        record: what the provenance knows already.
        skipped: takes the errors that did not stop the run.

    Returns:
        The summary.
    """
    from contextlib import ExitStack

    from sparsereco.camera.pedestal import write_pedestal
    from sparsereco.files import check_file
    from sparsereco.frames import iterate_frames, survey_frames
    from sparsereco.io import RootWriter
    from sparsereco.parts import Input, Tally
    from sparsereco.provenance import environment
    from sparsereco.schema import FRAMES, ROIS, SPARSE_FRAMES

    on_workers = scaled.wanted(args)
    if args.save_sparse is not None and on_workers:
        raise InputError("--save-sparse writes a file of its own, which workers cannot share: run without workers")
    writer = RootWriter(args.output, force=args.force)
    reduced = None if args.save_sparse is None else RootWriter(args.save_sparse, force=args.force)
    if args.save_pedestal is not None:
        check_file(Path(args.save_pedestal), args.force)
    on_bad_file = skipped.append if args.skip_bad_files else None
    sources = survey_frames(args.files, on_bad_file)
    start, stop = common.entry_range(args)
    total = common.selected(sum(source.entries for source in sources), start, stop)
    tally = Tally(skipped=skipped)
    with ExitStack() as stack:
        client = stack.enter_context(scaled.workers(args, "sparsereco.camera.chain", "sparsereco.io"))
        chain, device = load_chain(args, config)
        if args.save_pedestal is not None:
            made = {**environment(record["command"]), "pedestal": args.pedestal}
            write_pedestal(args.save_pedestal, chain.pedestal, args.force, made)
        clock = time.perf_counter()
        advance = stack.enter_context(cli.progress("camera", total, "frames", args.quiet))
        for file in (writer, reduced):
            if file is not None:
                stack.enter_context(file)
        if client is not None:
            inputs = [Input(source.file, None, source.entries) for source in sources]

            def prepare(folder: Path) -> Job:
                return Job(config, shared_pedestal(args, chain, folder), device, args.seed, args.skip_bad_events)

            about = {"chain": chain.provenance(), "pedestal": args.pedestal, "device": device}
            trees = FRAMES, ROIS
            scaled.reconstruct(client, args, trees, process_unit, prepare, inputs, 1, about, writer, tally, advance)
        else:
            frames = iterate_frames([source.file for source in sources], start, stop, on_bad_file)
            process(chain, frames, writer, tally, args.skip_bad_events, advance, reduced)
        for file, schema in ((writer, FRAMES), (reduced, SPARSE_FRAMES)):
            if file is not None:
                file.provenance(
                    common.provenance_of(
                        args, record, chain.provenance(), device, tally, schema, pedestal=args.pedestal
                    )
                )
                file.close()  # both, before either has its name
    seconds = time.perf_counter() - clock
    return (
        f"{args.output}: {tally.events:,} frames, {tally.found['clusters']:,} clusters in {seconds:.1f} s on {device}, "
        f"of which {1000 * tally.found['seconds'] / max(tally.events, 1):.0f} ms per frame for the chain; "
        f"{len(skipped)} skipped"
    )


@dataclass(frozen=True)
class Job:
    """What a worker has to know."""

    config: CameraConfig
    pedestal: str
    """A pedmap file."""
    device: str
    seed: int
    skip_bad_events: bool


def shared_pedestal(args: jsonargparse.Namespace, chain: CameraChain, folder: Path) -> str:
    """A pedmap file for the workers: that of the command line, or one among the parts with what was measured."""
    from sparsereco.camera.pedestal import write_pedestal

    if is_pedestal(args.pedestal):
        return str(args.pedestal)
    path = folder.resolve() / "pedestal.root"
    write_pedestal(path, chain.pedestal, force=True)
    return str(path)


def process(
    chain: CameraChain,
    frames: Iterable[Frame],
    writer: RootWriter,
    tally: Tally,
    skip_bad_events: bool,
    advance: Callable[[int], None],
    reduced: RootWriter | None = None,
) -> None:
    """Reconstructs frames and writes them, one by one; those reduced to their regions too, where there is a file."""
    import awkward as ak

    from sparsereco.camera.sparse_frame import reduce_frame
    from sparsereco.schema import FRAMES, ROIS, SPARSE_FRAMES

    for schema in (FRAMES, ROIS):
        writer.create(schema.tree, schema)
    if reduced is not None:
        reduced.create(SPARSE_FRAMES.tree, SPARSE_FRAMES)
    for frame in frames:
        began = time.perf_counter()
        try:
            event = chain(frame)
        except InputError as error:
            if not skip_bad_events:
                raise
            tally.skipped.append(error)
            event = chain.empty(frame)
        tally.found["seconds"] += time.perf_counter() - began
        for schema in (FRAMES, ROIS):
            writer.extend(schema.tree, schema, ak.Array([event]))
        if reduced is not None:
            reduced.extend(SPARSE_FRAMES.tree, SPARSE_FRAMES, ak.Array([reduce_frame(frame, event)]))
        tally.read(frame.file, None, frame.entry, frame.entry + 1)
        tally.events += 1
        tally.found["clusters"] += len(event["sc_size"])
        advance(1)


def process_unit(job: Job, unit: Unit, writer: RootWriter) -> Tally:
    """Reconstructs the frames of a unit; runs on a worker."""
    from sparsereco.frames import iterate_frames
    from sparsereco.parts import Tally

    tally = Tally()
    frames = iterate_frames([unit.file], unit.entry_start, unit.entry_stop or None)
    process(job_chain(job), frames, writer, tally, job.skip_bad_events, lambda done: None)
    return tally


@functools.lru_cache(maxsize=1)
def job_chain(job: Job) -> CameraChain:
    """The chain of a job, loaded once per worker."""
    import torch

    from sparsereco.camera.chain import CameraChain
    from sparsereco.camera.pedestal import read_pedestal

    torch.manual_seed(job.seed)
    return CameraChain(read_pedestal(job.pedestal), job.config, job.device)


COMMAND = common.Command("camera frames to clusters", TEXT, parser, run)
