"""What follows a failed attempt, for any dice and policies."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.executor.outcome import GiveUp, Retry, retry_or_give_up
from services.executor.policy import retry_backoff
from shared.backoff import Backoff

# A shared core makes a single example slow at times; the same examples on every run are no surprise.
steady = settings(deadline=None, derandomize=True, max_examples=200)

attempts = st.integers(1, 1_000)
dice = st.floats(0, 1, exclude_max=True)
seconds = st.floats(0, 1e6)
backoffs = st.builds(
    lambda most, one, other: retry_backoff(most, min(one, other), max(one, other)), attempts, seconds, seconds
)
USUAL = retry_backoff(5, 1.0, 30.0)


def decided(
    attempt: int,
    backoff: Backoff = USUAL,
    retry_after: float | None = None,
    thrown: float = 0.0,
    *,
    retryable: bool = True,
) -> Retry | GiveUp:
    return retry_or_give_up(
        attempt,
        retryable=retryable,
        retry_after_seconds=retry_after,
        backoff=backoff,
        dice=lambda: thrown,
    )


# -- whether --------------------------------------------------------------------------


@steady
@given(attempts, backoffs, st.none() | seconds)
def test_an_error_that_is_not_retryable_is_final(attempt: int, backoff: Backoff, after: float | None) -> None:
    assert decided(attempt, backoff, after, retryable=False) == GiveUp(exhausted=False)


@steady
@given(attempts, backoffs)
def test_another_attempt_follows_exactly_while_there_are_attempts_left(
    attempt: int, backoff: Backoff
) -> None:
    assert backoff.max_attempts is not None
    assert isinstance(decided(attempt, backoff), Retry) == (attempt < backoff.max_attempts)


@pytest.mark.parametrize("attempt", [5, 6])
def test_after_the_last_attempt_they_are_exhausted(attempt: int) -> None:
    assert decided(attempt) == GiveUp(exhausted=True)


def test_a_single_allowed_attempt_is_exhausted_as_well() -> None:
    assert decided(1, retry_backoff(1, 1.0, 30.0)) == GiveUp(exhausted=True)


# -- how long -------------------------------------------------------------------------


@steady
@given(attempts, backoffs, dice)
def test_the_delay_is_the_backoffs_pause(attempt: int, backoff: Backoff, thrown: float) -> None:
    decision = decided(attempt, backoff, thrown=thrown)

    assert isinstance(decision, GiveUp) or decision.delay_seconds == backoff.pause_seconds(
        attempt, lambda: thrown
    )


@pytest.mark.parametrize(("thrown", "delay"), [(0.0, 4.0), (0.5, 6.0), (0.999, 7.996)])
def test_the_dice_add_up_to_as_much_again(thrown: float, delay: float) -> None:
    decision = decided(3, thrown=thrown)

    assert isinstance(decision, Retry)
    assert decision.delay_seconds == pytest.approx(delay)


@pytest.mark.parametrize(("after", "delay"), [(None, 1.0), (0.5, 1.0), (100.0, 100.0), (math.inf, 86_400.0)])
def test_what_the_tool_asks_for_is_not_cut_short_up_to_a_day(after: float | None, delay: float) -> None:
    assert decided(1, retry_after=after) == Retry(delay)
