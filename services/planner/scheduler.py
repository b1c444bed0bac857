"""Executes plans: every case gets its turn under the plan's policy, and comes to a result."""

import asyncio
import contextlib
import contextvars
import functools
import random
import threading
import uuid
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from services.planner.backends import BackendSource, open_backend
from services.planner.cancellation import CancellationToken
from services.planner.cases import all_cases
from services.planner.evaluation import judging
from services.planner.execution import Executor
from services.planner.models import ExecutionPolicy, RunManifest, TestCase
from services.planner.results import statistics_of
from services.planner.scheduling.attempts import (
    AttemptRunner,
    BackendAttemptRunner,
    FunctionAttemptRunner,
    is_raised_by_signal,
)
from services.planner.scheduling.budget import NOTHING, BudgetTracker, BudgetUse
from services.planner.scheduling.dispatcher import CANCEL_SECONDS, SILENT, Dispatcher, Hooks, Listener
from services.planner.scheduling.early_stop import Stopper
from services.planner.tasks import (
    RunExecutionResult,
    Task,
)
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
        task_execution_func: in place of a backend; see `FunctionAttemptRunner`.
        now_fn: the clock of timestamps and of the rate limit.
        sleep_fn: waits so many seconds; a synchronous one does so in a thread.  Time-outs use neither.
        id_fn: ids of executions and tasks.
        dice: for the jitter of retries.
        listener: hears how it goes.  If it raises, the plan is stopped.
        stoppers: stop the plan, besides its own conditions and its budget.  One that raises does so too.
        used: what the plan had used of its budget before.
        criteria: judges the criteria of the plan's evaluator, such as `Evaluations.stopper`; None has
            that done here, see `services.planner.evaluation.judging`.

    Raises:
        ValueError: there is not exactly one of `backend` and `task_execution_func`.
    """

    def __init__(
        self,
        backend: BackendSource | None = None,
        *,
        capacity: int | None = None,
        task_execution_func: Callable[[Task], Any] | None = None,
        now_fn: Callable[[], datetime] = utc_now,
        sleep_fn: Callable[[float], Any] = asyncio.sleep,
        id_fn: Callable[[], str] = new_id,
        dice: Dice = random.random,
        listener: Listener = SILENT,
        stoppers: Sequence[Stopper] = (),
        used: BudgetUse = NOTHING,
        criteria: Stopper | None = None,
        cancel_seconds: float = CANCEL_SECONDS,
    ) -> None:
        if (backend is None) == (task_execution_func is None):
            raise ValueError("a scheduler takes either a backend or a task_execution_func")
        self._backend = backend
        self._capacity = capacity
        self._function = task_execution_func
        self._id_fn = id_fn
        self._used = used
        self._criteria = criteria
        self._means = Hooks(now_fn, sleep_fn, dice, listener, tuple(stoppers), cancel_seconds)

    def run_manifest(
        self, manifest: RunManifest, token: CancellationToken | None = None
    ) -> RunExecutionResult:
        """The same as `run_manifest_async`, from a thread that waits for it."""
        return run_blocking(lambda: self.run_manifest_async(manifest, token))

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
        return contextlib.nullcontext() if self._backend is None else open_backend(self._backend)

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
        tracker = BudgetTracker(manifest.budget, self._used)
        runner, max_running = self._runner(policy, executor), functools.partial(self._max_running, executor)
        course = Dispatcher(tasks, policy, runner, max_running, self._means, tracker)
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
        self, manifest: RunManifest, course: Dispatcher, executor: Executor | None
    ) -> contextlib.AbstractAsyncContextManager[Stopper]:
        if self._criteria is not None:
            return contextlib.nullcontext(self._criteria)
        return judging(manifest, executor, course.stop)

    def _runner(self, policy: ExecutionPolicy, executor: Executor | None) -> AttemptRunner:
        if self._function is not None:
            return FunctionAttemptRunner(self._function, policy.stop_conditions.timeout_per_task)
        assert executor is not None, "the constructor makes sure of it"
        return BackendAttemptRunner(executor, policy)

    def _max_running(self, executor: Executor | None, concurrency: int) -> int:
        """How many cases at once; a backend's capacity may change meanwhile."""
        capacity = self._capacity
        if capacity is None:
            capacity = getattr(executor, "capacity", concurrency)
        return max(1, min(concurrency, capacity))


T = TypeVar("T")


LOOK_SECONDS = 0.1


def run_blocking(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine and return what it returns, wherever this is called from.

    Inside a running event loop it gets a loop in a thread of its own, and the caller's
    loop stands still meanwhile, as with every synchronous call.
    """
    return _Elsewhere(work).result() if _is_in_a_loop() else _run(work)


def _is_in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    # What the main coroutine of asyncio.run() returns is formatted when its signal handler is looked
    # up (enum says what is no member), which takes longer than a small plan.  So it returns nothing.
    returned: list[T] = []

    async def main() -> None:
        returned.append(await work())

    with asyncio.Runner() as runner:
        running = runner.get_loop().create_task(main())
        while not running.done():
            try:
                runner.run(_end_of(running))
            except (KeyboardInterrupt, SystemExit) as exc:
                # From a task that was started by somebody else's function, and who waits for it has it too.
                if running.done() or running.cancelling() or is_raised_by_signal(exc):
                    raise
        running.result()
    return returned[0]


async def _end_of(running: asyncio.Task[None]) -> None:
    try:
        await asyncio.wait({running})
    except asyncio.CancelledError:
        running.cancel()
        await asyncio.wait({running})
        raise


class _Elsewhere(Generic[T]):
    """A coroutine in an event loop of its own, in a thread of its own."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._work = work
        self._values: list[T] = []
        self._error: BaseException | None = None
        self._cancel: Callable[[], object] = lambda: None

    def result(self) -> T:
        """What it returns; it is cancelled first if the wait is interrupted, or the caller cancelled."""
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(self._run,), name="fullsend-plan", daemon=True)
        thread.start()
        try:
            self._wait(thread)
        except BaseException:
            self._cancel()
            thread.join()
            raise
        if self._error is not None:
            raise self._error
        return self._values[0]

    def _wait(self, thread: threading.Thread) -> None:
        # The first Ctrl-C only cancels the caller's task, which its loop can't tell it while it stands still.
        caller = asyncio.current_task()
        before = caller.cancelling() if caller is not None else 0
        while thread.is_alive():
            thread.join(LOOK_SECONDS)
            if caller is not None and caller.cancelling() > before:
                self._cancel()
                thread.join()

    def _run(self) -> None:
        try:
            self._values.append(_run(self._cancellable))
        except BaseException as exc:
            self._error = exc

    async def _cancellable(self) -> T:
        loop, current = asyncio.get_running_loop(), asyncio.current_task()
        assert current is not None, "coroutines run in tasks"

        def cancel() -> None:
            with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                loop.call_soon_threadsafe(current.cancel)

        self._cancel = cancel
        return await self._work()
