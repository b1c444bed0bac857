"""Executes plans: every case gets its turn under the plan's policy, and comes to a result."""

import asyncio
import contextlib
import functools
import random
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from services.planner.attempts import ByBackend, ByFunction, Performer
from services.planner.budget import NOTHING, Allowance, Used
from services.planner.calling import run_to_end
from services.planner.cancellation import CancellationToken
from services.planner.cases import all_cases
from services.planner.course import Course, Means
from services.planner.execution import Executor
from services.planner.judging import judging
from services.planner.listening import SILENT, Listener
from services.planner.models import ExecutionPolicy, RunManifest, TestCase
from services.planner.opening import Source, opened
from services.planner.results import statistics_of
from services.planner.stopping import Stopper
from services.planner.tasks import RunExecutionResult, Task
from shared.backoff import Dice

__all__ = ["SILENT", "Listener", "Stopper", "TaskScheduler", "new_id", "utc_now"]


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


def new_id() -> str:
    """An id that nobody else has."""
    return uuid.uuid4().hex


class TaskScheduler:
    """Executes plans, by a backend or by a custom function.

    Args:
        backend: executes the cases: one that is ready in the event loop that the plan is executed in, or
            a function that makes one, which is opened for the time of each execution.
        capacity: how many cases at once make sense; None asks the backend each time.
        task_execution_func: in place of a backend; see `services.planner.attempts.ByFunction`.
        now_fn: the clock of timestamps and of the rate limit.
        sleep_fn: waits so many seconds; a synchronous one does so in a thread.  Time-outs use neither.
        id_fn: ids of executions and tasks.
        dice: for the jitter of retries.
        listener: hears how it goes.  If it raises, the plan is stopped.
        stoppers: stop the plan, besides its own conditions and its budget.  One that raises does so too.
        used: what the plan had used of its budget before.
        criteria: judges the criteria of the plan's evaluator, such as `Evaluations.stopper`; None has
            that done here, see `services.planner.judging`.

    Raises:
        ValueError: there is not exactly one of `backend` and `task_execution_func`.
    """

    def __init__(
        self,
        backend: Source | None = None,
        *,
        capacity: int | None = None,
        task_execution_func: Callable[[Task], Any] | None = None,
        now_fn: Callable[[], datetime] = utc_now,
        sleep_fn: Callable[[float], Any] = asyncio.sleep,
        id_fn: Callable[[], str] = new_id,
        dice: Dice = random.random,
        listener: Listener = SILENT,
        stoppers: Sequence[Stopper] = (),
        used: Used = NOTHING,
        criteria: Stopper | None = None,
    ) -> None:
        if (backend is None) == (task_execution_func is None):
            raise ValueError("a scheduler takes either a backend or a task_execution_func")
        self._backend = backend
        self._capacity = capacity
        self._function = task_execution_func
        self._id_fn = id_fn
        self._used = used
        self._criteria = criteria
        self._means = Means(now_fn, sleep_fn, dice, listener, tuple(stoppers))

    def run_manifest(
        self, manifest: RunManifest, token: CancellationToken | None = None
    ) -> RunExecutionResult:
        """The same as `run_manifest_async`, from a thread that waits for it."""
        return run_to_end(lambda: self.run_manifest_async(manifest, token))

    async def run_manifest_async(
        self, manifest: RunManifest, token: CancellationToken | None = None
    ) -> RunExecutionResult:
        """Execute all cases; a result for each, in their order, whatever happens.

        Args:
            manifest: the plan.
            token: stops it when it is cancelled, from any thread.

        Raises:
            PlanError: the cases can't be made, a criterion can't be judged, or the backend is not open here.
            FullsendError: the backend can't be opened.
        """
        cases = await asyncio.to_thread(all_cases, manifest)
        async with self._executing() as executor:
            return await self._executed(manifest, cases, executor, token)

    def _executing(self) -> contextlib.AbstractAsyncContextManager[Executor | None]:
        """The backend, None when a function executes the cases."""
        return contextlib.nullcontext() if self._backend is None else opened(self._backend)

    async def _executed(
        self,
        manifest: RunManifest,
        cases: Sequence[TestCase],
        executor: Executor | None,
        token: CancellationToken | None,
    ) -> RunExecutionResult:
        run_id, started_at = self._id_fn(), self._means.now()
        tasks = [
            Task(self._id_fn(), manifest.workflow_id, manifest.tool, index, case, started_at)
            for index, case in enumerate(cases)
        ]
        policy = manifest.execution_policy
        allowance = Allowance(manifest.budget, self._used)
        performer, places = self._performer(policy, executor), functools.partial(self._places, executor)
        course = Course(tasks, policy, performer, places, self._means, allowance)
        async with self._judging(manifest, course, executor) as criteria:
            results = await course.run(token, criteria)
        finished_at = self._means.now()
        return RunExecutionResult(
            workflow_id=manifest.workflow_id,
            run_id=run_id,
            task_results=results,
            statistics=statistics_of(results, max(0.0, (finished_at - started_at).total_seconds())),
            stopped=course.stopped,
            started_at=started_at,
            finished_at=finished_at,
        )

    def _judging(
        self, manifest: RunManifest, course: Course, executor: Executor | None
    ) -> contextlib.AbstractAsyncContextManager[Stopper]:
        if self._criteria is not None:
            return contextlib.nullcontext(self._criteria)
        return judging(manifest, executor, course.stop)

    def _performer(self, policy: ExecutionPolicy, executor: Executor | None) -> Performer:
        if self._function is not None:
            return ByFunction(self._function, policy.stop_conditions.timeout_per_task)
        assert executor is not None, "the constructor makes sure of it"
        return ByBackend(executor, policy)

    def _places(self, executor: Executor | None, concurrency: int) -> int:
        """How many cases at once; a backend's capacity may change meanwhile."""
        capacity = self._capacity
        if capacity is None:
            capacity = getattr(executor, "capacity", concurrency)
        return max(1, min(concurrency, capacity))
