"""A wake-up of the scheduler costs what is due, however many schedules there are."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.executor.scheduler import CronScheduler
from services.executor.store import Store
from services.executor.store.orders import NORMAL
from shared import keys
from tests.conftest import eventually

EVERY_SECOND = "* * * * * *"
SELDOM = "0 0 1 1 *"
DUE = 5
OURS = {"cmdstat_xlen", "cmdstat_info", "cmdstat_hlen", "cmdstat_multi", "cmdstat_exec"}


@contextlib.asynccontextmanager
async def scheduler(store: Store, check_interval_seconds: float = 600.0) -> AsyncIterator[None]:
    """A scheduler at work."""
    task = asyncio.create_task(CronScheduler(store, check_interval_seconds).run())
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def write(redis: Any, total: int) -> None:
    """Write so many schedules, of which `DUE` fire every second."""
    async with redis.pipeline(transaction=False) as pipe:
        for number in range(total):
            pipe.hset(keys.experiment(f"exp_{number}"), mapping={"tool": "none", "overlap": "allow"})
            pipe.set(keys.schedule(f"exp_{number}"), EVERY_SECOND if number < DUE else SELDOM)
        await pipe.execute()


async def fired(redis: Any, times: int) -> None:
    """Wait until each schedule that is due has fired so often."""

    async def queued() -> bool:
        return bool(await redis.xlen(keys.queue(NORMAL)) >= times * DUE)

    await eventually(queued, "the runs")


async def counted(redis: Any) -> tuple[int, int]:
    """How many commands the scheduler has cost until now, those in scripts included, and what they fired."""
    async with redis.pipeline(transaction=True) as pipe:
        pipe.info("commandstats")
        pipe.xlen(keys.queue(NORMAL))
        stats, orders = await pipe.execute()
    return sum(one["calls"] for name, one in stats.items() if name.partition("|")[0] not in OURS), orders


async def commands_for_an_order(store: Store, redis: Any, total: int) -> float:
    """How many commands one run of cron takes, with so many schedules."""
    await redis.flushall()
    await write(redis, total)
    async with scheduler(store):

        async def noted() -> bool:
            return bool(await redis.hlen(keys.noted_schedules()) == total)

        await eventually(noted, "the schedules")
        times = await redis.xlen(keys.queue(NORMAL)) // DUE + 1
        await fired(redis, times)
        before, orders_before = await counted(redis)
        await fired(redis, times + 3)
        after, orders_after = await counted(redis)
        return (after - before) / (orders_after - orders_before)


async def test_a_wake_up_costs_what_is_due_and_not_what_there_is(store: Store, redis: Any) -> None:
    few = await commands_for_an_order(store, redis, 200)
    many = await commands_for_an_order(store, redis, 5_000)

    assert few > 1
    assert many <= 1.5 * few  # the counting begins and ends in the midst of a wake-up's last commands


async def test_due_times_fire_while_all_schedules_are_read_again(
    store: Store, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, is_noted, is_read_again = store.experiments.scan_schedules, asyncio.Event(), asyncio.Event()

    async def read_once_and_then_for_ever() -> AsyncIterator[Any]:
        if is_noted.is_set():
            is_read_again.set()
            await asyncio.Event().wait()
        async for one in scan():
            yield one
        is_noted.set()

    monkeypatch.setattr(store.experiments, "scan_schedules", read_once_and_then_for_ever)
    await write(redis, DUE)

    async with scheduler(store, check_interval_seconds=0.1):
        await is_read_again.wait()
        await fired(redis, await redis.xlen(keys.queue(NORMAL)) // DUE + 2)
