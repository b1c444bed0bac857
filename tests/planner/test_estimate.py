"""Estimates of the duration of a plan."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.planner.models import RunManifest
from services.planner.plan.estimate import Estimate, Spread, estimate

HERE = "plans in here"
DURATIONS = {HERE: [float(one) for one in range(1, 102)]}
"""Of which the tenth is at 11, the half at 51 and nine tenths at 91."""


def plan(cases: int = 100, budget: Any = None, **policy: Any) -> RunManifest:
    members = {"workflow_id": "plan", "tool": "noop", "execution_policy": policy, "budget": budget or {}}
    sweep = {"dimensions": {"x": list(range(cases))}}
    return RunManifest.model_validate({**members, **({"sweep": sweep} if cases else {})})


def whole(manifest: RunManifest, capacity: int = 1_000, durations: Any = (2.0,)) -> float:
    found = estimate(manifest, {HERE: durations}, "local", capacity).plan_seconds
    assert found is not None
    return found.median


def test_the_spread_of_what_is_recorded_is_the_spread_of_the_estimate() -> None:
    found = estimate(plan(100, concurrency=10), DURATIONS, "local", 4)

    assert found.run_seconds == Spread(11, 51, 91)
    assert found.plan_seconds == Spread(25 * 11, 25 * 51, 25 * 91)
    assert (found.cases, found.at_once, found.recorded) == (100, 4, 101)


def test_without_records_the_duration_is_unknown() -> None:
    found = estimate(plan(), {HERE: [], "Redis": []}, "fleet", 2)

    assert (found.run_seconds, found.plan_seconds) == (None, None)
    assert found.lines() == (
        "100 runs of noop, 1 at once on fleet",
        "how long it takes is not known: no run of noop is recorded in plans in here or in Redis",
    )


def test_an_estimate_from_few_records_says_so() -> None:
    assert estimate(plan(), {HERE: [1.0] * 2, "Redis": [1.0]}, "local", 1).lines() == (
        "100 runs of noop, 1 at once on local",
        "one run takes about 1.0 s, from 3 recorded runs (2 in plans in here, 1 in Redis)",
        "the plan takes about 1 min 40 s",
        "so few recorded runs (3) say little about the spread",
    )


def test_invalid_durations_are_left_out() -> None:
    found = estimate(plan(), {HERE: [math.nan, math.inf, -1.0, 3.0]}, "local", 1)

    assert (found.recorded, found.run_seconds) == (1, Spread(3.0, 3.0, 3.0))


@pytest.mark.parametrize(
    ("policy", "seconds"),
    [
        ({}, 200.0),
        ({"concurrency": 30}, 8.0),  # 4 turns
        ({"concurrency": 1_000}, 2.0),
        ({"concurrency": 10, "batch_size": 15}, 20.0),  # without a pause, batches hold up nothing
        ({"concurrency": 10, "batch_size": 15, "backoff_seconds": 1}, 32.0),  # 6 of 2 turns, one of one
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

    assert estimate(retried, {}, "local", 1).most_attempts == 300
    assert estimate(bounded, {}, "local", 1).most_attempts == 120
    assert estimate(retried, {}, "local", 1).lines()[0].startswith("100 runs of noop, 300 with all retries")


def test_an_estimate_names_what_may_stop_the_plan_early() -> None:
    budget = {"max_runs": 50, "max_seconds": 60, "max_cost": 2.5}
    found = estimate(
        plan(100, budget, stop_conditions={"timeout": 7_500}), {HERE: [1.5] * 10}, "local", 1, ["and more"]
    )

    assert found.notes == (
        "the budget of 50 runs does not suffice for 100 cases",
        "the budget is 1 min of all runs together, and 100 runs take about 2 min 30 s",
        "the budget is a cost of 2.5; what a run costs is known when it has ended",
        "the plan is stopped after 2 h 5 min",
        "and more",
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
    found: Estimate = estimate(
        plan(cases, concurrency=concurrency, batch_size=batch), {HERE: durations}, "local", 3
    )

    assert (found.plan_seconds is None) == (not durations)
    assert json.loads(json.dumps(found.to_json()))["cases"] == cases
    assert all(found.lines())
    for one in (found.run_seconds, found.plan_seconds):
        assert one is None or one.p10 <= one.median <= one.p90
