"""Where a plan runs, and what is checked before its first case: its tool, and the parameters of its cases."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from services.cli.connection import places
from services.cli.output import CommandError
from services.executor.config import Settings
from services.planner.backends import BACKENDS
from services.planner.cases import all_cases
from services.planner.models import RunManifest
from services.planner.parameter_check import check_cases
from services.planner.plan import Plan
from services.planner.runtime import ToolRuntime
from shared.errors import ToolError
from shared.threads import in_thread

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a plan's cases run.

    Attributes:
        backend: its name in the planner's table.
        dask_scheduler: for `dask`: the address of a scheduler, or `local`; None for Dask's configuration.
    """

    backend: str
    dask_scheduler: str | None = None


async def check_tool(plan: Plan, runtime: ToolRuntime, tell: Tell) -> None:
    """Load the plan's tool once before all cases; warn if its code has changed since the first run.

    Raises:
        CommandError: the tool can't be loaded.
        PlanError: the parameters of cases don't fit it.
    """
    try:
        tool = await runtime.loader.load(plan.manifest.tool, runtime.defaults.timeout_seconds)
    except ToolError as exc:
        raise CommandError(f"{exc}; then continue with: fullsend plan resume {plan.place}") from None
    await in_thread(check_cases, tool.module.name, plan.manifest.cases, tool.description.parameters)
    before = await in_thread(plan.registry.fact, "tool_digest")
    if before not in (None, tool.module.digest):
        tell(f"the code of {plan.manifest.tool} has changed since the plan's first run; results may differ")


async def check_parameters(manifest: RunManifest, target: Target, chosen: Settings) -> None:
    """Compare the parameters of all cases with the tool of this machine; nothing is built for that.

    Raises:
        CommandError: the tool can't be loaded, and the backend doesn't have tools of its own.
        PlanError: the parameters of cases don't fit it.
    """
    runtime = ToolRuntime(places(chosen), 1, os.environ)
    await runtime.open()
    try:
        found = await runtime.loader.described_by_source(manifest.tool)
        if found is None:
            tool = await runtime.loader.load(manifest.tool, runtime.defaults.timeout_seconds)
            found = tool.description
    except ToolError as exc:
        if BACKENDS[target.backend].uses_redis:  # the executors may have the tool
            return
        raise CommandError(str(exc)) from None
    finally:
        await runtime.close()
    cases = await in_thread(all_cases, manifest)
    await in_thread(check_cases, found.name, cases, found.parameters)
