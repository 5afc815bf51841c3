"""What all command-line tools share: exit codes, one-line errors, options from dataclasses, progress.

Light on purpose: a tool prints its help before torch, uproot or awkward are imported.
"""

from __future__ import annotations

import ctypes
import dataclasses
import difflib
import logging
import os
import re
import select
import signal
import sys
import traceback
from argparse import SUPPRESS, ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import jsonargparse
import yaml
from jsonargparse._actions import ActionConfigFile  # the package has it, but not in its __all__

from sparsereco import __version__
from sparsereco.errors import InputError

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
"""The exit codes of every tool."""

Settings = TypeVar("Settings")


def main(run: Callable[[list[str]], None], argv: list[str] | None = None) -> int:
    """Runs a tool and turns its outcome into an exit code; a tool ends with ``sys.exit(main(run))``.

    Args:
        run: does the work, given the arguments.
        argv: the arguments; by default those of the process.

    Returns:
        0 done, 1 failed while running, 2 wrong usage, setting, file or branch, 130 interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    verbose = "-v" in argv or "--verbose" in argv  # needed before, and if ever, the arguments are parsed
    # A batch system ends a job with SIGTERM: it cleans up like Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    keep_memory_together()
    wait_briefly()
    try:
        run(argv)
        sys.stdout.flush()
    except BrokenPipeError as error:
        return FAILED if _nobody_reads() else _failed(error, verbose)
    except SystemExit as stop:  # --help and --version
        return stop.code if isinstance(stop.code, int) else DONE
    except KeyboardInterrupt:
        _complain("interrupted", verbose)
        return INTERRUPTED
    except (InputError, ArgumentError) as error:
        _complain(str(error), verbose)
        return WRONG_INPUT
    except Exception as error:  # the one place where nothing may pass
        return _failed(error, verbose)
    return DONE


def _failed(error: Exception, verbose: bool) -> int:
    """Says what nobody has foreseen."""
    _complain(f"{type(error).__name__}: {error}" + ("" if verbose else " (-v shows where)"), verbose)
    return FAILED


def _nobody_reads() -> bool:
    """Whether stdout is a pipe that was closed, as by ``head``; what is left to say then goes nowhere."""
    pipe = select.poll()
    pipe.register(1)
    if not any(event & select.POLLERR for _, event in pipe.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return True


def keep_memory_together() -> None:
    """Has glibc keep one arena of memory, not one per thread: what one has free, the others cannot use."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # other C libraries go without
        library.mallopt(_M_ARENA_MAX, 1)


def wait_briefly() -> None:
    """Has threads that wait for others soon sleep, if torch is not there yet and the user has not said otherwise.

    By default those of libgomp spin for milliseconds: of two reconstructions at once, on as many cores as each has
    threads, most of the time goes into waiting for threads that have no core to run on. A thousand rounds are what it
    takes itself where it knows that threads are more than cores.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def keep_free_memory() -> None:
    """Has glibc keep memory that is free until `release_memory`, however small Dask has set the threshold for a worker.

    Dask's 64 kB have pages given and taken with every layer of a network: a fifth of a worker's processor time.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        library.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest that it takes


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of <malloc.h>


def release_memory() -> None:
    """Gives memory that is free back to the system, where the C library is glibc.

    Blocks of ever other sizes come and go with each batch of events and leave gaps: without this, memory grows with the
    length of a run.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def _complain(message: str, verbose: bool) -> None:
    """Writes one line to stderr, after the traceback where that is wanted."""
    if verbose:
        traceback.print_exc()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201


def new_parser(description: str) -> jsonargparse.ArgumentParser:
    """A parser with ``--version``, whose errors are raised and whose options may not be abbreviated.

    The help of options that come from a dataclass is the docstring of the field.
    """
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        description=description, exit_on_error=False, allow_abbrev=False, formatter_class=_HelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"sparsereco {__version__}")
    return parser


class _HelpFormatter(RawDescriptionHelpFormatter, jsonargparse.DefaultHelpFormatter):
    """Keeps the line breaks of descriptions and examples."""


class ConfigFile(ActionConfigFile):
    """A YAML file of settings, as the action of an option."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: Any = None) -> None:
        """Reads the file; what in it is wrong is told by the file, the key, and the value or the nearest setting."""
        if Path(values).is_file():
            with suppress(yaml.YAMLError, UnicodeDecodeError):  # jsonargparse tells where the YAML is wrong
                settings = yaml.safe_load(Path(values).read_text())
                if not isinstance(settings, dict):
                    got = "nothing" if settings is None else f"a {type(settings).__name__}"
                    raise InputError(f"{values}: expected settings as 'name: value', got {got}", file=values)
                check_keys(parser, settings, values)
                for name in (action.dest for action in parser._actions if isinstance(action, jsonargparse.ActionYesNo)):
                    if not isinstance(settings.get(name, True), bool):  # jsonargparse would not say which setting
                        raise InputError(f"{values}: {name}: expected true or false, got {settings[name]!r}")
        try:
            super().__call__(parser, cfg, values, option_string)
        except (ArgumentError, TypeError, ValueError) as error:
            raise InputError(f"{values}: {error}", file=values) from error


def check_keys(parser: jsonargparse.ArgumentParser, values: Any, file: str) -> None:
    """Holds what a file sets to the settings that there are.

    Args:
        parser: has an option for each setting.
        values: content of the file.
        file: for the error.

    Raises:
        InputError: a key is no setting.
    """
    known = {
        action.dest
        for action in parser._actions
        if action.default != SUPPRESS and not isinstance(action, ActionConfigFile)  # as --help, --config
    }
    for key in _keys(values):
        if key in known or any(name.startswith(f"{key}.") for name in known):
            continue
        section = f"{key.rpartition('.')[0]}."
        start = len(section) if any(name.startswith(section) for name in known) else 0
        beside = {name[start:] for name in known if name.startswith(key[:start])}
        near = difflib.get_close_matches(key[start:], beside, 1)
        names = near or sorted({name.partition(".")[0] for name in beside})
        told = ", ".join(f"{key[:start]}{name}" for name in names)
        raise InputError(f"{file}: no setting '{key}'; {'nearest' if near else 'there are'}: {told}", file=file)


def _keys(values: Any, section: str = "") -> Iterator[str]:
    """The keys of nested mappings, with the sections that they are in before them."""
    for key, value in values.items() if isinstance(values, dict) else []:
        if isinstance(value, dict) and value:
            yield from _keys(value, f"{section}{key}.")
        else:
            yield f"{section}{key}"


def add_verbosity(parser: jsonargparse.ArgumentParser) -> None:
    """Adds ``-q`` and ``-v``."""
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing but warnings and errors")
    parser.add_argument("-v", "--verbose", action="store_true", help="say more; show tracebacks")


def set_up_logging(quiet: bool, verbose: bool) -> logging.Logger:
    """Sends the messages of the package to stderr as they are, and returns its logger."""
    log = logging.getLogger("sparsereco")
    log.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers = [handler]
    return log


def build(kind: type[Settings], values: jsonargparse.Namespace, key: str = "") -> Settings:
    """A settings dataclass, and those inside it, from parsed arguments.

    Args:
        kind: the dataclass.
        values: has all its fields; may have more.
        key: where it stands in the configuration, for errors.

    Raises:
        InputError: A value is out of its range, or a section is no section.
    """
    types = get_type_hints(kind)
    arguments = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        value, name = values[field.name], f"{key}{field.name}"
        if dataclasses.is_dataclass(types[field.name]):
            if not isinstance(value, jsonargparse.Namespace):
                keys = ", ".join(inner.name for inner in dataclasses.fields(types[field.name]))
                raise InputError(f"{name}: expected a section with the keys {keys}, got {value!r}")
            value = build(types[field.name], value, f"{name}.")
        arguments[field.name] = value
    try:
        return kind(**arguments)
    except ValueError as error:
        raise InputError(str(error)) from error


def check_step_size(step_size: int | str) -> None:
    """Holds ``--step-size`` to a number of events, or memory with its unit.

    Raises:
        InputError: It is neither.
    """
    memory = re.fullmatch(r"(\d+(?:\.\d+)?) *[kMGT]i?B", step_size) if isinstance(step_size, str) else None
    if not (float(memory[1]) if memory else isinstance(step_size, int) and step_size) > 0:
        raise InputError(f'--step-size: expected a number of events or memory like "100 MB", got {step_size!r}')


def choose_device(name: str) -> str:
    """The torch device to use; ``auto`` is the GPU where there is one.

    Raises:
        InputError: There is no such device here.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise InputError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    return name


@contextmanager
def progress(task: str, total: int, unit: str, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; nothing where stderr is no terminal.

    Args:
        task: what is going on.
        total: how much there is to do.
        unit: of what, in the plural.
        quiet: show nothing.

    Yields:
        A function to call with the number just done.
    """
    from rich import progress as bars
    from rich.console import Console

    console = Console(stderr=True)
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.TextColumn("{task.completed:,.0f}/{task.total:,.0f} " + unit),
        bars.TextColumn("{task.fields[rate]} " + unit + "/s"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True) as bar:
        row = bar.add_task(task, total=total, rate="-")

        def advance(done: int) -> None:
            bar.advance(row, done)
            speed = bar.tasks[row].finished_speed or bar.tasks[row].speed
            bar.update(row, rate=f"{speed:,.0f}" if speed else "-")

        yield advance
