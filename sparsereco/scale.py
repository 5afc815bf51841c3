"""Units of work on many processes: local ones, or those of a running Dask cluster, by the same code.

A worker is a process that does one unit at a time and leaves a part file (see `parts`). What a worker is given says all
that it needs; nothing but the account of a unit comes back. A worker that is lost costs its unit one attempt, and so
does an error that is not the input's; another worker tries again.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import signal
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsereco import __version__
from sparsereco.errors import InputError, OutputError
from sparsereco.parts import Tally, Unit, write_part
from sparsereco.provenance import git_revision
from sparsereco.writer import RootWriter

if TYPE_CHECKING:
    from distributed import Client

RETRIES = 3
"""Further attempts at a unit after an error; after the loss of a worker Dask allows as many."""
CONNECT = "10s"
"""How long to wait for a scheduler."""


@dataclass(frozen=True)
class Task:
    """What all units of a run have in common."""

    process: Callable[[Any, Unit, RootWriter], Tally]
    """Does a unit with the job; a function that workers can import."""
    job: Any
    """All that it has to know, to be pickled."""
    parts: Path
    """Folder of the part files."""
    run: str
    """Digest of the manifest."""
    here: Path
    """Working directory of the client; what is relative is so to this."""
    software: str
    """`software` of the client."""


@dataclass(frozen=True)
class Outcome:
    """What came of a unit."""

    unit: Unit
    events: int = 0
    error: InputError | None = None
    """Why there is no part file."""


@functools.cache
def software() -> str:
    """Version and commit of this package: workers of another one may give other values."""
    revision = git_revision()
    return __version__ if revision is None else f"{__version__} ({revision})"


@contextmanager
def workers(number: int | None, scheduler: str | None) -> Iterator[Client]:
    """A client of local processes of its own, or of a cluster that is running.

    Args:
        number: of local processes, of one thread each.
        scheduler: else the address of a Dask scheduler.

    Raises:
        InputError: Dask is not installed, the scheduler is not reached, or a worker has another version of us.
    """
    try:
        import dask
        import distributed
    except ImportError as error:
        raise InputError("--workers and --scheduler need dask: pip install 'sparsereco[scale]'") from error
    # What Dask says of lost workers and failed units is told by `run_units`, in one line each.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    if scheduler is not None:
        try:
            client = distributed.Client(scheduler, timeout=CONNECT, set_as_default=False)
        except Exception as error:  # of as many kinds as there are wrong addresses
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"--scheduler {scheduler} cannot be reached: {reason}; expected the address that dask-scheduler tells, "
                "like tcp://host:8786"
            ) from error
        with client:
            _check_software(client)
            yield client
        return
    with dask.config.set({"logging.distributed": "critical"}), _interrupt_held():
        # Without a limit of Dask's: a worker that it pauses for its memory would never go on.
        cluster = distributed.LocalCluster(
            n_workers=number,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",  # None is port 8787, with a warning where another run has it
            scheduler_kwargs={"dashboard": False},
            memory_limit=0,
            silence_logs=logging.CRITICAL,
        )
    with cluster, distributed.Client(cluster, set_as_default=False) as client:
        yield client


@contextmanager
def _interrupt_held() -> Iterator[None]:
    """Puts off Ctrl-C; threads and processes that start meanwhile never see it: the client ends them in order."""
    resource_tracker.ensure_running()  # it lets signals through again where it is started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_units(client: Client, task: Task, units: Iterable[Unit]) -> Iterator[Outcome]:
    """Does units on the workers of a client, and yields what came of each as it comes.

    Raises:
        InputError: what no further attempt would change: the parts cannot be written, or workers cannot be used.
    """
    from distributed import CancelledError, KilledWorker, as_completed

    attempt = uuid.uuid4().hex  # else Dask might answer with what it still knows of a run before
    waiting = iter(units)
    handed: dict[Any, Unit] = {}

    def hand_out() -> list[Any]:
        """One unit per thread of the workers that are there: one that waits at a worker would die with it, too."""
        free = max(sum(client.nthreads().values()), 1) - len(handed)
        futures = {}
        for unit in itertools.islice(waiting, max(free, 0)):
            key = f"unit-{unit.number}-{attempt}"
            futures[client.submit(work, task, unit, key=key, retries=RETRIES)] = unit
        handed.update(futures)
        return list(futures)

    done = as_completed(hand_out(), loop=client.loop)
    try:
        for future in done:
            unit = handed.pop(future)
            error = future.exception()
            if error is None:
                yield future.result()
            elif isinstance(error, InputError):
                raise error
            elif isinstance(error, CancelledError):
                raise InputError("the scheduler is gone; what is done stays, --resume goes on from there")
            elif isinstance(error, KilledWorker):
                yield Outcome(unit, error=InputError(f"{unit.name}: given up, the workers that tried it died"))
            else:
                told = " ".join(f"{type(error).__name__}: {error}".split())
                message = f"{unit.name}: given up after {RETRIES + 1} attempts, {told}"
                yield Outcome(unit, error=InputError(message))
            done.update(hand_out())
    finally:
        client.cancel(list(handed), force=True)


def work(task: Task, unit: Unit) -> Outcome:
    """Does a unit; runs on a worker.

    Raises:
        InputError: this worker cannot be used, or cannot write.
    """
    who = f"worker {socket.gethostname()}, process {os.getpid()},"
    if software() != task.software:
        raise InputError(f"{who} has sparsereco {software()}, expected {task.software} as here")
    if not task.parts.is_dir():
        raise OutputError(f"{who} sees no folder {task.parts}", file=str(task.parts))
    os.chdir(task.here)
    _one_thread()
    try:
        events = write_part(task.parts, unit, task.run, lambda writer: task.process(task.job, unit, writer))
    except OutputError:
        raise
    except InputError as error:
        return Outcome(unit, error=error)
    return Outcome(unit, events)


def _one_thread() -> None:
    """Has a worker compute with one thread, wherever its threads would come from, and keep its memory together."""
    import torch

    from sparsereco.cli import keep_free_memory, keep_memory_together

    keep_memory_together()
    keep_free_memory()
    torch.set_num_threads(1)


def _check_software(client: Client) -> None:
    """Refuses workers of another version before they are given anything; those that come later refuse themselves."""
    for address, found in client.run(software, on_error="return").items():
        if found != software():
            has = f"cannot say which: {found!r}" if isinstance(found, Exception) else str(found)
            raise InputError(
                f"worker {address} has another version of sparsereco: {has}, expected {software()} as here"
            )
