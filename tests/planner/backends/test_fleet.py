"""The fleet backend in Redis: its use of the queue, what it leaves there, and errors."""

import asyncio
import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from services.executor.outcome import Status
from services.executor.store import Begun, Claim, JournalEntry, Order, Store
from services.planner.backends.fleet import NOBODY, SOMEBODY, FleetBackend
from services.planner.backends.fleet_runs import PendingRun, RunResults
from shared import keys
from tests.conftest import Neighbour, Serve, Tools, eventually
from tests.planner.backends.conftest import Executors, MakeFleet, execution
from tests.store.test_leaks import lasting

ECHO = "def echo(**given): return given\n"
SOON = 0.05
"""The polling interval of tests in which only polling finds something."""


@contextlib.asynccontextmanager
async def asked(backend: FleetBackend, count: int, tool: str = "echo", **policy: Any) -> Any:
    """Run so many calls inside the block."""
    calls = [execution(tool, {"n": n}, n, **policy) for n in range(count)]
    tasks = [asyncio.create_task(backend.run(call)) for call in calls]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def queued(store: Store, count: int) -> list[Claim]:
    """Wait until so many orders are in the queue."""

    async def waiting() -> list[Claim]:
        found = await store.queue.waiting()
        return found if len(found) >= count else []

    return list(await eventually(waiting, "the orders"))


# -- the queue ------------------------------------------------------------------------


async def test_ten_thousand_cases_are_not_in_front_of_a_normal_trigger(
    store: Store, fleet: MakeFleet
) -> None:
    await store.queue.create_group()
    async with fleet(capacity=20) as backend, asked(backend, 10_000) as calls:
        await queued(store, 20)
        await backend.run(execution("echo", {}), cancel=_set())  # all that could be queued has been
        orders = [one.order for one in await store.queue.waiting()]
        await store.queue.enqueue(Order("exp_1", "trigger"))
        [first] = (await store.queue.claim("w1", 1)).claims
        assert not any(one.done() for one in calls)

    assert len(orders) == 20
    assert {one.priority for one in orders} == {"low"}
    assert first.order.experiment_id == "exp_1"


async def test_every_call_has_its_turn(
    store: Store, fleet: MakeFleet, executors: Executors, tools: Tools
) -> None:
    tools("echo", ECHO)
    most = 0
    async with executors(), fleet(capacity=3) as backend, asked(backend, 60) as calls:
        while not all(one.done() for one in calls):
            most = max(most, len(await store.submissions.open_runs("plan:p1")))
        results = [one.result() for one in calls]

    assert [json.loads(str(one.result)) for one in results] == [{"n": n} for n in range(60)]
    assert 1 <= most <= 3


async def test_the_capacity_is_that_of_the_live_executors(fleet: MakeFleet, executors: Executors) -> None:
    backend = fleet(poll_seconds=SOON)
    async with backend:
        without = backend.capacity
        async with executors(concurrency=3):
            await eventually(lambda: _true(backend.capacity > 2))
            one = backend.capacity
            async with executors(concurrency=24):
                await eventually(lambda: _true(backend.capacity > one))
                both = backend.capacity

    assert (without, one, both) == (2, 2 * 3, 2 * 27)
    assert fleet(capacity=5).capacity == 5


async def test_the_priority_is_the_policys_if_it_has_one(store: Store, fleet: MakeFleet) -> None:
    async with fleet(capacity=9) as backend, asked(backend, 1, priority="high"):
        [claim] = await queued(store, 1)

    assert claim.order.priority == "high"


async def test_cron_and_speedrun_leave_plans_alone(
    store: Store, fleet: MakeFleet, serve: Serve, tools: Tools
) -> None:
    tools("echo", ECHO)
    async with (
        serve(
            schedule_mode=("trigger", "cron", "speedrun"), speedrun_interval=0.05, cron_check_interval=0.05
        ),
        fleet() as backend,
        asked(backend, 20) as calls,
    ):
        await asyncio.gather(*calls)
        records = await store.history.recent("plan:p1", 1_000)

    assert [one async for one in store.experiments.scan()] == []
    assert len(records) == 20


# -- what stays -----------------------------------------------------------------------


async def test_a_plan_leaves_its_records_which_expire(
    redis: Any, fleet: MakeFleet, executors: Executors, tools: Tools
) -> None:
    tools("echo", ECHO)
    tools(
        "told",
        "from shared import toolkit\ndef told(n):\n  toolkit.progress(n)\n  print(n)\n  assert n != 1\n",
    )
    async with (
        executors(),
        fleet() as backend,
        asked(backend, 30) as calls,
        asked(backend, 5, "told") as others,
    ):
        await asyncio.gather(*calls, *others)
    left = {name: await redis.pttl(name) for name in await redis.keys("*")}
    own = {name for name in left if "plan:p1" in name}

    assert {name.partition(":plan:p1")[0] for name in own} == {
        "experiment_runs",
        "metrics",
        "fullsend:executor:logs",
        "fullsend:executor:runs_of",
    }
    assert all(left[name] > 0 for name in own - {keys.runs_of("plan:p1")})
    remaining = {name for name in left if name.startswith("fullsend:") and left[name] == -1}
    assert {name for name in remaining if not any(one.fullmatch(name) for one in lasting())} == set()


async def test_the_record_says_which_call_it_was(
    store: Store, neighbour: Neighbour, fleet: MakeFleet, executors: Executors, tools: Tools
) -> None:
    tools("echo", ECHO)
    async with executors(), fleet() as backend:
        await backend.run(execution("echo", {}, 7, seed=3))
    [found] = await store.history.recent("plan:p1", 10)
    record = await store.runs.record(found["run_id"])
    message = await neighbour.result("plan:p1")

    assert (record["request_id"], record["trigger"], record["seed"]) == ("run-7", "plan", "3")
    assert (message["run_id"], message["request_id"]) == (found["run_id"], "run-7")


async def test_closing_cancels_queued_runs(store: Store, fleet: MakeFleet) -> None:
    async with fleet(capacity=5) as backend:
        calls = [asyncio.create_task(backend.run(execution("echo", {}, n))) for n in range(9)]
        await queued(store, 5)
    results = await asyncio.gather(*calls)

    assert [one.status for one in results] == [Status.CANCELLED] * 9
    assert await store.submissions.open_runs("plan:p1") == []


# -- trouble --------------------------------------------------------------------------


class Deaf:
    """A journal without further entries."""

    async def end(self) -> str:
        """Return the end."""
        return "0-0"

    async def read(self, cursor: str, wait_ms: int | None = None) -> list[JournalEntry]:
        """Return no entry."""
        await asyncio.Event().wait()
        return []


async def test_a_lost_message_only_delays_a_call(
    store: Store, fleet: MakeFleet, executors: Executors, tools: Tools, tmp_path: Path
) -> None:
    tools("echo", ECHO)
    deaf = FleetBackend(
        dataclasses.replace(store, journal=Deaf()),  # type: ignore[arg-type]
        storage_type="local",
        storage_base=str(tmp_path / "artifacts"),
        plan_id="p1",
        poll_seconds=SOON,
    )
    async with executors(), deaf as backend, asked(backend, 20) as calls:
        results = await asyncio.gather(*calls)

    assert {one.status for one in results} == {Status.COMPLETED}


async def test_without_an_executor_the_plan_waits_and_tells_the_user(
    fleet: MakeFleet, executors: Executors, tools: Tools
) -> None:
    tools("echo", ECHO)
    told: list[str] = []
    async with fleet(tell=told.append, poll_seconds=SOON) as backend, asked(backend, 3) as calls:
        assert told == [NOBODY]
        async with executors():
            results = await asyncio.gather(*calls)
            await eventually(lambda: _true(SOMEBODY in told))

    assert {one.status for one in results} == {Status.COMPLETED}
    assert told[:2] == [NOBODY, SOMEBODY]


async def test_runs_that_redis_has_lost_are_lost(store: Store, redis: Any, fleet: MakeFleet) -> None:
    async with fleet(poll_seconds=SOON, capacity=4) as backend, asked(backend, 4) as calls:
        await queued(store, 4)
        await redis.flushall()
        results = await asyncio.gather(*calls)

    assert {one.status for one in results} == {Status.LOST}
    assert all(one.error is not None and one.error.retryable for one in results)
    assert {one.error.type for one in results if one.error} == {"RunLostError"}


async def test_a_redis_key_of_another_type_is_a_failed_result(redis: Any, fleet: MakeFleet) -> None:
    await redis.set(keys.queue("low"), "somebody's")
    async with fleet() as backend:
        result = await backend.run(execution("echo", {}))

    assert (result.status, result.error and result.error.type) == (Status.FAILED, "StoreError")


async def test_an_executor_that_is_too_old_is_named() -> None:
    one = PendingRun(execution("echo", {}), report=None)
    record = {"status": "failed", "error_type": "ExperimentNotFoundError", "error": "no experiment"}
    result = RunResults("memory", "memory://").of_record(one, record)

    assert result.error is not None
    assert (result.status, result.error.retryable) == (Status.FAILED, True)
    assert "too old" in result.error.message


async def test_failures_are_retried_by_the_plan_alone(
    store: Store, fleet: MakeFleet, serve: Serve, tools: Tools, tmp_path: Path
) -> None:
    tools("count", "def count(n, path):\n  open(path, 'a').write('x')\n  raise ConnectionError('no')\n")
    path = tmp_path / "calls"
    async with serve(retry_max_attempts=5, retry_backoff_min=0.0), fleet() as backend:
        result = await backend.run(execution("count", {"n": 1, "path": str(path)}, max_attempts=7))

    assert result.error is not None
    assert (result.error.type, result.error.retryable) == ("ConnectionError", True)
    assert path.read_text() == "x"


@pytest.mark.parametrize(
    ("policy", "status"), [({}, Status.COMPLETED), ({"on_worker_death": "fail"}, Status.LOST)]
)
async def test_the_run_of_a_dead_executor_is_taken_over_as_the_policy_says(
    store: Store,
    fleet: MakeFleet,
    executors: Executors,
    tools: Tools,
    policy: dict[str, Any],
    status: Status,
) -> None:
    tools("echo", ECHO)
    await store.queue.create_group()
    async with fleet() as backend, asked(backend, 1, seed=5, **policy) as calls:
        await store.workers.heartbeat("dead", 0.01, listening=False)
        claim = await claimed_by_the_dead(store)
        async with executors():
            [result] = await asyncio.gather(*calls)

    assert claim.begun is Begun.BEGUN
    assert (result.status, result.seed) == (status, 5)
    assert (result.error is None) == (status is Status.COMPLETED)


async def test_a_queued_run_is_cancelled_without_an_executor(store: Store, fleet: MakeFleet) -> None:
    cancel = asyncio.Event()
    async with fleet() as backend:
        call = asyncio.create_task(backend.run(execution("echo", {}), cancel=cancel))
        await queued(store, 1)
        cancel.set()
        result = await call

    assert result.status is Status.CANCELLED


async def test_a_run_of_a_dead_executor_is_cancelled_after_a_while(store: Store, fleet: MakeFleet) -> None:
    cancel = asyncio.Event()
    await store.queue.create_group()
    async with fleet(cancel_seconds=0.2) as backend:
        call = asyncio.create_task(backend.run(execution("echo", {}), cancel=cancel))
        claim = await claimed_by_the_dead(store)
        cancel.set()
        result = await call

    assert result.status is Status.CANCELLED
    assert "no executor has reported its end" in str(result.error)
    assert await store.runs.to_be_cancelled([claim.order.run_id]) == {claim.order.run_id}


async def claimed_by_the_dead(store: Store) -> Claim:
    """A run that a worker has begun which is never heard of again."""
    await store.workers.tell_tools("dead", {"echo": ""}, 60)
    await queued(store, 1)
    [claim] = (await store.queue.claim("dead", 1)).claims
    return claim


def _set() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


async def _true(fact: bool) -> bool:
    return fact
