"""The numbers of idle, busy and starting processes of a pool."""

import asyncio

import pytest

from services.executor.isolation.calls import Level
from tests.isolation.bench import Bench

PATIENT = """
    import time
    from pathlib import Path

    def run(until):
        print("begun", flush=True)
        while not Path(until).exists():
            time.sleep(0.01)
"""


async def test_a_pool_that_was_never_used_has_none(bench: Bench) -> None:
    assert bench.pool.counts() == {"idle": 0, "busy": 0, "starting": 0}


@pytest.mark.parametrize(("level", "left"), [(Level.WARM, 1), (Level.SPAWN, 0)])
async def test_processes_are_counted_by_what_they_do(level: Level, left: int, bench: Bench) -> None:
    tool, go = bench.tool(PATIENT), bench.directory / "go"
    running = asyncio.create_task(bench.run(tool, params={"until": str(go)}, level=level))
    await bench.printed("begun")
    busy = bench.pool.counts()
    go.touch()
    await running
    if not left:
        while bench.pool.counts()["idle"]:  # it is on its way out
            await asyncio.sleep(0.01)

    assert busy == {"idle": 0, "busy": 1, "starting": 0}
    assert bench.pool.counts() == {"idle": left, "busy": 0, "starting": 0}


async def test_a_process_that_imports_its_tool_is_starting(bench: Bench) -> None:
    tool = bench.tool("""
        import time
        from pathlib import Path
        print("importing", flush=True)
        while not (Path(__file__).parent / "go").exists():
            time.sleep(0.01)
        def run():
            pass
    """)
    running = asyncio.create_task(bench.run(tool))
    await bench.printed("importing")
    starting = bench.pool.counts()
    (bench.directory / "go").touch()
    await running

    assert starting == {"idle": 0, "busy": 0, "starting": 1}


async def test_templates_and_waiting_forks_count_as_idle(bench: Bench) -> None:
    tool, go = bench.tool(PATIENT), bench.directory / "go"
    running = asyncio.create_task(bench.run(tool, params={"until": str(go)}, level=Level.FORK))
    await bench.printed("begun")
    counts = bench.pool.counts()
    go.touch()
    await running

    assert counts == {"idle": 2, "busy": 1, "starting": 0}


async def test_a_stopped_pool_has_none(bench: Bench) -> None:
    await bench.run("def run(): pass")
    await bench.pool.stop()

    assert bench.pool.counts() == {"idle": 0, "busy": 0, "starting": 0}
