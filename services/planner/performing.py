"""One sitting of a plan: what is left of it goes through the scheduler, and into the registry."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from services.executor.isolation.calls import Event
from services.planner.backends import BACKENDS, Backend
from services.planner.budget import NOTHING, Allowance, Used, cost_of
from services.planner.cancellation import CancellationToken
from services.planner.judging import judging
from services.planner.listening import Listener
from services.planner.models import Budget, RunManifest
from services.planner.recording import Recorder
from services.planner.registry import Registry
from services.planner.results import statistics_of
from services.planner.scheduler import TaskScheduler
from services.planner.seat import Seat, relay
from services.planner.stopping import Stopper
from services.planner.tasks import RunExecutionResult, Task, TaskResult
from shared.errors import PlanError


@dataclass(frozen=True, slots=True)
class Work:
    """What a sitting is to do.

    Attributes:
        manifest: of the whole plan.
        before: a result for each of its cases, as they are now.
        left: the indexes of those that are to be run.
        criteria: judges the evaluator's criteria; None has that done on the backend, if it can.
    """

    manifest: RunManifest
    before: Sequence[TaskResult]
    left: Sequence[int]
    criteria: Stopper | None = None

    @property
    def settled(self) -> list[TaskResult]:
        """Results of cases that are not run again."""
        left = set(self.left)
        return [one for one in self.before if one.index not in left]


async def perform(
    seat: Seat,
    work: Work,
    backend: Backend,
    token: CancellationToken | None,
    listener: Listener,
    stoppers: Sequence[Stopper],
) -> RunExecutionResult:
    """Run what is left, in a sitting; the results of all cases.

    Raises:
        PlanError: the budget is used up, a criterion can't be judged, or the registry can't be written.
    """
    registry = seat.registry
    if not work.left:
        return without_running(registry, work)
    used = await asyncio.to_thread(_used, registry, work.manifest.budget)
    end = CancellationToken()
    async with _judging(work, backend, end) as criteria:
        async with Recorder(registry, seat.number) as recorder:
            heard = _Renumbered(work.left, (recorder, listener))
            scheduler = TaskScheduler(
                backend,
                listener=heard,
                stoppers=[heard.judging(one) for one in (recorder.stopper, *stoppers)],
                used=used,
                criteria=heard.judging(criteria),
            )
            found = await _watched(scheduler, work, end, [one for one in (seat.token, token) if one])
        if recorder.trouble:
            raise PlanError(recorder.trouble)
    seat.stopped = found.stopped
    return merged(work, found)


def name_of(backend: Backend) -> str:
    """What a backend is called in the table, or `module:Class`."""
    place = f"{type(backend).__module__}:{type(backend).__qualname__}"
    return next((name for name, known in BACKENDS.items() if known == place), place)


async def _watched(
    scheduler: TaskScheduler, work: Work, end: CancellationToken, tokens: Sequence[CancellationToken]
) -> RunExecutionResult:
    """The scheduler's answer; it is ended by any of the tokens."""
    cases = tuple(work.before[index].case for index in work.left)
    async with asyncio.TaskGroup() as group:
        watches = [group.create_task(relay(one, end)) for one in tokens]
        found = await scheduler.run_manifest_async(work.manifest.model_copy(update={"cases": cases}), end)
        for watch in watches:
            watch.cancel()
    return found


def _judging(
    work: Work, backend: Backend, end: CancellationToken
) -> contextlib.AbstractAsyncContextManager[Stopper]:
    if work.criteria is not None:
        return contextlib.nullcontext(work.criteria)
    return judging(work.manifest, backend, end.cancel, work.settled)


def _used(registry: Registry, budget: Budget) -> Used:
    """What the plan has used of its budget.  Raises `PlanError` when nothing is left of it."""
    if budget == Budget():
        return NOTHING
    runs, seconds = registry.used()
    cost = 0.0 if budget.max_cost is None else cost_of(registry.history(), budget)
    used = Used(runs, seconds, cost)
    allowance = Allowance(budget, used)
    if reason := allowance.out_of_runs or allowance.used_up:
        raise PlanError(f"there is nothing left of the plan's budget: {reason}")
    return used


Known = TypeVar("Known", Task, TaskResult)


class _Renumbered:
    """Tells listeners of cases by their index in the plan, not among those that are left.

    Args:
        indexes: in the plan, of the cases that are left.
        listeners: hear of them, in this order.
    """

    def __init__(self, indexes: Sequence[int], listeners: Sequence[Listener]) -> None:
        self._indexes = indexes
        self._listeners = listeners

    def moved(self, task: Task) -> None:
        """A case has entered another state."""
        known = self._known(task)
        for listener in self._listeners:
            listener.moved(known)

    def ended(self, result: TaskResult) -> None:
        """A case has its result."""
        known = self._known(result)
        for listener in self._listeners:
            listener.ended(known)

    def said(self, task: Task, event: Event) -> None:
        """A case's tool reports something."""
        known = self._known(task)
        for listener in self._listeners:
            listener.said(known, event)

    def judging(self, stopper: Stopper) -> Stopper:
        """The same, of results by their index in the plan."""
        return lambda result: stopper(self._known(result))

    def _known(self, one: Known) -> Known:
        index = self._indexes[one.index]
        return one if index == one.index else replace(one, index=index)  # a copy takes its time


def merged(work: Work, found: RunExecutionResult) -> RunExecutionResult:
    """The results of all cases, those of the sitting in place of what was before."""
    results = list(work.before)
    for index, result in zip(work.left, found.task_results, strict=True):
        results[index] = result if result.index == index else replace(result, index=index)
    return replace(
        found,
        task_results=tuple(results),
        statistics=statistics_of(results, found.statistics.wall_time),
    )


def without_running(registry: Registry, work: Work, stopped: str | None = None) -> RunExecutionResult:
    """The results as they are, where nothing was run."""
    now, results = registry.now(), tuple(work.before)
    return RunExecutionResult(
        workflow_id=work.manifest.workflow_id,
        run_id="",
        task_results=results,
        statistics=statistics_of(results, 0.0),
        stopped=stopped,
        started_at=now,
        finished_at=now,
    )
