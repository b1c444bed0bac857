"""When attempts may begin: the rate limit, and growing pauses."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.planner.models import RateLimit, RetryPolicy
from services.planner.scheduling.budget import RateLimiter, retry_pause_seconds
from shared.backoff import DAY_SECONDS

START = datetime(2030, 1, 1, tzinfo=UTC)


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def move(self, seconds: float) -> None:
        """To wherever."""
        self.now += timedelta(seconds=seconds)


def test_a_burst_begins_at_once_and_the_rest_at_the_rate() -> None:
    pace = RateLimiter(RateLimit(per_minute=60, burst=5), Clock())

    assert [pace.reserve() for _ in range(8)] == [0, 0, 0, 0, 0, 1, 2, 3]


def test_without_a_limit_there_is_no_wait() -> None:
    pace = RateLimiter(None, Clock())

    assert [pace.reserve() for _ in range(3)] == [0, 0, 0]


def test_a_pause_refills_the_bucket_up_to_the_burst() -> None:
    clock = Clock()
    pace = RateLimiter(RateLimit(per_minute=60, burst=2), clock)
    waited = [pace.reserve() for _ in range(2)]

    clock.move(3_600)

    assert waited + [pace.reserve() for _ in range(4)] == [0, 0, 0, 0, 1, 2]


def test_a_clock_that_is_set_back_lengthens_no_wait() -> None:
    clock = Clock()
    pace = RateLimiter(RateLimit(per_minute=60), clock)
    pace.reserve()

    clock.move(-86_400)

    assert pace.reserve() == 1
    clock.move(1)
    assert pace.reserve() == 1


@given(
    st.floats(1, 6_000),
    st.integers(1, 10),
    st.lists(st.floats(0, 5), min_size=1, max_size=60),
)
def test_no_minute_has_more_than_the_rate_and_a_burst(
    per_minute: float, burst: int, gaps: list[float]
) -> None:
    clock = Clock()
    pace = RateLimiter(RateLimit(per_minute=per_minute, burst=burst), clock)
    begins = []
    for gap_seconds in gaps:
        clock.move(gap_seconds)
        clock.move(pace.reserve())
        begins.append((clock.now - START).total_seconds())

    assert begins == sorted(begins)
    for first, begin in enumerate(begins):
        within = [one for one in begins[first:] if one - begin < 60]
        assert len(within) <= per_minute + burst + 1e-6


# -- retries --------------------------------------------------------------------------


def test_pauses_grow_by_the_multiplier() -> None:
    policy = RetryPolicy(max_attempts=4, backoff_seconds=0.5, backoff_multiplier=3)

    assert [retry_pause_seconds(policy, attempt, lambda: 0.5) for attempt in (1, 2, 3)] == [0.5, 1.5, 4.5]


@pytest.mark.parametrize(("die", "seconds"), [(0.0, 8.0), (0.5, 10.0), (0.75, 11.0)])
def test_jitter_goes_both_ways(die: float, seconds: float) -> None:
    policy = RetryPolicy(max_attempts=2, backoff_seconds=10, jitter=0.2)

    assert retry_pause_seconds(policy, 1, lambda: die) == pytest.approx(seconds)


@pytest.mark.parametrize(("asked", "seconds"), [(None, 10.0), (4.0, 10.0), (12.5, 12.5), (1e9, DAY_SECONDS)])
def test_a_pause_is_not_shorter_than_the_tool_asks_for(asked: float | None, seconds: float) -> None:
    policy = RetryPolicy(max_attempts=2, backoff_seconds=10)

    assert retry_pause_seconds(policy, 1, lambda: 0.5, asked) == seconds


@pytest.mark.parametrize(("backoff", "seconds"), [(1.0, DAY_SECONDS), (0.0, 0.0)])
def test_no_pause_is_longer_than_a_day(backoff: float, seconds: float) -> None:
    policy = RetryPolicy(max_attempts=9_999, backoff_seconds=backoff, backoff_multiplier=1e300)

    assert retry_pause_seconds(policy, 9_998, lambda: 0.5) == seconds
