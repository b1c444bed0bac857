"""What stops an attempt: its time limit and its caller."""

import asyncio

from services.executor.isolation.attempt import CANCEL, TIMEOUT, Attempt


def attempt(timeout_seconds: float = 30.0) -> Attempt:
    return Attempt(timeout_seconds, 0.1, None, None)


def now() -> float:
    return asyncio.get_running_loop().time()


async def verdict_of(waited_for: Attempt) -> str:
    while not waited_for.verdict:
        await asyncio.sleep(0.001)
    return waited_for.verdict


async def test_an_attempt_is_stopped_at_its_deadline() -> None:
    one = attempt(0.05)
    begun = now()
    one.start_clock()

    assert await verdict_of(one) == TIMEOUT
    # The event loop calls back up to its clock's resolution early.
    assert now() - begun >= 0.049


async def test_a_cancellation_is_noticed_however_early_it_comes() -> None:
    cancel = asyncio.Event()
    one = attempt()
    one.stop_on(cancel)
    one.start_clock()

    cancel.set()

    assert await verdict_of(one) == CANCEL


async def test_a_cancellation_is_noticed_however_late_it_comes() -> None:
    cancel = asyncio.Event()
    one = attempt()
    one.stop_on(cancel)
    await asyncio.sleep(0.02)

    cancel.set()

    assert await verdict_of(one) == CANCEL


async def test_a_cancellation_that_came_before_the_call_stops_it_at_once() -> None:
    cancel = asyncio.Event()
    cancel.set()
    one = attempt()

    one.stop_on(cancel)

    assert one.verdict == CANCEL


async def test_an_attempt_that_is_over_is_not_stopped() -> None:
    cancel = asyncio.Event()
    over = attempt(0.01)
    over.stop_on(cancel)
    over.start_clock()

    over.close()
    cancel.set()
    await asyncio.sleep(0.03)

    assert not over.verdict
