"""Pub/sub knows no databases: with a prefix, the executors of one database hear only what is for them."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.executor.store import Store, StoreOptions
from shared import keys
from shared.connection import connect, connect_blocking
from tests.conftest import KEPT, Neighbour, Serve, eventually

PREFIX = "staging:"


@pytest.fixture
async def heard(redis_url: str) -> AsyncIterator[Any]:
    """A subscription to everything."""
    client = connect_blocking(redis_url)
    async with client.pubsub() as pubsub:
        await pubsub.psubscribe("*")
        yield pubsub
    await client.aclose()


@pytest.mark.usefixtures("echo")
async def test_with_a_prefix_all_channels_have_it(serve: Serve, neighbour: Neighbour, heard: Any) -> None:
    await neighbour.publish("exp_1", "echo", params={"x": 1})
    async with serve(channel_prefix=PREFIX, schedule_mode="trigger,cron"):
        # Only the neighbour itself, which hears everything, hears what has no prefix.
        assert await neighbour.redis.publish(keys.EXECUTE_NOW, '{"experiment_id": "exp_1"}') == 1
        await neighbour.redis.publish(PREFIX + keys.EXECUTE_NOW, '{"experiment_id": "exp_1"}')
        channels, result = set(), None
        while result is None:
            message = await heard.get_message(timeout=30)
            channels.add(message["channel"])
            if message["channel"] == PREFIX + keys.RESULTS:
                result = json.loads(message["data"])
        await neighbour.redis.publish(
            PREFIX + keys.SCHEDULES_CHANGED, '{"experiment_id": "e", "cron": "@yearly"}'
        )
        await eventually(lambda: neighbour.redis.exists("schedules:e"))

    assert result["result_summary"] == {"x": 1}
    channels = {name for name in channels if not name.startswith("__keyspace@")}
    ours = {name for name in channels if name.startswith(PREFIX)}
    assert channels - ours <= {"*", keys.EXECUTE_NOW}
    assert {PREFIX + keys.METRICS, PREFIX + keys.RESULTS} < ours
    assert await neighbour.redis.keys("experiment_runs:*")


@pytest.mark.parametrize("prefix", ["", PREFIX])
async def test_workers_of_another_database_are_found(store: Store, redis_url: str, prefix: str) -> None:
    url = redis_url.replace("/0", "/3")
    client, patient = connect(url), connect_blocking(url)
    other = Store.on(client, patient, KEPT, options=StoreOptions(channel_prefix=prefix))
    ear = keys.ear("one")
    async with other.subscriptions.to((keys.MARKERS, ear, keys.EXECUTE_NOW)):
        await other.triggers.join("worker", ear, "marker", ttl_seconds=60)
        seen, own = await store.server.other_listeners(), await other.server.other_listeners()
    after = await store.server.other_listeners()
    await client.flushdb()
    await client.aclose()
    await patient.aclose()

    assert (seen.workers, tuple(seen.databases)) == ((0, ()) if prefix else (1, (3,)))
    assert (own.workers, after.workers) == (0, 0)
