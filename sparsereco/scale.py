"""Units of work on many processes: local ones, or those of a running Dask cluster, by the same code.

A worker is a process that does one unit at a time and leaves a part file (see `parts`). What a worker is given says all
that it needs; nothing but the account of a unit comes back. A worker that is lost costs its unit one attempt, and so
does an error that is not the input's; another worker tries again.
"""

from __future__ import annotations

import faulthandler
import functools
import logging
import os
import queue
import re
import signal
import socket
import time
import uuid
from collections import deque
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
    from distributed import Client as Client
    from distributed import Future

RETRIES = 3
"""Further attempts at a unit after an error; after the loss of a worker Dask allows as many."""
CONNECT = "10s"
"""How long to wait for a scheduler."""
START = 120
"""How long to wait where there is no local worker [s]."""
LOOK = 0.5
"""How often to look for workers that have come [s]."""
SETTINGS: dict[str, Any] = {
    "logging.distributed": "critical",
    "distributed.worker.multiprocessing-method": "forkserver",
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.nanny.pre-spawn-environ.PYTHONSAFEPATH": "1",
}
"""Of Dask, for local processes: what it finds out about them, for a dashboard, takes time from them. The last one: what
lies in the working directory is no module of theirs."""


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
    time_limit: float
    """A worker that takes longer for a unit ends [s]."""


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
def workers(number: int | None, scheduler: str | None, modules: Iterable[str] = ()) -> Iterator[Client]:
    """A client of local processes of its own, or of a cluster that is running.

    Local ones start while the client goes on; `run_units` gives them work as they come.

    Args:
        number: of local processes, of one thread each.
        scheduler: else the address of a Dask scheduler.
        modules: what the work imports, to be loaded once for all local processes.

    Raises:
        InputError: Dask is not installed, the scheduler is not reached, or a worker has another version of us.
    """
    try:
        import dask
        import distributed
        from distributed.comm.addressing import get_address_host_port
    except ImportError as error:
        raise InputError("--workers and --scheduler need dask: pip install 'sparsereco[scale]'") from error
    # What Dask says of lost workers and failed units is told by `run_units`, in one line each.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    if scheduler is not None:
        try:
            get_address_host_port(scheduler)  # a Client of what is no address fails again at its end
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
    with dask.config.set(SETTINGS), environment_kept():
        # A process that has loaded everything forks the workers, and those that replace lost ones.
        distributed.utils.get_mp_context().set_forkserver_preload(["distributed", *modules])
        with _interrupt_held():
            cluster = distributed.LocalCluster(
                n_workers=0,
                threads_per_worker=1,
                dashboard_address="127.0.0.1:0",  # None is port 8787, with a warning where another run has it
                memory_limit=0,  # a worker that Dask pauses for its memory would never go on
                scheduler_kwargs={"dashboard": False},
                silence_logs=logging.CRITICAL,
            )
            cluster.scale(number)
        with cluster, distributed.Client(cluster, set_as_default=False) as client:
            yield client


@contextmanager
def environment_kept() -> Iterator[None]:
    """Takes out of the environment again what is put there for processes to come: it is that of this process, too."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


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
    attempt = uuid.uuid4().hex  # else Dask might answer with what it still knows of a run before
    waiting = deque(units)
    handed: dict[Any, Unit] = {}
    done: queue.SimpleQueue[Future] = queue.SimpleQueue()
    scheduler: Any = client.scheduler

    def hand_out() -> bool:
        """One unit per thread of the workers that are there: one that waits at a worker would die with it, too."""
        threads = sum(client.sync(scheduler.ncores_running).values())
        while waiting and len(handed) < threads:
            unit = waiting.popleft()
            future = client.submit(work, task, unit, key=f"unit-{unit.number}-{attempt}", retries=RETRIES)
            handed[future.key] = unit
            future.add_done_callback(done.put)
        return threads > 0

    alive = time.monotonic()
    try:
        while waiting or handed:
            try:
                future = done.get(timeout=LOOK)
            except queue.Empty:
                if hand_out() or client.cluster is None:  # those of a cluster may come when they like
                    alive = time.monotonic()
                elif time.monotonic() - alive > START:
                    raise InputError(f"no worker has started for {START} s: is there memory for --workers?") from None
                continue
            unit = handed.pop(future.key)
            outcome = _outcome(task, unit, future)
            hand_out()  # before the caller takes its time
            yield outcome
    finally:
        client.cancel(list(handed), force=True)


def _outcome(task: Task, unit: Unit, future: Future) -> Outcome:
    """What a future that is done says of its unit.

    Raises:
        InputError: as `run_units`.
    """
    from distributed import CancelledError, KilledWorker

    error = future.exception()
    if error is None:
        outcome: Outcome = future.result()
        return outcome
    if isinstance(error, InputError):
        raise error
    if isinstance(error, CancelledError):
        raise InputError("the scheduler is gone; what is done stays, --resume goes on from there")
    if isinstance(error, KilledWorker):
        return Outcome(unit, error=InputError(f"{unit.name}: given up, {_death(task, unit)}"))
    told = " ".join(f"{type(error).__name__}: {error}".split())
    return Outcome(unit, error=InputError(f"{unit.name}: given up after {RETRIES + 1} attempts, {told}"))


def _death(task: Task, unit: Unit) -> str:
    """Of what the workers died that tried a unit."""
    report = _stuck(task, unit)
    threads = report.read_text().split("Thread ") if report.exists() else []
    ours = [thread for thread in threads if f"{__file__}" in thread]
    if not ours:
        return "the workers that tried it died"
    file, line, function = re.findall(r'File "(.*)", line (\d+) in (.*)', ours[0])[0]
    where = f"{function} ({Path(file).name}, line {line})"
    return f"it took longer than --unit-timeout {task.time_limit:g} s, the last time in {where}"


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
    one_thread()
    try:
        with _time_limit(_stuck(task, unit), task.time_limit):
            events = write_part(task.parts, unit, task.run, lambda writer: task.process(task.job, unit, writer))
    except OutputError:
        raise
    except InputError as error:
        return Outcome(unit, error=error)
    return Outcome(unit, events)


@contextmanager
def _time_limit(report: Path, seconds: float) -> Iterator[None]:
    """Ends this process if something takes too long, wherever it hangs, and reports where that is.

    The watch is a thread of its own that needs nothing of Python, so it comes through where a library holds its lock.
    """
    try:
        file = report.open("w")
    except OSError as error:
        raise OutputError(f"{report} cannot be written: {error.strerror}", file=str(report)) from error
    with file:
        faulthandler.dump_traceback_later(seconds, exit=True, file=file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            report.unlink(missing_ok=True)


def _stuck(task: Task, unit: Unit) -> Path:
    """Where a worker that took too long for a unit reports what it was doing."""
    return task.parts / f"{unit.number:07d}.stuck"


def one_thread() -> None:
    """Has this process compute with one thread, wherever its threads would come from, and keep its memory together."""
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
