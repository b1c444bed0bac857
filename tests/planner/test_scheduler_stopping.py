"""What stops a plan."""

import asyncio

import pytest

from services.executor.outcome import Status
from services.planner.execution import Execution, ExecutionResult
from services.planner.tasks import Task, TaskResult, TaskStatus
from tests.planner.scripted import (
    Recorded,
    Scripted,
    execute,
    failure,
    plan,
    result,
    states,
    success,
    transient_failure,
    until_cancelled,
)


async def test_two_failures_are_exactly_two_calls() -> None:
    backend = Scripted(failure)

    found = await execute(backend, plan(10, concurrency=1, stop_conditions={"max_failures": 2}))

    assert backend.numbers == [0, 1]
    assert states(found) == ["failed"] * 2 + ["cancelled"] * 8
    assert found.stopped == "max_failures: 2 of 2 cases did not succeed"
    assert {one.error_message for one in found.task_results[2:]} == {found.stopped}
    assert [one.attempt_count for one in found.task_results] == [1] * 2 + [0] * 8
    assert found.task_results[5].started_at is None


async def test_a_retried_attempt_does_not_count_as_a_failure() -> None:
    policy = {
        "retry_policy": {"max_attempts": 3, "backoff_seconds": 0},
        "stop_conditions": {"max_failures": 2},
    }
    backend = Scripted(transient_failure)

    found = await execute(backend, plan(3, **policy))

    assert backend.numbers == [0, 0, 0, 1, 1, 1]
    assert states(found) == ["failed", "failed", "cancelled"]


async def test_a_failure_rate_counts_from_the_tenth_case_on() -> None:
    async def every_second_fails(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        return await (failure if call.parameters["n"] % 2 == 0 else success)(call, cancel)

    backend = Scripted(every_second_fails)
    found = await execute(backend, plan(30, stop_conditions={"failure_rate": 0.5}))

    assert len(backend.calls) == 10
    assert found.stopped == "failure_rate: 5 of 10 cases did not succeed; the limit is 0.5"


async def test_cancelled_cases_are_neither_failures_nor_successes() -> None:
    async def last_fails(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        if call.parameters["n"] == 9:
            return await failure(call, cancel)
        return result(call, Status.CANCELLED, error="RunCancelledError")

    found = await execute(Scripted(last_fails), plan(11, stop_conditions={"failure_rate": 0.1}))

    assert found.stopped is None
    assert found.statistics.failed == 1


async def test_running_attempts_end_when_a_condition_is_met() -> None:
    async def last_fails(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        return await (failure if call.parameters["n"] == 2 else until_cancelled)(call, cancel)

    backend = Scripted(last_fails)
    found = await execute(backend, plan(4, concurrency=3, stop_conditions={"max_failures": 1}))

    assert states(found) == ["cancelled", "cancelled", "failed", "cancelled"]
    assert [one.attempt_count for one in found.task_results] == [1, 1, 1, 0]
    assert backend.busy == 0


async def test_the_time_of_the_plan_is_limited() -> None:
    found = await execute(Scripted(until_cancelled), plan(2, stop_conditions={"timeout": 0.05}))

    assert states(found) == ["cancelled", "cancelled"]
    assert found.stopped == "timeout: the plan took more than 0.05 s"


async def test_a_condition_met_by_the_last_case_stops_nothing() -> None:
    found = await execute(Scripted(failure), plan(2, stop_conditions={"max_failures": 2}))

    assert states(found) == ["failed", "failed"]
    assert found.stopped is None


async def test_stoppers_hear_every_completion_in_order_until_one_stops_the_plan() -> None:
    heard: list[int] = []

    def third(result: TaskResult) -> str | None:
        heard.append(result.index)
        return "enough is known" if len(heard) == 3 else None

    found = await execute(Scripted(), plan(9), stoppers=[lambda result: None, third])

    assert heard == [0, 1, 2]
    assert found.stopped == "enough is known"
    assert found.statistics.cancelled == 6


async def test_a_stopper_that_raises_stops_the_plan() -> None:
    def broken(result: TaskResult) -> str | None:
        raise ZeroDivisionError("a fault in it")

    found = await execute(Scripted(), plan(3), stoppers=[broken])

    assert found.stopped == "a stop condition failed with ZeroDivisionError: a fault in it"
    assert states(found) == ["succeeded", "cancelled", "cancelled"]


@pytest.mark.parametrize("deaf_to", ["moved", "ended"])
async def test_a_listener_that_raises_stops_the_plan_and_no_result_is_lost(deaf_to: str) -> None:
    class Deaf(Recorded):
        def on_status(self, task: Task) -> None:
            if deaf_to == "moved" and task.task_status is TaskStatus.RUNNING:
                raise OSError("no space left")

        def on_result(self, result: TaskResult) -> None:
            if deaf_to == "ended":
                raise OSError("no space left")

    found = await execute(Scripted(), plan(3), listener=Deaf())

    assert found.stopped == "the listener failed with OSError: no space left"
    assert states(found)[1:] == ["cancelled", "cancelled"]


async def test_a_sleep_that_raises_stops_the_plan() -> None:
    async def broken(seconds: float) -> None:
        raise RuntimeError("no sleep")

    found = await execute(Scripted(), plan(2, rate_control={"per_minute": 1}), sleep_fn=broken)

    assert found.stopped == "sleep_fn failed with RuntimeError: no sleep"
    assert states(found) == ["succeeded", "cancelled"]
