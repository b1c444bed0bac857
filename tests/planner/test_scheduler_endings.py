"""Results that no backend should return."""

import asyncio
from typing import Any

import pytest

from services.executor.outcome import Status
from services.planner.execution import Execution, ExecutionResult
from tests.planner.scripted import (
    FakeTime,
    Scripted,
    perform,
    plan,
    result,
    states,
)


class Odd(BaseException):
    """What `except Exception` doesn't catch."""


@pytest.mark.parametrize(
    "error", [ValueError("no"), Odd("no"), SystemExit(3), asyncio.CancelledError("no"), GeneratorExit()]
)
async def test_any_exception_of_a_backend_is_one_error(time: FakeTime, error: BaseException) -> None:
    async def second_raises(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        if call.parameters["n"] == 1:
            raise error
        return result(call)

    found = await perform(Scripted(second_raises), plan(3, concurrency=3), time)

    assert states(found) == ["succeeded", "error", "succeeded"]
    assert found.task_results[1].error_type == type(error).__name__


async def test_a_backend_that_can_not_be_reached_is_asked_again(time: FakeTime) -> None:
    async def away(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        if len(backend.calls) == 1:
            raise ConnectionError("away")
        return result(call)

    backend = Scripted(away)
    found = await perform(backend, plan(1, retry_policy={"max_attempts": 2}), time)

    assert found.task_results[0].attempt_count == 2
    assert states(found) == ["succeeded"]


@pytest.mark.parametrize("nonsense", [None, 7, "running"])
async def test_a_result_that_is_not_final_is_an_error(time: FakeTime, nonsense: Any) -> None:
    async def script(call: Execution, cancel: asyncio.Event) -> Any:
        return result(call, Status.RUNNING) if nonsense == "running" else nonsense

    found = await perform(Scripted(script), plan(2), time)

    assert states(found) == ["error", "error"]
    assert "returned no final result" in str(found.task_results[0].error_message)
