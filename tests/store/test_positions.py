"""Which worker admits a message that all workers heard, and results of messages that can't be runs."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from services.executor.store import Position, Store
from services.executor.store.pubsub import Message
from shared import keys
from tests.conftest import eventually
from tests.store.conftest import Ear, journal, together

LONG = 60.0


async def test_the_first_worker_admits_what_it_heard_before_its_marker(store: Store) -> None:
    assert await store.triggers.join("w1", keys.ear("1"), "m1", LONG)

    assert await store.workers.listening() == ["w1"]


async def test_a_worker_that_joins_others_leaves_earlier_messages_to_them(store: Store) -> None:
    async with store.subscriptions.to((keys.MARKERS, keys.ear("1"))):
        await store.triggers.join("w1", keys.ear("1"), "m1", LONG)

        assert not await store.triggers.join("w2", keys.ear("2"), "m2", LONG)


async def test_a_worker_that_joins_others_without_connections_admits_earlier_messages(store: Store) -> None:
    async with store.subscriptions.to((keys.ear("1"),)):
        await store.triggers.join("w1", keys.ear("1"), "m1", LONG)
    # The same worker is back on another connection, on which it has not joined yet.
    async with store.subscriptions.to((keys.MARKERS, keys.ear("3"))):
        assert await store.triggers.join("w2", keys.ear("2"), "m2", LONG)


async def test_a_worker_that_joins_after_the_others_have_left_admits_earlier_messages(store: Store) -> None:
    async with store.subscriptions.to((keys.ear("1"),)):
        await store.triggers.join("w1", keys.ear("1"), "m1", LONG)
        await store.triggers.join("w1", keys.ear("1"), "leaving:m1", 0)

        assert await store.triggers.join("w2", keys.ear("2"), "m2", LONG)
    assert await store.workers.listening() == ["w2"]


async def test_a_marker_contains_whether_earlier_messages_are_still_to_be_admitted(store: Store) -> None:
    async with store.subscriptions.to((keys.MARKERS, keys.ear("1"))) as messages:
        await store.triggers.join("w1", keys.ear("1"), "m1", LONG)
        await store.triggers.join("w2", keys.ear("2"), "m2", LONG)
        await store.triggers.join("w1", keys.ear("1"), "m3", LONG)
        markers = [message.data async for message in _some(messages, 3)]

    assert markers == ["m1:1", "m2:0", "m3:0"]


async def _some(messages: AsyncIterator[Message], count: int) -> AsyncIterator[Message]:
    """The first `count` markers among the messages."""
    while count:
        message = await anext(messages)
        if message.channel == keys.MARKERS:
            count -= 1
            yield message


async def test_one_of_many_workers_that_join_at_once_admits_earlier_messages(store: Store) -> None:
    ears = [keys.ear(str(number)) for number in range(10)]
    async with store.subscriptions.to(ears):
        joins = (store.triggers.join(f"w{n}", ear, f"m{n}", LONG) for n, ear in enumerate(ears))
        answers = await together(*joins)

    assert sum(answers) == 1


async def test_all_workers_hear_the_markers_in_the_same_order(store: Store) -> None:
    async with (
        store.subscriptions.to((keys.MARKERS, keys.EXECUTE_NOW)) as one,
        store.subscriptions.to((keys.MARKERS, keys.EXECUTE_NOW)) as other,
    ):
        joins = (store.triggers.join(f"w{n}", "", f"m{n}", LONG) for n in range(10))
        sends = (store.triggers.send(keys.EXECUTE_NOW, {"experiment_id": f"e{n}"}) for n in range(10))
        await together(*joins, *sends)
        heard = [[await anext(messages) for _ in range(20)] for messages in (one, other)]

    assert heard[0] == heard[1]


async def test_a_sender_learns_how_many_subscribers_received_its_message(store: Store) -> None:
    assert await store.triggers.send(keys.EXECUTE_NOW, {"experiment_id": "e"}) == 0
    async with store.subscriptions.to((keys.EXECUTE_NOW,)) as messages:
        assert await store.triggers.send(keys.EXECUTE_NOW, {"experiment_id": "ü"}) == 1
        message = await anext(messages)

    assert json.loads(message.data) == {"experiment_id": "ü"}


async def test_a_refusal_is_published_once_by_the_first_worker(store: Store, redis: Any, ear: Ear) -> None:
    refusal = {"experiment_id": "e", "status": "failed", "error": "trigger is a list"}
    answers = await together(*(store.triggers.refuse(Position("m:c", 3), refusal) for _ in range(10)))

    assert sum(answers) == 1
    assert await ear.all() == [(keys.RESULTS, refusal)]
    assert await journal(redis) == [("result", refusal)]


async def test_an_error_in_a_key_is_published(store: Store, redis: Any, ear: Ear) -> None:
    message = {"experiment_id": "e", "status": "failed", "error": "ü"}
    await store.triggers.announce(message)

    assert await ear.all() == [(keys.RESULTS, message)]
    assert await journal(redis) == [("result", message)]


async def test_results_are_utf_8_even_if_the_name_of_a_key_is_not(store: Store, redis: Any, ear: Ear) -> None:
    message = {"experiment_id": "caf\udce9", "status": "failed", "error": "half \ud83d"}
    await store.triggers.announce(message)
    await store.triggers.refuse(Position("m:c", 0), message)

    assert await ear.all() == [(keys.RESULTS, message)] * 2
    assert [json.loads(fields["data"].encode()) for _, fields in await redis.xrange(keys.journal())] == [
        message
    ] * 2


# -- subscriptions --------------------------------------------------------------------


async def test_a_subscription_receives_every_message_after_it_is_confirmed(store: Store, redis: Any) -> None:
    async with store.subscriptions.to(("a", "b")) as messages:
        for number in range(100):
            await redis.publish("ab"[number % 2], str(number))
        heard = [await anext(messages) for _ in range(100)]

    assert [message.data for message in heard] == [str(number) for number in range(100)]
    assert {message.channel for message in heard} == {"a", "b"}


async def test_a_channel_can_be_given_twice(store: Store, redis: Any) -> None:
    async with asyncio.timeout(10), store.subscriptions.to(("a", "a")) as messages:
        await redis.publish("a", "1")

        assert (await anext(messages)).data == "1"


async def test_a_subscription_that_ends_closes_its_connection(store: Store, redis: Any) -> None:
    async with store.subscriptions.to(("a",)):
        assert await redis.publish("a", "1") == 1

    async def nobody_hears() -> bool:
        return int(await redis.publish("a", "2")) == 0

    await eventually(nobody_hears)
