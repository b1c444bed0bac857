"""Which Dask cluster a plan uses: one that runs already, or one of this machine for the time of the plan."""

import contextlib
import gc
import logging
import os
import tempfile
from collections.abc import AsyncIterator
from typing import Final

import dask
from distributed import LocalCluster

from services.planner.backends.dask_connection import PRELOAD
from shared.errors import PlanError

LOCAL: Final = "local"
MAX_WORKERS: Final = 4


def scheduler_address(given: str | None) -> str:
    """Return the address of the scheduler, or `local`.

    Args:
        given: as the user gave it; None for the one in Dask's own configuration, which reads the variable
            DASK_SCHEDULER_ADDRESS.

    Raises:
        PlanError: neither says an address.
    """
    found = given or dask.config.get("scheduler-address", None)
    if not found:
        raise PlanError(
            "which Dask cluster? Give `--dask-scheduler tcp://HOST:8786` or set DASK_SCHEDULER_ADDRESS; "
            "`--dask-scheduler local` starts one on this machine"
        )
    return str(found)


@contextlib.asynccontextmanager
async def local_cluster(slots: int) -> AsyncIterator[str]:
    """Start a cluster on this machine for at least so many calls at once; yield its address."""
    workers = min(MAX_WORKERS, slots, len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory(prefix="fullsend-dask-") as directory:
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=-(-slots // workers),
            processes=True,
            dashboard_address="127.0.0.1:0",
            local_directory=directory,
            preload=[PRELOAD],
            asynchronous=True,
            silence_logs=logging.ERROR,
        )
        async with cluster:
            yield str(cluster.scheduler_address)
        del cluster
        gc.collect()  # gives the semaphores of its processes back also if this process ends by os._exit
