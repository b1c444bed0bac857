"""What is kept between runs."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog
from msgspec.structs import replace
from structlog.testing import capture_logs

from services.executor.isolation.calls import Level, Returned
from services.executor.isolation.templates import MAX_PREFORKED
from tests.isolation.bench import Bench, bench

DIGESTS = 300


async def test_hundreds_of_digests_leave_nothing_behind(tools: Path) -> None:
    async with bench(tools, capacity=2) as few:

        async def after(count: int) -> Mapping[str, int]:
            for number in range(count):
                level = Level.FORK if number % 4 == 0 else Level.WARM
                tool = few.tool(f"def run(): return {number}", name="same")
                assert await few.run(tool, level=level) == Returned(number)
            return few.pool.inspect().sizes

        early = await after(20)
        late = await after(DIGESTS - 20)

    assert set(early) >= {"idle_by_key", "templates_starting", "templates", "preforked", "alive"}
    assert all(size <= early[name] + 2 for name, size in late.items()), (early, late)


# -- the working directory of a fork --------------------------------------------------------------

PLACE = """
import os
def run(spoil=""):
    found = sorted(os.listdir("..")), os.listdir("."), os.stat(".").st_mode & 0o777
    if spoil == "file": open("left", "w").close()
    if spoil == "mode": os.chmod(".", 0o777)
    if spoil == "beside": os.mkdir("../beside")
    if spoil == "gone": os.rmdir(os.getcwd())
    if spoil == "crash": os._exit(1)
    return [os.getcwd() if not spoil else spoil, *found]
"""


@pytest.mark.parametrize("spoil", ["", "file", "mode", "beside", "gone", "crash"])
async def test_each_fork_finds_its_directory_empty_whatever_the_one_before_left(
    bench: Bench, spoil: str
) -> None:
    tool = bench.tool(PLACE)

    for params in ({"spoil": spoil}, {}) * 3:
        answer = await bench.run(tool, params=params, level=Level.FORK)
        if isinstance(answer, Returned):
            assert answer.value[1:] == [["temp"], [], 0o700]


async def test_forks_hand_their_directories_on(bench: Bench) -> None:
    tool = bench.tool(PLACE)

    answers = [await bench.run(tool, level=Level.FORK) for _ in range(20)]

    places = {answer.value[0] for answer in answers if isinstance(answer, Returned)}
    assert len(places) <= 4 + MAX_PREFORKED  # the capacity, and those that wait for a call


async def test_no_directory_is_left_when_the_pool_has_stopped(tools: Path) -> None:
    async with bench(tools) as own:
        answer = await own.run(own.tool(PLACE), level=Level.FORK)

    assert isinstance(answer, Returned)
    assert not Path(answer.value[0]).parent.exists()


# -- what is said ---------------------------------------------------------------------


async def test_a_process_that_is_given_up_is_logged_with_the_run_that_dirtied_it(bench: Bench) -> None:
    tool = bench.tool("""
        import threading, time
        def run(dirty=False):
            if dirty: threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
    """)

    def call(run_id: str, *, dirty: bool) -> Any:
        return replace(bench.call(tool, {"dirty": dirty}), run_id=run_id)

    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        with structlog.contextvars.bound_contextvars(run_id="first"):
            await bench.perform(call("first", dirty=False), bench.report)
        with structlog.contextvars.bound_contextvars(run_id="second"):
            await bench.perform(call("second", dirty=True), bench.report)
        async with asyncio.timeout(10):
            while not logs:
                await asyncio.sleep(0.001)

    assert [(line["event"], line["run_id"]) for line in logs] == [("process.retired", "second")]


async def test_a_tool_that_cannot_be_forked_is_logged_with_the_reason(bench: Bench) -> None:
    tool = bench.tool("""
        import threading, time
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        def run(): return 1
    """)

    with capture_logs() as logs:
        answer = await bench.run(tool, level=Level.FORK)

    assert answer == Returned(1)
    assert [line for line in logs if line["event"] == "fork.fell_back"] == [
        {
            "event": "fork.fell_back",
            "log_level": "warning",
            "tool": tool.name,
            "reason": "its import left 1 threads behind",
        }
    ]
