"""A slot is decided ahead and fired with one call at its moment; what changes in between counts as well."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from services.executor import firing
from services.executor.scheduler import CronScheduler
from services.executor.store import Ahead, Claim, Decision, Fired, Queue, Store
from services.executor.store.scripts import Script, Scripts
from shared import keys
from tests.conftest import Neighbour, Serve, eventually

EVERY_SECOND = "* * * * * *"
SELDOM = "0 0 1 1 *"
QUEUE = keys.queue("normal")
MANY = 20

pytestmark = pytest.mark.usefixtures("echo")


@contextlib.asynccontextmanager
async def scheduler(store: Store) -> AsyncIterator[None]:
    """A scheduler at work."""
    task = asyncio.create_task(CronScheduler(store, 600.0).run())
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.fixture(autouse=True)
async def experiment(neighbour: Neighbour) -> None:
    """`exp_1` is there, and due every second."""
    await neighbour.publish("exp_1", "echo", overlap="allow")
    await neighbour.redis.set("schedules:exp_1", EVERY_SECOND)


async def queued(redis: Any) -> list[dict[str, Any]]:
    """The orders of cron, in order."""
    return [json.loads(fields["order"]) for _, fields in await redis.xrange(QUEUE)]


async def are_queued(redis: Any, count: int) -> None:
    """Wait for so many orders."""

    async def there() -> bool:
        return len(await queued(redis)) >= count

    await eventually(there, "the slots")


def once_seen_ahead(
    store: Store, monkeypatch: pytest.MonkeyPatch, then: Callable[[], Awaitable[Any]]
) -> asyncio.Event:
    """Has something done as soon as a slot is seen ahead, for the first time; set when it is done."""
    ahead, is_done = store.slots.ahead, asyncio.Event()

    async def seen(*arguments: Any) -> Ahead:
        answer = await ahead(*arguments)
        if answer.slots and not is_done.is_set():
            is_done.set()
            await then()
        return answer

    monkeypatch.setattr(store.slots, "ahead", seen)
    return is_done


# -- what changes in between ----------------------------------------------------------


async def test_a_schedule_that_is_deleted_in_between_does_not_fire(
    store: Store, neighbour: Neighbour, monkeypatch: pytest.MonkeyPatch
) -> None:
    once_seen_ahead(store, monkeypatch, lambda: neighbour.redis.delete("schedules:exp_1"))

    async with scheduler(store):

        async def is_forgotten() -> bool:
            return not await store.slots.planned()

        await eventually(lambda: neighbour.redis.hlen(keys.plans()), "the plan")
        await eventually(is_forgotten, "the end of the schedule")

    assert await queued(neighbour.redis) == []
    assert await store.slots.all() == {}


async def test_a_schedule_that_changes_in_between_is_followed(
    store: Store, neighbour: Neighbour, monkeypatch: pytest.MonkeyPatch
) -> None:
    once_seen_ahead(store, monkeypatch, lambda: neighbour.redis.set("schedules:exp_1", SELDOM))

    async with scheduler(store):

        async def is_noted() -> bool:
            return bool(await neighbour.redis.hget(keys.plans(), "exp_1") == SELDOM)

        await eventually(is_noted, "the other schedule")
        [slot_ms] = (await store.slots.all()).values()

    assert await queued(neighbour.redis) == []
    assert slot_ms > await store.slots.now_ms() + 2_000


async def test_what_an_experiment_asks_for_counts_at_the_slot(
    store: Store, neighbour: Neighbour, monkeypatch: pytest.MonkeyPatch
) -> None:
    once_seen_ahead(store, monkeypatch, lambda: neighbour.publish("exp_1", "echo", overlap="queue"))

    async with scheduler(store):
        await are_queued(neighbour.redis, 1)

    assert (await queued(neighbour.redis))[0]["serial"] is True


async def test_an_experiment_that_is_paused_in_between_is_left_alone(
    store: Store, neighbour: Neighbour, monkeypatch: pytest.MonkeyPatch
) -> None:
    await neighbour.publish("exp_2", "echo", overlap="allow")
    await neighbour.redis.set("schedules:exp_2", EVERY_SECOND)
    is_done = once_seen_ahead(store, monkeypatch, lambda: neighbour.publish("exp_1", "echo", state="paused"))

    async with scheduler(store):
        await is_done.wait()
        await are_queued(neighbour.redis, 2)

    assert {one["experiment_id"] for one in await queued(neighbour.redis)} == {"exp_2"}


# -- when -----------------------------------------------------------------------------


@pytest.mark.parametrize("wrong_by_ms", [100, 400])
async def test_no_slot_fires_before_its_time_however_wrong_the_idea_of_it(
    wrong_by_ms: int, store: Store, neighbour: Neighbour, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead, what = store.slots.ahead, Counter[str]()
    fire = store.slots.fire

    async def misheard(*arguments: Any) -> Ahead:
        answer = await ahead(*arguments)
        return replace(answer, now_us=answer.now_us + wrong_by_ms * 1_000)

    async def counted(*arguments: Any) -> Fired:
        answer = await fire(*arguments)
        what[answer.what] += 1
        return answer

    monkeypatch.setattr(store.slots, "ahead", misheard)
    monkeypatch.setattr(store.slots, "fire", counted)
    async with scheduler(store):
        await are_queued(neighbour.redis, 3)
    entries = await neighbour.redis.xrange(QUEUE)

    slots = [one["scheduled_for"] for one in await queued(neighbour.redis)]
    assert len(set(slots)) == len(slots)
    assert what["early"] > 0
    for entry, fields in entries:
        slot = datetime.fromisoformat(json.loads(fields["order"])["scheduled_for"])
        assert int(entry.partition("-")[0]) >= slot.timestamp() * 1_000


# -- at what cost ---------------------------------------------------------------------


async def test_a_slot_takes_a_look_ahead_a_rehearsal_and_a_call(
    store: Store, neighbour: Neighbour, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, asked = Scripts.call, Counter[str]()

    async def counted(self: Scripts, script: Script, *arguments: Any, **more: Any) -> Any:
        asked[script.name] += 1
        return await call(self, script, *arguments, **more)

    async with scheduler(store):
        await are_queued(neighbour.redis, 1)
        monkeypatch.setattr(Scripts, "call", counted)
        await are_queued(neighbour.redis, 5)

    assert asked.keys() == {"ahead", "fire"}
    assert asked["ahead"] <= 5
    assert asked["fire"] <= 2 * 5


async def test_slots_of_one_moment_are_fired_together(
    store: Store, neighbour: Neighbour, monkeypatch: pytest.MonkeyPatch
) -> None:
    fire, under_way, most = store.slots.fire, 0, 0
    for number in range(MANY):
        await neighbour.publish(f"many_{number}", "echo", overlap="allow")
        await neighbour.redis.set(f"schedules:many_{number}", EVERY_SECOND)

    async def counted(decision: Decision, *arguments: Any) -> Fired:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        answer = await fire(decision, *arguments)
        under_way -= 1
        return answer

    monkeypatch.setattr(store.slots, "fire", counted)
    async with scheduler(store):
        await are_queued(neighbour.redis, 2 * MANY)

    assert most >= MANY // 2


async def test_more_slots_of_one_moment_than_are_read_at_once_all_fire(
    store: Store, neighbour: Neighbour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firing, "READ_AT_ONCE", 3)
    monkeypatch.setattr(firing, "FIRED_AT_ONCE", 2)
    names = {"exp_1", *(f"many_{number}" for number in range(MANY))}
    for name in names:
        await neighbour.publish(name, "echo", overlap="allow")
        await neighbour.redis.set(f"schedules:{name}", EVERY_SECOND)

    async with scheduler(store):
        await are_queued(neighbour.redis, 3 * len(names))

    slots: dict[str, list[str]] = {}
    for one in await queued(neighbour.redis):
        slots.setdefault(one["scheduled_for"], []).append(one["experiment_id"])
    _, *whole, _ = sorted(slots)
    assert whole
    assert all(sorted(slots[one]) == sorted(names) for one in whole)


async def test_who_fires_a_slot_begins_its_run_without_claiming_it(
    serve: Serve, neighbour: Neighbour, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def finds_none(
        self: Queue, worker: str, count: int, wait_ms: int, on_empty: Callable[[], None]
    ) -> list[Claim]:
        on_empty()
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(Queue, "claim", finds_none)
    async with serve(schedule_mode="cron"):
        results = await neighbour.results("exp_1", 2)

    assert [one["trigger"] for one in results] == ["cron", "cron"]
