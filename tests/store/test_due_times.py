"""A due time of cron becomes a run once, whichever worker comes first, and the schedule moves on."""

import time
from dataclasses import replace
from typing import Any

import pytest

from services.executor.store import Begun, Decision, DueTime, Fired, NotedSchedule, Order, Store
from shared import keys
from tests.store.conftest import EXPERIMENT, QUEUE, SHAPES, Worker, everything, orders, publish, together


def order_at(due: str) -> Order:
    return Order(EXPERIMENT, "cron", scheduled_for=due)


async def noted(store: Store, next_ms: int | None = 1_000, text: str = "0 9 * * *") -> list[str]:
    return await store.due_times.note([NotedSchedule(EXPERIMENT, text, next_ms)])


def decision(due_ms: int = 1_000, next_ms: int | None = 2_000, overlap: str = "skip") -> Decision:
    return Decision(EXPERIMENT, due_ms, next_ms, [order_at(str(due_ms))], overlap)


async def fire(store: Store, due_ms: int = 1_000, next_ms: int | None = 2_000, overlap: str = "skip") -> str:
    return (await store.due_times.fire(decision(due_ms, next_ms, overlap))).what


async def found(store: Store) -> DueTime:
    """The one that is due."""
    [one] = (await store.due_times.due()).due
    return one


# -- noting ---------------------------------------------------------------------------


async def test_a_new_schedule_has_its_next_due_time(store: Store, redis: Any) -> None:
    assert await noted(store) == [EXPERIMENT]

    assert await store.due_times.all() == {EXPERIMENT: 1_000}
    assert await store.due_times.noted() == [EXPERIMENT]
    assert await redis.hgetall(keys.noted_schedules()) == {EXPERIMENT: "0 9 * * *"}


async def test_a_due_time_stays_while_its_schedule_does(store: Store) -> None:
    await noted(store, 1_000)

    assert await noted(store, 5_000) == []
    assert await store.due_times.all() == {EXPERIMENT: 1_000}


async def test_a_changed_schedule_has_another_due_time(store: Store) -> None:
    await noted(store, 1_000)

    assert await noted(store, 5_000, "0 10 * * *") == [EXPERIMENT]
    assert await store.due_times.all() == {EXPERIMENT: 5_000}


async def test_a_schedule_that_never_comes_has_no_due_time(store: Store) -> None:
    await noted(store, 1_000)

    assert await noted(store, None, "! wrong") == [EXPERIMENT]
    assert await store.due_times.all() == {}
    assert await noted(store, None, "! wrong") == []


async def test_a_due_time_that_was_lost_is_noted_again(store: Store, redis: Any) -> None:
    await noted(store, 1_000)
    await redis.delete(keys.due_times())
    later_ms = await store.due_times.now_ms() + 3_600_000

    assert await noted(store, later_ms) == []
    assert await store.due_times.all() == {EXPERIMENT: later_ms}


async def test_a_due_time_that_has_passed_and_fired_is_not_noted_again(store: Store, redis: Any) -> None:
    await noted(store, 1_000)
    await redis.delete(keys.due_times())

    assert await noted(store, 1_000) == []
    assert await store.due_times.all() == {}


async def test_a_change_is_told_to_one_worker(store: Store) -> None:
    answers = await together(*(noted(store) for _ in range(10)))

    assert sorted(answers) == [[]] * 9 + [[EXPERIMENT]]


async def test_many_are_noted_at_once(store: Store) -> None:
    schedules = [NotedSchedule(f"e{number}", "x", number) for number in range(1_000)]

    assert len(await store.due_times.note(schedules)) == 1_000
    assert await store.due_times.note([]) == []
    assert len(await store.due_times.all()) == 1_000


async def test_a_schedule_that_is_gone_has_no_due_time(store: Store) -> None:
    await noted(store)
    await store.due_times.drop([EXPERIMENT, "never"])
    await store.due_times.drop([])

    assert await store.due_times.all() == {}
    assert await store.due_times.noted() == []
    assert (await store.due_times.due()).due == []


async def test_the_clock_is_the_servers(store: Store, redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    here = time.time
    monkeypatch.setattr(time, "time", lambda: here() + 3_600)
    before, _ = await redis.time()
    now_ms = await store.due_times.now_ms()
    after, _ = await redis.time()

    assert before * 1_000 <= now_ms <= (after + 1) * 1_000


# -- firing ---------------------------------------------------------------------------


async def test_a_due_time_becomes_a_run_and_the_schedule_moves_on(store: Store, redis: Any) -> None:
    await noted(store)
    assert await fire(store) == "fired"

    [order] = await orders(redis)
    assert (order.experiment_id, order.trigger, order.scheduled_for) == (EXPERIMENT, "cron", "1000")
    assert await store.due_times.all() == {EXPERIMENT: 2_000}
    assert await store.due_times.has_open_runs(EXPERIMENT)


async def test_a_due_time_is_fired_once_by_many(store: Store, redis: Any) -> None:
    await noted(store)
    answers = await together(*(fire(store) for _ in range(20)))

    assert sorted(answers) == ["fired"] + ["taken"] * 19
    assert len(await orders(redis)) == 1


async def test_due_times_are_each_fired_once_by_many(store: Store, redis: Any) -> None:
    await noted(store, 0)

    async def work() -> int:
        fired = 0
        for due in range(50):
            fired += await fire(store, due, due + 1, "allow") == "fired"
        return fired

    fired = await together(*(work() for _ in range(4)))

    due_times = [order.scheduled_for for order in await orders(redis)]
    assert sum(fired) == len(due_times)
    assert due_times == [str(due) for due in range(50)]


async def test_the_last_due_time_leaves_none(store: Store) -> None:
    await noted(store)

    assert await fire(store, next_ms=None) == "fired"
    assert await store.due_times.all() == {}
    assert await fire(store) == "taken"


async def test_a_due_time_of_a_changed_schedule_is_taken(store: Store, redis: Any) -> None:
    await noted(store, 1_000)
    await noted(store, 5_000, "0 10 * * *")
    before = await everything(redis)

    assert await fire(store) == "taken"
    assert await everything(redis) == before


async def test_a_due_time_without_orders_is_dropped(store: Store, redis: Any) -> None:
    await noted(store)

    assert (await store.due_times.fire(replace(decision(), orders=[]))).what == "dropped"
    assert await orders(redis) == []
    assert await store.due_times.all() == {EXPERIMENT: 2_000}


async def test_missed_due_times_may_all_become_runs(store: Store, redis: Any) -> None:
    await noted(store)
    missed = [order_at(str(number)) for number in range(100)]

    assert (await store.due_times.fire(replace(decision(), orders=missed))).what == "fired"
    assert [order.scheduled_for for order in await orders(redis)] == [str(number) for number in range(100)]
    assert await redis.zcard(keys.open_runs(EXPERIMENT)) == 100


@pytest.mark.parametrize(("overlap", "answer"), [("skip", "skipped"), ("queue", "fired"), ("allow", "fired")])
@pytest.mark.parametrize("open_run", ["queued", "running", "waiting for a retry"])
async def test_overlap_says_what_a_due_time_does_while_a_run_is_open(
    overlap: str, answer: str, open_run: str, worker: Worker, redis: Any
) -> None:
    if open_run == "queued":
        await worker.queued()
    else:
        run = await worker.begun()
        if open_run != "running":
            await run.retry(60)
    await noted(worker.store)

    assert await fire(worker.store, overlap=overlap) == answer
    assert await worker.store.due_times.all() == {EXPERIMENT: 2_000}
    assert [order.trigger for order in await orders(redis)].count("cron") == (answer == "fired")


async def test_a_due_time_after_the_last_run_has_ended_is_fired(worker: Worker) -> None:
    await (await worker.begun()).finish()
    await noted(worker.store)

    assert await fire(worker.store) == "fired"


async def test_an_experiment_that_was_not_noted_has_no_due_time_to_fire(store: Store, redis: Any) -> None:
    assert await fire(store) == "taken"
    assert await redis.exists(QUEUE) == 0


async def test_nothing_is_fired_before_its_time_by_the_clock_of_the_server(store: Store, redis: Any) -> None:
    later_ms = await store.due_times.now_ms() + 3_600_000
    await noted(store, later_ms)
    before = await everything(redis)

    assert await fire(store, later_ms) == "early"
    assert await everything(redis) == before


async def test_it_is_told_how_late_a_due_time_is_by_the_clock_of_the_server(store: Store) -> None:
    await noted(store)
    before_ms = await store.due_times.now_ms()
    fired = await store.due_times.fire(decision())

    assert before_ms <= fired.late_ms + 1_000 <= await store.due_times.now_ms()


# -- what is due ----------------------------------------------------------------------


async def test_what_is_due_is_found_earliest_first_with_the_next_due_time(store: Store) -> None:
    now_ms = await store.due_times.now_ms()
    at = {"late": 5, "later": 6, "soon": now_ms + 1_000_000, "never": now_ms + 3_000_000}
    await store.due_times.note([NotedSchedule(name, "x", moment) for name, moment in reversed(at.items())])
    found = await store.due_times.due()

    assert [(one.experiment_id, one.due_ms) for one in found.due] == [("late", 5), ("later", 6)]
    assert found.following_ms == at["soon"]
    assert now_ms <= found.now_us // 1_000 <= await store.due_times.now_ms()


async def test_no_more_is_read_than_was_asked_for(store: Store) -> None:
    await store.due_times.note([NotedSchedule(f"e{number}", "x", number) for number in range(10)])
    found = await store.due_times.due(0, 6)

    assert [one.due_ms for one in found.due] == list(range(6))
    assert found.following_ms == 6


@pytest.mark.parametrize("shape", SHAPES)
async def test_what_decides_about_a_due_time_is_read_with_it(shape: str, worker: Worker, redis: Any) -> None:
    await publish(redis, shape, "paused")
    await redis.set(keys.schedule(EXPERIMENT), "0 10 * * *")
    await noted(worker.store)
    before = await found(worker.store)
    await worker.queued()
    after = await found(worker.store)

    assert before.noted == "0 9 * * *"
    assert before.schedule == await worker.store.experiments.schedule(EXPERIMENT)
    assert before.stored == await worker.store.experiments.read(EXPERIMENT)
    assert (before.has_open_runs, after.has_open_runs) == (False, True)


async def test_a_due_time_of_nothing_is_found_as_such(store: Store, redis: Any) -> None:
    await redis.zadd(keys.due_times(), {EXPERIMENT: 1_000})
    one = await found(store)
    await redis.set(keys.noted_schedules(), "no hash")

    assert (one.noted, one.schedule, one.stored.experiment) == ("", None, None)
    assert (await found(store)).noted is None


async def test_what_is_due_soon_is_found_ahead(store: Store) -> None:
    now_ms = await store.due_times.now_ms()
    await store.due_times.note([NotedSchedule("soon", "x", now_ms + 50_000)])

    assert (await store.due_times.due()).due == []
    assert [one.due_ms for one in (await store.due_times.due(50_000)).due] == [now_ms + 50_000]


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_decision_holds_while_nothing_is_written(shape: str, store: Store, redis: Any) -> None:
    await publish(redis, shape)
    await redis.hset(keys.schedule(EXPERIMENT), mapping={"cron": "0 9 * * *"})
    await noted(store)
    digest = (await found(store)).digest

    assert (await store.due_times.fire(replace(decision(), digest=digest))).what == "fired"


CHANGES: dict[str, tuple[Any, ...]] = {
    "another schedule": ("set", keys.schedule(EXPERIMENT), "0 10 * * *"),
    "no schedule": ("delete", keys.schedule(EXPERIMENT)),
    "another state": ("hset", keys.experiment(EXPERIMENT), "state", "paused"),
    "one field more": ("hset", keys.experiment(EXPERIMENT), "catch_up", "all"),
    "no experiment": ("delete", keys.experiment(EXPERIMENT)),
    "an open run": ("zadd", keys.open_runs(EXPERIMENT), {"1-0": 1}),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_decision_does_not_count_once_something_else_is_written(
    change: str, store: Store, redis: Any
) -> None:
    await publish(redis, "flat")
    await redis.set(keys.schedule(EXPERIMENT), "0 9 * * *")
    await noted(store)
    digest = (await found(store)).digest
    command, *arguments = CHANGES[change]
    await getattr(redis, command)(*arguments)
    before = await everything(redis)

    assert (await store.due_times.fire(replace(decision(), digest=digest))).what == "changed"
    assert (await found(store)).digest != digest
    assert await everything(redis) == before


# -- handed out -----------------------------------------------------------------------


async def test_who_fires_a_due_time_takes_its_run_with_it(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat")
    await worker.ready()
    await noted(worker.store)
    fired = await worker.store.due_times.fire(decision(), worker.name, 1)

    [claim] = fired.taken.claims
    assert (claim.worker, claim.order.scheduled_for) == (worker.name, "1000")
    assert claim.begun is Begun.BEGUN
    assert [one.lease for one in await worker.store.queue.claims_of(worker.name)] == [claim.lease]


async def test_without_room_a_run_is_left_to_whoever_claims(worker: Worker) -> None:
    await noted(worker.store)

    assert (await worker.store.due_times.fire(decision(), worker.name, 0)).taken.claims == []
    assert (await worker.claim()).order.scheduled_for == "1000"


async def test_without_a_group_a_due_time_becomes_a_run_all_the_same(store: Store, redis: Any) -> None:
    await noted(store)
    fired = await store.due_times.fire(decision(), "w1", 1)

    assert (fired.what, fired.taken.claims) == ("fired", [])
    assert len(await orders(redis)) == 1


async def test_a_run_of_a_due_time_is_taken_by_one_of_many(worker: Worker) -> None:
    await noted(worker.store)

    async def fired_by(number: int) -> Fired:
        return await worker.store.due_times.fire(decision(), f"w{number}", 1)

    answers = await together(*map(fired_by, range(10)))

    taken = [(one.what, claim.worker) for one in answers for claim in one.taken.claims]
    assert taken in [[("fired", f"w{number}")] for number in range(10)]
