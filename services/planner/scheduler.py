"""The scheduler: executes all cases of a plan under its policy, by a backend or by a custom function."""

import asyncio
import contextlib
import contextvars
import functools
import random
import threading
import uuid
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from typing import Any, Final, Generic, TypeVar

from services.planner.backends import BackendSource, open_backend
from services.planner.cancellation import CancellationToken
from services.planner.cases import all_cases
from services.planner.cost import UNPRICED, Tariff
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
    utc_now,
)
from shared.backoff import Dice


def new_id() -> str:
    """Return a unique id."""
    return uuid.uuid4().hex


def check_manifest(manifest: object) -> None:
    """Refuse what is no manifest.

    Raises:
        ValueError: `manifest` is None.
        TypeError: it is not a `RunManifest`.
    """
    if manifest is None:
        raise ValueError("manifest cannot be None")
    if not isinstance(manifest, RunManifest):
        raise TypeError(
            f"manifest must be a RunManifest, not {type(manifest).__name__}; "
            "RunManifest.model_validate(...) makes one of a mapping"
        )


class TaskScheduler:
    """Executes plans, by a backend or by a custom function.

    Args:
        backend: executes the cases: a backend that is open in the event loop of the execution, or a
            function that makes one, which is opened for each execution.
        capacity: how many cases at once make sense; None asks the backend whenever a case may begin.
        task_execution_func: executes the cases instead of a backend, see `FunctionAttemptRunner`.
        now_fn: the clock for timestamps and for the rate limit.
        sleep_fn: waits for a number of seconds; a synchronous one is called in a thread.  Time-outs
            use the clock of the event loop.
        id_fn: makes the ids of executions and tasks.
        dice: returns random numbers from 0 to below 1, for the jitter of retries.
        listener: receives status changes, results and events.  The plan stops if it raises.
        stoppers: stop the plan, besides its stop conditions and its budget.  The plan stops if one raises.
        used: what earlier executions of the plan used of its budget.
        tariff: what a run holds of machines, and what that costs, such as `tariff_of` returns.
        criteria: judges the evaluator's criteria, such as `Evaluations.stopper`; None lets the backend
            evaluate them, see `services.planner.evaluation.judging`.
        cancel_seconds: how long a cancelled attempt may take to end before its task is cancelled.

    Raises:
        ValueError: both or none of `backend` and `task_execution_func` are given.
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
        tariff: Tariff = UNPRICED,
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
        self._tariff = tariff
        self._criteria = criteria
        self._hooks = Hooks(now_fn, sleep_fn, dice, listener, tuple(stoppers), cancel_seconds)

    def run_manifest(
        self, manifest: RunManifest, token: CancellationToken | None = None
    ) -> RunExecutionResult:
        """Call `run_manifest_async` and block until it returns, also inside a running event loop."""
        return run_blocking(lambda: self.run_manifest_async(manifest, token))

    async def run_manifest_async(
        self, manifest: RunManifest, token: CancellationToken | None = None
    ) -> RunExecutionResult:
        """Execute all cases, and return a result for each of them, in their order, whatever happens.

        Args:
            manifest: the plan.
            token: stops the plan when it is cancelled, from any thread.

        Raises:
            ValueError, TypeError: as `check_manifest`.
            PlanError: the cases can't be generated, a criterion can't be judged, or the backend is not
                open in this event loop.
            FullsendError: the backend can't be opened.
        """
        check_manifest(manifest)
        cases = await asyncio.to_thread(all_cases, manifest)
        async with self._executing() as executor:
            return await self._executed(manifest, cases, executor, token)

    def _executing(self) -> contextlib.AbstractAsyncContextManager[Executor | None]:
        """Open the backend; yields None when a function executes the cases."""
        return contextlib.nullcontext() if self._backend is None else open_backend(self._backend)

    async def _executed(
        self,
        manifest: RunManifest,
        cases: Sequence[TestCase],
        executor: Executor | None,
        token: CancellationToken | None,
    ) -> RunExecutionResult:
        run_id, started_at = self._id_fn(), self._hooks.now()
        tasks = [
            Task(self._id_fn(), manifest.workflow_id, manifest.tool, index, case, started_at)
            for index, case in enumerate(cases)
        ]
        policy = manifest.execution_policy
        runner, max_running = self._runner(policy, executor), functools.partial(self._max_running, executor)
        places = min(len(tasks), max_running(policy.concurrency))
        tracker = BudgetTracker(manifest.budget, self._used, self._tariff, places, self._hooks.now)
        course = Dispatcher(tasks, policy, runner, max_running, self._hooks, tracker)
        async with self._judging(manifest, course, executor) as criteria:
            results = await course.run(token, criteria)
        finished_at = self._hooks.now()
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
        assert executor is not None, "the constructor checks it"
        return BackendAttemptRunner(executor, policy)

    def _max_running(self, executor: Executor | None, concurrency: int) -> int:
        """Return how many cases may run at once; the capacity of a backend may change."""
        capacity = self._capacity
        if capacity is None:
            capacity = getattr(executor, "capacity", concurrency)
        return max(1, min(concurrency, capacity))


T = TypeVar("T")


CANCELLATION_POLL_SECONDS: Final = 0.1


def run_blocking(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine function to its end and return its result, with or without a running event loop.

    Inside a running loop the coroutine gets a loop in a thread of its own; the caller's loop is
    blocked meanwhile, as by every synchronous call.
    """
    return _ThreadedLoop(work).result() if _is_in_a_loop() else _run(work)


def _is_in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    # asyncio.run() looks up the signal handler in an enum, whose error message formats the result of
    # the main coroutine.  That takes longer than a small plan, so the coroutine returns nothing.
    returned: list[T] = []

    async def main() -> None:
        returned.append(await work())

    with asyncio.Runner() as runner:
        running = runner.get_loop().create_task(main())
        while not running.done():
            try:
                runner.run(_end_of(running))
            except (KeyboardInterrupt, SystemExit) as exc:
                # A task of a custom function raised it; whatever awaits the task gets it, too.
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


class _ThreadedLoop(Generic[T]):
    """Runs a coroutine in an event loop and a thread of its own."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._work = work
        self._values: list[T] = []
        self._error: BaseException | None = None
        self._cancel: Callable[[], object] = lambda: None

    def result(self) -> T:
        """Return its result.  Cancels it if the wait is interrupted or the calling task is cancelled."""
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
        # The first Ctrl-C only requests the cancellation of the caller's task, whose loop is blocked.
        caller = asyncio.current_task()
        before = caller.cancelling() if caller is not None else 0
        while thread.is_alive():
            thread.join(CANCELLATION_POLL_SECONDS)
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
            with contextlib.suppress(RuntimeError):  # the loop may be closed
                loop.call_soon_threadsafe(current.cancel)

        self._cancel = cancel
        return await self._work()
