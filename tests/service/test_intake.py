"""The slots of a worker: no run waits here for a slot while another worker has one."""

import asyncio
from typing import Any

from services.executor.intake import Intake
from services.executor.runner import Running
from services.executor.store import Order, Store, Taken
from tests.conftest import eventually
from tests.service.conftest import NoTools
from tests.store.conftest import pending


async def perform(running: Running) -> None:
    """As long as it takes."""
    await running.cancel.wait()


async def test_a_worker_without_room_passes_the_bell_on(store: Store, redis: Any) -> None:
    intake = Intake(store.queue, "w1", 1, NoTools(), perform)
    claiming = asyncio.create_task(intake.run())

    async def waits() -> bool:
        return int((await redis.info("clients"))["blocked_clients"]) > 0

    await eventually(waits, "the wait for an order")
    with intake.reserved() as slot:
        assert slot.room == 1
        await store.queue.enqueue(Order("e", "trigger"))
        assert await store.queue.wait("w2", 10)
    assert len((await store.queue.claim("w2", 1)).claims) == 1
    claiming.cancel()


async def test_what_was_handed_out_in_an_answer_that_was_lost_does_not_wait_either(
    store: Store, redis: Any
) -> None:
    await store.queue.create_group()
    for number in range(4):
        await store.queue.enqueue(Order(f"e{number}", "trigger"))
    assert len((await store.queue.claim("w1", 4)).claims) == 4
    intake = Intake(store.queue, "w1", 2, NoTools(), perform)
    claiming = asyncio.create_task(intake.run())

    async def has_begun() -> bool:
        return len(intake.running) == 2

    await eventually(has_begun, "two runs to begin")
    for one in intake.running:
        one.cancel.set()

    async def all_are_held() -> bool:
        return len(intake.running) == 2 and await pending(redis) == 4

    await eventually(all_are_held, "the other two, that were given back")
    claiming.cancel()
    for one in intake.running:
        one.cancel.set()


async def test_what_is_handed_out_in_an_answer_on_its_way_is_performed_once(store: Store, redis: Any) -> None:
    performed: list[str] = []

    async def note(running: Running) -> None:
        performed.append(running.claim.order.run_id)
        await running.cancel.wait()

    await store.queue.create_group()
    for number in range(2):
        await store.queue.enqueue(Order(f"e{number}", "trigger"))
    on_its_way = await store.queue.claim("w1", 2)
    intake = Intake(store.queue, "w1", 1, NoTools(), note)
    claiming = asyncio.create_task(intake.run())

    async def one_has_begun() -> bool:
        return len(intake.running) == 1 and intake.room == 0

    await eventually(one_has_begun, "the look for claims")
    [first] = intake.running
    first.cancel.set()
    assert first.task is not None
    await first.task
    second = [claim for claim in on_its_way.claims if claim.lease != first.claim.lease]
    await intake.take(Taken(second))

    await eventually(lambda: _has_begun(performed, 2), "the second run")
    assert sorted(performed) == sorted(claim.order.run_id for claim in on_its_way.claims)
    assert await pending(redis) == 2
    claiming.cancel()


async def _has_begun(performed: list[str], count: int) -> bool:
    return len(performed) >= count


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
    intake = Intake(store.queue, "w1", 2, NoTools(), report_slowly)
    claiming = asyncio.create_task(intake.run())
    for _ in range(4):
        await begun.acquire()

    assert (len(intake.running), intake.busy, await pending(redis)) == (4, 0, 4)

    reported.set()
    await begun.acquire()
    claiming.cancel()


async def test_a_claim_is_lost_when_it_was_taken_over_and_not_when_its_data_was_lost(
    store: Store, redis: Any
) -> None:
    intake = Intake(store.queue, "w1", 2, NoTools(), perform)

    async def begin() -> Running:
        await store.workers.identify_data()
        await store.queue.create_group()
        await store.queue.enqueue(Order("e", "trigger"))
        await intake.take(await store.queue.claim("w1", 1))
        return intake.running[-1]

    forgotten = await begin()
    await redis.flushall()
    taken_over = await begin()
    await store.queue.requeue(taken_over.claim, taken_over.claim.order)

    await intake.drop_lost(store.runs.is_lost)

    assert (forgotten.cancel.is_set(), taken_over.cancel.is_set()) == (False, True)
    forgotten.cancel.set()
