"""One attempt of one case, by a backend or by a custom function: whatever happens, it has an outcome."""

import asyncio
import dis
import functools
import inspect
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, TracebackType
from typing import Any, Final, Protocol

import structlog

from services.executor.isolation.calls import Report
from services.executor.isolation.common import serialize
from services.planner.cases import attempt_seed
from services.planner.execution import ErrorInfo, Execution, ExecutionResult, Executor, RunOptions
from services.planner.models import ExecutionPolicy
from services.planner.results import TASK_STATUS_OF_TEST, outputs_of, spent_in
from services.planner.tasks import (
    TASK_STATUS_OF_RUN,
    TERMINAL,
    Spent,
    Task,
    TaskResult,
    TaskStatus,
    TestResult,
    TestStatus,
    status_of,
)
from shared.messages import Policy
from shared.threads import in_thread


@dataclass(frozen=True, slots=True)
class CallResult:
    """What a function returned or raised."""

    value: Any = None
    error: BaseException | None = None


async def call_function(function: Callable[..., Any], *args: Any) -> CallResult:
    """Call a custom function, synchronous or not, and return its result or its exception.

    A synchronous function is called in a thread of its own.  Nothing can end a thread: when this
    call is cancelled, the function goes on until it returns or the process ends.

    Raises:
        CancelledError: this call was cancelled.  A `CancelledError` of the function is a result.
        KeyboardInterrupt, SystemExit: a signal arrived while the function ran.  If the function
            raises one itself, it is a result; if a task does that the function started, it ends
            the event loop, and only `run_blocking` goes on.
    """
    if not _is_async(function):
        answer = await _in_thread(function, *args)
        if not inspect.isawaitable(answer.value):
            return answer
        return await _awaited(lambda: answer.value)
    return await _awaited(lambda: function(*args))


def result_of_call(work: asyncio.Task[CallResult]) -> CallResult:
    """Return the result of a task that runs `call_function`.

    If an awaitable of the function fails with `GeneratorExit`, Python closes all coroutines that
    await it, even those that would catch it; and a function may cancel the task it runs in.  Both
    are first seen here.
    """
    try:
        return work.result()
    except (GeneratorExit, asyncio.CancelledError) as exc:
        return CallResult(error=exc)


def _is_async(function: Callable[..., Any]) -> bool:
    called = getattr(function, "__call__", None)  # noqa: B004, for objects that are called like functions
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)


async def _awaited(function: Callable[[], Any]) -> CallResult:
    try:
        return CallResult(await function())
    except asyncio.CancelledError as exc:
        current = asyncio.current_task()
        if current is not None and current.cancelling():
            raise
        return CallResult(error=exc)
    except (KeyboardInterrupt, SystemExit) as exc:
        if is_raised_by_signal(exc):
            raise
        return CallResult(error=exc)
    except BaseException as exc:
        return CallResult(error=exc)


_RAISE: Final = dis.opmap["RAISE_VARARGS"]


def is_raised_by_signal(error: BaseException) -> bool:
    """Return whether a signal handler raised the error, and not the function itself.

    Python calls signal handlers between any two instructions of the main thread.  A handler that is
    written in Python is among the frames of the traceback.  The built-in one for Ctrl-C has no
    frame: then the instruction of the innermost frame is not a `raise`.
    """
    if threading.current_thread() is not threading.main_thread():
        return False
    max_running = list(_max_running(error.__traceback__))
    if not {code for code, _ in max_running}.isdisjoint(_handlers()):
        return True
    code, at = max_running[-1]
    return isinstance(error, KeyboardInterrupt) and code.co_code[at] != _RAISE


def _max_running(trace: TracebackType | None) -> Iterator[tuple[CodeType, int]]:
    """Yield the code and the instruction index of each frame, the innermost last."""
    while trace is not None:
        yield trace.tb_frame.f_code, trace.tb_lasti
        trace = trace.tb_next


def _handlers() -> Iterator[CodeType]:
    """Yield the code of the signal handlers that are written in Python."""
    for number in signal.valid_signals():
        handler: Any = signal.getsignal(number)
        while isinstance(handler, functools.partial):
            handler = handler.func
        code = getattr(handler, "__code__", None)
        if isinstance(code, CodeType):
            yield code


async def _in_thread(function: Callable[..., Any], *args: Any) -> CallResult:
    def answered() -> CallResult:
        try:
            return CallResult(function(*args))
        except BaseException as exc:
            return CallResult(error=exc)

    return await in_thread(answered)


log = structlog.get_logger()

MAX_TIMEOUT_SECONDS = 30 * 86_400.0
GRACE_SECONDS = 1.0
"""How long a cancelled async function may take to end."""


@dataclass(frozen=True, slots=True)
class AttemptOutcome:
    """The outcome of an attempt.

    Attributes:
        status: of the case, if no other attempt follows.
        error: why it did not succeed; its type is empty if none is known.
        execution: the result of the backend.
        test_result: the result of a custom function.
        spent: what it used; None unless the plan limits the cost and it could be read.
    """

    status: TaskStatus
    error: ErrorInfo | None = None
    execution: ExecutionResult | None = None
    test_result: TestResult | None = None
    spent: Spent | None = None

    @property
    def retryable(self) -> bool:
        """Whether another attempt makes sense, which only the error says.

        So a time-out is not retried unless the backend marks its error as retryable, and a result
        that a custom function returned is not retried, whatever its status.
        """
        return self.status is not TaskStatus.CANCELLED and self.error is not None and self.error.retryable

    def result_of(self, task: Task) -> TaskResult:
        """Return the result of a task whose last attempt has this outcome."""
        return TaskResult(
            task_id=task.task_id,
            workflow_id=task.workflow_id,
            index=task.index,
            case=task.case,
            task_status=self.status,
            created_at=task.created_at,
            started_at=task.started_at,
            finished_at=task.finished_at,
            execution_time=task.seconds,
            attempt_count=task.attempt_count,
            error_type=self.error.type or None if self.error else None,
            error_message=self.error.message if self.error else None,
            execution=self.execution,
            test_result=self.test_result,
            spent=self.spent,
            used=task.used,
        )


def cancelled(reason: str, execution: ExecutionResult | None = None) -> AttemptOutcome:
    """Return the outcome of an attempt that was cancelled for this reason."""
    return AttemptOutcome(TaskStatus.CANCELLED, ErrorInfo("RunCancelledError", reason), execution)


class AttemptRunner(Protocol):
    """Runs attempts."""

    async def run(self, task: Task, cancel: asyncio.Event, report: Report) -> AttemptOutcome:
        """Run one attempt.  Raises nothing but the `CancelledError` of its own cancellation.

        Args:
            task: the task.
            cancel: when set, the attempt is to end soon.
            report: receives what the tool reports.
        """


class BackendAttemptRunner:
    """Runs attempts on a backend, under the policy of the plan."""

    def __init__(self, backend: Executor, policy: ExecutionPolicy) -> None:
        self._backend = backend
        self._has_seeds_of_attempts = policy.retry_policy.seed == "attempt"
        limit_seconds = policy.stop_conditions.timeout_per_task
        self._policy = Policy(
            timeout_seconds=None if limit_seconds is None else min(limit_seconds, MAX_TIMEOUT_SECONDS),
            max_attempts=1,  # the plan retries, so that its rate limit and its counts hold
            isolation=policy.isolation,
        )

    async def run(self, task: Task, cancel: asyncio.Event, report: Report) -> AttemptOutcome:
        """Run one attempt.  An exception of the backend is an error of the case."""
        answer = await _awaited(lambda: self._run(task, cancel, report))
        if answer.error is not None:
            return AttemptOutcome(TaskStatus.ERROR, _described(answer.error))
        result = answer.value
        if not isinstance(result, ExecutionResult) or TASK_STATUS_OF_RUN.get(result.status) not in TERMINAL:
            found = f"{type(result).__name__} with status {getattr(result, 'status', None)!s:.80}"
            return AttemptOutcome(
                TaskStatus.ERROR, ErrorInfo("PlanError", f"the backend returned no final result: {found}")
            )
        return AttemptOutcome(status_of(result), result.error, execution=result)

    async def _run(self, task: Task, cancel: asyncio.Event, report: Report) -> Any:
        run_id = task.task_id if task.attempt_count == 1 else f"{task.task_id}.{task.attempt_count}"
        policy = self._policy.model_copy(update={"seed": self._seed(task)})
        call = Execution(task.tool, task.parameters, RunOptions(run_id, policy))
        return await self._backend.run(call, report=report, cancel=cancel)

    def _seed(self, task: Task) -> int | None:
        seed = task.case.seed
        if seed is None or not self._has_seeds_of_attempts:
            return seed
        return attempt_seed(seed, task.attempt_count)


class FunctionAttemptRunner:
    """Runs attempts by a custom function, synchronous or not, which gets the task.

    A `TestResult` that the function returns is the result; any other value becomes the outputs of
    a success.  An exception fails the case, and is retried by the same rule as a tool's.  A
    synchronous function is called in a thread, which nothing can end: after its time limit, or
    when it is cancelled, the case gets its result in time, and the function goes on until it
    returns; its result is dropped.

    Args:
        function: is called as `function(task)`.
        timeout_seconds: the limit of each call; None for no limit.
    """

    def __init__(self, function: Callable[[Task], Any], timeout_seconds: float | None) -> None:
        self._function = function
        self._timeout_seconds = timeout_seconds

    async def run(self, task: Task, cancel: asyncio.Event, report: Report) -> AttemptOutcome:
        """Run one attempt."""
        loop = asyncio.get_running_loop()
        started_seconds = loop.time()
        # Not in a task group, which would wait for a function that ignores its cancellation.
        work, asked = loop.create_task(call_function(self._function, task)), loop.create_task(cancel.wait())
        try:
            done, _ = await asyncio.wait(
                {work, asked}, timeout=self._timeout_seconds, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            asked.cancel()
            await _ended(work, task)
        if work in done:
            return _judged(task, result_of_call(work), loop.time() - started_seconds)
        if asked in done:
            return cancelled("the call was cancelled")
        limit = f"{self._timeout_seconds:g} s"
        error = ErrorInfo("ToolTimeoutError", f"the function was still running after {limit}")
        return AttemptOutcome(TaskStatus.TIMEOUT, error)


async def _ended(work: asyncio.Task[CallResult], task: Task) -> None:
    if work.done():
        return
    work.cancel()
    await asyncio.wait({work}, timeout=GRACE_SECONDS)
    if not work.done():
        log.warning("function.abandoned", task_id=task.task_id, grace_seconds=GRACE_SECONDS)


def _judged(task: Task, answer: CallResult, seconds: float) -> AttemptOutcome:
    if answer.error is not None:
        return AttemptOutcome(TaskStatus.FAILED, _described(answer.error))
    if not isinstance(answer.value, TestResult):
        return AttemptOutcome(TaskStatus.SUCCEEDED, test_result=_success(task, answer.value, seconds))
    result = answer.value
    try:
        status = TASK_STATUS_OF_TEST[TestStatus(result.status)]
    except ValueError:
        known = ", ".join(TestStatus)
        message = f"the function's result has the status {result.status!r:.80}; expected one of {known}"
        return AttemptOutcome(TaskStatus.FAILED, ErrorInfo("ToolResultError", message))
    is_error = result.error_message is not None or result.error_type is not None
    error = ErrorInfo(result.error_type or "", result.error_message or "") if is_error else None
    return AttemptOutcome(status, error, test_result=result)


def _success(task: Task, value: Any, seconds: float) -> TestResult:
    spent = spent_in(value)
    return TestResult(
        workflow_id=task.workflow_id,
        execution_id=task.task_id,
        timestamp=task.created_at,
        status=TestStatus.SUCCESS,
        execution_time=seconds,
        tokens_used=spent.tokens_used,
        cost=spent.cost,
        inputs=task.parameters,
        outputs=outputs_of(value),
        dataset=task.case.dataset,
    )


_NO_PARTIAL_RESULTS: Final = 0


def _described(error: BaseException) -> ErrorInfo:
    data = serialize.exception_data(error, _NO_PARTIAL_RESULTS)
    names = "error_type", "message", "traceback", "retryable", "retry_after_seconds"
    return ErrorInfo(*(data[name] for name in names))
