"""Due times are fired when they have come, by what is written then, and at little cost."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Any

import pytest

from services.executor.scheduler import CronScheduler
from services.executor.store import FoundDue, Order, Store
from shared import keys
from tests.conftest import Neighbour, eventually

EVERY_SECOND = "* * * * * *"
SELDOM = "0 0 1 1 *"
QUEUE = keys.queue("normal")
MANY = 20

pytestmark = pytest.mark.usefixtures("echo")


@contextlib.asynccontextmanager
async def scheduler(store: Store, **arguments: Any) -> AsyncIterator[None]:
    """A scheduler at work."""
    task = asyncio.create_task(CronScheduler(store, 600.0, **arguments).run())
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.fixture(autouse=True)
async def experiment(neighbour: Neighbour) -> None:
    """`exp_1` is there, and due every second."""
    await neighbour.publish("exp_1", "echo", overlap="allow")
    await neighbour.redis.set("schedules:exp_1", EVERY_SECOND)


async def queued(redis: Any) -> list[Order]:
    """The orders of cron, in order."""
    return [Order.decode(fields["order"], entry) for entry, fields in await redis.xrange(QUEUE)]


async def are_queued(redis: Any, count: int) -> None:
    """Wait for so many orders."""

    async def there() -> bool:
        return len(await queued(redis)) >= count

    await eventually(there, "the runs")


def once_decided(
    store: Store, monkeypatch: pytest.MonkeyPatch, then: Callable[[], Awaitable[Any]]
) -> asyncio.Event:
    """Have something done when a due time has been read for the first time; set when it is done."""
    due, is_done = store.due_times.due, asyncio.Event()

    async def read(*arguments: int) -> FoundDue:
        found = await due(*arguments)
        if found.due and not is_done.is_set():
            is_done.set()
            await then()
        return found

    monkeypatch.setattr(store.due_times, "due", read)
    return is_done


# -- by what is written -----------------------------------------------------------------


@pytest.mark.parametrize("change", ["deleted", "changed", "paused"])
async def test_what_is_written_between_the_decision_and_the_due_time_counts(
    change: str, store: Store, neighbour: Neighbour, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {
        "deleted": lambda: neighbour.redis.delete("schedules:exp_1"),
        "changed": lambda: neighbour.redis.set("schedules:exp_1", SELDOM),
        "paused": lambda: neighbour.publish("exp_1", "echo", state="paused"),
    }
    await neighbour.publish("exp_2", "echo", overlap="allow")
    await neighbour.redis.set("schedules:exp_2", EVERY_SECOND)
    is_done = once_decided(store, monkeypatch, changes[change])

    async with scheduler(store):
        await is_done.wait()
        await are_queued(neighbour.redis, 2)

    assert {one.experiment_id for one in await queued(neighbour.redis)} == {"exp_2"}


async def test_a_schedule_that_was_deleted_without_a_message_does_not_fire(
    store: Store, neighbour: Neighbour
) -> None:
    async with scheduler(store):
        await are_queued(neighbour.redis, 1)
        await neighbour.redis.delete("schedules:exp_1")
        before = len(await queued(neighbour.redis))

        async def is_forgotten() -> bool:
            return not await store.due_times.noted()

        await eventually(is_forgotten, "the end of the schedule")

    assert len(await queued(neighbour.redis)) <= before + 1  # one may have been read just before
    assert await store.due_times.all() == {}


async def test_a_schedule_that_was_changed_without_a_message_is_followed(
    store: Store, neighbour: Neighbour
) -> None:
    async with scheduler(store):
        await are_queued(neighbour.redis, 1)
        await neighbour.redis.set("schedules:exp_1", SELDOM)

        async def is_noted() -> bool:
            return bool(await neighbour.redis.hget(keys.noted_schedules(), "exp_1") == SELDOM)

        await eventually(is_noted, "the other schedule")
        [due_ms] = (await store.due_times.all()).values()

    assert due_ms > await store.due_times.now_ms() + 2_000


async def test_what_an_experiment_asks_for_counts_when_it_is_due(store: Store, neighbour: Neighbour) -> None:
    async with scheduler(store):
        await are_queued(neighbour.redis, 1)
        await neighbour.publish("exp_1", "echo", overlap="queue")
        await are_queued(neighbour.redis, 3)

    assert (await queued(neighbour.redis))[2].serial is True


async def test_an_experiment_that_was_paused_is_left_alone(store: Store, neighbour: Neighbour) -> None:
    await neighbour.publish("exp_2", "echo", overlap="allow")
    await neighbour.redis.set("schedules:exp_2", EVERY_SECOND)
    async with scheduler(store):
        await are_queued(neighbour.redis, 2)
        await neighbour.publish("exp_1", "echo", state="paused")
        before = len(await queued(neighbour.redis))
        await are_queued(neighbour.redis, before + 3)

    last = (await queued(neighbour.redis))[before + 1 :]
    assert {one.experiment_id for one in last} == {"exp_2"}


async def test_a_due_time_is_not_lost_when_the_last_run_ends_while_it_is_decided(
    store: Store, neighbour: Neighbour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The experiment is read as `running`, and no run of it is open any more when it is fired."""
    due = store.due_times.due

    async def read_just_before_the_end(*arguments: int) -> FoundDue:
        await neighbour.redis.hset("experiments:exp_1", "state", "running")
        await neighbour.redis.zadd(keys.open_runs("exp_1"), {"1-0": 1})
        found = await due(*arguments)
        await neighbour.redis.delete(keys.open_runs("exp_1"))
        await neighbour.redis.hset("experiments:exp_1", "state", "run")
        return found

    monkeypatch.setattr(store.due_times, "due", read_just_before_the_end)
    async with scheduler(store):
        await are_queued(neighbour.redis, 1)


async def test_what_somebody_else_runs_is_left_alone(store: Store, neighbour: Neighbour) -> None:
    await neighbour.publish("exp_1", "echo", state="running")

    async with scheduler(store):
        await eventually(lambda: store.due_times.all(), "the schedule")
        [first] = (await store.due_times.all()).values()

        async def has_moved_on() -> bool:
            return (await store.due_times.all())["exp_1"] > first

        await eventually(has_moved_on, "the next due time")

    assert not await neighbour.redis.xlen(QUEUE)


# -- when -------------------------------------------------------------------------------


async def test_nothing_fires_before_its_time_or_twice(store: Store, neighbour: Neighbour) -> None:
    async with scheduler(store), scheduler(store):
        await are_queued(neighbour.redis, 3)
    entries = await neighbour.redis.xrange(QUEUE)

    due_times = [one.scheduled_for for one in await queued(neighbour.redis)]
    assert len(set(due_times)) == len(due_times)
    for entry, fields in entries:
        due = datetime.fromisoformat(str(Order.decode(fields["order"], entry).scheduled_for))
        assert int(entry.partition("-")[0]) >= due.timestamp() * 1_000


# -- at what cost -----------------------------------------------------------------------


async def test_a_due_time_takes_two_scripts(store: Store, neighbour: Neighbour) -> None:
    async def scripts_called() -> int:
        stats = await neighbour.redis.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval"))

    async with scheduler(store):
        await are_queued(neighbour.redis, 1)
        called, before = await scripts_called(), len(await queued(neighbour.redis))
        await are_queued(neighbour.redis, before + 4)
        called = await scripts_called() - called
        fired = len(await queued(neighbour.redis)) - before

    assert called <= 2 * (fired + 1)


async def test_more_due_times_at_one_moment_than_are_read_at_once_all_fire(
    store: Store, neighbour: Neighbour
) -> None:
    names = {"exp_1", *(f"many_{number}" for number in range(MANY))}
    for name in names:
        await neighbour.publish(name, "echo", overlap="allow")
        await neighbour.redis.set(f"schedules:{name}", EVERY_SECOND)

    async with scheduler(store, read_at_once=3):
        await are_queued(neighbour.redis, 3 * len(names))

    fired: dict[str, list[str]] = {}
    for one in await queued(neighbour.redis):
        fired.setdefault(str(one.scheduled_for), []).append(one.experiment_id)
    _, *whole, _ = sorted(fired)
    assert whole
    assert all(sorted(fired[one]) == sorted(names) for one in whole)
