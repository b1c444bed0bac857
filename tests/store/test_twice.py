"""Every script may be sent twice, since a time-out does not tell whether it was done: twice is once.

The first answer is thrown away, as if the connection had broken just then.
"""

import re
from typing import Any

import pytest

from services.executor.store import Begun, Decision, Finished, NotedSchedule, Order, Position, Store
from services.executor.store.runs import LOST
from services.executor.store.scripts import FOLDER, Script, Scripts
from shared import keys
from shared.messages import State
from tests.store.conftest import (
    EXPERIMENT,
    QUEUE,
    SHAPES,
    Ear,
    Run,
    Worker,
    event_of,
    journal,
    metrics,
    orders,
    pending,
    publish,
    state_of,
)


@pytest.fixture(autouse=True)
def twice(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """From here on, each script is sent twice and the second answer counts; how often each was."""
    once, once_together = Scripts.call, Scripts.call_together
    sent: dict[str, int] = {}

    async def call(self: Scripts, script: Script, *arguments: Any, asks_again: bool = True) -> Any:
        sent[script.name] = sent.get(script.name, 0) + 1
        if asks_again:
            await once(self, script, *arguments)
        return await once(self, script, *arguments, asks_again=asks_again)

    async def call_together(self: Scripts, script: Script, *arguments: Any, **others: Any) -> Any:
        sent[script.name] = sent.get(script.name, 0) + 1
        await once_together(self, script, *arguments, **others)
        return await once_together(self, script, *arguments, **others)

    monkeypatch.setattr(Scripts, "call", call)
    monkeypatch.setattr(Scripts, "call_together", call_together)
    return sent


ORDER = Order(EXPERIMENT, "trigger")


async def test_a_message_is_queued_once(store: Store, redis: Any) -> None:
    await store.queue.enqueue(ORDER, Position("m", 0))

    assert len(await orders(redis)) == 1
    assert await redis.zcard(keys.open_runs(EXPERIMENT)) == 1


async def test_a_request_is_queued_once(store: Store, redis: Any) -> None:
    for position in (None, Position("m", 0)):
        order = Order(EXPERIMENT, "trigger", request_id=f"r-{position}")
        timestamp = await store.queue.enqueue(order, position)
        if position is None:
            assert timestamp is not None

    assert len(await orders(redis)) == 2


async def test_an_order_of_the_executors_own_is_queued_once(store: Store, redis: Any) -> None:
    timestamp = await store.queue.enqueue(ORDER)

    assert timestamp is not None
    assert len(await orders(redis)) == 1


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_run_begins_and_ends_once(shape: str, worker: Worker, redis: Any, ear: Ear) -> None:
    await publish(redis, shape)
    claim = await worker.claimed(request_id="r")
    [again] = (await worker.store.queue.begin_held("w1", [claim])).claims
    assert claim.begun is again.begun is Begun.BEGUN
    assert await state_of(redis) == "running"
    assert await Run(worker, claim).finish() in {Finished.FINISHED, Finished.DONE}

    assert await state_of(redis) == "run"
    assert await ear.names() == ["run_started", "items_processed", "run_completed", "completed"]
    assert len(await metrics(redis)) == 3
    assert len(await journal(redis)) == 4
    assert await redis.exists(keys.open_runs(EXPERIMENT)) == 0
    assert await orders(redis) == []


@pytest.mark.parametrize("shape", SHAPES)
async def test_an_archived_run_is_rejected_once(shape: str, worker: Worker, redis: Any, ear: Ear) -> None:
    await publish(redis, shape, "archived")
    claim = await worker.claimed(request_id="r")
    assert claim.begun is Begun.ARCHIVED
    await Run(worker, claim).reject()

    assert await ear.names() == ["error", "cancelled"]


async def test_events_are_said_once(worker: Worker, redis: Any, ear: Ear) -> None:
    run = await worker.begun(request_id="r")
    events = [event_of(run.claim, "progress") | {"done": number} for number in range(5)]
    await worker.store.runs.emit(run.claim, events[:3])
    await worker.store.runs.emit(run.claim, events[3:])
    await worker.store.runs.emit(run.claim, events[3:])

    assert [event["done"] for event in (await metrics(redis))[1:]] == [0, 1, 2, 3, 4]
    assert len(await ear.all()) == len(await journal(redis)) == 6


async def test_a_retry_is_stored_and_queued_once(worker: Worker, redis: Any, ear: Ear) -> None:
    run = await worker.begun(request_id="r")
    assert await run.retry(0)

    assert await redis.zcard(keys.retries()) == 1
    assert await ear.names() == ["run_started", "run_retrying"]
    await worker.store.queue.promote()
    assert len(await orders(redis)) == 1
    assert await redis.exists(keys.retries()) == 0


async def test_a_run_goes_back_once(worker: Worker, redis: Any) -> None:
    run = await worker.begun(request_id="r")
    await run.requeue()

    assert len(await orders(redis)) == 1
    assert await pending(redis) == 0


async def test_a_marker_is_heard_once(store: Store) -> None:
    """Who heard it again would start to count anew, and take later messages for those that were."""
    async with store.subscriptions.to((keys.MARKERS,)) as messages:
        assert await store.triggers.join("w1", keys.ear("1"), "m1", 60)
        assert not await store.triggers.join("w1", keys.ear("1"), "m2", 60)

        assert [(await anext(messages)).data for _ in range(2)] == ["m1:1", "m2:0"]


async def test_a_refusal_is_said_once(store: Store, ear: Ear) -> None:
    await store.triggers.refuse(Position("m", 0), {"experiment_id": "e", "status": "failed"})

    assert await ear.names() == ["failed"]


async def test_an_announcement_is_said_once(store: Store, redis: Any, ear: Ear) -> None:
    await store.triggers.announce({"experiment_id": "e", "status": "first"})
    await store.triggers.announce({"experiment_id": "e", "status": "second"})

    assert await ear.names() == ["first", "second"]
    assert len(await journal(redis)) == 2


@pytest.mark.parametrize("overlap", ["skip", "queue", "allow"])
async def test_a_due_time_is_fired_once(overlap: str, store: Store, redis: Any) -> None:
    await store.due_times.note([NotedSchedule(EXPERIMENT, "x", 1)])
    await store.due_times.fire(Decision(EXPERIMENT, 1, 2, [Order(EXPERIMENT, "cron")], overlap))

    assert len(await orders(redis)) == 1
    assert await store.due_times.all() == {EXPERIMENT: 2}


async def test_a_turn_is_given_once(store: Store, redis: Any) -> None:
    await store.due_times.speedrun([Order(name, "speedrun") for name in "abc"], 60, 2)

    assert len(await orders(redis)) == 2


async def test_a_planner_takes_a_plan_and_leaves_it_once(store: Store, redis: Any) -> None:
    assert [await store.submissions.lease(EXPERIMENT, name, 60) for name in "ab"] == ["", "a"]
    assert await store.submissions.lease(EXPERIMENT, "b", 60, gone="a") == ""
    assert await store.submissions.lease(EXPERIMENT, "b", 0) == ""

    assert not await redis.exists(keys.planner(EXPERIMENT))


async def test_a_worker_beats_and_leaves_once(store: Store, worker: Worker) -> None:
    assert await store.workers.heartbeat("w1", 60, listening=True) == []
    assert await store.workers.alive() == ["w1"]

    assert await store.workers.forget("w1")
    assert await store.workers.alive() == []


async def test_a_run_that_redis_has_lost_is_reported_once(worker: Worker, redis: Any) -> None:
    await worker.store.workers.identify_data()
    run = await worker.begun()
    await redis.flushall()

    assert await run.finish() == "finished"
    assert [kind for kind, _ in await journal(redis)].count("result") == 1
    assert (await worker.store.runs.record(run.id))["note"] == LOST


async def test_partial_results_are_kept_once_and_up_to_a_bound(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.executor.store.checkpoints.PARTIALS_BYTES", 10)
    kept = worker.store.runs.checkpoints(f"{EXPERIMENT}:1-1")
    for batch in (["one", "two"], ["three", "four"], ["five"]):
        await kept.keep_partials(batch)
    before = await kept.partials()
    await kept.drop_partials()

    assert before == ["one", "two", "five"]
    assert await kept.partials() == []


async def test_no_script_is_left_out(twice: dict[str, int], worker: Worker, redis: Any) -> None:
    """Reads are the same however often they are sent; `cancel` returns what is then the case."""
    run = await worker.begun(request_id="r")
    await worker.store.runs.emit(run.claim, [event_of(run.claim, "progress")])
    await run.retry()
    await worker.store.queue.promote()
    await run.requeue()
    await run.finish()
    await worker.store.triggers.join("w", keys.ear("1"), "m", 60)
    await worker.store.triggers.refuse(Position("m", 0), {})
    await worker.store.triggers.announce({})
    await worker.store.due_times.note([NotedSchedule("e", "x", 1)])
    await worker.store.due_times.due()
    await worker.store.due_times.fire(Decision("e", 1, 2, [], "skip"))
    await worker.store.due_times.speedrun([], 60, 1)
    await worker.store.runs.log(run.id, [{"text": "x"}])
    await worker.store.runs.checkpoints(run.id).keep_partials(["a", "b"])
    await redis.xadd(QUEUE, {"order": "x"})
    await worker.take(5)
    await worker.store.workers.heartbeat("w", 60, listening=False)
    await worker.store.workers.forget("w")
    await worker.store.workers.identify_data()
    await publish(redis, "flat", experiment_id="e")
    await worker.store.experiments.set_state("e", State.PAUSED)
    run = await worker.begun()
    await redis.flushall()
    await run.finish()

    texts = [path.read_text() for path in FOLDER.glob("*.lua")]
    included = {name for text in texts for name in re.findall(r"^-- include (\w+)\.lua$", text, re.M)}
    assert {path.stem for path in FOLDER.glob("*.lua")} - included - set(twice) <= {"cancel", "read"}
