"""A call whose answer is lost is sent again, and nothing happens twice."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio.connection import parse_url

from services.executor.store import Begun, Finished, Order, Position
from shared import keys
from shared.errors import StoreUnavailableError
from tests.store.conftest import (
    EXPERIMENT,
    SHAPES,
    Ear,
    Run,
    Worker,
    event_of,
    orders,
    pending,
    publish,
    state_of,
    store_on,
)
from tests.store.lossy import Lossy


@pytest.fixture
async def way(redis_url: str) -> AsyncIterator[Lossy]:
    way = Lossy(parse_url(redis_url)["port"])
    await way.start()
    yield way
    await way.stop()


@pytest.fixture
async def worker(way: Lossy) -> AsyncIterator[Worker]:
    """A worker behind a proxy that loses answers."""
    async with store_on(way.url) as store:
        await store.queue.create_group()
        yield Worker(store)


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_run_begins_and_ends_once(
    shape: str, worker: Worker, way: Lossy, redis: Any, ear: Ear
) -> None:
    await publish(redis, shape)
    way.lose_next()
    await worker.store.queue.enqueue(Order(EXPERIMENT, "trigger"), Position("m", 0))
    await worker.ready()
    claim = await worker.claim()
    assert claim.begun is Begun.BEGUN
    way.lose_next()
    await worker.store.runs.emit(claim, [event_of(claim, "progress")])
    way.lose_next()
    assert await Run(worker, claim).finish() is Finished.DONE

    assert way.lost == 3
    assert await ear.names() == ["run_started", "progress", "items_processed", "run_completed", "completed"]
    assert await state_of(redis) == "run"
    assert await orders(redis) == []
    assert await redis.exists(keys.open_runs(EXPERIMENT)) == 0


async def test_lines_are_kept_once(worker: Worker, way: Lossy, redis: Any) -> None:
    run = await worker.begun()
    way.lose_next()
    await worker.store.runs.log(run.id, [{"at": "1.0", "stream": "stdout", "text": "x"}])

    assert (way.lost, await redis.xlen(keys.logs(run.id))) == (1, 1)


async def test_a_retry_is_one_retry(worker: Worker, way: Lossy, redis: Any, ear: Ear) -> None:
    run = await worker.begun()
    way.lose_next()
    assert await run.retry()
    way.lose_next()
    await worker.store.queue.promote()

    assert way.lost == 2
    assert len(await orders(redis)) == 1
    assert await ear.names() == ["run_started", "run_retrying"]


async def test_a_run_goes_back_once(worker: Worker, way: Lossy, redis: Any) -> None:
    run = await worker.begun()
    way.lose_next()
    await run.requeue()

    assert (way.lost, len(await orders(redis)), await pending(redis)) == (1, 1, 0)


async def test_orders_that_were_handed_out_in_a_lost_answer_are_found(worker: Worker, way: Lossy) -> None:
    """A claim is not sent again: the second answer would contain other orders."""
    await worker.queued()
    assert (await worker.claim()).entry == (await worker.store.queue.claims_of("w1"))[0].entry
    queued = [await worker.queued(), await worker.queued()]
    way.lose_next()
    with pytest.raises(StoreUnavailableError, match=r"^claim: Redis can't be reached"):
        await worker.take()

    held = [claim.entry for claim in await worker.store.queue.claims_of("w1")]
    assert held[1:] == queued[:1]
    assert (await worker.claim()).entry == queued[1]
