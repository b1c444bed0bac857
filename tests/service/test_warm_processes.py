"""How many tools stay warm is a setting of its own."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from shared import keys
from tests.conftest import Neighbour, Serve, Tools, eventually

TOOLS = [f"tool_{letter}" for letter in "abcdefghi"]
LEAST_ROOM = 1 + 5
"""Of a worker with one slot, see WARM_PROCESSES in docs/operations.md."""
PID = """
    import os

    def {name}():
        return {{"pid": os.getpid()}}
"""
MEET = """
    import os, time

    def {name}(place: str):
        open(os.path.join(place, "{name}"), "w").close()
        while len(os.listdir(place)) < 2:
            time.sleep(0.005)
        return {{"pid": os.getpid()}}
"""


async def turn(neighbour: Neighbour) -> list[int]:
    """A run of each tool, one after the other; the processes that served them."""
    results = [await neighbour.run(name) for name in TOOLS]
    return [result["result_summary"]["pid"] for result in results]


@pytest.mark.parametrize(("room", "are_kept"), [(32, True), (1, False)])
async def test_tools_in_turns_stay_warm_as_long_as_there_is_room(
    serve: Serve, neighbour: Neighbour, tools: Tools, room: int, are_kept: bool
) -> None:
    for name in TOOLS:
        tools(name, PID.format(name=name))
        await neighbour.publish(name, name)

    async def registered() -> Any:
        return await neighbour.redis.exists(*map(keys.tool, TOOLS)) == len(TOOLS)

    async with serve(concurrency=1, warm_processes=room) as service:
        await eventually(registered)
        first, second = await turn(neighbour), await turn(neighbour)
        counts = service.processes()

    if are_kept:
        assert second == first
    else:  # the run's own process, and those in which tools may be described meanwhile
        assert not set(second) & set(first)
        assert sum(counts.values()) <= LEAST_ROOM


async def test_few_warm_processes_hold_up_no_run(
    serve: Serve, neighbour: Neighbour, tools: Tools, tmp_path: Path
) -> None:
    (tmp_path / "place").mkdir()
    for name in TOOLS[:2]:
        tools(name, MEET.format(name=name))
        await neighbour.publish(name, name, params={"place": str(tmp_path / "place")})

    async with serve(concurrency=2, warm_processes=1):
        results = await asyncio.gather(*(neighbour.run(name) for name in TOOLS[:2]))

    assert {result["status"] for result in results} == {"success"}
