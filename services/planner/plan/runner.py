"""Executes a plan on disk: a session runs the remaining cases and records them in the registry."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from services.executor.isolation.calls import Event
from services.planner.backends import Backend, backend_name, check_open
from services.planner.cancellation import CancellationToken
from services.planner.cost import UNPRICED, Tariff
from services.planner.evaluation import judging
from services.planner.models import Budget, RunManifest
from services.planner.plan.plan_usage import plan_usage, record_tariff
from services.planner.plan.recorder import Recorder
from services.planner.plan.registry import UNFINISHED, Registry
from services.planner.results import statistics_of
from services.planner.scheduler import TaskScheduler
from services.planner.scheduling.budget import NOTHING, BudgetTracker, BudgetUse, cost_of, require_prices
from services.planner.scheduling.dispatcher import SILENT, Listener
from services.planner.scheduling.early_stop import Stopper
from services.planner.tasks import UNSUCCESSFUL, RunExecutionResult, Task, TaskResult, TaskStatus
from shared.errors import FullsendError, PlanError

HEARTBEAT_SECONDS: Final = 0.5
INTERRUPTED: Final = "interrupted"


class ActiveSession:
    """A session that this process executes.

    Attributes:
        registry: of the plan.
        number: of the session in the registry.
        token: cancelled when the session is to stop, by this process or through the registry.
        stopped: the reason if the session ends before all its cases have run, else None.
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
    """Record a session in the registry; it lasts as long as the block.  Needs the plan's lock.

    Args:
        registry: of the plan.
        backend: the name of the backend.
        cases: how many cases are to be run.
        token: stops the session, as a request in the registry does.

    Raises:
        PlanError: the registry can't be written.
    """
    active = ActiveSession(registry, await asyncio.to_thread(registry.begin_session, backend, cases))
    watches = [asyncio.create_task(_heartbeat(active), name="session")]
    if token is not None:
        watches.append(asyncio.create_task(forward_cancellation(token, active.token), name="token"))
    try:
        yield active
    except BaseException as exc:
        active.stopped = active.token.reason or (str(exc) if isinstance(exc, FullsendError) else INTERRUPTED)
        raise
    finally:
        for watch in watches:
            watch.cancel()
        await asyncio.shield(asyncio.to_thread(registry.end_session, active.number, active.stopped))
        await asyncio.gather(*watches, return_exceptions=True)


async def forward_cancellation(token: CancellationToken, to: CancellationToken) -> None:
    """Cancel the token `to` when `token` is cancelled; runs until then."""
    to.cancel(await token.wait())


async def _heartbeat(active: ActiveSession) -> None:
    """Record that this process is alive, and stop the session if another process asks for it."""
    while True:
        with contextlib.suppress(PlanError):  # the recorder stops a plan whose registry fails
            reason = await asyncio.to_thread(active.registry.heartbeat, active.number)
            if reason is not None:
                active.token.cancel(reason)
        await asyncio.sleep(HEARTBEAT_SECONDS)


@dataclass(frozen=True, slots=True)
class RemainingWork:
    """The work of one session.

    Attributes:
        manifest: of the whole plan.
        before: the current result of each case of the plan.
        left: the indexes of the cases that are to be run.
        criteria: judges the evaluator's criteria; None lets the backend evaluate them, if it can.
    """

    manifest: RunManifest
    before: Sequence[TaskResult]
    left: Sequence[int]
    criteria: Stopper | None = None

    @property
    def settled(self) -> list[TaskResult]:
        """The results of the cases that are not run again."""
        left = set(self.left)
        return [one for one in self.before if one.index not in left]


async def run_remaining(
    session: ActiveSession,
    work: RemainingWork,
    backend: Backend,
    token: CancellationToken | None,
    listener: Listener,
    stoppers: Sequence[Stopper],
    tariff: Tariff = UNPRICED,
) -> RunExecutionResult:
    """Run the remaining cases in a session, and return the results of all cases of the plan.

    Args:
        session: is open.
        work: which cases, and how their criteria are judged.
        backend: is open in the running event loop.
        token: stops the plan, as the session's own token does.
        listener: receives status changes, results and events, by the case's index in the plan.
        stoppers: stop the plan, besides its own conditions.
        tariff: what a run on the backend holds of machines, and what that costs.

    Raises:
        PlanError: the budget is used up or can't be kept, a criterion can't be judged, or the registry
            can't be written.
    """
    registry = session.registry
    if not work.left:
        return _unchanged(registry, work)
    used = await asyncio.to_thread(_used, registry, work.manifest.budget, tariff)
    places = min(len(work.left), work.manifest.execution_policy.concurrency, backend.capacity)
    await asyncio.to_thread(record_tariff, registry, session.number, tariff, places)
    end = CancellationToken()
    async with _judging(work, backend, end) as criteria:
        async with Recorder(registry, session.number) as recorder:
            heard = _Renumbered(work.left, (recorder, listener))
            scheduler = TaskScheduler(
                backend,
                listener=heard,
                stoppers=[heard.judging(one) for one in (recorder.stopper, *stoppers)],
                used=used,
                tariff=tariff,
                criteria=heard.judging(criteria),
            )
            found = await _watched(scheduler, work, end, [one for one in (session.token, token) if one])
        if recorder.trouble:
            raise PlanError(recorder.trouble)
    session.stopped = found.stopped
    return _merged(work, found)


async def _watched(
    scheduler: TaskScheduler, work: RemainingWork, end: CancellationToken, tokens: Sequence[CancellationToken]
) -> RunExecutionResult:
    """Run the scheduler until it returns; any of the tokens stops it."""
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


def _used(registry: Registry, budget: Budget, tariff: Tariff) -> BudgetUse:
    """Return what the plan has used of its budget.

    Raises:
        PlanError: nothing is left of it, or it is of money and no prices are known.
    """
    if budget == Budget():
        return NOTHING
    require_prices(budget, tariff)
    runs, seconds = registry.used()
    cost = 0.0 if budget.max_cost is None else cost_of(registry.history(), budget)
    money = 0.0 if budget.max_money is None else _money(registry, tariff)
    used = BudgetUse(runs, seconds, cost, money)
    tracker = BudgetTracker(budget, used, tariff)
    if reason := tracker.refusal or tracker.used_up:
        raise PlanError(f"there is nothing left of the plan's budget: {reason}")
    return used


def _money(registry: Registry, tariff: Tariff) -> float:
    """Return what the plan has cost so far.  Raises `PlanError` if that is in another currency."""
    used, now = plan_usage(registry), tariff.rates.currency if tariff.rates else ""
    if used.total.money is not None and used.currency != now:
        spent = used.currency or "several currencies"
        raise PlanError(
            f"the budget of money can't be kept: the plan has cost money in {spent}, "
            f"and prices are now in {now}"
        )
    return used.total.money or 0.0


Known = TypeVar("Known", Task, TaskResult)


class _Renumbered:
    """A listener that translates indexes among the remaining cases to indexes in the plan.

    Args:
        indexes: the indexes in the plan of the remaining cases.
        listeners: are called with the index in the plan, in this order.
    """

    def __init__(self, indexes: Sequence[int], listeners: Sequence[Listener]) -> None:
        self._indexes = indexes
        self._listeners = listeners

    def on_status(self, task: Task) -> None:
        """Pass a status change on."""
        known = self._known(task)
        for listener in self._listeners:
            listener.on_status(known)

    def on_result(self, result: TaskResult) -> None:
        """Pass a result on."""
        known = self._known(result)
        for listener in self._listeners:
            listener.on_result(known)

    def on_event(self, task: Task, event: Event) -> None:
        """Pass an event on."""
        known = self._known(task)
        for listener in self._listeners:
            listener.on_event(known, event)

    def judging(self, stopper: Stopper) -> Stopper:
        """Return a stopper that gets results by their index in the plan."""
        return lambda result: stopper(self._known(result))

    def _known(self, one: Known) -> Known:
        index = self._indexes[one.index]
        return one if index == one.index else replace(one, index=index)  # copying is slow


def _merged(work: RemainingWork, found: RunExecutionResult) -> RunExecutionResult:
    """Replace the earlier results of the cases that were run."""
    results = list(work.before)
    for index, result in zip(work.left, found.task_results, strict=True):
        results[index] = result if result.index == index else replace(result, index=index)
    return replace(
        found,
        task_results=tuple(results),
        statistics=statistics_of(results, found.statistics.wall_time),
    )


def _unchanged(registry: Registry, work: RemainingWork) -> RunExecutionResult:
    """Return the current results, for a session that has nothing to run."""
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


@dataclass(frozen=True, slots=True)
class LockedPlan:
    """A plan that this process has locked, so that no other process executes it; see `Plan.lock`.

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
        tariff: Tariff = UNPRICED,
    ) -> RunExecutionResult:
        """Run the remaining cases on an open backend, each with the seed that it has in the plan.

        Args:
            backend: may be another one than before.
            token: stops the plan; `Plan.cancel` does so too, from any process.
            listener: receives status changes, results and events, by the case's index in the plan.
            stoppers: stop the plan, besides its stop conditions and its budget.  The budget includes
                what earlier sessions used.
            failed: whether cases that ended without success are run again.
            criteria: judges the evaluator's criteria, such as `Evaluations.stopper`; None lets the
                backend evaluate them, see `services.planner.evaluation.judging`.
            tariff: what a run on the backend holds of machines, and what that costs.

        Returns:
            One result for each case of the plan, including the cases that ran in earlier sessions.

        Raises:
            PlanError: the backend is not open in this event loop, the budget is used up, a criterion
                can't be judged, or the registry can't be written.
        """
        check_open(backend)
        async with self.session(backend_name(backend), token, failed=failed) as active:
            work = replace(await asyncio.to_thread(self.work, failed=failed), criteria=criteria)
            return await run_remaining(active, work, backend, None, listener, stoppers, tariff)

    @contextlib.asynccontextmanager
    async def session(
        self,
        backend: str,
        token: CancellationToken | None = None,
        *,
        failed: bool = True,
        cases: int | None = None,
    ) -> AsyncIterator[ActiveSession]:
        """Open a session: inside the block, other processes see that the plan runs, and can stop it.

        For callers that prepare something before the first case or go on after the last one; they
        run the cases by `run_remaining` and stop when the session's token is cancelled.

        Args:
            backend: the name of the backend that is going to be used.
            token: stops the session.
            failed: whether cases that ended without success are run again.
            cases: how many cases are going to be run, at most; None for all that are left.
        """
        left = await asyncio.to_thread(self._left, failed)
        async with open_session(self.registry, backend, min(left, cases or left), token) as active:
            yield active

    def work(self, *, failed: bool = True) -> RemainingWork:
        """Return the remaining work.  Reads all results, which takes long for many cases."""
        before = self.registry.results()
        return RemainingWork(self.manifest, before, [one.index for one in before if is_left(one, failed)])

    def _left(self, failed: bool) -> int:
        counts = self.registry.counts()
        settled = (TaskStatus.SUCCEEDED, *(() if failed else UNSUCCESSFUL))
        return sum(counts.values()) - sum(counts.get(one, 0) for one in settled)


def is_left(result: TaskResult, failed: bool) -> bool:
    """Return whether a case is still to be run; `failed` says whether those without success are run again."""
    if result.task_status in UNFINISHED:
        return True
    return failed and result.task_status is not TaskStatus.SUCCEEDED
