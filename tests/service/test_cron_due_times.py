"""Slots of a schedule: each fires once, however many services there are and whoever was away."""

import asyncio
import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from services.executor.scheduler import CronScheduler
from services.executor.store import Ahead, Store
from shared import keys
from tests.conftest import Neighbour, Serve, eventually
from tests.service.conftest import Work
from tests.service.worker import ROOT

EVERY_SECOND = "* * * * * *"
SELDOM = "0 0 1 1 *"

pytestmark = pytest.mark.usefixtures("echo")


@pytest.fixture(autouse=True)
async def experiment(neighbour: Neighbour) -> None:
    """`exp_1` is there and ready, and runs at every slot, however slow the machine is."""
    await neighbour.publish("exp_1", "echo", catch_up="all", overlap="allow")


async def fired(neighbour: Neighbour) -> list[datetime]:
    """The slots of `exp_1` that fired, in order, when all services have stopped."""
    records = [await neighbour.record(name.partition(":")[2]) for name in await runs(neighbour)]
    waiting = [
        json.loads(fields["order"]) for _, fields in await neighbour.redis.xrange(keys.queue("normal"))
    ]
    known = {one["run_id"]: one["scheduled_for"] for one in records}
    queued = [one for one in waiting if f"exp_1:{one.get('timestamp')}" not in known]
    slots = [*known.values(), *(one["scheduled_for"] for one in queued if one["experiment_id"] == "exp_1")]
    return sorted(map(datetime.fromisoformat, slots))


async def runs(neighbour: Neighbour) -> list[str]:
    """The records of `exp_1`."""
    return list(await neighbour.redis.keys("experiment_runs:exp_1:*"))


async def has_slot(store: Store) -> bool:
    """Whether `exp_1` waits for a slot."""
    return "exp_1" in await store.slots.all()


async def test_each_slot_fires_once_and_says_which_it_is_with_two_services(
    serve: Serve, neighbour: Neighbour
) -> None:
    await neighbour.redis.set("schedules:exp_1", EVERY_SECOND)

    async with serve(schedule_mode="cron"), serve(schedule_mode="cron"):
        await neighbour.results("exp_1", 3)

    slots = await fired(neighbour)
    assert len(slots) >= 3
    assert slots == [slots[0] + timedelta(seconds=number) for number in range(len(slots))]


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
        await neighbour.results("exp_1", 3)

    slots = await fired(neighbour)
    assert len(slots) >= 3
    assert slots == [slots[0] + timedelta(seconds=number) for number in range(len(slots))]


SKEWED = """
import time

here = time.time
time.time = lambda: here() + {seconds}
"""


async def test_slots_fire_once_and_on_time_whatever_the_clocks_of_the_services_say(
    work: Work, neighbour: Neighbour, store: Store, tmp_path: Path
) -> None:
    """The server's clock decides: a slot that a service's own clock had decided would be a minute off."""
    paths = []
    for seconds in (60, -60):
        folder = tmp_path / f"skewed by {seconds}"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(SKEWED.format(seconds=seconds))
        paths.append(f"{folder}:{ROOT}")
    await neighbour.redis.set("schedules:exp_1", EVERY_SECOND)

    async with (
        work(schedule_mode="cron", pythonpath=paths[0]) as fast,
        work(schedule_mode="cron", pythonpath=paths[1]) as slow,
    ):
        await asyncio.gather(fast.said("service.started"), slow.said("service.started"))
        results = await neighbour.results("exp_1", 4)
        records = [await neighbour.record(one["run_id"]) for one in results]

    slots, queued, started = (
        [datetime.fromisoformat(one[name]).timestamp() for one in records]
        for name in ("scheduled_for", "queued_at", "started_at")
    )
    assert len(set(slots)) == len(slots)
    assert all(0 <= at - slot < 30 for slot, at in zip(slots, queued, strict=True))
    assert all(abs(at - before) > 30 for before, at in zip(queued, started, strict=True))  # they are skewed


async def test_a_slot_is_not_lost_when_the_last_run_ends_while_it_is_decided(
    store: Store, neighbour: Neighbour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The experiment is seen as `running`, and there is no run of it any more when the slot comes."""
    ahead = store.slots.ahead

    async def seen_just_before_the_end(*arguments: int) -> Ahead:
        await neighbour.publish("exp_1", "echo", state="running")
        found = await ahead(*arguments)
        await neighbour.publish("exp_1", "echo", state="run")
        return found

    monkeypatch.setattr(store.slots, "ahead", seen_just_before_the_end)
    await neighbour.redis.set("schedules:exp_1", EVERY_SECOND)
    scheduler = asyncio.create_task(CronScheduler(store, 600.0).run())

    async def is_queued() -> bool:
        return bool(await neighbour.redis.xlen(keys.queue("normal")))

    await eventually(is_queued, "the slot")
    scheduler.cancel()


async def test_what_somebody_else_runs_is_left_alone(store: Store, neighbour: Neighbour) -> None:
    await neighbour.publish("exp_1", "echo", state="running")
    await neighbour.redis.set("schedules:exp_1", EVERY_SECOND)
    scheduler = asyncio.create_task(CronScheduler(store, 600.0).run())
    await eventually(lambda: has_slot(store), "the schedule")
    [first] = (await store.slots.all()).values()

    async def has_moved_on() -> bool:
        return (await store.slots.all())["exp_1"] > first

    await eventually(has_moved_on, "the next slot")
    scheduler.cancel()

    assert not await neighbour.redis.xlen(keys.queue("normal"))
