"""Limits by key: how many runs at once and how many a minute, held by all workers together."""

import asyncio
from typing import Any

import pytest

from services.executor.store import Begun, Limit, Order
from shared import keys
from shared.messages import State
from tests.conftest import eventually
from tests.store.conftest import EXPERIMENT, Run, Worker, everything, held, orders, pending, publish, together

Limits = dict[str, Any]

ONE: Limits = {"max_concurrent": 1, "limit_key": "account"}
SLOW: Limits = {"max_per_minute": 1, "limit_key": "api"}
ACCOUNT, API = "key:account", "key:api"


async def begun_under(worker: Worker, limits: Limits, experiment_id: str = EXPERIMENT) -> Run:
    claim = await worker.claimed(experiment_id, limits)
    assert claim.begun is Begun.BEGUN
    return Run(worker, claim)


async def waits_under(worker: Worker, limits: Limits, experiment_id: str = EXPERIMENT) -> str:
    """The timestamp of a run that finds no room."""
    timestamp = await worker.queued(experiment_id, limits)
    assert await worker.take() == []
    return timestamp


# -- how many at once -----------------------------------------------------------------


async def test_a_run_without_room_waits_without_a_slot(worker: Worker, redis: Any) -> None:
    first = await begun_under(worker, ONE)
    timestamp = await waits_under(worker, ONE)

    assert await redis.smembers(keys.holders(ACCOUNT)) == {first.id}
    [waiting] = await redis.lrange(keys.blocked(ACCOUNT), 0, -1)
    assert Order.decode(waiting, "0-0").timestamp == timestamp
    assert await pending(redis) == 1
    assert await redis.exists(keys.run(f"{EXPERIMENT}:{timestamp}")) == 0
    assert await redis.zscore(keys.open_runs(EXPERIMENT), timestamp) == 0


@pytest.mark.parametrize("way", ["finish", "retry", "requeue", "reject"])
async def test_a_run_that_ends_makes_room_for_the_next(way: str, worker: Worker, redis: Any) -> None:
    first = await begun_under(worker, ONE)
    timestamp = await waits_under(worker, ONE)
    await getattr(first, way)()
    waiting = [order.timestamp for order in await orders(redis)]

    assert timestamp in waiting
    assert await redis.exists(keys.holders(ACCOUNT), keys.blocked(ACCOUNT)) == 0


async def test_those_without_room_come_in_the_order_in_which_they_asked(worker: Worker) -> None:
    run = await begun_under(worker, ONE, "first")
    for name in ("a", "b", "c"):
        await waits_under(worker, ONE, name)
    came = []
    for _ in range(3):
        await run.finish()
        claim = await worker.claim()
        came.append(claim.order.experiment_id)
        run = Run(worker, claim)

    assert came == ["a", "b", "c"]


async def test_a_run_that_has_its_room_already_does_not_wait_for_itself(worker: Worker, redis: Any) -> None:
    timestamp = await worker.queued(limits=ONE)
    await redis.sadd(keys.holders(ACCOUNT), f"{EXPERIMENT}:{timestamp}")

    assert (await worker.claim()).begun is Begun.BEGUN


async def test_other_keys_are_other_limits(worker: Worker) -> None:
    await begun_under(worker, ONE)
    await begun_under(worker, ONE | {"limit_key": "another"})
    await begun_under(worker, {})


async def test_a_run_takes_room_under_all_its_limits_or_under_none(worker: Worker, redis: Any) -> None:
    await worker.ready()
    await worker.store.workers.tell_tools("w1", {"t": Limit("b", max_concurrent=1).encode()}, 60)
    await begun_under(worker, {})
    await waits_under(worker, ONE)

    assert await redis.exists(keys.holders(ACCOUNT)) == 0
    await worker.store.workers.tell_tools("w1", {"t": ""}, 60)
    await begun_under(worker, ONE)


async def test_more_workers_do_not_make_more_room(worker: Worker, redis: Any) -> None:
    for _ in range(40):
        await worker.queued(limits={"max_concurrent": 3, "limit_key": "account"})
    now = most = ended = 0

    async def work(name: str) -> None:
        nonlocal now, most, ended
        own = Worker(worker.store, name)
        while ended < 40:
            for claim in await own.take(2):
                now += 1
                most = max(most, now)
                await asyncio.sleep(0)
                now -= 1
                await Run(own, claim).finish()
                ended += 1

    async with asyncio.timeout(30):
        await together(*(work(f"w{number}") for number in range(8)))

    assert most <= 3
    assert await redis.exists(keys.holders(ACCOUNT), keys.blocked(ACCOUNT)) == 0
    assert await redis.exists(keys.open_runs(EXPERIMENT)) == 0


async def test_a_run_whose_predecessor_vanished_is_let_try_after_a_while(worker: Worker, redis: Any) -> None:
    await begun_under(worker, ONE)
    timestamp = await waits_under(worker, ONE)
    await redis.delete(keys.holders(ACCOUNT))

    async def nudged() -> bool:
        await worker.store.queue.promote()
        return not await redis.exists(keys.nudges())

    await eventually(nudged)

    assert (await worker.claim()).order.timestamp == timestamp


async def test_an_archived_experiment_takes_no_room_and_no_turn(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat", "archived")
    await redis.hset(keys.experiment(EXPERIMENT), mapping={"max_concurrent": 1, "max_per_minute": 1})
    claim = await worker.claimed()

    assert claim.begun is Begun.ARCHIVED
    assert await redis.keys("fullsend:executor:holders:*") == []
    assert await redis.keys("fullsend:executor:rate:*") == []


async def test_the_limits_of_a_stored_experiment_count_as_they_are_now(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat")
    await redis.hset(keys.experiment(EXPERIMENT), "max_concurrent", 1)
    run = await worker.begun()
    await worker.queued()
    assert await worker.take() == []
    await redis.hdel(keys.experiment(EXPERIMENT), "max_concurrent")
    await run.finish(State.RUN)
    await worker.queued()

    assert len(await worker.take(3)) == 2


# -- how many a minute ----------------------------------------------------------------


async def test_a_run_before_its_turn_waits_for_it(worker: Worker, redis: Any) -> None:
    await begun_under(worker, SLOW)
    timestamp = await waits_under(worker, SLOW)
    _, next_ms = await worker.store.queue.promote()

    assert next_ms is not None
    assert 55_000 < next_ms <= 60_000
    [waiting] = await redis.zrange(keys.retries(), 0, -1)
    order = Order.decode(waiting, "0-0")
    assert (order.timestamp, order.reserved) == (timestamp, (API,))
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

    assert claim.order.reserved == (API,)


async def test_a_burst_is_let_through_at_once(worker: Worker) -> None:
    limits = SLOW | {"burst": 3}
    for _ in range(3):
        await begun_under(worker, limits)

    await waits_under(worker, limits)


async def test_a_retry_takes_a_turn_of_its_own(worker: Worker, redis: Any) -> None:
    run = await begun_under(worker, SLOW)
    await run.retry()
    await worker.store.queue.promote()

    assert await worker.take() == []
    assert await redis.zcard(keys.retries()) == 1


async def test_a_rate_leaves_no_trace_when_it_is_over(worker: Worker, redis: Any) -> None:
    await begun_under(worker, SLOW)

    assert 0 < await redis.pttl(keys.rate(API)) <= 60_000


@pytest.mark.parametrize("rate", [1e-300, 1e-9, 1e9, 1e300])
async def test_a_rate_may_be_absurd(rate: float, worker: Worker) -> None:
    await begun_under(worker, SLOW | {"max_per_minute": rate, "burst": 10**9})


# -- sent twice -----------------------------------------------------------------------


@pytest.mark.parametrize("limits", [ONE, SLOW, ONE | {"max_per_minute": 1}])
async def test_a_begin_that_is_sent_twice_takes_room_and_a_turn_once(
    limits: Limits, worker: Worker, redis: Any
) -> None:
    claim = await worker.claimed(limits=limits)
    before = await everything(redis)
    [again] = (await worker.store.queue.begin_held("w1", [claim])).claims

    assert again.begun is Begun.BEGUN
    assert await everything(redis) == before
    assert await Run(worker, claim).finish() == "finished"
    assert await redis.exists(keys.holders(ACCOUNT)) == 0


@pytest.mark.parametrize("limits", [ONE, SLOW])
async def test_a_wait_that_is_sent_twice_is_one_wait(limits: Limits, worker: Worker, redis: Any) -> None:
    await begun_under(worker, limits)
    claim = await held(worker, redis, limits=limits)
    assert (await worker.store.queue.begin_held("w1", [claim])).claims == []
    before = await everything(redis)

    assert (await worker.store.queue.begin_held("w1", [claim])).claims == []
    assert await everything(redis) == before
