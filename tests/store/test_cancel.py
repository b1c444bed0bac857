"""A run whose end somebody asks for: one that waits ends at once, one under way by whoever has it."""

from typing import Any

import pytest

from services.executor.store import Begun, Claim, Finished, Order, RunCancellation, Store
from services.executor.store.orders import PRIORITIES
from shared import keys
from tests.store.conftest import (
    EXPERIMENT,
    Ear,
    Run,
    Worker,
    everything,
    held,
    orders,
    pending,
    publish,
    state_of,
    together,
)


async def cancel(store: Store, run_id: str) -> RunCancellation:
    experiment_id, _, timestamp = run_id.rpartition(":")
    order = Order(experiment_id, "", timestamp=timestamp)
    named = {"experiment_id": experiment_id, "run_id": run_id}
    return await store.runs.cancel(
        order, {"status": "cancelled"}, named | {"event": "error"}, named | {"status": "cancelled"}
    )


async def test_a_run_that_waits_ends_at_once(worker: Worker, redis: Any, ear: Ear) -> None:
    await publish(redis, "flat")
    run_id = f"{EXPERIMENT}:{await worker.queued()}"
    assert await cancel(worker.store, run_id) is RunCancellation.CANCELLED

    assert (await worker.store.runs.record(run_id))["status"] == "cancelled"
    assert await ear.names() == ["error", "cancelled"]
    assert not await worker.store.due_times.has_open_runs(EXPERIMENT)
    assert await state_of(redis) == "ready"
    assert 0 < await redis.pttl(keys.run(run_id)) <= 3_600_000


@pytest.mark.parametrize("priority", PRIORITIES)
@pytest.mark.parametrize("experiment_id", [EXPERIMENT, 'an "odd" \\ one'])
async def test_a_run_that_was_cancelled_while_it_waited_is_never_claimed(
    experiment_id: str, priority: str, worker: Worker
) -> None:
    first = await worker.queued(experiment_id, priority=priority)
    other = await worker.queued(experiment_id, priority=priority)
    await cancel(worker.store, f"{experiment_id}:{first}")

    assert [one.order.timestamp for one in await worker.take(5)] == [other]
    assert (await worker.store.queue.depth()).waiting == 0


async def test_the_run_of_another_experiment_with_the_same_timestamp_stays(
    worker: Worker, redis: Any
) -> None:
    timestamp = await worker.queued()
    same = Order("another", "trigger", priority="low", params={"experiment_id": EXPERIMENT})
    await redis.xadd(keys.queue("low"), {"order": same.encode()}, id=timestamp)
    await redis.zadd(keys.open_runs("another"), {timestamp: 0})
    await cancel(worker.store, f"{EXPERIMENT}:{timestamp}")

    [claim] = await worker.take(5)
    assert claim.order.run_id == f"another:{timestamp}"


async def test_a_run_that_was_cancelled_once_it_was_claimed_never_begins(
    worker: Worker, redis: Any, ear: Ear
) -> None:
    await publish(redis, "flat")
    claim = await held(worker, redis)
    await cancel(worker.store, claim.order.run_id)

    assert (await worker.store.queue.begin_held("w1", [claim])).claims == []
    assert await orders(redis) == []
    assert await pending(redis) == 0
    assert await ear.names() == ["error", "cancelled"]
    assert await state_of(redis) == "ready"


async def test_a_run_that_was_claimed_but_did_not_begin_never_does(worker: Worker, redis: Any) -> None:
    claim = await held(worker, redis)
    assert await cancel(worker.store, claim.order.run_id) is RunCancellation.CANCELLED
    assert await worker.store.queue.requeue(claim, claim.order)

    assert await worker.take() == []
    assert (await orders(redis), await pending(redis)) == ([], 0)
    assert not await worker.store.due_times.has_open_runs(EXPERIMENT)


async def test_a_run_between_two_attempts_ends_at_once(worker: Worker, redis: Any, ear: Ear) -> None:
    run = await worker.begun()
    await run.retry()
    assert await cancel(worker.store, run.id) is RunCancellation.CANCELLED
    await worker.store.queue.promote()

    assert await worker.take() == []
    assert (await worker.store.runs.record(run.id))["status"] == "cancelled"
    assert (await ear.names())[-2:] == ["error", "cancelled"]


async def test_a_run_under_way_is_marked(worker: Worker, redis: Any, ear: Ear) -> None:
    run, other = await worker.begun(), await worker.begun()
    assert await cancel(worker.store, run.id) is RunCancellation.CANCELLING

    assert await worker.store.runs.to_be_cancelled([run.id, other.id, "never:1-1"]) == {run.id}
    assert await worker.store.runs.to_be_cancelled([]) == set()
    assert await run.finish() is Finished.FINISHED
    assert "cancelled" not in await ear.names()


@pytest.mark.parametrize("ended", ["requeue", "retry"])
async def test_a_run_whose_attempt_ended_otherwise_once_it_was_marked_is_not_begun_again(
    worker: Worker, redis: Any, ended: str
) -> None:
    run = await worker.begun()
    await cancel(worker.store, run.id)
    assert await (run.requeue() if ended == "requeue" else run.retry(60))
    await worker.store.queue.promote()

    [claim] = await worker.take()
    assert claim.begun is Begun.CANCELLED
    assert await Run(worker, claim).reject() is Finished.FINISHED
    assert (await worker.store.runs.record(run.id))["status"] == "cancelled"
    assert (await orders(redis), await pending(redis)) == ([], 0)


async def test_a_run_that_is_over_stays_as_it_is(worker: Worker, redis: Any) -> None:
    run = await worker.begun()
    await run.finish()
    before = await everything(redis)

    assert await cancel(worker.store, run.id) is RunCancellation.OVER
    assert await cancel(worker.store, f"{EXPERIMENT}:1-1") is RunCancellation.OVER
    assert await everything(redis) == before


async def test_who_asks_again_learns_that_it_was_done(worker: Worker, redis: Any) -> None:
    waiting, run = f"{EXPERIMENT}:{await worker.queued()}", await worker.begun("other")
    await cancel(worker.store, waiting)
    await run.reject()
    before = await everything(redis)

    assert await cancel(worker.store, waiting) is RunCancellation.ALREADY
    assert await cancel(worker.store, run.id) is RunCancellation.ALREADY
    assert await everything(redis) == before


async def test_of_many_who_ask_one_ends_it(worker: Worker, ear: Ear) -> None:
    run_id = f"{EXPERIMENT}:{await worker.queued()}"
    answers = await together(*(cancel(worker.store, run_id) for _ in range(10)))

    assert sorted(answers) == ["already"] * 9 + ["cancelled"]
    assert await ear.names() == ["error", "cancelled"]


@pytest.mark.parametrize("seed", range(5))
async def test_of_a_begin_and_a_cancellation_one_is_first(
    seed: int, worker: Worker, redis: Any, ear: Ear
) -> None:
    claims = [await held(worker, redis, f"e{number}") for number in range(10)]

    async def race(claim: Claim, number: int) -> tuple[int, RunCancellation]:
        asked = [
            worker.store.queue.begin_held("w1", [claim]),
            cancel(worker.store, claim.order.run_id),
        ]
        if (number + seed) % 2:
            cancelled, taken = await together(*reversed(asked))
        else:
            taken, cancelled = await together(*asked)
        return len(taken.claims), cancelled

    answers = await together(*(race(claim, number) for number, claim in enumerate(claims)))

    assert set(answers) <= {(1, RunCancellation.CANCELLING), (0, RunCancellation.CANCELLED)}


async def test_a_cancelled_run_gives_up_its_place_in_the_line(worker: Worker, redis: Any) -> None:
    one = {"max_concurrent": 1, "limit_key": "account"}
    first = await worker.begun("first", one)
    waiting = [await worker.queued(name, one) for name in ("a", "b")]
    assert await worker.take(2) == []
    await cancel(worker.store, f"a:{waiting[0]}")
    await first.finish()

    claim = await worker.claim()
    assert (claim.order.experiment_id, claim.begun) == ("b", Begun.BEGUN)
