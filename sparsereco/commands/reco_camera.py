"""`tools/reco.py camera`: camera frames to clusters."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonargparse

from sparsereco import cli
from sparsereco.commands import common
from sparsereco.errors import InputError

if TYPE_CHECKING:
    from sparsereco.camera.chain import CameraChain
    from sparsereco.camera.config import CameraConfig
    from sparsereco.camera.pedestal import Pedestal

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
    """The pedestal of the command line, written where that is asked for."""
    from sparsereco.camera.pedestal import write_pedestal

    if args.pedestal is None:
        raise InputError("no pedestal given: expected --pedestal FILE, a pedmap file or frames of a pedestal run")
    pedestal = read_or_measure(args.pedestal, args.quiet)
    if args.save_pedestal is not None:
        write_pedestal(args.save_pedestal, pedestal, args.force)
    return pedestal


def read_or_measure(path: str, quiet: bool) -> Pedestal:
    """A pedestal from a file with one, or from the frames of a run."""
    from sparsereco.camera.pedestal import measure_pedestal, read_pedestal
    from sparsereco.frames import iterate_frames, survey_frames

    if Path(path).suffix == ".root" and not is_run(path):
        return read_pedestal(path)
    total = sum(file.entries for file in survey_frames([path]))
    with cli.progress("pedestal", total, "frames", quiet) as advance:
        return measure_pedestal(counted(iterate_frames([path]), advance))


def is_run(path: str) -> bool:
    """Whether a ROOT file holds frames, not a pedestal that is made already."""
    from sparsereco.frames import survey_frames

    try:
        return survey_frames([path])[0].entries > 0
    except InputError:
        return False


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
    return CameraChain(load_pedestal(args), config, device), device


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

    import awkward as ak

    from sparsereco.camera.sparse_frame import reduce_frame
    from sparsereco.frames import iterate_frames, survey_frames
    from sparsereco.io import RootWriter
    from sparsereco.schema import FRAMES, ROIS, SPARSE_FRAMES

    if args.save_sparse == args.output:
        raise InputError(f"--save-sparse {args.save_sparse} is the output, too: expected another file")
    writer = RootWriter(args.output, force=args.force)
    reduced = None if args.save_sparse is None else RootWriter(args.save_sparse, force=args.force)
    on_bad_file = skipped.append if args.skip_bad_files else None
    sources = survey_frames(args.files, on_bad_file)
    start, stop = common.entry_range(args)
    total = common.selected(sum(source.entries for source in sources), start, stop)
    chain, device = load_chain(args, config)
    frames = clusters = 0
    spent = 0.0
    inputs: dict[str, dict[str, Any]] = {}
    clock = time.perf_counter()
    with ExitStack() as stack:
        advance = stack.enter_context(cli.progress("camera", total, "frames", args.quiet))
        for file, schemas in ((writer, (FRAMES, ROIS)), (reduced, (SPARSE_FRAMES,))):
            if file is not None:
                stack.enter_context(file)
                for schema in schemas:
                    file.create(schema.tree, schema)
        for frame in iterate_frames([source.file for source in sources], start, stop, on_bad_file):
            began = time.perf_counter()
            try:
                event = chain(frame)
            except InputError as error:
                if not args.skip_bad_events:
                    raise
                skipped.append(error)
                event = chain.empty(frame)
            spent += time.perf_counter() - began
            for schema in (FRAMES, ROIS):
                writer.extend(schema.tree, schema, ak.Array([event]))
            if reduced is not None:
                reduced.extend(SPARSE_FRAMES.tree, SPARSE_FRAMES, ak.Array([reduce_frame(frame, event)]))
            frames += 1
            clusters += len(event["sc_size"])
            first = {"file": frame.file, "entry_start": frame.entry}
            inputs.setdefault(frame.file, first)["entry_stop"] = frame.entry + 1
            advance(1)
        writer.provenance(
            common.provenance_of(
                args, record, chain.provenance(), device, inputs, skipped, FRAMES, pedestal=args.pedestal
            )
        )
    seconds = time.perf_counter() - clock
    return (
        f"{args.output}: {frames:,} frames, {clusters:,} clusters in {seconds:.1f} s on {device}, of which "
        f"{1000 * spent / max(frames, 1):.0f} ms per frame for the chain; {len(skipped)} skipped"
    )


COMMAND = common.Command("camera frames to clusters", TEXT, parser, run)
