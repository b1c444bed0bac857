"""Pauses between attempts: tenacity's, with our jitter, for any policy and any attempt."""

import asyncio
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from shared.backoff import DAY_SECONDS, Backoff, Outage, shutdown_timeout, until_available
from shared.errors import StoreError, StoreUnavailableError

# A shared core makes a single example slow at times; the same examples on every run are no surprise.
steady = settings(deadline=None, derandomize=True, max_examples=200)

attempts = st.integers(1, 100_000)
dice = st.floats(0, 1, exclude_max=True)
seconds = st.floats(0, 1e6)
backoffs = st.builds(
    lambda one, other, factor: Backoff(min(one, other), max(one, other), factor, (0.0, 1.0)),
    seconds,
    seconds,
    st.floats(1, 1e300),
)
USUAL = Backoff(1.0, 30.0, jitter=(0.0, 1.0))


# -- pauses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attempt", "pause"), [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (6, 30.0), (900, 30.0)]
)
def test_a_pause_doubles_up_to_the_longest(attempt: int, pause: float) -> None:
    assert USUAL.pause_seconds(attempt, lambda: 0.0) == pause


def test_pauses_grow_by_the_factor() -> None:
    backoff = Backoff(0.5, factor=3)

    assert [backoff.pause_seconds(attempt) for attempt in (1, 2, 3)] == [0.5, 1.5, 4.5]


@pytest.mark.parametrize(("thrown", "pause"), [(0.0, 4.0), (0.5, 6.0), (0.999, 7.996)])
def test_jitter_adds_up_to_its_largest_part(thrown: float, pause: float) -> None:
    assert USUAL.pause_seconds(3, lambda: thrown) == pytest.approx(pause)


@pytest.mark.parametrize(("thrown", "pause"), [(0.0, 8.0), (0.5, 10.0), (0.75, 11.0)])
def test_jitter_may_go_both_ways(thrown: float, pause: float) -> None:
    assert Backoff(10, jitter=(-0.2, 0.2)).pause_seconds(1, lambda: thrown) == pytest.approx(pause)


def test_the_global_random_numbers_are_left_alone() -> None:
    before = random.getstate()

    USUAL.pause_seconds(3, lambda: 0.5)

    assert random.getstate() == before


@steady
@given(attempts, backoffs, dice)
def test_a_pause_stays_between_the_first_and_the_longest(
    attempt: int, backoff: Backoff, thrown: float
) -> None:
    pause = backoff.pause_seconds(attempt, lambda: thrown)

    assert backoff.first_seconds <= pause <= backoff.longest_seconds


@steady
@given(st.integers(1, 50), backoffs, dice)
def test_a_later_pause_is_not_shorter(attempt: int, backoff: Backoff, thrown: float) -> None:
    first, second = (backoff.pause_seconds(number, lambda: thrown) for number in (attempt, attempt + 1))

    assert first <= second


@pytest.mark.parametrize("attempt", [1, 2, 100_000])
def test_a_first_pause_of_zero_means_no_pauses(attempt: int) -> None:
    assert Backoff(0.0, 30.0, factor=1e300).pause_seconds(attempt) == 0


# -- what a server asks for -----------------------------------------------------------


@steady
@given(attempts, backoffs, dice, st.floats(0, DAY_SECONDS))
def test_what_is_asked_for_is_not_cut_short(
    attempt: int, backoff: Backoff, thrown: float, asked: float
) -> None:
    assert backoff.pause_seconds(attempt, lambda: thrown, asked) >= asked


@pytest.mark.parametrize("asked", [1e9, math.inf])
def test_what_is_asked_for_is_bounded_to_a_day(asked: float) -> None:
    assert USUAL.pause_seconds(1, lambda: 0.0, asked) == DAY_SECONDS


@pytest.mark.parametrize("asked", [0.0, 0.5, -5.0, -math.inf, math.nan])
def test_what_is_asked_for_does_not_shorten_the_pause(asked: float) -> None:
    assert USUAL.pause_seconds(1, lambda: 0.0, asked) == 1.0


# -- stopping -------------------------------------------------------------------------


def test_attempts_are_exhausted_at_the_last_one() -> None:
    backoff = Backoff(1.0, max_attempts=3)

    assert [backoff.is_exhausted(attempt) for attempt in (1, 2, 3, 4)] == [False, False, True, True]


def test_without_a_limit_attempts_are_never_exhausted() -> None:
    assert not USUAL.is_exhausted(100_000)


async def test_a_call_is_repeated_with_the_pauses_and_its_last_error_is_raised() -> None:
    seen: list[tuple[str, float]] = []
    errors = iter("abcd")

    async def fail() -> None:
        raise OSError(next(errors))

    backoff = Backoff(0.001, 0.002, max_attempts=3)
    with pytest.raises(OSError, match="c"):
        await backoff.retry(fail, OSError, lambda exc, pause: seen.append((str(exc), pause)))

    assert seen == [("a", 0.001), ("b", 0.002)]


async def test_another_error_is_not_repeated() -> None:
    calls = []

    async def fail() -> None:
        calls.append(1)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await Backoff(0.001).retry(fail, OSError, lambda *_: None)

    assert calls == [1]


async def test_a_function_that_only_returns_a_coroutine_is_awaited() -> None:
    async def call() -> str:
        return "reply"

    assert await Backoff(0.001).retry(lambda: call(), OSError, lambda *_: None) == "reply"


@pytest.mark.parametrize("is_failing", [True, False], ids=["in the pause", "in the call"])
async def test_a_cancellation_goes_through_untouched(is_failing: bool) -> None:
    entered, calls = asyncio.Event(), []

    async def call() -> None:
        calls.append(1)
        entered.set()
        if is_failing:
            raise OSError
        await asyncio.Event().wait()

    task = asyncio.create_task(Backoff(60).retry(call, OSError, lambda *_: None))
    await entered.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert (task.cancelled(), calls) == (True, [1])


# -- Redis is unavailable -------------------------------------------------------------


def test_pauses_of_an_outage_grow_and_begin_anew_with_the_next_one() -> None:
    outage = Outage("claim", longest_pause_seconds=0.5)

    first = [outage.failed(StoreError("away")) for _ in range(5)]
    outage.ended()

    assert first == [0.1, 0.2, 0.4, 0.5, 0.5]
    assert outage.failed(StoreError("away")) == 0.1


def test_an_outage_is_logged_when_it_begins_when_its_error_changes_and_when_it_ends() -> None:
    outage = Outage("claim")

    with capture_logs() as lines:
        for error in ("away", "away", "still loading"):
            outage.failed(StoreError(error))
        outage.ended()
        outage.ended()

    assert [(line["event"], line.get("error")) for line in lines] == [
        ("redis.awaited", "away"),
        ("redis.awaited", "still loading"),
        ("redis.returned", None),
    ]


async def test_a_call_is_repeated_while_redis_is_unavailable() -> None:
    errors = [StoreUnavailableError("away")]

    async def call() -> str:
        if errors:
            raise errors.pop()
        return "reply"

    assert await until_available("test", call) == "reply"


async def test_an_error_that_is_no_outage_is_raised() -> None:
    async def call() -> None:
        raise StoreError("wrong type")

    with pytest.raises(StoreError, match="wrong type"):
        await until_available("test", call)


async def test_a_cancellation_ends_the_wait_for_redis() -> None:
    called = asyncio.Event()

    async def call() -> None:
        called.set()
        raise StoreUnavailableError("away")

    task = asyncio.create_task(until_available("test", call))
    await called.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_calls_at_shutdown_are_limited() -> None:
    with pytest.raises(StoreUnavailableError, match=r"within 0\.01 s"):
        async with shutdown_timeout(0.01):
            await asyncio.Event().wait()
