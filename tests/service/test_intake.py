"""The slots of a worker: no run waits here for a slot while another worker has one."""

import asyncio
from typing import Any

from services.executor.intake import Intake
from services.executor.running import Running
from services.executor.store import Order, Store
from services.executor.store.orders import PRIORITIES
from shared import keys
from tests.conftest import eventually
from tests.store.conftest import orders, pending


async def perform(running: Running) -> None:
    """As long as it takes."""
    await running.cancel.wait()


async def test_what_a_wait_handed_out_beyond_the_free_slots_is_given_back(store: Store, redis: Any) -> None:
    intake = Intake(store.queue, "w1", 1, perform)
    claiming = asyncio.create_task(intake.run())

    async def waits() -> bool:
        return int((await redis.info("clients"))["blocked_clients"]) > 0

    async def settled() -> bool:
        return len(intake.running) == 1 and await pending(redis) == 1

    await eventually(waits, "the wait for an order")
    async with redis.pipeline(transaction=True) as pipe:  # so that each queue has one when the wait ends
        for priority in PRIORITIES:
            order = Order(priority, "trigger", priority=priority)
            pipe.xadd(keys.queue(priority), {"order": order.to_json()})
        await pipe.execute()
    await eventually(settled, "one run to begin")
    other = await store.queue.claim("w2", 3, 1_000)
    running = [one.claim.order.experiment_id for one in intake.running]
    claiming.cancel()
    for one in intake.running:
        one.cancel.set()

    assert sorted([*running, *(claim.order.experiment_id for claim in other)]) == sorted(PRIORITIES)
    assert len(await orders(redis)) == 3
    assert all(claim.order.timestamp for claim in other)


async def test_what_was_handed_out_in_an_answer_that_was_lost_does_not_wait_either(
    store: Store, redis: Any
) -> None:
    await store.queue.create_group()
    for number in range(4):
        await store.queue.enqueue(Order(f"e{number}", "trigger"))
    assert len(await store.queue.claim("w1", 4, 10)) == 4
    intake = Intake(store.queue, "w1", 2, perform)
    claiming = asyncio.create_task(intake.run())

    async def given_back() -> bool:
        return len(intake.running) == 2 and await pending(redis) == 2

    await eventually(given_back, "the others to be given back")
    claiming.cancel()

    assert len(await store.queue.claim("w2", 4, 1_000)) == 2
    for one in intake.running:
        one.cancel.set()


async def test_a_run_that_is_only_reported_keeps_no_slot_and_reports_dont_pile_up(
    store: Store, redis: Any
) -> None:
    reported, begun = asyncio.Event(), asyncio.Semaphore(0)

    async def report_slowly(running: Running) -> None:
        begun.release()
        running.free_slot()
        await reported.wait()

    for _ in range(5):
        await store.queue.enqueue(Order("e", "trigger"))
    intake = Intake(store.queue, "w1", 2, report_slowly)
    claiming = asyncio.create_task(intake.run())
    for _ in range(4):
        await begun.acquire()

    assert (len(intake.running), intake.busy, await pending(redis)) == (4, 0, 4)

    reported.set()
    await begun.acquire()
    claiming.cancel()
