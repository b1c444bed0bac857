"""Slots of a schedule: each fires once, however many services there are and whoever was away."""

import asyncio
from datetime import datetime, timedelta

import pytest

from services.executor.store import Store
from shared import keys
from tests.conftest import Neighbour, Serve, eventually

EVERY_SECOND = "* * * * * *"
SELDOM = "0 0 1 1 *"
RESULTS = "fullsend:experiment_results"

pytestmark = pytest.mark.usefixtures("echo")


@pytest.fixture(autouse=True)
async def experiment(neighbour: Neighbour) -> None:
    """`exp_1` is there and ready."""
    await neighbour.publish("exp_1", "echo")


async def scheduled(neighbour: Neighbour, count: int) -> list[datetime]:
    """The slots of the first runs of `exp_1`."""
    results = await neighbour.results("exp_1", count)
    records = [await neighbour.record(one["run_id"]) for one in results]
    return [datetime.fromisoformat(record["scheduled_for"]) for record in records]


async def has_slot(store: Store) -> bool:
    """Whether `exp_1` waits for a slot."""
    return "exp_1" in await store.slots.all()


async def test_each_slot_fires_once_and_says_which_it_is_with_two_services(
    serve: Serve, neighbour: Neighbour
) -> None:
    await neighbour.redis.set("schedules:exp_1", EVERY_SECOND)

    async with serve(schedule_mode="cron"), serve(schedule_mode="cron"):
        slots = await scheduled(neighbour, 3)

    assert slots == [slots[0] + timedelta(seconds=number) for number in range(3)]


async def test_a_service_that_has_not_read_a_change_does_not_undo_it(
    serve: Serve, neighbour: Neighbour, store: Store
) -> None:
    await neighbour.publish("exp_2", "echo")
    await neighbour.redis.set("schedules:exp_1", SELDOM)
    await neighbour.redis.set("schedules:exp_2", EVERY_SECOND)  # keeps both services awake

    async with (
        serve(schedule_mode="cron", cron_check_interval=600),
        serve(schedule_mode="cron", cron_check_interval=0.2),
    ):
        await asyncio.gather(eventually(lambda: has_slot(store)), neighbour.result("exp_2"))
        await neighbour.redis.set("schedules:exp_1", EVERY_SECOND)
        slots = await scheduled(neighbour, 3)

    assert slots == [slots[0] + timedelta(seconds=number) for number in range(3)]


async def test_slots_that_came_while_nobody_worked_are_caught_up_with(
    serve: Serve, neighbour: Neighbour, store: Store
) -> None:
    await neighbour.publish("exp_1", "echo", catch_up="all")
    await neighbour.redis.set("schedules:exp_1", EVERY_SECOND)
    async with serve(schedule_mode="cron"):
        await eventually(lambda: has_slot(store))
    missed = (await store.slots.now_ms() // 1_000 - 5) * 1_000
    await neighbour.redis.zadd(keys.slots(), {"exp_1": missed})
    heard = len(neighbour.heard_of("exp_1", RESULTS))

    async with serve(schedule_mode="cron"):
        slots = await scheduled(neighbour, heard + 6)

    seconds = sorted(slot.timestamp() for slot in slots[heard:])
    assert seconds == [missed / 1_000 + number for number in range(6)]
