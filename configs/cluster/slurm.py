#!/usr/bin/env python3
"""Workers for `tools/reco.py --scheduler` as SLURM jobs: run it where jobs may be submitted, and leave it running.

    python configs/cluster/slurm.py &
    tools/reco.py vertex 'run*.root' -o reco.root --scheduler tcp://HOST:8786

Change partition, number and time to what your site has; the work directory has to be one that all nodes see.
"""

import signal

from dask_jobqueue import SLURMCluster

if __name__ == "__main__":
    cluster = SLURMCluster(
        queue="all",  # the partition
        cores=1,  # per job: one worker of one thread
        processes=1,
        memory="3GB",
        walltime="04:00:00",
        job_script_prologue=["export OMP_NUM_THREADS=1"],
        scheduler_options={"port": 8786, "dashboard_address": None},
        # Workers stop by themselves before the job's time is over, one after the other.
        # The batch system keeps the limit on memory.
        worker_extra_args=["--memory-limit", "0", "--lifetime", "230m", "--lifetime-stagger", "5m"],
        log_directory="dask-logs",
    )
    cluster.adapt(minimum_jobs=20, maximum_jobs=20)  # so many jobs; one that ends is followed by another
    print(f"scheduler at {cluster.scheduler_address}", flush=True)
    signal.pause()
