"""Cancelling a plan takes effect at once, whatever the plan waits for."""

import asyncio
import threading
import time
from typing import Any

import pytest

from services.executor.outcome import Status
from services.planner.cancellation import CancellationToken
from services.planner.execution import Execution, ExecutionResult
from services.planner.scheduler import TaskScheduler
from services.planner.tasks import TaskStatus
from tests.planner.scripted import (
    PROMPT_SECONDS,
    Recorded,
    Script,
    Scripted,
    execute,
    plan,
    result,
    states,
    success,
    transient_failure,
    until_cancelled,
)


class Waiting:
    """Sleeps for as long as it is told, and says that it does; asynchronous, or synchronous in a thread."""

    def __init__(self) -> None:
        self.began = threading.Event()

    async def sleep(self, seconds: float) -> None:
        """For real."""
        self.began.set()
        await asyncio.sleep(seconds)

    def block(self, seconds: float) -> None:
        """A thread; it goes on in vain afterwards, so not for long."""
        self.began.set()
        time.sleep(min(seconds, PROMPT_SECONDS + 1))


WAITS: dict[str, tuple[Script, dict[str, Any]]] = {
    "back-off": (transient_failure, {"retry_policy": {"max_attempts": 2, "backoff_seconds": 600}}),
    "batch pause": (success, {"batch_size": 1, "backoff_seconds": 600}),
    "rate limit": (success, {"rate_control": {"per_minute": 0.1}}),
}


@pytest.mark.parametrize("how", ["sleep", "block"])
@pytest.mark.parametrize("wait", WAITS)
def test_cancelling_from_another_thread_takes_effect_at_once(wait: str, how: str) -> None:
    script, policy = WAITS[wait]
    token, waiting = CancellationToken(), Waiting()
    scheduler = TaskScheduler(Scripted(script), sleep_fn=getattr(waiting, how))

    def cancel_then() -> None:
        waiting.began.wait(30)
        cancelled_at.append(time.monotonic())
        token.cancel("no longer wanted")

    cancelled_at: list[float] = []
    thread = threading.Thread(target=cancel_then)
    thread.start()
    found = scheduler.run_manifest(plan(2, **policy), token)
    thread.join()

    assert time.monotonic() - cancelled_at[0] < PROMPT_SECONDS
    assert found.stopped == "no longer wanted"
    assert found.task_results[1].task_status is TaskStatus.CANCELLED
    assert len(found.task_results) == 2


async def test_a_case_cancelled_before_its_retry_keeps_the_result_of_its_attempt() -> None:
    token = CancellationToken()

    async def cancelling(seconds: float) -> None:
        token.cancel()
        await asyncio.sleep(600)

    manifest = plan(1, retry_policy={"max_attempts": 2})
    scheduler = TaskScheduler(Scripted(transient_failure), sleep_fn=cancelling)
    (one,) = (await scheduler.run_manifest_async(manifest, token)).task_results

    assert (one.task_status, one.attempt_count) == (TaskStatus.CANCELLED, 1)
    assert one.execution is not None
    assert one.execution.status is Status.FAILED
    assert one.finished_at is not None


async def test_a_cancelled_token_lets_no_case_begin() -> None:
    backend, token, listener = Scripted(), CancellationToken(), Recorded()
    token.cancel("too late")

    found = await TaskScheduler(backend, listener=listener).run_manifest_async(plan(3), token)

    assert backend.calls == []
    assert states(found) == ["cancelled"] * 3
    assert [one.index for one in listener.results] == [0, 1, 2]
    assert found.stopped == "too late"


async def test_a_call_that_succeeds_despite_its_cancellation_has_succeeded() -> None:
    token = CancellationToken()

    async def finishing(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        token.cancel()
        await cancel.wait()
        return result(call)

    found = await TaskScheduler(Scripted(finishing)).run_manifest_async(plan(2), token)

    assert states(found) == ["succeeded", "cancelled"]


async def test_a_failure_after_the_stop_is_not_retried() -> None:
    token = CancellationToken()

    async def failing(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        token.cancel()
        await cancel.wait()
        return await transient_failure(call, cancel)

    backend = Scripted(failing)
    manifest = plan(1, retry_policy={"max_attempts": 5, "backoff_seconds": 0})
    found = await TaskScheduler(backend).run_manifest_async(manifest, token)

    assert (states(found), len(backend.calls)) == (["failed"], 1)


async def test_a_call_that_ignores_its_cancellation_is_abandoned() -> None:
    token = CancellationToken()

    async def deaf(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        token.cancel()
        await asyncio.sleep(600)
        raise AssertionError

    backend = Scripted(deaf)
    scheduler = TaskScheduler(backend, cancel_seconds=0.05)
    found = await scheduler.run_manifest_async(plan(2), token)

    assert states(found) == ["cancelled", "cancelled"]
    assert backend.busy == 0


async def test_cancelling_the_executions_task_leaves_nothing_running() -> None:
    backend, listener = Scripted(until_cancelled), Recorded()
    scheduler = TaskScheduler(backend, listener=listener)
    execution = asyncio.create_task(scheduler.run_manifest_async(plan(3, concurrency=2)))
    await backend.begun.wait()

    execution.cancel()
    with pytest.raises(asyncio.CancelledError):
        await execution

    assert backend.busy == 0
    assert [one.task_status for one in listener.results] == [TaskStatus.CANCELLED] * 3
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_backend_that_raises_cancelled_error_does_not_block_the_plan() -> None:
    async def swallowing(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            return await transient_failure(call, cancel)
        raise AssertionError

    backend = Scripted(swallowing)
    manifest = plan(1, retry_policy={"max_attempts": 5, "backoff_seconds": 600})
    execution = asyncio.create_task(TaskScheduler(backend).run_manifest_async(manifest))
    await backend.begun.wait()

    execution.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(PROMPT_SECONDS):
            await execution

    assert len(backend.calls) == 1


async def test_nothing_is_left_in_the_loop_after_a_stop() -> None:
    manifest = plan(5, concurrency=2, stop_conditions={"timeout": 0.05})
    await execute(Scripted(until_cancelled), manifest)

    assert asyncio.all_tasks() == {asyncio.current_task()}
