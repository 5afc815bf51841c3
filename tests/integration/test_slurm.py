"""A real SLURM on loopback: `tools/reco.py --scheduler` on workers that are jobs gives what it gives without."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsereco.io import RECO, read

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SAMPLE = ROOT / "tests" / "data" / "demo.root"

WORKERS = """
import sys
from dask_jobqueue import SLURMCluster
cluster = SLURMCluster(queue="all", cores=1, processes=1, memory="1500MB", walltime="00:10:00", log_directory="logs",
                       interface="lo", scheduler_options={"dashboard_address": None},
                       worker_extra_args=["--memory-limit", "0"])
cluster.scale(jobs=2)
print(cluster.scheduler_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment in which SLURM's commands talk to a node of our own."""
    missing = [
        name
        for name in ("slurmctld", "slurmd", "munged")
        if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None
    ]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and Debian's slurm-wlm and munge; missing: {', '.join(missing) or 'root'}")
    pytest.importorskip("dask_jobqueue")
    folder = tmp_path / "slurm"
    folder.mkdir()
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
    environment["PATH"] += ":/usr/sbin:/sbin"
    try:
        subprocess.run(["sh", HERE / "slurm.sh", "start", folder], env=environment, check=True, timeout=60)
        yield environment
    finally:
        subprocess.run(["sh", HERE / "slurm.sh", "stop", folder], env=environment, check=True, timeout=60)


def test_four_units_through_slurm(slurm: dict[str, str], tmp_path: Path) -> None:
    options = ["--device", "cpu", "--light_scale", "0.87", "--batch_size", "16", "-n", "64", "-q"]
    command = [sys.executable, str(ROOT / "tools" / "reco.py"), "vertex", str(SAMPLE), *options]
    workers = subprocess.Popen(
        [sys.executable, "-c", WORKERS],
        env=slurm,
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert workers.stdout is not None
        address = workers.stdout.readline().strip()
        on_slurm = ["-o", "slurm.root", "--scheduler", address, "--unit-size", "16"]
        subprocess.run([*command, *on_slurm], env=slurm, cwd=tmp_path, check=True, timeout=180)
    finally:
        workers.communicate("")
    subprocess.run([*command, "-o", "here.root"], env=slurm, cwd=tmp_path, check=True, timeout=120)
    found, expected = (read(tmp_path / name, RECO) for name in ("slurm.root", "here.root"))
    assert len(found) == 64
    assert str(found.tolist()) == str(expected.tolist())
    assert list((tmp_path / "logs").glob("*.err")), "no job has run"
