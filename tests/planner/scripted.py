"""A backend that follows a script, and manifests for it."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from services.executor.isolation.calls import Event, Report
from services.executor.outcome import Status
from services.planner.execution import ErrorInfo, Execution, ExecutionResult
from services.planner.models import ExecutionPolicy, RunManifest, TestCase
from services.planner.scheduler import TaskScheduler
from services.planner.tasks import RunExecutionResult, Task, TaskResult, TaskStatus

PROMPT_SECONDS = 3.0
"""The most seconds for what takes milliseconds, on a busy machine."""

Script = Callable[[Execution, asyncio.Event], Awaitable[Any]]


def result(
    call: Execution,
    status: Status = Status.COMPLETED,
    *,
    value: str | None = "1",
    error: str | None = None,
    retryable: bool = False,
) -> ExecutionResult:
    """A result of the call; `error` is the type of its error."""
    return ExecutionResult(
        run_id=call.options.run_id,
        status=status,
        storage_type="memory",
        storage_base="memory://",
        result=value if status is Status.COMPLETED else None,
        error=ErrorInfo(error, "as the test says", retryable=retryable) if error else None,
        parameters=call.parameters,
        seed=call.options.policy.seed,
    )


async def success(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
    """Return at once."""
    return result(call)


async def failure(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
    """Fail permanently."""
    return result(call, Status.FAILED, error="ValueError")


async def transient_failure(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
    """Fail with a retryable error."""
    return result(call, Status.FAILED, error="ConnectionError", retryable=True)


async def until_cancelled(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
    """Run until the call is cancelled."""
    await cancel.wait()
    return result(call, Status.CANCELLED, error="RunCancelledError")


class Scripted:
    """A backend that follows a script; records its calls, and how many ran at once."""

    def __init__(self, script: Script = success, capacity: int = 100) -> None:
        self.capacity = capacity
        self.calls: list[Execution] = []
        self.busy = 0
        self.most_busy = 0
        self.begun = asyncio.Event()
        self._script = script

    async def run(
        self, call: Execution, *, report: Report | None = None, cancel: asyncio.Event | None = None
    ) -> ExecutionResult:
        """Follow the script."""
        assert cancel is not None
        self.calls.append(call)
        self.busy += 1
        self.most_busy = max(self.busy, self.most_busy)
        self.begun.set()
        try:
            return await self._script(call, cancel)  # type: ignore[no-any-return]
        finally:
            self.busy -= 1

    @property
    def numbers(self) -> list[int]:
        """The parameter `n` of each call, in their order."""
        return [call.parameters["n"] for call in self.calls]


class Recorded:
    """A listener that records everything."""

    def __init__(self) -> None:
        self.moves: list[tuple[int, TaskStatus]] = []
        self.results: list[TaskResult] = []
        self.events: list[Event] = []

    def on_status(self, task: Task) -> None:
        """Record the status."""
        self.moves.append((task.index, task.task_status))

    def on_result(self, result: TaskResult) -> None:
        """Record the result."""
        self.results.append(result)

    def on_event(self, task: Task, event: Event) -> None:
        """Record the event."""
        self.events.append(event)

    @property
    def transitions(self) -> list[tuple[TaskStatus, TaskStatus]]:
        """The status before and after each change."""
        before: dict[int, TaskStatus] = {}
        found = []
        for index, status in self.moves:
            found.append((before.get(index, TaskStatus.PENDING), status))
            before[index] = status
        return found


class FakeTime:
    """A clock that only its own sleep advances."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, tzinfo=UTC)
        self.slept: list[float] = []

    def __call__(self) -> datetime:
        return self.now

    @property
    def seconds(self) -> float:
        """The sum of all sleeps."""
        return sum(self.slept)

    async def sleep(self, seconds: float) -> None:
        """Advance the clock."""
        self.slept.append(seconds)
        self.now += timedelta(seconds=seconds)
        await asyncio.sleep(0)


def plan(cases: int, **policy: Any) -> RunManifest:
    """A plan whose cases are numbered by their parameter `n`."""
    return RunManifest(
        workflow_id="the plan",
        tool="tool",
        cases=tuple(TestCase(parameters={"n": number}, dataset=f"d{number}") for number in range(cases)),
        execution_policy=ExecutionPolicy.model_validate(policy),
    )


def states(results: Any) -> list[str]:
    """The status of each result."""
    return [one.task_status.value for one in results.task_results]


async def execute(backend: Any, manifest: RunManifest, **options: Any) -> RunExecutionResult:
    """Execute the plan; `options` are the scheduler's."""
    return await TaskScheduler(backend, **options).run_manifest_async(manifest)


async def perform(backend: Any, manifest: RunManifest, time: FakeTime, **options: Any) -> RunExecutionResult:
    """Execute the plan in fake time."""
    return await execute(backend, manifest, now_fn=time, sleep_fn=time.sleep, **options)
