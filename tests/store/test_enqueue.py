"""A run is queued once, however often and by how many it is asked for."""

from typing import Any

import pytest
from msgspec.structs import replace

from services.executor.store import Begun, Order, Position, Store, Taken
from shared import keys
from tests.store.conftest import EXPERIMENT, Worker, orders, publish, together

ORDER = Order(EXPERIMENT, "trigger", params={"a": 1})


async def test_an_order_is_queued_as_an_open_run(store: Store, redis: Any) -> None:
    timestamp = await store.queue.enqueue(ORDER)

    assert timestamp is not None
    assert await orders(redis) == [replace(ORDER, timestamp=timestamp)]
    assert await redis.zrange(keys.open_runs(EXPERIMENT), 0, -1, withscores=True) == [(timestamp, 0)]


async def test_the_entry_of_an_order_is_the_timestamp_of_its_run(worker: Worker) -> None:
    timestamp = await worker.queued()
    claim = await worker.claim()

    assert claim.entry == claim.order.timestamp == timestamp
    assert claim.order.run_id == f"{EXPERIMENT}:{timestamp}"


async def test_equal_orders_are_runs_of_their_own(worker: Worker, redis: Any) -> None:
    timestamps = {await worker.queued() for _ in range(5)}

    assert len(timestamps) == len(await orders(redis)) == 5


async def test_a_message_that_many_heard_is_queued_once(store: Store, redis: Any) -> None:
    answers = await together(*(store.queue.enqueue(ORDER, Position("m:c", 7)) for _ in range(20)))

    assert sum(answer is not None for answer in answers) == 1
    assert len(await orders(redis)) == 1


async def test_messages_at_other_positions_are_other_messages(store: Store, redis: Any) -> None:
    for position in (Position("m:c", 0), Position("m:c", 1), Position("m:d", 0), Position("n:c", 99_999)):
        assert await store.queue.enqueue(ORDER, position) is not None
        assert await store.queue.enqueue(ORDER, position) is None

    assert len(await orders(redis)) == 4


async def test_a_request_is_one_run(store: Store, redis: Any) -> None:
    order = Order(EXPERIMENT, "trigger", request_id="r-1")
    answers = await together(*(store.queue.enqueue(order) for _ in range(20)))

    assert len(set(answers)) == 1
    assert len(await orders(redis)) == 1
    assert await store.queue.run_of(EXPERIMENT, "r-1") == f"{EXPERIMENT}:{answers[0]}"


async def test_a_request_that_is_sent_again_is_the_run_that_it_became(store: Store, redis: Any) -> None:
    order = Order(EXPERIMENT, "trigger", request_id="r-1")
    first = await store.queue.enqueue(order, Position("m:c", 0))

    assert await store.queue.enqueue(order, Position("m:c", 1)) == first
    assert await store.queue.enqueue(order, Position("m:c", 1)) is None
    assert len(await orders(redis)) == 1


async def test_a_request_that_nobody_took_up_has_no_run(store: Store) -> None:
    assert await store.queue.run_of(EXPERIMENT, "r-1") is None


async def test_the_traces_of_a_message_do_not_stay_for_ever(store: Store, redis: Any) -> None:
    await store.queue.enqueue(Order(EXPERIMENT, "trigger", request_id="r-1"), Position("m:c", 3))

    assert 3_500_000 < await redis.pttl(keys.admitted("m:c")) <= 3_600_000
    assert 86_300_000 < await redis.pttl(keys.request(EXPERIMENT, "r-1")) <= 86_400_000


async def test_what_a_message_leaves_is_kept_from_its_admission_on(store: Store, redis: Any) -> None:
    await store.queue.enqueue(ORDER, Position("m:c", 0))
    await redis.pexpire(keys.admitted("m:c"), 60_000)
    await store.queue.enqueue(ORDER, Position("m:c", 1))

    assert 3_500_000 < await redis.pttl(keys.admitted("m:c")) <= 3_600_000


async def test_what_was_refused_is_not_queued_and_the_other_way_round(store: Store, redis: Any) -> None:
    assert await store.triggers.refuse(Position("m:c", 0), {"experiment_id": None})
    assert await store.queue.enqueue(ORDER, Position("m:c", 0)) is None

    await store.queue.enqueue(ORDER, Position("m:c", 1))
    assert not await store.triggers.refuse(Position("m:c", 1), {"experiment_id": None})

    assert len(await orders(redis)) == 1


async def test_who_has_room_takes_the_run_with_its_admission(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat")
    await worker.ready()
    timestamp, taken = await worker.store.queue.admit(ORDER, None, worker.name, 1)
    [claim] = taken.claims

    assert claim.order.timestamp == claim.entry == timestamp
    assert claim.begun is Begun.BEGUN
    assert claim.stored.readable().tool == "t"
    assert await redis.hget(keys.run(claim.order.run_id), "status") == "running"
    assert [one.lease for one in await worker.store.queue.claims_of(worker.name)] == [claim.lease]


async def test_who_has_room_is_given_the_oldest_run(worker: Worker) -> None:
    first = await worker.queued()
    _, taken = await worker.store.queue.admit(ORDER, None, worker.name, 1)

    assert [claim.entry for claim in taken.claims] == [first]


async def test_without_room_or_a_group_a_run_is_only_queued(store: Store, redis: Any) -> None:
    _, early = await store.queue.admit(ORDER, None, "w1", 1)
    await store.queue.create_group()
    _, late = await store.queue.admit(ORDER, None, "w1", 0)

    assert list(early.claims) == list(late.claims) == []
    assert len(await orders(redis)) == 2


async def test_a_message_that_was_admitted_before_hands_out_nothing(worker: Worker) -> None:
    await worker.store.queue.admit(ORDER, Position("m:c", 1), worker.name, 0)

    timestamp, taken = await worker.store.queue.admit(ORDER, Position("m:c", 1), worker.name, 1)

    assert timestamp is None
    assert taken == Taken(claims=[])


@pytest.mark.parametrize(
    "order",
    [
        Order(
            "exp_1", "trigger", params={"a": [1, 2.5, None, {"b": "\udce4"}]}, request_id="r", traceparent="t"
        ),
        Order("exp_1", "cron", priority="high", serial=True, scheduled_for="2026-01-01T00:00:00Z"),
    ],
)
async def test_who_takes_what_it_admits_has_what_anybody_would_read(order: Order, worker: Worker) -> None:
    _, taken = await worker.store.queue.admit(order, None, worker.name, 1)
    held = await worker.store.queue.claims_of(worker.name)

    assert [one.order for one in taken.claims] == [one.order for one in held]
