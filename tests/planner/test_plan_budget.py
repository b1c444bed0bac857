"""The budget of a plan over several sessions, also of a planner that was killed."""

from pathlib import Path
from typing import Any

import pytest

from services.executor.outcome import Status
from services.planner.execution import Execution, ExecutionResult
from services.planner.models import Budget, ExecutionPolicy, RunManifest, TestCase
from services.planner.plan import Plan
from services.planner.tasks import TaskResult
from shared.errors import PlanError
from tests.planner.scripted import Scripted, result

POLICY = {"concurrency": 2, "retry_policy": {"max_attempts": 2, "backoff_seconds": 0}}


def manifest(cases: int = 9, **budget: Any) -> RunManifest:
    """Of cases that each take two attempts, two at once."""
    return RunManifest(
        workflow_id="plan",
        tool="tool",
        cases=tuple(TestCase(parameters={"n": number}) for number in range(cases)),
        execution_policy=ExecutionPolicy.model_validate(POLICY),
        budget=Budget.model_validate(budget),
    )


async def second_attempt(call: Execution, cancel: Any) -> ExecutionResult:
    """Succeeds, at a cost."""
    if call.options.run_id.endswith(".2"):
        return result(call, value='{"cost": 1}')
    return result(call, Status.FAILED, error="ConnectionError", retryable=True)


def after(count: int) -> Any:
    """A stopper."""
    heard: list[TaskResult] = []

    def stopper(one: TaskResult) -> str | None:
        heard.append(one)
        return "for now" if len(heard) == count else None

    return stopper


def lost(plan: Plan, count: int, seconds: int = 0) -> None:
    """Note so many attempts that a planner had begun that was killed then, after so many seconds."""
    registry = plan.registry
    number = registry.begin_session("local", count)
    with registry.connected() as file:
        for index in range(count):
            file.execute(
                "INSERT INTO runs (execution_id, case_index, attempt, task_id, status, began_at) "
                "SELECT ?, ?, 1, 'lost', 'running', strftime('%Y-%m-%dT%H:%M:%f+00:00', seen_at, ?) "
                "FROM executions WHERE execution_id = ?",
                (number, index, f"-{seconds} seconds", number),
            )


async def test_the_attempts_of_all_sessions_never_exceed_the_budget(tmp_path: Path) -> None:
    plan, backend = Plan.create(manifest(max_runs=11), tmp_path / "p"), Scripted(second_attempt)
    one: Any = backend

    first = await plan.run(one, stoppers=(after(2),))
    before = len(backend.calls)
    second = await plan.resume(one)

    assert (first.stopped, second.stopped) == (
        "for now",
        "the budget of 11 runs is used up; raise `budget.max_runs` to go on",
    )
    assert 4 <= before < 11
    assert len(backend.calls) == 11
    with pytest.raises(PlanError, match="nothing left of the plan's budget: the budget of 11 runs"):
        await plan.resume(one)


async def test_the_attempts_of_a_killed_planner_count(tmp_path: Path) -> None:
    plan, backend = Plan.create(manifest(max_runs=5), tmp_path / "p"), Scripted(second_attempt)
    one: Any = backend
    lost(plan, 3)

    found = await plan.resume(one)

    assert (len(backend.calls), found.stopped) == (
        2,
        "the budget of 5 runs is used up; raise `budget.max_runs` to go on",
    )


async def test_the_seconds_of_a_killed_planner_count(tmp_path: Path) -> None:
    plan = Plan.create(manifest(max_seconds=500), tmp_path / "p")
    one: Any = Scripted(second_attempt)
    lost(plan, 2, seconds=240)

    almost = await plan.resume(one, stoppers=(after(1),))
    lost(plan, 1, seconds=240)

    assert almost.stopped == "for now"
    with pytest.raises(PlanError, match="nothing left of the plan's budget: the budget of 500 seconds"):
        await plan.resume(one)


async def test_the_costs_of_all_sessions_are_added(tmp_path: Path) -> None:
    plan = Plan.create(manifest(max_cost=5), tmp_path / "p")
    one: Any = Scripted(second_attempt)

    first = await plan.run(one, stoppers=(after(2),))
    second = await plan.resume(one)

    assert (first.stopped, second.stopped) == (
        "for now",
        "the budget of a cost of 5 is used up; raise `budget.max_cost` to go on",
    )
    # What was under way may have come to its end.
    assert 5 <= sum(done.spent.cost for done in plan.results() if done.spent) <= 6
    with pytest.raises(PlanError, match="nothing left of the plan's budget: the budget of a cost of 5"):
        await plan.resume(one)


async def test_an_earlier_cost_that_cant_be_read_is_reported(tmp_path: Path) -> None:
    async def stored(call: Execution, cancel: Any) -> ExecutionResult:
        return result(call, value="cas://" + "0" * 64)

    plan = Plan.create(manifest(3, max_cost=5), tmp_path / "p")
    one: Any = Scripted(stored)

    first = await plan.run(one)

    assert str(first.stopped).startswith("the budget of a cost of 5 can't be kept: the cost of case ")
    with pytest.raises(PlanError, match=r"a cost of 5 can't be kept: the cost of case [01] is in a result"):
        await plan.resume(one)


async def test_a_plan_goes_on_after_its_budget_was_raised(tmp_path: Path) -> None:
    plan = Plan.create(manifest(3, max_runs=3, max_cost=1), tmp_path / "p")
    one: Any = Scripted(second_attempt)
    await plan.run(one)

    raised = Plan(plan.directory, plan.manifest.model_copy(update={"budget": Budget(max_runs=99)}))
    found = await raised.resume(one)

    assert (found.stopped, found.statistics.succeeded) == (None, 3)
