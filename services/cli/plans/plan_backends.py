"""Opens what a plan needs: backends, and what aggregates what they produce."""

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from enum import StrEnum

from services.cli import connection
from services.cli.connection import places
from services.cli.output import CommandError
from services.executor.artifacts import open_blobs
from services.executor.config import Settings
from services.executor.service import retention
from services.executor.store import Store
from services.planner.backends import Backend, backend_class, local
from services.planner.cancellation import CancellationToken, unless_cancelled
from services.planner.plan import Plan
from services.planner.workbench import Workbench
from shared.connection import connect, connect_patiently
from shared.errors import ToolError
from shared.threads import in_thread

Tell = Callable[[str], None]


class BackendName(StrEnum):
    """Where a plan's cases run: in this process, or on the executors that share one Redis."""

    LOCAL = "local"
    FLEET = "fleet"


async def opened(
    stack: contextlib.AsyncExitStack,
    plan: Plan,
    name: BackendName,
    chosen: Settings,
    tell: Tell,
    token: CancellationToken,
) -> tuple[Backend, Workbench]:
    """The backend of a plan, and a workbench for what it produces; open until the stack is unwound.

    Raises:
        CutShortError: the token was cancelled meanwhile.
        CommandError: the plan's tool can't be used.
    """
    if name is BackendName.LOCAL:
        capacity = local_capacity(plan.manifest.execution_policy.concurrency, tell)
        # A place of their own, so that evaluations need not wait until a case has ended.
        bench = workbench(plan, chosen, capacity + (plan.manifest.evaluator is not None))
        backend = await stack.enter_async_context(backend_class(name)(bench, capacity))
        await unless_cancelled(token, _check_tool(plan, bench, tell))
        return backend, bench
    opening = stack.enter_async_context(_fleet(plan, chosen, tell))
    return await unless_cancelled(token, opening), await stack.enter_async_context(evaluating(plan, chosen))


def local_capacity(concurrency: int, tell: Tell) -> int:
    """How many cases run at once in this process; says so if they are fewer than a plan wants."""
    capacity = local.local_capacity(concurrency)
    if capacity < concurrency:
        tell(f"the plan wants {concurrency:,} cases at once; {BackendName.LOCAL} runs {capacity} at most")
    return capacity


@contextlib.asynccontextmanager
async def store_of(chosen: Settings) -> AsyncIterator[Store]:
    """The Redis that the executors share."""
    url = await in_thread(connection.address, chosen, connection.STARTING_SECONDS)
    client, patient = connect(url), connect_patiently(url)
    try:
        yield Store.on(client, patient, retention(chosen))
    finally:
        await client.aclose()
        await patient.aclose()


@contextlib.asynccontextmanager
async def _fleet(plan: Plan, chosen: Settings, tell: Tell) -> AsyncIterator[Backend]:
    blobs = open_blobs(chosen.artifacts)
    place = {"storage_type": str(blobs.storage_type), "storage_base": blobs.base}
    async with (
        store_of(chosen) as store,
        backend_class(BackendName.FLEET)(store, **place, plan_id=plan.name, tell=tell) as backend,
    ):
        yield backend


@contextlib.asynccontextmanager
async def evaluating(plan: Plan, chosen: Settings) -> AsyncIterator[Workbench]:
    """A workbench that is open if the plan has an evaluator; without one it needs no process."""
    bench = workbench(plan, chosen, 2)
    if plan.manifest.evaluator is None:
        yield bench
        return
    await bench.open()
    try:
        yield bench
    finally:
        await bench.close()


def workbench(plan: Plan, chosen: Settings, capacity: int) -> Workbench:
    """One that keeps what it produces with the plan, and finds bundles where everybody does."""
    here = replace(places(chosen), artifacts=str(plan.artifacts))
    return Workbench(here, capacity, os.environ, open_blobs(chosen.artifacts))


async def _check_tool(plan: Plan, bench: Workbench, tell: Tell) -> None:
    """Say now, and not once for each case, that the tool can't be used, or is not what it was before."""
    try:
        tool = await bench.loader.load(plan.manifest.tool, bench.defaults.timeout_seconds)
    except ToolError as exc:
        raise CommandError(f"{exc}; afterwards: fullsend plan resume {plan.place}") from None
    before = await in_thread(plan.registry.fact, "tool_digest")
    if before not in (None, tool.module.digest):
        tell(f"the code of {plan.manifest.tool} has changed since this plan's first run; results may differ")
