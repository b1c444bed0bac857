"""Urgent runs go first, and none waits for ever."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from services.executor.store.orders import PRIORITIES
from shared import keys
from tests.store.conftest import EXPERIMENT, Run, Worker

ONE = {"max_concurrent": 1, "limit_key": "account"}


async def test_the_urgent_come_first(worker: Worker) -> None:
    for priority in reversed(PRIORITIES):
        for _ in range(2):
            await worker.queued(priority=priority)
    claims = await worker.take(6)

    assert [claim.order.priority for claim in claims] == ["high", "high", "normal", "normal", "low", "low"]


async def test_none_starves_while_there_are_more_urgent_ones(worker: Worker) -> None:
    for priority in PRIORITIES:
        for _ in range(40):
            await worker.queued(priority=priority)
    served = Counter([(await worker.claim()).order.priority for _ in range(40)])

    assert served == {"high": 28, "normal": 8, "low": 4}


async def test_a_claim_takes_no_more_than_it_is_told_of_what_is_ready(worker: Worker) -> None:
    for priority in PRIORITIES:
        await worker.queued(priority=priority)

    assert [len(await worker.take(2)) for _ in range(3)] == [2, 1, 0]


@pytest.mark.parametrize("priority", PRIORITIES)
async def test_a_claim_waits_for_every_priority(priority: str, worker: Worker, redis: Any) -> None:
    claiming = asyncio.create_task(worker.claim())
    while not int((await redis.info("clients"))["blocked_clients"]):
        await asyncio.sleep(0)
    await worker.queued(priority=priority)

    assert (await claiming).order.priority == priority


async def test_runs_of_all_priorities_have_timestamps_of_their_own(worker: Worker, redis: Any) -> None:
    queued = [await worker.queued(priority=PRIORITIES[number % 3]) for number in range(300)]

    assert len(set(queued)) == 300
    assert await redis.zcard(keys.open_runs(EXPERIMENT)) == 300


async def test_leases_of_all_priorities_differ(worker: Worker) -> None:
    for priority in PRIORITIES:
        await worker.queued(priority=priority)
    claims = await worker.take(3)

    assert len({claim.lease for claim in claims}) == 3


@pytest.mark.parametrize("priority", PRIORITIES)
async def test_a_run_keeps_its_priority_whatever_becomes_of_it(priority: str, worker: Worker) -> None:
    run = await worker.begun(priority=priority)
    await run.requeue()
    again = await worker.claim()
    await Run(worker, again).retry()
    await worker.store.queue.promote()
    retried = await worker.claim()

    assert again.order.priority == retried.order.priority == priority
    assert again.queue == retried.queue == keys.queue(priority)


@pytest.mark.parametrize("priority", PRIORITIES)
async def test_a_run_that_waited_for_room_keeps_its_priority(priority: str, worker: Worker) -> None:
    first = await worker.begun("first", ONE)
    await worker.queued(limits=ONE, priority=priority)
    assert await worker.take() == []
    await first.finish()

    assert (await worker.claim()).order.priority == priority
