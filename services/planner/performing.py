"""One sitting of a plan: what is left of it goes through the scheduler, and into the registry."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from services.executor.isolation.calls import Event
from services.planner.backends import BACKENDS, Backend
from services.planner.cancellation import CancellationToken
from services.planner.estimate import budget_stopper
from services.planner.models import Budget, RunManifest
from services.planner.recording import Recorder
from services.planner.registry import Registry
from services.planner.results import statistics_of
from services.planner.scheduler import Listener, Stopper, TaskScheduler
from services.planner.tasks import RunExecutionResult, Task, TaskResult
from shared.errors import PlanError

WATCH_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Work:
    """What a sitting is to do.

    Attributes:
        manifest: of the whole plan.
        before: a result for each of its cases, as they are now.
        left: the indexes of those that are to be run.
    """

    manifest: RunManifest
    before: Sequence[TaskResult]
    left: Sequence[int]


async def perform(
    registry: Registry,
    work: Work,
    backend: Backend,
    token: CancellationToken | None,
    listener: Listener,
    stoppers: Sequence[Stopper],
) -> RunExecutionResult:
    """Run what is left, alone (see `ownership.alone`); the results of all cases.

    Raises:
        PlanError: the budget is used up, or the registry can't be written.
    """
    if not work.left:
        return _nothing_to_do(registry, work)
    budget = await asyncio.to_thread(_stopper, work.manifest.budget, registry)
    number = await asyncio.to_thread(registry.begin, name_of(backend), len(work.left))
    stopped: str | None = "interrupted"
    try:
        async with Recorder(registry, number) as recorder:
            heard = _Renumbered(work.left, (recorder, listener))
            judged = [heard.judging(one) for one in (recorder.stopper, budget, *stoppers)]
            scheduler = TaskScheduler(backend, listener=heard, stoppers=judged)
            found = await _watched(scheduler, work, registry, number, token)
        if recorder.trouble:
            raise PlanError(recorder.trouble)
        stopped = found.stopped
    finally:
        registry.end(number, stopped)
    return merged(work, found)


def name_of(backend: Backend) -> str:
    """What a backend is called in the table, or `module:Class`."""
    place = f"{type(backend).__module__}:{type(backend).__qualname__}"
    return next((name for name, known in BACKENDS.items() if known == place), place)


async def _watched(
    scheduler: TaskScheduler,
    work: Work,
    registry: Registry,
    number: int,
    token: CancellationToken | None,
) -> RunExecutionResult:
    """The scheduler's answer; it is ended by the token, or by who asks for it through the registry."""
    end = CancellationToken()
    cases = tuple(work.before[index].case for index in work.left)
    async with asyncio.TaskGroup() as group:
        watches = [group.create_task(_heed(registry, number, end))]
        if token is not None:
            watches.append(group.create_task(_relay(token, end)))
        found = await scheduler.run_manifest_async(work.manifest.model_copy(update={"cases": cases}), end)
        for watch in watches:
            watch.cancel()
    return found


async def _relay(token: CancellationToken, end: CancellationToken) -> None:
    end.cancel(await token.wait())


async def _heed(registry: Registry, number: int, end: CancellationToken) -> None:
    """Show that this process is there, and look whether another one wants the end."""
    while True:
        with contextlib.suppress(PlanError):  # a registry in trouble stops the plan by itself
            asked = await asyncio.to_thread(registry.beat, number)
            if asked is not None:
                end.cancel(asked)
        await asyncio.sleep(WATCH_SECONDS)


def _stopper(budget: Budget, registry: Registry) -> Stopper:
    """The plan's budget, less what was used already."""
    stopper = budget_stopper(budget)
    if budget == Budget():
        return stopper
    for result in registry.history():
        if reason := stopper(result):
            raise PlanError(f"there is nothing left of the plan's budget: {reason}")
    return stopper


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
        known = replace(task, index=self._indexes[task.index])
        for listener in self._listeners:
            listener.moved(known)

    def ended(self, result: TaskResult) -> None:
        """A case has its result."""
        known = replace(result, index=self._indexes[result.index])
        for listener in self._listeners:
            listener.ended(known)

    def said(self, task: Task, event: Event) -> None:
        """A case's tool reports something."""
        known = replace(task, index=self._indexes[task.index])
        for listener in self._listeners:
            listener.said(known, event)

    def judging(self, stopper: Stopper) -> Stopper:
        """The same, of results by their index in the plan."""
        return lambda result: stopper(replace(result, index=self._indexes[result.index]))


def merged(work: Work, found: RunExecutionResult) -> RunExecutionResult:
    """The results of all cases, those of the sitting in place of what was before."""
    results = list(work.before)
    for index, result in zip(work.left, found.task_results, strict=True):
        results[index] = replace(result, index=index)
    return replace(
        found,
        task_results=tuple(results),
        statistics=statistics_of(results, found.statistics.wall_time),
    )


def _nothing_to_do(registry: Registry, work: Work) -> RunExecutionResult:
    now, results = registry.now(), tuple(work.before)
    return RunExecutionResult(
        workflow_id=work.manifest.workflow_id,
        run_id="",
        task_results=results,
        statistics=statistics_of(results, 0.0),
        stopped=None,
        started_at=now,
        finished_at=now,
    )
