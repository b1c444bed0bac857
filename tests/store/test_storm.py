"""Many workers act at random on the same claims: no run ends twice, and none is lost."""

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from msgspec.structs import replace

from services.executor.store import Begun, Claim
from shared import keys
from tests.store.conftest import Ear, Run, Worker, orders, publish

RUNS, WORKERS, SECONDS = 60, 8, 1.5


class Chaos(Worker):
    """A worker that acts at random, also on claims of other workers."""

    def __init__(self, worker: Worker, name: str, seen: list[Claim], dice: random.Random) -> None:
        super().__init__(worker.store, name)
        self._seen = seen
        self._dice = dice

    async def act(self) -> None:
        """One step."""
        match self._dice.randrange(10):
            case 0 | 1 | 2:
                await self._claim_and_begin()
            case 3:
                await self.store.queue.promote(5)
            case 4:
                await self._steal()
            case _ if self._seen:
                await self._end_somehow(self._dice.choice(self._seen))
            case _:
                await asyncio.sleep(0)

    async def _claim_and_begin(self) -> None:
        for claim in await self.take(2):
            assert claim.begun is Begun.BEGUN
            self._seen.append(claim)

    async def _steal(self) -> None:
        """Begin what somebody else holds, or held."""
        if self._seen:
            claim = replace(self._dice.choice(self._seen), worker=self.name)
            await self.store.queue.begin_held(self.name, [claim])

    async def _end_somehow(self, claim: Claim) -> None:
        run = Run(self, claim)
        ways: list[Any] = [run.finish, run.finish, run.requeue, run.retry, run.reject]
        await self._dice.choice(ways)()


@pytest.mark.parametrize(("shape", "seed"), [("flat", 1), ("string", 2)])
async def test_no_run_ends_twice_and_none_is_lost(
    shape: str, seed: int, worker: Worker, redis: Any, ear: Ear
) -> None:
    dice = random.Random(seed)
    await publish(redis, shape)
    runs = {f"exp:1:{await worker.queued()}" for _ in range(RUNS)}
    seen: list[Claim] = []
    workers = [Chaos(worker, f"w{number}", seen, random.Random(dice.random())) for number in range(WORKERS)]

    async def storm(one: Chaos) -> None:
        deadline = asyncio.get_running_loop().time() + SECONDS
        while asyncio.get_running_loop().time() < deadline:
            await one.act()

    async with asyncio.TaskGroup() as tasks:
        for one in workers:
            tasks.create_task(storm(one))
    for one in workers:  # what is left goes the usual way
        for claim in await one.store.queue.claims_of(one.name):
            await one.store.queue.requeue(claim, claim.order)
    last = Worker(worker.store, "last")
    while await redis.zcard(keys.retries()) or await orders(redis):
        await worker.store.queue.promote()
        for claim in await last.take(10):
            await Run(last, claim).finish()

    ended = Counter(message["run_id"] for channel, message in await ear.all() if channel == keys.RESULTS)
    assert set(ended) == runs
    assert set(ended.values()) == {1}
    assert await redis.exists(keys.open_runs("exp:1")) == 0
    records = [await worker.store.runs.record(run_id) for run_id in runs]
    assert {record["status"] for record in records} <= {"completed", "cancelled"}
