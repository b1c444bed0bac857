"""What a run says while it is under way: said once, and only by the attempt that counts."""

from dataclasses import replace
from typing import Any

import pytest

from shared import keys
from tests.store.conftest import EXPERIMENT, Ear, Run, Worker, event_of, journal, metrics, publish, store_on


async def emit(run: Run, done: int = 1) -> bool:
    return await run.worker.store.runs.emit(run.claim, [event_of(run.claim, "progress") | {"done": done}])


async def test_an_attempt_that_was_taken_over_says_nothing_any_more(
    worker: Worker, redis: Any, ear: Ear
) -> None:
    frozen = await worker.begun()
    assert await emit(frozen, 1)
    await frozen.requeue()
    assert not await emit(frozen, 2)
    other = Worker(worker.store, "w2")
    claim = await other.claim()
    assert not await emit(frozen, 3)
    assert await emit(Run(other, claim), 4)

    assert [event.get("done") for _, event in await ear.all()] == [None, 1, None, 4]
    assert len(await journal(redis)) == len(await metrics(redis)) == 4


@pytest.mark.parametrize("end", [Run.finish, Run.retry])
async def test_after_its_end_an_attempt_says_nothing(end: Any, worker: Worker, redis: Any, ear: Ear) -> None:
    await publish(redis, "flat")
    run = await worker.begun()
    await end(run)
    heard = await ear.all()

    assert not await emit(run)
    assert await ear.all() == heard


async def test_what_is_buried_says_nothing_under_the_lease_that_it_had(worker: Worker, ear: Ear) -> None:
    """Who buries a dead worker's run ends it under the dead one's lease."""
    frozen = await worker.begun()
    await frozen.finish()

    assert (await worker.store.runs.record(frozen.id))["lease"] == frozen.claim.lease
    assert not await emit(frozen)


async def test_a_batch_that_is_sent_again_is_said_once(worker: Worker, ear: Ear) -> None:
    run = await worker.begun()
    assert await emit(run, 1)
    assert await emit(run, 1)
    assert await emit(run, 2)

    assert [event.get("done") for _, event in await ear.all()] == [None, 1, 2]


async def test_a_batch_of_any_size_is_kept_and_said_in_order(
    redis_url: str, worker: Worker, ear: Ear
) -> None:
    """More than Lua's stack holds, which is what a slow store makes of a tool that reports a lot."""
    async with store_on(redis_url, metrics=20_000) as store:
        run = replace(await worker.begun(), worker=Worker(store))
        events = [event_of(run.claim, "progress") | {"done": number} for number in range(9_500)]
        assert await store.runs.emit(run.claim, events)

        assert (await metrics(ear.neighbour.redis))[1:] == events
        assert [event for _, event in await ear.all()][1:] == events


async def test_metrics_are_kept_from_the_last_one_on(worker: Worker, redis: Any) -> None:
    run, other, name = await worker.begun(), await worker.begun(), keys.metrics(EXPERIMENT)
    for say in (worker.begun, lambda: emit(run), run.retry, other.finish):
        await redis.pexpire(name, 60_000)
        await say()

        assert 3_500_000 < await redis.pttl(name) <= 3_600_000


# -- what it prints ---------------------------------------------------------------------


async def printed(redis: Any, run_id: str) -> list[str]:
    return [fields["text"] for _, fields in await redis.xrange(keys.logs(run_id))]


async def test_lines_that_are_sent_again_are_kept_once(worker: Worker, redis: Any) -> None:
    run = await worker.begun()
    first = [{"at": "1.0", "stream": "stdout", "text": text} for text in "ab"]
    last = [{"at": "2.0", "stream": "stdout", "text": "c"}]
    for batch in (first, first, last, last, first):
        await worker.store.runs.log(run.id, batch)

    assert await printed(redis, run.id) == ["a", "b", "c", "a", "b"]
    assert 0 < await redis.pttl(keys.logs(run.id)) <= 3_600_000
    assert (await worker.store.history.lines(run.id))[0].text == "a"


async def test_lines_of_a_run_without_a_record_are_kept(worker: Worker, redis: Any) -> None:
    await worker.store.runs.log(f"{EXPERIMENT}:1-1", [{"text": "a\n\ud800"}])

    assert await printed(redis, f"{EXPERIMENT}:1-1") == ["a\n\\ud800"]
    assert not await redis.exists(keys.run(f"{EXPERIMENT}:1-1"))
