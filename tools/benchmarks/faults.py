"""What goes wrong in production, done on purpose: spoilt input files, killed runs, killed workers, full disks."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import awkward as ak
import jsonargparse
import numpy as np
import uproot

from sparsereco import cli
from sparsereco.io import HITS, RECO, RootWriter, read

TOOLS = Path(__file__).resolve().parent.parent
SAMPLE = TOOLS.parent / "tests" / "data" / "demo.root"

EVENTS = 24
"""Events of a file that is spoilt."""
TIME, MEMORY = 60, 4 << 30
"""What a run on a spoilt file may take: wall time [s], and memory beyond that of the libraries [bytes]."""

OPTIONS = ["--device", "cpu", "--batch_size", "16", "--light_scale", "0.87"]


def run(args: jsonargparse.Namespace) -> dict[str, Any]:
    """The whole campaign."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        result: dict[str, Any] = {}
        if args.files:
            result["files"] = spoilt_files(args.files, args.seed)
        if args.kills:
            result["kills"] = killed_runs(args.kills, args.seed)
        if args.worker_kills:
            result["worker_kills"] = killed_workers(args.worker_kills, args.seed)
        result["full_disk"] = full_disk()
    return result


# Files


def flip_bits(data: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice([1, 4, 32])):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def flip_header_bits(data: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice([1, 3])):
        data[draw.randrange(min(400, len(data)))] ^= 1 << draw.randrange(8)


def truncate(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data)) :]


def remove_block(data: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(data))
    del data[start : start + draw.choice([1, 8, 512])]


def overwrite_block(data: bytearray, draw: random.Random) -> None:
    start, length = draw.randrange(len(data)), draw.choice([4, 64, 1024])
    data[start : start + length] = draw.choice([bytes, draw.randbytes])(len(data[start : start + length]))


def absurd_count(data: bytearray, draw: random.Random) -> None:
    """A 32-bit number anywhere, most likely of the few hundred bytes of a header, becomes huge or negative."""
    start = draw.randrange(len(data) - 4)
    data[start : start + 4] = draw.choice(
        [b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\x40\x00\x00\x00", b"\x80" + bytes(3)]
    )


BYTES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    flip_bits,
    flip_header_bits,
    truncate,
    remove_block,
    overwrite_block,
    absurd_count,
)

VALUES = (np.nan, np.inf, -np.inf, 1e30, -1e30, 3.4e38, -1.0, 1e6, 1e-40)
TYPES = ("float64", "int32", "uint8", "bool", "string", "one", "none", "fixed")


def odd_values(path: Path, events: ak.Array, draw: random.Random) -> str:
    """A file with values that no detector gives."""
    branch, value = draw.choice(sorted(HITS.counters)), draw.choice(VALUES)
    lists = events[branch].tolist()
    for _ in range(draw.choice([1, 20])):
        hits = draw.choice(lists)
        if hits:
            hits[draw.randrange(len(hits))] = value
    with RootWriter(path, force=True) as writer, np.errstate(all="ignore"):
        writer.extend("hits", HITS, ak.with_field(events, ak.values_astype(ak.Array(lists), "float32"), branch))
    return f"{branch} {value}"


def odd_type(path: Path, events: ak.Array, draw: random.Random) -> str:
    """A file with a branch of another type than ours."""
    branch, kind = draw.choice([b.name for b in HITS.branches]), draw.choice(TYPES)
    columns = {b.name: events[b.name] for b in HITS.branches}
    n = len(events)
    if kind == "string":
        columns[branch] = ak.Array(["what"] * n)
    elif kind == "one":
        columns[branch] = np.ones(n)
    elif kind == "fixed":
        columns[branch] = np.ones((n, 3))
    elif kind == "none":
        del columns[branch]
    else:
        columns[branch] = ak.values_astype(columns[branch], kind)
    with uproot.recreate(path) as file:
        file.mktree("hits", {name: type_of(column) for name, column in columns.items()}).extend(columns)
    return f"{branch} {kind}"


def type_of(column: Any) -> Any:
    """As `mktree` wants it."""
    if isinstance(column, ak.Array):
        return ak.type(column).content
    return column.dtype if column.ndim == 1 else (column.dtype, column.shape[1:])


def spoilt_files(number: int, seed: int) -> dict[str, Any]:
    """Each gives a result or a one-line error, within bounds of time and memory."""
    events = read(SAMPLE, HITS)[:EVENTS]
    with RootWriter("sound.root") as writer:
        writer.extend("hits", HITS, events[: EVENTS // 2])
        writer.flush("hits")
        writer.extend("hits", HITS, events[EVENTS // 2 :])
    sound = Path("sound.root").read_bytes()
    tool = load_reco()
    outcomes: Counter[str] = Counter()
    failures = []
    peak = 0.0
    for i in range(number):
        draw = random.Random(f"{seed} {i}")
        path = Path("spoilt.root")
        kinds = (*BYTES, odd_values, odd_type)
        kind = kinds[i % len(kinds)]
        if kind in BYTES:
            data = bytearray(sound)
            kind(data, draw)
            path.write_bytes(data)
            what = kind.__name__
        else:
            what = f"{kind.__name__} {kind(path, events, draw)}"
        outcome, megabytes = in_child(tool, ["vertex", str(path), "-o", "out.root", "-f", "-q", *OPTIONS])
        peak = max(peak, megabytes)
        outcomes[outcome if outcome in ("result", "one-line error") else "failure"] += 1
        if outcome not in ("result", "one-line error"):
            failures.append(f"file {i}, {what}: {outcome}")
            print(failures[-1], flush=True)
    told = ", ".join(f"{outcomes[name]} {name}s" for name in ("result", "one-line error", "failure"))
    print(f"{number} spoilt files: {told}; largest process {peak:.0f} MB")
    return {"number": number, **outcomes, "failures": failures, "peak_mb": peak}


def load_reco() -> Any:
    """`tools/reco.py` with all that it imports, so that the children of this process need not."""
    sys.path.insert(0, str(TOOLS))
    tool = importlib.import_module("reco")
    importlib.import_module("torch").set_num_threads(1)
    importlib.import_module("sparsereco.vertex.chain")
    cli.main(tool.run, ["vertex", str(SAMPLE), "-o", "warm.root", "-f", "-q", "-n", "20", *OPTIONS])
    return tool


def in_child(tool: Any, argv: list[str]) -> tuple[str, float]:
    """Runs a tool in a fork of this process: what came of it, and the peak memory [MB]."""
    Path("out.root").unlink(missing_ok=True)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    child = os.fork()
    if child == 0:
        code = 99
        with contextlib.suppress(BaseException):
            errors = os.open("errors.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(errors, 2)
            signal.alarm(0)
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
            code = cli.main(tool.run, argv)
            sys.stderr.flush()
        os._exit(code)
    clock = time.monotonic()
    while (ended := os.wait4(child, os.WNOHANG))[0] == 0:
        if time.monotonic() - clock > TIME:
            os.kill(child, signal.SIGKILL)
            os.wait4(child, 0)
            return f"hung for {TIME} s", 0.0
        time.sleep(0.01)
    code = os.waitstatus_to_exitcode(ended[1])
    return judge(code, Path("errors.txt").read_text(), Path("out.root")), ended[2].ru_maxrss / 1024


def judge(code: int, errors: str, output: Path) -> str:
    """Whether a run ended as it should: with a whole output, or with one line and no output."""
    left = sorted(path.name for path in output.parent.glob(f"{output.name}*"))
    if code == cli.DONE:
        if errors or left != [output.name]:
            return f"done, but left {left} and said {errors[-300:]!r}"
        return "result" if len(read(output, RECO)) >= 0 else ""
    if code == cli.WRONG_INPUT and errors.startswith("error: ") and errors.count("\n") == 1 and not left:
        return "one-line error"
    return f"exit code {code}, left {left}, said {errors[-300:]!r}"


# Runs and workers


def reco(*argv: object, **how: Any) -> subprocess.Popen[str]:
    """Starts `tools/reco.py vertex` in a process of its own."""
    command = [sys.executable, str(TOOLS / "reco.py"), "vertex", *map(str, argv), *OPTIONS]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **how)


def finished(process: subprocess.Popen[str]) -> None:
    """Waits for a run that has to succeed."""
    _, errors = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"tools/reco.py failed with exit code {process.returncode}: {errors}")


def same_values(one: str, other: str) -> bool:
    """Whether two outputs hold the same, to the last bit."""
    return str(read(one, RECO).tolist()) == str(read(other, RECO).tolist())


def killed_runs(number: int, seed: int) -> dict[str, Any]:
    """Runs on workers, killed at a random moment: the output is absent or complete, and ``--resume`` completes it."""
    finished(reco(SAMPLE, "-o", "expected.root", "-n", 160))
    given = (SAMPLE, "-n", 160, "-o", "killed.root", "--workers", 1, "--unit-size", 16, "--resume", "-q")
    clock = time.monotonic()
    finished(reco(*given))
    whole = time.monotonic() - clock
    Path("killed.root").unlink()
    draw = random.Random(seed)
    survived = left_parts = kills = early = 0
    while kills < number:
        process = reco(*given, start_new_session=True)
        began = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0, whole))
        process.kill()
        process.communicate()
        complete = Path("killed.root").exists()
        if complete:  # a machine that is less busy than it was is faster
            whole = min(whole, time.monotonic() - began)
        kills += not complete
        early += complete
        left_parts += Path("killed.root.parts").exists()
        good = not complete or same_values("killed.root", "expected.root")
        if not complete:
            finished(reco(*given))
            good = same_values("killed.root", "expected.root") and not Path("killed.root.parts").exists()
        survived += good and not complete
        if not good:
            print(f"kill {kills}: other values, or parts that stay", flush=True)
        shutil.rmtree("killed.root.parts", ignore_errors=True)
        for path in Path().glob("killed.root*"):
            path.unlink()
    print(f"{kills} kills: {survived} survived; {left_parts} left parts, {early} came too late")
    return {"number": kills, "survived": survived, "left_parts": left_parts, "too_late": early}


def killed_workers(number: int, seed: int) -> dict[str, Any]:
    """Runs of 20 units on two workers, one of which is killed every few seconds: nothing is lost or doubled."""
    finished(reco(SAMPLE, SAMPLE, "-o", "expected.root", "-n", 320, "-f"))
    draw = random.Random(seed)
    killed = equal = runs = 0
    while killed < number:
        process = reco(SAMPLE, SAMPLE, "-n", 320, "-o", "lost.root", "-f", "--workers", 2, "--unit-size", 16)
        own = 0
        while process.poll() is None:
            time.sleep(draw.uniform(0.3, 3))
            victims = workers_of(process.pid) if Path("lost.root.parts").exists() and own < 3 else []
            if victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(draw.choice(victims), signal.SIGKILL)
                    own += 1
        finished(process)
        killed, runs = killed + own, runs + 1
        equal += same_values("lost.root", "expected.root")
    print(f"{killed} workers killed in {runs} runs of 20 units: {equal} runs of equal values")
    return {"killed": killed, "runs": runs, "equal": equal}


def workers_of(process: int) -> list[int]:
    """Processes that a run has started for its workers: those forked by the one that it has for that."""
    with contextlib.suppress(OSError):
        servers = [one for one in children(process) if b"forkserver" in Path(f"/proc/{one}/cmdline").read_bytes()]
        return [worker for server in servers for worker in children(server)]
    return []


def children(process: int) -> list[int]:
    """Processes that a process has started."""
    return [int(one) for path in Path(f"/proc/{process}/task").glob("*/children") for one in path.read_text().split()]


def full_disk() -> dict[str, Any]:
    """The disk is full in mid-write, by a limit on the size of files: one line, and the old output as it was."""
    told = {}
    for where, options in (("serial", []), ("workers", ["--workers", "1", "--unit-size", "64"])):
        output = Path(f"full_{where}.root")
        output.write_text("the old one")

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (40_000,) * 2)

        process = reco(SAMPLE, "-o", output, "-f", "-q", *options, preexec_fn=limit)
        _, errors = process.communicate()
        lines = [line for line in errors.splitlines() if "--resume goes on from there" not in line]
        good = process.returncode == cli.WRONG_INPUT and len(lines) == 1 and "cannot be written" in errors
        told[where] = {"good": good and output.read_text() == "the old one", "said": errors}
        print(f"full disk, {where}: {'one line, old output intact' if told[where]['good'] else told[where]}")
    return json.loads(json.dumps(told))
