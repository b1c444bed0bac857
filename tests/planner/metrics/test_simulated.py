"""The metrics of simulated events agree with what the tool reports."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.planner.metrics import MetricsBundle
from services.planner.metrics.computer import measure
from services.planner.metrics.events import MEMBERS, read_events
from services.planner.metrics.outputs import write_outputs
from tests.planner.metrics.rings import NAMES, compute_text
from tests.tools.test_ring_simulation import KeepingToolkit, simulate_with
from tools import ring_simulation


def run(**params: Any) -> tuple[dict[str, Any], KeepingToolkit, MetricsBundle]:
    summary, kept = simulate_with(ring_simulation, **params)
    return summary, kept, measure(read_events(kept.artifacts["events.jsonl"].decode()))


@pytest.mark.parametrize("kappa", [0.0, 0.2, 1.0, 3.0])
@pytest.mark.parametrize("handling", ["fail-fast", "expel-agent"])
def test_totals_agree_with_the_summary(kappa: float, handling: str) -> None:
    summary, _, bundle = run(kappa=kappa, default_handling=handling)

    debt_cents = summary["debt_cents"]
    assert bundle.totals.s_cents == debt_cents
    assert (bundle.totals.phi or 0) * debt_cents == summary["settled_cents"]
    assert bundle.totals.gross_cents == summary["settled_cents"] + summary["partially_settled_cents"]
    assert {day.m_cents for day in bundle.day_metrics} == {summary["money_cents"]}


def test_money_in_use_is_never_more_than_there_is() -> None:
    _, _, bundle = run(kappa=0.3, default_handling="expel-agent", mu=0.3)

    assert all(day.mpeak_cents <= day.m_cents for day in bundle.day_metrics)
    assert any(day.mpeak_cents for day in bundle.day_metrics)


def test_a_ring_due_on_one_day_nets_to_the_differences_of_neighbours() -> None:
    _, kept, bundle = run(n_agents=5, mu=0)

    owed = [one["amount_cents"] for one in kept.of("PayableCreated")]
    expected = sum(max(0, owed[i] - owed[i - 1]) for i in range(5))
    assert bundle.day_metrics[0].mbar_cents == expected


def test_the_tool_records_every_kind_with_the_members_that_are_read() -> None:
    _, kept, _ = run(default_handling="expel-agent")

    assert {event["kind"] for event in kept.events} == set(MEMBERS)
    assert all(MEMBERS[event["kind"]].keys() <= event.keys() for event in kept.events)


def test_a_run_becomes_files(tmp_path: Path) -> None:
    _, kept, bundle = run(default_handling="expel-agent")
    paths = write_outputs(compute_text(tmp_path, kept.artifacts["events.jsonl"].decode()), tmp_path / "out")

    assert paths.keys() == NAMES
    assert len(json.loads(paths["metrics.json"].read_text())["days"]) == len(bundle.day_metrics)
