"""Reads `events.jsonl`, the events of a run of payments, and checks them before anything is computed."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.errors import ArtifactError

ARTIFACT = "events.jsonl"
TEXT, AMOUNT, DAY = "a text", "a whole number of cents, 0 or more", "a whole number, 0 or more"
DEBT = {"payable": TEXT, "debtor": TEXT, "creditor": TEXT, "amount_cents": AMOUNT}
MEMBERS: Mapping[str, Mapping[str, str]] = {
    "PhaseStarted": {},
    "CashMinted": {"agent": TEXT, "amount_cents": AMOUNT},
    "PayableCreated": {**DEBT, "due_day": DAY},
    "CashTransferred": {"payable": TEXT, "payer": TEXT, "payee": TEXT, "amount_cents": AMOUNT},
    "PayableSettled": DEBT,
    "PartialSettlement": DEBT,
    "ObligationDefaulted": DEBT,
    "AgentDefaulted": {"agent": TEXT},
    "ObligationWrittenOff": DEBT,
}
"""The required members of each kind of event besides `kind`, `day` and `phase`; others are allowed."""


@dataclass(slots=True)
class Payable:
    """A debt, how much of it is paid, in cents, and the day on which it was paid in full."""

    debtor: str
    creditor: str
    amount_cents: int
    due_day: int
    paid_cents: int = 0
    settled_day: int | None = None


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment for a debt."""

    day: int
    payer: str
    payee: str
    amount_cents: int


@dataclass(slots=True)
class History:
    """The state after all events.  `days` are the days with events; `minted` has (day, cents)."""

    payables: dict[str, Payable] = field(default_factory=dict)
    payments: list[Payment] = field(default_factory=list)
    minted: list[tuple[int, int]] = field(default_factory=list)
    days: set[int] = field(default_factory=set)


class InvalidEventError(Exception):
    """An event is invalid; the reader adds the line to the message."""


def read_events(text: str) -> History:
    """Return the history in the text of an events file.

    Raises:
        ArtifactError: an event is invalid; the message names the line and the member.
    """
    history = History()
    # Not splitlines: a JSON text may contain U+2028.
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], start=1):
        try:
            _apply(history, _event(line))
        except InvalidEventError as exc:
            raise ArtifactError(f"{ARTIFACT}, line {number}: {exc}") from exc.__cause__
    return history


def _event(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise InvalidEventError(f"not JSON: {line[:80]!r}") from exc
    if not isinstance(event, dict):
        raise InvalidEventError(f"an event is an object, not {line[:80]!r}")
    kind = _member(event, "kind", TEXT)
    if kind not in MEMBERS:
        raise InvalidEventError(f"kind {kind[:80]!r} is unknown; known are {', '.join(MEMBERS)}")
    for name, expected in {"day": DAY, "phase": TEXT, **MEMBERS[kind]}.items():
        _member(event, name, expected)
    return event


def _member(event: Mapping[str, Any], name: str, expected: str) -> Any:
    if name not in event:
        raise InvalidEventError(f"{name} is missing, it must be {expected}")
    value = event[name]
    fits = isinstance(value, str) if expected is TEXT else type(value) is int and value >= 0
    if not fits:
        raise InvalidEventError(f"{name} is {json.dumps(value)[:80]}, it must be {expected}")
    return value


def _apply(history: History, event: Mapping[str, Any]) -> None:
    day = event["day"]
    if history.days and day < max(history.days):
        raise InvalidEventError(
            f"day is {day}, but day {max(history.days)} had begun; events are in order of days"
        )
    history.days.add(day)
    if apply := EFFECTS.get(event["kind"]):
        apply(history, event)


def _mint(history: History, event: Mapping[str, Any]) -> None:
    history.minted.append((event["day"], event["amount_cents"]))


def _create(history: History, event: Mapping[str, Any]) -> None:
    name = event["payable"]
    if name in history.payables:
        raise InvalidEventError(f"payable is {name!r}, which was created before")
    parties = event["debtor"], event["creditor"]
    history.payables[name] = Payable(*parties, event["amount_cents"], event["due_day"])


def _pay(history: History, event: Mapping[str, Any]) -> None:
    one = _payable(history, event)
    one.paid_cents += event["amount_cents"]
    if one.paid_cents > one.amount_cents:
        raise InvalidEventError(
            f"amount_cents makes {one.paid_cents} paid of {one.amount_cents} that were owed"
        )
    history.payments.append(Payment(event["day"], one.debtor, one.creditor, event["amount_cents"]))


def _settle(history: History, event: Mapping[str, Any]) -> None:
    one = _payable(history, event)
    if one.settled_day is not None:
        raise InvalidEventError(
            f"payable is {event['payable']!r}, which was settled on day {one.settled_day}"
        )
    _pay(history, event)
    if one.paid_cents < one.amount_cents:
        raise InvalidEventError(
            f"amount_cents makes {one.paid_cents} paid of {one.amount_cents}: that is not settled"
        )
    one.settled_day = event["day"]


def _payable(history: History, event: Mapping[str, Any]) -> Payable:
    one = history.payables.get(event["payable"])
    if one is None:
        raise InvalidEventError(f"payable is {event['payable']!r}, which was never created")
    for party in ("debtor", "creditor"):
        if event[party] != getattr(one, party):
            raise InvalidEventError(
                f"{party} is {event[party]!r}, but {getattr(one, party)!r} when it was created"
            )
    return one


EFFECTS: Mapping[str, Callable[[History, Mapping[str, Any]], None]] = {
    "CashMinted": _mint,
    "PayableCreated": _create,
    "PayableSettled": _settle,
    "PartialSettlement": _pay,
}
"""The other kinds repeat what these say, or are not measured."""
