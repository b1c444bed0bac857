"""Estimates and budgets: what is said before a plan starts, and when it has had enough."""

import json
import math
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.planner.estimate import Estimate, Spread, budget_stopper, estimate
from services.planner.models import Budget, RunManifest
from services.planner.tasks import TestResult, TestStatus
from tests.planner.ended import BEGIN, Stored, ended, failed, never_ran

DURATIONS = [float(one) for one in range(1, 102)]
"""Of which the tenth is at 11, the half at 51 and nine tenths at 91."""


def plan(cases: int = 100, budget: Any = None, **policy: Any) -> RunManifest:
    members = {"workflow_id": "plan", "tool": "noop", "execution_policy": policy, "budget": budget or {}}
    sweep = {"dimensions": {"x": list(range(cases))}}
    return RunManifest.model_validate({**members, **({"sweep": sweep} if cases else {})})


def whole(manifest: RunManifest, capacity: int = 1_000, durations: Any = (2.0,)) -> float:
    found = estimate(manifest, durations, "local", capacity).plan_seconds
    assert found is not None
    return found.median


def test_the_spread_of_what_is_recorded_is_the_spread_of_the_estimate() -> None:
    found = estimate(plan(100, concurrency=10), DURATIONS, "local", 4)

    assert found.run_seconds == Spread(11, 51, 91)
    assert found.plan_seconds == Spread(25 * 11, 25 * 51, 25 * 91)
    assert (found.cases, found.at_once, found.recorded) == (100, 4, 101)


def test_without_records_it_says_that_it_does_not_know() -> None:
    found = estimate(plan(), [], "fleet", 2)

    assert (found.run_seconds, found.plan_seconds) == (None, None)
    assert found.lines() == (
        "100 runs of noop, 1 at once on fleet",
        "how long it takes is not known: no run of noop is recorded",
    )


def test_few_records_are_called_few() -> None:
    assert estimate(plan(), [1.0] * 3, "local", 1).lines() == (
        "100 runs of noop, 1 at once on local",
        "one run takes about 1.0 s, from 3 recorded runs",
        "the plan takes about 1 min 40 s",
        "so few recorded runs (3) say little about the spread",
    )


def test_durations_that_are_none_are_left_out() -> None:
    found = estimate(plan(), [math.nan, math.inf, -1.0, 3.0], "local", 1)

    assert (found.recorded, found.run_seconds) == (1, Spread(3.0, 3.0, 3.0))


@pytest.mark.parametrize(
    ("policy", "seconds"),
    [
        ({}, 200.0),
        ({"concurrency": 30}, 8.0),  # 4 turns
        ({"concurrency": 1_000}, 2.0),
        ({"concurrency": 10, "batch_size": 15}, 26.0),  # 6 batches of 2 turns, and one of 10 in one
        ({"concurrency": 50, "batch_size": 50, "backoff_seconds": 7}, 11.0),
        ({"concurrency": 1_000, "rate_control": {"per_minute": 60, "burst": 5}}, 97.0),
        ({"concurrency": 1, "rate_control": {"per_minute": 6_000}}, 200.0),
    ],
)
def test_the_policy_decides_how_long_all_takes(policy: dict[str, Any], seconds: float) -> None:
    found = whole(plan(100, **policy))

    assert found == pytest.approx(seconds)


def test_retries_and_the_budget_bound_the_runs() -> None:
    retried = plan(100, retry_policy={"max_attempts": 3})
    bounded = plan(100, {"max_runs": 120}, retry_policy={"max_attempts": 3})

    assert estimate(retried, [], "local", 1).most_attempts == 300
    assert estimate(bounded, [], "local", 1).most_attempts == 120
    assert estimate(retried, [], "local", 1).lines()[0].startswith("100 runs of noop, 300 with all retries")


def test_what_may_end_the_plan_before_its_time_is_said() -> None:
    budget = {"max_runs": 50, "max_seconds": 60, "max_cost": 2.5}
    found = estimate(plan(100, budget, stop_conditions={"timeout": 7_500}), [1.5] * 10, "local", 1)

    assert found.notes == (
        "the budget of 50 runs does not suffice for 100 cases",
        "the budget is 1 min of all runs together, and 100 runs take about 2 min 30 s",
        "the budget is a cost of 2.5; what a run costs is known when it has ended",
        "the plan is stopped after 2 h 5 min",
    )


@given(
    st.lists(st.floats(0, 1e6), max_size=20),
    st.integers(1, 50),
    st.integers(1, 20),
    st.none() | st.integers(1, 60),
)
def test_an_estimate_is_in_order_and_can_be_told(
    durations: list[float], cases: int, concurrency: int, batch: int | None
) -> None:
    found: Estimate = estimate(plan(cases, concurrency=concurrency, batch_size=batch), durations, "local", 3)

    assert (found.plan_seconds is None) == (not durations)
    assert json.loads(json.dumps(found.to_json()))["cases"] == cases
    assert all(found.lines())
    for one in (found.run_seconds, found.plan_seconds):
        assert one is None or one.p10 <= one.median <= one.p90


# -- budgets --------------------------------------------------------------------------


def test_a_budget_of_runs_counts_every_attempt() -> None:
    stopper = budget_stopper(Budget(max_runs=5))
    reasons = [stopper(one) for one in (ended(0, attempts=2), failed(1, attempts=2), never_ran(2), ended(3))]

    assert reasons == [None, None, None, "the budget of 5 runs is used up"]


def test_a_budget_of_seconds_counts_those_of_all_runs() -> None:
    stopper = budget_stopper(Budget(max_seconds=2.5))
    reasons = [stopper(ended(index, seconds=1.25)) for index in range(2)]

    assert reasons == [None, "the budget of 2.5 seconds is used up"]


@pytest.mark.parametrize(
    "result", [{"cost": 0.0}, {"cost": "much"}, {}, [1], 3, None, Stored("cas://" + "0" * 64)]
)
def test_a_budget_of_cost_counts_what_the_tool_says(result: Any) -> None:
    stopper = budget_stopper(Budget(max_cost=1))
    reasons = [
        stopper(ended(index, one)) for index, one in enumerate([{"cost": 0.75}, result, {"cost": 0.25}])
    ]

    assert reasons == [None, None, "the budget of a cost of 1 is used up"]


def test_a_functions_cost_counts_as_well() -> None:
    stopper = budget_stopper(Budget(max_cost=1))
    returned = TestResult(
        "plan", "task", datetime.fromtimestamp(0, BEGIN.tzinfo), TestStatus.SUCCESS, 0.0, cost=1.0
    )

    assert stopper(replace(ended(0), test_result=returned)) == "the budget of a cost of 1 is used up"


def test_a_resumed_plan_has_used_what_it_had_used_before() -> None:
    stopper = budget_stopper(Budget(max_runs=3), [ended(0), failed(1)])

    assert stopper(ended(2)) == "the budget of 3 runs is used up"


def test_no_budget_is_never_used_up() -> None:
    stopper = budget_stopper(Budget())

    assert stopper(ended(0, {"cost": 1e300}, seconds=1e9, attempts=10**6)) is None
