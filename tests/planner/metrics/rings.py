"""Small rings, written by hand, with all their metrics."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.executor.artifacts import LocalArtifactLoader
from services.planner.metrics import MetricsBundle, MetricsComputer

PARTIES = {"P1": ("A", "B"), "P2": ("B", "C"), "P3": ("C", "A")}
NAMES = {"metrics.csv", "metrics.json", "debtor_shares.csv", "intraday.csv", "metrics.html"}


def event(kind: str, day: int, payable: str = "", amount_cents: int = 0, **members: Any) -> dict[str, Any]:
    """An event, about a debt of the ring A -> B -> C -> A if one is named."""
    one: dict[str, Any] = {"kind": kind, "day": day, "phase": "setup" if day == 0 else "settlement"}
    if payable:
        debtor, creditor = PARTIES[payable]
        one |= {"payable": payable, "debtor": debtor, "creditor": creditor, "amount_cents": amount_cents}
    return one | members


def mint(agent: str, cents: int) -> dict[str, Any]:
    """An agent's first cash."""
    return event("CashMinted", 0, agent=agent) | {"amount_cents": cents}


DEBTS = [
    event("PayableCreated", 0, "P1", 100, due_day=1),
    event("PayableCreated", 0, "P2", 60, due_day=1),
    event("PayableCreated", 0, "P3", 40, due_day=2),
]

EXPELLED = [
    mint("A", 70),
    mint("C", 10),
    *DEBTS,
    event("PartialSettlement", 1, "P1", 70),
    event("ObligationDefaulted", 1, "P1", 30),
    event("AgentDefaulted", 1, agent="A"),
    event("ObligationWrittenOff", 1, "P1", 30),
    event("PayableSettled", 1, "P2", 60),
    event("PayableSettled", 2, "P3", 40),
    event("PhaseStarted", 3),
]
"""A owes B 100 and pays 70, B pays C 60 on the same day, C pays A 40 on day 2; day 3 is quiet.

Day 1: F = A 100, B 60; I = B 100, C 60; so A lacks 100, B gains 40 and C 60.
Day 2: F = C 40; I = A 40.
"""

ROUND = [
    mint("A", 30),
    event("PayableCreated", 0, "P1", 30, due_day=1),
    event("PayableCreated", 0, "P2", 50, due_day=1),
    event("PayableCreated", 0, "P3", 20, due_day=1),
    event("PayableSettled", 1, "P1", 30),
]
"""All is due on day 1: A lacks 10, B lacks 20, C gains 30.  Only A pays, then all stops."""


def compute(directory: Path, events: Sequence[dict[str, Any]]) -> MetricsBundle:
    """The metrics of events, by way of a file and a loader."""
    return compute_text(directory, "".join(json.dumps(one) + "\n" for one in events))


def compute_text(directory: Path, text: str) -> MetricsBundle:
    """The metrics of an events file with this content."""
    (directory / "run").mkdir(exist_ok=True)
    (directory / "run" / "events.jsonl").write_text(text, encoding="utf-8", newline="")
    computer = MetricsComputer(LocalArtifactLoader(directory))
    return computer.compute({"events.jsonl": "run/events.jsonl"})
