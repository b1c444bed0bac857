"""The formulas, each a pure function.  Money is in whole cents; ratios are exact, without a unit.

On a day t, F_i is the sum of the debts that agent i has to pay on t, and I_i the sum of those that
it is to receive; both as the debts were created, also if they were written off before.

Sources: Mbar is the lower bound of liquidity of a payment system, which multilateral netting needs
(Koponen and Soramaki 1998); the concentrations are Herfindahl-Hirschman indexes.  The other formulas
are defined here.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from fractions import Fraction

Cents = Mapping[str, int]
"""Cents by agent."""


def ratio(part: int, whole: int) -> Fraction | None:
    """Return part / whole; None when the whole is 0."""
    return Fraction(part, whole) if whole else None


def dues(debts: Iterable[tuple[str, str, int]]) -> tuple[Cents, Cents]:
    """Return F and I by agent.

    Args:
        debts: (debtor, creditor, cents) of each debt that is due on the day.
    """
    due_out: Counter[str] = Counter()
    due_in: Counter[str] = Counter()
    for debtor, creditor, cents in debts:
        due_out[debtor] += cents
        due_in[creditor] += cents
    return due_out, due_in


def excess(larger: Cents, smaller: Cents) -> dict[str, int]:
    """Return max(0, larger_i - smaller_i) in cents for each agent for which it is not 0, sorted by agent.

    excess(F, I) are the shortfalls of net debtors, excess(I, F) the claims of net creditors.
    """
    differences = {agent: larger[agent] - smaller.get(agent, 0) for agent in sorted(larger)}
    return {agent: cents for agent, cents in differences.items() if cents > 0}


def size(due_out: Cents) -> int:
    """Return S = sum of F_i, in cents: all that is due on the day."""
    return sum(due_out.values())


def least_money(shortfalls: Cents) -> int:
    """Return Mbar = sum of max(0, F_i - I_i), in cents: the money needed if all dues were netted first."""
    return sum(shortfalls.values())


def gap(mbar_cents: int, m_cents: int) -> int:
    """Return G = max(0, Mbar - M), in cents: the money that is missing even with perfect netting.

    M is the money in the system at the start of the day.
    """
    return max(0, mbar_cents - m_cents)


def netting(mbar_cents: int, s_cents: int) -> Fraction | None:
    """Return alpha = 1 - Mbar / S, 0 to 1: the part of the dues that cancel out; None without dues."""
    return ratio(s_cents - mbar_cents, s_cents)


def on_time(settled_cents: int, s_cents: int) -> Fraction | None:
    """Return phi, 0 to 1: the part of S that was paid in full on its due day; None without dues.

    A debt that was paid in part doesn't count.  delta = 1 - phi is the rest.
    """
    return ratio(settled_cents, s_cents)


def money_in_use(payments: Iterable[tuple[str, str, int]]) -> list[int]:
    """Return the money in use after each payment of a day: the sum of max(0, paid_i - received_i), in cents.

    That is the part of the agents' opening balances that they have spent by then.  Its maximum is
    Mpeak, the least money with which these payments can be made in this order (the peak liquidity of
    gross settlement); 0 without payments.

    Args:
        payments: (payer, payee, cents), in the order in which they were made.
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
    """Return v = gross / Mpeak: how often the money in use changed hands; None without payments.

    Gross is the sum of all payments of the day, partial ones included.
    """
    return ratio(gross_cents, mpeak_cents)


def shares(amounts: Cents) -> dict[str, Fraction]:
    """Return each agent's share of the sum; for shortfalls it is DS_i.  The shares add up to 1."""
    whole = sum(amounts.values())
    return {agent: Fraction(cents, whole) for agent, cents in amounts.items()}


def concentration(amounts: Cents) -> Fraction | None:
    """Return the Herfindahl-Hirschman index: the sum of squared shares, from 1 / n (all equal) to 1.

    For the claims max(0, I_i - F_i) of net creditors it is HHI+, for the shortfalls of net debtors
    `hhi_debtors`.  None without amounts.
    """
    return sum((share**2 for share in shares(amounts).values()), Fraction()) if amounts else None


def weighted_mean(values: Iterable[tuple[int, Fraction | None]]) -> Fraction | None:
    """Return the weighted mean of (weight, value), without the values that are None; None without weight."""
    there = [(weight, value) for weight, value in values if value is not None]
    whole = sum(weight for weight, _ in there)
    return sum((weight * value for weight, value in there), Fraction()) / whole if whole else None
