"""Several processes train as one with the whole batch, however they were started."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from conftest import ROOT
from torch import nn

from sparsereco.train import Schedule, fit

BATCH, STEPS = 8, 100


def train_line(rank: int, world: int, folder: str) -> None:
    """Fits a line; each process takes its share of every batch."""
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    steps: list[float] = []
    reports: list[float] = []

    def losses(generator: torch.Generator) -> dict[str, torch.Tensor]:
        everywhere = torch.Generator().manual_seed(len(steps))
        x = torch.randn(BATCH, 3, generator=everywhere)[rank * BATCH // world : (rank + 1) * BATCH // world]
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        steps.append(float(loss.detach()))
        return {"squares": loss}

    schedule = Schedule(steps=STEPS, batch_size=BATCH // world, warmup=10, learning_rate=0.05)
    best = fit(model, losses, schedule, Path(folder), report=lambda step, values: reports.append(values["squares"]))
    torch.save({"curve": steps, "weights": best.state_dict()}, f"{folder}/{world}_{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


def test_two_processes_have_the_loss_curve_of_one_with_twice_the_batch(tmp_path: Path) -> None:
    train_line(0, 1, str(tmp_path))
    torch.multiprocessing.spawn(train_line, (2, str(tmp_path)), nprocs=2)
    alone, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1_0", "2_0", "2_1"))
    together = (torch.tensor(first["curve"]) + torch.tensor(second["curve"])) / 2
    torch.testing.assert_close(together, torch.tensor(alone["curve"]), rtol=1e-4, atol=1e-5)
    assert sum(alone["curve"][-20:]) < 0.7 * sum(alone["curve"][:20]), "it learns"
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(first["weights"][name], weight, rtol=1e-4, atol=1e-5)
        assert torch.equal(first["weights"][name], second["weights"][name])


@pytest.fixture
def bank_file(bank: Any, tmp_path: Path) -> Path:
    bank.save(tmp_path / "bank.npz")
    return tmp_path / "bank.npz"


def test_torchrun_starts_the_processes_as_the_tool_itself_does(bank_file: Path, tmp_path: Path) -> None:
    tool = [str(ROOT / "tools" / "train.py"), "finder", "--events.bank", str(bank_file), "--schedule.steps", "2"]
    tool += ["--schedule.batch_size", "4", "-q"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    curves = []
    for name, start in (("own", []), ("torchrun", torchrun)):
        processes = [] if start else ["--processes", "2"]
        command = [sys.executable, *start, *tool, "--output", str(tmp_path / name), *processes]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        with (tmp_path / name / "log.csv").open() as file:
            curves.append([{k: v for k, v in row.items() if k != "events/s"} for row in csv.DictReader(file)])
    assert curves[0] == curves[1]
    assert len(curves[0]) == 1, "one process writes the log"
