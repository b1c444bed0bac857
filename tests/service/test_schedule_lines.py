"""The log names few schedules, however many there are."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.executor.scheduler import CronScheduler
from services.executor.scheduling.schedule_notes import NAMED
from services.executor.store import Store
from shared import keys
from shared.errors import StoreError
from tests.conftest import Neighbour
from tests.service.trouble import Log

SELDOM = "0 0 1 1 *"
RARELY = "0 0 2 2 *"
WRONG = "now and then"
MANY = 3 * NAMED


@contextlib.asynccontextmanager
async def scheduler(store: Store, check_interval_seconds: float = 600.0) -> AsyncIterator[CronScheduler]:
    """A scheduler at work."""
    one = CronScheduler(store, check_interval_seconds)
    task = asyncio.create_task(one.run())
    yield one
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def write(redis: Any, cron: str, count: int, start: int = 0) -> set[str]:
    """So many schedules; returns whose."""
    names = {f"exp_{number}" for number in range(start, start + count)}
    await redis.mset({keys.schedule(name): cron for name in names})
    return names


def named(lines: list[Any]) -> set[str]:
    """Whose schedules the lines are about."""
    return {line["experiment_id"] for line in lines}


async def test_the_first_reading_is_one_line_and_names_the_first_that_are_refused(
    store: Store, neighbour: Neighbour, log: Log
) -> None:
    await write(neighbour.redis, SELDOM, 300)
    wrong = await write(neighbour.redis, WRONG, NAMED + 3, start=300)

    async with scheduler(store):
        [line] = await log.said("schedules.read")
        told = [await neighbour.result(name) for name in wrong]

    total = 300 + len(wrong)
    assert (line["schedules"], line["refused"], line["changed"]) == (total, len(wrong), total)
    refused = log.of("schedule.refused")
    assert len(named(refused)) == len(refused) == NAMED
    assert named(refused) <= wrong
    assert all(WRONG in line["error"] for line in refused)
    assert log.of("schedule.noted") == []
    assert {message["error_type"] for message in told} == {"ScheduleError"}


async def test_no_schedules_are_a_line_as_well(store: Store, log: Log) -> None:
    async with scheduler(store):
        [line] = await log.said("schedules.read")

    assert line["schedules"] == 0


async def test_a_schedule_that_changes_has_a_line_of_its_own(
    store: Store, neighbour: Neighbour, log: Log
) -> None:
    await write(neighbour.redis, SELDOM, MANY)

    async with scheduler(store):
        await log.said("schedules.read")
        for number, cron in enumerate((RARELY, WRONG)):
            await write(neighbour.redis, cron, 1, start=number)
            message = {"experiment_id": f"exp_{number}", "cron": "irrelevant, as there is a key"}
            await neighbour.redis.publish(keys.SCHEDULES_CHANGED, json.dumps(message))
        await log.said("schedule.noted", experiment_id="exp_0", cron=RARELY)
        await log.said("schedule.refused", experiment_id="exp_1")

    assert len(log.of("schedules.read")) == 1


async def test_what_changed_in_silence_is_named_up_to_a_bound_and_counted(
    store: Store, redis: Any, log: Log
) -> None:
    await redis.config_set("notify-keyspace-events", "")
    await write(redis, SELDOM, 2 * MANY)

    async with scheduler(store, check_interval_seconds=0.1):
        await log.said("schedules.read")
        changed = await write(redis, RARELY, MANY)
        await log.said("schedules.read", 2)
        await redis.delete(*map(keys.schedule, changed))
        await log.said("schedules.read", 3)

    _, after_change, after_end = log.of("schedules.read")
    assert (after_change["changed"], after_change["forgotten"]) == (MANY, 0)
    assert (after_end["changed"], after_end["forgotten"], after_end["schedules"]) == (0, MANY, MANY)
    for event in ("schedule.noted", "schedule.forgotten"):
        lines = log.of(event)
        assert len(named(lines)) == len(lines) == NAMED
        assert named(lines) <= changed


async def test_a_reading_that_found_nothing_new_says_nothing(
    store: Store, redis: Any, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(redis, SELDOM, MANY)
    await write(redis, WRONG, MANY, start=MANY)
    noted, readings, enough = store.due_times.noted, 0, asyncio.Event()

    async def counted() -> list[str]:
        nonlocal readings
        readings += 1
        if readings == 4:
            enough.set()
        return await noted()

    monkeypatch.setattr(store.due_times, "noted", counted)
    async with scheduler(store, check_interval_seconds=0.05):
        await enough.wait()

    assert len(log.of("schedules.read")) == 1
    assert len(log.of("schedule.refused")) == NAMED


async def test_another_worker_says_how_many_there_are_and_repeats_no_refusal(
    store: Store, redis: Any, log: Log
) -> None:
    await write(redis, SELDOM, 5)
    await write(redis, WRONG, 2, start=5)
    async with scheduler(store):
        await log.said("schedules.read")

    async with scheduler(store):
        _, line = await log.said("schedules.read", 2)

    assert (line["schedules"], line["refused"], line["changed"]) == (7, 2, 0)
    assert len(log.of("schedule.refused")) == 2


async def test_a_reading_that_broke_off_is_summed_up_with_the_one_that_follows(
    store: Store, redis: Any, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(redis, WRONG, MANY)
    noted, failures = store.due_times.noted, iter([StoreError("gone")])

    async def broken_once() -> list[str]:
        for failure in failures:
            raise failure
        return await noted()

    monkeypatch.setattr(store.due_times, "noted", broken_once)
    async with scheduler(store):
        [line] = await log.said("schedules.read")

    assert (line["schedules"], line["refused"], line["changed"]) == (MANY, MANY, MANY)
    assert len(log.of("schedule.refused")) == NAMED
