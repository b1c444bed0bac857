"""When an attempt may begin: the batches of a plan, its rate limit, and the pauses before retries.

All of it is pure: the caller passes the clock and the dice, and does the waiting.
"""

from collections.abc import Callable
from datetime import datetime

from services.planner.models import ExecutionPolicy, RateLimit, RetryPolicy
from shared.backoff import Backoff, Dice


class RateLimiter:
    """Assigns each attempt a start time that keeps the rate limit, in the order of the calls.

    This is the generic cell rate algorithm (ITU-T I.371, virtual scheduling algorithm), which is
    equivalent to a bucket of `burst` tokens that is refilled evenly.  An assigned time is used up
    whether the attempt begins or not, so no caller has to ask twice.  A clock that is set back
    counts as one that stands still.

    Args:
        limit: attempts per minute and burst; None for no limit.
        now: the clock.
    """

    def __init__(self, limit: RateLimit | None, now: Callable[[], datetime]) -> None:
        self._limit = limit
        self._now = now
        self._seen = now()
        self._elapsed_seconds = 0.0
        self._arrival_seconds = 0.0

    def reserve(self) -> float:
        """Reserve the next start time; return the seconds until then, 0 for now."""
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
    """Return the size of a batch for a number of cases, at least 1; a pause follows each batch.

    Without a pause all cases are one batch: smaller ones would only delay the next cases.
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
