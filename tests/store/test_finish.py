"""A run ends once, and everything that a neighbour could see of it happens in one step."""

import json
from typing import Any

from services.executor.store import Finished, Store
from services.executor.store.claims import QUEUES
from shared import keys
from shared.messages import State
from tests.store.conftest import (
    EXPERIMENT,
    Ear,
    Run,
    Worker,
    event_of,
    everything,
    journal,
    metrics,
    orders,
    pending,
    publish,
    result_of,
    state_of,
    store_on,
    together,
)


async def test_everything_that_an_end_changes_is_seen_at_once(worker: Worker, redis: Any, ear: Ear) -> None:
    await publish(redis, "flat")
    run = await worker.begun()
    assert await run.finish() is Finished.FINISHED

    record = await redis.hgetall(keys.run(run.id))
    said = [event_of(run.claim, name) for name in ("items_processed", "run_completed")]
    result = result_of(run.claim, "completed")
    assert (record["status"], record["result"], record["worker"]) == ("completed", "[1]", "w1")
    assert "error" not in record
    assert await state_of(redis) == "run"
    assert (await metrics(redis))[1:] == said
    assert (await journal(redis))[1:] == [*(("metric", event) for event in said), ("result", result)]
    assert (await ear.all())[1:] == [*((keys.METRICS, event) for event in said), (keys.RESULTS, result)]
    assert await redis.exists(keys.open_runs(EXPERIMENT)) == 0
    assert await orders(redis) == []
    assert await pending(redis) == 0


async def test_no_neighbour_sees_half_an_end(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat")

    async def halves() -> list[tuple[Any, ...]]:
        """What one look shows, again and again, until the run has ended."""
        seen: list[tuple[Any, ...]] = []
        while not seen or seen[-1][0] != "completed":
            async with redis.pipeline(transaction=True) as pipe:
                pipe.hget(keys.run(run.id), "status")
                pipe.hget(keys.experiment(EXPERIMENT), "state")
                pipe.llen(keys.metrics(EXPERIMENT))
                pipe.exists(keys.open_runs(EXPERIMENT))
                seen.append(tuple(await pipe.execute()))
        return seen

    for number in range(20):
        run = await worker.begun()
        seen, _ = await together(halves(), run.finish())

        assert set(seen) <= {
            ("running", "running", 3 * number + 1, 1),
            ("completed", "run", 3 * number + 3, 0),
        }


async def test_a_result_comes_after_the_record_that_it_is_about(
    store: Store, worker: Worker, redis: Any
) -> None:
    run = await worker.begun()
    async with store.subscriptions.to((keys.RESULTS,)) as messages:
        await run.finish()
        message = await anext(messages)

    assert (await redis.hgetall(keys.run(json.loads(message.data)["run_id"])))["status"] == "completed"


async def test_an_end_that_was_written_is_done(worker: Worker, redis: Any, ear: Ear) -> None:
    await publish(redis, "flat")
    run = await worker.begun()
    await run.finish()
    before = await everything(redis)

    assert await run.finish() is Finished.DONE
    assert await everything(redis) == before
    assert (await ear.names()).count("completed") == 1


async def test_an_end_that_was_written_stays_whatever_is_said_later(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat")
    run = await worker.begun()
    await run.finish()
    before = await everything(redis)

    assert await run.finish(State.FAILED) is Finished.DONE
    assert not await run.requeue()
    assert not await run.retry()
    assert await run.reject() is Finished.DONE
    assert await everything(redis) == before


async def test_the_end_of_an_attempt_that_was_taken_away_is_stale(
    worker: Worker, redis: Any, ear: Ear
) -> None:
    await publish(redis, "flat")
    late = await worker.begun()
    await late.requeue()
    other = Worker(worker.store, "w2")
    before = await everything(redis)
    assert await late.finish() is Finished.STALE
    assert await everything(redis) == before

    claim = await other.claim()
    assert await late.finish() is Finished.STALE
    assert await Run(other, claim).finish() is Finished.FINISHED
    assert await late.finish() is Finished.STALE

    assert (await ear.names()).count("completed") == 1
    assert (await redis.hgetall(keys.run(late.id)))["lease"] == claim.lease


async def test_of_many_ends_at_once_one_counts(worker: Worker, ear: Ear) -> None:
    run = await worker.begun()
    answers = await together(*(run.finish() for _ in range(20)))

    assert sorted(answers) == ["done"] * 19 + ["finished"]
    assert (await ear.names()).count("completed") == 1


async def test_a_run_that_never_began_can_be_rejected(worker: Worker, redis: Any, ear: Ear) -> None:
    await publish(redis, "flat", "archived")
    claim = await worker.claimed()
    run = Run(worker, claim)
    assert await run.reject() is Finished.FINISHED
    assert await run.reject() is Finished.DONE

    assert (await redis.hgetall(keys.run(run.id)))["status"] == "cancelled"
    assert await state_of(redis) == "archived"
    assert await ear.names() == ["error", "cancelled"]
    assert await orders(redis) == []
    assert await redis.exists(keys.open_runs(EXPERIMENT)) == 0


async def test_a_record_is_kept_for_as_long_as_it_is_told(worker: Worker, redis: Any) -> None:
    run = await worker.begun()
    assert await redis.pttl(keys.run(run.id)) == -1
    await run.finish()

    assert 3_500_000 < await redis.pttl(keys.run(run.id)) <= 3_600_000


async def test_lists_are_kept_as_long_as_they_are_told(redis_url: str, worker: Worker, redis: Any) -> None:
    async with store_on(redis_url, metrics=5, journal=10, log_lines=20) as store:
        frugal = Worker(store)
        for _ in range(200):
            run = await frugal.begun()
            await run.finish()
        await store.runs.log(run.id, [{"text": str(number)} for number in range(2_000)])

        assert await redis.llen(keys.metrics(EXPERIMENT)) == 5
        assert await redis.xlen(keys.journal()) < 150
        assert await redis.xlen(keys.logs(run.id)) < 150
        assert 0 < await redis.pttl(keys.logs(run.id)) <= 3_600_000
        assert (await metrics(redis))[-1] == event_of(run.claim, "run_completed")


async def test_many_runs_leave_nothing_that_stays(worker: Worker, redis: Any) -> None:
    await publish(redis, "flat")
    for _ in range(50):
        await (await worker.begun()).finish()
    staying = {name for name in await redis.keys("*") if await redis.pttl(name) == -1}

    index = {keys.runs(), keys.runs_of(EXPERIMENT), keys.runs_with("completed")}
    assert staying == {keys.experiment(EXPERIMENT), keys.journal(), keys.bell(), *QUEUES, *index}
    assert await orders(redis) == []
