"""Money: what runs hold costs, by the prices of a tariff; a budget ends a plan before it would cost more."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from services.executor.outcome import Status
from services.planner.cost import Rates, Resources, Tariff, Usage
from services.planner.cost.rates import money_text
from services.planner.execution import Execution, ExecutionResult
from services.planner.models import Budget, RunManifest
from services.planner.plan import Plan
from services.planner.plan.plan_usage import plan_usage
from services.planner.scheduling.budget import member_to_raise
from shared.errors import PlanError
from tests.planner.scripted import FakeTime, Scripted, execute, perform, plan, result, states, until_cancelled
from tests.planner.test_plan_budget import lost

TWO_CORES = Tariff(Resources(2, 0.5), Rates(core=1.0, gib=2.0, source="a test"))
"""A second of a run costs 3."""


def priced(cases: int, max_money: float, **policy: Any) -> RunManifest:
    """A plan with a budget of money."""
    return plan(cases, **policy).model_copy(update={"budget": Budget(max_money=max_money)})


def taking(time: FakeTime, seconds: float, **measured: Any) -> Scripted:
    """A backend whose calls take so long."""

    async def script(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        await time.sleep(seconds)
        members = {**result(call, value='{"cost": 7}').to_json(), "error": None, **measured}
        return ExecutionResult.from_json(members)

    return Scripted(script)


def test_a_run_costs_what_it_holds_or_uses_if_that_is_more() -> None:
    gpu = Tariff(Resources.of(1, 2, "A100-80GB:2"), Rates(1.0, 0.5, {"a100_80gb": 10.0}, source="a test"))

    assert TWO_CORES.usage(10) == Usage(1, 10, 20, 5, 0, None, 30)
    assert TWO_CORES.usage(10, cpu_seconds=7, peak_bytes=1) == Usage(1, 10, 20, 5, 0, 1, 30)
    assert TWO_CORES.usage(10, cpu_seconds=70, peak_bytes=2**30) == Usage(1, 10, 70, 10, 0, 2**30, 90)
    assert gpu.usage(3) == Usage(1, 3, 3, 6, 6, None, 3 + 3 + 60)
    assert gpu.per_second == 1 + 1 + 20
    assert Tariff().usage(10) == Usage(1, 10, 10)
    assert (Tariff().per_second, Tariff().overhead(3)) == (None, None)


@pytest.mark.parametrize(
    ("kind", "count", "price"), [("T4", 1, 1), ("A10", 1, 2), ("a10g:4", 4, 2), ("H100!:8", 8, 3)]
)
def test_gpus_are_named_as_the_platform_names_them(kind: str, count: int, price: float) -> None:
    held = Resources.of(1, 1, kind)

    assert held.gpus == count
    assert Rates(0, gpus={"t4": 1, "a10g": 2, "h100": 3}).of_gpu(held.gpu) == price


def test_a_gpu_without_a_price_and_a_text_that_is_no_gpu_are_refused() -> None:
    with pytest.raises(PlanError, match="no price for the GPU 'X9' in a test; known are t4"):
        Rates(0, gpus={"t4": 1}, source="a test").of_gpu("X9")
    with pytest.raises(PlanError, match="'2 of them' can't be read; expected a type such as H100"):
        Resources.of(1, 1, "2 of them")


@pytest.mark.parametrize(
    ("money", "text"),
    [(0, "0.00"), (1234.5, "1,234.50"), (0.5, "0.50"), (0.00412, "0.0041"), (1e-9, "0.0000000010")],
)
def test_money_has_as_many_digits_as_say_something(money: float, text: str) -> None:
    assert money_text(money, "USD") == f"{text} USD"


async def test_what_all_attempts_of_a_case_used_is_added(time: FakeTime) -> None:
    async def second_time(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        await time.sleep(2)
        if call.options.run_id.endswith(".2"):
            return result(call)
        return result(call, Status.FAILED, error="ConnectionError", retryable=True)

    manifest = plan(1, retry_policy={"max_attempts": 2, "backoff_seconds": 60})
    found = await perform(Scripted(second_time), manifest, time, tariff=TWO_CORES)

    assert found.task_results[0].used == Usage(2, 4, 8, 2, 0, None, 12)


async def test_time_in_a_queue_of_the_backend_is_not_paid(time: FakeTime) -> None:
    found = await perform(taking(time, 9, execution_time_ms=1_000), plan(1), time, tariff=TWO_CORES)

    assert found.task_results[0].used.seconds == 1.0005


async def test_no_attempt_begins_that_may_exceed_the_budget_of_money(time: FakeTime) -> None:
    found = await perform(taking(time, 1), priced(20, 30), time, tariff=TWO_CORES)

    # One costs 3; the next is expected to take twice as long as the longest at most, and a second to end.
    assert states(found) == ["succeeded"] * 8 + ["cancelled"] * 12
    assert sum(one.used.money or 0 for one in found.task_results) == 24
    assert found.stopped == (
        "the budget of 30.00 USD has no room for another attempt: 24.00 USD are used, and it may cost "
        "9.00 USD; raise `budget.max_money` to go on"
    )
    assert member_to_raise(found.stopped) == "max_money"


async def test_attempts_that_take_longer_than_expected_are_cancelled_before_the_budget_is_exceeded() -> None:
    backend = Scripted(until_cancelled)

    found = await execute(backend, priced(9, 4.5 * 3, concurrency=5), tariff=TWO_CORES)

    assert len(backend.calls) == 2, "each may take two seconds to begin with"
    assert set(states(found)) == {"cancelled"}
    assert str(found.stopped).startswith("the budget of 13.50 USD is used up: ")
    assert sum(one.used.money or 0 for one in found.task_results) <= 4.5 * 3


async def test_a_budget_that_suffices_stops_nothing(time: FakeTime) -> None:
    found = await perform(taking(time, 1), priced(20, 67), time, tariff=TWO_CORES)

    assert (set(states(found)), found.stopped) == ({"succeeded"}, None)


async def test_places_that_are_paid_while_they_run_nothing_count() -> None:
    idle = Tariff(TWO_CORES.resources, TWO_CORES.rates, overhead_seconds=10)

    found = await execute(Scripted(), priced(20, 59, concurrency=2), tariff=idle)

    assert found.statistics.attempts == 0
    assert "60.00 USD are used" in str(found.stopped)


async def test_the_money_of_all_sessions_is_added_also_of_a_killed_planner(tmp_path: Path) -> None:
    async def script(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        members = {**result(call, value='{"cost": 0.5}').to_json(), "peak_rss_bytes": 2**20, "error": None}
        return ExecutionResult.from_json({**members, "cpu_seconds": 3.0})

    found, backend = Plan.create(plan(9), tmp_path / "p"), Scripted(script)
    one: Any = backend
    first = await found.run(one, tariff=TWO_CORES, stoppers=(lambda ended: "enough",))
    lost(found, 2, seconds=100)  # at a price that is not known
    before = plan_usage(found.registry)
    second = await found.resume(one, tariff=TWO_CORES)

    used = plan_usage(found.registry, by_case=True)
    assert (first.stopped, second.stopped) == ("enough", None)
    assert before.total.attempts == 3
    assert used.total.attempts == 12
    assert used.total.core_seconds == pytest.approx(10 * 3 + 200, abs=1)
    assert used.total.money == pytest.approx(10 * 3, abs=0.5)
    assert used.total.peak_bytes == 2**20
    assert (used.currency, used.sources) == ("USD", ("a test",))
    assert (used.tool_cost, used.tool_costs[8]) == (5.0, 0.5)
    assert used.cases[1].attempts == 2
    assert used.cases[1].core_seconds == pytest.approx(103, abs=1)
    assert Usage.total(used.cases.values()) == used.total


async def test_a_budget_of_money_needs_prices_in_one_currency(tmp_path: Path) -> None:
    found = Plan.create(priced(2, 1_000), tmp_path / "p")
    one: Any = Scripted()
    euros = Tariff(rates=Rates(1.0, currency="EUR"))

    with pytest.raises(
        PlanError, match="`max_money`, which can't be kept: no prices are known; give a `tariff`"
    ):
        await execute(one, priced(2, 1_000))
    with pytest.raises(PlanError, match="`max_money`, which can't be kept: nobody knows; set it"):
        await found.run(one, tariff=Tariff(missing="nobody knows; set it"))
    await found.resume(one, tariff=euros, stoppers=(lambda ended: "enough",))
    with pytest.raises(PlanError, match="has cost money in EUR, and prices are now in USD"):
        await found.resume(one, tariff=TWO_CORES)
