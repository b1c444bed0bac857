"""Carries plans out for the commands: backend, progress, Ctrl-C, evaluations, report."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from services.cli import connection
from services.cli.connection import places
from services.cli.output import CommandError
from services.cli.plans.plan_output import ProgressDisplay, exit_now, interruptible
from services.executor.artifacts import open_blobs
from services.executor.config import Settings
from services.executor.service import retention
from services.executor.store import Store
from services.planner.aggregation import Aggregator
from services.planner.backends import Backend, backend_class, local
from services.planner.cancellation import Accomplished, CancellationToken, CutShortError, unless_cancelled
from services.planner.evaluation import Evaluations
from services.planner.plan import Plan
from services.planner.plan.runner import Seat, Turn, perform
from services.planner.plan.status import Progress
from services.planner.report import write_report
from services.planner.runtime import Workbench
from services.planner.tasks import RunExecutionResult, TaskResult, TaskStatus
from shared import log
from shared.connection import connect, connect_patiently
from shared.errors import ToolError
from shared.threads import in_thread

Tell = Callable[[str], None]


class BackendName(StrEnum):
    """Where a plan's cases run: in this process, or on the executors that share one Redis."""

    LOCAL = "local"
    FLEET = "fleet"


@dataclass(slots=True)
class Carried:
    """What carrying out a plan came to.

    Attributes:
        plan: that was carried out.
        results: of all its cases, as far as they were looked at.
        report: the files that were written, by kind; empty after an interruption.
        notes: what makes it doubtful.
        is_accomplished: whether the plan's success criteria hold.
        is_cut_short: whether somebody wanted the end before all was done.
        signal: the signal that ended it, if one did.
    """

    plan: Plan
    results: Sequence[TaskResult] = ()
    report: dict[str, Path] = field(default_factory=dict)
    notes: Sequence[str] = ()
    is_accomplished: bool = False
    is_cut_short: bool = False
    signal: int | None = None


def carry_out(plan: Plan, backend: BackendName, *, failed: bool = True) -> Carried:
    """Run what is left of a plan, showing its progress, and write its report.

    Args:
        plan: new, or taken up before.
        backend: where its cases run.
        failed: whether cases that did not succeed are run again.
    """
    log.configure(level="error")
    return asyncio.run(_carried_out(plan, backend, connection.settings(), failed))


def reported(plan: Plan) -> dict[str, Path]:
    """Write a plan's report from what its runs left behind, without running any."""
    log.configure(level="error")
    return asyncio.run(_reported(plan, connection.settings()))


async def _carried_out(plan: Plan, name: BackendName, chosen: Settings, failed: bool) -> Carried:
    # First of all alone: to open the fleet for a plan cancels what an earlier planner left there.
    with plan.alone() as turn:
        token, progress, carried = CancellationToken(), Progress(len(plan.manifest.cases)), Carried(plan)
        with (
            ProgressDisplay(plan.plan_id, progress.now) as display,
            interruptible(token, display.say, display.stop) as came,
        ):
            try:
                async with turn.sit(name, token, failed=failed) as seat:
                    sitting = _Sitting(carried, turn, seat, progress, display)
                    await sitting.go_through(name, chosen, failed)
            except CutShortError:
                carried.is_cut_short = True
    carried.signal = came[0] if came else None
    return carried


@dataclass(frozen=True, slots=True)
class _Sitting:
    """One sitting, step by step; each step is given up as soon as somebody wants the end."""

    carried: Carried
    turn: Turn
    seat: Seat
    progress: Progress
    display: ProgressDisplay

    async def go_through(self, name: BackendName, chosen: Settings, failed: bool) -> None:
        """All that there is to do.  Raises `CutShortError` if it is given up."""
        carried, token, plan = self.carried, self.seat.token, self.carried.plan
        work = await unless_cancelled(token, in_thread(self.turn.work, failed=failed))
        carried.results = work.before
        succeeded = sum(one.task_status is TaskStatus.SUCCEEDED for one in work.settled)
        criteria = CancellationToken()
        async with contextlib.AsyncExitStack() as stack:
            backend, bench = await opened(stack, plan, name, chosen, self.display.say, token)
            evaluations = Evaluations(
                plan.manifest, Aggregator(bench), already=work.settled, on_stop=criteria.cancel
            )
            await unless_cancelled(token, stack.enter_async_context(evaluations))
            self.progress.begin(succeeded, len(work.settled) - succeeded)
            judged = replace(work, criteria=evaluations.stopper)
            result = await perform(self.seat, judged, backend, criteria, self.progress, ())
            carried.results = result.task_results
            self._judge(result, evaluations)
            self.display.stop()
            carried.report = await unless_cancelled(token, _written(plan, evaluations))
            self._judge(result, evaluations)  # the last evaluations were made for the report

    def _judge(self, result: RunExecutionResult, evaluations: Evaluations) -> None:
        """Keep what the criteria say by now."""
        self.carried.notes = evaluations.notes
        self.carried.is_accomplished = isinstance(result.stopped or evaluations.reason, Accomplished)


# -- reports --------------------------------------------------------------------------


async def _reported(plan: Plan, chosen: Settings) -> dict[str, Path]:
    token = CancellationToken()
    with interruptible(token, lambda line: print(line, file=sys.stderr, flush=True)) as came:
        try:
            return await unless_cancelled(token, _written_again(plan, chosen))
        except CutShortError:
            exit_now(128 + came[0])
            raise


async def _written_again(plan: Plan, chosen: Settings) -> dict[str, Path]:
    ended = await in_thread(plan.settled, failed=False)
    async with (
        evaluating(plan, chosen) as bench,
        Evaluations(plan.manifest, Aggregator(bench), already=ended) as evaluations,
    ):
        return await _written(plan, evaluations)


async def _written(plan: Plan, evaluations: Evaluations) -> dict[str, Path]:
    results = await in_thread(plan.results)
    made = await evaluations.finish(results)
    directory, manifest = plan.report_directory, plan.manifest
    return await in_thread(write_report, directory, manifest, results, made, notes=evaluations.notes)


# -- backends -------------------------------------------------------------------------


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
