"""What holds of every ring, whatever the parameters: cash and debt are conserved, a seed says it all."""

import time
from collections import Counter
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tools.conftest import Load
from tests.tools.test_ring_simulation import Simulate, simulate_with
from tools import ring_simulation

steady = settings(deadline=None, derandomize=True, max_examples=100)


@pytest.fixture
def tool(load: Load) -> ModuleType:
    return load("ring_simulation")


@pytest.fixture
def simulate(tool: ModuleType) -> Simulate:
    return lambda **params: simulate_with(tool, **params)


@st.composite
def rings(draw: st.DrawFn) -> dict[str, Any]:
    """Parameters of any ring that is quick to simulate."""
    n_agents = draw(st.integers(2, 12))
    params: dict[str, Any] = {
        "n_agents": n_agents,
        "days": draw(st.integers(1, 12)),
        "total_debt_cents": draw(st.integers(1, 10**6)),
        "kappa": draw(st.floats(0, 3)),
        "concentration": draw(st.floats(1e-3, 100)),
        "mu": draw(st.floats(0, 1)),
        "liquidity": draw(st.sampled_from(["uniform", "single_at", "vector"])),
        "liquidity_agent": f"H{draw(st.integers(1, n_agents))}",
        "default_handling": draw(st.sampled_from(["fail-fast", "expel-agent"])),
        "quiet_days": draw(st.integers(0, 3)),
        "max_days": draw(st.integers(1, 20)),
        "seed": draw(st.integers(0, 2**32)),
    }
    vector = st.lists(st.floats(0, 10), min_size=n_agents, max_size=n_agents).filter(any)
    return params | {"liquidity_vector": draw(vector) if params["liquidity"] == "vector" else None}


@steady
@given(rings())
def test_cash_is_conserved_on_every_day_and_the_balances_are_what_the_events_moved(
    params: dict[str, Any],
) -> None:
    _, kept = simulate_with(ring_simulation, **params)

    cash: Counter[str] = Counter()
    for event in kept.events:
        if event["kind"] == "CashMinted":
            cash[event["agent"]] += event["amount_cents"]
        elif event["kind"] == "CashTransferred":
            cash[event["payer"]] -= event["amount_cents"]
            cash[event["payee"]] += event["amount_cents"]
    by_day: Counter[str] = Counter()
    for row in kept.balances:
        by_day[row["day"]] += int(row["cash_cents"])
    last = kept.balances[-params["n_agents"] :]
    assert len(set(by_day.values())) == 1
    assert {row["agent"]: int(row["cash_cents"]) for row in last} == {
        row["agent"]: cash[row["agent"]] for row in last
    }
    assert min(int(row["cash_cents"]) for row in kept.balances) >= 0


@steady
@given(rings())
def test_every_cent_of_debt_is_settled_paid_in_part_written_off_or_open(params: dict[str, Any]) -> None:
    summary, kept = simulate_with(ring_simulation, **params)

    created = sum(one["amount_cents"] for one in kept.of("PayableCreated"))
    paid = sum(one["amount_cents"] for one in kept.of("CashTransferred"))
    assert created == summary["debt_cents"] == params["total_debt_cents"]
    assert paid == summary["settled_cents"] + summary["partially_settled_cents"]
    assert created == paid + summary["written_off_cents"] + summary["open_cents"]


@steady
@given(rings())
def test_the_same_parameters_and_seed_make_the_same_bytes(params: dict[str, Any]) -> None:
    first, second = simulate_with(ring_simulation, **params), simulate_with(ring_simulation, **params)

    assert first[0] == second[0]
    assert first[1].artifacts == second[1].artifacts


@steady
@given(rings())
def test_a_status_says_what_is_left(params: dict[str, Any]) -> None:
    summary, _ = simulate_with(ring_simulation, **params)

    settled = summary["payables_settled"] == summary["payables"]
    assert (summary["status"] == "settled") == settled
    assert (summary["status"] in {"settled", "quiet"}) == (summary["open_cents"] == 0)
    assert (summary["status"] == "stopped: default") == (
        params["default_handling"] == "fail-fast" and summary["agents_defaulted"] == 1
    )


def test_another_seed_makes_another_ring(simulate: Simulate) -> None:
    assert simulate(seed=1)[1].artifacts != simulate(seed=2)[1].artifacts


def test_the_seed_is_the_runs_unless_given_and_fresh_without_either(simulate: Simulate) -> None:
    fresh = simulate(run_seed=None)[0]["seed"]

    assert simulate(run_seed=5)[0]["seed"] == 5
    assert simulate(run_seed=5, seed=0)[0]["seed"] == 0
    assert simulate(seed=fresh)[1].artifacts == simulate(run_seed=fresh)[1].artifacts


def test_losing_cash_is_an_error_not_a_result(tool: ModuleType) -> None:
    ring = tool.Ring([10, 10], [5, 5], [1, 1])
    ring.cash[0] -= 1

    with pytest.raises(tool.ConservationError, match="cash"):
        ring.close()


def test_ten_times_the_agents_take_nowhere_near_a_hundred_times_as_long(simulate: Simulate) -> None:
    def seconds(n_agents: int) -> float:
        started = time.process_time()
        simulate(n_agents=n_agents, default_handling="expel-agent")
        return time.process_time() - started

    small, large = (min(seconds(n_agents) for _ in range(3)) for n_agents in (200, 2_000))

    assert large < 50 * small
