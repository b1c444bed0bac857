"""Orders are handed out: each to one worker, the oldest first, and nonsense to nobody."""

import asyncio
import json
from typing import Any

import pytest
import structlog

from services.executor.store import Begun, Finished, Limit, Order, Store
from services.executor.store.queue import QUEUES
from shared import keys
from tests.store.conftest import (
    EXPERIMENT,
    KINDS,
    QUEUE,
    Ear,
    Worker,
    journal,
    orders,
    pending,
    publish,
    state_of,
    together,
)


async def test_the_oldest_order_is_claimed_first(worker: Worker) -> None:
    queued = [await worker.queued() for _ in range(5)]
    claims = [await worker.claim() for _ in range(5)]

    assert [claim.order.timestamp for claim in claims] == queued


async def test_a_claim_has_the_whole_order(worker: Worker) -> None:
    members: dict[str, Any] = {
        "params": {"ü": [1, None]},
        "scheduled_for": "2026-01-01T00:00:00.000+00:00",
        "request_id": "r",
        "triggered_by": "me",
        "traceparent": "00-1",
    }
    claim = await worker.claimed("a:b", **members)

    assert claim.order == Order("a:b", "trigger", timestamp=claim.entry, **members)
    assert claim.worker == worker.name


async def test_as_many_are_claimed_as_are_asked_for(worker: Worker) -> None:
    for _ in range(5):
        await worker.queued()

    assert len(await worker.store.queue.claim("w1", 3, 1_000)) == 3
    assert len(await worker.store.queue.claim("w1", 3, 1_000)) == 2


async def test_a_claim_waits_for_an_order(worker: Worker, redis: Any) -> None:
    claiming = asyncio.create_task(worker.store.queue.claim("w1", 1, 10_000))
    while not int((await redis.info("clients"))["blocked_clients"]):
        await asyncio.sleep(0)
    timestamp = await worker.queued()

    assert [claim.entry for claim in await claiming] == [timestamp]


async def test_a_claim_waits_no_longer_than_it_is_told(worker: Worker) -> None:
    async with asyncio.timeout(10):
        assert await worker.store.queue.claim("w1", 1, 20) == []


async def test_workers_never_claim_the_same(worker: Worker) -> None:
    for _ in range(100):
        await worker.queued()

    async def claim(name: str) -> list[str]:
        claimed: list[str] = []
        while claims := await worker.store.queue.claim(name, 7, 50):
            claimed += [one.entry for one in claims]
        return claimed

    shares = await together(*(claim(f"w{number}") for number in range(4)))

    entries = [entry for share in shares for entry in share]
    assert len(entries) == len(set(entries)) == 100


async def test_a_worker_finds_again_what_it_holds(worker: Worker) -> None:
    claims = [await worker.claimed() for _ in range(3)]

    assert await worker.store.queue.claims_of("w1") == claims
    assert await worker.store.queue.claims_of("w2") == []


async def test_a_group_is_made_where_there_is_none(store: Store, redis: Any) -> None:
    await store.queue.enqueue(Order(EXPERIMENT, "trigger"))
    assert await store.queue.claim("w1", 1, 20) == []

    assert len(await store.queue.claim("w1", 1, 20)) == 1


async def test_a_group_that_is_there_stays(worker: Worker) -> None:
    claim = await worker.claimed()
    await worker.store.queue.create_group()

    assert await worker.store.queue.claims_of("w1") == [claim]


async def test_the_depth_tells_what_waits_and_what_is_held(worker: Worker) -> None:
    depth = await worker.store.queue.depth()
    assert (depth.waiting, depth.held, depth.delayed) == (0, 0, 0)

    for _ in range(3):
        await worker.queued()
    run = await worker.begun()
    await worker.begun()
    await run.retry(60)

    depth = await worker.store.queue.depth()
    assert (depth.waiting, depth.held, depth.delayed) == (3, 1, 1)


# -- nonsense -------------------------------------------------------------------------


NONSENSE = [
    {"order": "not json"},
    {"order": "[]"},
    {"order": '{"trigger": "cron"}'},
    {"order": '{"experiment_id": "e", "trigger": "cron", "attempt": "x"}'},
    {"other": "x"},
]


@pytest.mark.parametrize("fields", NONSENSE)
async def test_nonsense_in_the_queue_is_put_away_and_told(
    fields: dict[str, str], worker: Worker, redis: Any
) -> None:
    entry = await redis.xadd(QUEUE, fields)
    good = await worker.queued()
    with structlog.testing.capture_logs() as lines:
        claims = await worker.store.queue.claim("w1", 5, 1_000)

    assert [claim.entry for claim in claims] == [good]
    assert [one for one, _ in await redis.xrange(QUEUE)] == [good]
    assert await pending(redis) == 1
    [line] = lines
    assert (line["event"], line["entry"]) == ("order.unreadable", entry)
    assert f"queue entry {entry}" in line["error"]


async def test_nonsense_alone_is_no_claim(worker: Worker, redis: Any) -> None:
    await redis.xadd(QUEUE, {"order": "x"})

    assert await worker.store.queue.claim("w1", 5, 1_000) == []
    assert await orders(redis) == []


async def test_nonsense_that_a_dead_worker_held_is_put_away(worker: Worker, redis: Any) -> None:
    claim = await worker.claimed()
    await redis.xadd(QUEUE, {"order": "x"})
    await redis.xreadgroup("executors", "w1", {QUEUE: ">"})

    assert await worker.store.queue.claims_of("w1") == [claim]
    assert await pending(redis) == 1


async def test_an_entry_that_somebody_deleted_is_held_by_nobody(worker: Worker, redis: Any) -> None:
    gone, kept = await worker.claimed(), await worker.claimed()
    await redis.xdel(QUEUE, gone.entry)

    assert await worker.store.queue.claims_of("w1") == [kept]
    assert await pending(redis) == 1


async def test_nonsense_does_not_keep_its_experiment_busy(worker: Worker, redis: Any) -> None:
    order = '{"experiment_id": "exp:1", "trigger": "cron", "attempt": "x"}'
    entry = await redis.xadd(QUEUE, {"order": order})
    await redis.zadd(keys.open_runs(EXPERIMENT), {entry: 0})
    await worker.store.queue.claim("w1", 1, 1_000)

    assert not await worker.store.due_times.has_open_runs(EXPERIMENT)


@pytest.mark.parametrize("fields", [{"order": "x"}, {"order": '{"experiment_id": 5}'}, {"other": "x"}])
async def test_nonsense_is_answered_once(
    fields: dict[str, str], worker: Worker, redis: Any, ear: Ear
) -> None:
    entry = await redis.xadd(QUEUE, fields)
    await redis.xreadgroup("executors", "w1", {QUEUE: ">"})
    await together(*(worker.store.queue.claims_of("w1") for _ in range(3)))

    [(channel, answer)] = await heard_until_now(ear, worker)
    assert channel == keys.RESULTS
    assert f"queue entry {entry}" in answer.pop("error")
    assert answer == {
        "type": "experiment_failed",
        "experiment_id": None,
        "run_id": None,
        "status": "failed",
        "error_type": "ContractError",
    }
    assert len(await journal(redis)) == 2


async def heard_until_now(ear: Ear, worker: Worker) -> list[tuple[str, dict[str, Any]]]:
    """What was published, the answers without an experiment among it."""
    await worker.store.triggers.announce({"experiment_id": "after", "status": "x"})
    await ear.neighbour.result("after")
    return [one for one in ear.neighbour.heard if one[1]["experiment_id"] != "after"]


@pytest.mark.parametrize("shape", KINDS)
async def test_an_order_that_cant_be_read_ends_the_run_that_it_names(
    shape: str, worker: Worker, redis: Any, ear: Ear
) -> None:
    await publish(redis, shape)
    run = await worker.begun()
    await run.retry()
    nonsense = {"experiment_id": EXPERIMENT, "timestamp": run.claim.order.timestamp, "attempt": "x"}
    for _ in range(2):
        await redis.xadd(QUEUE, {"order": json.dumps(nonsense)})
        await worker.store.queue.claim("w1", 1, 1_000)

    record = await worker.store.runs.record(run.id)
    assert (record["status"], record["error_type"]) == ("failed", "ContractError")
    assert 0 < await redis.pttl(keys.run(run.id)) <= 3_600_000
    assert (await ear.all())[-1][1]["run_id"] == run.id
    assert (await ear.names())[1:] == ["run_retrying", "failed"]
    assert await state_of(redis) == "failed"
    assert not await worker.store.due_times.has_open_runs(EXPERIMENT)


async def test_an_order_that_cant_be_read_does_not_end_a_run_that_is_under_way_elsewhere(
    worker: Worker, redis: Any, ear: Ear
) -> None:
    run = await worker.begun()
    nonsense = {"experiment_id": EXPERIMENT, "timestamp": run.claim.order.timestamp, "attempt": "x"}
    await redis.xadd(QUEUE, {"order": json.dumps(nonsense)})
    await worker.store.queue.claim("w1", 1, 1_000)

    assert len(await orders(redis)) == 1
    assert await run.finish() is Finished.FINISHED
    assert (await ear.names())[-1] == "completed"


async def test_an_order_that_cant_be_read_gives_up_the_room_that_its_run_took(
    worker: Worker, redis: Any
) -> None:
    one = [Limit("account", max_concurrent=1)]
    claim = await worker.claimed()
    await worker.begin(claim, limits=one)
    other = await worker.claimed("other")
    assert (await worker.begin(other, limits=one))[0] is Begun.WAITING
    nonsense = {"experiment_id": EXPERIMENT, "timestamp": claim.order.timestamp, "attempt": "x"}
    entry = await redis.xadd(QUEUE, {"order": json.dumps(nonsense)})
    await redis.hset(keys.run(claim.order.run_id), "lease", f"w1/normal/{entry}")  # it had begun, as it were
    await worker.store.queue.claim("w1", 1, 1_000)

    assert (await worker.claim()).order.experiment_id == "other"


async def test_whoever_looks_at_the_queue_does_not_stumble_over_nonsense(worker: Worker, redis: Any) -> None:
    await redis.xadd(QUEUE, {"order": "x"})
    timestamp = await worker.queued()
    waiting = await worker.store.queue.waiting()

    assert [claim.entry for claim in waiting] == [timestamp]
    assert len(await redis.xrange(QUEUE)) == 2


async def test_an_order_of_a_newer_version_is_performed(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat")
    await redis.xadd(
        QUEUE, {"order": '{"experiment_id":"exp:1","trigger":"x","attempt":1,"lane":[1]}', "v": "9"}
    )
    claim = await worker.claim()
    await redis.zadd(keys.open_runs(EXPERIMENT), {claim.entry: 0})

    answer, _ = await worker.begin(claim)

    assert answer is Begun.BEGUN


# -- a server that lost everything ----------------------------------------------------


async def test_after_the_data_is_gone_nothing_is_held(worker: Worker, redis: Any) -> None:
    run, claim = await worker.begun(), await worker.claimed()
    await redis.flushall()

    assert await worker.store.queue.claims_of("w1") == []
    assert (await worker.begin(claim))[0] is Begun.LOST
    assert not await run.requeue()
    assert not await run.retry()
    assert await run.finish() == "stale"
    assert await run.reject() == "done"
    assert await worker.store.workers.forget("w1")
    assert await worker.store.queue.promote() == (0, None)
    assert set(await redis.keys("*")) <= set(QUEUES)


async def test_a_claim_that_waits_survives_the_loss_of_the_data(worker: Worker, redis: Any) -> None:
    claiming = asyncio.create_task(worker.claim())
    while not int((await redis.info("clients"))["blocked_clients"]):
        await asyncio.sleep(0)
    await redis.flushall()
    timestamp = await worker.queued()

    assert (await claiming).entry == timestamp
