"""What follows a failed attempt.  Pure: the caller brings the dice."""

from collections.abc import Callable
from dataclasses import dataclass

LONGEST_RETRY_AFTER_SECONDS = 24 * 3_600.0
MOST_DOUBLINGS = 100

Dice = Callable[[], float]
"""A number from 0 up to, but not including, 1."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a run is tried, and how long is waited in between."""

    max_attempts: int
    backoff_min_seconds: float
    backoff_max_seconds: float


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again, `delay_seconds` from now."""

    delay_seconds: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The failure is final.  `exhausted` tells a transient error that used up all attempts."""

    exhausted: bool


def decide(
    attempt: int, *, retryable: bool, retry_after_seconds: float | None, policy: RetryPolicy, dice: Dice
) -> Retry | GiveUp:
    """What follows failed attempt number `attempt` (from 1).

    A tool's own `retry_after` is never cut short; it is bounded to a day.
    """
    if not retryable:
        return GiveUp(exhausted=False)
    if attempt >= policy.max_attempts:
        return GiveUp(exhausted=policy.max_attempts > 1)
    delay_seconds = backoff_seconds(attempt, policy, dice)
    if retry_after_seconds is not None:
        delay_seconds = max(delay_seconds, min(retry_after_seconds, LONGEST_RETRY_AFTER_SECONDS))
    return Retry(delay_seconds)


def backoff_seconds(attempt: int, policy: RetryPolicy, dice: Dice) -> float:
    """Doubles with each attempt from the minimum, plus up to as much again by the dice, up to the maximum."""
    doublings = min(attempt - 1, MOST_DOUBLINGS)
    return min(policy.backoff_min_seconds * 2.0**doublings * (1 + dice()), policy.backoff_max_seconds)
