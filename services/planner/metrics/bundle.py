"""What is computed from one run of payments: plain values, money in whole cents, ratios exact."""

from dataclasses import dataclass
from fractions import Fraction

Ratio = Fraction | None
"""Exact; None when its denominator is 0, so that nothing was there to be measured."""


@dataclass(frozen=True, slots=True)
class DayMetrics:
    """One day, by the symbols of the literature; `formulas` defines each of them.

    `gross_cents` is all that was paid on the day, `debtors` and `creditors` count the agents that
    are due more than they are owed that day, and the reverse.
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
    """One agent's part `ds` of all shortfalls of a day; agents without a shortfall have none."""

    day: int
    agent: str
    shortfall_cents: int
    ds: Fraction


@dataclass(frozen=True, slots=True)
class Step:
    """One payment, and the money in use right after it."""

    day: int
    step: int
    payer: str
    payee: str
    amount_cents: int
    in_use_cents: int


@dataclass(frozen=True, slots=True)
class Totals:
    """The whole run.  Ratios are means over the days, weighted by S; a day without the ratio has no weight.

    Of `s_cents` and `gross_cents` it is the sum over all days, of `g_max_cents` and
    `mpeak_max_cents` the largest day's.
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
    """All metrics of one run."""

    day_metrics: tuple[DayMetrics, ...]
    debtor_shares: tuple[DebtorShare, ...]
    intraday: tuple[Step, ...]
    totals: Totals
