"""A ring of debtors: who owes what when, what is paid, and what a default does."""

import csv
import io
import json
import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from tests.tools.conftest import Load, RecordingToolkit


class KeepingToolkit(RecordingToolkit):
    """Keeps artifacts as well; `run.seed` is what the executor would have given."""

    def __init__(self, seed: int | None = 7) -> None:
        super().__init__()
        self.run.seed = seed
        self.artifacts: dict[str, bytes] = {}

    def artifact(self, name: str, content: Any, media_type: str | None = None) -> str | None:
        self.artifacts[name] = bytes(content)
        return f"kept:{name}"

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.artifacts["events.jsonl"].splitlines()]

    @property
    def balances(self) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self.artifacts["balances.csv"].decode())))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == kind]


Simulated = tuple[dict[str, Any], KeepingToolkit]
Simulate = Callable[..., Simulated]


def simulate_with(module: ModuleType, run_seed: int | None = 7, **params: Any) -> Simulated:
    kept = KeepingToolkit(run_seed)
    module.toolkit = kept  # type: ignore[attr-defined]
    return module.ring_simulation(**params), kept


@pytest.fixture
def tool(load: Load) -> ModuleType:
    return load("ring_simulation")


@pytest.fixture
def simulate(tool: ModuleType) -> Simulate:
    return lambda **params: simulate_with(tool, **params)


EQUAL = {"concentration": 1e6, "total_debt_cents": 300, "n_agents": 3}
"""Three debts of a unit each, within a cent."""


# -- who owes what when ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "mu", "expected"),
    [
        (10, 0.0, [1, 1, 1, 1, 1]),
        (1, 1.0, [1, 1, 1, 1, 1]),
        (4, 1.0, [2, 1, 4, 3, 2]),  # lead 3
        (5, 0.5, [4, 1, 3, 5, 2]),  # lead 2
        (10, 0.5, [7, 1, 5, 9, 3]),  # lead round(4.5), to the even 4
        (3, 0.2, [1, 1, 1, 1, 1]),  # lead round(0.4) is 0
    ],
)
def test_due_days_follow_the_formula_with_agents_counted_from_zero(
    tool: ModuleType, days: int, mu: float, expected: list[int]
) -> None:
    assert tool.due_days(5, days, mu) == expected


def test_each_agent_owes_the_next_and_the_last_owes_the_first(simulate: Simulate) -> None:
    _, kept = simulate(n_agents=3, total_debt_cents=10_000)

    assert [(one["debtor"], one["creditor"]) for one in kept.of("PayableCreated")] == [
        ("H1", "H2"),
        ("H2", "H3"),
        ("H3", "H1"),
    ]


@pytest.mark.parametrize(
    ("total", "shares", "expected"),
    [
        (100, [1, 1, 1], [34, 33, 33]),
        (5, [1, 2, 3], [1, 2, 2]),  # 0.83, 1.67, 2.5: the largest remainders are rounded up
        (3, [0, 1, 0], [0, 3, 0]),
        (0, [1, 1], [0, 0]),
        (100, [1, 3], [25, 75]),
    ],
)
def test_cents_are_handed_out_by_largest_remainder(
    tool: ModuleType, total: int, shares: list[int], expected: list[int]
) -> None:
    assert tool.hand_out(total, shares) == expected


def test_weights_have_the_mean_and_variance_of_a_gamma_distribution(tool: ModuleType) -> None:
    weights = tool.gamma_weights(random.Random(1), 20_000, 0.5)
    mean = sum(weights) / len(weights)
    squares = sum((weight / mean - 1) ** 2 for weight in weights) / len(weights)

    assert squares == pytest.approx(1 / 0.5, rel=0.1)  # variance / mean ** 2 = 1 / concentration


def test_the_smallest_concentration_lets_one_owe_everything(simulate: Simulate) -> None:
    summary, kept = simulate(n_agents=5, concentration=1e-6, total_debt_cents=1_000)

    assert [one["amount_cents"] for one in kept.of("PayableCreated")] == [1_000]
    assert summary["payables"] == 1


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, ["100", "100", "100"]),
        ({"liquidity": "single_at", "liquidity_agent": "H2"}, ["0", "300", "0"]),
        ({"liquidity": "vector", "liquidity_vector": [0.1, 0.2, 0]}, ["100", "200", "0"]),
        ({"kappa": 0.29, "liquidity": "single_at"}, ["87", "0", "0"]),
        ({"kappa": 0}, ["0", "0", "0"]),
    ],
)
def test_liquidity_is_kappa_times_the_debt_and_goes_where_it_is_told(
    simulate: Simulate, how: dict[str, Any], expected: list[str]
) -> None:
    _, kept = simulate(**EQUAL, **how)

    assert [row["cash_cents"] for row in kept.balances[:3]] == expected


# -- what is paid ---------------------------------------------------------------------


def test_one_unit_of_money_settles_a_whole_ring_in_order_of_creation(simulate: Simulate) -> None:
    summary, kept = simulate(**EQUAL, mu=0, kappa=0.34, liquidity="single_at")

    assert summary["status"] == "settled"
    assert [one["payable"] for one in kept.of("PayableSettled")] == ["P1", "P2", "P3"]
    assert summary["settled_cents"] == 300
    assert summary["first_default"] is None


def test_cash_that_comes_later_the_same_day_is_too_late(simulate: Simulate) -> None:
    summary, _ = simulate(**EQUAL, mu=0, liquidity="single_at", liquidity_agent="H2")

    assert summary["first_default"] == {"day": 1, "agent": "H1"}


def test_fail_fast_stops_at_the_first_default_and_moves_nothing_for_it(tool: ModuleType) -> None:
    tool.toolkit = KeepingToolkit()  # type: ignore[attr-defined]
    ring = tool.Ring([50, 10, 0], [50, 100, 1], [1, 1, 1])
    status = tool.simulate(ring, "fail-fast", 2, 90)

    assert status == "stopped: default"
    assert ring.cash == [0, 60, 0]
    assert [event["kind"] for event in ring.events if event["day"] == 1] == [
        "PhaseStarted",
        "CashTransferred",
        "PayableSettled",
        "ObligationDefaulted",
        "AgentDefaulted",
        "PhaseStarted",
    ]
    assert ring.open_cents == 101


def test_an_expelled_agent_pays_what_it_has_and_can_still_receive(tool: ModuleType) -> None:
    tool.toolkit = KeepingToolkit()  # type: ignore[attr-defined]
    ring = tool.Ring([70, 0, 10], [100, 60, 40], [1, 1, 2])
    status = tool.simulate(ring, "expel-agent", 2, 90)

    assert status == "quiet"
    assert ring.cash == [40, 10, 30]
    assert [list(event.values()) for event in ring.events if event["day"] == 1] == [
        ["PhaseStarted", 1, "settlement"],
        ["CashTransferred", 1, "settlement", "P1", "H1", "H2", 70],
        ["PartialSettlement", 1, "settlement", "P1", "H1", "H2", 70, 100],
        ["ObligationDefaulted", 1, "settlement", "P1", "H1", "H2", 30, 100, 1],
        ["AgentDefaulted", 1, "settlement", "H1", "P1"],
        ["ObligationWrittenOff", 1, "settlement", "P1", "H1", "H2", 30],
        ["CashTransferred", 1, "settlement", "P2", "H2", "H3", 60],
        ["PayableSettled", 1, "settlement", "P2", "H2", "H3", 60, 1],
        ["PhaseStarted", 1, "closing"],
    ]
    assert ring.balances[-3:] == [
        (4, "H1", 40, 0, 0, 1),
        (4, "H2", 10, 0, 0, 0),
        (4, "H3", 30, 0, 0, 0),
    ]


def test_an_expelled_agent_without_cash_makes_no_payment_of_nothing(simulate: Simulate) -> None:
    summary, kept = simulate(n_agents=3, kappa=0, default_handling="expel-agent")

    assert kept.of("PartialSettlement") == []
    assert kept.of("CashTransferred") == []
    assert summary["written_off_cents"] == summary["debt_cents"]


@pytest.mark.parametrize(("quiet_days", "expected"), [(0, 1), (1, 2), (2, 3), (5, 6)])
def test_the_end_is_after_so_many_quiet_days(simulate: Simulate, quiet_days: int, expected: int) -> None:
    summary, _ = simulate(**EQUAL, mu=0, kappa=2, quiet_days=quiet_days)

    assert summary["days_run"] == expected


def test_quiet_days_with_debts_open_are_not_the_end(simulate: Simulate) -> None:
    summary, kept = simulate(n_agents=2, days=30, mu=0.5, kappa=10, quiet_days=1, concentration=1e6)

    assert [one["due_day"] for one in kept.of("PayableCreated")] == [17, 1]
    assert summary["status"] == "settled"
    assert summary["days_run"] == 18


def test_the_days_are_over_at_max_days_in_any_case(simulate: Simulate) -> None:
    summary, _ = simulate(n_agents=2, days=30, mu=0.5, kappa=10, max_days=16, concentration=1e6)

    assert summary["status"] == "max_days"
    assert summary["days_run"] == 16
    assert summary["open_cents"] > 0
