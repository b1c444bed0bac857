"""A cron slot becomes a run once, whoever comes first, and the schedule moves on."""

import time
from typing import Any

import pytest

from services.executor.store import Order, Plan, Store
from shared import keys
from tests.store.conftest import EXPERIMENT, QUEUE, Worker, everything, orders, together


def order_at(slot: str) -> Order:
    return Order(EXPERIMENT, "cron", scheduled_for=slot)


async def planned(store: Store, next_ms: int | None = 1_000, text: str = "0 9 * * *") -> list[str]:
    return await store.slots.plan([Plan(EXPERIMENT, text, next_ms)])


async def fire(store: Store, slot_ms: int = 1_000, next_ms: int | None = 2_000, overlap: str = "skip") -> str:
    return await store.slots.fire(EXPERIMENT, slot_ms, next_ms, [order_at(str(slot_ms))], overlap)


# -- plans ----------------------------------------------------------------------------


async def test_a_new_schedule_has_its_next_slot(store: Store, redis: Any) -> None:
    assert await planned(store) == [EXPERIMENT]

    assert await store.slots.all() == {EXPERIMENT: 1_000}
    assert await store.slots.planned() == [EXPERIMENT]
    assert await redis.hgetall(keys.plans()) == {EXPERIMENT: "0 9 * * *"}


async def test_a_slot_that_waits_stays_while_its_schedule_does(store: Store) -> None:
    await planned(store, 1_000)

    assert await planned(store, 5_000) == []
    assert await store.slots.all() == {EXPERIMENT: 1_000}


async def test_a_changed_schedule_has_another_slot(store: Store) -> None:
    await planned(store, 1_000)

    assert await planned(store, 5_000, "0 10 * * *") == [EXPERIMENT]
    assert await store.slots.all() == {EXPERIMENT: 5_000}


async def test_a_schedule_without_a_next_slot_has_none(store: Store) -> None:
    await planned(store, 1_000)

    assert await planned(store, None, "! wrong") == [EXPERIMENT]
    assert await store.slots.all() == {}
    assert await planned(store, None, "! wrong") == []


async def test_a_slot_that_was_lost_is_planned_again(store: Store, redis: Any) -> None:
    await planned(store, 1_000)
    await redis.delete(keys.slots())
    later_ms = await store.slots.now_ms() + 3_600_000

    assert await planned(store, later_ms) == []
    assert await store.slots.all() == {EXPERIMENT: later_ms}


async def test_a_slot_that_has_passed_and_fired_is_not_planned_again(store: Store, redis: Any) -> None:
    await planned(store, 1_000)
    await redis.delete(keys.slots())

    assert await planned(store, 1_000) == []
    assert await store.slots.all() == {}


async def test_a_change_is_told_to_one_worker(store: Store) -> None:
    answers = await together(*(planned(store) for _ in range(10)))

    assert sorted(answers) == [[]] * 9 + [[EXPERIMENT]]


async def test_many_are_planned_at_once(store: Store) -> None:
    plans = [Plan(f"e{number}", "x", number) for number in range(1_000)]

    assert len(await store.slots.plan(plans)) == 1_000
    assert await store.slots.plan([]) == []
    assert await store.slots.due(9) == [(f"e{number}", number) for number in range(10)]
    assert len(await store.slots.due(10_000, limit=50)) == 50
    assert await store.slots.next() == 0


async def test_a_schedule_that_is_gone_has_no_slot(store: Store) -> None:
    await planned(store)
    await store.slots.drop([EXPERIMENT, "never"])
    await store.slots.drop([])

    assert await store.slots.all() == {}
    assert await store.slots.planned() == []
    assert await store.slots.next() is None
    assert await store.slots.due(10**15) == []


async def test_slots_are_due_when_their_time_has_come(store: Store) -> None:
    await planned(store, 1_000)

    assert await store.slots.due(999) == []
    assert await store.slots.due(1_000) == [(EXPERIMENT, 1_000)]


async def test_the_clock_is_the_servers(store: Store, redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    here = time.time
    monkeypatch.setattr(time, "time", lambda: here() + 3_600)
    before, _ = await redis.time()
    now_ms = await store.slots.now_ms()
    after, _ = await redis.time()

    assert before * 1_000 <= now_ms <= (after + 1) * 1_000


# -- firing ---------------------------------------------------------------------------


async def test_a_slot_becomes_a_run_and_the_schedule_moves_on(store: Store, redis: Any) -> None:
    await planned(store)
    assert await fire(store) == "fired"

    [order] = await orders(redis)
    assert (order["experiment_id"], order["trigger"], order["scheduled_for"]) == (EXPERIMENT, "cron", "1000")
    assert await store.slots.all() == {EXPERIMENT: 2_000}
    assert await store.slots.has_open_runs(EXPERIMENT)


async def test_a_slot_is_fired_once_by_many(store: Store, redis: Any) -> None:
    await planned(store)
    answers = await together(*(fire(store) for _ in range(20)))

    assert sorted(answers) == ["fired"] + ["taken"] * 19
    assert len(await orders(redis)) == 1


async def test_slots_are_each_fired_once_by_many(store: Store, redis: Any) -> None:
    await planned(store, 0)

    async def work() -> int:
        fired = 0
        for slot in range(50):
            fired += await fire(store, slot, slot + 1, "allow") == "fired"
        return fired

    fired = await together(*(work() for _ in range(4)))

    slots = [order["scheduled_for"] for order in await orders(redis)]
    assert sum(fired) == len(slots)
    assert slots == [str(slot) for slot in range(50)]


async def test_the_last_slot_leaves_none(store: Store) -> None:
    await planned(store)

    assert await fire(store, next_ms=None) == "fired"
    assert await store.slots.all() == {}
    assert await fire(store) == "taken"


async def test_a_slot_of_a_changed_schedule_is_taken(store: Store, redis: Any) -> None:
    await planned(store, 1_000)
    await planned(store, 5_000, "0 10 * * *")
    before = await everything(redis)

    assert await fire(store) == "taken"
    assert await everything(redis) == before


async def test_a_slot_without_orders_passes(store: Store, redis: Any) -> None:
    await planned(store)

    assert await store.slots.fire(EXPERIMENT, 1_000, 2_000, [], "skip") == "passed"
    assert await orders(redis) == []
    assert await store.slots.all() == {EXPERIMENT: 2_000}


async def test_missed_slots_may_all_become_runs(store: Store, redis: Any) -> None:
    await planned(store)
    missed = [order_at(str(number)) for number in range(100)]

    assert await store.slots.fire(EXPERIMENT, 1_000, 2_000, missed, "skip") == "fired"
    assert [order["scheduled_for"] for order in await orders(redis)] == [str(number) for number in range(100)]
    assert await redis.zcard(keys.open_runs(EXPERIMENT)) == 100


@pytest.mark.parametrize(("overlap", "answer"), [("skip", "skipped"), ("queue", "fired"), ("allow", "fired")])
@pytest.mark.parametrize("open_run", ["queued", "running", "waiting for a retry"])
async def test_overlap_says_what_a_slot_does_while_a_run_is_open(
    overlap: str, answer: str, open_run: str, worker: Worker, redis: Any
) -> None:
    if open_run == "queued":
        await worker.queued()
    else:
        run = await worker.begun()
        if open_run != "running":
            await run.retry(60)
    await planned(worker.store)

    assert await fire(worker.store, overlap=overlap) == answer
    assert await worker.store.slots.all() == {EXPERIMENT: 2_000}
    assert [order["trigger"] for order in await orders(redis)].count("cron") == (answer == "fired")


async def test_a_slot_after_the_last_run_has_ended_is_fired(worker: Worker) -> None:
    await (await worker.begun()).finish()
    await planned(worker.store)

    assert await fire(worker.store) == "fired"


async def test_an_unplanned_experiment_has_no_slot_to_fire(store: Store, redis: Any) -> None:
    assert await fire(store) == "taken"
    assert await redis.exists(QUEUE) == 0
