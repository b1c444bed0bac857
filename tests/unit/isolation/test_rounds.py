"""One timer looks after every attempt of a pool."""

import asyncio

import pytest

from services.executor.isolation.attempt import CANCEL, NEVER, TIMEOUT, Attempt
from services.executor.isolation.rounds import Rounds


def attempt(timeout_seconds: float = 30.0) -> Attempt:
    return Attempt(timeout_seconds, 0.1, None, None)


def now() -> float:
    return asyncio.get_running_loop().time()


async def verdict_of(waited_for: Attempt) -> str:
    while not waited_for.verdict:
        await asyncio.sleep(0.001)
    return waited_for.verdict


async def test_each_attempt_is_stopped_at_its_own_deadline_whatever_the_order() -> None:
    rounds = Rounds()
    begun = now()
    late, early, never = attempt(0.1), attempt(0.02), attempt(30)
    for one in (never, late, early):
        one.start_clock(begun)
        rounds.add(one)

    verdicts = [await verdict_of(early)]
    early_seconds = now() - begun
    verdicts.append(await verdict_of(late))

    assert verdicts == [TIMEOUT, TIMEOUT]
    assert early_seconds >= 0.02
    assert now() - begun >= 0.1
    assert not never.verdict


async def test_a_cancel_is_noticed_however_early_it_comes() -> None:
    rounds = Rounds()
    cancel = asyncio.Event()
    one = attempt()
    one.follow(cancel, now())
    one.start_clock(now())
    rounds.add(one)

    cancel.set()

    assert await verdict_of(one) == CANCEL


async def test_a_cancel_is_noticed_however_late_it_comes() -> None:
    rounds = Rounds()
    cancel = asyncio.Event()
    one = attempt()
    one.follow(cancel, now())
    rounds.add(one)
    await asyncio.sleep(0.02)

    cancel.set()

    assert await verdict_of(one) == CANCEL


async def test_an_attempt_that_is_over_is_left_alone() -> None:
    rounds = Rounds()
    over, other = attempt(0.01), attempt(0.03)
    for one in (over, other):
        one.start_clock(now())
        rounds.add(one)

    over.close()
    rounds.remove(over)
    await verdict_of(other)

    assert not over.verdict
    assert over.due_at == NEVER


async def test_one_that_fails_to_stop_keeps_no_other_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    rounds = Rounds()
    broken, other = attempt(0.01), attempt(0.01)
    monkeypatch.setattr(broken, "stop", lambda _: 1 / 0)
    for one in (broken, other):
        one.start_clock(now())
        rounds.add(one)

    assert await verdict_of(other) == TIMEOUT
