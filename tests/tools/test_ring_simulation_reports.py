"""What a simulated ring reports, keeps and refuses."""

from collections import Counter
from html.parser import HTMLParser
from typing import Any

import pytest
import yaml

from tests.tools.conftest import Load
from tests.tools.test_ring_simulation import EQUAL, Simulate, simulate_with


@pytest.fixture
def simulate(load: Load) -> Simulate:
    module = load("ring_simulation")
    return lambda **params: simulate_with(module, **params)


def test_progress_is_reported_for_each_day_up_to_the_last(simulate: Simulate) -> None:
    summary, kept = simulate(**EQUAL, mu=0, kappa=2)

    assert kept.steps == [(1, 3), (2, 3), (3, 3)]
    assert kept.metrics == [("settled_cents", 300), ("written_off_cents", 0), ("agents_defaulted", 0)]
    assert summary["days_run"] == 3


class Page(HTMLParser):
    """What a page loads from elsewhere, and which of its elements are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.counts: Counter[str] = Counter()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] += 1
        if tag != "meta":
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "action"}]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("n_agents", [2, 3, 100])
def test_the_page_is_well_formed_and_needs_nothing_else(simulate: Simulate, n_agents: int) -> None:
    summary, kept = simulate(n_agents=n_agents, default_handling="expel-agent")
    text = kept.artifacts["run.html"].decode()
    page = Page(text)

    assert page.open == []
    assert page.addresses == []
    assert "://" not in text
    assert "url(" not in text
    assert page.counts["circle"] == n_agents
    assert page.counts["path"] == summary["payables"]
    assert page.counts["tr"] == 1 + summary["days_run"]


def test_the_scenario_is_yaml_with_everything_that_the_run_begins_with(simulate: Simulate) -> None:
    _, kept = simulate(n_agents=3, kappa=0.5, mu=0)

    found = yaml.safe_load(kept.artifacts["scenario.yaml"])
    assert (found["n_agents"], found["kappa"], found["seed"], found["liquidity_vector"]) == (3, 0.5, 7, None)
    assert [one["cash_cents"] for one in found["agents"]] == [166_667, 166_667, 166_666]
    assert found["payables"] == [
        {key: one[key] for key in ("payable", "debtor", "creditor", "amount_cents", "due_day")}
        for one in kept.of("PayableCreated")
    ]


@pytest.mark.parametrize(
    ("show_events", "headings", "listed"), [("detailed", 1, True), ("summary", 1, False), ("none", 0, False)]
)
def test_the_page_shows_as_many_events_as_asked(
    simulate: Simulate, show_events: str, headings: int, listed: bool
) -> None:
    _, kept = simulate(n_agents=3, show_events=show_events)
    page = Page(kept.artifacts["run.html"].decode())

    assert page.open == []
    assert page.counts["h2"] == headings
    assert page.counts["li"] == (len(kept.events) if listed else 0)


def test_the_page_lists_at_most_a_thousand_events(simulate: Simulate) -> None:
    _, kept = simulate(n_agents=1_000)

    assert Page(kept.artifacts["run.html"].decode()).counts["li"] == 1_000 < len(kept.events)


def test_the_page_shows_the_balances_and_accounts_of_chosen_agents(simulate: Simulate) -> None:
    summary, kept = simulate(
        n_agents=3,
        kappa=0.2,
        default_handling="expel-agent",
        show_events="none",
        show_balances=["H2"],
        t_account=True,
    )
    text = kept.artifacts["run.html"].decode()
    page = Page(text)

    assert page.open == []
    assert page.counts["tr"] == 1 + (1 + summary["days_run"]) + 2  # heading, days with the setup, account
    assert "<caption>H2</caption>" in text
    assert "<caption>H1</caption>" not in text


def test_accounts_without_a_choice_are_those_of_all_agents(simulate: Simulate) -> None:
    _, kept = simulate(n_agents=3, t_account=True)
    text = kept.artifacts["run.html"].decode()

    assert [f"<caption>H{n}</caption>" in text for n in (1, 2, 3)] == [True] * 3


@pytest.mark.parametrize(("checks", "days"), [("daily", [0, 1, 2, 3]), ("setup", [0]), ("none", [])])
def test_invariants_are_checked_when_asked(
    load: Load, monkeypatch: pytest.MonkeyPatch, checks: str, days: list[int]
) -> None:
    tool = load("ring_simulation")
    checked: list[int] = []
    monkeypatch.setattr(tool.Ring, "check", lambda ring: checked.append(ring.day))

    simulate_with(tool, n_agents=3, concentration=1e6, mu=0, kappa=2, check_invariants=checks)

    assert checked == days


def test_texts_on_the_page_are_escaped(simulate: Simulate) -> None:
    _, kept = simulate(n_agents=3, liquidity_agent="<script>alert(1)</script>")

    assert b"<script>" not in kept.artifacts["run.html"]


def test_every_event_has_its_kind_day_and_phase(simulate: Simulate) -> None:
    _, kept = simulate(default_handling="expel-agent")

    assert all({"kind", "day", "phase"} <= event.keys() for event in kept.events)
    assert {event["kind"] for event in kept.events} == {
        "PhaseStarted",
        "CashMinted",
        "PayableCreated",
        "CashTransferred",
        "PayableSettled",
        "PartialSettlement",
        "ObligationDefaulted",
        "AgentDefaulted",
        "ObligationWrittenOff",
    }


# -- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_agents": 1}, "n_agents is 1: allowed is a whole number from 2 to 10,000"),
        ({"n_agents": 2.0}, "n_agents is 2.0: allowed is a whole number"),
        ({"n_agents": True}, "n_agents is True"),
        ({"days": 0}, "days is 0"),
        ({"total_debt_cents": 0}, "total_debt_cents is 0"),
        ({"kappa": -0.1}, "kappa is -0.1: allowed is a number from 0 to 1,000"),
        ({"kappa": float("nan")}, "kappa is nan"),
        ({"kappa": "1"}, "kappa is '1'"),
        ({"concentration": 0}, "concentration is 0"),
        ({"concentration": float("inf")}, "concentration is inf"),
        ({"mu": 1.01}, "mu is 1.01: allowed is a number from 0 to 1"),
        ({"quiet_days": -1}, "quiet_days is -1"),
        ({"max_days": 0}, "max_days is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"check_invariants": "weekly"}, "check_invariants is 'weekly': allowed is daily or setup or none"),
        ({"show_events": "all"}, "show_events is 'all': allowed is detailed or summary or none"),
        ({"show_balances": ["H4"]}, r"show_balances is \['H4'\]: allowed is a list of H1 to H3"),
        ({"show_balances": "H1"}, "show_balances is 'H1': allowed is a list"),
        ({"t_account": 1}, "t_account is 1: allowed is true or false"),
        (
            {"default_handling": "forgive"},
            "default_handling is 'forgive': allowed is fail-fast or expel-agent",
        ),
        ({"liquidity": "all"}, "liquidity is 'all': allowed is uniform or single_at or vector"),
        ({"liquidity": "single_at", "liquidity_agent": "H9"}, "liquidity_agent is 'H9': allowed is H1 to H3"),
        ({"liquidity": "vector"}, "liquidity_vector is None: allowed is a list of 3 shares"),
        ({"liquidity": "vector", "liquidity_vector": [1, 2]}, "allowed is a list of 3 shares"),
        ({"liquidity": "vector", "liquidity_vector": [1, -2, 3]}, r"liquidity_vector\[1\] is -2"),
        ({"liquidity": "vector", "liquidity_vector": [0, 0, 0]}, "at least one share must be more than 0"),
    ],
)
def test_a_bad_parameter_is_named_with_what_is_allowed(
    simulate: Simulate, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(**{"n_agents": 3, **params})
