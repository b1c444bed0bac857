"""The index of runs, from which lists are read."""

from typing import Any

import pytest

from services.executor.store import RunCancellation, Store
from shared import keys
from shared.messages import State
from tests.store.conftest import EXPERIMENT, Worker, publish
from tests.store.test_cancel import cancel


async def _listed(store: Store, *arguments: Any) -> list[str]:
    return [record["run_id"] for record in await store.history.recent(*arguments)]


async def test_a_run_is_listed_from_its_begin_and_by_its_status_from_its_end(
    worker: Worker, store: Store, redis: Any
) -> None:
    await publish(redis, "flat")
    first = await worker.begun()
    second = await worker.begun()
    await first.finish(State.RUN)

    assert await _listed(store, None, 10) == [second.id, first.id]
    assert await _listed(store, EXPERIMENT, 1) == [second.id]
    assert await _listed(store, f"{EXPERIMENT}:a", 10) == []
    assert await _listed(store, None, 10, "completed") == [first.id]
    assert await _listed(store, None, 10, "failed") == []


async def test_records_of_an_earlier_version_are_listed_and_gone_ones_leave_the_index(
    store: Store, redis: Any
) -> None:
    for number in range(3):
        await redis.hset(keys.run(f"a:b:{number + 1}-0"), mapping={"status": "failed", "tool": "t"})
    await redis.set(keys.run("no run"), "x")

    assert await _listed(store, "a:b", 10) == ["a:b:3-0", "a:b:2-0", "a:b:1-0"]
    await redis.delete(keys.run("a:b:2-0"))
    assert await _listed(store, None, 10, "failed") == ["a:b:3-0", "a:b:1-0"]
    await store.history.tidy()

    for index in (keys.runs(), keys.runs_of("a:b"), keys.runs_with("failed")):
        assert await redis.zrange(index, 0, -1) == ["a:b:1-0", "a:b:3-0"]


@pytest.mark.parametrize("index", [keys.runs(), keys.runs_of(EXPERIMENT), keys.runs_with("completed")])
async def test_an_index_of_another_type_stops_no_run(worker: Worker, redis: Any, index: str) -> None:
    await publish(redis, "flat")
    await redis.set(index, "x")
    run = await worker.begun()

    await run.finish(State.RUN)

    assert await redis.hget(keys.run(run.id), "status") == "completed"


async def test_a_run_that_is_cancelled_while_it_waits_is_listed(
    worker: Worker, store: Store, redis: Any
) -> None:
    await publish(redis, "flat")
    run_id = f"{EXPERIMENT}:{await worker.queued()}"

    assert await cancel(store, run_id) is RunCancellation.CANCELLED

    assert await _listed(store, EXPERIMENT, 10) == await _listed(store, None, 10, "cancelled") == [run_id]
