"""Estimates of the duration of a plan."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.planner.cost import Rates, Resources, Tariff, Usage
from services.planner.models import RunManifest
from services.planner.plan.estimate import Estimate, Spread, Use, estimate
from services.planner.plan.recorded_runs import RecordedRuns, SessionTimes

HERE = "plans in here"
DURATIONS = [RecordedRuns(HERE, tuple(float(one) for one in range(1, 102)))]
"""Of which the tenth is at 11, the half at 51 and nine tenths at 91."""


def plan(cases: int = 100, budget: Any = None, **policy: Any) -> RunManifest:
    members = {"workflow_id": "plan", "tool": "noop", "execution_policy": policy, "budget": budget or {}}
    sweep = {"dimensions": {"x": list(range(cases))}}
    return RunManifest.model_validate({**members, **({"sweep": sweep} if cases else {})})


def recorded(*seconds: float, **members: Any) -> list[RecordedRuns]:
    """Runs of these durations."""
    return [RecordedRuns(HERE, seconds, **members)]


def cases_seconds(found: Estimate) -> Spread:
    """The duration of a plan's cases, without start and report."""
    assert found.plan_seconds is not None
    return found.plan_seconds.map(lambda seconds: seconds - found.start_seconds - found.report_seconds)


def whole(manifest: RunManifest, capacity: int = 1_000, durations: Any = (2.0,)) -> float:
    return cases_seconds(estimate(manifest, recorded(*durations), "local", capacity)).median


def test_the_spread_of_what_is_recorded_is_the_spread_of_the_estimate() -> None:
    found = estimate(plan(100, concurrency=10), DURATIONS, "local", 4)

    assert found.run_seconds == Spread(11, 51, 91)
    assert cases_seconds(found) == Spread(25 * 11, 25 * 51, 25 * 91)
    assert (found.cases, found.at_once, found.recorded) == (100, 4, 101)


def test_without_records_the_duration_is_unknown() -> None:
    found = estimate(plan(), [RecordedRuns(HERE, ()), RecordedRuns("Redis", ())], "fleet", 2)

    assert (found.run_seconds, found.plan_seconds) == (None, None)
    assert found.lines() == (
        "100 runs of noop, 1 at once on fleet",
        "how long it takes is not known: no run of noop is recorded in plans in here or in Redis",
        "`--pilot 5` runs five cases and keeps them; `--run-seconds` says how long one takes",
    )


def test_an_estimate_from_few_records_says_so() -> None:
    known = [*recorded(1.0, 1.0), RecordedRuns("Redis", (1.0,))]
    assert estimate(plan(), known, "local", 1, tariff=Tariff(missing="nobody knows")).lines() == (
        "100 runs of noop, 1 at once on local",
        "one run takes about 1.0 s, from 3 recorded runs (2 in plans in here, 1 in Redis)",
        "the plan takes about 1 min 43 s, start (1.0 s) and report (2.0 s) included",
        "it uses about 100 core seconds",
        "what that costs is not known: nobody knows",
        "so few recorded runs (3) say little about the spread",
    )


def test_invalid_durations_are_left_out() -> None:
    found = estimate(plan(), recorded(math.nan, math.inf, -1.0, 3.0), "local", 1)

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

    assert estimate(retried, [], "local", 1).most_attempts == 300
    assert estimate(bounded, [], "local", 1).most_attempts == 120
    assert estimate(retried, [], "local", 1).lines()[0].startswith("100 runs of noop, 300 with all retries")


def test_an_estimate_names_what_may_stop_the_plan_early() -> None:
    budget = {"max_runs": 50, "max_seconds": 60, "max_cost": 2.5, "max_money": 9}
    found = estimate(
        plan(100, budget, stop_conditions={"timeout": 7_500}), recorded(*[1.5] * 10), "local", 1, ["and more"]
    )

    assert found.notes == (
        "the budget of 50 runs does not suffice for 100 cases",
        "the budget is 1 min of all runs together, and 100 runs take about 2 min 30 s",
        "the budget is a cost of 2.5; what a run costs is known when it has ended",
        "the plan is stopped before it costs more than 9",
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
        plan(cases, concurrency=concurrency, batch_size=batch), recorded(*durations), "local", 3
    )

    assert (found.plan_seconds is None) == (not durations)
    assert json.loads(json.dumps(found.to_json()))["cases"] == cases
    assert all(found.lines())
    for one in (found.run_seconds, found.plan_seconds):
        assert one is None or one.p10 <= one.median <= one.p90


def test_money_is_an_interval_over_durations_retries_and_idle_places() -> None:
    used = Usage(attempts=15, seconds=30, core_seconds=90, gib_seconds=15)  # of ten cases: three cores each
    known = recorded(*[2.0] * 10, used=used, cases=10)
    tariff = Tariff(Resources(2, 1), Rates(core=0.1, gib=0.01, source="a test"), overhead_seconds=5)
    found = estimate(
        plan(10, concurrency=4, retry_policy={"max_attempts": 3}), known, "local", 4, tariff=tariff
    ).cost

    assert found is not None
    assert found.attempts_per_case == 1.5
    # Ten runs of 2 s; with retries and the overhead of four places; with the two places of the last round.
    low, likely, high = 20, 20 * 1.5 + 4 * 5, 20 * 1.5 + 4 * 5 + 4
    assert found.core_seconds == Use(3 * low, 3 * likely, 3 * high)
    assert found.gib_seconds == Use(low, likely, high)
    assert found.money is not None
    assert found.money.likely == pytest.approx(0.31 * likely)
    assert found.money.low == pytest.approx(0.31 * low)
    assert found.money.high == pytest.approx(0.31 * high)
    assert found.most_money == pytest.approx(0.31 * (30 * 2 + 20))
    assert list(found.lines(10, 30)) == [
        "it uses about 150 core seconds (60 to 162), about 50 GiB seconds (20 to 54) of memory",
        "it costs about 15.50 USD (6.20 USD to 16.74 USD; 24.80 USD with all retries)",
        "prices: a test",
    ]


def test_gpus_are_part_of_an_estimate() -> None:
    tariff = Tariff(Resources.of(1, 0, "H100:2"), Rates(core=0, gpus={"h100": 0.5}, source="a test"))
    found = estimate(plan(10), recorded(*[2.0] * 10), "local", 1, tariff=tariff).lines()

    assert found[3:5] == (
        "it uses about 20 core seconds, about 40 GPU seconds",
        "it costs about 20.00 USD (20.00 USD to 20.00 USD)",
    )


@pytest.mark.parametrize(
    ("source", "words"),
    [("declared", "as you say"), ("pilot", "from 1 run of the pilot"), ("recorded", "from 1 recorded run")],
)
def test_an_estimate_names_its_source(source: str, words: str) -> None:
    found = estimate(plan(), recorded(2.0), "local", 1, source=source)

    assert found.lines()[1].startswith(f"one run takes about 2.0 s, {words}")
    assert (found.source, estimate(plan(), [], "local", 1).source) == (source, "")


def test_start_and_report_are_those_of_recorded_sessions() -> None:
    sessions = (SessionTimes(4, 5, 0), SessionTimes(6, 7 + 0.5, 1_000), SessionTimes(6, None, 5))
    found = estimate(plan(100), recorded(1.0, sessions=sessions), "local", 1)

    assert found.start_seconds == 6
    assert found.report_seconds == pytest.approx(6 + 0.05)
    assert found.plan_seconds is not None
    assert found.plan_seconds.median == pytest.approx(6 + 100 + 6.05)
