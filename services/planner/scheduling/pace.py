"""When an attempt may begin: a plan's batches and its rate limit, and the pauses between attempts of a case.

Pure: the caller brings the clock and the dice, and does the waiting.
"""

from collections.abc import Callable
from datetime import datetime

from services.planner.models import ExecutionPolicy, RateLimit, RetryPolicy
from shared.backoff import Backoff, Dice


class RateLimiter:
    """Gives each attempt its place in time, in the order in which they ask.

    A place that was given is taken, whether it is used or not, so that nobody has to ask
    again, not even where the clock stands still.  A clock that is set back
    counts as one that stands still.

    This is the generic cell rate algorithm (ITU-T I.371, virtual scheduling): the
    same as a bucket of `burst` tokens, filled evenly.

    Args:
        limit: None for no limit.
        now: the clock.
    """

    def __init__(self, limit: RateLimit | None, now: Callable[[], datetime]) -> None:
        self._limit = limit
        self._now = now
        self._seen = now()
        self._elapsed_seconds = 0.0
        self._arrival_seconds = 0.0

    def reserve(self) -> float:
        """Take the next place; the seconds until then."""
        if self._limit is None:
            return 0.0
        interval_seconds = 60 / self._limit.per_minute
        now_seconds = self._clock()
        tolerated_seconds = interval_seconds * (self._limit.burst - 1)
        wait_seconds = max(0.0, self._arrival_seconds - tolerated_seconds - now_seconds)
        self._arrival_seconds = max(self._arrival_seconds, now_seconds) + interval_seconds
        return wait_seconds

    def _clock(self) -> float:
        now = self._now()
        self._elapsed_seconds += max(0.0, (now - self._seen).total_seconds())
        self._seen = now
        return self._elapsed_seconds


def batch_size(policy: ExecutionPolicy, cases: int) -> int:
    """How many of so many cases are in one batch, at least 1; there is a pause between any two batches.

    Without a pause all are one batch: others would only hold up the next cases.
    """
    size = policy.batch_size if policy.backoff_seconds else None
    return max(1, min(size or cases, cases))


def retry_pause_seconds(
    policy: RetryPolicy, attempt: int, dice: Dice, asked_seconds: float | None = None
) -> float:
    """Return the seconds between failed attempt number `attempt` (from 1) and the next, a day at most.

    They are not fewer than the tool asks for.
    """
    backoff = Backoff(
        policy.backoff_seconds, factor=policy.backoff_multiplier, jitter=(-policy.jitter, policy.jitter)
    )
    return backoff.pause_seconds(attempt, dice, asked_seconds)
