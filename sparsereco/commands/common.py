"""What the subcommands of the tools share: how they are put together, and the options that every system has.

A file of this package is what one tool does for one system: a `Command` with its parser and what it runs. Light on
purpose, like `sparsereco.cli`: heavy libraries are imported in the functions that use them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonargparse
import yaml

from sparsereco import cli
from sparsereco.commands.outputs import check_outputs
from sparsereco.errors import InputError
from sparsereco.files import check_file

if TYPE_CHECKING:
    import awkward as ak

    from sparsereco.checks import BadEvent
    from sparsereco.io import Chunk, RootWriter, Source
    from sparsereco.parts import Tally
    from sparsereco.schema import BranchNames, ChargeBranchNames, Schema

_PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = (_PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent) / "configs"
"""The shipped settings: in the package where that comes from a wheel, else beside it in the checkout."""


@dataclass(frozen=True)
class Command:
    """One subcommand of a tool."""

    summary: str
    """A few words, for the help of the tool."""
    text: str
    """Head of its own help."""
    parser: Callable[[], jsonargparse.ArgumentParser]
    """Makes its parser, with ``text`` as description."""
    run: Callable[[jsonargparse.Namespace, list[str]], None]
    """Does the work, given the parsed arguments and the command line that they came from."""


def dispatch(description: str | None, what: str, commands: Mapping[str, Command], argv: list[str]) -> None:
    """Parses a command line and runs the subcommand that it asks for.

    Args:
        description: of the tool.
        what: what the subcommands are: system, stage, kind.
        commands: the subcommands by name.
        argv: the command line.
    """
    parser = cli.new_parser(description or "")
    subcommands = parser.add_subcommands(dest=what)
    for name, command in commands.items():
        # To collect a system's options takes longer than the rest of --help, so the others do without.
        own = command.parser() if argv[:1] == [name] else cli.new_parser(command.text)
        subcommands.add_subcommand(name, own, help=command.summary)
    args = parser.parse_args(argv)
    check_outputs(args[args[what]])
    commands[args[what]].run(args[args[what]], argv)


def reco_parser(text: str, unit: str, step_size: str | int) -> jsonargparse.ArgumentParser:
    """A parser with the options of `tools/reco.py` that every system has.

    Args:
        text: head of the help.
        unit: what an entry of the input is, in the plural.
        step_size: default of ``--step-size``.
    """
    parser = cli.new_parser(text)
    add = parser.add_argument
    add(
        "files", nargs="*", metavar="FILE[:TREE]", help="input: local files, globs or URLs; the usual tree unless named"
    )
    add("-o", "--output", type=str | None, metavar="OUT.root", help="output; appears when all is done")
    add("-f", "--force", action="store_true", help="replace an output that is there already")
    add("-c", "--config", action=cli.ConfigFile, metavar="FILE", help="settings as YAML; what is further right wins")
    add("--print-config", action="store_true", help="print all settings as YAML and stop")
    add("--check", action="store_true", help=f"open the inputs, print what they hold, {unit} and the chain, and stop")
    add("--entry-start", type=int | None, metavar="N", help="first entry, counted over all inputs together")
    add("--entry-stop", type=int | None, metavar="N", help="first entry not to read, counted likewise")
    add("-n", "--max-events", type=int | None, metavar="N", help=f"at most this many {unit}")
    add(
        "--step-size",
        type=int | str,
        default=step_size,
        metavar="SIZE",
        help=f"what to read at a time: {unit}, or memory",
    )
    add("--device", default="auto", help="torch device; auto is the GPU where there is one")
    add("--seed", type=int, default=0, help="seed of the random numbers")
    add("--skip-bad-files", action="store_true", help="go on after a file that cannot be read, list it at the end")
    add("--skip-bad-events", action="store_true", help=f"leave bad {unit} empty, list them at the end")
    cli.add_verbosity(parser)
    return parser


def run_reco(
    args: jsonargparse.Namespace,
    settings: Any,
    check: Callable[[list[InputError]], None],
    reconstruct: Callable[[dict[str, Any], list[InputError]], str],
    argv: list[str],
) -> None:
    """Does what a `reco_parser` was asked for: prints the settings, checks the inputs, or reconstructs.

    Args:
        args: the command line.
        settings: all settings, as plain values.
        check: prints what would be read, and by what it would be reconstructed.
        reconstruct: does the work, given the first entries of the provenance, and returns the summary.
        argv: the command line as it was given.

    ``check`` and ``reconstruct`` append to their list what did not stop them.
    """
    log = cli.set_up_logging(args.quiet, args.verbose)
    settings = json.loads(json.dumps(settings))
    if args.print_config:
        print(yaml.safe_dump(settings, sort_keys=False), end="")
        return
    if not args.files:
        raise InputError("no input given: expected FILE[:TREE]...")
    cli.check_step_size(args.step_size)

    skipped: list[InputError] = []
    if args.check:
        check(skipped)
    elif args.output is None:
        raise InputError("no output given: expected -o OUT.root")
    else:
        log.info(reconstruct({"command": ["reco.py", *argv], "config": settings}, skipped))
    for error in skipped:
        log.warning("skipped: %s", error)


def entry_range(args: jsonargparse.Namespace) -> tuple[int, int | None]:
    """First entry and first entry not to read, from the three options for it."""
    start = args.entry_start or 0
    stops = [args.entry_stop, None if args.max_events is None else start + args.max_events]
    return start, min((stop for stop in stops if stop is not None), default=None)


def print_sources(sources: Iterable[Source], schema: Schema) -> None:
    """What each file holds, and which of its branches is taken for which, on stdout."""
    for source in sources:
        print(f"{source.file}: tree '{source.tree}', {source.entries:,} events")
        for branch in schema.branches:
            unit = f" [{branch.unit}]" if branch.unit else ""
            print(f"  {branch.name + unit:15} from {source.names[branch.name] or '(none)'}")


def sound_events(
    chunk: Chunk,
    bad: list[BadEvent],
    names: BranchNames | ChargeBranchNames,
    schema: Schema,
    skipped: list[InputError] | None,
) -> ak.Array:
    """The events of a chunk; bad ones stop the run, or lose their hits and join ``skipped`` where that is given."""
    from sparsereco.io import drop_hits

    if not bad:
        return chunk.events
    errors = [event.error(chunk, names) for event in bad]
    if skipped is None:
        raise errors[0]
    skipped.extend(errors)
    return drop_hits(chunk.events, [event.offset for event in bad], schema)


def answered(
    chain: Callable[[ak.Array], ak.Array],
    chunks: Iterable[Chunk],
    check: Callable[[ak.Array], list[BadEvent]],
    names: BranchNames | ChargeBranchNames,
    schemas: tuple[Schema, Schema],
    skip_bad_events: bool,
    writer: RootWriter,
    tally: Tally,
    advance: Callable[[int], None],
) -> Iterator[ak.Array]:
    """Reconstructs events and writes them, chunk by chunk; yields what was written, to be counted.

    Args:
        chain: of a system.
        chunks: as large as the chain takes them.
        check: finds the bad events of a chunk.
        names: what the inputs call their branches.
        schemas: of the input and of the output.
        skip_bad_events: whether bad events lose their hits; else they stop the run.
        writer: of the output.
        tally: takes what became of the entries.
        advance: is told how many events are done.
    """
    given, made = schemas
    writer.create(made.tree, made)
    for chunk in chunks:
        bad = check(chunk.events)
        found = chain(sound_events(chunk, bad, names, given, tally.skipped if skip_bad_events else None))
        writer.extend(made.tree, made, found)
        tally.read(chunk.file, chunk.tree, chunk.entry_start, chunk.entry_stop, uuid=chunk.uuid)
        tally.events += len(found)
        yield found
        advance(len(found))
        cli.release_memory()


def provenance_of(
    args: jsonargparse.Namespace,
    record: Mapping[str, Any],
    chain: Mapping[str, Any],
    device: str,
    tally: Tally,
    schema: Schema,
    **more: Any,
) -> dict[str, Any]:
    """What a reconstruction writes about itself.

    Args:
        args: the command line.
        record: the first entries, from `run_reco`.
        chain: the chain's own account.
        device: that it ran on.
        tally: what became of the entries.
        schema: of the output.
        more: what only this system has to say.
    """
    from sparsereco.provenance import environment

    return {
        **environment(record["command"]),
        "config": record["config"],
        "chain": chain,
        **more,
        "device": device,
        "seed": args.seed,
        "inputs": list(tally.inputs.values()),
        "skipped": [str(error) for error in tally.skipped],
        "units": schema.units,
    }


def selected(total: int, start: int, stop: int | None) -> int:
    """Number of entries in a range, of ``total`` in all inputs."""
    return max(min(total, total if stop is None else stop) - start, 0)


def simulate_parser(text: str, what: str) -> jsonargparse.ArgumentParser:
    """A parser with the options of `tools/simulate.py` that every sample has.

    Args:
        text: head of the help.
        what: what is simulated, in the plural.
    """
    parser = cli.new_parser(text)
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="output; appears when all is done")
    parser.add_argument("-n", "--number", type=int, required=True, metavar="N", help=f"number of {what}")
    parser.add_argument("--seed", type=int, required=True, metavar="N", help="seed; the same one gives the same file")
    parser.add_argument("-f", "--force", action="store_true", help="replace an output that is there already")
    cli.add_verbosity(parser)
    return parser


def check_number(number: int) -> None:
    """Holds ``-n`` of a simulation to a positive number.

    Raises:
        InputError: it is none.
    """
    if number < 1:
        raise InputError(f"-n: expected a positive number, got {number}")


def run_of(seed: int) -> int:
    """Run number of simulated events: the seed, so that samples with another one are told apart."""
    return seed % 2**31


def check_banks(banks: Iterable[str], maker: str = "bank") -> None:
    """Holds banks of tracks to files that are there.

    Args:
        banks: paths.
        maker: the subcommand of `tools/simulate.py` that makes them.

    Raises:
        InputError: one is missing.
    """
    for bank in banks:
        if not Path(bank).is_file():
            make = f"tools/simulate.py {maker} -o {bank} -n N --seed N"
            raise InputError(f"there is no bank {bank}; make it with: {make}", file=bank)


def write_bank(args: jsonargparse.Namespace, make: Callable[[int, int, Callable[[int], None]], Any]) -> None:
    """Does what a `simulate_parser` was asked for where the sample is a bank of tracks.

    Args:
        args: the command line.
        make: simulates so many tracks from a seed, tells how many are done, and returns what has ``save``.
    """
    log = cli.set_up_logging(args.quiet, args.verbose)
    check_number(args.number)
    check_file(Path(args.output), args.force)
    if Path(args.output).suffix != ".npz":
        raise InputError(f"output {args.output}: expected a name that ends in .npz", file=args.output)
    with cli.progress("tracks", args.number, "tracks", args.quiet) as advance:
        make(args.number, args.seed, advance).save(args.output)
    log.info("%s: %s tracks", args.output, f"{args.number:,}")


def evaluate_parser(text: str) -> jsonargparse.ArgumentParser:
    """A parser with the options of `tools/evaluate.py` that every report has; its inputs are the system's."""
    parser = cli.new_parser(text)
    parser.add_argument("-o", "--output", required=True, metavar="REPORT_DIR", help="directory of the report")
    parser.add_argument("-f", "--force", action="store_true", help="replace a report that is there already")
    parser.add_argument("--pdf", action="store_true", help="figures as PDF, too")
    cli.add_verbosity(parser)
    return parser


def print_table(
    title: str, rows: tuple[tuple[str, ...], ...], note: str, header: tuple[str, ...] = ("quantity", "value", "entries")
) -> None:
    """The summary of a report on stdout, whole also where the terminal is narrow.

    Args:
        title: of the table.
        rows: one value per column.
        note: printed below.
        header: names of the columns.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", title_style="")
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    if note:
        console.print(note, markup=False)
