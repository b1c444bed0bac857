"""Executes plans: every case gets its turn under the plan's policy, and comes to a result."""

import asyncio
import random
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from services.planner.attempts import ByBackend, ByFunction, Performer
from services.planner.calling import run_to_end
from services.planner.cancellation import CancellationToken
from services.planner.cases import all_cases
from services.planner.course import SILENT, Course, Listener, Means
from services.planner.execution import Executor
from services.planner.models import ExecutionPolicy, RunManifest
from services.planner.pace import Dice
from services.planner.results import statistics_of
from services.planner.stopping import Stopper
from services.planner.tasks import RunExecutionResult, Task

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
        backend: executes the cases; ready to, in the event loop that the plan is executed in.
        capacity: how many cases at once make sense; None asks the backend each time.
        task_execution_func: in place of a backend; see `services.planner.attempts.ByFunction`.
        now_fn: the clock of timestamps and of the rate limit.
        sleep_fn: waits so many seconds; a synchronous one does so in a thread.  Time-outs use neither.
        id_fn: ids of executions and tasks.
        dice: for the jitter of retries.
        listener: hears how it goes.  If it raises, the plan is stopped.
        stoppers: stop the plan, besides its own conditions.  One that raises does so too.

    Raises:
        ValueError: there is not exactly one of `backend` and `task_execution_func`.
    """

    def __init__(
        self,
        backend: Executor | None = None,
        *,
        capacity: int | None = None,
        task_execution_func: Callable[[Task], Any] | None = None,
        now_fn: Callable[[], datetime] = utc_now,
        sleep_fn: Callable[[float], Any] = asyncio.sleep,
        id_fn: Callable[[], str] = new_id,
        dice: Dice = random.random,
        listener: Listener = SILENT,
        stoppers: Sequence[Stopper] = (),
    ) -> None:
        if (backend is None) == (task_execution_func is None):
            raise ValueError("a scheduler takes either a backend or a task_execution_func")
        self._backend = backend
        self._capacity = capacity
        self._function = task_execution_func
        self._id_fn = id_fn
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
            PlanError: the cases can't be made.
        """
        cases = await asyncio.to_thread(all_cases, manifest)
        run_id, started_at = self._id_fn(), self._means.now()
        tasks = [
            Task(self._id_fn(), manifest.workflow_id, manifest.tool, index, case, started_at)
            for index, case in enumerate(cases)
        ]
        policy = manifest.execution_policy
        course = Course(tasks, policy, self._performer(policy), self._places, self._means)
        results = await course.run(token)
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

    def _performer(self, policy: ExecutionPolicy) -> Performer:
        if self._function is not None:
            return ByFunction(self._function, policy.stop_conditions.timeout_per_task)
        assert self._backend is not None, "the constructor makes sure of it"
        return ByBackend(self._backend, policy)

    def _places(self, concurrency: int) -> int:
        """How many cases at once; a backend's capacity may change meanwhile."""
        capacity = self._capacity
        if capacity is None:
            capacity = getattr(self._backend, "capacity", concurrency)
        return max(1, min(concurrency, capacity))
