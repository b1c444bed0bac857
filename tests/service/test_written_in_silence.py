"""Schedules are noticed that are written without a message, however the server is configured."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.executor.scheduler import CronScheduler
from services.executor.scheduling import schedule_watch
from services.executor.scheduling.schedule_notes import NAMED
from services.executor.store import Store
from shared import keys
from tests.conftest import Neighbour, Serve, Tools, eventually
from tests.service.trouble import Log

SELDOM = "0 0 1 1 *"
RARELY = "0 0 2 2 *"


@contextlib.asynccontextmanager
async def scheduler(store: Store) -> AsyncIterator[None]:
    """A scheduler at work, which reads all schedules once and never again."""
    task = asyncio.create_task(CronScheduler(store, 3_600.0).run())
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes a second or more by design takes less here."""
    monkeypatch.setattr(schedule_watch, "HEARD_WITHIN_SECONDS", 0.2)
    monkeypatch.setattr(schedule_watch, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr(schedule_watch, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(schedule_watch, "PASS_SECONDS", 0.05)


async def is_noted(store: Store, redis: Any, text: str, count: int = 1) -> None:
    """Wait until so many schedules are noted with this text."""

    async def noted() -> bool:
        texts: list[str] = await redis.hvals(keys.noted_schedules())
        return texts.count(text) == count

    await eventually(noted, f"{count} schedules {text}")


async def test_a_schedule_is_noticed_when_it_is_written_and_when_it_is_changed(
    store: Store, redis: Any, log: Log
) -> None:
    async with scheduler(store):
        await log.said("schedules.watched", by="notifications")
        await redis.set(keys.schedule("a:b"), SELDOM)
        await redis.hset(keys.schedule("c"), mapping={"cron": SELDOM})
        await is_noted(store, redis, SELDOM, 2)
        await redis.set(keys.schedule("a:b"), RARELY)
        await is_noted(store, redis, RARELY)


@pytest.mark.parametrize("configured", ["", "Ex", "E$h", "K$", "Kh", "Kgx"])
async def test_without_notifications_of_strings_and_hashes_new_keys_are_looked_for(
    store: Store, redis: Any, log: Log, configured: str
) -> None:
    await redis.config_set("notify-keyspace-events", configured)
    before = await redis.config_get("notify-keyspace-events")

    async with scheduler(store):
        await log.said("schedules.watched", by="poll")
        await log.said("schedules.read")
        await redis.mset({keys.schedule(f"exp_{number}"): SELDOM for number in range(300)})
        await is_noted(store, redis, SELDOM, 300)

    assert len(log.of("schedule.noted")) == 2 * NAMED
    assert (await redis.config_get("notify-keyspace-events")) == before


async def test_an_acl_without_the_channels_of_keys_is_no_trouble(store: Store, redis: Any, log: Log) -> None:
    await redis.execute_command("ACL", "SETUSER", "default", "resetchannels", "&fullsend:*")

    async with scheduler(store):
        await log.said("schedules.watched", by="poll")
        await log.said("schedules.read")
        await redis.set(keys.schedule("exp_1"), SELDOM)
        await is_noted(store, redis, SELDOM)

    assert not [line for line in log.lines if line["log_level"] == "error"]


async def test_what_the_server_is_configured_to_later_counts(store: Store, redis: Any, log: Log) -> None:
    async with scheduler(store):
        await log.said("schedules.watched", by="notifications")
        await redis.config_set("notify-keyspace-events", "")
        await log.said("schedules.watched", by="poll")
        await redis.config_set("notify-keyspace-events", "KA")
        await log.said("schedules.watched", 2, by="notifications")


async def test_a_schedule_is_noticed_that_was_written_while_the_connection_was_broken(
    store: Store, redis: Any, log: Log
) -> None:
    async with scheduler(store):
        await log.said("schedules.watched", by="notifications")
        async with redis.pipeline(transaction=True) as pipe:
            pipe.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            pipe.set(keys.schedule("exp_1"), SELDOM)
            await pipe.execute()
        await is_noted(store, redis, SELDOM)


async def test_a_due_time_soon_after_the_key_was_written_is_fired(
    serve: Serve, neighbour: Neighbour, store: Store, tools: Tools
) -> None:
    tools("echo", "def echo(): return {}")
    await neighbour.publish("exp_1", "echo")

    async with serve(schedule_mode="cron", cron_check_interval=3_600):
        await eventually(store.workers.cron, "a worker that tells that it runs cron")
        await neighbour.redis.set(keys.schedule("exp_1"), "* * * * * *")
        result = await neighbour.result("exp_1")
        cron = await store.workers.cron()

    assert result["type"] == "experiment_completed"
    assert set(cron.values()) <= set(schedule_watch.Noticing)
    assert await store.workers.cron() == {}
