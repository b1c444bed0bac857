"""What follows a failed attempt, for whatever dice and policies there are."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.executor.retry import (
    LONGEST_RETRY_AFTER_SECONDS,
    GiveUp,
    Retry,
    RetryPolicy,
    backoff_seconds,
    decide,
)

# A shared core makes a single example slow at times; the same examples on every run are no surprise.
steady = settings(deadline=None, derandomize=True, max_examples=200)

attempts = st.integers(1, 1_000)
dice = st.floats(0, 1, exclude_max=True)
seconds = st.floats(0, 1e6)
policies = st.builds(
    lambda most, first, second: RetryPolicy(most, min(first, second), max(first, second)),
    attempts,
    seconds,
    seconds,
)
USUAL = RetryPolicy(max_attempts=5, backoff_min_seconds=1.0, backoff_max_seconds=30.0)


def decided(attempt: int, policy: RetryPolicy = USUAL, retry_after: float | None = None) -> Retry | GiveUp:
    return decide(attempt, retryable=True, retry_after_seconds=retry_after, policy=policy, dice=lambda: 0.0)


# -- whether --------------------------------------------------------------------------


@steady
@given(attempts, policies, st.none() | seconds)
def test_what_is_not_retryable_is_final(attempt: int, policy: RetryPolicy, after: float | None) -> None:
    decision = decide(attempt, retryable=False, retry_after_seconds=after, policy=policy, dice=lambda: 0.5)

    assert decision == GiveUp(exhausted=False)


@steady
@given(attempts, policies)
def test_it_is_tried_again_exactly_while_there_are_attempts_left(attempt: int, policy: RetryPolicy) -> None:
    assert isinstance(decided(attempt, policy), Retry) == (attempt < policy.max_attempts)


@pytest.mark.parametrize("attempt", [5, 6])
def test_after_the_last_attempt_they_are_exhausted(attempt: int) -> None:
    assert decided(attempt) == GiveUp(exhausted=True)


def test_a_single_attempt_that_failed_is_just_a_failure() -> None:
    assert decided(1, RetryPolicy(1, 1.0, 30.0)) == GiveUp(exhausted=False)


# -- how long -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attempt", "delay"), [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (6, 30.0), (900, 30.0)]
)
def test_the_delay_doubles_up_to_the_maximum(attempt: int, delay: float) -> None:
    assert backoff_seconds(attempt, USUAL, lambda: 0.0) == delay


@pytest.mark.parametrize(("thrown", "delay"), [(0.0, 4.0), (0.5, 6.0), (0.999, 7.996)])
def test_the_dice_add_up_to_as_much_again(thrown: float, delay: float) -> None:
    assert backoff_seconds(3, USUAL, lambda: thrown) == pytest.approx(delay)


@steady
@given(st.integers(1, 100_000), policies, dice)
def test_a_delay_stays_between_the_minimum_and_the_maximum(
    attempt: int, policy: RetryPolicy, thrown: float
) -> None:
    delay_seconds = backoff_seconds(attempt, policy, lambda: thrown)

    assert policy.backoff_min_seconds <= delay_seconds <= policy.backoff_max_seconds


@steady
@given(st.integers(1, 50), policies, dice)
def test_a_later_attempt_waits_no_shorter(attempt: int, policy: RetryPolicy, thrown: float) -> None:
    first, second = (backoff_seconds(number, policy, lambda: thrown) for number in (attempt, attempt + 1))

    assert first <= second


# -- what the tool asks for -----------------------------------------------------------


@steady
@given(attempts, policies, dice, st.floats(0, LONGEST_RETRY_AFTER_SECONDS))
def test_what_the_tool_asks_for_is_not_cut_short(
    attempt: int, policy: RetryPolicy, thrown: float, after: float
) -> None:
    decision = decide(attempt, retryable=True, retry_after_seconds=after, policy=policy, dice=lambda: thrown)

    assert isinstance(decision, GiveUp) or decision.delay_seconds >= after


@pytest.mark.parametrize("after", [1e9, math.inf])
def test_what_the_tool_asks_for_is_bounded_to_a_day(after: float) -> None:
    assert decided(1, retry_after=after) == Retry(24 * 3_600.0)


@pytest.mark.parametrize("after", [0.0, 0.5, -5.0, -math.inf, math.nan])
def test_what_the_tool_asks_for_does_not_shorten_the_backoff(after: float) -> None:
    assert decided(1, retry_after=after) == Retry(1.0)
