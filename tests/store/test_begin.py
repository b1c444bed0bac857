"""An attempt begins in one step, or nothing at all happens."""

import json
from dataclasses import replace
from typing import Any

import pytest

from services.executor.store import Begun, Stored
from shared import keys
from shared.messages import State
from tests.store.conftest import (
    EXPERIMENT,
    KINDS,
    SHAPES,
    Ear,
    Worker,
    event_of,
    everything,
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
    event = event_of(run.claim, "run_started")
    assert (record["status"], record["lease"], record["worker"]) == ("running", run.claim.lease, "w1")
    assert json.loads(record["params"]) == {"a": 1}
    assert await redis.zscore(keys.open_runs(EXPERIMENT), run.claim.order.timestamp) == 1
    assert await metrics(redis) == [event]
    assert await journal(redis) == [("metric", event)]
    assert await ear.all() == [(keys.METRICS, event)]
    assert await state_of(redis) == "running"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("state", [None, *(state for state in State if state is not State.ARCHIVED)])
async def test_an_experiment_in_any_shape_and_state_begins(
    shape: str, state: str | None, worker: Worker, redis: Any
) -> None:
    await publish(redis, shape, state)
    run = await worker.begun()

    assert await state_of(redis) == "running"
    assert run.stored.experiment is not None
    assert run.stored.experiment.state is State.RUNNING
    assert run.stored == await worker.store.experiments.read(EXPERIMENT)


@pytest.mark.parametrize("shape", SHAPES)
async def test_an_archived_experiment_does_not_begin(shape: str, worker: Worker, redis: Any) -> None:
    await publish(redis, shape, "archived")
    claim = await worker.claimed()
    before = await everything(redis)
    answer, _ = await worker.begin(claim)

    assert answer is Begun.ARCHIVED
    assert await everything(redis) == before


@pytest.mark.parametrize("shape", SHAPES)
async def test_an_experiment_archived_after_it_was_read_does_not_begin(
    shape: str, worker: Worker, redis: Any
) -> None:
    await publish(redis, shape)
    stored = await worker.store.experiments.read(EXPERIMENT)
    await publish(redis, shape, "archived")
    claim = await worker.claimed()

    assert (await worker.begin(claim, stored))[0] is Begun.ARCHIVED
    assert await state_of(redis) == "archived"


@pytest.mark.parametrize("before", KINDS)
@pytest.mark.parametrize("after", KINDS)
async def test_an_experiment_published_anew_meanwhile_begins_as_it_is_now(
    before: str, after: str, worker: Worker, redis: Any
) -> None:
    await publish(redis, before, "draft")
    stored = await worker.store.experiments.read(EXPERIMENT)
    await redis.delete(keys.experiment(EXPERIMENT))
    await publish(redis, after, "paused")
    answer, stored = await worker.begin(await worker.claimed(), stored)

    assert answer is Begun.BEGUN
    assert await state_of(redis) == "running"
    if after in {"string", "wrapped"}:
        assert stored == await worker.store.experiments.read(EXPERIMENT)


async def test_a_document_that_says_running_already_stays_as_it_is(worker: Worker, redis: Any) -> None:
    text = '{ "execution":{"tool":"t"},  "state" : "running" }'
    await redis.set(keys.experiment(EXPERIMENT), text)
    run = await worker.begun()

    assert await redis.get(keys.experiment(EXPERIMENT)) == run.stored.content == text


async def test_an_experiment_that_runs_already_is_not_written_again(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat")
    await worker.begun()
    claim = await worker.claimed()
    before = (await redis.info("commandstats"))["cmdstat_hset"]["calls"]
    await worker.begin(claim)

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

    assert await redis.exists(keys.experiment(EXPERIMENT)) == 0


async def test_an_experiment_deleted_after_it_was_read_is_not_made(worker: Worker, redis: Any) -> None:
    for shape in ("flat", "string"):
        await publish(redis, shape)
        stored = await worker.store.experiments.read(EXPERIMENT)
        await redis.delete(keys.experiment(EXPERIMENT))
        answer, _ = await worker.begin(await worker.claimed(), stored)

        assert answer is Begun.BEGUN
        assert await redis.exists(keys.experiment(EXPERIMENT)) == 0


UNREADABLE = [
    ("SET", "not json"),
    ("SET", ""),
    ("SET", '{"tool": 5}'),
    ("HSET", "state", "ready"),
    ("HSET", "tool", "t", "state", "nonsense"),
    ("RPUSH", "x"),
    ("SADD", "x"),
    ("ZADD", "1", "x"),
    ("XADD", "*", "tool", "t"),
]


@pytest.mark.parametrize("command", UNREADABLE, ids=" ".join)
async def test_what_can_not_be_read_begins_to_be_reported_and_is_left_alone(
    command: tuple[str, ...], worker: Worker, redis: Any
) -> None:
    name, *arguments = command
    await redis.execute_command(name, keys.experiment(EXPERIMENT), *arguments)
    before = await redis.dump(keys.experiment(EXPERIMENT))
    run = await worker.begun()
    assert await run.finish(State.FAILED) == "finished"

    assert run.stored.experiment is None
    assert await redis.dump(keys.experiment(EXPERIMENT)) == before


# -- whose run it is ------------------------------------------------------------------


async def test_a_claim_that_was_taken_over_does_not_begin(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat")
    claim = await worker.claimed()
    assert await worker.store.queue.requeue(claim, claim.order)
    before = await everything(redis)

    assert (await worker.begin(claim))[0] is Begun.LOST
    assert await everything(redis) == before


async def test_only_who_holds_a_claim_begins_it(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat")
    claim = await worker.claimed()
    thief = replace(claim, worker="w2")
    before = await everything(redis)

    assert (await worker.begin(thief))[0] is Begun.LOST
    assert await everything(redis) == before


async def test_of_many_begins_of_different_deliveries_one_counts(worker: Worker, redis: Any) -> None:
    await publish(redis, "string")
    first = await worker.claimed()
    await worker.store.queue.requeue(first, first.order)
    second = await worker.claim()
    answers = await together(*(worker.begin(claim) for claim in (first, second, first)))

    assert sorted(answer.value for answer, _ in answers) == ["begun", "lost", "lost"]
    assert (await redis.hgetall(keys.run(second.order.run_id)))["lease"] == second.lease


async def test_a_begin_against_writers_of_the_document_gets_through(worker: Worker, redis: Any) -> None:
    await publish(redis, "string")
    stored = await worker.store.experiments.read(EXPERIMENT)
    for number in range(3):
        await redis.set(keys.experiment(EXPERIMENT), json.dumps({"tool": "t", "version": number}))
    answer, stored = await worker.begin(await worker.claimed(), stored)

    assert answer is Begun.BEGUN
    assert json.loads(stored.content) == {"tool": "t", "version": 2, "state": "running"}
    assert await redis.get(keys.experiment(EXPERIMENT)) == stored.content


async def test_a_begin_without_an_experiment_leaves_it_alone(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat", "paused")
    answer, _ = await worker.begin(await worker.claimed(), Stored.nothing())

    assert answer is Begun.BEGUN
    assert await state_of(redis) == "paused"


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
