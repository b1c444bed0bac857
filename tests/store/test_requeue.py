"""A claimed run goes back: now or later, begun or not, and only by who holds it."""

import json
from typing import Any

from msgspec.structs import replace

from services.executor.store import Begun
from shared import keys
from tests.store.conftest import EXPERIMENT, Worker, everything, held, orders, pending, publish, together


async def test_a_run_that_goes_back_can_be_claimed_by_another(worker: Worker, redis: Any) -> None:
    claim = await held(worker, redis, params={"a": 1})
    assert await worker.store.queue.requeue(claim, claim.order)
    again = await Worker(worker.store, "w2").claim()

    assert again.order == claim.order
    assert again.entry != claim.entry
    assert await pending(redis) == 1
    assert await redis.zscore(keys.open_runs(EXPERIMENT), claim.order.timestamp) == 1


async def test_a_run_that_never_began_has_no_record_when_it_goes_back(worker: Worker, redis: Any) -> None:
    claim = await held(worker, redis)
    await worker.store.queue.requeue(claim, claim.order)

    assert await redis.exists(keys.run(claim.order.run_id)) == 0


async def test_a_run_that_had_begun_says_so_when_it_goes_back(worker: Worker, redis: Any) -> None:
    run = await worker.begun()
    order = run.claim.order.after_loss({"error": "w1 died"})
    fields = ("status", "running", "attempts", '[{"error":"w1 died"}]')
    assert await worker.store.queue.requeue(run.claim, order, fields)

    record = await redis.hgetall(keys.run(run.id))
    assert (record["lease"], record["status"]) == ("", "running")
    assert json.loads(record["attempts"]) == [{"error": "w1 died"}]
    assert (await orders(redis))[0].losses == 1


async def test_a_run_may_go_back_without_a_word(worker: Worker, redis: Any) -> None:
    run = await worker.begun()
    assert await worker.store.queue.requeue(run.claim, run.claim.order, ())

    assert (await redis.hgetall(keys.run(run.id)))["lease"] == ""


async def test_only_who_holds_a_claim_gives_it_back(worker: Worker, redis: Any) -> None:
    run = await worker.begun()
    thief = replace(run.claim, worker="w2")
    before = await everything(redis)

    assert not await worker.store.queue.requeue(thief, thief.order)
    assert await everything(redis) == before


async def test_of_many_who_give_a_claim_back_one_does(worker: Worker, redis: Any) -> None:
    run = await worker.begun()
    answers = await together(*(run.requeue() for _ in range(20)))

    assert sum(answers) == 1
    assert len(await orders(redis)) == 1


async def test_a_run_goes_behind_those_that_wait(worker: Worker) -> None:
    claim = await worker.claimed("a")
    await worker.queued("b")
    await worker.store.queue.requeue(claim, claim.order)

    assert [(await worker.claim()).order.experiment_id for _ in range(2)] == ["b", "a"]


async def test_a_run_that_went_back_begins_like_a_new_one(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat")
    run = await worker.begun()
    await run.requeue()
    claim = await worker.claim()

    assert claim.begun is Begun.BEGUN
    assert (await redis.hgetall(keys.run(run.id)))["lease"] == claim.lease
    assert claim.order.attempt == 1
