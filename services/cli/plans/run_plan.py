"""Runs plans for the commands: opens the backend, shows progress, writes the report; estimates plans."""

import asyncio
import contextlib
import gc
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import uvloop

from services.cli import connection, output
from services.cli.cloud.modal_settings import modal_options
from services.cli.connection import places
from services.cli.output import CommandError
from services.cli.plans.plan_output import ProgressDisplay, exit_now, interruptible
from services.executor.artifacts import open_blobs
from services.executor.config import Settings
from services.executor.main import COLLECTED_OBJECTS
from services.executor.store import Store
from services.planner.aggregation import Aggregator
from services.planner.backends import BACKENDS, Backend, PlanContext, backend_class, runtime_of
from services.planner.backends.modal_options import ModalOptions
from services.planner.cancellation import CancellationToken, GoalReached, PlanCancelledError, unless_cancelled
from services.planner.cases import all_cases
from services.planner.evaluation import Evaluations
from services.planner.metrics.plan_metrics import NO_METRICS, PlanMetrics, metrics_class
from services.planner.models import METRICS, RunManifest
from services.planner.parameter_check import check_cases
from services.planner.plan import PLANS, Plan
from services.planner.plan.estimate import (
    Estimate,
    RecordedRuns,
    estimate,
    recorded_in_plans,
    recorded_in_redis,
)
from services.planner.plan.runner import ActiveSession, LockedPlan, run_remaining
from services.planner.plan.status import Progress
from services.planner.report import write_metrics, write_report
from services.planner.runtime import ToolRuntime
from services.planner.tasks import RunExecutionResult, TaskResult, TaskStatus
from shared import log
from shared.errors import ToolError
from shared.threads import in_thread

T = TypeVar("T")
Tell = Callable[[str], None]
MODAL: Final = "modal"
"""The backend that has settings of its own."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a plan's cases run.

    Attributes:
        backend: its name in the planner's table.
        dask_scheduler: for `dask`: the address of a scheduler, or `local`; None for Dask's configuration.
    """

    backend: str
    dask_scheduler: str | None = None


@dataclass(slots=True)
class PlanRun:
    """The result of running a plan.

    Attributes:
        plan: the plan.
        results: of its cases, as far as they were read.
        report: the files that were written, by name; empty after an interruption.
        notes: warnings.
        metrics: of its cases, if the manifest names some.
        is_accomplished: whether the plan's success criteria hold.
        is_cut_short: whether it was interrupted or cancelled.
        signal: the signal that interrupted it, if any.
    """

    plan: Plan
    results: Sequence[TaskResult] = ()
    report: dict[str, Path] = field(default_factory=dict)
    notes: Sequence[str] = ()
    metrics: PlanMetrics = NO_METRICS
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


async def _execute(plan: Plan, target: Target, chosen: Settings, failed: bool) -> PlanRun:
    # The lock comes first: opening the fleet cancels the runs that an earlier process left there.
    with plan.lock() as locked:
        token, progress, run = CancellationToken(), Progress(len(plan.manifest.cases)), PlanRun(plan)
        with (
            ProgressDisplay(plan.plan_id, progress.snapshot) as display,
            interruptible(token, display.say, display.stop) as signals,
        ):
            try:
                async with locked.session(target.backend, token, failed=failed) as session:
                    await _Execution(run, locked, session, progress, display).finish(target, chosen, failed)
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

    async def finish(self, target: Target, chosen: Settings, failed: bool) -> None:
        """Run the cases that are left, and write the report.  Raises `PlanCancelledError` if cancelled."""
        run, token, plan = self.run, self.session.token, self.run.plan
        work = await unless_cancelled(token, in_thread(self.locked.work, failed=failed))
        run.results = work.before
        succeeded = sum(one.task_status is TaskStatus.SUCCEEDED for one in work.settled)
        criteria = CancellationToken()
        async with contextlib.AsyncExitStack() as stack:
            backend, runtime = await open_backend(stack, plan, target, chosen, self.display.say, token)
            evaluations = Evaluations(
                plan.manifest, Aggregator(runtime), already=work.settled, on_stop=criteria.cancel
            )
            await unless_cancelled(token, stack.enter_async_context(evaluations))
            self.progress.start(succeeded, len(work.settled) - succeeded)
            judged = replace(work, criteria=evaluations.stopper)
            result = await run_remaining(self.session, judged, backend, criteria, self.progress, ())
            run.results = result.task_results
            self._record_criteria(result, evaluations)
            self.display.stop()
            run.report, run.metrics = await unless_cancelled(token, _write_report(plan, evaluations))
            self._record_criteria(result, evaluations)  # writing the report made the last evaluations

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
        return (await _write_report(plan, evaluations))[0]


async def _write_report(plan: Plan, evaluations: Evaluations) -> tuple[dict[str, Path], PlanMetrics]:
    results = await in_thread(plan.results)
    made = await evaluations.finish(results)
    directory, manifest = plan.report_directory, plan.manifest
    metrics = NO_METRICS
    if manifest.metrics is not None:
        metrics = await in_thread(write_metrics, directory, manifest.metrics, results)
    report = await in_thread(
        write_report, directory, manifest, results, made, notes=evaluations.notes, metrics=metrics
    )
    return {**report, **metrics.files}, metrics


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
    await unless_cancelled(token, _check_tool(plan, runtime, tell))
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


async def _check_tool(plan: Plan, runtime: ToolRuntime, tell: Tell) -> None:
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


# -- estimates ------------------------------------------------------------------------


def estimate_plan(manifest: RunManifest, target: Target, directory: Path | None = None) -> Estimate:
    """Estimate a plan from recorded runs of its tool.

    Args:
        manifest: the plan.
        target: where its cases will run; if it uses Redis, runs in Redis count as well.
        directory: of the plan; the plans beside it count as well.
    """
    log.configure(level="error")
    beside = directory.absolute().parent if directory is not None else PLANS.absolute()
    places = [PLANS] if beside == PLANS.absolute() else [PLANS, beside]
    recorded = [recorded_in_plans(manifest.tool, place) for place in places]
    notes: list[str] = []
    capacity, in_redis = asyncio.run(_ask_backend(manifest, target, recorded, notes))
    seconds = {one.place: one.seconds for one in (*recorded, *in_redis)}
    return estimate(manifest, seconds, target.backend, capacity, notes)


async def _ask_backend(
    manifest: RunManifest, target: Target, recorded: Sequence[RecordedRuns], notes: list[str]
) -> tuple[int, Sequence[RecordedRuns]]:
    """Return how many cases run at once on a backend, and further runs that its Redis has recorded."""
    chosen = connection.settings()
    await check_parameters(manifest, target, chosen)
    context = plan_context(manifest, target, chosen, notes.append)
    capacity = await backend_class(target.backend).plan_capacity(context)
    if not BACKENDS[target.backend].uses_redis:
        return capacity, ()
    known = frozenset().union(*(one.experiments for one in recorded))
    async with store_of(chosen) as store:
        return capacity, [await recorded_in_redis(store, manifest.tool, known)]
