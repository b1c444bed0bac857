"""Heartbeats, dead workers and their claims."""

import time
from typing import Any

import pytest

from services.executor.store import Store
from shared import keys
from tests.conftest import eventually
from tests.store.conftest import QUEUE, Worker, pending, together

LONG, SHORT = 60.0, 0.001


async def beat(
    store: Store, name: str, ttl_seconds: float = LONG, *, listening: bool = False, slots: int = 1
) -> list[str]:
    return await store.workers.heartbeat(name, ttl_seconds, listening=listening, slots=slots)


async def test_a_worker_is_alive_until_its_heartbeat_expires(store: Store) -> None:
    assert await beat(store, "w1") == []
    assert await beat(store, "w2") == []

    assert sorted(await store.workers.alive()) == ["w1", "w2"]
    assert await store.workers.listening() == []


async def test_a_worker_says_how_many_runs_it_takes_until_it_leaves(store: Store, redis: Any) -> None:
    await beat(store, "w1", slots=48)
    await beat(store, "w2", slots=4)
    await redis.zadd("fullsend:executor:workers", {"of an earlier version": 2**52})

    assert await store.workers.slots() == {"w1": 48, "w2": 4, "of an earlier version": None}

    await store.workers.forget("w1")
    assert await redis.hgetall("fullsend:executor:slots") == {"w2": "4"}


async def test_a_worker_that_listens_is_among_the_listeners(store: Store) -> None:
    await beat(store, "w1", listening=True)
    await beat(store, "w2")

    assert await store.workers.listening() == ["w1"]


async def test_the_other_workers_learn_of_a_silent_worker(store: Store) -> None:
    await beat(store, "dead", SHORT, listening=True)

    async def found() -> list[str]:
        return await beat(store, "w1")

    assert await eventually(found) == ["dead"]
    assert await store.workers.alive() == ["w1"]
    assert await store.workers.listening() == []


async def test_a_dead_worker_is_listed_until_it_is_forgotten(store: Store, worker: Worker) -> None:
    await beat(store, "dead", SHORT)
    while not await beat(store, "w1"):
        pass
    assert await beat(store, "w1") == ["dead"]
    assert await store.workers.forget("dead")

    assert await beat(store, "w1") == []


async def test_a_dead_worker_that_still_holds_a_claim_is_not_forgotten(
    store: Store, worker: Worker, redis: Any
) -> None:
    dead = Worker(store, "dead")
    claim = await dead.claimed()
    await beat(store, "dead", SHORT)
    while not await beat(store, "w1"):
        pass
    assert not await store.workers.forget("dead")
    assert await beat(store, "w1") == ["dead"]

    await store.queue.requeue(claim, claim.order)

    assert await store.workers.forget("dead")
    assert [one["name"] for one in await redis.xinfo_consumers(QUEUE, "executors")] == []
    assert len((await store.queue.claim("w1", 1)).claims) == 1


async def test_a_worker_that_leaves_is_gone_at_once(store: Store, worker: Worker, redis: Any) -> None:
    await beat(store, "w1", listening=True)
    await worker.queued()
    claim = await worker.claim()
    await store.queue.requeue(claim, claim.order)

    assert await store.workers.forget("w1")
    assert await store.workers.alive() == []
    assert await store.workers.listening() == []
    assert await store.workers.forget("w1")


async def test_one_of_many_workers_takes_over_the_claim_of_a_dead_worker(
    store: Store, worker: Worker, redis: Any
) -> None:
    dead = Worker(store, "dead")
    for _ in range(30):
        await dead.claimed()

    async def take_over() -> int:
        taken = 0
        for claim in await store.queue.claims_of("dead"):
            taken += await store.queue.requeue(claim, claim.order)
        return taken

    taken = await together(*(take_over() for _ in range(5)))

    assert sum(taken) == 30
    assert await pending(redis) == 0
    assert await redis.xlen(QUEUE) == 30


async def test_a_worker_that_was_silent_itself_takes_no_other_worker_for_dead(store: Store) -> None:
    """While Redis is away, all workers are silent; the first one back must not take the others' runs."""
    for name in ("w1", "w2", "w3"):
        await beat(store, name, SHORT)

    async def all_expired() -> bool:
        return not await store.workers.alive()

    await eventually(all_expired)
    assert await beat(store, "w1", 0.3) == []
    await beat(store, "w2")

    async def blamed() -> list[str]:
        return await beat(store, "w1", 0.3)

    assert await eventually(blamed) == ["w3"]


async def test_a_new_worker_learns_of_dead_workers_at_once(store: Store) -> None:
    await beat(store, "dead", SHORT)

    async def expired() -> bool:
        return not await store.workers.alive()

    await eventually(expired)

    assert await beat(store, "new") == ["dead"]


async def test_heartbeats_expire_by_the_clock_of_the_server(
    store: Store, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = time.time
    monkeypatch.setattr(time, "time", lambda: here() + 3_600)
    before, _ = await redis.time()
    await beat(store, "w1", LONG)
    after, _ = await redis.time()
    expires_ms = await redis.zscore(keys.workers(), "w1")

    assert before * 1_000 <= expires_ms - LONG * 1_000 <= (after + 1) * 1_000
