"""The budget of a plan holds wherever the plan is executed, with concurrency and retries."""

import asyncio
import time as clock
from typing import Any

import pytest

from services.executor.outcome import Status
from services.planner.execution import Execution, ExecutionResult
from services.planner.models import Budget, RunManifest
from services.planner.scheduler import TaskScheduler
from services.planner.scheduling.budget import BudgetUse
from services.planner.service import ExecutorService
from services.planner.tasks import Spent, Task, TaskStatus, TestResult, TestStatus
from tests.planner.conftest import MakeLaboratory
from tests.planner.scripted import (
    PROMPT_SECONDS,
    FakeTime,
    Script,
    Scripted,
    execute,
    perform,
    plan,
    result,
    states,
    transient_failure,
    until_cancelled,
)

RUNS = "the budget of {:,} runs is used up; raise `budget.max_runs` to go on"
SECONDS = "the budget of {:g} seconds is used up; raise `budget.max_seconds` to go on"
COST = "the budget of a cost of {:g} is used up; raise `budget.max_cost` to go on"
STORED = "cas://" + "0" * 64


def budgeted(cases: int, budget: dict[str, Any], **policy: Any) -> RunManifest:
    """A plan with a budget."""
    return plan(cases, **policy).model_copy(update={"budget": Budget.model_validate(budget)})


def retried(attempts: int, pause_seconds: float = 0) -> dict[str, Any]:
    """A policy."""
    return {"retry_policy": {"max_attempts": attempts, "backoff_seconds": pause_seconds}}


def all_at_once(count: int, value: str = "1", time: FakeTime | None = None, seconds: float = 0) -> Script:
    """The first `count` calls end together, when all of them have begun; others when they are cancelled."""
    here, together = 0, asyncio.Event()

    async def script(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        nonlocal here
        here += 1
        if here > count:
            return await until_cancelled(call, cancel)
        if here == count:
            await asyncio.sleep(seconds) if time is None else await time.sleep(seconds)
            together.set()
        await together.wait()
        return result(call, value=value)

    return script


# -- runs -----------------------------------------------------------------------------


async def test_no_attempt_exceeds_the_budget_and_running_ones_end_by_themselves() -> None:
    backend = Scripted(all_at_once(5))

    found = await execute(backend, budgeted(10, {"max_runs": 5}, concurrency=8))

    assert backend.most_busy == len(backend.calls) == 5
    assert states(found) == ["succeeded"] * 5 + ["cancelled"] * 5
    assert found.stopped == RUNS.format(5)
    assert found.task_results[9].error_message == RUNS.format(5)


async def test_each_attempt_is_a_run(time: FakeTime) -> None:
    backend = Scripted(transient_failure)

    found = await perform(backend, budgeted(3, {"max_runs": 4}, concurrency=2, **retried(3)), time)

    assert len(backend.calls) == 4
    assert [one.attempt_count for one in found.task_results] == [2, 2, 0]
    assert states(found) == ["cancelled"] * 3
    assert found.stopped == RUNS.format(4)
    assert found.task_results[0].execution is not None
    assert found.task_results[0].execution.status is Status.FAILED


@pytest.mark.parametrize(
    "policy",
    [retried(3, 600), {"batch_size": 1, "backoff_seconds": 600}, {"rate_control": {"per_minute": 0.1}}],
)
async def test_no_pause_follows_the_last_run_of_the_budget(policy: dict[str, Any]) -> None:
    script = transient_failure if "retry_policy" in policy else all_at_once(1)
    started = clock.monotonic()

    found = await execute(Scripted(script), budgeted(3, {"max_runs": 1}, **policy))

    assert clock.monotonic() - started < PROMPT_SECONDS
    assert found.stopped == RUNS.format(1)
    assert found.statistics.attempts == 1


async def test_a_sufficient_budget_stops_nothing(time: FakeTime) -> None:
    budget = {"max_runs": 4, "max_seconds": 4, "max_cost": 4}

    async def one_second(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        await time.sleep(1)
        return result(call, value='{"cost": 1}')

    found = await perform(Scripted(one_second), budgeted(4, budget, batch_size=2, backoff_seconds=5), time)

    assert (states(found), found.stopped) == (["succeeded"] * 4, None)
    assert time.seconds == 4 + 5


# -- seconds --------------------------------------------------------------------------


async def test_the_seconds_of_all_that_run_at_once_are_added(time: FakeTime) -> None:
    backend = Scripted(all_at_once(2, time=time, seconds=1.5))

    found = await perform(backend, budgeted(6, {"max_seconds": 3}, concurrency=2), time)

    assert states(found) == ["succeeded"] * 2 + ["cancelled"] * 4
    assert found.stopped == SECONDS.format(3)


async def test_the_seconds_of_every_attempt_count(time: FakeTime) -> None:
    async def slow_failure(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        await time.sleep(1)
        return await transient_failure(call, cancel)

    backend = Scripted(slow_failure)
    found = await perform(backend, budgeted(1, {"max_seconds": 2.5}, **retried(9, 600)), time)

    assert len(backend.calls) == 3
    assert found.statistics.attempts == 3
    assert (states(found), found.stopped) == (["cancelled"], SECONDS.format(2.5))
    assert time.slept == [1, 600, 1, 1200, 1], "no pause for an attempt that doesn't follow"


# -- cost -----------------------------------------------------------------------------


async def test_the_cost_of_all_that_run_at_once_is_added() -> None:
    backend = Scripted(all_at_once(3, value='{"cost": 0.5}'))

    found = await execute(backend, budgeted(9, {"max_cost": 1.5}, concurrency=3))

    assert found.statistics.succeeded == 3
    assert found.stopped == COST.format(1.5)
    assert found.task_results[0].spent == Spent(0, 0.5)


async def test_only_the_last_result_of_a_retried_case_has_a_cost(time: FakeTime) -> None:
    async def second_time(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        if call.options.run_id.endswith(".2"):
            return result(call, value='{"cost": 0.5, "tokens_used": 7}')
        return await transient_failure(call, cancel)

    found = await perform(Scripted(second_time), budgeted(9, {"max_cost": 1}, **retried(3)), time)

    assert [one.attempt_count for one in found.task_results[:3]] == [2, 2, 0]
    assert (found.task_results[1].spent, found.stopped) == (Spent(7, 0.5), COST.format(1))


NO_COST = ('{"cost": 0}', '{"cost": "much"}', '{"cost": -9}', '{"cost": true}', "{}", "[1]", "3", None)
TOO_LARGE = '{"cost": 1' + "0" * 400 + "}"


@pytest.mark.parametrize("value", [*NO_COST, TOO_LARGE])
async def test_an_invalid_cost_counts_as_zero(value: str | None) -> None:
    async def script(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        return result(call, value=value if call.parameters["n"] == 1 else '{"cost": 0.5}')

    found = await execute(Scripted(script), budgeted(9, {"max_cost": 1}))

    assert (found.statistics.succeeded, found.stopped) == (3, COST.format(1))


@pytest.mark.parametrize("value", [STORED, 7])
async def test_a_cost_that_cant_be_read_stops_the_plan_and_says_which(value: Any) -> None:
    async def second_is_stored(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        return result(call, value=value if call.parameters["n"] == 1 else '{"cost": 0.5}')

    found = await execute(Scripted(second_is_stored), budgeted(5, {"max_cost": 9}))

    assert states(found) == ["succeeded"] * 2 + ["cancelled"] * 3
    assert str(found.stopped).startswith(
        "the budget of a cost of 9 can't be kept: the cost of case 1 is in a result that can't be read: "
    )


@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        ({"max_runs": 4}, RUNS.format(4)),
        ({"max_seconds": 0.4}, SECONDS.format(0.4)),
        ({"max_cost": 2}, COST.format(2)),
    ],
)
async def test_budgets_hold_where_results_are_stored(
    laboratory: MakeLaboratory, budget: dict[str, Any], reason: str, concurrency: int
) -> None:
    lab = await laboratory(inline_max_bytes=100)
    lab.tool(
        "tool",
        "import time\ndef tool(n):\n    time.sleep(0.1)\n"
        "    return {'cost': 0.5, 'tokens_used': 3, 'text': 'x' * 1_000}\n",
    )

    found = await execute(lab.backend, budgeted(30, budget, concurrency=concurrency))

    ended = [one for one in found.task_results if one.task_status is TaskStatus.SUCCEEDED]
    assert found.stopped == reason
    assert 1 <= len(ended) <= 5
    assert found.statistics.attempts <= 4 + (concurrency - 1) * ("max_runs" not in budget)
    assert all(one.execution and str(one.execution.result).startswith("cas://") for one in ended)
    assert {one.spent for one in ended} == {Spent(3, 0.5) if "max_cost" in budget else None}


# -- what was used before -------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "used"),
    [
        ({"max_runs": 5}, BudgetUse(runs=3)),
        ({"max_seconds": 5}, BudgetUse(seconds=3)),
        ({"max_cost": 5}, BudgetUse(cost=3)),
    ],
)
async def test_earlier_use_of_the_budget_counts(
    time: FakeTime, budget: dict[str, Any], used: BudgetUse
) -> None:
    async def one_of_each(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        await time.sleep(1)
        return result(call, value='{"cost": 1}')

    found = await perform(Scripted(one_of_each), budgeted(9, budget), time, used=used)

    assert states(found) == ["succeeded"] * 2 + ["cancelled"] * 7


@pytest.mark.parametrize(
    ("budget", "used"),
    [
        ({"max_runs": 5}, BudgetUse(runs=5)),
        ({"max_seconds": 5}, BudgetUse(seconds=6)),
        ({"max_cost": 5}, BudgetUse(cost=5)),
    ],
)
async def test_no_case_begins_when_the_budget_is_used_up(budget: dict[str, Any], used: BudgetUse) -> None:
    backend = Scripted()

    found = await execute(backend, budgeted(2, budget), used=used)

    assert (backend.calls, states(found)) == ([], ["cancelled"] * 2)
    assert str(found.stopped).endswith(" to go on")


# -- custom functions -----------------------------------------------------------------


def _costly(task: Task) -> TestResult:
    return TestResult(
        task.workflow_id, task.task_id, task.created_at, TestStatus.SUCCESS, 1.0, tokens_used=3, cost=0.5
    )


@pytest.mark.parametrize(("budget", "count"), [({"max_runs": 3}, 3), ({"max_cost": 1}, 2)])
@pytest.mark.parametrize("function", [_costly, lambda task: {"cost": 0.5, "tokens_used": 3}])
def test_a_budget_holds_for_a_service_and_its_function(
    function: Any, budget: dict[str, Any], count: int
) -> None:
    found = ExecutorService(function).execute_test_plan(budgeted(5, budget))

    assert [one.metadata["task_status"] for one in found] == ["succeeded"] * count + ["cancelled"] * (
        5 - count
    )
    assert {(one.cost, one.tokens_used) for one in found[:count]} == {(0.5, 3)}


def test_functions_that_run_at_once_are_never_too_many() -> None:
    begun: list[int] = []

    def flaky(task: Task) -> None:
        begun.append(task.index)
        raise ConnectionError("again")

    manifest = budgeted(20, {"max_runs": 7}, concurrency=5, **retried(4))
    found = TaskScheduler(task_execution_func=flaky).run_manifest(manifest)

    assert len(begun) == found.statistics.attempts == 7
    assert found.stopped == RUNS.format(7)
