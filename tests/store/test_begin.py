"""A claim begins a run in one step, or nothing at all happens."""

import asyncio
import json
from typing import Any

import pytest
from msgspec.structs import replace

from services.executor.store import FOUND, Begun, Order
from shared import keys
from shared.errors import ContractError, ExperimentNotFoundError
from shared.messages import State
from tests.store.conftest import (
    EXPERIMENT,
    KINDS,
    SHAPES,
    Ear,
    Run,
    Worker,
    event_of,
    everything,
    held,
    journal,
    metrics,
    publish,
    state_of,
    together,
)


async def test_everything_that_a_begin_changes_is_seen_at_once(worker: Worker, redis: Any, ear: Ear) -> None:
    await publish(redis, "flat")
    run = await worker.begun()

    record = await redis.hgetall(keys.run(run.id))
    [event] = await metrics(redis)
    assert (record["status"], record["lease"], record["worker"]) == ("running", run.claim.lease, "w1")
    assert (record["run_id"], record["experiment_id"], record["tool"]) == (run.id, EXPERIMENT, "t")
    assert (record["attempt"], record["trigger"]) == ("1", "trigger")
    assert await redis.zscore(keys.open_runs(EXPERIMENT), run.claim.order.timestamp) == 1
    assert isinstance(event.pop("timestamp"), float)
    assert event == {**event_of(run.claim, "run_started"), "tool": "t"}
    assert [(kind, one["event"]) for kind, one in await journal(redis)] == [("metric", "run_started")]
    assert [(channel, one["event"]) for channel, one in await ear.all()] == [(keys.METRICS, "run_started")]
    assert await state_of(redis) == "running"


async def test_names_are_written_as_json_has_them(worker: Worker, redis: Any) -> None:
    name = 'a "quoted" \\ name/ü'
    await publish(redis, "flat", experiment_id=name)
    run = await worker.begun(name)

    [event] = await metrics(redis, name)
    assert (event["experiment_id"], event["run_id"]) == (name, run.id)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("state", [None, *(state for state in State if state is not State.ARCHIVED)])
async def test_an_experiment_in_any_shape_and_state_begins(
    shape: str, state: str | None, worker: Worker, redis: Any
) -> None:
    await publish(redis, shape, state)
    run = await worker.begun()

    assert run.claim.begun is Begun.BEGUN
    assert await state_of(redis) == ("paused" if state is State.PAUSED else "running")
    experiment = run.claim.stored.readable()
    assert (experiment.tool, experiment.params, experiment.id) == ("t", {}, EXPERIMENT)


@pytest.mark.parametrize("shape", SHAPES)
async def test_an_archived_experiment_does_not_begin(shape: str, worker: Worker, redis: Any) -> None:
    await publish(redis, shape, "archived")
    claim = await worker.claimed()

    assert claim.begun is Begun.ARCHIVED
    assert not await redis.exists(keys.run(claim.order.run_id), keys.metrics(EXPERIMENT), keys.journal())
    assert await redis.zscore(keys.open_runs(EXPERIMENT), claim.order.timestamp) == 0
    assert await state_of(redis) == "archived"


@pytest.mark.parametrize(
    ("state", "begun", "after"),
    [("archived", Begun.ARCHIVED, None), ("paused", Begun.BEGUN, None), ("draft", Begun.BEGUN, "run")],
)
async def test_the_state_in_a_spec_counts_if_the_hash_has_none(
    state: str, begun: Begun, after: str | None, worker: Worker, redis: Any
) -> None:
    await redis.hset(keys.experiment(EXPERIMENT), "spec", f"state: {state}\nexecution: {{tool: t}}")
    run = await worker.begun()
    if run.claim.begun is Begun.BEGUN:
        await run.finish()

    assert run.claim.begun is begun
    assert await redis.hget(keys.experiment(EXPERIMENT), "state") == after


@pytest.mark.parametrize("shape", SHAPES)
async def test_an_experiment_archived_after_it_was_compiled_does_not_begin(
    shape: str, worker: Worker, redis: Any
) -> None:
    await publish(redis, shape)
    await (await worker.begun()).finish()
    await publish(redis, shape, "archived")

    assert (await worker.claimed()).begun is Begun.ARCHIVED
    assert await state_of(redis) == "archived"


@pytest.mark.parametrize("before", KINDS)
@pytest.mark.parametrize("after", KINDS)
async def test_an_experiment_published_anew_begins_as_it_is_now(
    before: str, after: str, worker: Worker, redis: Any
) -> None:
    await publish(redis, before, "draft")
    await (await worker.begun()).finish()
    await redis.delete(keys.experiment(EXPERIMENT))
    await publish(redis, after, "completed")
    claim = await worker.claimed()

    assert claim.begun is Begun.BEGUN
    assert await state_of(redis) == "running"


@pytest.mark.parametrize("shape", ["flat", "string"])
async def test_a_document_is_compiled_once_whatever_its_state(shape: str, worker: Worker, redis: Any) -> None:
    await publish(redis, shape, "ready")
    await (await worker.begun()).finish()
    before = (await redis.info("commandstats"))["cmdstat_del"]["calls"]
    for state in ("run", "failed", "completed", "paused"):
        if shape == "flat":
            await redis.hset(keys.experiment(EXPERIMENT), "state", state)
        run = await worker.begun()
        await run.finish(State.FAILED)

    assert (await redis.info("commandstats"))["cmdstat_del"]["calls"] == before


async def test_a_changed_document_is_compiled_anew(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat")
    await (await worker.begun()).finish()
    await redis.hset(keys.experiment(EXPERIMENT), "params", '{"a": 1}')

    assert (await worker.claimed()).stored.readable().params == {"a": 1}


async def test_what_was_compiled_does_not_stay_for_ever(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat")
    await worker.begun()

    assert 0 < await redis.pttl(keys.compiled(EXPERIMENT)) <= 7 * 86_400_000


async def test_a_document_that_says_running_already_stays_as_it_is(worker: Worker, redis: Any) -> None:
    text = '{ "execution":{"tool":"t"},  "state" : "running" }'
    await redis.set(keys.experiment(EXPERIMENT), text)
    await worker.begun()

    assert await redis.get(keys.experiment(EXPERIMENT)) == text


async def test_an_experiment_that_runs_already_is_not_written_again(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat")
    await worker.begun()
    await worker.queued()
    before = (await redis.info("commandstats"))["cmdstat_hset"]["calls"]
    await worker.claim()

    assert (await redis.info("commandstats"))["cmdstat_hset"]["calls"] == before + 1  # its record


async def test_a_document_keeps_its_expiry(worker: Worker, redis: Any) -> None:
    await publish(redis, "string")
    await redis.pexpire(keys.experiment(EXPERIMENT), 60_000)
    await worker.begun()

    assert 0 < await redis.pttl(keys.experiment(EXPERIMENT)) <= 60_000


# -- what can't be read ---------------------------------------------------------------


async def test_an_experiment_that_is_not_there_is_not_made(worker: Worker, redis: Any) -> None:
    run = await worker.begun()
    await run.finish()

    assert isinstance(run.claim.stored.error, ExperimentNotFoundError)
    assert await redis.exists(keys.experiment(EXPERIMENT)) == 0


async def test_an_experiment_deleted_after_it_was_compiled_is_not_made(worker: Worker, redis: Any) -> None:
    for shape in ("flat", "string"):
        await publish(redis, shape)
        await (await worker.begun()).finish()
        await redis.delete(keys.experiment(EXPERIMENT))
        claim = await worker.claimed()

        assert claim.begun is Begun.BEGUN
        assert isinstance(claim.stored.error, ExperimentNotFoundError)
        assert await redis.exists(keys.experiment(EXPERIMENT)) == 0


STATELESS = [
    ("SET", "not json"),
    ("SET", ""),
    ("SET", '{"tool": 5, "state": "nonsense"}'),
    ("HSET", "tool", "t", "state", "nonsense"),
    ("HSET", "tool", "../t", "state", "archived"),
    ("HSET", "tool", "../t", "state", "paused"),
    ("RPUSH", "x"),
    ("SADD", "x"),
    ("ZADD", "1", "x"),
    ("XADD", "*", "tool", "t"),
]


@pytest.mark.parametrize("command", STATELESS, ids=" ".join)
async def test_what_can_not_be_read_and_has_no_place_for_a_state_is_left_alone(
    command: tuple[str, ...], worker: Worker, redis: Any
) -> None:
    name, *arguments = command
    await redis.execute_command(name, keys.experiment(EXPERIMENT), *arguments)
    before = await redis.dump(keys.experiment(EXPERIMENT))
    for _ in range(2):  # as it is compiled, and from what was compiled
        run = await worker.begun()
        assert await run.finish(State.FAILED) == "finished"

        assert isinstance(run.claim.stored.error, ContractError)
        assert await redis.dump(keys.experiment(EXPERIMENT)) == before


UNREADABLE = [
    ("SET", '{"tool": 5}'),
    ("SET", '{"experiment": {"state": "draft", "execution": {"params": {}}}, "more": [1]}'),
    ("HSET", "state", "ready"),
    ("HSET", "tool", "t", "params", "{x: 1}"),
    ("HSET", "spec", "a: [1", "state", "draft"),
]


@pytest.mark.parametrize("command", UNREADABLE, ids=" ".join)
async def test_an_experiment_that_can_not_be_read_fails_like_any_other(
    command: tuple[str, ...], worker: Worker, redis: Any
) -> None:
    name, *arguments = command
    await redis.execute_command(name, keys.experiment(EXPERIMENT), *arguments)
    for _ in range(2):  # as it is compiled, and from what was compiled
        run = await worker.begun()
        assert await _plain_state(redis) == "running"
        assert await run.finish(State.FAILED) == "finished"

        assert isinstance(run.claim.stored.error, ContractError)
        assert await _plain_state(redis) == "failed"


async def _plain_state(redis: Any) -> str:
    """The state of an experiment that wasn't published by these tests."""
    key = keys.experiment(EXPERIMENT)
    if await redis.type(key) == "hash":
        return str(await redis.hget(key, "state"))
    document = json.loads(await redis.get(key))
    return str(document.get("experiment", document)["state"])


async def test_what_is_too_large_is_not_read(worker: Worker, redis: Any) -> None:
    await redis.hset(keys.experiment(EXPERIMENT), mapping={"tool": "t", "params": "x" * 1_000_000})
    for _ in range(2):  # as it is compiled, and from what was compiled
        run = await worker.begun()
        assert await run.finish(State.FAILED) == "finished"

        assert "holds 1000001 bytes; at most 1000000 bytes in 1000 fields" in str(run.claim.stored.error)


# -- which tools a worker can begin ---------------------------------------------------


async def test_an_order_whose_tool_is_not_ready_is_put_aside_unbegun(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat")
    await worker.queued()
    taken = await worker.store.queue.claim("other", 1)

    assert (list(taken.claims), list(taken.wanted)) == ([], ["t"])
    assert await redis.keys("experiment_runs:*") == []
    assert await worker.store.queue.claims_of("other") == []
    assert (await worker.store.queue.depth()).waiting == 1


async def test_who_can_begin_a_tool_takes_what_was_put_aside_for_it(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat")
    queued = [await worker.queued(priority=priority) for priority in ("low", "normal", "high")]
    await worker.store.queue.claim("other", 5)
    claims = await worker.take(2)
    claims = [*claims, *await worker.take(2)]

    assert {claim.entry for claim in claims} == set(queued)
    assert not await redis.exists(keys.wanted())
    assert (await worker.store.queue.depth()).held == 3


async def test_a_tool_that_is_found_and_not_ready_is_wanted_again(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat")
    await worker.queued()
    await worker.store.workers.tell_tools("other", {"t": FOUND}, 60)

    for _ in range(2):
        assert list((await worker.store.queue.claim("other", 1)).wanted) == ["t"]


async def looks_in_vain(worker: Worker, name: str) -> None:
    """Tell that a worker has no tool `t`, as of now."""
    workers = worker.store.workers
    await workers.tell_missing(name, "t", await workers.now_ms(), 60)


async def test_a_tool_that_no_live_worker_has_begins_to_be_reported(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat")
    await worker.queued()
    await worker.store.queue.claim("other", 1)
    await looks_in_vain(worker, "other")
    [claim] = (await worker.store.queue.claim("other", 1, missing=["t"])).claims

    assert claim.begun is Begun.BEGUN
    assert await redis.hget(keys.run(claim.order.run_id), "worker") == "other"
    assert not await redis.exists(keys.wanted())


@pytest.mark.parametrize("told", [{"t": FOUND}, {"x": FOUND}, {}])
async def test_a_tool_that_another_live_worker_may_have_waits_for_that_one(
    worker: Worker, redis: Any, told: dict[str, str]
) -> None:
    await publish(redis, "flat")
    await worker.store.workers.heartbeat("w1", 60, listening=False)
    await worker.store.workers.tell_tools("w1", told, 60)
    await worker.queued()
    await worker.store.queue.claim("other", 1)
    await looks_in_vain(worker, "other")
    taken = await worker.store.queue.claim("other", 1, missing=["t"])

    assert (list(taken.claims), list(taken.wanted)) == ([], [])
    assert await worker.store.queue.wait("w1", 5)  # it was woken
    assert len(await worker.take()) == 1


async def test_an_order_that_came_after_a_look_waits_for_another_look(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat")
    await worker.store.workers.heartbeat("w1", 60, listening=False)
    first = await worker.queued()
    await worker.store.queue.claim("other", 2)
    for name in ("other", "w1"):
        await worker.store.workers.tell_missing(name, "t", int(first.partition("-")[0]), 60)
    async with asyncio.timeout(10):
        while (await worker.queued()).partition("-")[0] == first.partition("-")[0]:
            pass
    await worker.store.queue.claim("other", 2)
    taken = await worker.store.queue.claim("other", 9, missing=["t"])

    assert first in {claim.entry for claim in taken.claims}
    assert list(taken.wanted) == ["t"]
    assert await worker.store.queue.wait("w1", 5)  # it was woken to look again
    for name in ("other", "w1"):
        await looks_in_vain(worker, name)
    assert len((await worker.store.queue.claim("other", 9, missing=["t"])).claims) == 1
    assert not await redis.exists(keys.wanted())


async def test_a_tool_that_failed_waits_for_a_live_worker_that_can_begin_it(
    worker: Worker, redis: Any
) -> None:
    await publish(redis, "flat")
    await worker.store.workers.heartbeat("w1", 60, listening=False)
    await worker.store.workers.tell_tools("w1", {"t": ""}, 60)
    await worker.queued()

    assert list((await worker.store.queue.claim("other", 1, failed=["t"])).claims) == []
    assert await worker.store.queue.wait("w1", 5)  # it was woken
    assert len(await worker.take()) == 1


async def test_a_tool_that_failed_and_no_live_worker_can_begin_begins_to_be_reported(
    worker: Worker, redis: Any
) -> None:
    await publish(redis, "flat")
    await worker.store.workers.heartbeat("w1", 60, listening=False)
    await worker.store.workers.tell_tools("w1", {"t": FOUND}, 60)
    await worker.queued()
    await worker.store.queue.claim("other", 1)
    [claim] = (await worker.store.queue.claim("other", 1, failed=["t"])).claims

    assert claim.begun is Begun.BEGUN


async def test_an_experiment_whose_state_was_removed_is_compiled_once(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat")
    await (await worker.begun()).finish()
    await redis.hdel(keys.experiment(EXPERIMENT), "state")
    compiled = await redis.hgetall(keys.compiled(EXPERIMENT))
    run = await worker.begun()

    assert run.claim.begun is Begun.BEGUN
    assert await redis.hgetall(keys.compiled(EXPERIMENT)) == compiled


async def test_a_worker_that_left_has_no_tools(worker: Worker, redis: Any) -> None:
    await worker.ready()
    assert await worker.store.workers.forget("w1")

    assert not await redis.exists(keys.tools_of("w1"))


async def test_what_a_worker_tells_of_its_tools_ends_with_its_heartbeat(worker: Worker, redis: Any) -> None:
    await worker.store.workers.tell_tools("w1", {"t": ""}, 60)
    await worker.store.workers.heartbeat("w1", 3, listening=False)

    assert 0 < await redis.pttl(keys.tools_of("w1")) <= 3_000


@pytest.mark.parametrize("waiting", [0, 1])
async def test_an_order_that_is_handed_out_as_it_is_queued_wakes_a_worker_only_if_others_wait(
    worker: Worker, redis: Any, waiting: int
) -> None:
    await publish(redis, "flat")
    await (await worker.begun()).finish()
    for _ in range(waiting):
        await worker.queued()
    await redis.delete(keys.bell())
    _, taken = await worker.store.queue.admit(Order(EXPERIMENT, "trigger"), None, "w1", 1)

    assert [claim.begun for claim in taken.claims] == [Begun.BEGUN]
    assert await redis.llen(keys.bell()) == waiting


# -- whose run it is ------------------------------------------------------------------


async def test_an_order_that_is_held_and_has_not_begun_begins_once(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat")
    await worker.ready()
    claim = await held(worker, redis)
    [begun] = (await worker.store.queue.begin_held("w1", [claim])).claims
    before = await everything(redis)
    [again] = (await worker.store.queue.begin_held("w1", [claim])).claims

    assert begun.begun is again.begun is Begun.BEGUN
    assert again.stored.readable().tool == "t"
    assert await everything(redis) == before
    assert await Run(worker, again).finish() == "finished"


async def test_a_claim_that_was_taken_over_does_not_begin(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat")
    claim = await held(worker, redis)
    assert await worker.store.queue.requeue(claim, claim.order)
    before = await everything(redis)

    assert (await worker.store.queue.begin_held("w1", [claim])).claims == []
    assert await everything(redis) == before


async def test_only_who_holds_a_claim_begins_it(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat")
    claim = await held(worker, redis)
    before = await everything(redis)

    assert (await worker.store.queue.begin_held("w2", [replace(claim, worker="w2")])).claims == []
    assert await everything(redis) == before


async def test_of_many_begins_of_different_deliveries_one_counts(worker: Worker, redis: Any) -> None:
    await publish(redis, "string")
    await worker.ready()
    first = await held(worker, redis)
    await worker.store.queue.requeue(first, first.order)
    await redis.xreadgroup("executors", "w1", {first.queue: ">"})
    [second] = await worker.store.queue.claims_of("w1")
    taken = await together(*(worker.store.queue.begin_held("w1", [one]) for one in (first, second, first)))

    assert [claim.entry for one in taken for claim in one.claims] == [second.entry]
    assert (await redis.hgetall(keys.run(second.order.run_id)))["lease"] == second.lease


async def test_a_begin_against_writers_of_the_document_gets_through(worker: Worker, redis: Any) -> None:
    await publish(redis, "string")
    await worker.ready()

    async def write() -> None:
        for number in range(3):
            await redis.set(keys.experiment(EXPERIMENT), json.dumps({"tool": "t", "version": number}))

    claim, _ = await together(worker.claimed(), write())

    assert claim.begun is Begun.BEGUN
    assert json.loads(await redis.get(keys.experiment(EXPERIMENT)))["version"] == 2


@pytest.mark.parametrize("command", [("SET", "x"), ("HSET", "a", "b"), ("SADD", "x")], ids=" ".join)
async def test_a_metric_list_that_is_none_stops_no_run(
    command: tuple[str, ...], worker: Worker, redis: Any, ear: Ear
) -> None:
    name, *arguments = command
    await redis.execute_command(name, keys.metrics(EXPERIMENT), *arguments)
    await publish(redis, "flat")
    run = await worker.begun()
    await worker.store.runs.emit(run.claim, [event_of(run.claim, "progress")])
    assert await run.finish() == "finished"

    assert await ear.names() == ["run_started", "progress", "items_processed", "run_completed", "completed"]
    assert len(await journal(redis)) == 5
