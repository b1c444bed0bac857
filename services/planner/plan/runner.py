"""One sitting of a plan: what is left of it goes through the scheduler, and into the registry."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from services.executor.isolation.calls import Event
from services.planner.backends import Backend, backend_name, check_open
from services.planner.cancellation import CancellationToken
from services.planner.evaluation import judging
from services.planner.models import Budget, RunManifest
from services.planner.plan.recorder import Recorder
from services.planner.plan.registry import UNFINISHED, Registry
from services.planner.results import statistics_of
from services.planner.scheduler import TaskScheduler
from services.planner.scheduling.budget import NOTHING, BudgetTracker, BudgetUse, cost_of
from services.planner.scheduling.dispatcher import SILENT, Listener
from services.planner.scheduling.early_stop import Stopper
from services.planner.tasks import UNSUCCESSFUL, RunExecutionResult, Task, TaskResult, TaskStatus
from shared.errors import FullsendError, PlanError

WATCH_SECONDS: Final = 0.5
INTERRUPTED: Final = "interrupted"


class ActiveSession:
    """The place of who executes a plan, for one sitting.

    Attributes:
        registry: of the plan.
        number: of the sitting.
        token: cancelled as soon as somebody wants the end, here or in another process.
        stopped: why the sitting ends before all its cases have run; None when it doesn't.
    """

    def __init__(self, registry: Registry, number: int) -> None:
        self.registry = registry
        self.number = number
        self.token = CancellationToken()
        self.stopped: str | None = None


@contextlib.asynccontextmanager
async def open_session(
    registry: Registry, backend: str, cases: int, token: CancellationToken | None = None
) -> AsyncIterator[ActiveSession]:
    """Take the plan up, alone (see `exclusive_lock`); at the end of the block the sitting is over.

    Args:
        registry: of the plan.
        backend: its name.
        cases: how many are to be run.
        token: ends it, besides who asks for that through the registry.

    Raises:
        PlanError: the registry can't be written.
    """
    taken = ActiveSession(registry, await asyncio.to_thread(registry.begin_session, backend, cases))
    watches = [asyncio.create_task(_heed(taken), name="sitting")]
    if token is not None:
        watches.append(asyncio.create_task(forward_cancellation(token, taken.token), name="token"))
    try:
        yield taken
    except BaseException as exc:
        taken.stopped = taken.token.reason or (str(exc) if isinstance(exc, FullsendError) else INTERRUPTED)
        raise
    finally:
        for watch in watches:
            watch.cancel()
        await asyncio.shield(asyncio.to_thread(registry.end_session, taken.number, taken.stopped))
        await asyncio.gather(*watches, return_exceptions=True)


async def forward_cancellation(token: CancellationToken, to: CancellationToken) -> None:
    """Pass the wish to end on to another token; until cancelled."""
    to.cancel(await token.wait())


async def _heed(taken: ActiveSession) -> None:
    """Show that this process is there, and look whether another one wants the end."""
    while True:
        with contextlib.suppress(PlanError):  # a registry in trouble stops the plan by itself
            asked = await asyncio.to_thread(taken.registry.heartbeat, taken.number)
            if asked is not None:
                taken.token.cancel(asked)
        await asyncio.sleep(WATCH_SECONDS)


@dataclass(frozen=True, slots=True)
class RemainingWork:
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


async def run_remaining(
    session: ActiveSession,
    work: RemainingWork,
    backend: Backend,
    token: CancellationToken | None,
    listener: Listener,
    stoppers: Sequence[Stopper],
) -> RunExecutionResult:
    """Run what is left, in a sitting; the results of all cases.

    Raises:
        PlanError: the budget is used up, a criterion can't be judged, or the registry can't be written.
    """
    registry = session.registry
    if not work.left:
        return without_running(registry, work)
    used = await asyncio.to_thread(_used, registry, work.manifest.budget)
    end = CancellationToken()
    async with _judging(work, backend, end) as criteria:
        async with Recorder(registry, session.number) as recorder:
            heard = _Renumbered(work.left, (recorder, listener))
            scheduler = TaskScheduler(
                backend,
                listener=heard,
                stoppers=[heard.judging(one) for one in (recorder.stopper, *stoppers)],
                used=used,
                criteria=heard.judging(criteria),
            )
            found = await _watched(scheduler, work, end, [one for one in (session.token, token) if one])
        if recorder.trouble:
            raise PlanError(recorder.trouble)
    session.stopped = found.stopped
    return merged(work, found)


async def _watched(
    scheduler: TaskScheduler, work: RemainingWork, end: CancellationToken, tokens: Sequence[CancellationToken]
) -> RunExecutionResult:
    """The scheduler's answer; it is ended by any of the tokens."""
    cases = tuple(work.before[index].case for index in work.left)
    async with asyncio.TaskGroup() as group:
        watches = [group.create_task(forward_cancellation(one, end)) for one in tokens]
        found = await scheduler.run_manifest_async(work.manifest.model_copy(update={"cases": cases}), end)
        for watch in watches:
            watch.cancel()
    return found


def _judging(
    work: RemainingWork, backend: Backend, end: CancellationToken
) -> contextlib.AbstractAsyncContextManager[Stopper]:
    if work.criteria is not None:
        return contextlib.nullcontext(work.criteria)
    return judging(work.manifest, backend, end.cancel, work.settled)


def _used(registry: Registry, budget: Budget) -> BudgetUse:
    """What the plan has used of its budget.  Raises `PlanError` when nothing is left of it."""
    if budget == Budget():
        return NOTHING
    runs, seconds = registry.used()
    cost = 0.0 if budget.max_cost is None else cost_of(registry.history(), budget)
    used = BudgetUse(runs, seconds, cost)
    tracker = BudgetTracker(budget, used)
    if reason := tracker.out_of_runs or tracker.used_up:
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

    def on_status(self, task: Task) -> None:
        """A case has entered another state."""
        known = self._known(task)
        for listener in self._listeners:
            listener.on_status(known)

    def on_result(self, result: TaskResult) -> None:
        """A case has its result."""
        known = self._known(result)
        for listener in self._listeners:
            listener.on_result(known)

    def on_event(self, task: Task, event: Event) -> None:
        """A case's tool reports something."""
        known = self._known(task)
        for listener in self._listeners:
            listener.on_event(known, event)

    def judging(self, stopper: Stopper) -> Stopper:
        """The same, of results by their index in the plan."""
        return lambda result: stopper(self._known(result))

    def _known(self, one: Known) -> Known:
        index = self._indexes[one.index]
        return one if index == one.index else replace(one, index=index)  # a copy takes its time


def merged(work: RemainingWork, found: RunExecutionResult) -> RunExecutionResult:
    """The results of all cases, those of the sitting in place of what was before."""
    results = list(work.before)
    for index, result in zip(work.left, found.task_results, strict=True):
        results[index] = result if result.index == index else replace(result, index=index)
    return replace(
        found,
        task_results=tuple(results),
        statistics=statistics_of(results, found.statistics.wall_time),
    )


def without_running(
    registry: Registry, work: RemainingWork, stopped: str | None = None
) -> RunExecutionResult:
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


@dataclass(frozen=True, slots=True)
class LockedPlan:
    """The right to execute a plan, which nobody else has meanwhile; see `Plan.alone`.

    Attributes:
        manifest: of the plan.
        registry: of its runs.
    """

    manifest: RunManifest
    registry: Registry

    async def resume(
        self,
        backend: Backend,
        token: CancellationToken | None = None,
        listener: Listener = SILENT,
        stoppers: Sequence[Stopper] = (),
        *,
        failed: bool = True,
        criteria: Stopper | None = None,
    ) -> RunExecutionResult:
        """Run the cases that are left, with the seeds they have, on an open backend.

        Args:
            backend: need not be the one of before.
            token: to end it; so does `Plan.cancel`, from any process.
            listener: hears of the cases by their index in the plan.
            stoppers: besides the plan's budget, which counts what was used before.
            failed: whether cases that did not succeed are run again.
            criteria: judges the evaluator's criteria, such as `Evaluations.stopper`; None has that
                done on the backend, see `services.planner.evaluation.judging`.

        Returns:
            One result for each case of the plan, also of those that have run before.

        Raises:
            PlanError: the backend is not open here, the plan's budget is used up, a criterion can't be
                judged, or its registry can't be written.
        """
        check_open(backend)
        async with self.session(backend_name(backend), token, failed=failed) as taken:
            work = replace(await asyncio.to_thread(self.work, failed=failed), criteria=criteria)
            return await run_remaining(taken, work, backend, None, listener, stoppers)

    @contextlib.asynccontextmanager
    async def session(
        self, backend: str, token: CancellationToken | None = None, *, failed: bool = True
    ) -> AsyncIterator[ActiveSession]:
        """Take the plan up: in the block, others see that it is executed, and can have it end.

        For whoever has to prepare something first, or goes on after the last case; who performs
        its cases (see `run_remaining`) heeds the token of the seat.

        Args:
            backend: the name of the one that is going to be used.
            token: to end it.
            failed: whether cases that did not succeed are run again.
        """
        cases = await asyncio.to_thread(self._left, failed)
        async with open_session(self.registry, backend, cases, token) as taken:
            yield taken

    def work(self, *, failed: bool = True) -> RemainingWork:
        """What there is to do; takes its time where there are many cases."""
        before = self.registry.results()
        return RemainingWork(self.manifest, before, [one.index for one in before if is_left(one, failed)])

    def _left(self, failed: bool) -> int:
        counts = self.registry.counts()
        settled = (TaskStatus.SUCCEEDED, *(() if failed else UNSUCCESSFUL))
        return sum(counts.values()) - sum(counts.get(one, 0) for one in settled)


def is_left(result: TaskResult, failed: bool) -> bool:
    """Whether the case is to be run yet, or again if `failed` ones are."""
    if result.task_status in UNFINISHED:
        return True
    return failed and result.task_status is not TaskStatus.SUCCEEDED
