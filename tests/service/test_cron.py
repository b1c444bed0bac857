"""Schedules become runs: every shape of a key, every way to change it, however many services there are.

Six fields end with the second, so `* * * * * *` is due every second.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from services.executor.scheduling.cron import Cron
from services.executor.store import Store
from tests.conftest import Neighbour, Serve, eventually
from tests.service.conftest import client_ids

EVERY_SECOND = "* * * * * *"
SELDOM = "0 0 1 1 *"
RESULTS = "fullsend:experiment_results"

pytestmark = pytest.mark.usefixtures("echo")

STRINGS = {
    "cron": EVERY_SECOND,
    "json": json.dumps({"experiment_id": "another's", "cron": EVERY_SECOND, "enabled": True}),
    "json_with_schedule": json.dumps({"schedule": EVERY_SECOND}),
    "json_with_zone": json.dumps({"cron": EVERY_SECOND, "timezone": "Asia/Kathmandu"}),
}
HASHES = {
    "hash": {"cron": EVERY_SECOND},
    "hash_in_full": {"cron": EVERY_SECOND, "timezone": "UTC", "state": "active", "created_at": "2026-02-01"},
}


@pytest.fixture(autouse=True)
async def experiment(neighbour: Neighbour) -> None:
    """`exp_1` is there and ready."""
    await neighbour.publish("exp_1", "echo")


async def has_due_time(store: Store, experiment_id: str = "exp_1") -> bool:
    """Whether the experiment has a due time."""
    return experiment_id in await store.due_times.all()


# -- what is written ----------------------------------------------------------------------


async def test_a_schedule_in_any_shape_fires(serve: Serve, neighbour: Neighbour) -> None:
    for shape, text in STRINGS.items():
        await neighbour.redis.set(f"schedules:{shape}", text)
    for shape, fields in HASHES.items():
        await neighbour.redis.hset(f"schedules:{shape}", mapping=fields)
    for shape in (*STRINGS, *HASHES):
        await neighbour.publish(shape, "echo")

    async with serve(schedule_mode="cron"):
        results = {shape: await neighbour.result(shape) for shape in (*STRINGS, *HASHES)}

    assert {shape: one.get("status") for shape, one in results.items()} == dict.fromkeys(results, "success")
    assert {one["trigger"] for one in results.values()} == {"cron"}


async def test_a_schedule_is_read_in_its_time_zone(serve: Serve, neighbour: Neighbour, store: Store) -> None:
    schedule = {"cron": "0 9 * * MON", "timezone": "America/Los_Angeles"}
    await neighbour.redis.set("schedules:exp_1", json.dumps(schedule))

    async with serve(schedule_mode="cron"):
        await eventually(lambda: has_due_time(store))
        slots = await store.due_times.all()

    expected = Cron.parse("0 9 * * MON", "America/Los_Angeles").next_after(await store.due_times.now_ms())
    assert slots == {"exp_1": expected}


@pytest.mark.parametrize(
    "schedule",
    [{"cron": EVERY_SECOND, "state": "paused"}, {"cron": EVERY_SECOND, "state": "completed"}],
)
async def test_a_schedule_in_a_hash_that_is_not_active_has_no_due_time(
    serve: Serve, neighbour: Neighbour, store: Store, schedule: dict[str, str]
) -> None:
    await neighbour.redis.hset("schedules:exp_1", mapping=schedule)
    await neighbour.redis.set("schedules:exp_2", SELDOM)

    async with serve(schedule_mode="cron"):
        await eventually(lambda: has_due_time(store, "exp_2"))
        slots = await store.due_times.all()

    assert set(slots) == {"exp_2"}


# -- what changes -------------------------------------------------------------------------


async def test_a_schedule_announced_without_a_key_is_stored_and_fires(
    serve: Serve, neighbour: Neighbour
) -> None:
    message = {"experiment_id": "exp_1", "schedule": EVERY_SECOND, "timezone": "Europe/Berlin", "type": "new"}

    async with serve(schedule_mode="cron", cron_check_interval=600):
        await _announce(neighbour, message)
        result = await neighbour.result("exp_1")

    assert result["status"] == "success"
    stored = json.loads(await neighbour.redis.get("schedules:exp_1"))
    assert (stored["cron"], stored["timezone"]) == (EVERY_SECOND, "Europe/Berlin")


async def test_an_announcement_leaves_an_existing_key_alone(
    serve: Serve, neighbour: Neighbour, store: Store
) -> None:
    await neighbour.redis.set("schedules:exp_1", SELDOM)

    async with serve(schedule_mode="cron", cron_check_interval=600):
        await _announce(neighbour, {"experiment_id": "exp_1", "cron": EVERY_SECOND})
        await _announce(neighbour, {"experiment_id": "exp_2", "cron": SELDOM})
        await eventually(lambda: has_due_time(store, "exp_2"))

    assert await neighbour.redis.get("schedules:exp_1") == SELDOM


async def _announce(neighbour: Neighbour, message: dict[str, Any]) -> None:
    async def heard() -> bool:
        return bool(await neighbour.redis.publish("fullsend:schedules", json.dumps(message)))

    await eventually(heard, "somebody who listens")


async def by_message(neighbour: Neighbour) -> None:
    """The schedule's writer says so."""
    await _announce(neighbour, {"experiment_id": "exp_1", "cron": "irrelevant, as there is a key"})


async def in_silence(neighbour: Neighbour) -> None:
    """The schedule's writer says nothing."""


Tell = Callable[[Neighbour], Awaitable[None]]
TOLD = pytest.mark.parametrize(("tell", "check_interval"), [(by_message, 600.0), (in_silence, 0.2)])


@TOLD
async def test_a_changed_schedule_is_followed(
    serve: Serve, neighbour: Neighbour, store: Store, tell: Tell, check_interval: float
) -> None:
    await neighbour.redis.set("schedules:exp_1", SELDOM)

    async with serve(schedule_mode="cron", cron_check_interval=check_interval):
        await eventually(lambda: has_due_time(store))
        await neighbour.redis.set("schedules:exp_1", EVERY_SECOND)
        await tell(neighbour)
        result = await neighbour.result("exp_1")

    assert result["status"] == "success"


@TOLD
async def test_a_paused_schedule_is_not_followed_any_more(
    serve: Serve, neighbour: Neighbour, store: Store, tell: Tell, check_interval: float
) -> None:
    await neighbour.redis.set("schedules:exp_1", SELDOM)

    async with serve(schedule_mode="cron", cron_check_interval=check_interval):
        await eventually(lambda: has_due_time(store))
        await neighbour.redis.set("schedules:exp_1", json.dumps({"cron": SELDOM, "enabled": False}))
        await tell(neighbour)
        await eventually(lambda: _has_no_due_time(store))


@TOLD
async def test_a_deleted_schedule_is_not_followed_any_more(
    serve: Serve, neighbour: Neighbour, store: Store, tell: Tell, check_interval: float
) -> None:
    await neighbour.redis.hset("schedules:exp_1", mapping={"cron": SELDOM})

    async with serve(schedule_mode="cron", cron_check_interval=check_interval):
        await eventually(lambda: has_due_time(store))
        await neighbour.redis.delete("schedules:exp_1")
        if tell is in_silence:  # a message would announce it anew
            await eventually(lambda: _has_no_due_time(store))


async def _has_no_due_time(store: Store) -> bool:
    return not await has_due_time(store)


async def test_a_schedule_deleted_in_silence_does_not_fire_once_more(
    serve: Serve, neighbour: Neighbour
) -> None:
    await neighbour.redis.set("schedules:exp_1", EVERY_SECOND)
    await neighbour.publish("exp_2", "echo")
    await neighbour.redis.set("schedules:exp_2", EVERY_SECOND)

    async with serve(schedule_mode="cron", cron_check_interval=600):
        await neighbour.result("exp_1")
        await neighbour.redis.delete("schedules:exp_1")
        before = len(neighbour.heard_of("exp_1", RESULTS))
        await neighbour.results("exp_2", len(neighbour.heard_of("exp_2", RESULTS)) + 2)

    assert len(neighbour.heard_of("exp_1", RESULTS)) <= before + 1  # one may have been under way


async def test_a_schedule_written_while_the_subscription_was_cut_is_followed(
    serve: Serve, neighbour: Neighbour, store: Store
) -> None:
    ours = await client_ids(neighbour.redis, "pubsub")

    async with serve(schedule_mode="cron", cron_check_interval=600):
        await _announce(neighbour, {"experiment_id": "exp_2", "cron": SELDOM})
        await eventually(lambda: has_due_time(store, "exp_2"))
        for one in await client_ids(neighbour.redis, "pubsub") - ours:
            await neighbour.redis.client_kill_filter(_id=one)
        await neighbour.redis.set("schedules:exp_1", SELDOM)
        await eventually(lambda: has_due_time(store))


# -- which experiments ----------------------------------------------------------------------


async def test_cron_takes_an_experiment_in_a_recurring_state(serve: Serve, neighbour: Neighbour) -> None:
    states = ("ready", "run", "completed", "failed")
    for state in states:
        await neighbour.publish(f"exp_{state}", "echo", state=state)
        await neighbour.redis.set(f"schedules:exp_{state}", EVERY_SECOND)

    async with serve(schedule_mode="cron"):
        results = [await neighbour.result(f"exp_{state}") for state in states]

    assert {result["status"] for result in results} == {"success"}


async def test_cron_leaves_experiments_in_any_other_state_alone(serve: Serve, neighbour: Neighbour) -> None:
    states = ("draft", "paused", "archived", "running")
    for state in states:
        await neighbour.publish(f"exp_{state}", "echo", state=state)
        await neighbour.redis.set(f"schedules:exp_{state}", EVERY_SECOND)
    await neighbour.redis.set("schedules:exp_1", EVERY_SECOND)

    async with serve(schedule_mode="cron"):
        await neighbour.results("exp_1", 2)

    heard = {message["experiment_id"] for _, message in neighbour.heard}
    assert heard == {"exp_1"}
