"""Subscriptions are confirmed, and a subscription that was cut off is not made again silently."""

from typing import Any

import pytest

from services.executor.store import Store
from shared.errors import StoreUnavailableError


async def subscribed(redis: Any) -> int:
    """The number of SUBSCRIBE commands so far."""
    stats = await redis.info("commandstats")
    return int(stats["cmdstat_subscribe"]["calls"])


async def test_a_subscription_that_was_cut_off_raises_and_is_not_made_again(store: Store, redis: Any) -> None:
    async with store.subscriptions.to(("a channel",)) as messages:
        [client] = await redis.client_list(_type="pubsub")
        await redis.client_kill_filter(_id=client["id"])
        with pytest.raises(StoreUnavailableError):
            await anext(messages)

    assert await subscribed(redis) == 1


async def test_every_message_that_a_publisher_counted_as_received_arrives_before_the_end(
    store: Store, redis: Any
) -> None:
    async with store.subscriptions.to(("here", "there")) as messages:
        told = [await redis.publish("here", "before")]
        await messages.leave(("here", "there"))
        while told[-1]:
            told.append(await redis.publish("here", "after"))
        heard = [message.data async for message in messages]

    assert len(heard) == sum(told)


async def test_a_subscription_without_permission_is_refused(store: Store, redis: Any) -> None:
    await redis.acl_setuser(
        "default", enabled=True, nopass=True, keys=["*"], categories=["+@all"], channels=[]
    )
    await redis.execute_command("ACL", "SETUSER", "default", "resetchannels")

    with pytest.raises(StoreUnavailableError, match="refuses"):
        async with store.subscriptions.to(("a channel",)):
            pass


@pytest.mark.parametrize(("count", "size"), [(20_000, 1_000), (3, 5_000_000)])
async def test_messages_that_arrive_faster_than_they_are_read_wait_in_the_server(
    count: int, size: int, store: Store, redis: Any
) -> None:
    """They take no memory of the worker, and none is lost."""
    async with store.subscriptions.to(("here",)) as messages:
        async with redis.pipeline(transaction=False) as pipe:
            for number in range(count):
                pipe.publish("here", str(number).ljust(size))
            await pipe.execute()
        [client] = await redis.client_list(_type="pubsub")
        heard = [int((await anext(messages)).data) for _ in range(count)]

    assert int(client["omem"]) > 1_000_000
    assert heard == list(range(count))
