"""Attempts that follow later are stored, not slept: their times survive everything."""

import json
from typing import Any

from services.executor.store import Begun, Finished, Order
from shared import keys
from tests.conftest import eventually
from tests.service.trouble import Server
from tests.store.conftest import (
    EXPERIMENT,
    Ear,
    Run,
    Worker,
    event_of,
    journal,
    orders,
    pending,
    publish,
    state_of,
    store_on,
    together,
)


async def test_a_retry_is_stored_in_one_step(worker: Worker, redis: Any, ear: Ear) -> None:
    await publish(redis, "flat")
    run = await worker.begun()
    before = (await redis.time())[0] * 1_000
    assert await run.retry(60)

    [(text, due)] = await redis.zrange(keys.retries(), 0, -1, withscores=True)
    record = await redis.hgetall(keys.run(run.id))
    assert Order.decode(text, "0-0").attempt == 2
    assert Order.decode(text, "0-0").timestamp == run.claim.order.timestamp
    assert before + 60_000 <= due < before + 70_000
    assert (record["status"], record["lease"], int(record["retry_at"])) == ("running", "", due)
    assert json.loads(record["attempts"]) == [{"attempt": 1, "error": "refused"}]
    assert await redis.zscore(keys.open_runs(EXPERIMENT), run.claim.order.timestamp) == 0
    assert await orders(redis) == []
    assert await pending(redis) == 0
    assert (await journal(redis))[-1] == ("metric", event_of(run.claim, "run_retrying"))
    assert await ear.names() == ["run_started", "run_retrying"]
    assert await state_of(redis) == "running"


async def test_a_retry_that_is_not_due_waits(worker: Worker) -> None:
    run = await worker.begun()
    await run.retry(60)
    count, next_ms = await worker.store.queue.promote()

    assert count == 0
    assert next_ms is not None
    assert 50_000 < next_ms <= 60_000
    assert await worker.take() == []


async def test_a_retry_that_is_due_is_the_next_attempt_of_the_same_run(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat")
    first = await worker.begun()
    await first.retry()
    assert await worker.store.queue.promote() == (1, None)
    claim = await worker.claim()

    assert (claim.order.attempt, claim.order.run_id) == (2, first.id)
    assert claim.order.history == ({"attempt": 1, "error": "refused"},)
    assert claim.entry != first.claim.entry
    assert claim.begun is Begun.BEGUN
    assert await Run(worker, claim).finish() is Finished.FINISHED
    assert await redis.pttl(keys.run(first.id)) > 0


async def test_the_record_of_an_attempt_under_way_does_not_expire(worker: Worker, redis: Any) -> None:
    first = await worker.begun()
    await first.retry()
    await redis.pexpire(keys.run(first.id), 60_000)
    await worker.store.queue.promote()
    await worker.claim()

    assert await redis.pttl(keys.run(first.id)) == -1


async def test_retries_that_are_due_come_in_the_order_of_their_times(worker: Worker, redis: Any) -> None:
    delays = {"c": 300, "a": 100, "b": 200}
    for experiment_id, delay_seconds in delays.items():
        await (await worker.begun(experiment_id)).retry(delay_seconds)
    for order in await redis.zrange(keys.retries(), 0, -1):
        await redis.zincrby(keys.retries(), -1_000_000, order)  # as if that time had passed

    assert await worker.store.queue.promote() == (3, None)
    assert [(await worker.claim()).order.experiment_id for _ in delays] == ["a", "b", "c"]


async def test_as_many_are_queued_at_once_as_are_asked_for(worker: Worker) -> None:
    for _ in range(5):
        await (await worker.begun()).retry()

    assert [(await worker.store.queue.promote(2))[0] for _ in range(4)] == [2, 2, 1, 0]


async def test_many_workers_queue_a_retry_once(worker: Worker, redis: Any) -> None:
    for _ in range(50):
        await (await worker.begun()).retry()
    answers = await together(*(worker.store.queue.promote(7) for _ in range(20)))

    assert sum(count for count, _ in answers) == 50
    assert len(await orders(redis)) == 50


async def test_of_nothing_nothing_is_due(worker: Worker) -> None:
    assert await worker.store.queue.promote() == (0, None)


async def test_what_follows_an_attempt_that_was_taken_away_is_refused(worker: Worker, redis: Any) -> None:
    late = await worker.begun()
    await late.requeue()
    other = Worker(worker.store, "w2")
    await other.claim()
    assert not await late.retry()

    assert await redis.exists(keys.retries()) == 0
    assert len(await orders(redis)) == 1


async def test_of_a_retry_and_an_end_the_first_counts(worker: Worker, redis: Any) -> None:
    first, second = await worker.begun("a"), await worker.begun("b")
    assert await first.retry(60)
    assert await first.finish() is Finished.STALE
    await second.finish()
    assert not await second.retry(60)

    assert [
        Order.decode(text, "0-0").experiment_id for text in await redis.zrange(keys.retries(), 0, -1)
    ] == ["a"]


async def test_due_times_survive_a_power_cut(own_server: Server) -> None:
    await own_server.start()
    async with store_on(own_server.url) as store:
        await store.queue.create_group()
        worker = Worker(store)
        await (await worker.begun("soon")).retry(0.1)
        await (await worker.begun("late")).retry(3_600)
        held = await worker.claimed("held")
        await worker.queued("waiting")
        own_server.kill()
        await own_server.start()

        async def promoted() -> int:
            return (await store.queue.promote())[0]

        assert await eventually(promoted) == 1
        assert [(await worker.claim()).order.experiment_id for _ in range(2)] == ["waiting", "soon"]
        assert held.lease in [one.lease for one in await store.queue.claims_of("w1")]
        _, next_ms = await store.queue.promote()
        assert next_ms is not None
        assert 3_500_000 < next_ms <= 3_600_000
