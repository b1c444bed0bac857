"""Each formula against numbers computed by hand, day by day, for a ring of three."""

from fractions import Fraction
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.planner.metrics import DayMetrics, DebtorShare, Step, Totals, formulas
from tests.planner.metrics.rings import EXPELLED, ROUND, compute, event


def test_a_day_with_a_partial_payment_and_a_shortfall(tmp_path: Path) -> None:
    assert compute(tmp_path, EXPELLED).day_metrics[0] == DayMetrics(
        day=1,
        s_cents=160,  # 100 + 60
        mbar_cents=100,  # A alone
        m_cents=80,  # 70 + 10
        g_cents=20,  # 100 - 80
        alpha=Fraction(3, 8),  # 1 - 100 / 160
        phi=Fraction(3, 8),  # 60 / 160: the 70 paid in part count nothing
        delta=Fraction(5, 8),
        mpeak_cents=70,  # B pays with what it got from A
        gross_cents=130,  # 70 + 60
        v=Fraction(13, 7),
        hhi_debtors=Fraction(1),
        hhi_plus=Fraction(13, 25),  # (40 / 100) ** 2 + (60 / 100) ** 2
        debtors=1,
        creditors=2,
    )


def test_a_day_on_which_the_only_debt_is_paid(tmp_path: Path) -> None:
    one = Fraction(1)

    assert compute(tmp_path, EXPELLED).day_metrics[1] == DayMetrics(
        2, 40, 40, 80, 0, Fraction(0), one, Fraction(0), 40, 40, one, one, one, 1, 1
    )


def test_on_a_quiet_day_there_are_no_ratios(tmp_path: Path) -> None:
    nothing = None

    assert compute(tmp_path, EXPELLED).day_metrics[2] == DayMetrics(
        3, 0, 0, 80, 0, nothing, nothing, nothing, 0, 0, nothing, nothing, nothing, 0, 0
    )


def test_the_totals_are_weighted_by_what_was_due(tmp_path: Path) -> None:
    assert compute(tmp_path, EXPELLED).totals == Totals(
        days=3,
        s_cents=200,
        gross_cents=170,
        g_max_cents=20,
        mpeak_max_cents=70,
        alpha=Fraction(3, 10),  # (160 * 3/8 + 40 * 0) / 200
        phi=Fraction(1, 2),  # (160 * 3/8 + 40 * 1) / 200
        delta=Fraction(1, 2),
        v=Fraction(59, 35),  # (160 * 13/7 + 40 * 1) / 200
        hhi_debtors=Fraction(1),
        hhi_plus=Fraction(77, 125),  # (160 * 13/25 + 40 * 1) / 200
    )


def test_shares_of_two_shortfalls_and_their_concentration(tmp_path: Path) -> None:
    bundle = compute(tmp_path, ROUND)

    assert bundle.debtor_shares == (
        DebtorShare(1, "A", 10, Fraction(1, 3)),
        DebtorShare(1, "B", 20, Fraction(2, 3)),
    )
    assert bundle.day_metrics[0].hhi_debtors == Fraction(5, 9)
    assert bundle.day_metrics[0].mbar_cents == 30
    assert bundle.day_metrics[0].alpha == Fraction(7, 10)


def test_the_steps_of_a_day_say_how_much_money_is_in_use(tmp_path: Path) -> None:
    assert compute(tmp_path, EXPELLED).intraday == (
        Step(1, 1, "A", "B", 70, 70),
        Step(1, 2, "B", "C", 60, 70),
        Step(2, 1, "C", "A", 40, 40),
    )


@pytest.mark.parametrize(
    ("payments", "expected"),
    [
        ([], []),
        ([("A", "B", 10), ("B", "C", 10), ("C", "A", 10)], [10, 10, 0]),
        ([("B", "C", 10), ("A", "B", 10), ("C", "A", 10)], [10, 10, 0]),
        ([("A", "B", 10), ("C", "A", 25), ("B", "C", 30)], [10, 25, 20]),
        ([("A", "A", 5)], [0]),
    ],
)
def test_money_in_use_is_the_sum_of_what_agents_are_down(
    payments: list[tuple[str, str, int]], expected: list[int]
) -> None:
    assert formulas.money_in_use(payments) == expected


def test_money_minted_on_a_day_counts_from_the_next_day(tmp_path: Path) -> None:
    late = {"kind": "CashMinted", "day": 2, "phase": "settlement", "agent": "A", "amount_cents": 5}
    bundle = compute(tmp_path, [*ROUND, late, {"kind": "PhaseStarted", "day": 3, "phase": "settlement"}])

    assert [(day.day, day.m_cents) for day in bundle.day_metrics] == [(1, 30), (2, 30), (3, 35)]


def test_a_debt_written_off_before_its_due_day_is_due_and_not_paid(tmp_path: Path) -> None:
    bundle = compute(tmp_path, [*EXPELLED[:5], event("ObligationWrittenOff", 1, "P3", 40)])

    assert [(day.day, day.s_cents) for day in bundle.day_metrics] == [(1, 160), (2, 40)]
    assert [day.phi for day in bundle.day_metrics] == [0, 0]


def test_no_events_give_no_metrics(tmp_path: Path) -> None:
    bundle = compute(tmp_path, [])

    assert bundle.day_metrics == ()
    assert bundle.totals.phi is None
    assert bundle.totals.days == 0


steady = settings(deadline=None, derandomize=True, max_examples=100)
payments = st.lists(
    st.tuples(st.sampled_from("ABCD"), st.sampled_from("ABCD"), st.integers(0, 1_000)), max_size=12
)


@steady
@given(payments)
def test_money_in_use_is_never_negative_and_never_more_than_was_paid(
    moves: list[tuple[str, str, int]],
) -> None:
    in_use = formulas.money_in_use(moves)

    assert all(0 <= cents <= sum(move[2] for move in moves[: i + 1]) for i, cents in enumerate(in_use))


@steady
@given(payments)
def test_the_money_in_use_at_the_end_of_a_day_doesnt_depend_on_the_order(
    moves: list[tuple[str, str, int]],
) -> None:
    ends = {tuple(formulas.money_in_use(list(order))[-1:]) for order in permutations(moves[:4])}

    assert len(ends) == 1


@steady
@given(payments)
def test_concentration_is_between_equal_parts_and_one(moves: list[tuple[str, str, int]]) -> None:
    due_out, due_in = formulas.dues(moves)
    shortfalls, claims = formulas.excess(due_out, due_in), formulas.excess(due_in, due_out)
    index = formulas.concentration(shortfalls)

    assert sum(shortfalls.values()) == sum(claims.values())
    assert index is None if not shortfalls else Fraction(1, len(shortfalls)) <= (index or 0) <= 1
