"""The state that an end leaves an experiment in, whatever happened to the experiment meanwhile."""

import asyncio
import json
from typing import Any

import pytest

from services.executor.store import Finished
from shared import keys
from shared.messages import State
from tests.store.conftest import EXPERIMENT, KINDS, SHAPES, Ear, Worker, publish, state_of, together


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("state", [State.RUN, State.FAILED])
async def test_an_end_sets_the_state(shape: str, state: State, worker: Worker, redis: Any) -> None:
    await publish(redis, shape)
    await (await worker.begun()).finish(state)

    assert await state_of(redis) == state


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("state", ["draft", "ready", "paused", "completed", "archived"])
async def test_a_state_that_was_changed_from_outside_stays(
    shape: str, state: str, worker: Worker, redis: Any, ear: Ear
) -> None:
    await publish(redis, shape)
    run = await worker.begun()
    await publish(redis, shape, state)
    assert await run.finish() is Finished.FINISHED

    assert await state_of(redis) == state
    assert (await ear.names())[-1] == "completed"


@pytest.mark.parametrize("before", KINDS)
@pytest.mark.parametrize("after", KINDS)
async def test_an_experiment_published_anew_meanwhile_keeps_its_state(
    before: str, after: str, worker: Worker, redis: Any
) -> None:
    await publish(redis, before)
    run = await worker.begun()
    await redis.delete(keys.experiment(EXPERIMENT))
    await publish(redis, after, "ready")
    assert await run.finish() is Finished.FINISHED

    assert await state_of(redis) == "ready"


@pytest.mark.parametrize("before", SHAPES)
@pytest.mark.parametrize(
    "command", [("DEL",), ("SET", "x"), ("RPUSH", "x"), ("HSET", "a", "b")], ids=" ".join
)
async def test_an_experiment_that_is_none_any_more_stops_no_end(
    before: str, command: tuple[str, ...], worker: Worker, redis: Any
) -> None:
    await publish(redis, before)
    run = await worker.begun()
    name, *arguments = command
    await redis.delete(keys.experiment(EXPERIMENT))
    await redis.execute_command(name, keys.experiment(EXPERIMENT), *arguments)
    found = await redis.dump(keys.experiment(EXPERIMENT))
    assert await run.finish() is Finished.FINISHED

    assert await redis.dump(keys.experiment(EXPERIMENT)) == found


async def test_a_document_changed_meanwhile_keeps_the_change(worker: Worker, redis: Any) -> None:
    await publish(redis, "string")
    run = await worker.begun()
    changed = json.loads(await redis.get(keys.experiment(EXPERIMENT))) | {"note": "changed"}
    await redis.set(keys.experiment(EXPERIMENT), json.dumps(changed))
    await run.finish()

    assert json.loads(await redis.get(keys.experiment(EXPERIMENT))) == changed | {"state": "run"}


@pytest.mark.parametrize("shape", SHAPES)
async def test_while_another_run_is_under_way_the_experiment_is_running(
    shape: str, worker: Worker, redis: Any
) -> None:
    await publish(redis, shape)
    first, second, third = [await worker.begun() for _ in range(3)]
    await second.finish()
    assert await state_of(redis) == "running"
    await first.finish(State.FAILED)
    assert await state_of(redis) == "running"
    await third.finish()

    assert await state_of(redis) == "run"


async def test_a_run_that_waits_does_not_keep_the_experiment_running(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat")
    first, second = await worker.begun(), await worker.begun()
    await worker.queued()
    await first.retry(60)
    await second.finish()

    assert await state_of(redis) == "run"


async def test_overlapping_runs_of_a_document_end_whatever_the_order(worker: Worker, redis: Any) -> None:
    await publish(redis, "wrapped")
    runs = [await worker.begun() for _ in range(10)]
    answers = await together(*(run.finish() for run in reversed(runs)))

    assert set(answers) == {Finished.FINISHED}
    assert await state_of(redis) == "run"


async def test_an_end_against_writers_of_the_document_gets_through(worker: Worker, redis: Any) -> None:
    await publish(redis, "string")
    run = await worker.begun()
    stop = asyncio.Event()

    async def write() -> int:
        number = 0
        while not stop.is_set():
            number += 1
            await redis.set(
                keys.experiment(EXPERIMENT), json.dumps({"tool": "t", "state": "running", "n": number})
            )
            await asyncio.sleep(0)
        return number

    writing = asyncio.create_task(write())
    answer = await run.finish()
    stop.set()
    await writing

    assert answer is Finished.FINISHED
