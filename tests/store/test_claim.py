"""Orders are handed out: each to one worker, the oldest first, and nonsense to nobody."""

import asyncio
from typing import Any

import pytest
import structlog

from services.executor.store import Begun, Finished, Order, Store
from services.executor.store.claims import QUEUES
from shared import keys
from shared.errors import StoreError
from tests.store.conftest import (
    EXPERIMENT,
    KINDS,
    QUEUE,
    Ear,
    Worker,
    held,
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

    assert [len(await worker.take(3)) for _ in range(3)] == [3, 2, 0]


async def test_an_order_wakes_one_of_the_workers_that_wait(worker: Worker, redis: Any) -> None:
    waiting = [asyncio.create_task(worker.store.queue.wait(f"w{number}", 10)) for number in range(3)]
    while int((await redis.info("clients"))["blocked_clients"]) < 3:
        await asyncio.sleep(0)
    await worker.queued()
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    await redis.ping()

    assert [one.done() for one in waiting].count(True) == 1
    for one in waiting:
        one.cancel()


async def test_a_claim_without_room_for_all_wakes_another_worker(worker: Worker, redis: Any) -> None:
    for _ in range(3):
        await worker.queued()
    assert await worker.store.queue.wait("w1", 5)
    await worker.take(2)

    assert await worker.store.queue.wait("w2", 5)


async def test_a_wait_takes_no_longer_than_it_is_told(worker: Worker) -> None:
    async with asyncio.timeout(10):
        assert not await worker.store.queue.wait("w1", 0.02)


async def test_workers_never_claim_the_same(worker: Worker) -> None:
    for _ in range(100):
        await worker.queued()

    async def claim(name: str) -> list[str]:
        claimed: list[str] = []
        while claims := await Worker(worker.store, name).take(7):
            claimed += [one.entry for one in claims]
        return claimed

    shares = await together(*(claim(f"w{number}") for number in range(4)))

    entries = [entry for share in shares for entry in share]
    assert len(entries) == len(set(entries)) == 100


async def test_a_worker_finds_again_what_it_holds(worker: Worker) -> None:
    claims = [await worker.claimed() for _ in range(3)]

    assert [one.lease for one in await worker.store.queue.claims_of("w1")] == [one.lease for one in claims]
    assert await worker.store.queue.claims_of("w2") == []


async def test_a_group_is_made_where_there_is_none(store: Store, redis: Any) -> None:
    await store.queue.enqueue(Order(EXPERIMENT, "trigger"))
    assert (await store.queue.claim("w1", 1)).claims == ()

    assert len((await store.queue.claim("w1", 1)).claims) == 1


async def test_a_group_that_is_there_stays(worker: Worker) -> None:
    claim = await worker.claimed()
    await worker.store.queue.create_group()

    assert [one.lease for one in await worker.store.queue.claims_of("w1")] == [claim.lease]


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
    {"order": "not an order"},
    {"order": "normal\te\n\n\n{}"},
    {"order": "normal\te\t\tx\tcron\t\n\n\n{}"},
    {"order": "normal\te\t\t1\tcron\t\n\n\nnot json"},
    {"order": 'normal\te\t\t1\tcron\t\n\n\n{"losses": "x"}'},
    {"order": "normal\te\tnow\t1\tcron\t\n\n\n{}"},
    {"other": "x"},
]


def nonsense(timestamp: str | None = "") -> str:
    """An order that names its run and can't be read."""
    return f'normal\t{EXPERIMENT}\t{timestamp}\t1\tcron\t\n\n\n{{"losses": "x"}}'


@pytest.mark.parametrize("fields", NONSENSE)
async def test_nonsense_in_the_queue_is_put_away_and_told(
    fields: dict[str, str], worker: Worker, redis: Any
) -> None:
    entry = await redis.xadd(QUEUE, fields)
    await redis.zadd(keys.open_runs("e"), {entry: 0})
    good = await worker.queued()
    with structlog.testing.capture_logs() as lines:
        claims = await worker.take(5)

    assert [claim.entry for claim in claims] == [good]
    assert [one for one, _ in await redis.xrange(QUEUE)] == [good]
    assert await pending(redis) == 1
    [line] = lines
    assert (line["event"], line["entry"]) == ("order.unreadable", entry)
    assert f"queue entry {entry}" in line["error"]


async def test_nonsense_alone_is_no_claim(worker: Worker, redis: Any) -> None:
    await redis.xadd(QUEUE, {"order": "x"})

    assert await worker.take(5) == []
    assert await orders(redis) == []


async def test_nonsense_that_a_dead_worker_held_is_put_away(worker: Worker, redis: Any) -> None:
    claim = await worker.claimed()
    await redis.xadd(QUEUE, {"order": "x"})
    await redis.xreadgroup("executors", "w1", {QUEUE: ">"})

    assert [one.lease for one in await worker.store.queue.claims_of("w1")] == [claim.lease]
    assert await pending(redis) == 1


async def test_an_entry_that_somebody_deleted_is_held_by_nobody(worker: Worker, redis: Any) -> None:
    gone, kept = await worker.claimed(), await worker.claimed()
    await redis.xdel(QUEUE, gone.entry)

    assert [one.lease for one in await worker.store.queue.claims_of("w1")] == [kept.lease]
    assert await pending(redis) == 1


async def test_nonsense_does_not_keep_its_experiment_busy(worker: Worker, redis: Any) -> None:
    entry = await redis.xadd(QUEUE, {"order": nonsense()})
    await redis.zadd(keys.open_runs(EXPERIMENT), {entry: 0})
    await worker.take()

    assert not await worker.store.due_times.has_open_runs(EXPERIMENT)


@pytest.mark.parametrize("fields", [{"order": "x"}, {"order": "normal\t\n"}, {"other": "x"}])
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
    broken = nonsense(run.claim.order.timestamp)
    for _ in range(2):
        await redis.xadd(QUEUE, {"order": broken})
        await worker.take()

    record = await worker.store.runs.record(run.id)
    assert (record["status"], record["error_type"]) == ("failed", "ContractError")
    assert 0 < await redis.pttl(keys.run(run.id)) <= 3_600_000
    assert (await ear.all())[-1][1]["run_id"] == run.id
    assert (await ear.names())[1:] == ["run_retrying", "run_started", "failed"]
    assert await state_of(redis) == "failed"
    assert not await worker.store.due_times.has_open_runs(EXPERIMENT)


async def test_an_order_that_cant_be_read_does_not_end_a_run_that_is_under_way_elsewhere(
    worker: Worker, redis: Any, ear: Ear
) -> None:
    run = await worker.begun()
    broken = nonsense(run.claim.order.timestamp)
    await redis.xadd(QUEUE, {"order": broken})
    await worker.take()

    assert len(await orders(redis)) == 1
    assert await run.finish() is Finished.FINISHED
    assert (await ear.names())[-1] == "completed"


async def test_an_order_that_cant_be_read_gives_up_the_room_that_its_run_took(
    worker: Worker, redis: Any
) -> None:
    one = {"max_concurrent": 1, "limit_key": "account"}
    claim = await worker.claimed(limits=one)
    await worker.queued("other", one)
    assert await worker.take() == []
    broken = nonsense(claim.order.timestamp)
    entry = await redis.xadd(QUEUE, {"order": broken})
    await redis.hset(keys.run(claim.order.run_id), "lease", f"w1/normal/{entry}")  # it had begun, as it were
    await worker.take()

    assert (await worker.claim()).order.experiment_id == "other"


async def test_whoever_looks_at_the_queue_does_not_stumble_over_nonsense(worker: Worker, redis: Any) -> None:
    await redis.xadd(QUEUE, {"order": "x"})
    timestamp = await worker.queued()
    waiting = await worker.store.queue.waiting()

    assert [claim.entry for claim in waiting] == [timestamp]
    assert len(await redis.xrange(QUEUE)) == 2


async def test_an_order_of_a_newer_version_is_performed(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat")
    await redis.xadd(QUEUE, {"order": 'normal\texp:1\t1-1\t1\tx\t\tnew\n\n\n{"lane":[1]}', "v": "9"})
    await redis.zadd(keys.open_runs(EXPERIMENT), {"1-1": 0})
    claim = await worker.claim()

    assert (claim.begun, claim.order.others) == (Begun.BEGUN, {"lane": [1]})


# -- a server that lost everything ----------------------------------------------------


async def test_after_the_data_is_gone_nothing_is_held(worker: Worker, redis: Any) -> None:
    run, claim = await worker.begun(), await held(worker, redis)
    await redis.flushall()

    assert await worker.store.queue.claims_of("w1") == []
    with pytest.raises(StoreError, match="NOGROUP"):
        await worker.store.queue.begin_held("w1", [claim])
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
