"""Room for more processes than calls."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from services.executor.isolation.calls import Answer, Level, Module, Returned
from services.executor.isolation.pool import Pool
from tests.isolation.bench import Bench, bench, gone

PID = "import os\ndef run(): return os.getpid()"


def value(answer: Answer) -> Any:
    assert isinstance(answer, Returned), answer
    return answer.value


async def in_turn(one: Bench, tools: list[Module]) -> list[int]:
    """A run of each, one after the other; the processes that served them."""
    return [value(await one.run(tool)) for tool in tools]


@contextlib.asynccontextmanager
async def watching(look: Callable[[], int]) -> AsyncIterator[list[int]]:
    """What it was in every turn of the event loop."""
    seen: list[int] = []

    async def watch() -> None:
        while True:
            seen.append(look())
            await asyncio.sleep(0)

    watcher = asyncio.create_task(watch())
    yield seen
    watcher.cancel()


async def test_with_room_for_all_tools_a_second_round_starts_no_process(tools: Path) -> None:
    async with bench(tools, capacity=1, room=6) as wide:
        kinds = [wide.tool(PID) for _ in range(6)]

        turns = [await in_turn(wide, kinds) for _ in range(3)]
        at_once = await asyncio.gather(*(wide.run(kind) for kind in kinds))

    assert len(set(turns[0])) == 6
    assert turns[1] == turns[2] == list(map(value, at_once)) == turns[0]


async def test_by_default_there_is_room_for_as_many_processes_as_calls(tools: Path) -> None:
    async with bench(tools, capacity=2) as narrow:
        kinds = [narrow.tool(PID) for _ in range(3)]

        first, second = await in_turn(narrow, kinds), await in_turn(narrow, kinds)

    assert not set(first) & set(second)


async def test_the_process_that_was_idle_longest_makes_room(tools: Path) -> None:
    async with bench(tools, capacity=1, room=3) as three:
        a, b, c, d = (three.tool(PID) for _ in range(4))
        before = await in_turn(three, [a, b, c])
        await three.run(a)

        await three.run(d)
        await gone(before[1])
        after = await in_turn(three, [a, c])

        assert after == [before[0], before[2]]
        assert value(await three.run(b)) != before[1]


async def test_one_tool_alone_gets_no_more_processes_than_calls(tools: Path) -> None:
    async with bench(tools, capacity=2, room=8) as wide:
        tool = wide.tool(PID)

        answers = await asyncio.gather(*(wide.run(tool) for _ in range(30)))

    assert len({value(answer) for answer in answers}) <= 2


@pytest.mark.parametrize("room", [3, 5])
async def test_both_bounds_hold_under_load(tools: Path, room: int) -> None:
    async with bench(tools, capacity=3, room=room) as loaded:
        kinds = [loaded.tool(PID) for _ in range(8)]
        levels = [Level.WARM, Level.WARM, Level.SPAWN]

        def under_way() -> int:
            counts = loaded.pool.counts()
            return counts["busy"] + counts["starting"]

        def alive() -> int:
            return len(loaded.pool.inspect().alive)

        async with watching(alive) as processes, watching(under_way) as calls:
            runs = (loaded.run(kinds[n % 8], level=levels[n % 3]) for n in range(80))
            answers = await asyncio.gather(*runs)

    assert all(isinstance(answer, Returned) for answer in answers)
    assert max(processes) == room
    assert max(calls) == 3


async def test_more_room_does_not_mean_more_templates(tools: Path) -> None:
    async with bench(tools, capacity=2, room=9) as wide:
        for _ in range(5):
            value(await wide.run(PID, level=Level.FORK))

        assert len(wide.pool.inspect().templates) == 2


async def test_room_for_fewer_processes_than_calls_is_refused() -> None:
    with pytest.raises(ValueError, match="4 calls at once need as many processes, but there is room for 3"):
        Pool(capacity=4, room=3)
