"""`tools/reco.py` on many processes: the options for it, and a reconstruction in units of work."""

from __future__ import annotations

import logging
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonargparse

from sparsereco.commands import common
from sparsereco.errors import InputError

if TYPE_CHECKING:
    from sparsereco.parts import Input, Tally, Unit
    from sparsereco.scale import Client
    from sparsereco.schema import Schema
    from sparsereco.writer import RootWriter


def add_options(parser: jsonargparse.ArgumentParser, unit: str, size: int) -> None:
    """Adds what `wanted` and `reconstruct` read.

    Args:
        parser: of `tools/reco.py`.
        unit: what an entry of the input is, in the plural.
        size: default of ``--unit-size``.
    """
    add = parser.add_argument
    add("--workers", type=int | None, metavar="N", help="reconstruct in N processes of one thread each")
    add("--scheduler", type=str | None, metavar="ADDRESS", help="reconstruct on the workers of a running Dask cluster")
    add("--unit-size", type=int, default=size, metavar="N", help=f"{unit} that a worker does at a time")
    add(
        "--unit-timeout",
        type=float,
        default=3600,
        metavar="S",
        help="seconds after which a worker that is still at a unit is ended, and another tries",
    )
    add("--resume", action="store_true", help="go on with the parts (OUT.parts) that a run on workers left")


def wanted(args: jsonargparse.Namespace) -> bool:
    """Whether to reconstruct on workers.

    Raises:
        InputError: options that do not go together, or numbers that are none.
    """
    if args.workers is not None and args.scheduler is not None:
        raise InputError("--workers and --scheduler: expected one of them")
    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers: expected a positive number, got {args.workers}")
    if args.unit_size < 1:
        raise InputError(f"--unit-size: expected a positive number, got {args.unit_size}")
    if not 0 < args.unit_timeout < 1e6:
        raise InputError(f"--unit-timeout: expected a positive number of seconds, below 1e6, got {args.unit_timeout:g}")
    on_workers = args.workers is not None or args.scheduler is not None
    if args.resume and not on_workers:
        raise InputError("--resume goes on with a run on workers: expected --workers or --scheduler, too")
    return on_workers


@contextmanager
def workers(args: jsonargparse.Namespace, *modules: str) -> Iterator[Client | None]:
    """The workers that the command line asks for, None where it does not; local ones start while we go on.

    Goes around the output: at the end, if all went well, the output is whole and the parts are removed.

    Args:
        args: the command line.
        modules: what units import.

    Raises:
        InputError: as `wanted`, or the workers cannot be used.
    """
    if not wanted(args):
        yield None
        return
    from sparsereco import scale

    with scale.workers(args.workers, args.scheduler, modules) as client:
        scale.one_thread()  # what is found before the units begin does not depend on threads either
        yield client
    shutil.rmtree(f"{args.output}.parts", ignore_errors=True)


def reconstruct(
    client: Client,
    args: jsonargparse.Namespace,
    schemas: Iterable[Schema],
    process: Callable[[Any, Unit, RootWriter], Tally],
    prepare: Callable[[Path], Any],
    inputs: list[Input],
    batch_size: int,
    about: Mapping[str, Any],
    writer: RootWriter,
    tally: Tally,
    advance: Callable[[int], None],
) -> None:
    """Reconstructs in units on workers, and writes the parts into the output in the order of the input.

    Args:
        client: of the workers.
        args: the command line.
        schemas: of the trees of the output.
        process: does a unit on a worker, given the job.
        prepare: makes the job, given the folder of the parts, where it may leave files for the workers.
        inputs: the files.
        batch_size: entries that the chain takes together; units begin and end between batches, where they would without
            units, so that values do not depend on these.
        about: what the result depends on beside inputs and entry range.
        writer: of the output, opened.
        tally: takes what became of the entries.
        advance: is told how many entries are done.

    Raises:
        InputError: a unit failed and ``--skip-bad-files`` is not given, the parts are of another run, or workers cannot
            be used.
    """
    from sparsereco.parts import Parts, divide
    from sparsereco.scale import Task, run_units, software

    log = logging.getLogger("sparsereco")
    start, stop = common.entry_range(args)
    size = -(-args.unit_size // batch_size) * batch_size
    units = divide(inputs, start, stop, size)
    settings = {**about, "seed": args.seed, "skip_bad_events": args.skip_bad_events}
    files = [one.identity() for one in inputs]
    manifest = {"software": software(), "settings": settings, "entries": [start, stop], "unit": size, "inputs": files}
    parts = Parts(writer.path, manifest)
    parts.open(args.resume, args.force)

    left = []
    for unit in units:
        record = parts.record(unit) if args.resume else None
        if record is None:
            left.append(unit)
        else:
            advance(record["events"])
    if len(left) < len(units):
        log.info("%s: %d of %d units are done already", parts.folder, len(units) - len(left), len(units))

    for schema in schemas:
        writer.create(schema.tree, schema)
    folder, job = parts.folder.resolve(), prepare(parts.folder)
    task = Task(process, job, folder, parts.digest, Path.cwd(), software(), args.unit_timeout)
    failed: dict[int, InputError] = {}
    awaited = {unit.number for unit in left}
    unmerged, merging = deque(units), deque[Future[None]]()

    def merge(merger: Executor) -> None:
        """Has put into the output what is next there, as far as it is done; raises what went wrong with that before."""
        while unmerged and unmerged[0].number not in awaited:
            unit = unmerged.popleft()
            if unit.number not in failed:
                merging.append(merger.submit(parts.merge, unit, schemas, writer, tally))
        while merging and (merging[0].done() or not awaited):
            merging.popleft().result()

    with ThreadPoolExecutor(1) as merger:  # a thread, so that no worker waits for its next unit
        try:
            for outcome in run_units(client, task, left):
                if outcome.error is not None:
                    if not args.skip_bad_files:
                        raise outcome.error
                    failed[outcome.unit.number] = outcome.error
                awaited.remove(outcome.unit.number)
                advance(outcome.events)
                merge(merger)
            merge(merger)
        except BaseException:
            merger.shutdown(cancel_futures=True)
            done = sum(parts.path(unit).exists() for unit in units)
            log.warning("%s keeps %d of %d units; --resume goes on from there", parts.folder, done, len(units))
            raise
    tally.skipped += [failed[number] for number in sorted(failed)]
