"""A cron slot becomes a run once, whoever comes first, and the schedule moves on."""

import time
from dataclasses import replace
from typing import Any

import pytest

from services.executor.store import Decision, Fired, Order, Plan, Store, Upcoming
from shared import keys
from tests.store.conftest import EXPERIMENT, QUEUE, SHAPES, Worker, everything, orders, publish, together

FAR_MS = 10**15


def order_at(slot: str) -> Order:
    return Order(EXPERIMENT, "cron", scheduled_for=slot)


async def planned(store: Store, next_ms: int | None = 1_000, text: str = "0 9 * * *") -> list[str]:
    return await store.slots.plan([Plan(EXPERIMENT, text, next_ms)])


def decision(
    slot_ms: int = 1_000, next_ms: int | None = 2_000, overlap: str = "skip", **ahead: Any
) -> Decision:
    return Decision(EXPERIMENT, slot_ms, next_ms, [order_at(str(slot_ms))], overlap, **ahead)


async def fire(store: Store, slot_ms: int = 1_000, next_ms: int | None = 2_000, overlap: str = "skip") -> str:
    return (await store.slots.fire(decision(slot_ms, next_ms, overlap))).what


async def due(store: Store, within_ms: int = 0, **portion: int) -> list[tuple[str, int]]:
    """The experiments whose slots come next, and the slots."""
    ahead = await store.slots.ahead(within_ms, **portion)
    return [(one.experiment_id, one.slot_ms) for one in ahead.slots]


async def found(store: Store) -> Upcoming:
    """The one slot that is due."""
    [one] = (await store.slots.ahead(0)).slots
    return one


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
    assert len(await store.slots.all()) == 1_000


async def test_a_schedule_that_is_gone_has_no_slot(store: Store) -> None:
    await planned(store)
    await store.slots.drop([EXPERIMENT, "never"])
    await store.slots.drop([])

    assert await store.slots.all() == {}
    assert await store.slots.planned() == []
    assert await due(store, FAR_MS) == []


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

    assert (await store.slots.fire(replace(decision(), orders=[]))).what == "passed"
    assert await orders(redis) == []
    assert await store.slots.all() == {EXPERIMENT: 2_000}


async def test_missed_slots_may_all_become_runs(store: Store, redis: Any) -> None:
    await planned(store)
    missed = [order_at(str(number)) for number in range(100)]

    assert (await store.slots.fire(replace(decision(), orders=missed))).what == "fired"
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


async def test_no_slot_is_fired_before_its_time_by_the_clock_of_the_server(store: Store, redis: Any) -> None:
    later_ms = await store.slots.now_ms() + 3_600_000
    await planned(store, later_ms)
    before = await everything(redis)

    assert await fire(store, later_ms) == "early"
    assert await everything(redis) == before


async def test_it_is_told_how_late_a_slot_is_by_the_clock_of_the_server(store: Store) -> None:
    await planned(store)
    before_ms = await store.slots.now_ms()
    fired = await store.slots.fire(decision())

    assert before_ms <= fired.now_us // 1_000 == fired.late_ms + 1_000 <= await store.slots.now_ms()


# -- ahead ----------------------------------------------------------------------------


async def test_slots_are_seen_ahead_earliest_first_and_the_next_one_is_told(store: Store) -> None:
    now_ms = await store.slots.now_ms()
    at = {"late": 5, "soon": now_ms + 1_000_000, "later": now_ms + 2_000_000, "never": now_ms + 3_000_000}
    await store.slots.plan([Plan(name, "x", moment) for name, moment in reversed(at.items())])
    ahead = await store.slots.ahead(2_000_000)

    assert [(one.experiment_id, one.slot_ms) for one in ahead.slots] == list(at.items())[:3]
    assert ahead.following_ms == at["never"]
    assert now_ms <= ahead.now_us // 1_000 <= await store.slots.now_ms()


async def test_many_slots_are_seen_one_part_after_another(store: Store) -> None:
    await store.slots.plan([Plan(f"e{number}", "x", number) for number in range(10)])
    first = await store.slots.ahead(0, 0, 6)
    last = await store.slots.ahead(0, 6, 6)

    assert [one.slot_ms for one in (*first.slots, *last.slots)] == list(range(10))
    assert (first.following_ms, last.following_ms) == (6, None)


@pytest.mark.parametrize("shape", SHAPES)
async def test_what_decides_about_a_slot_is_seen_with_it(shape: str, worker: Worker, redis: Any) -> None:
    await publish(redis, shape, "paused")
    await redis.set(keys.schedule(EXPERIMENT), "0 10 * * *")
    await planned(worker.store)
    before = await found(worker.store)
    await worker.queued()
    after = await found(worker.store)

    assert before.noted == "0 9 * * *"
    assert before.seen.schedule == await worker.store.experiments.schedule(EXPERIMENT)
    assert before.seen.stored == await worker.store.experiments.read(EXPERIMENT)
    assert (before.seen.has_open_runs, after.seen.has_open_runs) == (False, True)
    assert before.seen.mark == after.seen.mark


async def test_of_a_slot_without_anything_nothing_is_seen(store: Store, redis: Any) -> None:
    await redis.zadd(keys.slots(), {EXPERIMENT: 1_000})
    one = await found(store)
    await redis.set(keys.plans(), "no hash")

    assert (one.noted, one.seen.schedule, one.seen.stored.experiment) == ("", None, None)
    assert (await found(store)).noted is None


@pytest.mark.parametrize("shape", SHAPES)
async def test_what_was_decided_ahead_holds_while_nothing_is_written(
    shape: str, store: Store, redis: Any
) -> None:
    await publish(redis, shape)
    await redis.hset(keys.schedule(EXPERIMENT), mapping={"cron": "0 9 * * *"})
    await planned(store)
    mark = (await found(store)).seen.mark

    assert (await store.slots.fire(decision(mark=mark))).what == "fired"


CHANGES = {
    "another schedule": ("set", keys.schedule(EXPERIMENT), "0 10 * * *"),
    "no schedule": ("delete", keys.schedule(EXPERIMENT)),
    "another state": ("hset", keys.experiment(EXPERIMENT), "state", "paused"),
    "one field more": ("hset", keys.experiment(EXPERIMENT), "catch_up", "all"),
    "no experiment": ("delete", keys.experiment(EXPERIMENT)),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_what_was_decided_ahead_counts_for_nothing_once_something_else_is_written(
    change: str, store: Store, redis: Any
) -> None:
    await publish(redis, "flat")
    await redis.set(keys.schedule(EXPERIMENT), "0 9 * * *")
    await planned(store)
    mark = (await found(store)).seen.mark
    command, *arguments = CHANGES[change]
    await getattr(redis, command)(*arguments)
    before = await everything(redis)
    fired = await store.slots.fire(decision(mark=mark))

    assert fired.what == "changed"
    assert fired.found is not None
    assert fired.found.seen.mark == (await found(store)).seen.mark != mark
    assert await everything(redis) == before


async def test_what_was_decided_ahead_holds_no_longer_than_it_says(store: Store, redis: Any) -> None:
    await planned(store)
    mark = (await found(store)).seen.mark

    assert (await store.slots.fire(decision(mark=mark, until_ms=5_000))).what == "changed"
    assert (await store.slots.fire(decision(mark=mark, until_ms=FAR_MS))).what == "fired"


async def test_a_slot_of_what_runs_queues_nothing_once_no_run_is_open(worker: Worker, redis: Any) -> None:
    await planned(worker.store)

    assert (await worker.store.slots.fire(decision(only_if_open=True, overlap="allow"))).what == "passed"
    assert await orders(redis) == []
    await worker.queued()
    fired = await worker.store.slots.fire(decision(2_000, 3_000, "allow", only_if_open=True))
    assert fired.what == "fired"


# -- handed out -----------------------------------------------------------------------


async def test_who_fires_a_slot_takes_its_run_with_it(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat")
    await planned(worker.store)
    fired = await worker.store.slots.fire(decision(), worker.name, 1)

    [claim] = fired.claims
    assert (claim.worker, claim.order.scheduled_for) == (worker.name, "1000")
    assert claim.stored == await worker.store.experiments.read(EXPERIMENT)
    assert await worker.store.queue.claims_of(worker.name) == [claim]


async def test_without_room_a_run_is_left_to_whoever_claims(worker: Worker) -> None:
    await planned(worker.store)

    assert (await worker.store.slots.fire(decision(), worker.name, 0)).claims == []
    assert (await worker.claim()).order.scheduled_for == "1000"


async def test_without_a_group_a_slot_becomes_a_run_all_the_same(store: Store, redis: Any) -> None:
    await planned(store)
    fired = await store.slots.fire(decision(), "w1", 1)

    assert (fired.what, fired.claims) == ("fired", [])
    assert len(await orders(redis)) == 1


async def test_a_run_of_a_slot_is_taken_by_one_of_many(worker: Worker) -> None:
    await planned(worker.store)

    async def fired_by(number: int) -> Fired:
        return await worker.store.slots.fire(decision(), f"w{number}", 1)

    answers = await together(*map(fired_by, range(10)))

    taken = [(one.what, claim.worker) for one in answers for claim in one.claims]
    assert taken in [[("fired", f"w{number}")] for number in range(10)]
