"""Gives a Dask worker the pool that runs tools: `dask worker ADDRESS --preload services.cli.dask_preload`.

The settings of an executor apply to the worker, from its environment and its directory: time limit,
isolation, sandbox, variables of tools, and where their environments are kept.
"""

from distributed import Worker

from services.cli import connection
from services.planner.backends.dask_worker import RESOURCE, ToolPlugin
from shared import log


async def dask_setup(worker: Worker) -> None:
    """Open the pool, and offer its slots; the worker tells them to the scheduler when it registers."""
    log.configure(level="warning")
    plugin = ToolPlugin(connection.places(connection.settings()))
    await worker.plugin_add(plugin=plugin, name=RESOURCE, catch_errors=False)
    for resources in (worker.state.total_resources, worker.state.available_resources):
        resources[RESOURCE] = worker.state.nthreads
