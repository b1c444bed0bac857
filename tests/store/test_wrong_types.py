"""Keys that somebody has made another Redis type of: nothing is half done, and every run comes to its end."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import structlog

from services.executor.store import Begun, Decision, Finished, NotedSchedule, Order, Position, Store
from services.executor.store.orders import PRIORITIES
from shared import keys
from shared.errors import StoreError, StoreUnavailableError
from tests.store.asked import WRITES
from tests.store.conftest import (
    EXPERIMENT,
    QUEUE,
    Ear,
    Run,
    Worker,
    event_of,
    everything,
    held,
    orders,
    pending,
    publish,
    state_of,
)
from tests.store.test_cancel import cancel

LIMIT = {"max_concurrent": 1, "max_per_minute": 60, "limit_key": "account"}
LIMIT_KEYS = [keys.holders("key:account"), keys.blocked("key:account"), keys.rate("key:account")]
Ask = Callable[[Run], Awaitable[Any]]
ASKED: dict[str, Ask] = WRITES | {
    "promote": lambda run: run.worker.store.queue.promote(),
    "cancel": lambda run: cancel(run.worker.store, run.id),
    "forget": lambda run: run.worker.store.workers.forget("w1"),
    "lease": lambda run: run.worker.store.submissions.lease(EXPERIMENT, "p", 60),
    "note_schedules": lambda run: run.worker.store.due_times.note([NotedSchedule("scheduled", "y", 6)]),
    "fire": lambda run: run.worker.store.due_times.fire(
        Decision("scheduled", 5, 6, [Order("scheduled", "cron")], "allow")
    ),
}
NAMED: dict[str, Callable[[Run], list[str]]] = {
    "enqueue": lambda run: [QUEUE, keys.admitted("m"), keys.request(EXPERIMENT, "r")],
    "emit": lambda run: [keys.run(run.id)],
    "log": lambda run: [keys.logs(run.id), keys.run(run.id)],
    "retry": lambda run: [QUEUE, keys.run(run.id), keys.open_runs(EXPERIMENT), keys.retries()],
    "requeue": lambda run: [QUEUE],
    "promote": lambda run: [keys.retries(), keys.nudges(), *map(keys.queue, PRIORITIES)],
    "cancel": lambda run: [keys.run(run.id), keys.open_runs(EXPERIMENT)],
    "refuse": lambda run: [keys.admitted("m")],
    "join": lambda run: [keys.listeners(), keys.ears(), keys.admitted("marker")],
    "heartbeat": lambda run: [keys.workers(), keys.listeners(), keys.silence("w1")],
    "forget": lambda run: [keys.workers(), keys.listeners(), QUEUE],
    "lease": lambda run: [keys.planner(EXPERIMENT)],
    "note_schedules": lambda run: [keys.noted_schedules(), keys.due_times()],
    "fire": lambda run: [keys.due_times(), QUEUE],
    "speedrun": lambda run: [keys.cycle(), keys.turns(), QUEUE],
}


async def spoil(redis: Any, key: str) -> None:
    """Make of a key what nothing of ours is there."""
    await redis.delete(key)
    if key in ZSETS:
        await redis.set(key, "x")
    else:
        await redis.zadd(key, {"x": 1})


ZSETS = {
    keys.open_runs(EXPERIMENT), keys.retries(), keys.nudges(), keys.workers(), keys.listeners(),
    keys.due_times(), keys.turns(),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
async def test_what_cant_be_done_as_a_whole_is_not_begun(name: str, run: Run, redis: Any, ear: Ear) -> None:
    for key in NAMED[name](run):
        kept = await redis.dump(key)
        await spoil(redis, key)
        before, heard = await everything(redis), len(await ear.all())

        with pytest.raises(StoreError, match=f"WRONGTYPE {key} is a Redis ") as refusal:
            await ASKED[name](run)
        assert not isinstance(refusal.value, StoreUnavailableError)
        assert await everything(redis) == before
        assert len(await ear.all()) == heard
        await redis.delete(key)
        if kept is not None:
            await redis.restore(key, 0, kept)


async def test_a_run_that_cant_begin_is_rejected(worker: Worker, redis: Any, ear: Ear) -> None:
    await publish(redis, "flat")
    await worker.ready()
    claim = await held(worker, redis, limits=LIMIT)
    spoiled = [
        keys.run(claim.order.run_id), keys.open_runs(EXPERIMENT), keys.retries(), keys.nudges(), *LIMIT_KEYS,
    ]  # fmt: skip
    for key in spoiled:
        kept = await redis.dump(key)
        await spoil(redis, key)
        before = await everything(redis)

        [broken] = (await worker.store.queue.begin_held("w1", [claim])).claims
        assert broken.begun is Begun.BROKEN
        assert f"WRONGTYPE {key} is a Redis " in broken.error
        assert await everything(redis) == before
        await redis.delete(key)
        if kept is not None:
            await redis.restore(key, 0, kept)
    await spoil(redis, keys.run(claim.order.run_id))
    await spoil(redis, keys.open_runs(EXPERIMENT))
    run = Run(worker, claim)

    assert await run.finish() is Finished.STALE
    assert await run.reject() is Finished.FINISHED
    assert await run.reject() is Finished.DONE
    assert await ear.names() == ["error", "cancelled"]
    assert (await orders(redis), await pending(redis)) == ([], 0)


@pytest.mark.parametrize("key", [keys.metrics(EXPERIMENT), keys.journal(), keys.open_runs(EXPERIMENT)])
async def test_a_run_ends_without_a_key_that_it_cant_use_and_says_so_once(
    key: str, worker: Worker, redis: Any, ear: Ear
) -> None:
    await publish(redis, "flat")
    runs = [await worker.begun(), await worker.begun()]
    await spoil(redis, key)
    spoiled = await redis.dump(key)
    with structlog.testing.capture_logs() as lines:
        answers = [await run.finish() for run in runs]

    assert answers == [Finished.FINISHED] * 2
    assert [(line["event"], line["key"]) for line in lines] == [("key.unusable", key)]
    assert (await ear.names())[2:] == ["items_processed", "run_completed", "completed"] * 2
    assert await redis.dump(key) == spoiled
    assert (await orders(redis), await pending(redis)) == ([], 0)
    assert [(await worker.store.runs.record(run.id))["status"] for run in runs] == ["completed"] * 2
    assert await state_of(redis) == "run"


async def test_a_run_without_limits_begins_and_ends_whatever_limits_need(worker: Worker, redis: Any) -> None:
    for key in (keys.retries(), keys.nudges()):
        await spoil(redis, key)
    run = await worker.begun()

    assert await run.finish() is Finished.FINISHED


async def test_a_run_whose_record_is_none_any_more_is_reported_by_whoever_finds_its_claim(
    worker: Worker, redis: Any, ear: Ear
) -> None:
    run = await worker.begun()
    await spoil(redis, keys.run(run.id))
    assert await run.finish() is Finished.STALE
    [claim] = await worker.store.queue.claims_of(worker.name)
    [found] = (await worker.store.queue.begin_held(worker.name, [claim])).claims

    assert found.begun is Begun.BROKEN
    assert "WRONGTYPE experiment_runs:" in found.error
    assert await run.reject() is Finished.FINISHED
    assert (await ear.names())[-1] == "cancelled"
    assert await pending(redis) == 0


async def test_a_run_is_queued_where_open_runs_cant_be_noted(store: Store, redis: Any) -> None:
    await store.due_times.note([NotedSchedule(EXPERIMENT, "x", 5)])
    await spoil(redis, keys.open_runs(EXPERIMENT))
    before = await redis.dump(keys.open_runs(EXPERIMENT))
    assert await store.queue.enqueue(Order(EXPERIMENT, "trigger"), Position("m", 0))
    fired = await store.due_times.fire(Decision(EXPERIMENT, 5, 6, [Order(EXPERIMENT, "cron")], "skip"))
    assert fired.what == "fired"
    _, chosen = await store.due_times.speedrun([Order(EXPERIMENT, "speedrun")], 60, 1)

    assert chosen == [EXPERIMENT]
    assert [one.trigger for one in await orders(redis)] == ["trigger", "cron", "speedrun"]
    assert await redis.dump(keys.open_runs(EXPERIMENT)) == before


async def test_a_claim_is_given_back_whatever_has_become_of_its_record(worker: Worker, redis: Any) -> None:
    run = await worker.begun()
    for key in (keys.run(run.id), keys.open_runs(EXPERIMENT)):
        await spoil(redis, key)

    assert await run.requeue()
    assert (len(await orders(redis)), await pending(redis)) == (1, 0)


async def test_a_limit_that_cant_be_read_holds_up_nobodys_end(worker: Worker, redis: Any, ear: Ear) -> None:
    run = await worker.begun(limits=LIMIT)
    for key in LIMIT_KEYS:
        await spoil(redis, key)

    assert await run.finish() is Finished.FINISHED
    assert await pending(redis) == 0


async def test_events_are_said_where_they_cant_be_kept(worker: Worker, redis: Any, ear: Ear) -> None:
    run = await worker.begun()
    for key in (keys.metrics(EXPERIMENT), keys.journal()):
        await spoil(redis, key)
    assert await worker.store.runs.emit(run.claim, [event_of(run.claim, "progress")])
    await worker.store.triggers.announce({"experiment_id": "e", "status": "announced"})

    assert (await ear.names())[1:] == ["progress", "announced"]
