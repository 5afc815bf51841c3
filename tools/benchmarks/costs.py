"""What a production is planned from: time, memory and bytes per event of each system, and what a unit costs."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.chain import TOOLS, measure
from benchmarks.scale import account


@dataclass(frozen=True)
class System:
    """A system as its whole runs show it, file to file on one thread."""

    name: str
    unit: str
    """What an entry is."""
    seconds: float
    """Processor time of an entry [s], start of the process left out."""
    start: float
    """Processor time of the start [s]."""
    peak_mb: float
    """Resident memory [MB]."""
    read: float
    """Bytes of input per entry."""
    written: float
    """Bytes of output per entry."""


@dataclass(frozen=True)
class Costs:
    """What a run of the vertex chain on workers is made of, in processor time."""

    batches: NDArray[np.float64]  # (B,) [s]
    """Of whole batches on a worker, reading and writing included."""
    batch: int
    """Events of each."""
    unit: float
    """Of a unit besides its batches [s]: files opened and closed."""
    merge: float
    """Of putting an event into the output [s]."""
    hand: float
    """Of the client and its scheduler for a unit [s]."""
    operations: float
    """Multiply-adds of the networks for an event."""
    calls: float
    """Operators that the networks call for a batch."""
    networks: float
    """Share of the networks in the time of the batches."""


def systems(folder: Path, args: Any) -> Iterator[System]:
    """Whole runs of two lengths of every system, on samples made for it."""
    vertex, infill, camera = args.events, max(args.events // 4, 64), max(args.events // 250, 4)
    bank = ["--bank", args.bank] if args.bank else []
    lar_bank = ["--bank", args.lar_bank] if args.lar_bank else []
    yield system(folder, "vertex", "events", vertex, bank, [])
    yield system(folder, "vertex", "events", vertex // 8, bank, ["--refine"])
    yield system(folder, "infill", "events", infill, ["--detector", "gap10", *lar_bank], ["--detector", "gap10"])
    pedestal = folder / "pedestal.root"
    measure("simulate.py", ["camera", "-o", pedestal, "-n", 10, "--seed", 1, "--tracks", 0, "-q"])
    averaged = folder / "averaged.root"  # once, not in every run
    frame = folder / "frame.root"
    measure("simulate.py", ["camera", "-o", frame, "-n", 1, "--seed", 2, "-q"])
    given: list[object] = ["--pedestal", pedestal, "--save-pedestal", averaged, "-o", folder / "one.root"]
    measure("reco.py", ["camera", frame, *given, "-q"])
    yield system(folder, "camera", "frames", camera, ["--tracks", 6], ["--pedestal", averaged])


def system(folder: Path, name: str, unit: str, number: int, made: list[Any], options: list[Any]) -> System:
    """A sample, and what the runs on all of it and on an eighth of it differ by."""
    sample, output = folder / f"{name}{number}.root", folder / "reco.root"
    measure("simulate.py", [name, "-o", sample, "-n", number, "--seed", 1, "-q", *made])
    few = max(number // 8, 1)
    given = [name, sample, "-o", output, "-f", "-q", "--device", "cpu", *options]
    short, long = (account(0, [*given, "-n", n]) for n in (few, number))
    seconds = (long.client - short.client) / (number - few)
    told = f"{name}, refined" if "--refine" in options else name
    sizes = (path.stat().st_size / number for path in (sample, output))
    return System(told, unit, seconds, short.client - few * seconds, long.client_mb, *sizes)


def costs(sample: Path, folder: Path) -> Costs:
    """A unit of the vertex chain in this process, part for part; and Dask with units that do nothing."""
    import torch

    from sparsereco.commands import reco_vertex
    from sparsereco.io import RootWriter, iterate, survey
    from sparsereco.parts import Input, Parts, Tally, divide, write_part
    from sparsereco.schema import HITS, RECO, BranchNames
    from sparsereco.vertex.config import VertexConfig

    torch.set_num_threads(1)
    config, names = VertexConfig(light_scale=1.0), BranchNames()
    source = survey([str(sample)], HITS, names)[0]
    job = reco_vertex.Job(config, names, 1.0, "cpu", 0, "3 MB", False)
    chain = reco_vertex.job_chain(job)
    whole = source.entries // config.batch_size * config.batch_size
    unit = divide([Input(str(sample), source.tree, whole)], 0, None, whole)[0]
    parts = Parts(folder / "costs.root", {})
    parts.open(False, True)
    clock, marks = time.process_time, []

    def fill(writer: RootWriter) -> Tally:
        tally = Tally()
        chunks = iterate([f"{sample}:{source.tree}"], HITS, None, names, job.step_size, 0, whole)
        marks.append(clock())
        reco_vertex.process(job, chain, chunks, writer, tally, lambda done: marks.append(clock()))
        return tally

    began = clock()
    write_part(parts.folder, unit, parts.digest, fill)
    total = clock() - began
    batches = np.diff(marks)[1:]  # the first one waits for the input
    began = clock()
    with RootWriter(folder / "costs.root") as writer:
        writer.create("reco", RECO)
        parts.merge(unit, (RECO,), writer, Tally())
    merge = (clock() - began) / whole
    operations, calls, share = networks(chain, sample, config.batch_size)
    return Costs(
        batches=batches,
        batch=config.batch_size,
        unit=max(total - batches.mean() * (len(batches) + 1), 0.0),
        merge=merge,
        hand=handing(folder, 200),
        operations=operations,
        calls=calls,
        networks=share,
    )


def networks(chain: Any, sample: Path, batch: int) -> tuple[float, float, float]:
    """Multiply-adds per event, operators per batch, and share of the time, of the networks of the vertex chain."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    from sparsereco.io import iterate
    from sparsereco.schema import HITS

    def convolution(feats: Any, weight: Any, rows: Any, splits: Any, n_out: int, *rest: Any, **shapes: Any) -> int:
        pairs = rows[1]
        if splits[0] - 1 < weight[1]:  # a submanifold map holds one of each pair and its mirror image
            pairs = 2 * pairs - n_out
        return int(2 * pairs * weight[0] * weight[2])

    def attention(query: Any, key: Any, value: Any, *rest: Any, **shapes: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    class Calls(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.number += 1
            return function(*args, **(kwargs or {}))

    events = next(iter(iterate([str(sample)], HITS, step_size=batch))).events
    inner = chain.finder.forward, chain.decomposer.forward
    spent = 0.0

    def timed(forward: Any) -> Any:
        def call(*args: Any) -> Any:
            nonlocal spent
            began = time.process_time()
            out = forward(*args)
            spent += time.process_time() - began
            return out

        return call

    chain.finder.forward, chain.decomposer.forward = map(timed, inner)
    chain(events)
    spent, began = 0.0, time.process_time()
    chain(events)
    share = spent / (time.process_time() - began)
    chain.finder.forward, chain.decomposer.forward = inner
    ops = torch.ops
    mapping = {
        ops.sparsereco.sparse_conv: convolution,
        ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        chain(events)
    with Calls() as calls:
        chain(events)
    return counter.get_total_flops() / 2 / len(events), float(calls.number), share


def nothing(job: object, unit: object, writer: object) -> Any:
    """A unit that does nothing; runs on a worker."""
    from sparsereco.parts import Tally

    return Tally()


def handing(folder: Path, number: int) -> float:
    """Processor time of the client, its scheduler included, per unit [s]; on two workers and units that do nothing."""
    from sparsereco.parts import Input, Parts, divide
    from sparsereco.scale import Task, run_units, software, workers

    parts = Parts(folder / "handing.root", {})
    parts.open(False, True)
    units = divide([Input("a.root", "hits", number)], 0, None, 1)
    paths = [str(TOOLS), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))  # where workers find this file
    with workers(2, None, ["benchmarks.costs", "sparsereco.io", "torch"]) as client:
        client.wait_for_workers(2)
        task = Task(nothing, None, parts.folder, parts.digest, Path.cwd(), software(), 60)
        list(run_units(client, task, units[:20]))
        began = time.process_time()
        outcomes = list(run_units(client, task, units[20:]))
    bad = [str(outcome.error) for outcome in outcomes if outcome.error]
    if bad:
        raise RuntimeError(bad[0])
    return (time.process_time() - began) / len(outcomes)


def all_costs(args: Any) -> tuple[list[System], Costs]:
    """Every system, and the vertex chain on workers."""
    with tempfile.TemporaryDirectory() as folder:
        rows = list(systems(Path(folder), args))
        return rows, costs(Path(folder) / f"vertex{args.events}.root", Path(folder))
