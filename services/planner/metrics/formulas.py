"""The formulas, each a pure function: money in whole cents, ratios exact fractions without a unit.

On a day t, F_i is what agent i has to pay by the debts that fall due on t, and I_i what it
is to receive by them; both as the debts were made, whether or not they were written off before.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from fractions import Fraction

Cents = Mapping[str, int]
"""Cents by agent."""


def ratio(part: int, whole: int) -> Fraction | None:
    """part / whole, or None when the whole is 0."""
    return Fraction(part, whole) if whole else None


def dues(debts: Iterable[tuple[str, str, int]]) -> tuple[Cents, Cents]:
    """F and I of the agents, from (debtor, creditor, cents) of each debt that is due."""
    due_out: Counter[str] = Counter()
    due_in: Counter[str] = Counter()
    for debtor, creditor, cents in debts:
        due_out[debtor] += cents
        due_in[creditor] += cents
    return due_out, due_in


def excess(larger: Cents, smaller: Cents) -> dict[str, int]:
    """max(0, larger_i - smaller_i) of each agent for which it is not 0, in order of agents.

    excess(F, I) are the shortfalls of net debtors, excess(I, F) the claims of net creditors.
    """
    differences = {agent: larger[agent] - smaller.get(agent, 0) for agent in sorted(larger)}
    return {agent: cents for agent, cents in differences.items() if cents > 0}


def size(due_out: Cents) -> int:
    """S = sum of F_i, in cents: all that is due on the day."""
    return sum(due_out.values())


def least_money(shortfalls: Cents) -> int:
    """Mbar = sum of max(0, F_i - I_i), in cents: the money needed if all dues were netted first."""
    return sum(shortfalls.values())


def gap(mbar_cents: int, m_cents: int) -> int:
    """G = max(0, Mbar - M), in cents: what the money in the system lacks even with perfect netting.

    M is the money in the system at the start of the day.
    """
    return max(0, mbar_cents - m_cents)


def netting(mbar_cents: int, s_cents: int) -> Fraction | None:
    """alpha = 1 - Mbar / S, 0 to 1: the part of the dues that cancel out; None on a day without dues."""
    return ratio(s_cents - mbar_cents, s_cents)


def on_time(settled_cents: int, s_cents: int) -> Fraction | None:
    """phi, 0 to 1: the part of S that was paid in full on the day it was due; None on a day without dues.

    A debt that was paid in part counts nothing.  delta = 1 - phi is the part that was not.
    """
    return ratio(settled_cents, s_cents)


def money_in_use(payments: Iterable[tuple[str, str, int]]) -> list[int]:
    """After each payment (payer, payee, cents) of a day, the sum of max(0, paid_i - received_i), in cents.

    That is how much of the balances of the morning the agents have drawn down by then.  Its
    largest value is Mpeak, the least money with which these payments can be made in this order
    (the peak liquidity of gross settlement); 0 when nothing was paid.
    """
    net_paid: Counter[str] = Counter()
    in_use, after_each = 0, []
    for payer, payee, cents in payments:
        before = max(0, net_paid[payer]) + max(0, net_paid[payee])
        net_paid[payer] += cents
        net_paid[payee] -= cents
        in_use += max(0, net_paid[payer]) + max(0, net_paid[payee]) - before
        after_each.append(in_use)
    return after_each


def velocity(gross_cents: int, mpeak_cents: int) -> Fraction | None:
    """v = gross / Mpeak: how often the money in use changed hands; None on a day without payments.

    Gross is all that was paid on the day, debts paid in part included.
    """
    return ratio(gross_cents, mpeak_cents)


def shares(amounts: Cents) -> dict[str, Fraction]:
    """Each agent's part of the sum; of the shortfalls it is DS_i, and the sum of all DS_i is 1."""
    whole = sum(amounts.values())
    return {agent: Fraction(cents, whole) for agent, cents in amounts.items()}


def concentration(amounts: Cents) -> Fraction | None:
    """Herfindahl-Hirschman index: the sum of the squared shares, 1 / n (all equal) to 1 (one has all).

    Of the claims max(0, I_i - F_i) of net creditors it is HHI+, of the shortfalls of net debtors
    `hhi_debtors`.  None when there are no amounts.
    """
    return sum((share**2 for share in shares(amounts).values()), Fraction()) if amounts else None


def weighted_mean(values: Iterable[tuple[int, Fraction | None]]) -> Fraction | None:
    """The mean of (weight, value) over the values that there are; None when they weigh nothing."""
    there = [(weight, value) for weight, value in values if value is not None]
    whole = sum(weight for weight, _ in there)
    return sum((weight * value for weight, value in there), Fraction()) / whole if whole else None
