"""On every backend: the cost that a tool reports counts, also if its result is too large for a record."""

import itertools
from typing import Any

import pytest

from services.planner.models import Budget, RunManifest, TestCase
from services.planner.plan import Plan
from services.planner.results import ResultConverter
from services.planner.scheduler import TaskScheduler
from services.planner.tasks import Spent, TaskStatus
from tests.planner.backends.conftest import INLINE_MAX_BYTES, Harness

COSTLY = "def tool(n):\n    return {'cost': 0.5, 'tokens_used': 3, 'text': 'x' * 1_000}\n"
REASON = "the budget of a cost of 1 is used up; raise `budget.max_cost` to go on"


def manifest(**budget: Any) -> RunManifest:
    cases = tuple(TestCase(parameters={"n": number}) for number in range(5))
    return RunManifest(workflow_id="costs", tool="tool", cases=cases, budget=Budget.model_validate(budget))


async def test_the_cost_of_stored_results_counts(harness: Harness) -> None:
    harness.tool("tool", COSTLY)
    async with harness.backend:
        found = await TaskScheduler(harness.backend).run_manifest_async(manifest(max_cost=1))

    first = found.task_results[0]
    assert INLINE_MAX_BYTES < 1_000
    assert first.execution is not None
    assert str(first.execution.result).startswith("cas://")
    assert (found.stopped, found.statistics.succeeded) == (REASON, 2)
    assert (first.spent, found.task_results[4].spent) == (Spent(3, 0.5), None)


async def test_without_a_budget_costs_are_read_by_the_converter(harness: Harness) -> None:
    harness.tool("tool", COSTLY)
    async with harness.backend:
        found = await TaskScheduler(harness.backend).run_manifest_async(manifest())

    converted = ResultConverter.convert_batch(found.task_results, loaded_max_bytes=100)
    assert [(one.tokens_used, one.cost) for one in converted] == [(3, 0.5)] * 5
    assert str(converted[0].outputs["result"]).startswith("cas://")


@pytest.mark.parametrize("later", [False, True], ids=["from the start", "a budget that came later"])
async def test_a_resumed_plan_knows_what_stored_results_have_cost(harness: Harness, later: bool) -> None:
    harness.tool("tool", COSTLY)
    plan = Plan.create(manifest(max_cost=1.5), harness.folder / "plan")
    before = plan.manifest.model_copy(update={"budget": Budget()}) if later else plan.manifest
    async with harness.backend:
        first = await Plan(plan.directory, before).run(harness.backend, stoppers=(_after_two(),))
        second = await plan.resume(harness.backend)

    ends = [one.task_status for one in second.task_results]
    assert (first.stopped, first.statistics.succeeded) == ("two", 2)
    assert ends == [TaskStatus.SUCCEEDED] * 3 + [TaskStatus.CANCELLED] * 2
    assert second.stopped == REASON.replace("cost of 1 ", "cost of 1.5 ")


def _after_two() -> Any:
    heard = itertools.count(1)
    return lambda result: "two" if next(heard) == 2 else None
