"""Turns of speedrun: a cycle is made once, and those that waited longest get a turn."""

import itertools
from collections import Counter
from typing import Any

import pytest

from services.executor.store import Order, Store
from services.executor.store.due_times import CYCLE_PREPARED_WITHIN_MS
from shared import keys
from shared.errors import StoreError
from tests.store.conftest import Run, Worker, orders, together

TEN = [f"e{number}" for number in range(10)]
LONG = 60.0


def turns_of(names: list[str]) -> list[Order]:
    return [Order(name, "speedrun") for name in names]


async def cycle(store: Store, names: list[str], turns: int = 3, seconds: float = LONG) -> list[str]:
    return (await store.due_times.speedrun(turns_of(names), seconds, turns))[1]


async def perform(workers: list[Worker]) -> None:
    """All that was queued, by each of the workers in turn."""
    waiting = (await workers[0].store.queue.depth()).waiting
    for _, worker in zip(range(waiting), itertools.cycle(workers), strict=False):
        claim = await worker.claim()
        await Run(worker, claim).finish()


async def next_cycle(redis: Any) -> None:
    """As if the time of a cycle had passed."""
    await redis.delete(keys.cycle())


async def test_a_turn_is_a_run(store: Store, redis: Any) -> None:
    assert await cycle(store, ["e1"]) == ["e1"]

    assert await orders(redis) == [Order("e1", "speedrun", timestamp=(await orders(redis))[0].timestamp)]
    assert await store.due_times.has_open_runs("e1")


async def test_a_cycle_gives_so_many_turns(store: Store, redis: Any) -> None:
    assert await cycle(store, TEN) == ["e0", "e1", "e2"]

    assert len(await orders(redis)) == 3


async def test_a_cycle_lasts_as_long_as_it_is_told(store: Store, redis: Any) -> None:
    left_seconds, chosen = await store.due_times.speedrun(turns_of(TEN), LONG, 3)
    assert (left_seconds, len(chosen)) == (LONG, 3)
    left_seconds, chosen = await store.due_times.speedrun(turns_of(TEN), LONG, 3)

    assert LONG - 10 < left_seconds <= LONG
    assert chosen == []


async def test_turns_that_are_left_of_a_cycle_go_to_those_who_never_had_one(store: Store, redis: Any) -> None:
    assert await cycle(store, ["e1"], turns=3) == ["e1"]
    left_seconds, chosen = await store.due_times.speedrun(turns_of(["e1", "e2", "e3", "e4"]), None, 2)

    assert LONG - 10 < left_seconds <= LONG
    assert chosen == ["e2", "e3"]
    assert len(await orders(redis)) == 3


async def test_no_turns_are_left_of_a_cycle_that_is_over(store: Store, redis: Any) -> None:
    await cycle(store, ["e1"], turns=3)
    await next_cycle(redis)

    assert await store.due_times.speedrun(turns_of(["e2"]), None, 2) == (0.0, [])


async def test_a_cycle_that_would_last_for_ever_is_given_an_end(store: Store, redis: Any) -> None:
    """Somebody else wrote the key: none of ours is without an expiry."""
    await redis.set(keys.cycle(), "1")

    left_seconds = await store.due_times.cycle("w1")

    assert 1 < left_seconds <= CYCLE_PREPARED_WITHIN_MS / 1_000
    assert 0 < await redis.pttl(keys.cycle()) <= CYCLE_PREPARED_WITHIN_MS


async def test_a_cycle_that_somebody_made_something_else_of_is_named(store: Store, redis: Any) -> None:
    await redis.zadd(keys.cycle(), {"x": 1})

    with pytest.raises(StoreError, match=f"cycle at {keys.cycle()}: Redis answers: WRONGTYPE"):
        await store.due_times.cycle("w1")


async def test_turns_are_given_in_place_of_a_cycle_that_would_last_for_ever(store: Store, redis: Any) -> None:
    await redis.set(keys.cycle(), "1")

    left_seconds, chosen = await store.due_times.speedrun(turns_of(TEN), LONG, 3)

    assert (left_seconds, len(chosen)) == (LONG, 3)
    assert 0 < await redis.pttl(keys.cycle()) <= LONG * 1_000


async def test_workers_share_a_cycle(store: Store, redis: Any) -> None:
    answers = await together(*(cycle(store, TEN) for _ in range(10)))

    assert sorted(map(len, answers)) == [0] * 9 + [3]
    assert len(await orders(redis)) == 3


async def test_those_that_are_not_done_yet_get_no_turn(store: Store, redis: Any) -> None:
    await cycle(store, TEN, 3)
    await next_cycle(redis)

    assert await cycle(store, TEN, 8) == ["e3", "e4", "e5", "e6", "e7", "e8", "e9"]
    await next_cycle(redis)
    assert await cycle(store, TEN, 8) == []


async def test_all_of_ten_get_their_turn_from_two_workers(worker: Worker, redis: Any) -> None:
    workers = [worker, Worker(worker.store, "w2")]
    given: Counter[str] = Counter()
    for _ in range(20):
        first, second = await together(*(cycle(worker.store, names) for names in (TEN, TEN[::-1])))
        given.update([*first, *second])
        await perform(workers)
        await next_cycle(redis)

    assert given.total() == 60
    assert set(given) == set(TEN)
    assert max(given.values()) - min(given.values()) <= 1


async def test_a_slow_one_does_not_hold_up_the_others(worker: Worker, redis: Any) -> None:
    given: Counter[str] = Counter()
    await worker.begun("e0")
    for _ in range(10):
        given.update(await cycle(worker.store, TEN))
        await perform([worker])
        await next_cycle(redis)

    assert set(given) == set(TEN[1:])
    assert max(given.values()) - min(given.values()) <= 1


async def test_a_newcomer_comes_first(worker: Worker, redis: Any) -> None:
    for name in ("a", "b"):
        await cycle(worker.store, [name], 1)
        await redis.delete(keys.open_runs(name))
        await next_cycle(redis)

    assert await cycle(worker.store, ["a", "b", "new"], 2) == ["new", "a"]


async def test_without_experiments_a_cycle_is_still_a_cycle(store: Store) -> None:
    assert await store.due_times.speedrun([], LONG, 3) == (LONG, [])


async def test_a_cycle_may_be_as_short_as_one_likes(store: Store) -> None:
    left_seconds, chosen = await store.due_times.speedrun(turns_of(TEN), 0.0001, 3)

    assert 0 < left_seconds <= 0.001
    assert len(chosen) == 3


async def test_thousands_can_wait_for_a_turn(store: Store, redis: Any) -> None:
    names = [f"e{number:05}" for number in range(5_000)]

    assert await cycle(store, names) == names[:3]
    await next_cycle(redis)
    assert await cycle(store, names) == names[3:6]


# -- who makes a cycle ------------------------------------------------------------------


async def test_one_worker_makes_a_cycle_and_the_others_wait(store: Store) -> None:
    answers = await together(*(store.due_times.cycle(f"w{number}") for number in range(5)))

    assert sorted(answers)[0] == 0
    assert all(0 < seconds <= 10 for seconds in sorted(answers)[1:])


async def test_who_makes_a_cycle_may_ask_again(store: Store) -> None:
    assert await store.due_times.cycle("w1") == 0
    assert await store.due_times.cycle("w1") == 0
    assert await store.due_times.cycle("w2") > 0


async def test_a_cycle_that_was_made_lasts_for_all(store: Store) -> None:
    await store.due_times.cycle("w1")
    await cycle(store, TEN)

    for name in ("w1", "w2"):
        assert LONG - 10 < await store.due_times.cycle(name) <= LONG


async def test_who_was_too_slow_to_make_a_cycle_before_another_began_still_gives_turns(
    store: Store, redis: Any
) -> None:
    """Or workers that all take too long would give none, ever."""
    await store.due_times.cycle("slow")
    await next_cycle(redis)
    await store.due_times.cycle("other")

    assert len(await cycle(store, TEN)) == 3
    assert await cycle(store, TEN) == []


async def test_a_cycle_that_nobody_finishes_is_anothers_after_a_while(store: Store, redis: Any) -> None:
    await store.due_times.cycle("dead")

    assert 0 < await redis.pttl(keys.cycle()) <= 10_000
