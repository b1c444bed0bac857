"""What other services, other versions or an older state of the data left in Redis holds up nobody."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from services.executor.recovery import Recovery
from services.executor.store import Order
from shared import keys
from shared.messages import Experiment
from tests.conftest import Serve, Tools, eventually
from tests.service.trouble import Books, Log, Server, none_is_held, order_text, queue, queue_unheard

RUNS = 3


@pytest.fixture
def redis_url(server: Server) -> str:
    """Where all that the tests share goes."""
    return server.url


# -- what is wrong with one run -------------------------------------------------------------


async def test_a_run_whose_record_is_somebody_elses_ends_and_holds_up_nobody(
    serve: Serve, books: Books, redis: Any, log: Log
) -> None:
    await books.run_none()
    async with serve():
        await queue(redis, {"experiment_id": "exp_1", "trigger": "trigger"}, "1-1", spoilt=True)
        await books.run(1)
        books.go()
        await eventually(lambda: books.says_one_result("exp_1:1-1"), "the end of both runs")

    assert len(log.of("key.unusable", key=keys.run("exp_1:1-1"))) == 1
    assert await none_is_held(redis)


async def test_a_dead_workers_run_whose_record_is_somebody_elses_ends_and_holds_up_nobody(
    serve: Serve, books: Books, redis: Any, log: Log
) -> None:
    await books.run_none()
    books.go()
    spoilt = await queue_unheard(redis, "dead", "exp_1")
    await redis.set(keys.run(f"exp_1:{spoilt}"), "somebody else's")
    await queue_unheard(redis, "dead", "exp_1")
    await redis.zadd(keys.workers(), {"dead": 1})
    async with serve():
        await log.said("record.unreadable", run_id=f"exp_1:{spoilt}")
        await eventually(lambda: books.says_one_result(f"exp_1:{spoilt}"), "the end of both runs")

    assert await none_is_held(redis)


SPOILT: dict[str, Callable[[Any, str], Awaitable[Any]]] = {
    "text": lambda redis, key: redis.set(key, "somebody else's"),
    "list": lambda redis, key: redis.rpush(key, "somebody else's"),
    "no json": lambda redis, key: redis.hset(key, mapping={"a": "{", "b": '{"reference": "data:,"}'}),
    "no object": lambda redis, key: redis.hset(key, mapping={"a": "7", "b": '{"reference": "data:,"}'}),
}


async def lose(redis: Any, experiment_id: str) -> str:
    """A run that was under way in the worker `dead`; its id."""
    entry = await queue_unheard(redis, "dead", experiment_id)
    run_id = f"{experiment_id}:{entry}"
    fields = {"run_id": run_id, "status": "running", "lease": f"dead/normal/{entry}"}
    await redis.hset(keys.run(run_id), mapping=fields)
    await redis.zadd(keys.workers(), {"dead": 1})
    return run_id


@pytest.mark.parametrize("kind", SPOILT)
async def test_a_list_of_artifacts_that_somebody_spoilt_keeps_no_run_from_its_end(
    kind: str, serve: Serve, books: Books, redis: Any
) -> None:
    await books.run_none(on_worker_death="fail")
    books.go()
    lost = [await lose(redis, "exp_1") for _ in range(3)]
    await SPOILT[kind](redis, keys.artifacts(lost[1]))
    async with serve():
        await books.trigger()
        await eventually(lambda: books.says_one_result(*lost), "the end of all runs")

    records = {one["run_id"]: one for one in await books.records()}
    assert [records[one]["status"] for one in lost] == ["lost"] * 3
    kept = json.loads(records[lost[1]].get("artifacts", "{}"))
    assert kept == ({"b": {"reference": "data:,"}} if kind.startswith("no ") else {})


async def test_a_fault_over_one_run_of_a_dead_worker_holds_up_none_of_the_others(
    serve: Serve, books: Books, redis: Any, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    await books.run_none()
    books.go()
    bad, good = [await lose(redis, one) for one in ("exp_2", "exp_1")]
    read = Recovery._experiment

    async def broken(self: Recovery, order: Order) -> Experiment | None:
        if order.run_id == bad:
            raise ZeroDivisionError("ours")
        return await read(self, order)

    with monkeypatch.context() as patched:
        patched.setattr(Recovery, "_experiment", broken)
        async with serve():
            await log.said("run.not_recovered", count=2, run_id=bad)
            await eventually(books.says_one_result, "the end of the other run")
    async with serve():
        await log.said("run.recovered", run_id=bad)

    assert (await books.records())[0]["run_id"] == good


# -- older states, other versions -----------------------------------------------------------


async def test_a_service_works_on_with_a_server_that_has_forgotten_everything(
    serve: Serve, books: Books, redis: Any, log: Log
) -> None:
    async with serve():
        await books.run(1)
        await redis.flushall()
        books.go()
        await log.said("run.restored")
        await books.run_none()
        await books.trigger()
        await books.results()

    assert books.starts() == {0: 1, 1: 1}


async def test_a_run_that_comes_back_with_an_older_state_of_the_data_is_performed_again(
    server: Server, serve: Serve, books: Books, log: Log
) -> None:
    async with serve():
        await books.run(RUNS)
        older = server.copy()
        books.go()
        await books.balance()
        server.kill()
        server.restore(older)
        await server.start()
        await books.results()

    assert books.starts() == dict.fromkeys(range(RUNS), 2)
    assert len(log.of("claim.found")) == RUNS


async def test_what_a_newer_version_says_in_an_order_is_passed_on(
    serve: Serve, books: Books, tools: Tools, redis: Any
) -> None:
    tools("transient", "def transient(): raise ConnectionError('later')")
    await redis.hset(
        "experiments:exp_1", mapping={"tool": "transient", "backoff_min": 600, "backoff_max": 600}
    )
    newer = {"experiment_id": "exp_1", "trigger": "trigger", "colour": {"of": "tomorrow"}}

    async with serve():
        await queue(redis, newer, "1-1")
        await eventually(lambda: redis.zcard(keys.retries()), "the next attempt")
    [text] = await redis.zrange(keys.retries(), 0, -1)

    order = Order.decode(text, "0-0")
    assert (order.others, order.attempt) == ({"colour": {"of": "tomorrow"}}, 2)


OLDER_ORDER = {
    "priority": "high",
    "experiment_id": "exp_1",
    "trigger": "cron",
    "timestamp": "1700000000000-0",
    "attempt": 2,
    "losses": 1,
    "serial": True,
    "reserved": ["experiment:exp_1"],
    "params": {"number": 7},
    "scheduled_for": "2023-11-14T22:13:00.000+00:00",
    "request_id": "r-1",
    "triggered_by": "somebody",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "history": [
        {
            "attempt": 1,
            "error": "worker w died",
            "error_type": "WorkerDiedError",
            "at": "2023-11-14T22:13:21Z",
        },
        {"attempt": 1, "error": "later", "error_type": "ConnectionError", "at": "2023-11-14T22:13:22Z"},
    ],
}
OLDER_RECORD = {
    "run_id": "exp_1:1700000000000-0",
    "experiment_id": "exp_1",
    "attempt": "2",
    "trigger": "cron",
    "triggered_by": "somebody",
    "request_id": "r-1",
    "scheduled_for": "2023-11-14T22:13:00.000+00:00",
    "queued_at": "2023-11-14T22:13:20.000+00:00",
    "tool": "steady",
    "tool_digest": "337a27fa6738",
    "params": '{"number": 7}',
    "started_at": "2023-11-14T22:13:23.000+00:00",
    "worker": "older",
    "status": "running",
    "emitted": "3",
    "limits": "serial:exp_1",
}
"""As the version before run digests and artifacts wrote them, with every member that it knew."""


@pytest.mark.parametrize("place", ["queue", "retries"])
async def test_an_order_of_the_version_before_runs(
    place: str, serve: Serve, books: Books, redis: Any
) -> None:
    await books.run_none(max_per_minute=60)
    books.go()
    timestamp, run_id = str(OLDER_ORDER["timestamp"]), str(OLDER_RECORD["run_id"])
    await redis.zadd(keys.open_runs("exp_1"), {timestamp: 0})
    if place == "queue":
        await redis.xadd(keys.queue("high"), {"order": order_text(OLDER_ORDER)})
    else:
        await redis.zadd(keys.retries(), {order_text(OLDER_ORDER): 1})

    async with serve():
        await eventually(books.says_one_result, "the end of the run")

    [record] = await books.records()
    said = ("trigger", "triggered_by", "request_id", "scheduled_for", "queued_at", "attempt")
    assert {name: record[name] for name in ("run_id", *said)} == {
        name: OLDER_RECORD[name] for name in ("run_id", *said)
    }
    assert record["run_id"] == run_id
    assert record["status"] == "completed"
    assert json.loads(record["attempts"]) == OLDER_ORDER["history"]
    assert json.loads(record["params"])["number"] == 7


async def test_a_run_under_way_in_a_worker_of_the_version_before_is_taken_over(
    serve: Serve, books: Books, redis: Any
) -> None:
    await books.run_none()
    books.go()
    run_id, queue_high = str(OLDER_RECORD["run_id"]), keys.queue("high")
    await redis.xgroup_create(queue_high, "executors", id="0", mkstream=True)
    entry = await redis.xadd(queue_high, {"order": order_text(OLDER_ORDER)})
    await redis.xreadgroup("executors", "older", {queue_high: ">"})
    await redis.hset(keys.run(run_id), mapping=OLDER_RECORD | {"lease": f"older/high/{entry}"})
    await redis.zadd(keys.open_runs("exp_1"), {str(OLDER_ORDER["timestamp"]): 1})
    await redis.sadd(keys.holders("serial:exp_1"), run_id)
    await redis.zadd(keys.workers(), {"older": 1})

    async with serve():
        await eventually(books.says_one_result, "the end of the run")

    [record] = await books.records()
    attempts = json.loads(record["attempts"])
    assert (record["run_id"], record["status"], record["attempt"]) == (run_id, "completed", "2")
    assert attempts[:2] == OLDER_ORDER["history"]
    assert [(one["attempt"], one["error_type"]) for one in attempts[2:]] == [(2, "WorkerDiedError")]
    assert await redis.exists(keys.holders("serial:exp_1"), keys.open_runs("exp_1")) == 0


async def test_a_record_of_an_older_version_is_no_hindrance(serve: Serve, books: Books, redis: Any) -> None:
    """One without a lease: who held it is dead, and nobody can say how far it was."""
    await books.run_none()
    books.go()
    entry = await queue_unheard(redis, "an older one", "exp_1")
    await redis.zadd(keys.workers(), {"an older one": 1})
    await redis.hset(keys.run(f"exp_1:{entry}"), mapping={"status": "running", "worker": "an older one"})
    async with serve():
        await eventually(lambda: none_is_held(redis), "the end of the run")

    assert [one["status"] for one in await books.records()] == ["completed"]
