"""Limits by key: how many runs at once and how many a minute, held by all workers together."""

import asyncio
from typing import Any

import pytest

from services.executor.store import Begun, Claim, Limit
from shared import keys
from shared.messages import State
from tests.conftest import eventually
from tests.store.conftest import EXPERIMENT, Run, Worker, everything, orders, pending, publish, together

ONE = [Limit("account", max_concurrent=1)]
SLOW = [Limit("api", max_per_minute=1)]


async def begun_under(
    worker: Worker, limits: list[Limit], experiment_id: str = EXPERIMENT, **members: Any
) -> Run:
    claim = await worker.claimed(experiment_id, **members)
    answer, stored = await worker.begin(claim, limits=limits)
    assert answer is Begun.BEGUN
    return Run(worker, claim, stored)


async def waits_under(
    worker: Worker, limits: list[Limit], experiment_id: str = EXPERIMENT, **members: Any
) -> Claim:
    claim = await worker.claimed(experiment_id, **members)
    answer, _ = await worker.begin(claim, limits=limits)
    assert answer is Begun.WAITING
    return claim


# -- how many at once -----------------------------------------------------------------


async def test_a_run_without_room_waits_without_a_slot(worker: Worker, redis: Any) -> None:
    first = await begun_under(worker, ONE)
    claim = await waits_under(worker, ONE)

    assert await redis.smembers(keys.holders("account")) == {first.id}
    assert await redis.lrange(keys.blocked("account"), 0, -1) == [claim.order.to_json()]
    assert await pending(redis) == 1
    assert await redis.exists(keys.run(claim.order.run_id)) == 0
    assert await redis.zscore(keys.open_runs(EXPERIMENT), claim.order.timestamp) == 0


@pytest.mark.parametrize("way", ["finish", "retry", "requeue", "reject"])
async def test_a_run_that_ends_makes_room_for_the_next(way: str, worker: Worker, redis: Any) -> None:
    first = await begun_under(worker, ONE)
    claim = await waits_under(worker, ONE)
    await getattr(first, way)()
    waiting = [order["timestamp"] for order in await orders(redis)]

    assert claim.order.timestamp in waiting
    assert await redis.exists(keys.holders("account"), keys.blocked("account")) == 0


async def test_those_without_room_come_in_the_order_in_which_they_asked(worker: Worker) -> None:
    run = await begun_under(worker, ONE, "first")
    for name in ("a", "b", "c"):
        await waits_under(worker, ONE, name)
    came = []
    for _ in range(3):
        await run.finish()
        claim = await worker.claim()
        came.append(claim.order.experiment_id)
        answer, stored = await worker.begin(claim, limits=ONE)
        assert answer is Begun.BEGUN
        run = Run(worker, claim, stored)

    assert came == ["a", "b", "c"]


async def test_other_keys_are_other_limits(worker: Worker) -> None:
    await begun_under(worker, ONE)
    await begun_under(worker, [Limit("another", max_concurrent=1)])
    await begun_under(worker, [])


async def test_a_run_takes_room_under_all_its_limits_or_under_none(worker: Worker, redis: Any) -> None:
    await begun_under(worker, [Limit("b", max_concurrent=1)])
    await waits_under(worker, [Limit("a", max_concurrent=1), Limit("b", max_concurrent=1)])

    assert await redis.exists(keys.holders("a")) == 0
    await begun_under(worker, [Limit("a", max_concurrent=1)])


async def test_more_workers_do_not_make_more_room(worker: Worker, redis: Any) -> None:
    limit = [Limit("account", max_concurrent=3)]
    await publish(redis, "flat")
    for _ in range(40):
        await worker.queued()
    now = most = ended = 0

    async def work(name: str) -> None:
        nonlocal now, most, ended
        own = Worker(worker.store, name)
        while ended < 40:
            for claim in await worker.store.queue.claim(name, 2, 5):
                answer, stored = await own.begin(claim, limits=limit)
                if answer is Begun.BEGUN:
                    now += 1
                    most = max(most, now)
                    await asyncio.sleep(0)
                    now -= 1
                    await Run(own, claim, stored).finish()
                    ended += 1

    async with asyncio.timeout(30):
        await together(*(work(f"w{number}") for number in range(8)))

    assert most <= 3
    assert await redis.exists(keys.holders("account"), keys.blocked("account")) == 0
    assert await redis.exists(keys.open_runs(EXPERIMENT)) == 0


async def test_a_run_whose_predecessor_vanished_is_let_try_after_a_while(worker: Worker, redis: Any) -> None:
    await begun_under(worker, ONE)
    claim = await waits_under(worker, ONE)
    await redis.delete(keys.holders("account"))

    async def nudged() -> bool:
        await worker.store.queue.promote()
        return not await redis.exists(keys.nudges())

    await eventually(nudged)

    again = await worker.claim()
    assert again.order == claim.order
    assert (await worker.begin(again, limits=ONE))[0] is Begun.BEGUN


async def test_an_archived_experiment_takes_no_room_and_no_turn(worker: Worker, redis: Any) -> None:
    for shape in ("flat", "string"):
        await publish(redis, shape, "archived", shape)
        claim = await worker.claimed(shape)
        before = await everything(redis)
        answer, _ = await worker.begin(claim, limits=[Limit("x", max_concurrent=1, max_per_minute=1)])

        assert answer is Begun.ARCHIVED
        assert await everything(redis) == before


async def test_an_experiment_changed_meanwhile_takes_room_and_a_turn_once(worker: Worker, redis: Any) -> None:
    await publish(redis, "string")
    stored = await worker.store.experiments.read(EXPERIMENT)
    await publish(redis, "string", "failed")
    limits = [Limit("x", max_concurrent=1, max_per_minute=1, burst=2)]
    claim = await worker.claimed()
    answer, stored = await worker.begin(claim, stored, limits)
    assert answer is Begun.BEGUN
    await Run(worker, claim, stored).finish(State.RUN)

    await begun_under(worker, limits)


# -- how many a minute ----------------------------------------------------------------


async def test_a_run_before_its_turn_waits_for_it(worker: Worker, redis: Any) -> None:
    await begun_under(worker, SLOW)
    claim = await waits_under(worker, SLOW)
    _, next_ms = await worker.store.queue.promote()

    assert next_ms is not None
    assert 55_000 < next_ms <= 60_000
    assert await redis.zrange(keys.retries(), 0, -1) == [claim.order.with_turn_under("api").to_json()]
    assert await pending(redis) == 1


async def test_turns_are_given_at_the_steady_rate(worker: Worker, redis: Any) -> None:
    await begun_under(worker, SLOW)
    for _ in range(3):
        await waits_under(worker, SLOW)
    [first, second, third] = [due for _, due in await redis.zrange(keys.retries(), 0, -1, withscores=True)]

    assert (second - first, third - second) == (60_000, 60_000)


async def test_a_run_that_waited_for_its_turn_has_it(worker: Worker, redis: Any) -> None:
    await begun_under(worker, SLOW)
    await waits_under(worker, SLOW)
    [waiting] = await redis.zrange(keys.retries(), 0, -1)
    await redis.zadd(keys.retries(), {waiting: 1})  # as if its time had come
    assert (await worker.store.queue.promote())[0] == 1
    claim = await worker.claim()

    assert claim.order.reserved == ("api",)
    assert (await worker.begin(claim, limits=SLOW))[0] is Begun.BEGUN


async def test_a_burst_is_let_through_at_once(worker: Worker) -> None:
    limits = [Limit("api", max_per_minute=1, burst=3)]
    for _ in range(3):
        await begun_under(worker, limits)

    await waits_under(worker, limits)


async def test_a_retry_takes_a_turn_of_its_own(worker: Worker, redis: Any) -> None:
    run = await begun_under(worker, [Limit("api", max_per_minute=1, burst=2)])
    await run.retry()
    await worker.store.queue.promote()
    claim = await worker.claim()

    assert claim.order.reserved == ()
    assert (await worker.begin(claim, limits=SLOW))[0] is Begun.WAITING


async def test_a_rate_leaves_no_trace_when_it_is_over(worker: Worker, redis: Any) -> None:
    await begun_under(worker, SLOW)

    assert 0 < await redis.pttl(keys.rate("api")) <= 60_000


@pytest.mark.parametrize("rate", [1e-300, 1e-9, 1e9, 1e300])
async def test_a_rate_may_be_absurd(rate: float, worker: Worker) -> None:
    await begun_under(worker, [Limit("api", max_per_minute=rate, burst=10**9)])


# -- sent twice -----------------------------------------------------------------------


@pytest.mark.parametrize("limits", [ONE, SLOW, [*ONE, *SLOW]])
async def test_a_begin_that_is_sent_twice_takes_room_and_a_turn_once(
    limits: list[Limit], worker: Worker, redis: Any
) -> None:
    claim = await worker.claimed()
    _, stored = await worker.begin(claim, limits=limits)
    before = await everything(redis)
    answer, _ = await worker.begin(claim, limits=limits)

    assert answer is Begun.BEGUN
    assert await everything(redis) == before
    assert await Run(worker, claim, stored).finish() == "finished"
    assert await redis.exists(keys.holders("account")) == 0


@pytest.mark.parametrize("limits", [ONE, SLOW])
async def test_a_wait_that_is_sent_twice_is_one_wait(limits: list[Limit], worker: Worker, redis: Any) -> None:
    await begun_under(worker, limits)
    claim = await waits_under(worker, limits)
    before = await everything(redis)

    assert (await worker.begin(claim, limits=limits))[0] is Begun.LOST
    assert await everything(redis) == before
