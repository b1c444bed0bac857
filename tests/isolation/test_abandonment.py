"""Cancelling a task that waits for the pool, at any moment."""

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from services.executor.isolation.calls import Level, Module, Returned
from tests.isolation.bench import Bench, bench

TURNS = 40
CAPACITY = 2


def begin(bench: Bench, what: str, tool: Module) -> Awaitable[Any]:
    if what == "describe":
        return bench.pool.describe(tool, 10)
    return bench.run(tool, level=Level(what))


async def assert_nothing_is_under_way(bench: Bench) -> None:
    counts = bench.pool.counts()
    assert (counts["busy"], counts["starting"]) == (0, 0)
    state = bench.pool.inspect()
    assert (state.free_slots, state.calls) == (CAPACITY, 0)


@pytest.mark.parametrize("what", ["describe", *Level])
async def test_a_cancellation_is_never_lost_and_leaves_nothing(tools: Path, what: str) -> None:
    async with bench(tools, capacity=CAPACITY) as own:
        for turns in range(TURNS):
            task = asyncio.ensure_future(begin(own, what, own.tool("def run(): return 1")))
            for _ in range(turns):
                await asyncio.sleep(0)
            if task.done():
                break
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await assert_nothing_is_under_way(own)

        assert await own.run("def run(): return 2") == Returned(2)
        alive = own.pool.inspect().alive
        assert {process for process in alive if not process.loaded} == set()
