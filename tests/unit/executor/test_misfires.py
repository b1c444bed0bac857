"""Which missed due times become runs, and where a schedule goes on."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.executor.scheduling.cron import Cron
from services.executor.scheduling.misfires import CatchUp, Misfires
from shared.messages import Policy

MINUTELY = Cron.parse("* * * * *")
DAILY = Cron.parse("0 9 * * *", "Europe/Berlin")
MINUTE_MS = 60_000
AT_ONCE, ON_TIME_MS = Misfires().at_once, Misfires().on_time_ms
NINE = round(datetime(2026, 2, 2, 9, 0, tzinfo=UTC).timestamp() * 1_000)
GRACE = [None, 0, 0.5, 90, 3_600]


def due(due_ms: int, now_ms: int, cron: Cron = MINUTELY, **policy: Any) -> CatchUp:
    """What is decided under a policy."""
    return Misfires().catch_up(cron, due_ms, now_ms, Policy(**policy))


@pytest.mark.parametrize("catch_up", [None, "latest", "all", "none"])
def test_a_due_time_on_time_is_run_whatever_the_policy(catch_up: str | None) -> None:
    decided = due(NINE, NINE + 5, catch_up=catch_up)

    assert (list(decided.run_ms), decided.next_ms) == ([NINE], NINE + MINUTE_MS)


def test_the_latest_of_the_missed_due_times_is_run_by_default() -> None:
    decided = due(NINE, NINE + 10 * MINUTE_MS + 5)

    assert list(decided.run_ms) == [NINE + 10 * MINUTE_MS]


def test_all_missed_due_times_are_run_if_asked_for_oldest_first() -> None:
    decided = due(NINE, NINE + 3 * MINUTE_MS + 5, catch_up="all")

    assert list(decided.run_ms) == [NINE + number * MINUTE_MS for number in range(4)]


def test_missed_due_times_are_dropped_if_asked_for() -> None:
    decided = due(NINE, NINE + 3 * MINUTE_MS + ON_TIME_MS + 1, catch_up="none")

    assert list(decided.run_ms) == []


def test_without_catching_up_what_is_due_now_is_run() -> None:
    decided = due(NINE, NINE + 3 * MINUTE_MS + ON_TIME_MS, catch_up="none")

    assert list(decided.run_ms) == [NINE + 3 * MINUTE_MS]


def test_what_is_later_than_the_grace_is_dropped() -> None:
    decided = due(NINE, NINE + 90_001, DAILY, grace_seconds=90)

    assert list(decided.run_ms) == []


def test_what_is_as_late_as_the_grace_is_run() -> None:
    decided = due(NINE, NINE + 90_000, DAILY, grace_seconds=90)

    assert list(decided.run_ms) == [NINE]


def test_grace_bounds_how_far_back_all_goes() -> None:
    decided = due(NINE, NINE + 10 * MINUTE_MS, catch_up="all", grace_seconds=120)

    assert list(decided.run_ms) == [NINE + number * MINUTE_MS for number in (8, 9, 10)]


def test_grace_can_only_shorten_what_counts_as_on_time() -> None:
    decided = due(NINE, NINE + 2_000, catch_up="none", grace_seconds=3_600)

    assert list(decided.run_ms) == []


def test_a_year_of_missed_due_times_is_one_run_of_the_latest() -> None:
    decided = due(NINE, NINE + 365 * 1_440 * MINUTE_MS + 5)

    assert list(decided.run_ms) == [NINE + 365 * 1_440 * MINUTE_MS]
    assert decided.next_ms == NINE + 365 * 1_440 * MINUTE_MS + MINUTE_MS


def test_a_year_of_due_times_to_catch_up_with_comes_in_portions() -> None:
    decided = due(NINE, NINE + 365 * 1_440 * MINUTE_MS, catch_up="all")

    assert AT_ONCE <= len(decided.run_ms) <= AT_ONCE + 1
    assert decided.next_ms == decided.run_ms[-1] + MINUTE_MS


def test_what_grace_drops_is_passed_over_at_once() -> None:
    now_ms = NINE + 365 * 1_440 * MINUTE_MS

    decided = due(NINE, now_ms, catch_up="all", grace_seconds=60)

    assert (list(decided.run_ms), decided.next_ms) == ([now_ms - MINUTE_MS, now_ms], now_ms + MINUTE_MS)


def test_a_schedule_without_a_further_due_time_ends() -> None:
    once = Cron.parse("0 9 2 2 * 0 2026")

    decided = due(NINE, NINE + 5, once)

    assert (list(decided.run_ms), decided.next_ms) == ([NINE], None)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    late_ms=st.integers(0, 3 * 86_400_000),
    catch_up=st.sampled_from([None, "latest", "all", "none"]),
    grace_seconds=st.sampled_from(GRACE),
)
def test_a_decision_moves_on_and_runs_nothing_that_is_not_due(
    late_ms: int, catch_up: str | None, grace_seconds: float | None
) -> None:
    now_ms = NINE + late_ms

    decided = due(NINE, now_ms, catch_up=catch_up, grace_seconds=grace_seconds)

    assert decided.next_ms is not None
    assert decided.next_ms > NINE
    assert all(NINE <= one <= now_ms and one % MINUTE_MS == 0 for one in decided.run_ms)
    assert list(decided.run_ms) == sorted(set(decided.run_ms))
    assert all(one < decided.next_ms for one in decided.run_ms)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(minutes=st.integers(0, 4_000))
def test_all_means_every_due_time_exactly_once_in_however_many_portions(minutes: int) -> None:
    now_ms = NINE + minutes * MINUTE_MS + 7
    due_ms, ran = NINE, list[int]()
    while due_ms <= now_ms:
        decided = due(due_ms, now_ms, catch_up="all")
        ran += decided.run_ms
        assert decided.next_ms is not None
        due_ms = decided.next_ms

    assert ran == [NINE + number * MINUTE_MS for number in range(minutes + 1)]


# -- while a run is open ----------------------------------------------------------------


@pytest.mark.parametrize("catch_up", [None, "latest", "all", "none"])
@pytest.mark.parametrize("overlap", [None, "skip", "queue", "allow"])
@pytest.mark.parametrize("late_ms", [0, ON_TIME_MS])
def test_what_is_on_time_does_what_overlap_says(
    catch_up: str | None, overlap: str | None, late_ms: int
) -> None:
    decided = due(NINE, NINE + late_ms, catch_up=catch_up, overlap=overlap)

    assert decided.overlap == (overlap or "skip")


@pytest.mark.parametrize(("overlap", "expected"), [(None, "queue"), ("queue", "queue"), ("allow", "allow")])
def test_no_missed_due_time_is_skipped_where_all_are_wanted(overlap: str | None, expected: str) -> None:
    decided = due(NINE, NINE + ON_TIME_MS + 1, catch_up="all", overlap=overlap)

    assert (decided.overlap, list(decided.run_ms)) == (expected, [NINE])


def test_a_due_time_on_time_is_skipped_although_others_were_too_late_to_run() -> None:
    decided = due(NINE, NINE + 5 * MINUTE_MS, catch_up="all", grace_seconds=1)

    assert (decided.overlap, list(decided.run_ms)) == ("skip", [NINE + 5 * MINUTE_MS])


@pytest.mark.parametrize(
    ("catch_up", "overlap", "serial"),
    [("all", None, True), ("latest", None, False), ("all", "allow", False), (None, "queue", True)],
)
@pytest.mark.parametrize("late_ms", [0, 5 * MINUTE_MS])
def test_runs_are_serial_where_several_may_be_queued_and_must_not_overlap(
    catch_up: str | None, overlap: str | None, serial: bool, late_ms: int
) -> None:
    assert due(NINE, NINE + late_ms, catch_up=catch_up, overlap=overlap).serial is serial
