"""When an attempt may begin: rate limit, batches, retries."""

import asyncio
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from services.executor.outcome import Status
from services.planner.execution import ErrorInfo, Execution, ExecutionResult
from services.planner.scheduler import TaskScheduler
from services.planner.tasks import TaskStatus
from tests.planner.scripted import (
    FakeTime,
    Script,
    Scripted,
    perform,
    plan,
    result,
    states,
)

# -- pace -----------------------------------------------------------------------------


SIXTY_A_MINUTE = {"per_minute": 60, "burst": 5}


async def test_eight_tasks_at_sixty_a_minute_with_a_burst_of_five_take_three_seconds(time: FakeTime) -> None:
    found = await perform(Scripted(), plan(8, concurrency=8, rate_control=SIXTY_A_MINUTE), time)

    assert found.statistics.succeeded == 8
    assert time.seconds == pytest.approx(3)


async def test_a_batch_larger_than_the_burst_works(time: FakeTime) -> None:
    manifest = plan(20, concurrency=20, rate_control=SIXTY_A_MINUTE, batch_size=10, backoff_seconds=2)
    found = await perform(Scripted(), manifest, time)

    assert found.statistics.succeeded == 20
    assert time.seconds == pytest.approx(15)


async def test_retries_take_tokens_too(time: FakeTime) -> None:
    async def once_more(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        return result(call, Status.FAILED, error="ConnectionError", retryable=True)

    policy = {"max_attempts": 4, "backoff_seconds": 0}
    manifest = plan(2, concurrency=2, rate_control=SIXTY_A_MINUTE, retry_policy=policy)
    found = await perform(Scripted(once_more), manifest, time)

    assert found.statistics.attempts == 8
    assert time.seconds == pytest.approx(3)


def _no_sleep(seconds: float) -> None:
    """Comes back at once, and is no coroutine function."""


@pytest.mark.parametrize("sleep", [_no_sleep, lambda seconds: asyncio.sleep(0)])
async def test_a_clock_that_stands_still_blocks_nothing(sleep: Any) -> None:
    now = datetime(2030, 1, 1)
    policy = {"rate_control": {"per_minute": 1}, "batch_size": 3, "backoff_seconds": 60}
    scheduler = TaskScheduler(Scripted(), now_fn=lambda: now, sleep_fn=sleep)

    found = await scheduler.run_manifest_async(plan(10, concurrency=3, **policy))

    assert found.statistics.succeeded == 10


async def test_a_batch_begins_a_pause_after_the_end_of_the_one_before(time: FakeTime) -> None:
    seen: list[tuple[int, float, int]] = []

    async def noting(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        seen.append((call.parameters["n"], time.seconds, backend.busy))
        await asyncio.sleep(0)
        return result(call)

    backend = Scripted(noting)
    await perform(backend, plan(5, concurrency=5, batch_size=2, backoff_seconds=10), time)

    assert [(number, seconds) for number, seconds, _ in seen] == [(0, 0), (1, 0), (2, 10), (3, 10), (4, 20)]
    assert backend.most_busy == 2


# -- retries --------------------------------------------------------------------------


def failing(times: int, *, retryable: bool = True, status: Status = Status.FAILED) -> Script:
    """Fails so often for each case, then succeeds."""
    failed: dict[int, int] = {}

    async def script(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        number = call.parameters["n"]
        failed[number] = failed.get(number, 0) + 1
        if failed[number] <= times:
            return result(call, status, error="ConnectionError", retryable=retryable)
        return result(call)

    return script


async def test_a_transient_error_is_retried_after_growing_pauses(time: FakeTime) -> None:
    backend = Scripted(failing(3))
    policy = {"max_attempts": 4, "backoff_seconds": 1, "backoff_multiplier": 3, "jitter": 0.5}

    found = await perform(backend, plan(1, retry_policy=policy), time, dice=lambda: 0.75)

    assert time.slept == [1.25, 3.75, 11.25]
    (one,) = found.task_results
    assert (one.task_status, one.attempt_count, one.error_type) == (TaskStatus.SUCCEEDED, 4, None)
    ids = [call.options.run_id for call in backend.calls]
    assert ids == [one.task_id, *(f"{one.task_id}.{number}" for number in (2, 3, 4))]


async def test_no_retry_begins_before_the_pause_the_tool_asked_for(time: FakeTime) -> None:
    async def later(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        if call.options.run_id.endswith(".2"):
            return result(call)
        error = ErrorInfo("ConnectionError", "too many", retryable=True, retry_after_seconds=7.0)
        return replace(result(call, Status.FAILED, error="ConnectionError"), error=error)

    await perform(Scripted(later), plan(1, retry_policy={"max_attempts": 2, "backoff_seconds": 1}), time)

    assert time.slept == [7.0]


async def test_the_last_attempts_error_is_the_cases(time: FakeTime) -> None:
    found = await perform(Scripted(failing(9)), plan(1, retry_policy={"max_attempts": 3}), time)

    (one,) = found.task_results
    assert (one.task_status, one.attempt_count) == (TaskStatus.FAILED, 3)
    assert one.error_type == "ConnectionError"
    assert one.execution is not None


async def test_a_permanent_error_is_not_retried(time: FakeTime) -> None:
    policy = {"max_attempts": 3}
    found = await perform(Scripted(failing(9, retryable=False)), plan(1, retry_policy=policy), time)

    assert found.task_results[0].attempt_count == 1


@pytest.mark.parametrize(("retryable", "attempts"), [(False, 1), (True, 2)])
async def test_a_timeout_is_retried_only_if_the_backend_says_so(
    time: FakeTime, retryable: bool, attempts: int
) -> None:
    script = failing(9, retryable=retryable, status=Status.TIMEOUT)
    found = await perform(Scripted(script), plan(1, retry_policy={"max_attempts": 2}), time)

    (one,) = found.task_results
    assert (one.task_status, one.attempt_count) == (TaskStatus.TIMEOUT, attempts)


async def test_a_case_that_waits_for_its_retry_does_not_count_as_running(time: FakeTime) -> None:
    others_ended = asyncio.Event()

    async def until_others_have_ended(seconds: float) -> None:
        await others_ended.wait()

    async def first_fails_once(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        if backend.numbers.count(0) == 1 and call.parameters["n"] == 0:
            return result(call, Status.FAILED, error="ConnectionError", retryable=True)
        if call.parameters["n"] == 3:
            others_ended.set()
        return result(call)

    backend = Scripted(first_fails_once)
    scheduler = TaskScheduler(backend, sleep_fn=until_others_have_ended)
    found = await scheduler.run_manifest_async(plan(4, concurrency=1, retry_policy={"max_attempts": 2}))

    assert backend.numbers == [0, 1, 2, 3, 0]
    assert states(found) == ["succeeded"] * 4
