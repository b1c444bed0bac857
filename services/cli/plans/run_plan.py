"""Runs plans for the commands: opens the backend, shows progress, writes the report."""

import asyncio
import contextlib
import gc
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import uvloop

from services.cli import connection, output
from services.cli.cloud.modal_settings import modal_options
from services.cli.connection import places
from services.cli.output import CommandError
from services.cli.plans.plan_checks import Target, Tell, check_parameters, check_tool
from services.cli.plans.plan_output import ProgressDisplay, exit_now, interruptible
from services.executor.artifacts import open_blobs
from services.executor.config import Settings
from services.executor.main import COLLECTED_OBJECTS
from services.executor.store import Store
from services.planner.aggregation import Aggregator
from services.planner.backends import Backend, PlanContext, backend_class, runtime_of
from services.planner.backends.modal_options import ModalOptions
from services.planner.cancellation import CancellationToken, GoalReached, PlanCancelledError, unless_cancelled
from services.planner.cost import tariff_of
from services.planner.evaluation import Evaluations
from services.planner.metrics.plan_metrics import NO_METRICS, PlanMetrics, metrics_class
from services.planner.models import METRICS, RunManifest
from services.planner.plan import Plan
from services.planner.plan.plan_usage import plan_usage
from services.planner.plan.recorded_runs import SessionTimes, record_times
from services.planner.plan.runner import ActiveSession, LockedPlan, run_remaining
from services.planner.plan.status import Progress
from services.planner.report import PairedComparison, compare, write_metrics, write_report
from services.planner.runtime import ToolRuntime
from services.planner.tasks import RunExecutionResult, TaskResult, TaskStatus
from shared import log
from shared.threads import in_thread

T = TypeVar("T")
MODAL: Final = "modal"
"""The backend that has settings of its own."""


@dataclass(slots=True)
class PlanRun:
    """The result of running a plan.

    Attributes:
        plan: the plan.
        results: of its cases, as far as they were read.
        report: the files that were written, by name; empty after an interruption.
        notes: warnings.
        metrics: of its cases, if the manifest names some.
        paired: the comparison of its arms, if the manifest names one.
        evaluations: how many were made, and how many of them failed; None if the plan has no evaluator.
        is_accomplished: whether the plan's success criteria hold.
        is_cut_short: whether it was interrupted or cancelled.
        signal: the signal that interrupted it, if any.
    """

    plan: Plan
    results: Sequence[TaskResult] = ()
    report: dict[str, Path] = field(default_factory=dict)
    notes: Sequence[str] = ()
    metrics: PlanMetrics = NO_METRICS
    evaluations: tuple[int, int] | None = None
    paired: PairedComparison | None = None
    is_accomplished: bool = False
    is_cut_short: bool = False
    signal: int | None = None


def execute(plan: Plan, target: Target, *, failed: bool = True) -> PlanRun:
    """Run the cases of a plan that are left, show the progress, and write the report.

    Args:
        plan: a new plan, or one that was run before.
        target: where its cases run.
        failed: whether to run cases again that did not succeed.

    Raises:
        FullsendError: the plan can't be run.
    """
    log.configure(level="error")
    if plan.manifest.metrics is not None:
        metrics_class(plan.manifest.metrics)  # a mistake is told before the cases run
    return run_in_loop(_execute(plan, target, connection.settings(), failed))


def run_in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run what executes a plan, in an event loop and with a garbage collector that suit many short cases.

    Cases leave no cycles behind; collections would take a tenth of the time of short ones.
    """
    gc.freeze()
    gc.set_threshold(COLLECTED_OBJECTS)
    return uvloop.run(work)


def run_pilot(plan: Plan, target: Target, cases: int) -> PlanRun:
    """Run some cases of a new plan, evenly chosen from all of them, and show the progress; write no report.

    Args:
        plan: a new plan.
        target: where its cases run.
        cases: how many, at most.

    Raises:
        FullsendError: the cases can't be run.
    """
    log.configure(level="error")
    return run_in_loop(_execute(plan, target, connection.settings(), True, pilot=cases))


def write_report_again(plan: Plan) -> dict[str, Path]:
    """Write a plan's report from its results, without running anything; return its files by name."""
    log.configure(level="error")
    return asyncio.run(_write_report_again(plan, connection.settings()))


def write_metrics_again(
    plan: Plan, name: str | None, store: str | None, directory: Path | None
) -> tuple[Sequence[TaskResult], PlanMetrics]:
    """Compute a plan's metrics from stored artifacts, and write their tables, without running anything.

    Args:
        plan: the plan.
        name: of the metrics; None for those of the plan.
        store: where the artifacts are now; None for where the runs have stored them.
        directory: where to; None for the plan's report.

    Returns:
        The results of the cases, and their metrics.

    Raises:
        CommandError: the plan names no metrics, and no name is given.
    """
    log.configure(level="error")
    name = name or plan.manifest.metrics
    if name is None:
        raise CommandError(
            f"{plan.plan_id} has no metrics; say which by `--metrics`: {', '.join(METRICS)}, or module:Class"
        )
    results = plan.results()
    return results, write_metrics(directory or plan.report_directory, name, results, store)


async def _execute(
    plan: Plan, target: Target, chosen: Settings, failed: bool, pilot: int | None = None
) -> PlanRun:
    # The lock comes first: opening the fleet cancels the runs that an earlier process left there.
    with plan.lock() as locked:
        total = min(len(plan.manifest.cases), pilot or len(plan.manifest.cases))
        token, progress, run = CancellationToken(), Progress(total), PlanRun(plan)
        with (
            ProgressDisplay(plan.plan_id, progress.snapshot) as display,
            interruptible(token, display.say, display.stop) as signals,
        ):
            try:
                async with locked.session(target.backend, token, failed=failed, cases=pilot) as session:
                    execution = _Execution(run, locked, session, progress, display, pilot)
                    await execution.finish(target, chosen, failed)
            except PlanCancelledError:
                run.is_cut_short = True
    run.signal = signals[0] if signals else None
    return run


@dataclass(frozen=True, slots=True)
class _Execution:
    """Executes a plan once; every step ends early if the plan is cancelled."""

    run: PlanRun
    locked: LockedPlan
    session: ActiveSession
    progress: Progress
    display: ProgressDisplay
    pilot: int | None = None

    async def finish(self, target: Target, chosen: Settings, failed: bool) -> None:
        """Run the cases that are left, and write the report.  Raises `PlanCancelledError` if cancelled."""
        run, token, plan, began = self.run, self.session.token, self.run.plan, time.monotonic()
        work = await unless_cancelled(token, in_thread(self.locked.work, failed=failed))
        run.results, settled = work.before, work.settled
        if self.pilot is not None:
            work = replace(work, left=_evenly(work.left, self.pilot))
        succeeded = sum(one.task_status is TaskStatus.SUCCEEDED for one in settled)
        context = plan_context(plan.manifest, target, chosen, self.display.say, plan.name)
        tariff = await unless_cancelled(token, tariff_of(target.backend, context, plan.manifest.tool))
        criteria = CancellationToken()
        async with contextlib.AsyncExitStack() as stack:
            backend, runtime = await open_backend(stack, plan, target, chosen, self.display.say, token)
            evaluations = Evaluations(
                plan.manifest, Aggregator(runtime), already=settled, on_stop=criteria.cancel
            )
            await unless_cancelled(token, stack.enter_async_context(evaluations))
            self.progress.start(succeeded, len(settled) - succeeded)
            judged, start_seconds = replace(work, criteria=evaluations.stopper), time.monotonic() - began
            result = await run_remaining(self.session, judged, backend, criteria, self.progress, (), tariff)
            run.results = result.task_results
            self._record_criteria(result, evaluations)
            self.display.stop()
            if self.pilot is not None:
                self.session.stopped = result.stopped or f"a pilot of {len(work.left)} cases"
                await self._record_times(start_seconds, None)
                return
            ended = time.monotonic()
            await unless_cancelled(token, _write_report(run, evaluations))
            self._record_criteria(result, evaluations)  # writing the report made the last evaluations
            await self._record_times(start_seconds, time.monotonic() - ended)

    async def _record_times(self, start_seconds: float, report_seconds: float | None) -> None:
        times = SessionTimes(start_seconds, report_seconds, len(self.run.results))
        await in_thread(record_times, self.run.plan.registry, self.session.number, times)

    def _record_criteria(self, result: RunExecutionResult, evaluations: Evaluations) -> None:
        self.run.notes = evaluations.notes
        self.run.is_accomplished = isinstance(result.stopped or evaluations.reason, GoalReached)


# -- reports --------------------------------------------------------------------------


async def _write_report_again(plan: Plan, chosen: Settings) -> dict[str, Path]:
    token = CancellationToken()
    with interruptible(token, lambda line: output.say(line, file=sys.stderr)) as signals:
        try:
            return await unless_cancelled(token, _evaluate_and_write(plan, chosen))
        except PlanCancelledError:
            exit_now(128 + signals[0])
            raise


async def _evaluate_and_write(plan: Plan, chosen: Settings) -> dict[str, Path]:
    ended = await in_thread(plan.settled, failed=False)
    async with (
        evaluating(plan, chosen) as runtime,
        Evaluations(plan.manifest, Aggregator(runtime), already=ended) as evaluations,
    ):
        run = PlanRun(plan)
        await _write_report(run, evaluations)
        return run.report


async def _write_report(run: PlanRun, evaluations: Evaluations) -> None:
    """Write the report of a plan, and note in the run what it consists of."""
    plan = run.plan
    results = await in_thread(plan.results)
    made = await evaluations.finish(results)
    directory, manifest = plan.report_directory, plan.manifest
    if manifest.metrics is not None:
        run.metrics = await in_thread(write_metrics, directory, manifest.metrics, results)
    if manifest.comparison is not None:
        run.paired = await in_thread(compare, manifest.comparison, results, run.metrics)
    used = await in_thread(plan_usage, plan.registry, by_case=True)
    report = await in_thread(
        write_report,
        directory,
        manifest,
        results,
        made,
        notes=evaluations.notes,
        metrics=run.metrics,
        usage=used,
        paired=run.paired,
    )
    run.report = {**report, **run.metrics.files}
    if manifest.evaluator is not None:
        run.evaluations = len(made), sum(one.error is not None for one in made)


def _evenly(indexes: Sequence[int], count: int) -> list[int]:
    """Return so many of the indexes, each from the middle of an equal part of them."""
    count = min(count, len(indexes))
    return [indexes[(2 * part + 1) * len(indexes) // (2 * count)] for part in range(count)]


# -- backends -------------------------------------------------------------------------


async def open_backend(
    stack: contextlib.AsyncExitStack,
    plan: Plan,
    target: Target,
    chosen: Settings,
    tell: Tell,
    token: CancellationToken,
) -> tuple[Backend, ToolRuntime]:
    """Open a plan's backend, and a runtime for evaluations, until the stack is closed.

    Raises:
        PlanCancelledError: the token was cancelled meanwhile.
        CommandError: the plan's tool can't be loaded.
    """
    context = plan_context(
        plan.manifest, target, chosen, tell, plan.name, lambda capacity: runtime_for(plan, chosen, capacity)
    )
    opening = stack.enter_async_context(backend_class(target.backend).open_for_plan(context))
    backend = await unless_cancelled(token, opening)
    runtime = runtime_of(backend)
    if runtime is None:
        await unless_cancelled(token, check_parameters(plan.manifest, target, chosen))
        return backend, await stack.enter_async_context(evaluating(plan, chosen))
    await unless_cancelled(token, check_tool(plan, runtime, tell))
    return backend, runtime


def plan_context(
    manifest: RunManifest,
    target: Target,
    chosen: Settings,
    tell: Tell,
    plan_id: str = "",
    make_runtime: Callable[[int], ToolRuntime] | None = None,
) -> PlanContext:
    """Return what the backends get for a manifest, also before it is a plan on disk."""
    blobs = open_blobs(chosen.artifacts)
    return PlanContext(
        plan_id=plan_id,
        concurrency=manifest.execution_policy.concurrency,
        has_evaluator=manifest.evaluator is not None,
        storage_type=str(blobs.storage_type),
        storage_base=blobs.base,
        make_runtime=make_runtime or (lambda capacity: ToolRuntime(places(chosen), capacity, os.environ)),
        connect=lambda: store_of(chosen),
        tell=tell,
        dask_scheduler=target.dask_scheduler,
        modal=modal_options() if target.backend == MODAL else ModalOptions(),
        core_hour_price=chosen.core_hour_price,
        price_currency=chosen.price_currency,
    )


@contextlib.asynccontextmanager
async def store_of(chosen: Settings) -> AsyncIterator[Store]:
    """Connect to the Redis that the workers share."""
    url = await in_thread(connection.address, chosen, connection.STARTING_SECONDS)
    async with connection.store_at(url, chosen) as store:
        yield store


@contextlib.asynccontextmanager
async def evaluating(plan: Plan, chosen: Settings) -> AsyncIterator[ToolRuntime]:
    """Yield a runtime for evaluations; it starts processes only if the plan has an evaluator."""
    runtime = runtime_for(plan, chosen, 2)
    if plan.manifest.evaluator is None:
        yield runtime
        return
    await runtime.open()
    try:
        yield runtime
    finally:
        await runtime.close()


def runtime_for(plan: Plan, chosen: Settings, capacity: int) -> ToolRuntime:
    """Create a runtime that keeps artifacts in the plan's directory, and code in the common store."""
    here = replace(places(chosen), artifacts=str(plan.artifacts))
    return ToolRuntime(here, capacity, os.environ, open_blobs(chosen.artifacts))
