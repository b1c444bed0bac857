"""Computes the metrics of a run from its events: no rerun, no clock, no dice.  Money is in whole cents."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

from services.executor.artifacts import ArtifactLoader
from services.planner.metrics import formulas
from services.planner.metrics.events import ARTIFACT, History, Payable, Payment, read_events
from shared.errors import ArtifactNotFoundError

Ratio = Fraction | None
"""An exact ratio without a unit; None when its denominator is 0."""


@dataclass(frozen=True, slots=True)
class DayMetrics:
    """The metrics of one day; `formulas` defines the symbols.

    `gross_cents` is the sum of all payments of the day.  `debtors` counts the agents that have to pay
    more than they are to receive that day, `creditors` those that are to receive more.
    """

    day: int
    s_cents: int
    mbar_cents: int
    m_cents: int
    g_cents: int
    alpha: Ratio
    phi: Ratio
    delta: Ratio
    mpeak_cents: int
    gross_cents: int
    v: Ratio
    hhi_plus: Ratio
    hhi_debtors: Ratio
    debtors: int
    creditors: int


@dataclass(frozen=True, slots=True)
class DebtorShare:
    """The share `ds` of one agent in all shortfalls of a day; agents without a shortfall have no row."""

    day: int
    agent: str
    shortfall_cents: int
    ds: Fraction


@dataclass(frozen=True, slots=True)
class Step:
    """One payment, and the money in use after it, in cents."""

    day: int
    step: int
    payer: str
    payee: str
    amount_cents: int
    in_use_cents: int


@dataclass(frozen=True, slots=True)
class Totals:
    """The totals of a run.

    Ratios are means over the days on which they are defined, weighted by S.  `s_cents` and
    `gross_cents` are sums over all days, `g_max_cents` and `mpeak_max_cents` maxima.
    """

    days: int
    s_cents: int
    gross_cents: int
    g_max_cents: int
    mpeak_max_cents: int
    alpha: Ratio
    phi: Ratio
    delta: Ratio
    v: Ratio
    hhi_plus: Ratio
    hhi_debtors: Ratio


@dataclass(frozen=True, slots=True)
class MetricsBundle:
    """All metrics of one run: by day, by agent, by payment, and in total."""

    day_metrics: tuple[DayMetrics, ...]
    debtor_shares: tuple[DebtorShare, ...]
    intraday: tuple[Step, ...]
    totals: Totals

    @property
    def values(self) -> Mapping[str, Any]:
        """The totals by name."""
        return members(self.totals)

    @property
    def tables(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """The metrics by day, by agent and by payment."""
        rows = {"days": self.day_metrics, "debtor_shares": self.debtor_shares, "intraday": self.intraday}
        return {name: [members(one) for one in found] for name, found in rows.items()}


def members(one: Any) -> dict[str, Any]:
    """Return the fields of a dataclass by name, as numbers and texts."""
    return {field.name: plain(getattr(one, field.name)) for field in fields(one)}


def plain(value: Any) -> Any:
    """Return a ratio as the nearest float, whose shortest notation is the same everywhere."""
    return float(value) if isinstance(value, Fraction) else value


class MetricsComputer:
    """Computes the metrics of a run of payments from its artifacts, wherever these are stored.

    Both methods block, on the loader or on a disk: call them by `asyncio.to_thread` in an event loop.

    Args:
        loader: loads the artifacts.
    """

    main: ClassVar[Sequence[str]] = ("phi", "delta", "alpha", "hhi_plus")
    """The totals that a report draws."""

    def __init__(self, loader: ArtifactLoader) -> None:
        self._loader = loader

    def compute(self, artifacts: Mapping[str, str]) -> MetricsBundle:
        """Compute the metrics of a run; reads only `events.jsonl`.

        Args:
            artifacts: the run's artifacts, reference by name.

        Raises:
            ArtifactNotFoundError: the run has no `events.jsonl`.
            ArtifactError: it can't be read; the message names the line and the mistake.
        """
        if ARTIFACT not in artifacts:
            there = ", ".join(sorted(artifacts)) or "none"
            raise ArtifactNotFoundError(
                f"metrics are computed from {ARTIFACT}, the run's artifacts are: {there}"
            )
        return measure(read_events(self._loader.load_text(artifacts[ARTIFACT])))

    def write_outputs(self, bundle: MetricsBundle, directory: Path) -> dict[str, Path]:
        """Write all files of a bundle to a directory; return their paths by name.

        The same bundle makes the same bytes.
        """
        # Imported here: drawing is slow to import, and only this needs it.
        from services.planner.metrics.outputs import write_outputs

        return write_outputs(bundle, directory)


def measure(history: History) -> MetricsBundle:
    """Compute all metrics of a history, for each day from 1 on with a due debt or an event."""
    due, paid = defaultdict(list), defaultdict(list)
    for payable in history.payables.values():
        due[payable.due_day].append(payable)
    for payment in history.payments:
        paid[payment.day].append(payment)
    days, shares, steps = [], [], []
    for day in sorted(day for day in history.days | due.keys() if day > 0):
        money_cents = sum(cents for minted_on, cents in history.minted if minted_on < day)
        day_steps = _steps(day, paid[day])
        day_metrics, day_shares = _day(day, due[day], day_steps, money_cents)
        days.append(day_metrics)
        shares.extend(day_shares)
        steps.extend(day_steps)
    return MetricsBundle(tuple(days), tuple(shares), tuple(steps), _totals(days))


def _steps(day: int, payments: Sequence[Payment]) -> list[Step]:
    moves = [(one.payer, one.payee, one.amount_cents) for one in payments]
    in_use = formulas.money_in_use(moves)
    return [Step(day, number, *moves[number - 1], in_use[number - 1]) for number in range(1, len(moves) + 1)]


def _day(
    day: int, due: Sequence[Payable], steps: Sequence[Step], money_cents: int
) -> tuple[DayMetrics, list[DebtorShare]]:
    due_out, due_in = formulas.dues((one.debtor, one.creditor, one.amount_cents) for one in due)
    shortfalls, claims = formulas.excess(due_out, due_in), formulas.excess(due_in, due_out)
    s_cents, mbar_cents = formulas.size(due_out), formulas.least_money(shortfalls)
    phi = formulas.on_time(sum(one.amount_cents for one in due if one.settled_day == day), s_cents)
    gross_cents = sum(step.amount_cents for step in steps)
    mpeak_cents = max((step.in_use_cents for step in steps), default=0)
    metrics = DayMetrics(
        day=day,
        s_cents=s_cents,
        mbar_cents=mbar_cents,
        m_cents=money_cents,
        g_cents=formulas.gap(mbar_cents, money_cents),
        alpha=formulas.netting(mbar_cents, s_cents),
        phi=phi,
        delta=None if phi is None else 1 - phi,
        mpeak_cents=mpeak_cents,
        gross_cents=gross_cents,
        v=formulas.velocity(gross_cents, mpeak_cents),
        hhi_plus=formulas.concentration(claims),
        hhi_debtors=formulas.concentration(shortfalls),
        debtors=len(shortfalls),
        creditors=len(claims),
    )
    parts = formulas.shares(shortfalls)
    return metrics, [DebtorShare(day, agent, shortfalls[agent], part) for agent, part in parts.items()]


def _totals(days: Sequence[DayMetrics]) -> Totals:
    def mean(ratio: str) -> Fraction | None:
        return formulas.weighted_mean((day.s_cents, getattr(day, ratio)) for day in days)

    return Totals(
        days=len(days),
        s_cents=sum(day.s_cents for day in days),
        gross_cents=sum(day.gross_cents for day in days),
        g_max_cents=max((day.g_cents for day in days), default=0),
        mpeak_max_cents=max((day.mpeak_cents for day in days), default=0),
        alpha=mean("alpha"),
        phi=mean("phi"),
        delta=mean("delta"),
        v=mean("v"),
        hhi_plus=mean("hhi_plus"),
        hhi_debtors=mean("hhi_debtors"),
    )
