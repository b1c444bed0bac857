"""A process is made before the call that wants it, from what nobody else needs."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from services.executor.isolation import unused
from services.executor.isolation.calls import Died, Level, LogLine, Module, Raised, Returned
from tests.isolation.bench import Bench, bench

PID = """
import os
with open(__file__ + ".imports", "a") as file:
    print(os.getpid(), file=file, flush=True)
def run():
    return [os.getpid(), os.getppid()]
"""
SLOW = (
    PID
    + """
import time
while not os.path.exists(__file__ + ".go"):
    time.sleep(0.002)
"""
)


async def make_ready(
    one: Bench, tool: Module, level: Level = Level.WARM, timeout_seconds: float = 30
) -> None:
    await one.pool.make_ready(tool, level, timeout_seconds)


async def pids(one: Bench, tool: Module, level: Level = Level.WARM) -> Any:
    answer = await one.run(tool, level=level)
    assert isinstance(answer, Returned)
    return answer.value


def imported_by(tool: Module) -> list[int]:
    path = Path(f"{tool.path}.imports")
    return [int(line) for line in path.read_text().split()] if path.exists() else []


async def until(fact: Any) -> None:
    async with asyncio.timeout(20):
        while not fact():
            await asyncio.sleep(0.002)


def alive(one: Bench) -> int:
    return sum(one.pool.counts().values())


async def test_the_next_call_finds_what_was_made_ready(bench: Bench) -> None:
    tool = bench.tool(PID)

    for _ in range(3):
        await make_ready(bench, tool)
        assert bench.pool.counts() == {"idle": 1, "busy": 0, "starting": 0}
    [pid, _] = await pids(bench, tool)

    assert imported_by(tool) == [pid]


async def test_a_template_and_its_fork_are_made_ready(bench: Bench) -> None:
    tool = bench.tool(PID)

    for _ in range(2):
        await make_ready(bench, tool, Level.FORK)
        assert bench.pool.counts()["idle"] == 2
    _, parent = await pids(bench, tool, Level.FORK)

    assert imported_by(tool) == [parent]


async def test_nothing_is_made_for_a_new_interpreter_each_time(bench: Bench) -> None:
    await make_ready(bench, bench.tool(PID), Level.SPAWN)

    assert alive(bench) == 0


@pytest.mark.parametrize("level", [Level.WARM, Level.FORK])
async def test_a_call_that_comes_meanwhile_waits_for_the_same_import(bench: Bench, level: Level) -> None:
    tool = bench.tool(SLOW)
    making = asyncio.create_task(make_ready(bench, tool, level))
    await until(lambda: imported_by(tool))
    calling = asyncio.create_task(pids(bench, tool, level))
    await until(lambda: bench.pool._attempts)

    Path(f"{tool.path}.go").touch()
    found = await calling
    await making

    assert len(imported_by(tool)) == 1
    assert imported_by(tool)[0] in found


async def test_a_call_that_comes_meanwhile_has_its_own_time_limit(bench: Bench) -> None:
    tool = bench.tool(SLOW)
    making = asyncio.create_task(make_ready(bench, tool))
    await until(lambda: imported_by(tool))

    answer = await bench.run(tool, timeout_seconds=0.1)
    await making

    assert type(answer).__name__ == "TimedOut"
    assert alive(bench) == 0


async def test_an_import_that_hangs_is_ended(bench: Bench) -> None:
    for level in (Level.WARM, Level.FORK):
        await make_ready(bench, bench.tool(SLOW), level, timeout_seconds=0.1)

    await until(lambda: alive(bench) == 0)


async def test_nobody_is_told_of_what_is_wrong_but_the_call(bench: Bench) -> None:
    tool = bench.tool("raise ValueError('no')")

    for level in (Level.WARM, Level.FORK):
        await make_ready(bench, tool, level)
        answer = await bench.run(tool, level=level)
        assert isinstance(answer, Raised)
        assert "no" in answer.message

    await until(lambda: alive(bench) == 0)


async def test_a_pool_that_was_stopped_makes_nothing_ready(tools: Path) -> None:
    async with bench(tools) as own:
        tool = own.tool(SLOW)
        making = asyncio.create_task(make_ready(own, tool))
        await until(lambda: imported_by(tool))
    await making
    await make_ready(own, tool)

    assert len(imported_by(tool)) == 1


# -- room -----------------------------------------------------------------------------


async def test_what_is_not_ready_yet_makes_room_for_a_call(tools: Path) -> None:
    async with bench(tools, capacity=1, room=1) as one:
        slow = one.tool(SLOW)
        making = asyncio.create_task(make_ready(one, slow))
        await until(lambda: imported_by(slow))

        [pid, _] = await pids(one, tool := one.tool(PID))
        await making

        assert imported_by(tool) == [pid]
        assert alive(one) == 1


async def test_nothing_is_taken_from_what_is_in_use_or_was_lately(tools: Path) -> None:
    async with bench(tools, capacity=1, room=1) as one:
        used, other = one.tool(SLOW), one.tool(PID)
        calling = asyncio.create_task(pids(one, used))
        await until(lambda: imported_by(used))
        await make_ready(one, other)
        Path(f"{used.path}.go").touch()
        [pid, _] = await calling
        await make_ready(one, other)

        assert imported_by(other) == []
        assert await pids(one, used) == [pid, _]


async def test_what_was_not_used_lately_makes_room(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unused, "LATELY_SECONDS", 0.0)
    async with bench(tools, capacity=1, room=1) as one:
        await pids(one, one.tool(PID))
        await make_ready(one, tool := one.tool(PID))

        assert len(imported_by(tool)) == 1
        assert alive(one) == 1


async def test_no_more_templates_are_made_than_there_may_be(
    tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(tools, capacity=1, room=4) as one:
        await pids(one, used := one.tool(PID), Level.FORK)
        await make_ready(one, other := one.tool(PID), Level.FORK)
        assert (len(imported_by(used)), imported_by(other)) == (1, [])

        monkeypatch.setattr(unused, "LATELY_SECONDS", 0.0)
        await make_ready(one, other, Level.FORK)
        assert len(imported_by(other)) == 1


# -- what it says before its run -----------------------------------------------------


async def test_what_an_import_prints_goes_to_the_run_that_it_was_made_for(bench: Bench) -> None:
    tool = bench.tool("print('imported')\ndef run(): print('ran')")

    await make_ready(bench, tool)
    for _ in range(2):
        await bench.run(tool)

    assert [event.text for event in bench.events if isinstance(event, LogLine)] == ["imported", "ran", "ran"]


async def test_why_an_import_ended_its_process_is_told_by_the_run_that_waited(bench: Bench) -> None:
    tool = bench.tool("""
        import os, time
        print("the reason", flush=True)
        while not os.path.exists(__file__ + ".go"): time.sleep(0.002)
        os._exit(3)
        def run(): pass
    """)
    ahead = asyncio.create_task(make_ready(bench, tool))
    await until(lambda: alive(bench) == 1)
    running = asyncio.create_task(bench.run(tool))
    await until(lambda: bench.pool.counts()["starting"] == 1)
    Path(f"{tool.path}.go").touch()

    answer = await running
    await ahead

    assert isinstance(answer, Died)
    assert answer.exit.last_lines == ("the reason",)


async def test_two_who_ask_for_the_same_at_once_leave_one(bench: Bench) -> None:
    tool = bench.tool(PID)

    await asyncio.gather(*(make_ready(bench, tool) for _ in range(3)))

    assert bench.pool.counts() == {"idle": 1, "busy": 0, "starting": 0}
    assert len(imported_by(tool)) == 1
