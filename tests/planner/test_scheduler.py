"""The scheduler with a scripted backend: results, order, concurrency, statuses."""

import asyncio
from typing import Any

import pytest

from services.executor.isolation.calls import Progress, Report
from services.executor.outcome import Status
from services.planner.cancellation import CancellationToken
from services.planner.execution import Execution, ExecutionResult
from services.planner.models import TestCase
from services.planner.scheduler import TaskScheduler
from services.planner.tasks import TRANSITIONS, utc_now
from tests.planner.scripted import (
    FakeTime,
    Recorded,
    Scripted,
    perform,
    plan,
    result,
    states,
    until_cancelled,
)

# -- results --------------------------------------------------------------------------


async def test_results_are_in_the_order_of_the_cases(time: FakeTime) -> None:
    ended: list[int] = []
    gates = [asyncio.Event() for _ in range(4)]

    async def last_first(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        number = call.parameters["n"]
        if number < 3:
            await gates[number + 1].wait()
        gates[number].set()
        ended.append(number)
        return result(call, value=str(number))

    found = await perform(Scripted(last_first), plan(4, concurrency=4), time)

    assert ended == [3, 2, 1, 0]
    assert [one.index for one in found.task_results] == [0, 1, 2, 3]
    assert [one.execution.result for one in found.task_results if one.execution] == ["0", "1", "2", "3"]
    assert [one.dataset for one in found.task_results] == ["d0", "d1", "d2", "d3"]
    assert found.stopped is None


async def test_a_backend_gets_tool_parameters_seed_and_policy(time: FakeTime) -> None:
    backend = Scripted()
    manifest = plan(1, stop_conditions={"timeout_per_task": 7}, isolation="spawn").model_copy(
        update={"cases": (TestCase(parameters={"n": 0}, seed=11),)}
    )

    found = await perform(backend, manifest, time)

    (call,) = backend.calls
    policy = call.options.policy
    assert (call.tool, call.parameters) == ("tool", {"n": 0})
    assert (policy.timeout_seconds, policy.isolation, policy.seed) == (7, "spawn", 11)
    assert policy.max_attempts == 1
    assert call.options.run_id == found.task_results[0].task_id


async def test_statistics_count_how_cases_ended(time: FakeTime) -> None:
    endings = [
        (Status.COMPLETED, None),
        (Status.FAILED, "ValueError"),
        (Status.TIMEOUT, "ToolTimeoutError"),
        (Status.LOST, "Lost"),
        (Status.FAILED, "ToolCrashedError"),
        (Status.CANCELLED, "RunCancelledError"),
    ]

    async def script(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        await time.sleep(2)
        status, error = endings[call.parameters["n"]]
        return result(call, status, error=error)

    found = await perform(Scripted(script), plan(6), time)

    assert states(found) == ["succeeded", "failed", "timeout", "error", "error", "cancelled"]
    counted = found.statistics
    assert (counted.total, counted.succeeded, counted.failed, counted.timeout) == (6, 1, 1, 1)
    assert (counted.error, counted.cancelled, counted.unsuccessful, counted.attempts) == (2, 1, 4, 6)
    assert (counted.execution_time, counted.wall_time) == (12, 12)
    assert found.stopped is None, "one run was cancelled by somebody, not the plan"
    first = found.task_results[1]
    assert (first.execution_time, first.attempt_count) == (2, 1)
    assert (first.error_type, first.error_message) == ("ValueError", "as the test says")


async def test_a_plan_without_cases_has_no_results(time: FakeTime) -> None:
    found = await perform(Scripted(), plan(0), time)

    assert (found.task_results, found.statistics.total, found.stopped) == ((), 0, None)


async def test_clock_and_ids_can_be_given(time: FakeTime) -> None:
    ids = iter(["the run", "first", "second"])

    found = await perform(Scripted(), plan(2), time, id_fn=lambda: next(ids))

    assert found.run_id == "the run"
    assert [one.task_id for one in found.task_results] == ["first", "second"]
    assert {one.created_at for one in found.task_results} == {time.now}


async def test_a_listener_hears_everything(time: FakeTime) -> None:
    class Talking(Scripted):
        async def run(
            self, call: Execution, *, report: Report | None = None, cancel: asyncio.Event | None = None
        ) -> ExecutionResult:
            assert report is not None
            report(Progress(1, 2, "half"))
            return await super().run(call, report=report, cancel=cancel)

    listener = Recorded()
    found = await perform(Talking(), plan(1), time, listener=listener)

    assert [status.value for _, status in listener.moves] == ["queued", "running", "succeeded"]
    assert listener.events == [Progress(1, 2, "half")]
    assert listener.results == list(found.task_results)


# -- places ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("concurrency", "capacity", "given", "at_once"),
    [(3, 100, None, 3), (8, 2, None, 2), (8, 100, 4, 4), (5, 0, None, 1)],
)
async def test_concurrency_and_capacity_limit_how_many_run_at_once(
    time: FakeTime, concurrency: int, capacity: int, given: int | None, at_once: int
) -> None:
    async def slowly(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        for _ in range(20):
            await asyncio.sleep(0)
        return result(call)

    backend = Scripted(slowly, capacity)
    await perform(backend, plan(20, concurrency=concurrency), time, capacity=given)

    assert backend.most_busy == at_once


async def test_the_next_case_begins_as_soon_as_one_ends(time: FakeTime) -> None:
    last_began = asyncio.Event()

    async def first_waits_for_last(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        if call.parameters["n"] == 9:
            last_began.set()
        if call.parameters["n"] == 0:
            await last_began.wait()
        return result(call)

    found = await perform(Scripted(first_waits_for_last), plan(10, concurrency=2, batch_size=2), time)

    assert found.statistics.succeeded == 10


# -- states ---------------------------------------------------------------------------


async def test_every_transition_of_the_table_is_entered() -> None:
    listener, token = Recorded(), CancellationToken()

    async def of_all_kinds(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        match call.parameters["n"], call.options.run_id.endswith(".2"):
            case 0, _:
                return result(call)
            case 1, False:
                return result(call, Status.FAILED, error="ConnectionError", retryable=True)
            case 1, True:
                return result(call, Status.FAILED, error="ValueError")
            case 2, _:
                return result(call, Status.TIMEOUT, error="ToolTimeoutError")
            case 3, _:
                raise ValueError("a fault of the backend")
            case _:
                token.cancel()
                return await until_cancelled(call, cancel)

    policy: dict[str, Any] = {"retry_policy": {"max_attempts": 2, "backoff_seconds": 0}, "batch_size": 6}
    manifest = plan(7, **policy, backoff_seconds=60)
    found = await TaskScheduler(Scripted(of_all_kinds), listener=listener).run_manifest_async(manifest, token)

    allowed = {(before, after) for before, next_ones in TRANSITIONS.items() for after in next_ones}
    assert set(listener.transitions) == allowed
    assert states(found) == ["succeeded", "failed", "timeout", "error", *["cancelled"] * 3]


# -- the synchronous twin -------------------------------------------------------------


def test_a_plan_may_be_executed_without_a_loop() -> None:
    found = TaskScheduler(Scripted()).run_manifest(plan(3))

    assert states(found) == ["succeeded"] * 3


async def test_a_plan_may_be_executed_synchronously_in_a_loop_too() -> None:
    found = TaskScheduler(task_execution_func=lambda task: task.index).run_manifest(plan(3))

    assert states(found) == ["succeeded"] * 3


@pytest.mark.parametrize("options", [{}, {"backend": Scripted(), "task_execution_func": print}])
def test_a_scheduler_takes_either_a_backend_or_a_function(options: Any) -> None:
    with pytest.raises(ValueError, match="either a backend or a task_execution_func"):
        TaskScheduler(**options)


async def test_ten_thousand_cases_are_ten_thousand_results() -> None:
    found = await TaskScheduler(Scripted()).run_manifest_async(plan(10_000, concurrency=16))

    assert [one.index for one in found.task_results] == list(range(10_000))
    assert found.statistics.succeeded == 10_000
    assert found.started_at <= found.finished_at <= utc_now()
